"""What came of each alert: whom it was told, what kept it back, and when it was over."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tests.pipeline.processes import Alertmanager, Delivery, Webhook

LOOK_SECONDS: Final = 0.25
"""Alertmanager tells nobody what it keeps back, and is asked. No alert ends that soon after it
began: `keep_firing_for` of the quickest rules is many times as long."""

PATIENCE_SECONDS: Final = 90.0
"""For hangs only."""

PAGE: Final = "page"
TICKET: Final = "ticket"

SAYING: Final = ("reason", "collector", "xid")
"""Labels that make another alert of one of the same name, and are told with it."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert by its labels; `name` has what tells it from others of the same server."""

    name: str
    instance: str
    server: str

    @classmethod
    def of(cls, labels: Mapping[str, str]) -> Self:
        """The alert that has these labels."""
        said = [labels[label] for label in SAYING if label in labels]
        more = f" ({', '.join(said)})" if said else ""
        return cls(labels["alertname"] + more, labels.get("instance", ""), labels.get("server", ""))


@dataclass(frozen=True, slots=True)
class Telling:
    """A receiver was told that an alert fires, or that it does no more."""

    alert: Alert
    receiver: str
    is_firing: bool
    at_unix_seconds: float


@dataclass(frozen=True, slots=True)
class Entry:
    """All that came of the alerts of some servers.

    `kept_back` has the names of what kept an alert back. `resolved` is when each alert was told to
    be over, if that is the last that was told of it. `again` are those that fired after that.
    """

    pages: frozenset[str]
    tickets: frozenset[str]
    kept_back: Mapping[str, frozenset[str]]
    resolved: Mapping[str, float]
    again: frozenset[str]

    @property
    def told(self) -> frozenset[str]:
        """What anybody was told of."""
        return self.pages | self.tickets


class Journal:
    """Follows the webhook and Alertmanager, and wakes who waits for either."""

    def __init__(self, webhook: Webhook, alertmanager: Alertmanager) -> None:
        self._webhook = webhook
        self._alertmanager = alertmanager
        self._tellings: list[Telling] = []
        self._kept_back: dict[Alert, set[str]] = {}
        self._there: frozenset[Alert] = frozenset()
        self._looked = threading.Condition()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="journal", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def entry(self, is_meant: Callable[[Alert], bool]) -> Entry:
        """What came so far of the alerts that are meant."""
        with self._looked:
            return self._entry(is_meant)

    def alerts(self) -> frozenset[Alert]:
        """Every alert that anybody was told of, or that was kept back."""
        with self._looked:
            return frozenset({one.alert for one in self._tellings} | self._kept_back.keys())

    def wait(
        self,
        is_meant: Callable[[Alert], bool],
        is_enough: Callable[[Entry], bool],
        what: str,
        timeout_seconds: float = PATIENCE_SECONDS,
    ) -> Entry:
        """What came of the alerts that are meant, as soon as it is enough.

        Raises:
            AssertionError: it was not within `timeout_seconds`.
        """
        with self._looked:
            if not self._looked.wait_for(lambda: is_enough(self._entry(is_meant)), timeout_seconds):
                raise AssertionError(
                    f"not within {timeout_seconds:g} s: {what}; it is {self._entry(is_meant)}"
                )
            return self._entry(is_meant)

    def wait_over(self, is_meant: Callable[[Alert], bool]) -> None:
        """Waits until Alertmanager has none of the alerts, and who was told of one knows it.

        Raises:
            AssertionError: that was not within the time for hangs.
        """

        def is_over() -> bool:
            entry = self._entry(is_meant)
            return entry.told <= entry.resolved.keys() and not any(map(is_meant, self._there))

        with self._looked:
            if not self._looked.wait_for(is_over, PATIENCE_SECONDS):
                there = sorted(alert.name for alert in self._there if is_meant(alert))
                raise AssertionError(f"not over: {there}; it is {self._entry(is_meant)}")

    def _entry(self, is_meant: Callable[[Alert], bool]) -> Entry:
        meant = [one for one in self._tellings if is_meant(one.alert)]
        last: dict[Alert, Telling] = {}
        again = set()
        for one in meant:
            before = last.get(one.alert)
            if one.is_firing and before is not None and not before.is_firing:
                again.add(one.alert.name)
            last[one.alert] = one
        return Entry(
            pages=_fired(meant, PAGE),
            tickets=_fired(meant, TICKET),
            kept_back={
                alert.name: frozenset(by)
                for alert, by in self._kept_back.items()
                if is_meant(alert)
            },
            resolved={
                alert.name: one.at_unix_seconds for alert, one in last.items() if not one.is_firing
            },
            again=frozenset(again),
        )

    def _follow(self) -> None:
        while True:
            # After the last look nothing is missed that came before the end.
            is_last = self._over.wait(LOOK_SECONDS)
            self._look()
            if is_last:
                return

    def _look(self) -> None:
        shown = self._alertmanager.alerts()
        names = {one["fingerprint"]: one["labels"]["alertname"] for one in shown}
        tellings = [one for delivery in self._webhook.deliveries for one in _tellings(delivery)]
        with self._looked:
            self._tellings = tellings
            self._there = frozenset(Alert.of(one["labels"]) for one in shown)
            for one in shown:
                if by := one["status"]["inhibitedBy"]:
                    sources = {names.get(source, "?") for source in by}
                    self._kept_back.setdefault(Alert.of(one["labels"]), set()).update(sources)
            self._looked.notify_all()


def _fired(tellings: Iterable[Telling], receiver: str) -> frozenset[str]:
    return frozenset(
        one.alert.name for one in tellings if one.is_firing and one.receiver == receiver
    )


def _tellings(delivery: Delivery) -> Iterable[Telling]:
    payload: dict[str, Any] = delivery.payload
    for one in payload["alerts"]:
        yield Telling(
            Alert.of(one["labels"]),
            payload["receiver"],
            one["status"] == "firing",
            delivery.arrived_at,
        )
