"""What each family says of a server, and what it keeps to itself."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings

from tests.expose import snapshots
from tests.expose.snapshots import (
    EVERY_DEVICE,
    GIB,
    HISTORY,
    LAST_STAGES,
    MANAGED,
    NOW,
    STARTED,
    ad_hoc_server,
    agent,
    backing_off,
    bare_device,
    crashed_server,
    device,
    downloading,
    ended_local_server,
    fresh_server,
    given_up,
    gpu,
    late_load,
    life,
    load,
    loaded,
    loading_life,
    loading_server,
    local_server,
    lost_device,
    managed_server,
    orphaned_device,
    orphans,
    server,
    tree,
)
from vllm_agent.expose.family import (
    MAX_LABEL_VALUE_CHARACTERS,
    Family,
    MetricType,
    SampleValue,
    ServerMoment,
    label_value,
)
from vllm_agent.expose.metric_families import (
    AGENT_FAMILIES,
    GPU_FAMILIES,
    MOMENT_FAMILIES,
    SERVER_FAMILIES,
)
from vllm_agent.expose.metrics_page import (
    EXTERNAL_SERIES_BUDGET,
    GPU_SERIES_BUDGET,
    LOCAL_SERIES_BUDGET,
)
from vllm_agent.lifecycle.load_progress import LoadProgress, Weights
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.restart_budget import RestartBudget
from vllm_agent.lifecycle.server_life import Ending, Launch, Tally
from vllm_agent.lifecycle.states import Initiator, LifecycleMode, Phase, ServerState
from vllm_agent.observations import (
    Component,
    ComponentRole,
    Download,
    Instant,
    Probe,
    ProbeCause,
    Stage,
)
from vllm_agent.snapshot import (
    CollectorSnapshot,
    FaultCount,
    GpuSnapshot,
    Histogram,
    ProbeStats,
    ServerSnapshot,
)

EVERY_FAMILY: tuple[Family[Any], ...] = (
    *SERVER_FAMILIES,
    *MOMENT_FAMILIES,
    *GPU_FAMILIES,
    *AGENT_FAMILIES,
)


def samples(name: str, subject: object, now: Instant = NOW) -> dict[tuple[str, ...], SampleValue]:
    """The family's samples as label values → number; `name` comes without the prefix."""
    family = next(family for family in EVERY_FAMILY if family.name == f"vllm_agent_{name}")
    if isinstance(subject, ServerSnapshot) and family in MOMENT_FAMILIES:
        subject = ServerMoment(subject, now)
    listed = list(family.samples(subject))
    assert len(dict(listed)) == len(listed)
    return dict(listed)


def series_by_family(subject: ServerSnapshot) -> dict[str, int]:
    """How many series each family costs the server."""
    moment = ServerMoment(subject, NOW)
    found = {family.name: list(family.samples(subject)) for family in SERVER_FAMILIES}
    found |= {family.name: list(family.samples(moment)) for family in MOMENT_FAMILIES}
    return {
        name: sum(
            len(value.counts) + 2 if isinstance(value, Histogram) else 1 for _, value in listed
        )
        for name, listed in found.items()
    }


def gpu_samples(subject: GpuSnapshot) -> dict[str, dict[tuple[str, ...], SampleValue]]:
    """Every family that the device has series of, without the prefix."""
    names = [family.name.removeprefix("vllm_agent_") for family in GPU_FAMILIES]
    return {name: found for name in names if (found := samples(name, subject))}


def eight_devices(*servers: str) -> tuple[GpuSnapshot, ...]:
    """Devices of which each holds memory of every one of the servers."""
    held = MappingProxyType(dict.fromkeys(servers, GIB))
    return tuple(device(str(index), servers=held) for index in range(8))


def failing_server() -> ServerSnapshot:
    """An external server after a crash and a recovery, up but failing its checks: the fullest."""
    crashed = crashed_server()
    return replace(
        crashed, life=replace(crashed.life, phase=Phase.UNREADY, reason=Reason.UNRESPONSIVE)
    )


S = ServerState
LOCAL_CHANGES = (
    *((S.UNKNOWN, S.STARTING), (S.UNKNOWN, S.RUNNING), (S.STARTING, S.RUNNING)),
    *((S.STARTING, S.FAILED), (S.STARTING, S.STOPPING), (S.RUNNING, S.FAILED)),
    *((S.FAILED, S.RUNNING), (S.RUNNING, S.STOPPING), (S.FAILED, S.STOPPING)),
    *((S.STOPPING, S.STOPPED), (S.STOPPING, S.CRASHED), (S.STOPPED, S.STARTING)),
    (S.CRASHED, S.STARTING),
)
"""The changes of state that a local server goes through in ordinary life."""


def fullest_local_server() -> ServerSnapshot:
    """8 GPUs with an engine, a worker and an API server each: up, after a lot, but failing."""
    parts = [
        Component(role, f"dp{rank}", 100 + rank, is_alive=True)
        for role in ComponentRole
        for rank in range(8)
    ]
    tally = Tally(launches=2).with_launch(Initiator.OUTSIDE)
    for reason in (Reason.ENGINE_DIED, Reason.GPU_OOM):
        tally = tally.with_crash(reason, NOW)
    for old, new in LOCAL_CHANGES:
        tally = tally.with_transition(old, new)
    failing = failing_server()
    causes = (ProbeCause.REFUSED, ProbeCause.RESET, ProbeCause.TIMEOUT, ProbeCause.HTTP_5XX)
    lived = life(
        Phase.UNREADY,
        reason=Reason.UNRESPONSIVE,
        tally=tally,
        last_ending=Ending(2, NOW, ServerState.CRASHED, Reason.GPU_OOM, 2, exit_code=1),
        state_time=replace(failing.life.state_time, seconds=dict.fromkeys(ServerState, 1.0)),
        launch=loading_life().launch,
        load=loaded(),
        load_history=HISTORY,
    )
    return local_server(
        life=lived,
        tree=tree(components=tuple(parts), processes=40, orphans=orphans(1)),
        probes={
            probe: replace(stats, failures=dict.fromkeys(causes, 1))
            for probe, stats in failing.probes.items()
        },
    )


def fullest_in(load: LoadProgress) -> ServerSnapshot:
    """The same in a load that has stalled."""
    served = fullest_local_server()
    stalled = replace(
        served.life,
        phase=Phase.STALLED,
        reason=Reason.LOAD_STALLED,
        is_sleeping=None,
        load=replace(load, is_stalled=True),
    )
    return replace(served, life=stalled)


def fullest_downloading_server() -> ServerSnapshot:
    return fullest_in(downloading())


def fullest_loading_server() -> ServerSnapshot:
    """In its weights, after a download."""
    return fullest_in(load())


def fullest_warming_server() -> ServerSnapshot:
    """In the last of all stages."""
    return fullest_in(loaded(stage=Stage.WARMUP, ended=None))


def managed(subject: ServerSnapshot) -> ServerSnapshot:
    """The same as the agent's own."""
    asked = managed_server().life.management
    return replace(
        subject,
        mode=LifecycleMode.MANAGED,
        policy=MANAGED,
        life=replace(subject.life, management=asked),
    )


def fullest_waiting_server() -> ServerSnapshot:
    """A managed one that crashed, and will be started again."""
    full = managed(fullest_local_server())
    crashed = backing_off().life
    return replace(
        full,
        life=replace(
            full.life, phase=Phase.BACKOFF, reason=crashed.reason, management=crashed.management
        ),
    )


# --- declarations


def test_names_are_declared_once():
    assert max(Counter(family.name for family in EVERY_FAMILY).values()) == 1


@pytest.mark.parametrize("family", EVERY_FAMILY, ids=lambda family: family.name)
def test_a_declaration_keeps_to_the_conventions(family):
    assert re.fullmatch(r"vllm_agent_[a-z]+(_[a-z]+)*", family.name)
    assert family.name.endswith("_total") == (family.type is MetricType.COUNTER)
    assert family.help.endswith(".")
    assert "\n" not in family.help
    assert "|" not in family.help
    assert family.modes
    forbidden = {"pid", "host", "job", "instance", "service", "le", "quantile", "type"}
    assert not forbidden & set(family.all_labels)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", label) for label in family.all_labels)
    assert len(set(family.all_labels)) == len(family.all_labels)


@given(snapshots.servers)
@settings(max_examples=50, deadline=None)
def test_any_server_has_exactly_one_state_and_only_the_families_of_its_mode(subject):
    assert Counter(samples("server_state", subject).values()) == {0: 6, 1: 1}
    counts = series_by_family(subject)
    for family in SERVER_FAMILIES:
        assert not counts[family.name] or subject.mode in family.modes
    for family in SERVER_FAMILIES:
        for values, _ in family.samples(subject):
            assert len(values) == len(family.labels)
            assert all(len(value) <= MAX_LABEL_VALUE_CHARACTERS for value in values)


# --- label values


def test_a_long_label_value_is_cut_and_stays_distinct():
    first, second = label_value("x" * 200), label_value("x" * 201)
    assert len(first) == MAX_LABEL_VALUE_CHARACTERS
    assert first.startswith("xxx")
    assert first != second
    assert label_value("\ud800" * 129) != label_value("\ud801" * 129)


def test_a_label_value_that_fits_is_kept():
    assert label_value("x" * MAX_LABEL_VALUE_CHARACTERS) == "x" * MAX_LABEL_VALUE_CHARACTERS


# --- state and history


def test_info_of_a_known_and_of_an_unknown_server():
    model = "meta-llama/Llama-3.1-8B-Instruct"
    known = ("external", model, "http://127.0.0.1:8000", "0.27.1", "false")
    assert samples("server_info", server()) == {known: 1}
    found = replace(fresh_server(), is_discovered=True)
    assert samples("server_info", found) == {
        ("external", "", "http://127.0.0.1:8000", "", "true"): 1
    }


@pytest.mark.parametrize("phase", Phase)
def test_the_state_of_each_phase_is_the_one_that_is_1(phase):
    current = life(phase)
    expected = {(state,): float(state is current.state) for state in ServerState}
    assert samples("server_state", server(life=current)) == expected


def test_when_the_state_was_entered():
    entered = samples("server_state_entered_timestamp_seconds", server())
    assert entered == {(): STARTED.unix_seconds}


def test_time_in_the_current_state_runs_up_to_the_scrape():
    assert samples("server_state_seconds_total", server()) == {("running",): 100.5}
    assert samples("server_desired_seconds_total", server()) == {(): 100.5}
    assert samples("server_available_seconds_total", server()) == {(): 100.5}


def test_a_state_entered_just_now_is_counted_from_0():
    assert samples("server_state_seconds_total", server(), now=STARTED) == {("running",): 0}


def test_time_in_maintenance_is_not_desired():
    asleep = server(life=life(Phase.ABSENT, maintenance_until_unix_seconds=float("inf")))
    assert samples("server_desired_up", asleep) == {(): 0}
    assert samples("server_desired_seconds_total", asleep) == {(): 0}


def test_a_server_that_nobody_wants_up_says_nothing_of_being_wanted():
    wanted = ("server_desired_up", "server_desired_seconds_total", "server_available_seconds_total")
    for name in wanted:
        assert len(samples(name, local_server())) == 1
        assert samples(name, ad_hoc_server()) == {}
        # Maintenance ends its tickets; it does not make it one that is judged by its availability.
        in_maintenance = ad_hoc_server(life=life(maintenance_until_unix_seconds=2e9))
        expected = {(): 0.0} if name == "server_desired_up" else {}
        assert samples(name, in_maintenance) == expected
    assert samples("server_state_seconds_total", ad_hoc_server()) == {("running",): 100.5}


def test_transitions_that_happened():
    crashed = samples("server_state_transitions_total", crashed_server())
    assert crashed["running", "failed"] == 3
    assert ("stopped", "running") not in crashed


@pytest.mark.parametrize("phase", Phase)
def test_a_reason_only_while_failed_or_crashed(phase):
    subject = server(life=life(phase, reason=Reason.UNREACHABLE))
    is_trouble = subject.life.state in {ServerState.FAILED, ServerState.CRASHED}
    expected = {("unreachable",): 1} if is_trouble else {}
    assert samples("server_failure_reason", subject) == expected


def test_trouble_without_a_reason_is_unknown():
    subject = server(life=life(Phase.CRASHED, reason=None))
    assert samples("server_failure_reason", subject) == {("unknown",): 1}


@pytest.mark.parametrize(
    ("is_sleeping", "expected"), [(None, {}), (True, {(): 1}), (False, {(): 0})]
)
def test_sleeping_as_far_as_it_says(is_sleeping, expected):
    assert samples("server_sleeping", server(life=life(is_sleeping=is_sleeping))) == expected


def test_a_server_that_is_gone_neither_sleeps_nor_has_a_process():
    assert samples("server_sleeping", crashed_server()) == {}
    assert samples("server_process_start_time_seconds", crashed_server()) == {}


def test_process_start_as_far_as_it_is_one_process():
    name = "server_process_start_time_seconds"
    assert samples(name, server()) == {(): 1_749_999_000.0}
    assert samples(name, server(life=life(is_load_balanced=True))) == {}
    assert samples(name, server(life=life(launch=None))) == {}
    silent = Launch(1, None, STARTED)
    assert samples(name, server(life=life(launch=silent))) == {}


# --- launches, restarts, crashes


def test_restarts_are_complete_from_the_start():
    assert samples("server_restarts_total", fresh_server()) == {
        ("agent",): 0,
        ("operator",): 0,
        ("outside",): 0,
    }
    tally = Tally(launches=1).with_launch(Initiator.OUTSIDE)
    assert samples("server_restarts_total", server(life=life(tally=tally)))["outside",] == 1
    assert samples("server_launches_total", server(life=life(tally=tally))) == {(): 2}


def test_crashes_are_complete_within_what_external_can_produce():
    assert samples("server_crashes_total", fresh_server()) == {("unreachable",): 0}
    tally = Tally().with_crash(Reason.HOST_OOM, NOW)
    subject = server(life=life(tally=tally))
    assert samples("server_crashes_total", subject) == {("unreachable",): 0, ("host_oom",): 1}


@pytest.mark.parametrize("mode", [LifecycleMode.MONITORED, LifecycleMode.MANAGED])
def test_crashes_of_a_local_server_are_complete_within_what_its_judgement_comes_to(mode):
    only_failed_or_spawned = {
        *(Reason.LOAD_STALLED, Reason.UNHEALTHY, Reason.UNRESPONSIVE, Reason.UNREACHABLE),
        *(Reason.MODEL_MISSING, Reason.ENGINE_STALLED, Reason.SPAWN_FAILED),
    }
    expected = {(reason,): 0 for reason in Reason if reason not in only_failed_or_spawned}
    assert samples("server_crashes_total", local_server(mode=mode)) == expected
    tally = Tally().with_crash(Reason.UNREACHABLE, NOW)
    changed = samples("server_crashes_total", local_server(mode=mode, life=life(tally=tally)))
    assert changed == expected | {("unreachable",): 1}


def test_last_crash_only_for_reasons_that_occurred():
    name = "server_last_crash_timestamp_seconds"
    assert samples(name, server()) == {}
    assert samples(name, crashed_server()) == {("unreachable",): 1_750_000_090.0}


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        (
            Ending(1, NOW, ServerState.CRASHED, Reason.EXIT_NONZERO, 5, exit_code=1),
            ("1", "", "false"),
        ),
        (Ending(1, NOW, ServerState.STOPPED, None, 3, signal=15), ("", "15", "true")),
        (Ending(1, NOW, ServerState.STOPPED, None, 6), ("", "", "true")),
    ],
)
def test_last_exit_of_a_local_server(ending, expected):
    local = server(mode=LifecycleMode.MONITORED, life=life(last_ending=ending))
    assert samples("server_last_exit_info", local) == {expected: 1}


def test_no_last_exit_of_an_external_server_or_before_the_first():
    assert samples("server_last_exit_info", crashed_server()) == {}
    assert samples("server_last_exit_info", server(mode=LifecycleMode.MONITORED)) == {}


def test_the_restart_budget():
    spent = server(life=life(budget=RestartBudget(5, 2, is_limit_reached=True)))
    assert samples("server_restart_limit", spent) == {(): 5}
    assert samples("server_restart_budget_remaining", spent) == {(): 2}
    assert samples("server_restart_limit_reached", spent) == {(): 1}
    assert samples("server_restart_window_seconds", spent) == {(): 60}


NEXT_RESTART = "server_next_restart_timestamp_seconds"


def test_the_next_restart_while_one_is_planned():
    crashed = backing_off()
    assert samples(NEXT_RESTART, crashed) == {(): 1_750_000_102}
    slower = replace(crashed, policy=replace(MANAGED, restart_delay_seconds=30.0))
    assert samples(NEXT_RESTART, slower) == {(): 1_750_000_130}
    once = replace(crashed, life=replace(crashed.life, budget=RestartBudget(3, 2)))
    assert samples(NEXT_RESTART, once) == {(): 1_750_000_104}


@pytest.mark.parametrize(
    "make",
    [
        *(server, local_server, ended_local_server, managed_server, given_up),
        lambda: backing_off(policy=replace(MANAGED, is_dry_run=True)),
        lambda: backing_off(life=replace(backing_off().life, budget=RestartBudget(3, 0))),
        lambda: backing_off(life=replace(backing_off().life, maintenance_until_unix_seconds=2e9)),
    ],
)
def test_without_a_plan_there_is_no_next_restart(make):
    assert samples(NEXT_RESTART, make()) == {}


# --- processes

SUMS = {
    "server_processes": 5,
    "server_threads": 245,
    "server_resident_memory_bytes": 13_207_024_435,
    "server_open_fds": 311,
    "server_cpu_seconds_total": 8_000.25,
    "orphan_processes": 0,
}


def test_components_by_role_and_rank():
    assert samples("server_component_up", local_server()) == {
        ("api_server", ""): 1,
        ("engine_core", ""): 1,
        ("worker", "tp0"): 1,
        ("worker", "tp1"): 1,
    }
    assert set(samples("server_component_up", ended_local_server()).values()) == {0}


def test_two_components_of_one_name_are_one_series_that_is_up_while_either_lives():
    dead, alive = (Component(ComponentRole.WORKER, "tp0", 7, is_alive=up) for up in (False, True))
    for parts in ((dead, alive), (alive, dead)):
        subject = local_server(tree=tree(components=parts))
        assert samples("server_component_up", subject) == {("worker", "tp0"): 1}


def test_a_title_is_bounded_as_a_label():
    long = Component(ComponentRole.WORKER, "x" * 500, 7, is_alive=True)
    ((_, rank),) = samples("server_component_up", local_server(tree=tree(components=(long,))))
    assert len(rank) == MAX_LABEL_VALUE_CHARACTERS


@pytest.mark.parametrize(("name", "value"), SUMS.items())
def test_sums_over_the_tree(name, value):
    assert samples(name, local_server()) == {(): value}


def test_what_of_a_tree_could_not_be_read_is_not_exported():
    blind = tree(threads=None, resident_bytes=None, open_fds=None, cpu_seconds=None)
    told = {name for name in SUMS if samples(name, local_server(tree=blind))}
    assert told == {"server_processes", "orphan_processes"}


@pytest.mark.parametrize("make", [server, lambda: local_server(tree=None)])
def test_without_a_tree_nothing_is_said_of_processes(make):
    for name in ("server_component_up", *SUMS):
        assert samples(name, make()) == {}


def test_orphans_of_a_server_that_ended():
    assert samples("orphan_processes", ended_local_server()) == {(): 2}
    assert samples("server_last_exit_info", ended_local_server()) == {("0", "", "false"): 1}


# --- probes and loading


def test_probe_success_is_complete_from_the_start():
    assert samples("probe_success", fresh_server()) == {(probe,): 0 for probe in Probe}
    assert samples("probe_success", server()) == {(probe,): 1 for probe in Probe}
    assert samples("probe_success", crashed_server())["health",] == 0


def test_probe_counts():
    assert samples("probe_requests_total", server()) == {(probe,): 12 for probe in Probe}
    assert samples("probe_failures_total", server()) == {}
    assert samples("probe_failures_total", crashed_server()) == {
        ("health", "refused"): 12,
        ("health", "timeout"): 4,
        ("health", "http_5xx"): 1,
    }
    assert samples("probe_consecutive_failures", crashed_server()) == {(): 7}


def test_probe_last_success_only_after_one():
    assert samples("probe_last_success_timestamp_seconds", fresh_server()) == {}
    assert len(samples("probe_last_success_timestamp_seconds", server())) == len(Probe)


def test_durations_of_health_only():
    durations = samples("probe_duration_seconds", server())
    assert durations == {("health",): server().probes[Probe.HEALTH].durations}


def in_load(load: LoadProgress, phase: Phase = Phase.LOADING, **changes: Any) -> ServerSnapshot:
    return loading_server(life=loading_life(phase, load=load, **changes))


def test_load_stage_is_complete_and_none_where_nothing_loads():
    assert samples("load_stage", server()) == {("none",): 1}
    local = samples("load_stage", server(mode=LifecycleMode.MONITORED))
    assert len(local) == 6
    assert [values for values, value in local.items() if value] == [("none",)]


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage is not Stage.NONE])
@pytest.mark.parametrize("phase", [Phase.LOADING, Phase.STALLED])
def test_the_stage_of_a_load_is_the_one_that_is_1(stage, phase):
    expected = {(one,): float(one is stage) for one in Stage}
    assert samples("load_stage", in_load(load(stage=stage), phase)) == expected


OTHER_PROCESS = replace(load().process, pid=9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: server(life=life(Phase.LOADING)),
        lambda: local_server(life=life(Phase.LOADING)),
        lambda: in_load(load(process=OTHER_PROCESS)),
        lambda: in_load(loaded()),
    ],
)
def test_an_unknown_load_stage_is_not_exported(make):
    assert samples("load_stage", make()) == {}
    for name in ("load_progress_ratio", "load_last_progress_timestamp_seconds", "load_stalled"):
        assert samples(name, make()) == {}


WATCHED = (
    *("load_progress_ratio", "load_download_bytes", "load_download_size_bytes"),
    *("load_weights_bytes", "load_weights_size_bytes"),
    *("load_last_progress_timestamp_seconds", "load_stalled"),
)


def watched(subject: ServerSnapshot) -> dict[str, dict[tuple[str, ...], SampleValue]]:
    """What is told of a load that is under way."""
    return {name: found for name in WATCHED if (found := samples(name, subject))}


def test_a_load_of_weights_tells_how_far_it_is():
    assert watched(loading_server()) == {
        "load_progress_ratio": {("load_weights",): 4 / 15},
        "load_weights_bytes": {(): 4 * GIB},
        "load_weights_size_bytes": {(): 15 * GIB},
        "load_last_progress_timestamp_seconds": {(): 1_750_000_099},
        "load_stalled": {(): 0},
    }


def test_a_download_tells_how_far_it_is():
    assert watched(in_load(downloading(), Phase.STALLED)) == {
        "load_progress_ratio": {("download",): 0.2},
        "load_download_bytes": {(): 3 * GIB},
        "load_download_size_bytes": {(): 15 * GIB},
        "load_last_progress_timestamp_seconds": {(): 1_750_000_099},
        "load_stalled": {(): 0},
    }


def test_what_nobody_can_measure_of_a_load_is_not_exported():
    unknown = Download(3 * GIB, None, None, is_under_way=True)
    blind = watched(in_load(downloading(download=unknown, is_stalled=None)))
    assert blind.keys() == {"load_download_bytes", "load_last_progress_timestamp_seconds"}
    counted = watched(in_load(load(weights=Weights(4, 11, None, None))))
    assert counted["load_progress_ratio"] == {("load_weights",): 3 / 11}
    assert not {"load_weights_bytes", "load_weights_size_bytes"} & counted.keys()


def test_progress_that_nobody_saw_has_no_time():
    told = watched(in_load(late_load()))
    assert "load_last_progress_timestamp_seconds" not in told
    assert told["load_stalled"] == {(): 0}


@pytest.mark.parametrize("stage", [Stage.INIT, Stage.COMPILE, Stage.WARMUP])
def test_a_stage_without_bytes_has_none_whatever_came_before(stage):
    told = watched(in_load(load(stage=stage)))
    assert told.keys() == {"load_last_progress_timestamp_seconds", "load_stalled"}


@pytest.mark.parametrize("phase", [Phase.READY, Phase.CRASHED, Phase.ENDING])
def test_a_load_that_is_over_tells_nothing_but_how_long_its_stages_were(phase):
    subject = in_load(loaded(), phase)
    assert watched(subject) == {}
    assert len(samples("load_stage_seconds", subject)) == 5


def test_the_seconds_of_a_stage_run_up_to_the_scrape():
    assert samples("load_stage_seconds", loading_server()) == {
        ("init",): 10,
        ("download",): 30,
        ("load_weights",): 30.5,
    }


def test_the_stages_of_a_load_that_this_agent_did_not_see_are_those_of_the_last():
    expected = {(str(stage),): seconds for stage, seconds in LAST_STAGES.items()}
    unseen = local_server(life=life(load_history=HISTORY))
    assert samples("load_stage_seconds", unseen) == expected
    assert samples("load_stage_seconds", in_load(load(process=OTHER_PROCESS))) == expected
    assert samples("load_stage_seconds", local_server()) == {}
    assert samples("load_stage_seconds", server()) == {}


def test_load_durations_after_the_first_load():
    assert samples("load_duration_seconds", local_server()) == {}
    durations = samples("load_duration_seconds", loading_server())
    assert durations == {(): Histogram(HISTORY.counts, 4_230.5)}


# --- GPUs


def test_a_gpu_tells_its_readings():
    assert gpu_samples(device()) == {
        "gpu_info": {("NVIDIA H100 80GB HBM3", "nvidia", "580.95.05", "00000000:10:00.0"): 1},
        "gpu_memory_total_bytes": {(): 80 * GIB},
        "gpu_memory_used_bytes": {(): 72.5 * GIB},
        "gpu_memory_free_bytes": {(): 7 * GIB},
        "gpu_utilization_ratio": {(): 0.87},
        "gpu_temperature_celsius": {(): 61},
        "gpu_power_watts": {(): 412.5},
        "gpu_power_limit_watts": {(): 700},
        "gpu_ecc_errors_total": {("corrected",): 3, ("uncorrected",): 0},
        "server_gpu_memory_used_bytes": {("llama",): 72 * GIB},
        "gpu_orphan_memory_bytes": {(): 0},
        "gpu_orphan_processes": {(): 0},
        "gpu_other_memory_bytes": {(): 0.5 * GIB},
    }


def test_an_idle_gpu_has_zeros_where_one_that_tells_nothing_has_no_series():
    idle = gpu(memory_used_bytes=0, utilization_ratio=0.0, power_watts=0.0, ecc_corrected_errors=0)
    told = gpu_samples(device(gpu=idle, servers={"asleep": 0}, other_bytes=0))
    assert told["gpu_memory_used_bytes"] == {(): 0}
    assert told["gpu_utilization_ratio"] == {(): 0}
    assert told["gpu_power_watts"] == {(): 0}
    assert told["gpu_ecc_errors_total"] == {("corrected",): 0, ("uncorrected",): 0}
    assert told["server_gpu_memory_used_bytes"] == {("asleep",): 0}
    assert told["gpu_other_memory_bytes"] == {(): 0}

    assert gpu_samples(bare_device()) == {
        "gpu_info": {("", "amd", "", ""): 1},
        "gpu_memory_total_bytes": {(): GIB},
    }


def test_one_kind_of_ecc_errors_may_be_unknown():
    half = device(gpu=gpu(ecc_corrected_errors=None, ecc_uncorrected_errors=2))
    assert samples("gpu_ecc_errors_total", half) == {("uncorrected",): 2}


def test_who_holds_memory_after_a_crash():
    told = gpu_samples(orphaned_device())
    assert told["server_gpu_memory_used_bytes"] == {("llama",): 60 * GIB}
    assert told["gpu_orphan_memory_bytes"] == {(): 12 * GIB}
    assert told["gpu_orphan_processes"] == {(): 1}
    assert told["gpu_xid_errors_total"] == {("31",): 2}
    assert told["gpu_last_xid_timestamp_seconds"] == {("31",): 1_750_000_089.5}


def test_orphans_whose_memory_is_unknown_are_counted():
    assert samples("gpu_orphan_memory_bytes", orphaned_device(orphan_bytes=None)) == {}
    assert samples("gpu_orphan_processes", orphaned_device(orphan_bytes=None)) == {(): 1}


def test_where_the_agent_cannot_tell_who_holds_memory_it_says_nothing_of_orphans():
    blind = device(servers={}, orphans=None, orphan_bytes=0, other_bytes=None)
    told = gpu_samples(blind)
    who = ("server_gpu_memory_used_bytes", "gpu_orphan_memory_bytes", "gpu_orphan_processes")
    assert not {*who, "gpu_other_memory_bytes"} & told.keys()
    assert told["gpu_memory_used_bytes"]


def test_a_lost_gpu_has_its_xids_only_whatever_was_known_of_it():
    xids = {
        "gpu_xid_errors_total": {("79",): 1},
        "gpu_last_xid_timestamp_seconds": {("79",): 1_750_000_040},
    }
    assert gpu_samples(lost_device()) == xids
    remembered = device(gpu=gpu(is_lost=True), xids=lost_device().xids)
    assert gpu_samples(remembered) == xids


def test_names_of_servers_are_bounded_and_two_of_one_name_are_one_series():
    cut = label_value("x" * 200)
    held = samples("server_gpu_memory_used_bytes", device(servers={"x" * 200: 1, cut: 2}))
    assert held == {(cut,): 3}


@given(snapshots.devices)
@settings(max_examples=50, deadline=None)
def test_any_gpu_has_distinct_series_with_bounded_labels(subject):
    names = [family.name.removeprefix("vllm_agent_") for family in GPU_FAMILIES]
    labels = {family.name: family.labels for family in GPU_FAMILIES}
    for name in names:
        for values in samples(name, subject):
            assert len(values) == len(labels[f"vllm_agent_{name}"])
            assert all(len(value) <= MAX_LABEL_VALUE_CHARACTERS for value in values)


# --- the agent


def test_collectors_as_far_as_they_have_finished():
    subject = agent()
    assert samples("collector_up", subject) == {("probes",): 1, ("store",): 0}
    assert samples("collector_duration_seconds", subject) == {("probes",): 0.0125}
    last_success = samples("collector_last_success_timestamp_seconds", subject)
    assert last_success == {("probes",): 1_750_000_099.5}
    idle = agent(collectors=(CollectorSnapshot("logs", is_up=False),))
    assert samples("collector_duration_seconds", idle) == {}


@pytest.mark.parametrize(("discovered", "expected"), [(None, {}), (0, {(): 0}), (3, {(): 3})])
def test_servers_found_as_far_as_the_agent_looks(discovered, expected):
    assert samples("discovery_servers", agent(discovered=discovered)) == expected


def test_configuration_and_what_was_dropped():
    assert samples("dropped_total", agent()) == {("history",): 2}
    assert samples("config_last_reload_successful", agent(is_config_load_successful=False)) == {
        (): 0
    }
    name = "config_last_reload_success_timestamp_seconds"
    assert samples(name, agent()) == {(): 1_750_000_000.5}
    assert samples(name, agent(config_load_unix_seconds=None)) == {}


def test_the_build_is_named():
    ((version, python_version),) = samples("build_info", agent())
    assert version
    assert python_version.startswith("3.")


# --- budget


@pytest.mark.parametrize("make", [fresh_server, server, crashed_server, failing_server])
def test_an_external_server_keeps_to_its_series_budget(make):
    assert sum(series_by_family(make()).values()) <= EXTERNAL_SERIES_BUDGET


@pytest.mark.parametrize(
    "make",
    [
        *(local_server, ad_hoc_server, ended_local_server, loading_server, fullest_local_server),
        *(fullest_downloading_server, fullest_loading_server, fullest_warming_server),
        *(lambda: managed(fullest_local_server()), lambda: managed(fullest_downloading_server())),
        *(lambda: managed(fullest_loading_server()), lambda: managed(fullest_warming_server())),
        *(managed_server, backing_off, fullest_waiting_server),
    ],
)
def test_a_local_server_keeps_to_its_series_budget(make):
    subject = make()
    on_gpus = [
        values
        for shown in eight_devices(subject.name)
        for values in samples("server_gpu_memory_used_bytes", shown)
        if values == (subject.name,)
    ]
    assert len(on_gpus) == 8
    assert sum(series_by_family(subject).values()) + len(on_gpus) <= LOCAL_SERIES_BUDGET


@pytest.mark.parametrize("subject", EVERY_DEVICE)
def test_a_gpu_keeps_to_its_series_budget_with_one_more_per_server_and_two_per_xid(subject):
    counts = {name: len(found) for name, found in gpu_samples(subject).items()}
    assert counts.pop("server_gpu_memory_used_bytes", 0) <= len(subject.servers)
    for name in ("gpu_xid_errors_total", "gpu_last_xid_timestamp_seconds"):
        assert counts.pop(name, 0) == len(subject.xids)
    assert sum(counts.values()) <= GPU_SERIES_BUDGET


def test_eight_servers_on_eight_gpus_grow_with_both_and_nothing_else():
    names = [f"server-{number}" for number in range(8)]
    xids = MappingProxyType({number: FaultCount(1, 1e9) for number in (31, 79)})
    shown = [replace(one, xids=xids) for one in eight_devices(*names)]
    series = sum(len(found) for one in shown for found in gpu_samples(one).values())
    assert series == 8 * (GPU_SERIES_BUDGET + len(names) + 2 * len(xids))


def test_beyond_its_budget_a_server_grows_only_with_new_transitions_and_causes():
    counts = series_by_family(failing_server())
    counts["vllm_agent_server_state_transitions_total"] = 0
    counts["vllm_agent_probe_failures_total"] = 0
    assert sum(counts.values()) == EXTERNAL_SERIES_BUDGET - 8
    everything = MappingProxyType(dict.fromkeys(ProbeCause, 1))
    probes = MappingProxyType({probe: ProbeStats(failures=everything) for probe in Probe})
    failures = samples("probe_failures_total", replace(server(), probes=probes))
    assert len(failures) == len(Probe) * len(ProbeCause)
