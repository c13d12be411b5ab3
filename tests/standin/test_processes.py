"""The process tree: titles, membership, and who dies with whom."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.standin.conftest import ask, wait_log
from tests.standin.test_load import RECORDINGS, normal
from tests.vllm.ways import act_on
from vllm_agent.demo.launch import NotServingError, StandIn, kill_all, title, write_checkpoint
from vllm_agent.demo.standin import process
from vllm_agent.demo.standin.endings import ENDINGS
from vllm_agent.demo.standin.options import parse

SPAWNED = "python -c from multiprocessing.spawn import spawn_main"
TRACKER = "python -c from multiprocessing.resource_tracker import main;main(7)"


def titles(server: StandIn) -> list[str]:
    """Titles of everything below the main process."""
    return [title(pid) for pid in server.pids() if pid != server.pid]


def comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def wait_gone(pid: int, seconds: float = 10.0) -> None:
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            assert select.select([pidfd], [], [], seconds)[0], f"{pid} is still there"
        finally:
            os.close(pidfd)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["VLLM::EngineCore", "VLLM::Worker"]),
        (["--workers", "0"], ["VLLM::EngineCore"]),
        (["-tp", "2"], ["VLLM::EngineCore", "VLLM::Worker_TP0", "VLLM::Worker_TP1"]),
        (
            ["--api-server-count", "2"],
            ["VLLM::APIServer_0", "VLLM::APIServer_1", "VLLM::EngineCore", "VLLM::Worker"],
        ),
        (
            ["-dp", "2"],
            [
                *("VLLM::APIServer_0", "VLLM::APIServer_1", "VLLM::DPCoordinator"),
                *("VLLM::EngineCore_DP0", "VLLM::EngineCore_DP1"),
                *("VLLM::Worker_DP0", "VLLM::Worker_DP1"),
            ],
        ),
    ],
)
def test_titles(serve, arguments, expected):
    assert titles(serve(*arguments)) == [*expected, TRACKER]


@pytest.mark.parametrize("is_kept", [False, True])
def test_a_title_takes_the_room_of_the_environment(serve, is_kept):
    """As setproctitle does; the main process has no title, and keeps both."""
    keeping = {"SPT_NOENV": "1"} if is_kept else {}
    server = serve(environment={"MARK_OF_A_LAUNCH": "llama/7", **keeping})
    titled = [pid for pid in server.pids() if title(pid).startswith("VLLM::")]
    assert len(titled) == 2
    assert marked(server.pid)
    assert [marked(pid) for pid in titled] == [is_kept] * 2


def marked(pid: int) -> bool:
    return b"MARK_OF_A_LAUNCH=llama/7" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def test_a_daemon_outlives_the_server_in_a_session_of_its_own(serve, wait_marked):
    server = serve("--daemonise", environment={"MARK_OF_A_LAUNCH": "llama/7"})
    (daemon,) = wait_marked(server)
    assert "compile_worker" in title(daemon)
    assert parent(daemon) not in server.pids()
    server.terminate()
    assert server.wait() == 0
    assert title(daemon)


@pytest.fixture
def wait_marked():
    """Waits for the marked processes of other sessions, and kills them in the end."""
    found: list[int] = []

    def wait(server: StandIn) -> list[int]:
        deadline = time.monotonic() + 10
        while not found:
            assert time.monotonic() < deadline
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit() and int(entry.name) not in server.pids():
                    with contextlib.suppress(OSError):
                        found.extend([int(entry.name)] * marked(int(entry.name)))
        return found

    yield wait
    kill_all(found)


def test_main_process_keeps_its_command_line(serve):
    server = serve("--max-model-len", "512", "--enable-something", "7", model="org/model")
    line = title(server.pid)
    assert "/bin/vllm serve org/model --host 127.0.0.1 --port" in line
    assert line.endswith("--max-model-len 512 --enable-something 7")
    assert comm(server.pid) == "vllm"


def test_names_are_cut_to_15_characters(serve):
    server = serve()
    assert comm(server.engine_pids[0]) == "VLLM::EngineCor"
    assert comm(server.worker_pids[0]) == "VLLM::Worker"


def test_helper_of_multiprocessing_is_a_program_of_its_own(serve):
    server = serve()
    tracker = server.pids(TRACKER)[0]
    arguments = Path(f"/proc/{tracker}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    assert [len(arguments), comm(tracker)] == [3, "python"]


def test_components_are_untitled_pythons_at_first(start):
    """While they import, as children that multiprocessing has spawned."""
    server = start("--load-seconds", "2", "--api-server-count", "2")
    spawned: dict[int, str] = {}
    while not server.worker_pids:
        for pid in server.pids():
            if title(pid).startswith(SPAWNED):
                spawned[pid] = comm(pid)
        time.sleep(0.005)
    titled = [*server.engine_pids, *server.worker_pids, *server.api_server_pids]
    assert spawned == dict.fromkeys(titled, "python")
    assert len(titled) == 4


def test_tree_shares_session_and_group(serve):
    server = serve()
    engine, worker = server.engine_pids[0], server.worker_pids[0]
    assert [parent(worker), parent(engine)] == [engine, server.pid]
    for pid in server.pids():
        assert (os.getsid(pid), os.getpgid(pid)) == (server.pid, server.pid)


def test_only_api_servers_hold_the_port(serve):
    """An orphaned engine must not keep the port listening."""
    server = serve()
    for pid in [*server.engine_pids, *server.worker_pids]:
        held = [str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()]
        assert server.port not in listening_ports(held)
    server.kill()
    server.wait()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=1)


def listening_ports(links: list[str]) -> set[int]:
    inodes = {link[len("socket:[") : -1] for link in links if link.startswith("socket:")}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[9] in inodes}


def test_worker_dies_with_its_engine(serve):
    server = serve()
    worker = server.worker_pids[0]
    os.kill(server.engine_pids[0], signal.SIGKILL)
    wait_gone(worker)


def test_orphaned_engine_lives_on_for_a_while(serve):
    server = serve("--orphan-lifetime", "0.4")
    engine, worker = server.engine_pids[0], server.worker_pids[0]
    server.kill()
    server.wait()
    time.sleep(0.2)
    assert server.engine_pids == [engine]
    wait_gone(engine)
    wait_gone(worker)


def test_orphaned_api_servers_serve_on_for_a_while(serve):
    server = serve("--api-server-count", "2", "--orphan-lifetime", "0.4")
    children = server.api_server_pids
    server.kill()
    server.wait()
    assert ask(server, "/health").status == 200
    for pid in children:
        wait_gone(pid)


def test_dying_takes_long_enough_to_be_seen(serve):
    """While it exits, and before it is a zombie, it has PF_EXITING (0x4) in its flags."""
    if not process.die_slowly():
        pytest.skip("no asynchronous I/O here")
    engine = serve().engine_pids[0]
    os.kill(engine, signal.SIGKILL)
    flags, state = 0, ""
    while not flags & 0x4:
        stat = Path(f"/proc/{engine}/stat").read_text().rpartition(")")[2].split()
        flags, state = int(stat[6]), stat[0]
    assert state != "Z"


def test_endings_on_request(start):
    """Every ending of the recording, done by the server to itself."""
    servers = {
        name: start("--ending", name, "--ending-after", "0.05", "--speed", "20") for name in ENDINGS
    }
    killed = {"kill_api": -9, "kill_group": -9, "api2_kill_child": 1, "api2_kill_engine": 1}
    assert {name: server.wait() for name, server in servers.items()} == (
        dict.fromkeys(ENDINGS, 0) | killed
    )


@pytest.mark.parametrize(("name", "left"), [("kill_api", 1), ("kill_group", 0)])
def test_requested_kill_reaches_its_target_only(start, name, left):
    server = start("--ending", name)
    server.wait()
    time.sleep(0.1)  # an engine needs 30 ms to die
    assert len(server.engine_pids) == left


@pytest.mark.parametrize("arguments", [[], ["--api-server-count", "2"]])
def test_exit_code_on_request(start, arguments):
    assert start("--exit-code", "3", *arguments).wait() == 3


def test_exit_code_of_a_requested_ending(start):
    assert start("--ending", "term", "--exit-code", "3").wait() == 3


def test_segv_of_a_worker_is_slow(serve):
    server = serve("--speed", "5")
    worker = server.worker_pids[0]
    os.kill(worker, signal.SIGSEGV)
    time.sleep(0.3)  # 3.2 s, five times faster
    assert server.worker_pids == [worker]
    wait_gone(worker)
    wait_log(server, "Worker proc VllmWorker-0 died unexpectedly (exit code: -11)")


def test_stop_log_is_in_order(serve):
    server = serve()
    server.terminate()
    server.wait()
    lines = [
        "[shutdown] API server: shutdown triggered",
        "[shutdown] API server: stopping engine client mode=abort timeout=0s",
        "[shutdown] Process manager: send sigterm to process EngineCore",
        "[shutdown] Process manager: force killing remaining process EngineCore",
        "[shutdown] API server: engine client stopped",
        "INFO:     Shutting down",
        "INFO:     Application shutdown complete.",
    ]
    places = [server.log_text().find(line) for line in lines]
    assert places == sorted(places)
    assert -1 not in places


def test_crash_log_says_no_shutdown(serve):
    server = serve()
    os.kill(server.engine_pids[0], signal.SIGKILL)
    server.wait()
    log = server.log_text()
    assert "MPClient: engine core exited unexpectedly" in log
    assert "AsyncLLM output_handler failed." in log
    assert "shutdown triggered" not in log


@pytest.mark.parametrize(
    ("name", "recording"),
    [
        ("api2_term", "api2-normal-stop-sigterm.log"),
        ("api2_kill_child", "api2-api-server-killed.log"),
        ("api2_kill_engine", "api2-engine-core-killed.log"),
    ],
)
def test_several_api_servers_end_with_the_recorded_words(serve, name, recording):
    """The main process says the same in the same order, and nobody says anything else."""
    server = serve("--api-server-count", "2")
    loaded = len(server.log_text())
    act_on(server, name)
    server.wait()
    recorded = [normal(line) for line in (RECORDINGS / recording).read_text().splitlines()]
    said = [normal(line) for line in server.log_text()[loaded:].splitlines()]
    # Leaks differ from run to run, and what follows their last line is glued to it.
    leaks = ("refleaks", "resource_tracker")
    strange = [line for line in said if line not in recorded]
    assert [line for line in strange if not any(word in line for word in leaks)] == []
    ending = ("[shutdown]", "Exception occurred", "Waiting up to")
    by_main = [
        [line for line in lines if "(MainProcess" in line and any(word in line for word in ending)]
        for lines in (said, recorded)
    ]
    assert by_main[0] == by_main[1]


def test_close_leaves_nothing_behind():
    server = StandIn.start("--api-server-count", "2").wait_serving()
    pids = server.pids()
    server.kill()
    server.wait()
    server.close()
    server.close()
    assert len(pids) == 6
    assert server.pids() == []


def test_a_forgotten_server_ends(start):
    assert start(environment={"VLLM_STANDIN_LIFETIME": "1"}).wait() == -signal.SIGALRM


async def test_launcher_in_an_event_loop():
    with StandIn.start("--speed", "10") as server:
        await server.serving()
        server.terminate()
        assert await server.exited() == 0
        assert await server.exited() == 0


async def test_launcher_says_why_it_does_not_serve():
    with (
        StandIn.start("--fail-load", "context_too_long") as server,
        pytest.raises(NotServingError, match="User-specified max_model_len"),
    ):
        await server.serving()


async def test_launcher_gives_up_waiting():
    with StandIn.start("--hang-load") as server:
        with pytest.raises(NotServingError, match="not listening in time"):
            await server.serving(timeout=0.2)
        with pytest.raises(TimeoutError):
            await server.exited(timeout=0.1)


def test_log_file(tmp_path):
    with StandIn.start(log=tmp_path / "log") as server:
        server.wait_serving()
    assert "Application startup complete." in (tmp_path / "log").read_text()


def test_write_checkpoint(tmp_path):
    folder = write_checkpoint(tmp_path / "m", shards=2, shard_bytes=10)
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}
    assert sizes == {
        "model-00001-of-00002.safetensors": 10,
        "model-00002-of-00002.safetensors": 10,
    }


@pytest.mark.parametrize(
    ("line", "model", "names"),
    [
        ("serve org/m --port 1", "org/m", ("org/m",)),
        ("org/m --served-model-name a b --port 1", "org/m", ("a", "b")),
        ("--model org/m --enforce-eager", "org/m", ("org/m",)),
        ("--max-model-len 5 --served_model_name=a", "Qwen/Qwen3-0.6B", ("a",)),
    ],
)
def test_command_lines_of_vllm(line, model, names):
    options = parse(line.split())
    assert (options.model, options.served_model_names) == (model, names)


@pytest.mark.parametrize("line", ["--speed 0", "--hostile loud", "--ending x", "--ssl-keyfile k"])
def test_wrong_values_are_usage_errors(line, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(line.split())
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_module_runs_as_a_program():
    command = [sys.executable, "-m", "vllm_agent.demo.server", "--help"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert text.startswith("usage: python -m vllm_agent.demo.server [serve] [MODEL] [options]")
