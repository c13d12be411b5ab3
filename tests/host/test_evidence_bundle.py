from __future__ import annotations

import contextlib
import json
import os
import resource
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.expose.snapshots import (
    MAIN,
    NOW,
    ended_local_server,
    life,
    load,
    loading_life,
    loading_server,
    local_server,
    servers,
)
from vllm_agent.host.evidence_bundle import (
    FILE_MODE,
    MAX_BUNDLE_BYTES,
    MAX_BUNDLES,
    MAX_ENTRIES,
    EvidenceBundles,
)
from vllm_agent.host.vllm_argv import parse_command
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.server_life import Ending
from vllm_agent.lifecycle.states import ServerState
from vllm_agent.observations import (
    Component,
    ComponentRole,
    EngineFacts,
    Instant,
    MetricsFacts,
    Orphan,
    ProcessId,
    ProcessTree,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from vllm_agent.snapshot import ServerSnapshot

CANARY = "CanarySecret0123456789abcdefABCDEF"


def ending(number: int = 1, **changes: Any) -> Ending:
    ended = Ending(
        launch_number=number,
        at=NOW,
        state=ServerState.CRASHED,
        reason=Reason.ENGINE_DIED,
        rule=4,
        evidence=("an EngineCore was gone when the port closed",),
        exit_code=1,
        log=("ERROR engine dead", "RuntimeError: boom"),
    )
    return replace(ended, **changes)


def kept(tmp_path: Path, server: ServerSnapshot, ended: Ending, **more: Any) -> Any:
    path = EvidenceBundles(tmp_path).keep(server, ended, **more)
    return json.loads(Path(path).read_text())


def folder(tmp_path: Path) -> Path:
    return tmp_path / "evidence" / "llama"


def test_it_tells_all_that_is_known_of_an_end(tmp_path):
    server = loading_server()
    launch = server.life.launch
    assert launch is not None
    tree = ProcessTree(
        process=MAIN,
        is_main_alive=False,
        components=(Component(ComponentRole.ENGINE_CORE, "dp0", 77, is_alive=False),),
        pids=(78,),
        processes=1,
        resident_bytes=2**30,
        orphans=(Orphan(ProcessId("b00d", 78, 9), ComponentRole.WORKER, "tp0", 1_750_000_000.0),),
    )
    ended = ending(launch.number, signal=9, exit_code=None, holder="python (PID 5)")
    told = kept(
        tmp_path,
        replace(server, tree=tree),
        ended,
        gpu_holders="orphan of llama (PID 78): 20.1 GiB of GPU 0",
        log_file="/var/lib/vllm-agent/logs/llama/1.log",
        metrics_first=MetricsFacts(engine=EngineFacts(10, 100, None, 1, 0, 0.25)),
        metrics_last=MetricsFacts(engine=EngineFacts(25, 160, 7, 3, 2, 0.5)),
    )
    assert told["server"] == {
        "name": "llama",
        "mode": server.mode,
        "url": server.url,
        "model": server.model_name,
        "version": server.version,
    }
    assert told["ending"] == {
        "at": "2025-06-15T15:08:20.500+00:00",
        "state": "crashed",
        "reason": "engine_died",
        "rule": 4,
        "exit_code": None,
        "signal": 9,
        "holder": "python (PID 5)",
        "evidence": ["an EngineCore was gone when the port closed"],
    }
    assert told["launch"]["number"] == launch.number
    assert told["launch"]["pid"] == MAIN.pid
    assert told["launch"]["processes"] == {
        "is_main_alive": False,
        "components": [{"role": "engine_core", "rank": "dp0", "pid": 77, "is_alive": False}],
        "pids_alive": [78],
        "processes": 1,
        "threads": None,
        "resident_bytes": 2**30,
        "open_fds": None,
        "cpu_seconds": None,
        "orphans": [
            {"pid": 78, "role": "worker", "rank": "tp0", "started": "2025-06-15T15:06:40.000+00:00"}
        ],
    }
    assert told["metrics"]["first"]["prompt_tokens"] == 100
    assert told["metrics"]["last"]["kv_cache_usage_ratio"] == 0.5
    # Only what counts up has a difference, and only where both are known.
    assert told["metrics"]["difference"] == {"iterations": 15, "prompt_tokens": 60}
    assert told["gpu_holders"] == "orphan of llama (PID 78): 20.1 GiB of GPU 0"
    assert told["log_file"] == "/var/lib/vllm-agent/logs/llama/1.log"
    assert told["log"] == ["ERROR engine dead", "RuntimeError: boom"]


def test_it_tells_how_far_a_load_came(tmp_path):
    server = loading_server()
    launch = server.life.launch
    assert launch is not None
    told = kept(tmp_path, server, ending(launch.number))["launch"]
    assert told["has_served"] is False
    load = told["load"]
    assert load["last_stage"] == "load_weights"
    assert load["weights"]["shards"] > 0
    assert load["stage_seconds"]


@pytest.mark.parametrize(
    ("changes", "is_stalled"),
    [
        ({"is_stalled": False}, False),
        ({"is_stalled": True}, True),
        ({"is_stalled": None}, None),
        ({"is_stalled": False, "has_ended_stalled": True}, True),
    ],
)
def test_it_tells_whether_a_load_had_stalled(tmp_path, changes, is_stalled):
    server = loading_server(life=loading_life(load=load(**changes)))
    assert kept(tmp_path, server, ending(2))["launch"]["load"]["is_stalled"] is is_stalled


def test_what_is_unknown_is_null(tmp_path):
    told = kept(tmp_path, local_server(tree=None), ending())
    assert told["metrics"] == {"first": None, "last": None, "difference": {}}
    assert told["launch"]["processes"] is None
    assert told["launch"]["load"] is None
    first = MetricsFacts(engine=EngineFacts(1, 2, 3))
    told = kept(
        tmp_path, local_server(), ending(), metrics_first=first, metrics_last=MetricsFacts()
    )
    assert told["metrics"]["last"] is None
    assert told["metrics"]["difference"] == {}


def test_a_newer_launch_lends_nothing_to_the_one_that_ended(tmp_path):
    server = local_server()
    assert server.life.launch is not None
    earlier = server.life.launch.number - 1
    assert kept(tmp_path, server, ending(earlier))["launch"] == {"number": earlier}
    other = replace(MAIN, start_ticks=MAIN.start_ticks + 1)
    strange = replace(server, tree=ProcessTree(process=other, is_main_alive=True))
    told = kept(tmp_path, strange, ending(server.life.launch.number))
    assert told["launch"]["processes"] is None
    told = kept(tmp_path, loading_server(life=loading_life(load=load(process=other))), ending(2))
    assert told["launch"]["load"] is None


def test_a_person_can_read_the_file_and_others_may_not(tmp_path):
    before = os.umask(0o077)
    try:
        path = Path(EvidenceBundles(tmp_path).keep(local_server(), ending(3)))
    finally:
        os.umask(before)
    assert path == folder(tmp_path) / "launch-3-20250615T150820Z.json"
    assert path.stat().st_mode & 0o777 == FILE_MODE
    text = path.read_text()
    assert '  "ending": {\n    "at": "2025-06-15' in text
    assert text.endswith("}\n")


def test_the_newest_are_kept_of_each_server_whatever_their_numbers(tmp_path):
    bundles = EvidenceBundles(tmp_path)
    other = Path(bundles.keep(local_server("other"), ending()))
    # As after the loss of the history: the numbers begin anew.
    numbers = [*range(50, 50 + MAX_BUNDLES), 1, 2]
    for age, number in enumerate(numbers):
        path = bundles.keep(local_server(), ending(number))
        os.utime(path, (1_000_000 + age, 1_000_000 + age))
    names = {path.name.split("-")[1] for path in folder(tmp_path).iterdir()}
    assert names == {str(number) for number in numbers[-MAX_BUNDLES:]}
    assert other.exists()


def test_the_one_that_comes_stays_though_the_clock_went_back(tmp_path):
    bundles = EvidenceBundles(tmp_path)
    for number in range(MAX_BUNDLES):
        path = bundles.keep(local_server(), ending(number))
        os.utime(path, (4_000_000_000, 4_000_000_000))
    newest = Path(bundles.keep(local_server(), ending(MAX_BUNDLES)))
    assert newest.exists()
    assert len(list(folder(tmp_path).iterdir())) == MAX_BUNDLES


def test_an_end_of_which_more_is_known_replaces_its_file(tmp_path):
    bundles = EvidenceBundles(tmp_path)
    for number in range(MAX_BUNDLES):
        first = bundles.keep(local_server(), ending(number))
    again = bundles.keep(local_server(), ending(MAX_BUNDLES - 1, reason=Reason.HOST_OOM))
    assert again == first
    assert json.loads(Path(again).read_text())["ending"]["reason"] == "host_oom"
    assert len(list(folder(tmp_path).iterdir())) == MAX_BUNDLES


def test_what_is_no_bundle_is_left_alone_but_not_what_a_killed_writer_left(tmp_path):
    bundles = EvidenceBundles(tmp_path)
    bundles.keep(local_server(), ending())
    note, partial = folder(tmp_path) / "note.txt", folder(tmp_path) / "launch-9-x.json.partial"
    note.write_text("of the operator")
    partial.write_text('{"serv')
    (folder(tmp_path) / "a-folder.partial").mkdir()
    # The one that is to be written may have been begun, too.
    (folder(tmp_path) / "launch-2-20250615T150820Z.json.partial").write_text("{")
    bundles.keep(local_server(), ending(2))
    assert sorted(path.name for path in folder(tmp_path).iterdir()) == [
        "a-folder.partial",
        "launch-1-20250615T150820Z.json",
        "launch-2-20250615T150820Z.json",
        "note.txt",
    ]


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process may become longer than a block, as on a disk that has one left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_and_leaves_no_half_of_a_file(tmp_path):
    with full_disk(), pytest.raises(OSError, match="large"):
        EvidenceBundles(tmp_path).keep(ended_local_server("llama"), ending())
    assert list(folder(tmp_path).iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "evidence").write_text("in the way")
    with pytest.raises(OSError, match="evidence"):
        EvidenceBundles(tmp_path).keep(local_server(), ending())


def test_no_command_line_and_no_environment_is_in_it(tmp_path):
    command = parse_command(
        (
            "vllm",
            "serve",
            f"/models/{CANARY}",
            "--served-model-name",
            CANARY,
            "--api-key",
            CANARY,
            "--download-dir",
            f"/{CANARY}",
            "--uds",
            f"/run/{CANARY}",
        ),
        read_config=lambda path: {},
    )
    server = local_server()
    assert server.sighting is not None
    server = replace(server, sighting=replace(server.sighting, command=command))
    shapes = (
        f"--api-key {CANARY}",
        f"HF_TOKEN=hf_{CANARY}",
        f"https://user:{CANARY}@hub.example/model",
        f"Authorization: Bearer {CANARY}",
    )
    ended = ending(evidence=shapes, log=shapes, holder=shapes[0])
    path = EvidenceBundles(tmp_path).keep(
        server, ended, gpu_holders=shapes[0], log_file=f"/logs?token={CANARY}"
    )
    text = Path(path).read_text()
    assert CANARY not in text
    assert text.count("[redacted]") == 2 * len(shapes) + 3


def test_it_is_bounded_whatever_a_launch_did(tmp_path):
    server = loading_server()
    launch = server.life.launch
    assert launch is not None
    longest = "\U0001f600" * 100_000
    many = 10 * MAX_ENTRIES
    tree = ProcessTree(
        process=MAIN,
        is_main_alive=False,
        components=(Component(ComponentRole.WORKER, "tp0" * 40, 2**22, is_alive=False),) * many,
        pids=(2**22,) * many,
        orphans=(Orphan(MAIN, ComponentRole.WORKER, "tp0" * 40, 1e9),) * many,
    )
    lines = tuple(longest for _ in range(many))
    path = EvidenceBundles(tmp_path).keep(
        replace(server, tree=tree, model_name=longest, version=longest, url=longest),
        ending(launch.number, evidence=lines, log=(*lines, "the last"), holder=longest),
        gpu_holders=longest,
        log_file=longest,
    )
    assert MAX_BUNDLE_BYTES / 2 < Path(path).stat().st_size < MAX_BUNDLE_BYTES
    told = json.loads(Path(path).read_text())
    assert told["log"][-1] == "the last"
    assert len(told["launch"]["processes"]["pids_alive"]) == MAX_ENTRIES


@pytest.mark.parametrize("unix_seconds", [1e300, -1e300, float("inf"), float("nan")])
def test_a_clock_that_says_nonsense_costs_only_the_time(tmp_path, unix_seconds):
    told = kept(tmp_path, local_server(), ending(at=Instant(1.0, unix_seconds)))
    assert told["ending"]["at"] is None
    assert (folder(tmp_path) / "launch-1-unknown.json").exists()


@given(servers, st.text(), st.lists(st.text(), max_size=3))
def test_any_server_gives_a_file_that_harms_no_terminal(tmp_path_factory, server, text, lines):
    state_dir = tmp_path_factory.mktemp("state")
    ended = ending(evidence=tuple(lines), log=tuple(lines), holder=text)
    launch = server.life.launch or life().launch
    assert launch is not None
    path = EvidenceBundles(state_dir).keep(
        replace(server, name="llama"),
        replace(ended, launch_number=launch.number),
        gpu_holders=text,
        metrics_last=MetricsFacts(engine=EngineFacts(float("inf"), 1.0)),
    )
    content = Path(path).read_text()
    json.loads(content, parse_constant=pytest.fail)
    assert not any(ord(character) < 0x20 and character != "\n" for character in content)
    assert "\x9b" not in content
