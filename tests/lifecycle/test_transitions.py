"""The transition table, cell by cell, against a matrix written from what operators are told."""

from __future__ import annotations

from typing import Final

import pytest

from tests.lifecycle.looks import AT
from vllm_agent.lifecycle.server_life import Transition
from vllm_agent.lifecycle.states import (
    ALIVE_PHASES,
    PHASE_MEANING,
    PHASE_STATE,
    Phase,
    ServerState,
)
from vllm_agent.lifecycle.transitions import TRANSITIONS, TRIGGER_MEANING, Trigger

# A dot: the trigger changes nothing there.
MATRIX: Final = """
              unobserved  unreached   loading     stalled     ready       unready     lost        ending      overdue     absent      crashed     preparing   terminating killing     backoff     refused     gave_up
passed        ready       ready       ready       ready       .           ready       ready       .           .           ready       ready       .           .           .           .           .           .
failing       .           .           .           .           .           .           .           .           .           .           .           .           .           .           .           .           .
failed        unready     .           unready     .           unready     .           unready     .           .           unready     unready     .           .           .           .           .           .
refused       absent      .           .           .           .           absent      .           .           .           .           .           .           .           .           .           .           .
lost          .           .           .           .           lost        lost        .           .           .           .           .           .           .           .           .           .           .
gone          crashed     .           .           .           .           .           crashed     .           .           .           .           .           .           .           .           .           .
quiet         absent      .           .           .           absent      absent      absent      .           .           .           .           .           .           .           .           .           .
unreached     unreached   .           unreached   .           .           .           .           .           .           .           .           .           .           .           .           .           .
appeared      loading     loading     .           loading     loading     loading     loading     loading     loading     loading     loading     loading     loading     loading     loading     loading     loading
waiting       loading     loading     .           .           .           .           .           .           .           .           .           .           .           .           .           .           .
stalled       stalled     .           stalled     .           .           .           .           .           .           .           .           .           .           .           .           .           .
progressed    .           .           .           loading     .           .           .           .           .           .           .           .           .           .           .           .           .
end_began     ending      ending      ending      ending      ending      ending      .           .           .           .           .           .           .           .           .           .           .
reopened      .           .           .           .           .           .           .           ready       ready       .           .           .           .           .           .           .           .
overdue       .           .           .           .           .           .           .           overdue     .           .           .           .           .           overdue     .           .           .
ended_stopped absent      absent      absent      absent      absent      absent      .           absent      absent      .           .           .           absent      absent      .           .           .
ended_crashed crashed     crashed     crashed     crashed     crashed     crashed     .           crashed     crashed     .           .           .           crashed     crashed     .           .           .
start         .           .           .           .           .           .           .           .           .           preparing   preparing   .           .           .           preparing   preparing   preparing
start_refused .           .           .           .           .           .           .           .           .           .           .           refused     .           .           .           .           .
called_off    .           .           .           .           .           .           .           .           .           .           absent      absent      .           .           absent      absent      absent
stop          .           terminating terminating terminating terminating terminating .           terminating terminating .           .           .           .           .           .           .           .
kill          .           .           .           .           .           .           .           killing     .           .           .           .           killing     .           .           .           .
backing_off   backoff     backoff     backoff     backoff     backoff     backoff     .           backoff     backoff     .           .           .           backoff     backoff     .           .           .
give_up       gave_up     .           .           .           .           .           .           .           .           gave_up     gave_up     .           .           .           gave_up     gave_up     .
"""  # noqa: E501 - a matrix is read by columns


def cells() -> list[tuple[Phase, Trigger, Phase]]:
    header, *rows = MATRIX.strip().splitlines()
    phases = [Phase(word) for word in header.split()]
    found = []
    for row in rows:
        trigger, *targets = row.split()
        for phase, target in zip(phases, targets, strict=True):
            expected = phase if target == "." else Phase(target)
            found.append((phase, Trigger(trigger), expected))
    return found


@pytest.mark.parametrize(("phase", "trigger", "expected"), cells())
def test_cell(phase: Phase, trigger: Trigger, expected: Phase) -> None:
    assert TRANSITIONS[phase, trigger] is expected


def test_the_matrix_above_has_every_cell_of_the_table() -> None:
    assert {(phase, trigger) for phase, trigger, _ in cells()} == set(TRANSITIONS)
    assert len(TRANSITIONS) == len(Phase) * len(Trigger)


def test_each_phase_is_one_state() -> None:
    assert {phase: state.value for phase, state in PHASE_STATE.items()} == {
        Phase.UNOBSERVED: "unknown",
        Phase.UNREACHED: "unknown",
        Phase.LOADING: "starting",
        Phase.STALLED: "failed",
        Phase.READY: "running",
        Phase.UNREADY: "failed",
        Phase.LOST: "failed",
        Phase.ENDING: "stopping",
        Phase.OVERDUE: "failed",
        Phase.ABSENT: "stopped",
        Phase.CRASHED: "crashed",
        Phase.PREPARING: "starting",
        Phase.TERMINATING: "stopping",
        Phase.KILLING: "stopping",
        Phase.BACKOFF: "crashed",
        Phase.REFUSED: "failed",
        Phase.GAVE_UP: "failed",
    }


def test_every_phase_and_state_can_be_reached_from_the_first_one() -> None:
    reached, frontier = {Phase.UNOBSERVED}, {Phase.UNOBSERVED}
    while frontier:
        following = {TRANSITIONS[p, trigger] for p in frontier for trigger in Trigger}
        frontier = following - reached
        reached |= frontier
    assert reached == set(Phase)
    assert {PHASE_STATE[phase] for phase in reached} == set(ServerState)


def test_no_phase_is_a_dead_end() -> None:
    for phase in Phase:
        assert any(TRANSITIONS[phase, trigger] is not phase for trigger in Trigger)


def test_nothing_becomes_unobserved_again() -> None:
    arrivals = {target for (phase, _), target in TRANSITIONS.items() if target is not phase}
    assert Phase.UNOBSERVED not in arrivals


def test_an_end_is_only_judged_of_what_was_there_or_never_seen() -> None:
    for phase in Phase:
        is_judged = TRANSITIONS[phase, Trigger.ENDED_CRASHED] is not phase
        assert is_judged == (phase in ALIVE_PHASES or phase is Phase.UNOBSERVED)


def test_everything_has_a_meaning_for_people() -> None:
    assert set(PHASE_MEANING) == set(Phase)
    assert set(TRIGGER_MEANING) == set(Trigger)


def test_a_change_of_phase_within_one_state_is_no_change_of_state() -> None:
    within = Transition(AT, Phase.UNREADY, Phase.LOST, None, "")
    across = Transition(AT, Phase.READY, Phase.LOST, None, "")
    assert not within.is_change_of_state
    assert across.is_change_of_state
