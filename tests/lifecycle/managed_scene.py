"""A managed server under test: what the agent does by itself is done as soon as it is due."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, TypeVar

from tests.lifecycle.local_scene import LocalScene
from tests.lifecycle.sightings import EXITED_1, KILLED
from vllm_agent.lifecycle.events import (
    Asked,
    Cleared,
    StartRefused,
    StartServer,
    Ticked,
)
from vllm_agent.lifecycle.pace import next_deadline_seconds
from vllm_agent.lifecycle.server_life import Policy
from vllm_agent.lifecycle.supervision import GRAIN_SECONDS

if TYPE_CHECKING:
    from vllm_agent.lifecycle.ending import EndingEvidence
    from vllm_agent.lifecycle.events import Effect, Event
    from vllm_agent.lifecycle.management import Management, Wish
    from vllm_agent.lifecycle.reasons import Reason
    from vllm_agent.lifecycle.states import Phase, ServerState
    from vllm_agent.lifecycle.step import Step

MANAGED = Policy(is_local=True, is_managed=True, model="tiny")
MAX_STEPS_AT_ONCE = 10
"""What is due at once is done in a few steps, or it would be a loop that never waits."""

E = TypeVar("E")


@dataclass
class ManagedScene(LocalScene):
    """`effects` are all that were asked for, in their order; `number` is of the newest process."""

    policy: Policy = MANAGED
    effects: list[Effect] = field(default_factory=list)
    number: int = 0

    def send(self, event: Event) -> Step:
        done = super().send(event)
        self.effects += done.effects
        self._do_what_is_due()
        return done

    def _do_what_is_due(self) -> None:
        for _ in range(MAX_STEPS_AT_ONCE):
            deadline = next_deadline_seconds(self.life, self.policy, self.now)
            if deadline is None or deadline > GRAIN_SECONDS:
                return
            self.effects += super().send(Ticked()).effects
        raise AssertionError("something is due for ever")

    def wait(self, seconds: float) -> Self:
        """Time passes, with everything that falls due meanwhile."""
        until = self.now.monotonic_seconds + seconds
        while True:
            deadline = next_deadline_seconds(self.life, self.policy, self.now)
            left = until - self.now.monotonic_seconds
            if deadline is None or deadline >= left:
                super().wait(max(0.0, left))
                self._do_what_is_due()
                return self
            # A clock that is off by less than its last digit would stand still.
            super().wait(max(deadline, GRAIN_SECONDS))
            self._do_what_is_due()

    @property
    def management(self) -> Management:
        assert self.life.management is not None
        return self.life.management

    def is_now(self, word: ServerState | Phase) -> bool:
        """Whether that is its state, or its phase."""
        return word is self.life.state or word is self.phase

    def taken(self, kind: type[E]) -> list[E]:
        """The effects of a kind since this was asked last; all others are forgotten too."""
        found: list[E] = [effect for effect in self.effects if isinstance(effect, kind)]
        self.effects.clear()
        return found

    def start_of_agent(self) -> Self:
        """The agent begins, and finds nothing of it."""
        self.miss()
        return self

    def ask(self, wish: Wish, model: str | None = None) -> Step:
        return self.send(Asked(wish, model))

    def launched(self) -> Self:
        """The start that is under way comes to a process."""
        assert self.taken(StartServer), "nothing was started"
        self.number += 1
        self.appear(self.number, age_seconds=0.0)
        return self

    def serves(self, load_seconds: float = 50.0) -> Self:
        self.wait(load_seconds).answer()
        return self

    def running(self) -> Self:
        return self.start_of_agent().launched().serves()

    def refused(self, reason: Reason | None, detail: str = "why") -> Step:
        return self.send(StartRefused(self.management.attempts, reason, detail))

    def cleared(self) -> Step:
        """Nothing of the newest launch is left."""
        return self.send(Cleared(self.newest.process))

    def crashes_now(self, evidence: EndingEvidence = KILLED) -> Self:
        """Its main process ends, the end is judged, and nothing of it is left."""
        self.end()
        self.settle(evidence)
        self.cleared()
        return self

    def fails_to_load(self, evidence: EndingEvidence = EXITED_1) -> Self:
        return self.crashes_now(evidence)
