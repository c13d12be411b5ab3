"""Scenarios: what happens to which server, what shall come of it, and what came."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from tests.pipeline.stage import Scene

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.pipeline.journal import Alert, Entry
    from tests.pipeline.stage import Stage

Happening: TypeAlias = Callable[[Scene], Iterator[None]]
"""Runs up to its `yield`; when all that is expected has come the rest of it mends what happened."""

_NONE: Final = "-"


@dataclass(frozen=True)
class Told:
    """Alerts by name: who was told of which, and of which somebody was told less or nothing."""

    pages: frozenset[str] = frozenset()
    tickets: frozenset[str] = frozenset()
    kept_back: frozenset[str] = frozenset()


def told(
    *, pages: Iterable[str] = (), tickets: Iterable[str] = (), kept_back: Iterable[str] = ()
) -> Told:
    """These alerts and no others."""
    return Told(frozenset(pages), frozenset(tickets), frozenset(kept_back))


NOTHING: Final = told()


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Something that happens to one server, or to an agent; `alerts` are those of the agent."""

    name: str
    host: str
    server: str = ""
    happening: Happening
    expected: Told
    alerts: frozenset[str] = field(default_factory=frozenset)

    def about(self, stage: Stage) -> Callable[[Alert], bool]:
        """Tells whether an alert is of this scenario; no alert is of two."""
        label = stage.scene(self.host, self.server).label

        def is_about(alert: Alert) -> bool:
            if alert.instance != self.host:
                return False
            if alert.server:
                return alert.server == label
            return alert.name.partition(" ")[0] in self.alerts

        return is_about


@dataclass(frozen=True)
class Outcome:
    """What came of a scenario; `mended_at` is None, and `problem` says why, where it got stuck."""

    entry: Entry
    mended_at: float | None
    problem: str

    @property
    def told(self) -> Told:
        """Whom it was told, in the form of what was expected."""
        entry = self.entry
        return Told(entry.pages, entry.tickets, frozenset(entry.kept_back))

    def seconds_after_mending(self, at_unix_seconds: float) -> str:
        """How long after it was mended that was, for a reader."""
        if self.mended_at is None:
            return "not mended"
        return f"{at_unix_seconds - self.mended_at:.0f} s"

    @property
    def resolved_early(self) -> frozenset[str]:
        """Alerts whose end was told before it was mended."""
        mended_at = self.mended_at or 0.0
        resolved = self.entry.resolved.items()
        return frozenset(name for name, at in resolved if at < mended_at)


@dataclass(frozen=True)
class Seen:
    """What came of all scenarios, and the alerts that are of none."""

    outcomes: Mapping[str, Outcome]
    others: frozenset[Alert]


def play(stage: Stage, scenarios: Sequence[Scenario], seconds: float = 0) -> Seen:
    """Runs all scenarios at the same time, each again until `seconds` are over.

    What is seen is what there is at the end of all: a late alert counts, too.
    """
    with ThreadPoolExecutor(len(scenarios)) as pool:
        ends = list(pool.map(lambda scenario: _play(stage, scenario, seconds), scenarios))
    outcomes = {
        scenario.name: Outcome(stage.journal.entry(scenario.about(stage)), *end)
        for scenario, end in zip(scenarios, ends, strict=True)
    }
    abouts = [scenario.about(stage) for scenario in scenarios]
    others = {
        alert
        for alert in stage.journal.alerts()
        if not any(is_about(alert) for is_about in abouts) and not _is_of_a_stranger(stage, alert)
    }
    return Seen(outcomes, frozenset(others))


def _is_of_a_stranger(stage: Stage, alert: Alert) -> bool:
    """Whether it is of a server that an agent discovered and that is none of its host.

    Other tests, and other hosts of the stage, have servers on this machine.
    """
    host = stage.hosts.get(alert.instance)
    return host is not None and not host.servers and bool(alert.server)


def _play(stage: Stage, scenario: Scenario, seconds: float) -> tuple[float | None, str]:
    mended_at = None
    over = time.monotonic() + seconds
    try:
        while True:
            steps = scenario.happening(stage.scene(scenario.host, scenario.server))
            next(steps)
            _wait_told(stage, scenario)
            mended_at = time.time()
            next(steps, None)
            stage.journal.wait_over(scenario.about(stage))
            if time.monotonic() >= over:
                return mended_at, ""
    except Exception as error:  # noqa: BLE001 - the others go on, and its own test tells of it
        return mended_at, f"{type(error).__name__}: {error}"


def _wait_told(stage: Stage, scenario: Scenario) -> None:
    expected = scenario.expected
    stage.journal.wait(
        scenario.about(stage),
        lambda entry: (
            entry.pages >= expected.pages
            and entry.tickets >= expected.tickets
            and entry.kept_back.keys() >= expected.kept_back
        ),
        f"all is told that is expected of '{scenario.name}'",
    )


def table(scenarios: Iterable[Scenario], outcomes: Mapping[str, Outcome]) -> str:
    """A table in Markdown: each scenario, what was expected, what was seen, when it was over."""
    head = ("scenario", "expected page", "page", "ticket", "kept back (by)", "over after mending")
    rows: list[tuple[str, ...]] = [head, ("---",) * len(head)]
    for scenario in scenarios:
        outcome = outcomes[scenario.name]
        entry = outcome.entry
        kept_back = [f"{name} ({_listed(by)})" for name, by in entry.kept_back.items()]
        rows.append(
            (
                scenario.name,
                _listed(scenario.expected.pages),
                _listed(entry.pages),
                _listed(entry.tickets),
                _listed(kept_back),
                _listed(
                    f"{name} {outcome.seconds_after_mending(at)}"
                    for name, at in entry.resolved.items()
                    if name in entry.told
                ),
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(name.removeprefix("Vllm") for name in sorted(names)) or _NONE
