"""A simulated vLLM behind a URL: it runs, hangs, dies, comes back; it never tells the agent how."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from tests.lifecycle.looks import REFUSED, STARTED, failing, serving, with_metrics
from vllm_agent.observations import ProbeCause

if TYPE_CHECKING:
    from vllm_agent.observations import ProbeRound


class Behaviour(StrEnum):
    """How the process behind the port answers, for as long as it lives."""

    HONEST = "honest"
    ENDLESS_METRICS = "endless metrics"
    ENDLESS_METRICS_LATER = "endless metrics, once it is busy"
    WRONG_MODEL = "wrong model"
    NO_HTTP = "no HTTP"


HOSTILE = frozenset({Behaviour.ENDLESS_METRICS, Behaviour.WRONG_MODEL, Behaviour.NO_HTTP})


@dataclass
class ToyProcess:
    """One process; `start_seconds` is what its metrics tell, None with several API servers."""

    number: int
    start_seconds: float | None
    behaviour: Behaviour
    is_hung: bool = False


@dataclass
class ToyHost:
    """What is true, beside what the agent could see of it."""

    tells_start: bool = True
    process: ToyProcess | None = None
    is_cut_off: bool = False
    started: int = 0
    outages_seen: int = 0
    processes_passed: set[int] = field(default_factory=set)
    _was_refused: bool = False

    def start(self, behaviour: Behaviour) -> None:
        self.started += 1
        start = STARTED + 100.0 * self.started if self.tells_start else None
        self.process = ToyProcess(self.started, start, behaviour)

    def answer(self) -> ProbeRound:
        """What a look at it comes back with."""
        process = self.process
        if process is None or self.is_cut_off:
            self.outages_seen += not self._was_refused
            self._was_refused = True
            return REFUSED
        self._was_refused = False
        return failing(ProbeCause.TIMEOUT) if process.is_hung else self._reply(process)

    def _reply(self, process: ToyProcess) -> ProbeRound:
        match process.behaviour:
            case Behaviour.NO_HTTP:
                return failing(ProbeCause.BAD_BODY)
            case Behaviour.ENDLESS_METRICS:
                return with_metrics(ProbeCause.TOO_LARGE)
            case Behaviour.WRONG_MODEL:
                return serving(process.start_seconds, names=("other",))
            case Behaviour.ENDLESS_METRICS_LATER if process.number in self.processes_passed:
                return with_metrics(ProbeCause.TIMEOUT)
        self.processes_passed.add(process.number)
        return serving(process.start_seconds)
