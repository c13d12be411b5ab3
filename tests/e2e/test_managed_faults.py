"""What may go wrong around managed servers: each time no orphan, the right state, right counters.

The agents of the kill points run beside each other: they wait nearly all of the time.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.agent_process import wait_until
from tests.e2e.managed_scene import ROOT, STAND_IN, Managed, ManagedAgent, complete, wait_marked
from tests.fake_nvml import GIB, FakeDevice, FakeDriver, FakeMemory, build
from vllm_agent.demo.launch import title, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AT_ONCE = 6
NOBODY = 65534
AS_NOBODY = (
    "setpriv",
    f"--reuid={NOBODY}",
    f"--regid={NOBODY}",
    "--clear-groups",
    "--inh-caps=+dac_override",
    "--ambient-caps=+dac_override",
)
"""Another user, whose number of processes is limited as root's is not, and who reads every file."""

FULL, ROOMY = "1m", "1g"
MANY_CRASHES = 100


FAULTS: dict[str, Callable[[Path, Path], None]] = {}


def fault(run: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
    """Makes it one of those that run beside each other, with a folder of its own and a model."""
    FAULTS[run.__name__] = run
    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny", shards=1)


def crashes(view: dict[str, Any]) -> dict[str, int]:
    return {reason: count for reason, count in view["crashes"].items() if count}


def in_phase(phase: str) -> Callable[[ManagedAgent, str], None]:
    """Waits until the API shows this phase."""

    def wait(agent: ManagedAgent, name: str) -> None:
        agent.wait_view(name, f"it is {phase}", {"managed.phase": phase})

    return wait


def spawned(_agent: ManagedAgent, name: str) -> None:
    """Waits for its process, which the agent may not have written down yet."""
    wait_marked(name)


def in_background(agent: ManagedAgent, name: str, what: str) -> None:
    """Asks, and does not wait for the answer, which may never come."""

    def ask() -> None:
        with contextlib.suppress(OSError, ValueError):
            agent.ask(name, what)

    threading.Thread(target=ask, daemon=True).start()


def stopping(agent: ManagedAgent, name: str) -> None:
    agent.wait_running(name)
    in_background(agent, name, "stop")
    in_phase("terminating")(agent, name)


def main_killed(agent: ManagedAgent, name: str) -> None:
    """Waits until the main process is gone by SIGKILL, and the rest is next."""
    agent.wait_running(name)
    gone = os.pidfd_open(agent.main_pid(name))
    in_background(agent, name, "stop")
    try:
        assert select.select([gone], [], [], 20)[0]
    finally:
        os.close(gone)


def restarting(agent: ManagedAgent, name: str) -> None:
    agent.wait_running(name)
    in_background(agent, name, "restart")
    in_phase("terminating")(agent, name)


def crashed(agent: ManagedAgent, name: str) -> None:
    agent.wait_running(name)
    agent.kill_part(name)
    in_phase("backoff")(agent, name)


@dataclass(frozen=True)
class KillPoint:
    """When an agent is killed, and what the next one makes of the server."""

    wait: Callable[[ManagedAgent, str], None]
    is_up: bool = True
    launches: frozenset[int] = frozenset({1})
    crashes: dict[str, int] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    stop_timeout: str = "20s"


DEAF = ("--ignore-sigterm",)
KILL_POINTS = {
    "spawned": KillPoint(spawned),
    "loading": KillPoint(in_phase("loading"), arguments=("--load-seconds", "2")),
    "stopping": KillPoint(stopping, is_up=False, arguments=DEAF, stop_timeout="3s"),
    "killing": KillPoint(main_killed, is_up=False, arguments=DEAF, stop_timeout="1s"),
    "restarting": KillPoint(
        restarting, launches=frozenset({1, 2}), arguments=DEAF, stop_timeout="3s"
    ),
    "crashed": KillPoint(crashed, launches=frozenset({2}), crashes={"engine_died": 1}),
}


def kill_and_go_on(point: KillPoint, name: str, folder: Path, model: Path) -> None:
    """An agent is killed at that point, and the next one goes on."""
    server = Managed(
        name=name, model=model, arguments=point.arguments, stop_timeout=point.stop_timeout
    )
    with ManagedAgent(folder, server) as agent:
        point.wait(agent, name)
        agent.kill()
        agent.start()
        if point.is_up:
            view = agent.wait_running(name)
            assert len(agent.launches_alive(name)) == 1
            assert complete(server.port, str(model))
            assert agent.main_pid(name)
        else:
            view = agent.wait_view(name, "it is stopped", {"state": "stopped"})
            agent.wait_gone(name)
            assert view["managed"]["goal"] == "down"
        assert view["launches"] in point.launches
        assert crashes(view) == point.crashes
        assert agent.sample("server_restart_limit_reached", server=name) == 0
        agent.done(name, "stop")
        assert agent.pids(name) == []


for _name, _point in KILL_POINTS.items():
    FAULTS[f"an_agent_is_killed-{_name}"] = partial(kill_and_go_on, _point, f"killed-{_name}")


def driver_of(folder: Path) -> FakeDriver:
    if shutil.which("cc") is None:
        pytest.skip("cc is not installed: run 'make deps'")
    return FakeDriver(build(folder), folder / "nvml_state")


@fault
def an_agent_that_is_killed_before_anything_is_started(folder: Path, model: Path) -> None:
    """It waits for GPU memory that another process has; the next agent does, too, and has it."""
    name = "killed-preparing"
    gpu = FakeDevice(uuid="GPU-1", memory=FakeMemory(used_bytes=70 * GIB))
    fake_driver = driver_of(folder)
    fake_driver.show(gpu)
    server = Managed(name=name, model=model)
    with ManagedAgent(folder, server, environ=fake_driver.environment()) as agent:
        in_phase("preparing")(agent, name)
        agent.kill()
        assert agent.pids(name) == []
        agent.start()
        in_phase("preparing")(agent, name)
        assert agent.pids(name) == []
        fake_driver.change(0, replace(gpu, memory=FakeMemory()))
        view = agent.wait_running(name)
        assert (view["launches"], crashes(view)) == (1, {})
        assert view["restart_budget"]["remaining"] == 3


@fault
def a_child_that_became_a_daemon_goes_with_its_server(folder: Path, model: Path) -> None:
    name = "daemon"
    server = Managed(name=name, model=model, arguments=("--daemonise",))
    with ManagedAgent(folder, server) as agent:
        agent.wait_running(name)
        (daemon,) = [pid for pid in agent.pids(name) if "compile_worker" in title(pid)]
        assert os.getsid(daemon) != agent.main_pid(name)
        agent.kill_part(name)
        agent.wait_running(name, launches=2)
        assert daemon not in agent.pids(name)
        assert len(agent.launches_alive(name)) == 1
        view = agent.done(name, "stop")
        assert agent.pids(name) == []
        assert (view["state"], crashes(view)) == ("stopped", {"engine_died": 1})


@fault
def a_daemon_that_an_agent_before_left_is_cleared(folder: Path, model: Path) -> None:
    """Its main process ended with no agent there: only the marker tells whose it is."""
    name = "daemon-left"
    server = Managed(name=name, model=model, arguments=("--daemonise",))
    with ManagedAgent(folder, server) as agent:
        agent.wait_running(name)
        left = agent.pids(name)
        agent.kill()
        os.kill(agent.main_pid(name), signal.SIGKILL)
        agent.start()
        view = agent.wait_running(name, launches=2)
        assert not {*left} & {*agent.pids(name)}
        assert view["restarts"]["operator"] == 0


@fault
def a_disk_without_room_for_its_log(folder: Path, model: Path) -> None:
    name = "full"
    logs = folder / "state" / "logs"
    logs.mkdir(parents=True)
    server = Managed(name=name, model=model, restart={"max_restarts": 50})
    with disk(logs), ManagedAgent(folder, server) as agent:
        view = agent.wait_view(name, "it is refused", {"reason": "disk_full"})
        assert (view["state"], view["launches"]) == ("failed", 0)
        assert agent.pids(name) == []
        mount(logs, f"remount,size={ROOMY}")
        view = agent.wait_running(name, launches=1)
        assert crashes(view) == {}
        fill(logs)
        # It serves on, and its end is judged without a log, too.
        assert complete(agent.entries[name].port, str(model))
        os.kill(agent.main_pid(name), signal.SIGKILL)
        view = agent.wait_view(name, "it is refused", {"reason": "disk_full"})
        assert crashes(view) == {"signal": 1}
        assert agent.pids(name) == []
        mount(logs, f"remount,size={ROOMY}")
        agent.done(name, "start")
        agent.wait_running(name, launches=2)
        agent.done(name, "stop")
        assert agent.pids(name) == []


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[None]:
    """A disk of its own there, a full one."""
    mount(folder, f"size={FULL}")
    try:
        fill(folder)
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> None:
    """Takes what is left of the disk, which is made small before."""
    filler = folder / "filler"
    filler.unlink(missing_ok=True)
    mount(folder, f"remount,size={FULL}")
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass


def mount(folder: Path, options: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here: that needs root")


@fault
def a_fork_that_fails(folder: Path, model: Path) -> None:
    name = "forks"
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed: run 'make deps'")
    # Limits of the number of processes do not bind root.
    is_root = os.geteuid() == 0
    server = Managed(name=name, model=model, restart={"max_restarts": 50})
    if is_root:
        # What is below the home of root needs the rights that env has here.
        server = replace(server, user=None, command=("/usr/bin/env", *server.command))
    with ManagedAgent(folder, server, prefix=AS_NOBODY if is_root else ()) as agent:
        agent.wait_running(name)
        before = agent.pids(name)
        limit_processes(agent, 1)
        os.kill(agent.main_pid(name), signal.SIGKILL)
        view = agent.wait_view(name, "it is crashed", {"state": "crashed"})
        assert (view["launches"], crashes(view)) == (1, {"signal": 1})
        # Neither a thread nor a process can be started: what is left is cleared when one can.
        limit_processes(agent, resource.getrlimit(resource.RLIMIT_NPROC)[0])
        view = agent.wait_running(name, launches=2)
        assert not {*before} & {*agent.pids(name)}
        assert crashes(view) == {"signal": 1}
        agent.done(name, "stop")
        assert agent.pids(name) == []


def limit_processes(agent: ManagedAgent, limit: int) -> None:
    """Sets the soft limit of the agent; nobody else's may be set without more rights."""
    assert agent.process is not None
    command = ["prlimit", "--pid", str(agent.process.pid), f"--nproc={limit}:"]
    prefix = AS_NOBODY if os.geteuid() == 0 else ()
    subprocess.run([*prefix, *command], check=True)


@fault
def a_program_that_is_removed_between_restarts(folder: Path, model: Path) -> None:
    name = "removed"
    program = folder / "bin" / "vllm"
    program.parent.mkdir()

    def install() -> None:
        words = shlex.join([sys.executable, str(STAND_IN)])
        program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        program.chmod(0o755)

    install()
    server = Managed(
        name=name,
        model=model,
        command=("vllm", "serve"),
        environ={"PATH": f"{program.parent}:{os.environ['PATH']}"},
        restart={"max_restarts": 50},
    )
    with ManagedAgent(folder, server) as agent:
        agent.wait_running(name)
        program.unlink()
        agent.kill_part(name)
        view = agent.wait_view(name, "it is refused", {"state": "failed"})
        assert view["reason"] == "spawn_failed"
        assert "vllm" in view["detail"]
        assert view["advice"]
        assert (view["launches"], crashes(view)) == (1, {"engine_died": 1})
        assert agent.pids(name) == []
        install()
        view = agent.wait_running(name, launches=2)
        assert crashes(view) == {"engine_died": 1}


@fault
def a_port_that_another_process_has(folder: Path, model: Path) -> None:
    name = "taken"
    server = Managed(name=name, model=model, restart={"max_restarts": 50})
    listen = (
        "import socket, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1])));"
        "print('listening', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", listen, str(server.port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder, ManagedAgent(folder, server) as agent:
        view = agent.wait_view(name, "it is refused", {"reason": "port_in_use"})
        assert (view["state"], view["launches"]) == ("failed", 0)
        assert str(holder.pid) in view["advice"]
        assert holder.poll() is None
        holder.kill()
        holder.wait()
        agent.wait_running(name, launches=1)


@fault
def two_agents_on_one_state_directory(folder: Path, model: Path) -> None:
    name = "contested"
    server = Managed(name=name, model=model)
    with ManagedAgent(folder, server) as agent:
        agent.wait_running(name)
        before = agent.left()
        other = subprocess.run(
            [
                *(sys.executable, "-m", "vllm_agent", "run", "--web.listen-address=127.0.0.1:0"),
                f"--config.file={agent.config_path}",
                f"--state.dir={agent.state_dir}",
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=ROOT,
        )
        assert other.returncode != 0
        assert "in use by another vllm-agent" in other.stdout + other.stderr
        assert agent.process is not None
        assert str(agent.process.pid) in other.stdout + other.stderr
        assert agent.left() == before
        assert agent.server(name)["launches"] == 1


@fault
def an_agent_that_ends_at_once_leaves_no_start_behind(folder: Path, model: Path) -> None:
    """SIGTERM right after its start, at moments from before the first fork to after it."""
    name = "hurried"
    server = Managed(name=name, model=model, stop_on_exit=True)
    agent = ManagedAgent(folder, server)
    try:
        for delay_seconds in (0.3, 0.6, 0.9, 1.2):
            agent.start(wait_ready=False)
            time.sleep(delay_seconds)
            agent.stop()
            assert agent.pids(name) == [], delay_seconds
    finally:
        agent.kill_what_is_left()


@pytest.fixture(scope="module")
def faults(
    tmp_path_factory: pytest.TempPathFactory, model: Path
) -> Iterator[dict[str, Future[None]]]:
    """What comes of each; so many at once."""
    folder = tmp_path_factory.mktemp("faults")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = {}
        for number, (name, run) in enumerate(FAULTS.items()):
            # The path of a socket has 107 characters at most.
            (folder / str(number)).mkdir()
            futures[name] = pool.submit(run, folder / str(number), model)
        yield futures
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault(name: str, faults: dict[str, Future[None]]) -> None:
    faults[name].result()


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_very_many_crashes_in_a_row(tmp_path: Path, model: Path) -> None:
    """Each is counted, none leaves anything behind, and the limit holds."""
    name = "crashes"
    left = tmp_path / "left"
    left.write_text(str(10 * MANY_CRASHES))
    server = Managed(
        name=name,
        model=model,
        arguments=("--fail-load", "kv_cache_too_small", "--failures-left", str(left)),
        restart={"max_restarts": MANY_CRASHES - 1},
    )
    with ManagedAgent(tmp_path, server, program="tests.e2e.hasty_agent") as agent:
        assert agent.process is not None
        wait_until(
            lambda: agent.server(name)["managed"]["phase"] == "gave_up", "it is given up", 500
        )
        view = agent.server(name)
        assert (view["launches"], crashes(view)) == (
            MANY_CRASHES,
            {"kv_cache_too_small": MANY_CRASHES},
        )
        assert (view["state"], view["reason"]) == ("failed", "kv_cache_too_small")
        assert agent.sample("server_restart_limit_reached", server=name) == 1
        assert agent.pids(name) == []
        assert len(agent.launch_logs(name)) == 10
        descriptors = Path(f"/proc/{agent.process.pid}/fd")
        assert len(list(descriptors.iterdir())) < 60
        left.write_text("0")
        agent.done(name, "start")
        agent.wait_running(name, launches=MANY_CRASHES + 1)
