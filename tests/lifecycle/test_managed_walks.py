"""Random lives of a managed server on a simulated host, held against what must always be true."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.lifecycle.managed_scene import MANAGED, ManagedScene
from tests.lifecycle.sightings import EXITED_1, KILLED, TOLD_TO_STOP, UNEXPLAINED
from vllm_agent.lifecycle.events import (
    AgentLeaving,
    CancelStart,
    Cleared,
    Effect,
    EndBegan,
    EndSettled,
    KillAll,
    StartRefused,
    StartServer,
    Terminate,
)
from vllm_agent.lifecycle.management import Wish
from vllm_agent.lifecycle.operations import Request, answer
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.states import IDLE_PHASES, Phase
from vllm_agent.observations import ProbeCause, ProcessId

ENDS = (KILLED, EXITED_1, TOLD_TO_STOP, UNEXPLAINED)
REFUSALS = (Reason.PORT_IN_USE, Reason.GPU_MEMORY_TAKEN, Reason.MODEL_NOT_FOUND, None)
MODELS = (None, "tiny", "org/other")


@dataclass
class ToyManagedHost:
    """What is really there: a main process, what it left, and a start on its way."""

    starting: StartServer | None = None
    is_cancelled: bool = False
    alive: ProcessId | None = None
    ended: ProcessId | None = None
    left: set[ProcessId] = field(default_factory=set)
    to_clear: list[ProcessId] = field(default_factory=list)
    terms: int = 0
    most_alive: int = 0

    def execute(self, effect: Effect) -> None:
        match effect:
            case StartServer():
                assert self.alive is None, "started over a launch that lives"
                assert not self.left, "started before the launch before was cleared away"
                assert self.starting is None, "started twice"
                self.starting, self.is_cancelled = effect, False
            case CancelStart():
                assert self.starting is not None
                self.is_cancelled = True
            case Terminate(process):
                # It may have ended a moment ago, but never is another launch's.
                assert self.alive in {None, process}
                self.terms += 1
            case KillAll(process):
                assert self.alive in {None, process}
                self.to_clear.append(process)


class ManagedWalk(RuleBasedStateMachine):
    """The agent, its operator and the host, in any order."""

    @initialize(
        budget=st.integers(1, 4),
        dry_run=st.booleans(),
        restarts_unhealthy=st.booleans(),
        stop_seconds=st.sampled_from([1.0, 30.0, 600.0]),
    )
    def begin(
        self,
        budget: int,
        dry_run: bool,  # noqa: FBT001
        restarts_unhealthy: bool,  # noqa: FBT001
        stop_seconds: float,
    ) -> None:
        self.scene = ManagedScene(
            MANAGED.__class__(
                is_local=True,
                is_managed=True,
                model="tiny",
                max_restarts=budget,
                is_dry_run=dry_run,
                restarts_unhealthy=restarts_unhealthy,
                stop_timeout_seconds=stop_seconds,
            )
        )
        self.host = ToyManagedHost()
        self.requests: list[Request] = []
        self.launches_since_asked = 0
        self.is_leaving = False
        self.scene.miss()
        self.done()

    def done(self) -> None:
        effects, self.scene.effects = self.scene.effects, []
        for effect in effects:
            self.host.execute(effect)

    @rule(seconds=st.sampled_from([0.1, 1.0, 2.0, 5.0, 30.0, 60.0, 120.0, 400.0]))
    def time_passes(self, seconds: float) -> None:
        self.scene.wait(seconds)
        self.done()

    @rule(wish=st.sampled_from(list(Wish)), model=st.sampled_from(MODELS))
    def operator_asks(self, wish: Wish, model: str | None) -> None:
        self.scene.ask(wish, None if wish is Wish.STOP else model)
        self.requests.append(Request.made(wish, self.scene.life))
        self.launches_since_asked = 0
        self.done()

    @precondition(lambda self: self.host.starting is not None)
    @rule(reason=st.sampled_from(REFUSALS))
    def start_is_refused(self, reason: Reason | None) -> None:
        start = self.host.starting
        assert start is not None
        if reason is None and not self.host.is_cancelled:
            return
        self.host.starting = None
        self.scene.send(StartRefused(start.attempt, reason, "why"))
        self.done()

    @precondition(lambda self: self.host.starting is not None)
    @rule()
    def start_comes_to_a_process(self) -> None:
        """Also when it was cancelled a moment too late."""
        self.host.starting = None
        self.scene.number += 1
        self.launches_since_asked += 1
        self.scene.appear(self.scene.number, age_seconds=0.0)
        self.host.alive = self.scene.newest.process
        self.host.left = {self.scene.newest.process}
        self.done()

    @precondition(lambda self: self.host.alive is not None)
    @rule()
    def it_serves(self) -> None:
        self.scene.answer()
        self.done()

    @precondition(lambda self: self.host.alive is not None)
    @rule(cause=st.sampled_from([ProbeCause.HTTP_5XX, ProbeCause.TIMEOUT, ProbeCause.RESET]))
    def it_fails_its_checks(self, cause: ProbeCause) -> None:
        for _ in range(3):
            if self.host.alive is not None:
                self.scene.answer_wrongly(1, cause)
                self.done()

    @precondition(lambda self: self.host.alive is not None)
    @rule()
    def its_port_closes(self) -> None:
        self.scene.close_port()
        self.done()

    @precondition(lambda self: self.host.alive is not None)
    @rule()
    def it_stalls(self) -> None:
        self.scene.stall()
        self.done()

    @precondition(lambda self: self.host.alive is not None)
    @rule()
    def it_ends(self) -> None:
        self.host.ended, self.host.alive = self.host.alive, None
        assert self.host.ended is not None
        self.scene.send(EndBegan(self.host.ended))
        self.done()

    @precondition(lambda self: self.host.ended is not None)
    @rule(evidence=st.sampled_from(ENDS))
    def its_end_is_judged(self, evidence: object) -> None:
        ended, self.host.ended = self.host.ended, None
        assert ended is not None
        self.scene.send(EndSettled(ended, evidence))  # type: ignore[arg-type]
        self.done()

    @precondition(lambda self: bool(self.host.to_clear))
    @rule()
    def what_is_left_is_killed(self) -> None:
        process = self.host.to_clear.pop(0)
        if self.host.alive == process:
            self.it_ends()
        self.host.left.discard(process)
        self.scene.send(Cleared(process))
        self.done()

    @rule(seconds=st.sampled_from([None, 10.0, 300.0]))
    def maintenance(self, seconds: float | None) -> None:
        self.scene.maintain(seconds)
        self.done()

    @rule()
    def agent_leaves(self) -> None:
        self.scene.send(AgentLeaving())
        self.done()

    @rule()
    def agent_is_killed_and_comes_back(self) -> None:
        """What was on its way is lost, or had come to a process that the next agent finds."""
        self.host.to_clear.clear()
        self.requests.clear()
        was_starting, self.host.starting = self.host.starting, None
        self.host.ended = None
        self.scene.restart_agent()
        self.scene.effects.clear()
        if self.host.alive is not None:
            self.scene.sight_again()
        elif was_starting is not None and was_starting.attempt % 2:
            self.scene.number += 1
            self.launches_since_asked += 1
            self.scene.appear(self.scene.number, age_seconds=0.0)
            self.host.alive = self.scene.newest.process
            self.host.left = {self.scene.newest.process}
        else:
            self.scene.miss()
        self.done()

    def teardown(self) -> None:
        """Once the host has done all that it was asked for, nothing is on its way any more."""
        if not hasattr(self, "scene"):
            return
        for _ in range(5):
            if self.host.ended is not None:
                self.its_end_is_judged(KILLED)
            while self.host.to_clear:
                self.what_is_left_is_killed()
            if self.host.starting is not None:
                self.start_comes_to_a_process()
            self.time_passes(700.0)
        if self.scene.phase not in {Phase.UNOBSERVED, Phase.OVERDUE}:
            assert self.scene.phase not in {Phase.ENDING, Phase.TERMINATING, Phase.KILLING}
        if self.scene.phase is Phase.OVERDUE:
            assert self.host.alive is not None

    @invariant()
    def what_is_not_wanted_is_on_its_way_out(self) -> None:
        scene = getattr(self, "scene", None)
        if scene is None:
            return
        management, phase = scene.management, scene.phase
        if phase is Phase.PREPARING:
            assert self.host.starting is not None
        if not management.is_goal_up and phase not in {Phase.UNOBSERVED, Phase.PREPARING}:
            on_its_way = {Phase.TERMINATING, Phase.KILLING, Phase.ENDING, Phase.OVERDUE}
            assert phase in on_its_way | {Phase.ABSENT}

    @invariant()
    def the_budget_is_kept(self) -> None:
        scene = getattr(self, "scene", None)
        if scene is not None and scene.life.budget.remaining == 0:
            # Every launch beyond would have needed an operator.
            assert scene.life.budget.limit >= 1

    @invariant()
    def every_request_is_answered_where_it_has_come_to_an_end(self) -> None:
        scene = getattr(self, "scene", None)
        if scene is None or scene.phase not in IDLE_PHASES or not scene.management.is_clear:
            return
        if scene.management.replacement is not None:
            return
        for request in self.requests:
            assert answer(scene.life, request) is not None or request.wish is not Wish.STOP


ManagedWalk.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestManagedWalk = ManagedWalk.TestCase


def launches_without_operator(budget: int) -> int:
    told = ManagedScene(
        MANAGED.__class__(is_local=True, is_managed=True, model="tiny", max_restarts=budget)
    )
    told.start_of_agent().launched()
    while not told.is_now(Phase.GAVE_UP):
        told.crashes_now()
        told.wait(600.0)
        if not told.is_now(Phase.GAVE_UP):
            told.launched()
    return told.launches


def test_a_server_that_never_serves_is_started_as_often_as_its_budget_says() -> None:
    assert [launches_without_operator(budget) for budget in (1, 3, 10)] == [2, 4, 11]
