"""Random walks: whatever a server, a clock, an operator and the agent itself do, the laws hold."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tests.lifecycle.scene import Scene
from tests.lifecycle.toy_host import HOSTILE, Behaviour, ToyHost
from vllm_agent.lifecycle.events import ConnectionClosed
from vllm_agent.lifecycle.pace import next_deadline_seconds, next_look_seconds
from vllm_agent.lifecycle.server_life import Policy
from vllm_agent.lifecycle.states import Phase, ServerState

POLICY = Policy(expected_model="tiny")
INTERVAL = 10.0
BEHAVIOURS = st.one_of(st.just(Behaviour.HONEST), st.sampled_from(Behaviour))
"""Honest more often than not: an agent that never sees a server serve has little to decide."""


class Walk(RuleBasedStateMachine):
    """An agent that watches a toy server by URL, and restarts whenever it likes."""

    @initialize(tells_start=st.booleans())
    def begin(self, *, tells_start: bool) -> None:
        self.scene = Scene(POLICY)
        self.host = ToyHost(tells_start=tells_start)
        self.entries: Counter[ServerState] = Counter()
        self.began_in: Counter[ServerState] = Counter([ServerState.UNKNOWN])
        self.left_by_restart: Counter[ServerState] = Counter()
        self.agents = 1
        self.seen_down_since_proof = True
        self.failures_in_a_row = 0
        self.refused_last = False

    # What the world does.

    @precondition(lambda self: self.host.process is None)
    @rule(behaviour=BEHAVIOURS)
    def server_starts(self, behaviour: Behaviour) -> None:
        self.host.start(behaviour)

    @precondition(lambda self: self.host.process is not None)
    @rule()
    def server_dies(self) -> None:
        self.host.process = None

    @precondition(lambda self: self.host.process is not None)
    @rule(behaviour=BEHAVIOURS)
    def server_is_replaced_unseen(self, behaviour: Behaviour) -> None:
        self.host.start(behaviour)

    @precondition(lambda self: self.host.process is not None)
    @rule(is_hung=st.booleans())
    def server_hangs_or_recovers(self, *, is_hung: bool) -> None:
        assert self.host.process is not None
        self.host.process.is_hung = is_hung

    @rule(is_cut_off=st.booleans())
    def network_goes_or_comes(self, *, is_cut_off: bool) -> None:
        self.host.is_cut_off = is_cut_off

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 5.0, 9.9, 10.0, 30.0, 60.0, 3600.0]))
    def time_passes(self, seconds: float) -> None:
        self.scene.wait(seconds)

    @rule(seconds=st.sampled_from([-1e9, -3600.0, -0.5, 0.5, 3600.0, 1e9]))
    def wall_clock_is_set(self, seconds: float) -> None:
        self.scene.set_wall_clock(seconds)

    # What the operator does.

    @rule(seconds=st.sampled_from([None, 0.0, 30.0, math.inf]))
    def maintenance_is_set(self, seconds: float | None) -> None:
        self.scene.maintain(seconds)

    # What the agent does.

    @rule()
    def agent_looks(self) -> None:
        passed_before = len(self.host.processes_passed)
        look = self.host.answer()
        self.scene.look(look)
        self.refused_last = self.host._was_refused
        if self.refused_last:
            self.seen_down_since_proof = True
        failed = self.scene.life.consecutive_failures > 0
        self.failures_in_a_row = self.failures_in_a_row + 1 if failed else 0
        if self.scene.life.state is ServerState.RUNNING and not failed:
            self.seen_down_since_proof = False
            assert not self.refused_last
        if len(self.host.processes_passed) > passed_before:
            # A complete answer of the expected server is believed at once.
            assert self.scene.life.state is ServerState.RUNNING

    @rule(looks=st.integers(1, 5))
    def agent_looks_when_its_pace_says(self, looks: int) -> None:
        for _ in range(looks):
            wait = next_look_seconds(self.scene.life, POLICY, INTERVAL, self.scene.now)
            assert 0.0 <= wait <= INTERVAL
            self.scene.wait(wait)
            self.agent_looks()

    @rule(times=st.integers(1, 4), behaviour=BEHAVIOURS)
    def server_crashes_and_returns(self, times: int, behaviour: Behaviour) -> None:
        self.host.is_cut_off = False
        for _ in range(times):
            self.host.process = None
            self.agent_looks()
            self.scene.wait(10.0)
            self.agent_looks()
            self.host.start(behaviour)
            self.agent_looks()

    @rule()
    def connection_closes(self) -> None:
        state = self.scene.life.state
        self.scene.send(ConnectionClosed())
        assert self.scene.life.state is state

    @rule()
    def deadline_passes(self) -> None:
        due = next_deadline_seconds(self.scene.life, POLICY, self.scene.now)
        if due is None:
            return
        assert 0.0 <= due < math.inf
        self.scene.wait(due)
        self.scene.tick()
        again = next_deadline_seconds(self.scene.life, POLICY, self.scene.now)
        assert again is None or again > 0.0

    @rule()
    def agent_restarts(self) -> None:
        tally, budget = self.scene.life.tally, self.scene.life.budget
        self.left_by_restart[self.scene.life.state] += 1
        self.scene.restart_agent()
        self.agents += 1
        self.began_in[ServerState.UNKNOWN] += 1
        self.seen_down_since_proof = True
        self.failures_in_a_row = 0
        assert self.scene.life.tally == tally
        assert self.scene.life.budget == budget

    # What always holds, beside the laws that every step is checked for.

    @invariant()
    def every_state_is_left_as_often_as_it_is_entered(self) -> None:
        moves = self.scene.life.tally.transitions
        for state in ServerState:
            came = sum(n for (_, to), n in moves.items() if to is state) + self.began_in[state]
            went = sum(n for (origin, _), n in moves.items() if origin is state)
            went += self.left_by_restart[state]
            assert came - went == (state is self.scene.life.state)

    @invariant()
    def running_means_that_the_last_looks_were_good_enough(self) -> None:
        if self.scene.life.state is ServerState.RUNNING:
            assert not self.refused_last
            assert self.failures_in_a_row < POLICY.failure_threshold

    @invariant()
    def a_hostile_server_is_never_running(self) -> None:
        """One that took an honest server's place unseen is found out by the threshold."""
        process = self.host.process
        if process is None or process.behaviour not in HOSTILE or self.host.is_cut_off:
            return
        if self.seen_down_since_proof:
            assert self.scene.life.state is not ServerState.RUNNING

    @invariant()
    def crashes_are_no_more_than_what_was_seen_to_go(self) -> None:
        assert self.scene.crashes <= self.host.outages_seen
        assert self.scene.crashes <= self.scene.launches + self.host.outages_seen

    @invariant()
    def launches_are_no_more_than_there_were(self) -> None:
        passed = len(self.host.processes_passed)
        if self.host.tells_start:
            assert self.scene.launches <= passed
            assert not self.scene.life.is_load_balanced
        else:
            assert self.scene.launches <= 1 + self.host.outages_seen
        assert (self.scene.launches > 0) >= (self.scene.life.phase is Phase.READY)

    @invariant()
    def every_unit_used_is_a_restart_after_a_crash(self) -> None:
        budget = self.scene.life.budget
        assert budget.limit - budget.remaining <= min(self.scene.crashes, self.scene.restarts)


TestWalk = Walk.TestCase
TestWalk.settings = settings(
    max_examples=150,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
