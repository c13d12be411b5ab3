"""The shape of the answers: complete, honest about what is unknown, and always valid JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from types import MappingProxyType

import pytest
from hypothesis import given

from tests.expose import snapshots
from vllm_agent.expose.gpu_view import GpusView, GpuView, gpu_view, gpus_view
from vllm_agent.expose.history_view import history_view
from vllm_agent.expose.json_text import encode
from vllm_agent.expose.json_view import ServerView, agent_view, server_view
from vllm_agent.lifecycle.reasons import REASON_TEXT, Reason
from vllm_agent.lifecycle.server_life import Ending, Launch, Transition
from vllm_agent.lifecycle.states import Phase, ServerState
from vllm_agent.observations import Instant, Probe, ProbeCause, ProbeResult, Sight, SightKind
from vllm_agent.snapshot import CollectorSnapshot, GpuStranger, ProbeStats
from vllm_agent.store import History, LaunchRecord


@given(snapshots.servers)
def test_every_snapshot_is_valid_json_with_every_key(server) -> None:
    view = json.loads(encode(server_view(server)), parse_constant=pytest.fail)

    assert view.keys() == ServerView.__annotations__.keys()
    assert set(view["restarts"]) == {"agent", "operator", "outside"}


def test_a_crashed_server_tells_why_and_what_to_do() -> None:
    view = server_view(snapshots.crashed_server())

    assert view["state"] == "crashed"
    assert view["reason"] == "unreachable"
    assert view["advice"] == REASON_TEXT[Reason.UNREACHABLE].advice
    assert view["crashes"] == {"unreachable": 2}
    assert view["last_crash_timestamp_seconds"] == {"unreachable": 1_750_000_090.0}
    assert view["restart_budget"] == {
        "limit": 3,
        "remaining": 0,
        "window_seconds": 60.0,
        "limit_reached": True,
    }
    assert view["last_ending"] == {
        "launch": 2,
        "timestamp_seconds": 1_750_000_090.0,
        "state": "crashed",
        "reason": "unreachable",
        "rule": 7,
        "evidence": [],
        "exit_code": None,
        "signal": None,
        "holder": None,
        "advice": REASON_TEXT[Reason.UNREACHABLE].advice,
        "bundle": None,
    }
    assert view["process_start_time_seconds"] is None


def test_what_is_unknown_is_null() -> None:
    view = dict(server_view(snapshots.fresh_server()))

    unknown = (
        *("reason", "advice", "sleeping", "model_name", "version", "process_start_time_seconds"),
        *("last_ending", "last_check_timestamp_seconds", "maintenance_until_timestamp_seconds"),
        *("load", "managed"),
    )
    assert {key: view[key] for key in unknown} == dict.fromkeys(unknown)


def test_a_probe_without_a_result_has_neither_succeeded_nor_failed() -> None:
    health = server_view(snapshots.fresh_server())["probes"]["health"]

    assert (health["success"], health["cause"], health["requests"]) == (None, None, 0)


def test_the_reason_that_the_last_agent_left_explains_nothing_before_the_first_look() -> None:
    life = replace(snapshots.fresh_server().life, reason=Reason.UNREACHABLE)

    view = server_view(snapshots.server(life=life))

    assert (view["state"], view["reason"], view["advice"]) == ("unknown", None, None)


def test_a_failure_without_a_reason_has_the_reason_unknown() -> None:
    assert server_view(snapshots.server(life=snapshots.life(Phase.UNREADY)))["reason"] == "unknown"


@pytest.mark.parametrize(
    ("until", "expected"),
    [(None, (False, None)), (float("inf"), (True, None)), (1_750_001_900.0, (True, 1_750_001_900))],
)
def test_maintenance_without_an_end_is_told_without_infinity(until, expected) -> None:
    life = snapshots.life(maintenance_until_unix_seconds=until)

    view = server_view(snapshots.server(life=life))

    assert (view["in_maintenance"], view["maintenance_until_timestamp_seconds"]) == expected
    assert view["desired_up"] is not view["in_maintenance"]


def test_a_start_time_behind_a_load_balancer_is_not_shown() -> None:
    assert server_view(snapshots.server())["process_start_time_seconds"] == 1_749_999_000.0
    balanced = snapshots.server(life=snapshots.life(is_load_balanced=True))
    assert server_view(balanced)["process_start_time_seconds"] is None


def test_a_probe_tells_its_last_result_and_its_counts() -> None:
    failed = ProbeResult(Probe.MODELS, ProbeCause.HTTP_5XX, 0.0123456789, 500, "answered 500")
    stats = ProbeStats(4, MappingProxyType({ProbeCause.HTTP_5XX: 1}), failed, 1_750_000_000.123456)

    view = server_view(snapshots.server(probes=MappingProxyType({Probe.MODELS: stats})))

    assert view["probes"] == {
        "models": {
            "success": False,
            "cause": "http_5xx",
            "detail": "answered 500",
            "http_status": 500,
            "duration_seconds": 0.012346,
            "last_success_timestamp_seconds": 1_750_000_000.123,
            "requests": 4,
            "failures": {"http_5xx": 1},
        }
    }


def test_names_that_utf8_cannot_express_do_not_cost_the_answer() -> None:
    view = json.loads(encode(server_view(snapshots.server("a\ud800", model_name="é"))))

    assert (view["name"], view["model_name"]) == ("a?", "é")


def test_the_agent_tells_its_collectors() -> None:
    view = agent_view(snapshots.agent(is_ready=False))

    assert view["ready"] is False
    assert view["started_timestamp_seconds"] == 1_750_000_000.0
    assert view["collectors"] == [
        {"name": "probes", "up": True, "detail": ""},
        {"name": "store", "up": False, "detail": ""},
    ]


def test_a_local_server_tells_its_processes() -> None:
    server = snapshots.local_server(sights=snapshots.HIDDEN)

    view = dict(server_view(server))

    assert view["pid"] == 4021
    assert (view["unit"], view["container_id"], view["supervised"]) == ("llama.service", None, True)
    assert view["components"] == [
        {"role": "api_server", "rank": "", "pid": 4021, "up": True},
        {"role": "engine_core", "rank": "", "pid": 4050, "up": True},
        {"role": "worker", "rank": "tp0", "pid": 4100, "up": True},
        {"role": "worker", "rank": "tp1", "pid": 4101, "up": True},
    ]
    sums = ("processes", "resident_memory_bytes", "open_fds", "threads", "cpu_seconds", "orphans")
    assert [view[key] for key in sums] == [5, 13_207_024_435, 311, 245, 8_000.25, 0]
    assert view["sights"] == [
        {"kind": "network", "visible": True, "why_not": "", "fix": ""},
        {
            "kind": "log",
            "visible": False,
            "why_not": "its journal may not be read",
            "fix": "usermod -aG systemd-journal x",
        },
    ]


def test_what_is_unknown_of_processes_is_null_or_empty() -> None:
    view = dict(server_view(snapshots.server()))

    unknown = (
        *("pid", "unit", "container_id", "supervised", "processes", "resident_memory_bytes"),
        *("open_fds", "threads", "cpu_seconds", "orphans"),
    )
    assert {key: view[key] for key in unknown} == dict.fromkeys(unknown)
    assert (view["components"], view["sights"]) == ([], [])


def test_a_main_process_that_is_gone_has_no_pid_for_that_may_be_anothers() -> None:
    ended = snapshots.ended_local_server()
    assert server_view(ended)["pid"] is None
    assert server_view(replace(ended, tree=None))["pid"] is None
    assert server_view(snapshots.local_server(tree=None))["pid"] == 4021
    assert server_view(ended)["orphans"] == 2
    assert {part["up"] for part in server_view(ended)["components"]} == {False}


def test_a_server_in_a_container_and_one_that_nothing_keeps_up() -> None:
    contained = snapshots.sighting(unit=None, container_id=snapshots.CONTAINER)
    view = server_view(snapshots.local_server(sighting=contained))
    assert (view["container_id"], view["supervised"]) == (snapshots.CONTAINER, True)
    assert view["desired_up"] is True

    ad_hoc = server_view(snapshots.ad_hoc_server())
    assert (ad_hoc["supervised"], ad_hoc["desired_up"]) == (False, None)


def test_a_server_that_nobody_can_connect_to_has_no_url() -> None:
    assert server_view(snapshots.local_server(url=""))["url"] is None


def test_nothing_of_a_command_line_is_told() -> None:
    text = encode(server_view(snapshots.local_server())).decode()

    assert "secret" not in text
    assert "10.9.9.9" not in text


def test_the_agent_tells_what_it_found_and_sees() -> None:
    view = agent_view(snapshots.agent(discovered=3, sights=snapshots.HIDDEN))

    assert view["discovered"] == 3
    assert [(sight["kind"], sight["visible"]) for sight in view["sights"]] == [
        ("network", True),
        ("log", False),
    ]
    assert agent_view(snapshots.agent())["discovered"] is None


@given(snapshots.agents)
def test_any_gpus_are_valid_json_with_every_key(agent) -> None:
    view = json.loads(encode(gpus_view(agent)), parse_constant=pytest.fail)

    assert view.keys() == GpusView.__annotations__.keys()
    assert all(shown.keys() == GpuView.__annotations__.keys() for shown in view["gpus"])


def test_a_gpu_tells_who_holds_its_memory() -> None:
    gib = snapshots.GIB

    view = gpu_view(snapshots.orphaned_device())

    assert (view["gpu"], view["uuid"], view["vendor"]) == ("1", "GPU-1", "nvidia")
    assert (view["memory_total_bytes"], view["memory_free_bytes"]) == (80 * gib, 7 * gib)
    assert view["servers"] == [
        {"server": "llama", "used_bytes": 60 * gib},
        {"server": "mixtral", "used_bytes": None},
    ]
    assert view["orphans"] == [
        {
            "pid": 4301,
            "role": "worker",
            "server": "phi",
            "used_bytes": 12 * gib,
            "start_time_seconds": 1_749_992_000.0,
        }
    ]
    assert (view["orphan_memory_bytes"], view["other_memory_bytes"]) == (12 * gib, gib // 2)
    assert view["xids"] == [{"xid": 31, "count": 2, "last_timestamp_seconds": 1_750_000_089.5}]


def test_a_gpu_names_processes_that_hold_other_memory() -> None:
    strangers = (GpuStranger(4242, "python3", 12 * 2**30), GpuStranger(5, None, None))

    assert gpu_view(snapshots.device(strangers=strangers))["others"] == [
        {"pid": 4242, "name": "python3", "used_bytes": 12 * 2**30},
        {"pid": 5, "name": None, "used_bytes": None},
    ]
    assert gpu_view(snapshots.device())["others"] == []


def test_a_lost_gpu_and_one_that_tells_nothing() -> None:
    lost = gpu_view(snapshots.lost_device())
    assert lost["lost"] is True
    assert [told["xid"] for told in lost["xids"]] == [79]

    bare = dict(gpu_view(snapshots.bare_device()))
    assert bare["lost"] is False
    unknown = ("name", "memory_used_bytes", "power_watts", "orphans", "orphan_memory_bytes")
    assert {key: bare[key] for key in unknown} == dict.fromkeys(unknown)
    assert gpu_view(snapshots.device())["orphans"] == []


def test_gpus_tell_their_collector_and_what_is_seen_of_them() -> None:
    blind = Sight(SightKind.GPU_PROCESSES, False, "no host PIDs", "--pid=host")  # noqa: FBT003 - as in a page
    source = CollectorSnapshot("gpu", is_up=False, detail="NVML does not answer")
    agent = snapshots.agent(sights=(*snapshots.HIDDEN, blind))
    assert gpus_view(agent)["collector"] is None

    view = gpus_view(replace(agent, collectors=(*agent.collectors, source)))

    assert view["collector"] == {"name": "gpu", "up": False, "detail": "NVML does not answer"}
    assert [(sight["kind"], sight["fix"]) for sight in view["sights"]] == [
        ("gpu_processes", "--pid=host")
    ]
    assert view["gpus"] == []


def test_history_tells_transitions_and_launches_with_their_endings() -> None:
    at = Instant(0.0, 1_750_000_000.5)
    told = ("its log says: out of memory",)
    ending = Ending(
        1, at, ServerState.CRASHED, Reason.GPU_OOM, 2, told, 1, log=("ERROR: a prompt",)
    )
    past = History(
        (Transition(at, Phase.READY, Phase.LOST, Reason.UNREACHABLE, "refused", 1),),
        (
            LaunchRecord(Launch(2, None, at), None),
            LaunchRecord(Launch(1, 1_749_999_000.0, at, has_served=True), ending),
        ),
    )

    view = history_view(snapshots.local_server(), past, with_logs=False)

    assert view["server"] == "llama"
    assert view["transitions"] == [
        {
            "timestamp_seconds": 1_750_000_000.5,
            "from_state": "running",
            "to_state": "failed",
            "from_phase": "ready",
            "to_phase": "lost",
            "reason": "unreachable",
            "detail": "refused",
            "launch": 1,
        }
    ]
    newest, oldest = view["launches"]
    assert (newest["number"], newest["ending"]) == (2, None)
    assert oldest["ending"] is not None
    assert oldest["ending"]["evidence"] == ["its log says: out of memory"]
    assert oldest["ending"]["exit_code"] == 1
    assert "log" not in oldest["ending"]

    _, logged = history_view(snapshots.local_server(), past, with_logs=True)["launches"]
    assert logged["ending"] == {**oldest["ending"], "log": ["ERROR: a prompt"]}
