"""One server of the story: the real lifecycle, told by a script what happens to it.

A script moves it through time second by second. What it looks like at a scrape is what an agent
would publish then, because the agent's own code decides it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from tests.lifecycle.invariants import check_step
from tests.pipeline.story_load import Load
from tests.pipeline.story_processes import Processes
from vllm_agent.lifecycle.events import (
    Asked,
    Cleared,
    EndBegan,
    EndSettled,
    LoadLooked,
    Looked,
    MaintenanceSet,
    ProcessAppeared,
    ProcessMissing,
    StartServer,
    Terminate,
    Ticked,
    TreeSeen,
)
from vllm_agent.lifecycle.pace import next_deadline_seconds
from vllm_agent.lifecycle.server_life import Policy, ServerLife
from vllm_agent.lifecycle.states import LifecycleMode
from vllm_agent.lifecycle.step import step
from vllm_agent.lifecycle.supervision import GRAIN_SECONDS
from vllm_agent.observations import (
    Instant,
    Listener,
    MetricsFacts,
    Probe,
    ProbeCause,
    ProbeResult,
    ProbeRound,
)
from vllm_agent.snapshot import ProbeStats, ServerSnapshot

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from tests.pipeline.story_load import Model
    from vllm_agent.lifecycle.ending import EndingEvidence
    from vllm_agent.lifecycle.events import Effect, Event
    from vllm_agent.lifecycle.management import Wish
    from vllm_agent.observations import GpuProcess, Sighting, Stage

LOOK_SECONDS: Final = 10
MODELS_SECONDS: Final = 60
LOAD_LOOK_SECONDS: Final = 5
"""How often the agent does what, as it is configured where nobody says otherwise."""
TIMEOUT_SECONDS: Final = 5.0
REFUSAL_SECONDS: Final = 0.002
VERSION: Final = "0.28.0"
_LOADING_CORES: Final = 4.0
_SERVING_CORES: Final = 1.5
_REMOTE_AGE_SECONDS: Final = 7 * 86_400
"""How long a server that is watched by URL had run when the story began."""
_LONGEST_DELAY_SECONDS: Final = 300
_MAX_DUE: Final = 10
"""What is due at once is done in a few steps, or it would be a loop that never waits."""


@dataclass(frozen=True, slots=True)
class Span:
    """A time in unix seconds, its end not included."""

    start: int
    end: int

    def __contains__(self, unix_seconds: float) -> bool:
        return self.start <= unix_seconds < self.end


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What does not change of a server. `gpus` are the devices that it uses, in rank order.

    `gpu_bytes` is what it holds of each when it serves. `unit` is its systemd service, None for one
    that somebody started in a shell. `latency_seconds` is what a probe of it takes on average.
    """

    name: str
    mode: LifecycleMode
    model: Model | None
    url: str
    gpus: tuple[str, ...] = ()
    gpu_bytes: int = 0
    first_pid: int = 0
    unit: str | None = None
    is_discovered: bool = False
    latency_seconds: float = 0.008
    restart_delay_seconds: float = 2.0

    @property
    def is_managed(self) -> bool:
        return self.mode is LifecycleMode.MANAGED

    @property
    def policy(self) -> Policy:
        model = self.model.name if self.model is not None and self.is_managed else None
        return Policy(
            is_local=self.mode is not LifecycleMode.EXTERNAL,
            is_wanted=not self.is_discovered or self.unit is not None,
            is_managed=self.is_managed,
            model=model,
            restart_delay_seconds=self.restart_delay_seconds,
        )


@dataclass(frozen=True, slots=True)
class Moment:
    """What one scrape finds: the server, and what its processes hold of each GPU."""

    server: ServerSnapshot
    held: Mapping[str, Sequence[GpuProcess]]


class StoryServer:
    """A server as one agent sees it, from `begin` on, which is unix time as `scrapes` are.

    `away` is when that agent is down: nothing may happen to the server meanwhile. `moments` is what
    each scrape found, None while the agent is away. Scripts set `model`, `is_asleep` and
    `fails_by`, why looks at it fail.
    """

    def __init__(
        self, about: About, *, begin: int, scrapes: Collection[int], away: Span | None = None
    ) -> None:
        self.about = about
        self.model = about.model
        self.is_asleep = False
        self.fails_by: ProbeCause | None = None
        self.now = Instant(0.0, float(begin))
        self.moments: list[Moment | None] = []
        self._begin = begin
        self._scrapes = frozenset(scrapes)
        self._away = away
        self._effects: list[Effect] = []
        self._processes = Processes(about.first_pid, about.gpus)
        self._load: Load | None = None
        self._snapshot = self._begun(None)

    # Time, as scripts let it pass.

    def until(self, unix_seconds: float) -> None:
        """Time passes, with everything that falls due and every look of the agent."""
        seconds = round(unix_seconds - self.now.unix_seconds)
        assert seconds >= 0, f"{self.about.name}: that time is over"
        self.wait(seconds)

    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self._pass_second()

    # Events, as scripts tell them.

    def is_there_already(self, age_seconds: float) -> None:
        """The agent finds it running."""
        self._appear(age_seconds)
        self._serve()

    def is_not_there(self) -> None:
        self._send(ProcessMissing())

    def launch(self) -> None:
        """A process of it is started: by the agent, if the agent starts it, when the agent does."""
        if self.about.is_managed:
            for _ in range(_LONGEST_DELAY_SECONDS):
                if self._has_asked_for(StartServer):
                    break
                self.wait(1)
            else:
                raise AssertionError("the agent started nothing")
        self._appear(0.0)

    def begin_load(self, *stages: tuple[Stage, int]) -> None:
        """Its newest launch sets out on stages, each that many seconds long, and stays there."""
        processes = self._processes
        assert processes.newest is not None
        assert self.model is not None
        self._load = Load(
            processes.newest.process,
            self.model,
            processes.workers,
            self.about.gpu_bytes,
            self.now,
            stages,
        )
        self._send(LoadLooked(self._load.look(self.now)))

    def load(self, *stages: tuple[Stage, int]) -> None:
        """Its newest launch passes through stages."""
        self.begin_load(*stages)
        self.wait(sum(seconds for _, seconds in stages))

    def load_and_serve(self, *stages: tuple[Stage, int]) -> None:
        self.load(*stages)
        self._serve()

    def crash(self, evidence: EndingEvidence, *, orphans: Sequence[str] = ()) -> None:
        """Its main process ends; on the GPUs of `orphans` its workers live on."""
        self._end(evidence, dict.fromkeys(orphans, self._worker_bytes()))

    def kill_orphans(self) -> None:
        """Somebody ends what outlived its main process."""
        self._processes.end_orphans()
        self._see_tree()

    def ask(self, wish: Wish, model: Model | None = None) -> None:
        """An operator asks something of a managed server."""
        self.model = model or self.model
        self._send(Asked(wish, None if model is None else model.name))

    def stop_as_told(self, evidence: EndingEvidence, seconds: int) -> None:
        """It ends that long after it was told to, by the agent or by systemd."""
        if self.about.is_managed:
            assert self._has_asked_for(Terminate), "the agent stopped nothing"
        self.wait(seconds)
        self._end(evidence, {})

    def maintain(self) -> None:
        """Maintenance begins, without an end."""
        self._send(MaintenanceSet(math.inf))

    # What the agent does.

    def _pass_second(self) -> None:
        self.now = Instant(self.now.monotonic_seconds + 1, self.now.unix_seconds + 1)
        unix_seconds = int(self.now.unix_seconds)
        is_scraped = unix_seconds in self._scrapes
        if self._processes.is_alive:
            is_loading = self._load is not None
            self._processes.cpu_seconds += _LOADING_CORES if is_loading else _SERVING_CORES
        if self._away is not None and unix_seconds in self._away:
            if is_scraped:
                self.moments.append(None)
            return
        if self._away is not None and unix_seconds == self._away.end:
            self._agent_returns()
        self._do_what_is_due()
        self._look(unix_seconds)
        if is_scraped:
            held = self._processes.held(self._worker_bytes())
            self.moments.append(Moment(self._snapshot, held))

    def _send(self, event: Event) -> None:
        """One event of the agent, with all that is due after it."""
        before, policy = self._snapshot.life, self._snapshot.policy
        done = step(before, event, policy, self.now)
        check_step(before, done, policy, self.now)
        self._snapshot = replace(self._snapshot, life=done.life).after(event, self.now)
        self._effects += done.effects
        if not isinstance(event, Ticked):
            self._do_what_is_due()

    def _do_what_is_due(self) -> None:
        for _ in range(_MAX_DUE):
            due = next_deadline_seconds(self._snapshot.life, self._snapshot.policy, self.now)
            if due is None or due > GRAIN_SECONDS:
                return
            self._send(Ticked())
        raise AssertionError(f"{self.about.name}: something is due for ever")

    def _look(self, unix_seconds: int) -> None:
        if self._load is not None and unix_seconds % LOAD_LOOK_SECONDS == 0:
            self._send(LoadLooked(self._load.look(self.now)))
        if unix_seconds % LOOK_SECONDS:
            return
        if self._processes.newest is not None:
            self._see_tree()
        life = self._snapshot.life
        is_served = life.has_served_now and not life.is_launch_over
        if is_served or not self._snapshot.policy.is_local:
            self._send(Looked(self._answer(asks_models=unix_seconds % MODELS_SECONDS == 0)))

    def _see_tree(self) -> None:
        self._send(TreeSeen(self._processes.tree()))

    def _agent_returns(self) -> None:
        """A new agent, which knows what the one before remembered."""
        self._snapshot = self._begun(self._snapshot)
        newest = self._processes.newest
        assert newest is not None, "only of servers that run the agent may be away"
        assert self._processes.is_alive
        self._send(ProcessAppeared(newest))
        self._serve()

    def _begun(self, before: ServerSnapshot | None) -> ServerSnapshot:
        about, policy = self.about, self.about.policy
        memory = None if before is None else before.life.memory
        return ServerSnapshot(
            name=about.name,
            mode=about.mode,
            url=about.url,
            is_discovered=about.is_discovered,
            policy=policy,
            life=ServerLife.begun(policy, memory, self.now),
            model_name=None if before is None else before.model_name,
            version=None if before is None else before.version,
            probes=MappingProxyType({probe: ProbeStats() for probe in Probe}),
        )

    def _has_asked_for(self, kind: type[Effect]) -> bool:
        """Whether that effect was asked for since this was last called."""
        found = any(isinstance(effect, kind) for effect in self._effects)
        self._effects.clear()
        return found

    # What there is to see.

    def _appear(self, age_seconds: float) -> None:
        sighting: Sighting = self._processes.begin(
            self.now,
            model=None if self.model is None else self.model.name,
            age_seconds=age_seconds,
            unit=self.about.unit,
            url=self.about.url,
        )
        self._send(ProcessAppeared(sighting))
        self._see_tree()

    def _serve(self) -> None:
        self._load = None
        self._send(Looked(self._answer(asks_models=True)))
        self._see_tree()

    def _end(self, evidence: EndingEvidence, left_bytes: Mapping[str, int]) -> None:
        newest = self._processes.newest
        assert newest is not None
        self._processes.end(left_bytes)
        self._load = None
        self._send(EndBegan(newest.process))
        self._see_tree()
        # An ending is settled within two seconds.
        self.wait(1)
        self._send(EndSettled(newest.process, evidence))
        if self.about.is_managed:
            self._send(Cleared(newest.process))

    def _worker_bytes(self) -> int:
        """What each worker holds of its GPU."""
        load = self._load
        return self.about.gpu_bytes if load is None else load.gpu_bytes(self.now)

    def _answer(self, *, asks_models: bool) -> ProbeRound:
        listener = Listener.OWN if self._snapshot.policy.is_local else None
        cause = self.fails_by
        if cause is not None:
            is_slow = cause is ProbeCause.TIMEOUT
            seconds = TIMEOUT_SECONDS if is_slow else REFUSAL_SECONDS
            results = (ProbeResult(Probe.HEALTH, cause, seconds, detail=cause),)
            return ProbeRound(self.now, self.now, results, listener=listener)
        probes = [Probe.HEALTH, *([Probe.MODELS] if asks_models else []), Probe.METRICS]
        names = () if self.model is None else (self.model.name,)
        newest = self._processes.newest
        started = self._begin - _REMOTE_AGE_SECONDS if newest is None else newest.start_seconds
        return ProbeRound(
            self.now,
            self.now,
            tuple(ProbeResult(probe, None, self._latency_seconds()) for probe in probes),
            model_names=names if asks_models else None,
            metrics=MetricsFacts(
                process_start_time_seconds=started,
                is_sleeping=self.is_asleep,
                model_names=names,
            ),
            version=VERSION if asks_models else None,
            listener=listener,
        )

    def _latency_seconds(self) -> float:
        """Slow and fast waves, so that the quantiles of a histogram move."""
        unix_seconds = self.now.unix_seconds
        wave = 1.0 + 0.7 * math.sin(unix_seconds / 400) + 0.25 * math.sin(unix_seconds / 7)
        return self.about.latency_seconds * wave
