"""How an end is judged: 26 ends of a real vLLM, then every rule alone and their order."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from tests.lifecycle.recorded_endings import RecordedEnding, recorded_endings
from vllm_agent.lifecycle.ending import (
    EARLY_KILL_SECONDS,
    MAX_EXITS_TOLD,
    EndingEvidence,
    exit_code,
    exit_signal,
    judge,
)
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.states import ServerState
from vllm_agent.observations import ComponentAtClose, ComponentExit, ComponentRole

STOPPED, CRASHED = ServerState.STOPPED, ServerState.CRASHED
API, ENGINE, WORKER = (
    ComponentRole.API_SERVER,
    ComponentRole.ENGINE_CORE,
    ComponentRole.WORKER,
)
CLOSE = 10.0


def exited(code: int) -> int:
    """The wait status of a process that exited with `code`."""
    return code << 8


def at_close(
    role: ComponentRole, *, gone: bool = False, exiting: bool = False, kill_pending: bool = False
) -> ComponentAtClose:
    return ComponentAtClose(role, gone, exiting, kill_pending)


ALIVE_ENGINE = at_close(ENGINE)
LEAVING = (at_close(ENGINE, exiting=True), at_close(WORKER, kill_pending=True))
STOP = EndingEvidence(
    main_wait_status=exited(0),
    main_exit_seconds=CLOSE + 0.5,
    main_was_exiting_at_close=False,
    close_seconds=CLOSE,
    at_close=LEAVING,
)
"""A plain stop as it looks from outside when no log and no systemd tells of it."""


def verdict(seen: EndingEvidence) -> tuple[ServerState, Reason | None, int]:
    judged = judge(seen)
    assert judged.evidence
    assert all(judged.evidence)
    return judged.state, judged.reason, judged.rule


# The recorded ends.


@pytest.mark.parametrize("ended", recorded_endings(), ids=lambda ended: ended.name)
def test_recorded_end_is_judged_right_with_exit_statuses(ended: RecordedEnding) -> None:
    judged = judge(ended.evidence(with_statuses=True))
    assert judged.state is (STOPPED if ended.was_asked_for else CRASHED)


def test_there_are_26_recorded_ends_of_both_kinds() -> None:
    kinds = [ended.was_asked_for for ended in recorded_endings()]
    assert (len(kinds), sum(kinds)) == (26, 12)


def test_without_exit_statuses_only_an_idle_worker_segfault_is_misjudged() -> None:
    """A vLLM then tidies up after itself as in a stop; only the statuses tell."""
    wrong = [
        ended.name
        for ended in recorded_endings()
        if (judge(ended.evidence(with_statuses=False)).state is STOPPED) != ended.was_asked_for
    ]
    assert wrong == ["segv_worker-idle"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("kill_engine-idle", Reason.ENGINE_DIED),
        ("kill_engine-streams", Reason.ENGINE_DIED),
        ("kill_worker-idle", Reason.ENGINE_DIED),
        ("segv_worker-idle", Reason.ENGINE_DIED),
        ("kill_api-idle", Reason.SIGNAL),
        ("kill_group-streams", Reason.SIGNAL),
        ("api2_kill_child-idle", Reason.API_SERVER_DIED),
        ("api2_kill_child-streams", Reason.API_SERVER_DIED),
        ("api2_kill_engine-idle", Reason.ENGINE_DIED),
        ("api2_kill_engine-streams", Reason.ENGINE_DIED),
    ],
)
def test_recorded_crash_names_what_died(name: str, reason: Reason) -> None:
    ended = next(e for e in recorded_endings() if e.name == name)
    assert judge(ended.evidence(with_statuses=True)).reason is reason


# Each rule alone.


def test_rule_1_an_end_the_agent_asked_for_is_stopped() -> None:
    assert verdict(EndingEvidence(asked="the agent stopped it")) == (STOPPED, None, 1)


def test_rule_1_an_end_in_maintenance_is_stopped() -> None:
    assert verdict(EndingEvidence(is_in_maintenance=True)) == (STOPPED, None, 1)


@pytest.mark.parametrize("who", ["main", "component"])
def test_rule_2_an_oom_kill_with_a_killed_process_is_host_oom(who: str) -> None:
    seen = replace(STOP, oom_kills=1)
    if who == "main":
        seen = replace(seen, main_wait_status=signal.SIGKILL)
    else:
        seen = replace(seen, exits=(ComponentExit(WORKER, CLOSE, signal.SIGKILL),))
    assert verdict(seen) == (CRASHED, Reason.HOST_OOM, 2)


@pytest.mark.parametrize("oom_kills", [None, 0, 1])
def test_rule_2_an_oom_kill_counts_only_where_a_process_was_killed(oom_kills: int | None) -> None:
    assert verdict(replace(STOP, oom_kills=oom_kills)) == (STOPPED, None, 6)


@pytest.mark.parametrize("oom_kills", [None, 0])
def test_rule_2_a_killed_process_alone_is_no_oom(oom_kills: int | None) -> None:
    killed = replace(STOP, oom_kills=oom_kills, main_wait_status=signal.SIGKILL)
    assert verdict(killed) == (CRASHED, Reason.SIGNAL, 5)


FAULT = "XID 79 on GPU 3"


@pytest.mark.parametrize(
    "crash",
    [
        STOP,  # by no more than that everything was on its way out
        replace(STOP, main_wait_status=signal.SIGKILL),
        replace(STOP, exits=(ComponentExit(ENGINE, CLOSE - 1, exited(1)),)),
        EndingEvidence(),
    ],
)
def test_rule_2_a_fault_of_a_gpu_is_the_cause(crash: EndingEvidence) -> None:
    assert verdict(replace(crash, gpu_fault=FAULT)) == (CRASHED, Reason.GPU_FAULT, 2)


def test_rule_2_a_fault_makes_no_crash_of_a_stop_that_was_asked_for() -> None:
    asked = replace(STOP, stop_sign_seconds=CLOSE - 2, gpu_fault=FAULT)
    assert verdict(asked) == (STOPPED, None, 3)
    assert FAULT in judge(asked).evidence
    trouble_first = replace(asked, exits=(ComponentExit(ENGINE, CLOSE - 3, exited(1)),))
    assert verdict(trouble_first) == (CRASHED, Reason.GPU_FAULT, 2)


def test_a_fault_is_told_once() -> None:
    evidence = judge(replace(STOP, gpu_fault=FAULT)).evidence
    assert evidence[0] == FAULT
    assert evidence.count(FAULT) == 1


@pytest.mark.parametrize(
    ("logged", "stop_sign", "expected"),
    [
        (9.0, 9.5, (CRASHED, Reason.GPU_OOM, 2)),
        (9.5, 9.0, (STOPPED, None, 3)),
        (9.0, None, (CRASHED, Reason.GPU_OOM, 2)),
        (None, 9.0, (CRASHED, Reason.GPU_OOM, 2)),
    ],
    ids=["before the stop", "after the stop", "no stop", "unknown when"],
)
def test_rule_2_a_logged_cause_counts_unless_a_stop_came_first(
    logged: float | None, stop_sign: float | None, expected: tuple[ServerState, Reason | None, int]
) -> None:
    seen = replace(
        STOP,
        logged_cause=Reason.GPU_OOM,
        logged_cause_seconds=logged,
        stop_sign_seconds=stop_sign,
    )
    assert verdict(seen) == expected


def test_rule_3_a_stop_sign_before_any_trouble_is_stopped() -> None:
    seen = EndingEvidence(stop_sign_seconds=CLOSE - 1, main_wait_status=exited(1))
    assert verdict(seen) == (STOPPED, None, 3)


@pytest.mark.parametrize("status", [signal.SIGTERM, signal.SIGINT, exited(143), exited(130)])
@pytest.mark.parametrize("ended_at", [None, CLOSE])
def test_rule_3_a_main_process_ended_by_term_or_int_is_stopped(
    status: int, ended_at: float | None
) -> None:
    seen = EndingEvidence(main_wait_status=status, main_exit_seconds=ended_at)
    assert verdict(seen) == (STOPPED, None, 3)


@pytest.mark.parametrize("status", [exited(128), exited(129), exited(137), exited(15)])
def test_rule_3_other_exit_codes_are_no_stop(status: int) -> None:
    assert verdict(EndingEvidence(main_wait_status=status)) == (CRASHED, Reason.EXIT_NONZERO, 5)


@pytest.mark.parametrize("ended_at", [None, CLOSE + 1])
def test_rule_3_trouble_before_the_term_of_the_main_process_is_a_crash(
    ended_at: float | None,
) -> None:
    """Docker and systemd send TERM to what is left of a server that died."""
    seen = replace(
        STOP,
        main_wait_status=signal.SIGTERM,
        main_exit_seconds=ended_at,
        exits=(ComponentExit(ENGINE, CLOSE - 5, exited(1)),),
    )
    assert verdict(seen) == (CRASHED, Reason.ENGINE_DIED, 4)


@pytest.mark.parametrize(("stop_sign", "rule"), [(CLOSE - 0.1, 3), (CLOSE, 3), (CLOSE + 0.1, 4)])
def test_rule_3_a_stop_sign_must_not_come_after_the_trouble(stop_sign: float, rule: int) -> None:
    seen = replace(STOP, stop_sign_seconds=stop_sign, at_close=(ALIVE_ENGINE,))
    assert verdict(seen)[2] == rule


@pytest.mark.parametrize(
    ("status", "is_trouble"),
    [
        (None, False),
        (exited(0), False),
        (exited(1), True),
        (signal.SIGTERM, False),
        (signal.SIGSEGV, True),
        (signal.SIGSEGV | 0x80, True),
        (signal.SIGINT, True),
    ],
    ids=["unknown", "0", "1", "TERM", "SEGV", "SEGV with a core dump", "INT"],
)
def test_rule_4_how_a_component_ended(status: int | None, *, is_trouble: bool) -> None:
    seen = replace(STOP, exits=(ComponentExit(WORKER, CLOSE, status),))
    expected = (CRASHED, Reason.ENGINE_DIED, 4) if is_trouble else (STOPPED, None, 6)
    assert verdict(seen) == expected


@pytest.mark.parametrize(
    ("early", "rule"),
    [(EARLY_KILL_SECONDS, 4), (EARLY_KILL_SECONDS - 0.01, 6), (-1.0, 6)],
)
def test_rule_4_a_component_killed_long_before_the_close(early: float, rule: int) -> None:
    """A stop kills the engine at most 0.2 s before it closes the listener."""
    seen = replace(STOP, exits=(ComponentExit(ENGINE, CLOSE - early, signal.SIGKILL),))
    assert verdict(seen)[2] == rule


def test_rule_4_a_kill_without_a_close_is_no_early_kill() -> None:
    seen = EndingEvidence(exits=(ComponentExit(ENGINE, CLOSE, signal.SIGKILL),))
    assert verdict(seen) == (CRASHED, Reason.UNKNOWN, 7)


@pytest.mark.parametrize("role", ComponentRole)
def test_rule_4_a_component_alive_at_the_close(role: ComponentRole) -> None:
    seen = replace(STOP, at_close=(*LEAVING, at_close(role)))
    assert verdict(seen) == (CRASHED, Reason.ENGINE_DIED, 4)


@pytest.mark.parametrize("was_exiting", [True, None])
def test_rule_4_says_nothing_of_a_close_by_the_exit_of_the_main_process(
    *, was_exiting: bool | None
) -> None:
    seen = replace(
        STOP,
        at_close=(ALIVE_ENGINE,),
        main_was_exiting_at_close=was_exiting,
        main_wait_status=None,
    )
    assert verdict(seen)[2] == (5 if was_exiting else 7)


@pytest.mark.parametrize(
    ("status", "others", "expected"),
    [
        (None, LEAVING, (CRASHED, Reason.SIGNAL, 5)),
        (signal.SIGKILL, LEAVING, (CRASHED, Reason.SIGNAL, 5)),
        (exited(1), LEAVING, (CRASHED, Reason.EXIT_NONZERO, 5)),
        (exited(0), LEAVING, (STOPPED, None, 6)),
        (exited(0), (ALIVE_ENGINE,), (CRASHED, Reason.UNKNOWN, 7)),
    ],
)
def test_rule_5_believes_a_known_status_before_that_it_was_exiting(
    status: int | None,
    others: tuple[ComponentAtClose, ...],
    expected: tuple[ServerState, Reason | None, int],
) -> None:
    seen = replace(STOP, main_wait_status=status, main_was_exiting_at_close=True, at_close=others)
    assert verdict(seen) == expected


def test_rule_4_a_logged_engine_death() -> None:
    seen = replace(STOP, engine_death_logged_seconds=CLOSE - 1)
    assert verdict(seen) == (CRASHED, Reason.ENGINE_DIED, 4)


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        ((API, ENGINE), Reason.API_SERVER_DIED),
        ((ENGINE, API), Reason.ENGINE_DIED),
        ((WORKER, API), Reason.ENGINE_DIED),
    ],
)
def test_rule_4_names_what_went_first(
    roles: tuple[ComponentRole, ComponentRole], reason: Reason
) -> None:
    first, second = roles
    exits = (
        ComponentExit(second, CLOSE - 1, exited(0)),
        ComponentExit(first, CLOSE - 2, exited(1)),
    )
    assert verdict(replace(STOP, exits=exits)) == (CRASHED, reason, 4)


def test_rule_5_the_main_process_ended_by_another_signal() -> None:
    seen = replace(STOP, main_wait_status=signal.SIGKILL)
    assert verdict(seen) == (CRASHED, Reason.SIGNAL, 5)


def test_rule_5_the_main_process_was_exiting_at_the_close() -> None:
    seen = replace(STOP, main_wait_status=None, main_was_exiting_at_close=True)
    assert verdict(seen) == (CRASHED, Reason.SIGNAL, 5)


@pytest.mark.parametrize("code", [1, 2, 255])
def test_rule_5_the_main_process_exited_with_an_error(code: int) -> None:
    seen = replace(STOP, main_wait_status=exited(code))
    assert verdict(seen) == (CRASHED, Reason.EXIT_NONZERO, 5)


def test_rule_5_a_launch_that_never_served_and_ended_with_2_had_bad_arguments() -> None:
    seen = EndingEvidence(main_wait_status=exited(2), has_served=False)
    assert verdict(seen) == (CRASHED, Reason.BAD_ARGUMENTS, 5)
    assert verdict(replace(seen, has_served=True)) == (CRASHED, Reason.EXIT_NONZERO, 5)


def test_rule_5_a_launch_whose_port_was_held_while_it_loaded_had_no_port() -> None:
    seen = EndingEvidence(main_wait_status=exited(1), has_served=False, port_holder="nginx (PID 7)")
    assert verdict(seen) == (CRASHED, Reason.PORT_IN_USE, 5)
    assert "held by nginx (PID 7)" in judge(seen).evidence[0]
    assert verdict(replace(seen, has_served=True)) == (CRASHED, Reason.EXIT_NONZERO, 5)
    assert verdict(replace(seen, port_holder="")) == (CRASHED, Reason.EXIT_NONZERO, 5)


@pytest.mark.parametrize(
    ("cause", "held"),
    [
        (Reason.PORT_IN_USE, "its port is held by nginx (PID 7)"),
        (Reason.GPU_MEMORY_TAKEN, "GPU memory is held by an orphan"),
        (Reason.GPU_OOM, None),
    ],
)
def test_who_held_what_it_needed_is_told_where_that_was_the_cause(
    cause: Reason, held: str | None
) -> None:
    seen = EndingEvidence(
        main_wait_status=exited(1),
        logged_cause=cause,
        logged_pattern="a line",
        port_holder="nginx (PID 7)",
        gpu_holder="an orphan",
    )
    evidence = judge(seen).evidence
    assert evidence[0] == "its log says: a line"
    assert [text for text in evidence if "held by" in text] == ([] if held is None else [held])


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (signal.SIGKILL, Reason.SIGNAL),
        (signal.SIGHUP, Reason.SIGNAL),
        (signal.SIGTERM, None),
        (signal.SIGINT, None),
        (exited(143), None),
        (exited(130), None),
        (signal.SIGABRT, Reason.NCCL),
        (exited(1), Reason.NCCL),
        (exited(0), Reason.NCCL),
        (None, Reason.NCCL),
    ],
)
def test_rule_2_what_a_process_survived_did_not_end_it(
    status: int | None, reason: Reason | None
) -> None:
    """An error makes it exit, or abort: one that a signal from outside ended had got over it."""
    seen = EndingEvidence(main_wait_status=status, logged_cause=Reason.NCCL)
    assert judge(seen).reason is reason
    failed = ComponentExit(ENGINE, 1.0, exited(1))
    assert judge(replace(seen, exits=(failed,))).reason is Reason.NCCL


def test_a_load_that_had_stalled_is_told() -> None:
    seen = EndingEvidence(main_wait_status=exited(1), load_stall="it had stalled")
    assert "it had stalled" in judge(seen).evidence


def test_a_cause_in_the_log_that_did_not_decide_is_told_too() -> None:
    seen = EndingEvidence(
        main_wait_status=signal.SIGTERM,
        stop_sign_seconds=1.0,
        logged_cause=Reason.NCCL,
        logged_cause_seconds=2.0,
        logged_pattern="NCCL error",
    )
    assert verdict(seen) == (STOPPED, None, 3)
    assert "its log also says: NCCL error" in judge(seen).evidence


def test_rule_6_everything_else_was_on_its_way_out() -> None:
    leaving = (*LEAVING, at_close(API, gone=True))
    assert verdict(replace(STOP, at_close=leaving)) == (STOPPED, None, 6)


@pytest.mark.parametrize("status", [None, exited(0)])
@pytest.mark.parametrize(
    ("seen_at_close", "expected"),
    [((), (STOPPED, None, 6)), (None, (CRASHED, Reason.UNKNOWN, 7))],
    ids=["the main process was alone", "nobody looked"],
)
def test_rule_6_needs_a_look_at_the_close_but_nobody_else_there(
    status: int | None,
    seen_at_close: tuple[ComponentAtClose, ...] | None,
    expected: tuple[ServerState, Reason | None, int],
) -> None:
    seen = replace(STOP, main_wait_status=status, at_close=seen_at_close)
    assert verdict(seen) == expected


def test_rule_6_needs_a_close() -> None:
    """A process that never listened, or whose close nobody saw, is not judged by what was left."""
    assert verdict(replace(STOP, close_seconds=None)) == (CRASHED, Reason.UNKNOWN, 7)


@pytest.mark.parametrize("seen_at_close", [(), None])
def test_the_rules_before_it_need_nobody_at_the_close(
    seen_at_close: tuple[ComponentAtClose, ...] | None,
) -> None:
    alone = replace(STOP, at_close=seen_at_close)
    assert verdict(replace(alone, main_wait_status=exited(1)))[2] == 5
    unknown = replace(alone, main_wait_status=None)
    assert verdict(replace(unknown, main_was_exiting_at_close=True))[2] == 5
    assert verdict(replace(alone, stop_sign_seconds=CLOSE))[2] == 3
    assert verdict(replace(alone, engine_death_logged_seconds=CLOSE))[2] == 4


@pytest.mark.parametrize("status", [None, exited(0)])
def test_rule_7_an_end_nobody_can_explain_is_a_crash(status: int | None) -> None:
    """Exit status 0 is no evidence: vLLM exits 0 when its engine dies."""
    assert verdict(EndingEvidence(main_wait_status=status)) == (CRASHED, Reason.UNKNOWN, 7)


# The order of the rules.


def test_the_first_rule_that_matches_decides() -> None:
    seen = EndingEvidence(
        asked="the agent stopped it",
        oom_kills=1,
        logged_cause=Reason.NCCL,
        logged_cause_seconds=CLOSE - 3,
        stop_sign_seconds=CLOSE - 2,
        exits=(ComponentExit(ENGINE, CLOSE - 1, signal.SIGSEGV),),
        main_wait_status=signal.SIGKILL,
        main_was_exiting_at_close=False,
        close_seconds=CLOSE,
        at_close=LEAVING,
    )
    expected = [
        (STOPPED, None, 1),
        (CRASHED, Reason.HOST_OOM, 2),
        (CRASHED, Reason.NCCL, 2),
        (STOPPED, None, 3),
        (CRASHED, Reason.ENGINE_DIED, 4),
        (CRASHED, Reason.SIGNAL, 5),
        (STOPPED, None, 6),
        (CRASHED, Reason.UNKNOWN, 7),
    ]
    judged = [verdict(seen)]
    for without in (
        {"asked": ""},
        {"oom_kills": None},
        {"logged_cause": None},
        {"stop_sign_seconds": None},
        {"exits": ()},
        {"main_wait_status": exited(0)},
        {"close_seconds": None},
    ):
        seen = replace(seen, **without)
        judged.append(verdict(seen))
    assert judged == expected


def test_an_asked_end_needs_no_other_evidence_even_when_it_was_rough() -> None:
    seen = replace(STOP, is_in_maintenance=True, oom_kills=3, main_wait_status=signal.SIGKILL)
    assert verdict(seen) == (STOPPED, None, 1)


# Wait statuses.


@pytest.mark.parametrize(
    ("status", "code", "number"),
    [
        (None, None, None),
        (exited(0), 0, None),
        (exited(143), 143, None),
        (signal.SIGKILL, None, 9),
        (signal.SIGSEGV | 0x80, None, 11),
    ],
)
def test_wait_statuses_tell_code_or_signal(
    status: int | None, code: int | None, number: int | None
) -> None:
    assert (exit_code(status), exit_signal(status)) == (code, number)


def test_the_evidence_begins_with_what_decided_and_tells_what_else_was_seen() -> None:
    seen = replace(
        STOP,
        exits=(
            ComponentExit(WORKER, CLOSE + 0.2, None),
            ComponentExit(ENGINE, CLOSE - 2.0, signal.SIGKILL),
        ),
        at_close=(ALIVE_ENGINE, *LEAVING),
    )
    assert judge(seen).evidence == (
        "engine_core was killed 2.0 s before the listener closed",
        "main process: exited with 0, 0.5 s after the listener closed",
        "engine_core: ended by signal 9, 2.0 s before the listener closed",
        "worker: ended, its status is unknown, 0.2 s after the listener closed",
        "when the listener closed: engine_core alive (1), "
        + ", ".join(f"{c.role} gone or going (1)" for c in LEAVING),
    )


def test_who_told_of_a_stop_or_a_death_is_named() -> None:
    stop = replace(STOP, stop_sign_seconds=CLOSE, stop_sign="systemd was told to stop a.service")
    assert judge(stop).evidence[0] == "systemd was told to stop a.service"
    death = replace(
        STOP, engine_death_logged_seconds=CLOSE, engine_death="its log says: engine vanished"
    )
    assert judge(death).evidence[0] == "its log says: engine vanished"


def test_ends_told_one_by_one_are_bounded() -> None:
    many = tuple(ComponentExit(WORKER, CLOSE, 0) for _ in range(MAX_EXITS_TOLD + 3))
    told = judge(replace(STOP, exits=many)).evidence
    assert sum(line.startswith("worker: ") for line in told) == MAX_EXITS_TOLD
    assert "3 more ended" in told
