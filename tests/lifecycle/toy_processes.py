"""A simulated host: a vLLM's launches, who listens on its port, and what may be seen of both."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tests.lifecycle.looks import REFUSED, STARTED, failing, serving
from tests.lifecycle.sightings import sighting, tree
from vllm_agent.observations import (
    Listener,
    ProbeCause,
    ProbeRound,
    ProcessId,
    ProcessTree,
    Sighting,
)

STRANGER_STARTED = STARTED - 86_400.0
SAME_START_SECONDS = 2.0
"""Launches this close cannot be told apart by the start times that they tell."""


@dataclass
class ToyLaunch:
    """One main process with its engine; `has_orphans` are API servers that outlived it."""

    number: int
    start_seconds: float
    is_alive: bool = True
    is_listening: bool = False
    has_orphans: bool = False
    is_hung: bool = False
    is_other_model: bool = False
    is_engine_alive: bool = False
    is_engine_gone: bool = False

    @property
    def process(self) -> ProcessId:
        return self.sighting.process

    @property
    def sighting(self) -> Sighting:
        return sighting(self.number, start_seconds=self.start_seconds)

    @property
    def tree(self) -> ProcessTree:
        return tree(
            self.process,
            engines=int(self.is_engine_alive),
            gone=int(self.is_engine_gone),
            is_main_alive=self.is_alive,
        )

    @property
    def holds_port(self) -> bool:
        return self.is_listening or self.has_orphans


@dataclass(frozen=True)
class ToyAnswer:
    """What a look came back with, and by whom it was truly answered."""

    look: ProbeRound
    by: ToyLaunch | None
    is_teller_known: bool


@dataclass
class ToyHost:
    """What is true. `shows_sockets` is whether the agent may read whose a socket is."""

    shows_sockets: bool = True
    tells_start: bool = True
    launches: list[ToyLaunch] = field(default_factory=list)
    is_stranger_there: bool = False
    is_cut_off: bool = False

    @property
    def newest(self) -> ToyLaunch | None:
        return self.launches[-1] if self.launches else None

    @property
    def living(self) -> ToyLaunch | None:
        """The newest launch, if its main process is there."""
        return self.newest if self.newest is not None and self.newest.is_alive else None

    def start(self, start_seconds: float) -> ToyLaunch:
        self.launches.append(ToyLaunch(len(self.launches) + 1, start_seconds))
        return self.launches[-1]

    def kill_main(self, launch: ToyLaunch, *, leaves_orphans: bool) -> None:
        launch.has_orphans = leaves_orphans and launch.is_listening
        launch.is_alive = launch.is_listening = launch.is_engine_alive = False

    def end_older(self) -> None:
        """Leaves at most the newest: which of two a new agent takes is not decided here."""
        for launch in self.launches[:-1]:
            self.kill_main(launch, leaves_orphans=False)

    @property
    def holder(self) -> ToyLaunch | None:
        """Whose launch holds the port, unless it is free or a stranger's."""
        return next((la for la in reversed(self.launches) if la.holds_port), None)

    @property
    def is_port_free(self) -> bool:
        return self.holder is None and not self.is_stranger_there

    def answer(self, asked: ToyLaunch) -> ToyAnswer:
        """What a look at the launch `asked` comes back with."""
        if self.is_cut_off:
            return ToyAnswer(failing(ProbeCause.TIMEOUT), None, is_teller_known=True)
        if self.is_port_free:
            return ToyAnswer(REFUSED, None, is_teller_known=True)
        by = self.holder
        start = STRANGER_STARTED if by is None else by.start_seconds
        look = self._reply(by, start if self.tells_start else None)
        owner = Listener.OWN if by is asked else Listener.STRANGER
        has_start = look.metrics is not None and self.tells_start
        is_told = has_start and abs(start - asked.start_seconds) > SAME_START_SECONDS
        return ToyAnswer(
            replace(look, listener=owner if self.shows_sockets else None),
            by,
            is_teller_known=self.shows_sockets or is_told,
        )

    def is_knock_accepted(self, asked: ToyLaunch) -> bool:
        """Whether something listens that may be its own."""
        if self.is_port_free or self.is_cut_off:
            return False
        return self.holder is asked or not self.shows_sockets

    def _reply(self, by: ToyLaunch | None, start_seconds: float | None) -> ProbeRound:
        if by is None:
            return serving(start_seconds)
        if by.is_hung:
            return failing(ProbeCause.TIMEOUT)
        if by.is_engine_gone:
            return failing(ProbeCause.HTTP_5XX)
        return serving(start_seconds, names=("other",) if by.is_other_model else ("tiny",))
