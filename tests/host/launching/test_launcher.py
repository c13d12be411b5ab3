"""A managed server started, found again, signalled and cleared: real processes, and every fault."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.expose.snapshots import NOW, local_server
from tests.host.launching.end_scene import (
    SLEEP,
    WAIT_SECONDS,
    Scene,
    eventually,
    is_writable,
    wait_ended,
)
from tests.host.launching.plans import own_name
from vllm_agent.config.model import ServerConfig
from vllm_agent.config.url import parse_server_url
from vllm_agent.host.clock import now
from vllm_agent.host.launching import adoption, launcher, starting
from vllm_agent.host.launching.killing import kill_all
from vllm_agent.host.launching.launch_cgroup import LaunchCgroup
from vllm_agent.host.launching.launch_files import LaunchFiles
from vllm_agent.host.launching.launcher import EVIDENCE_DROPPED, LOG_DROPPED, ManagedLauncher
from vllm_agent.host.launching.plan import MARKER
from vllm_agent.host.launching.refusal import Refusal
from vllm_agent.host.launching.remains import CannotLook, Mark, Remains
from vllm_agent.host.launching.spawn import spawn
from vllm_agent.host.launching.starting import Starter
from vllm_agent.host.local_host import LocalHost
from vllm_agent.host.model_environment import read_environ
from vllm_agent.lifecycle.events import Cleared, EvidenceKept, StartRefused
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.server_life import Ending
from vllm_agent.lifecycle.states import ServerState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from vllm_agent.host.launching.spawn import Child
    from vllm_agent.lifecycle.events import Event
    from vllm_agent.observations import ProcessId, Sighting

# Its arguments are those of an installed vLLM.
VLLM = f"""#!{sys.executable} -S
import os, time
os.system(os.environ.get("SCRIPT", ""))
print("loading", flush=True)
time.sleep(600)
"""
WRAPPER = f"""#!/bin/sh
{SLEEP} & wait
"""
find_group = LaunchCgroup.found
DAEMON = '(setsid sh -c "$SAY" > /dev/null &)'


class Agent:
    """One agent's launcher of a server, and what it told."""

    def __init__(self, scene: Scene, folder: Path, **managed: Any) -> None:
        self.scene = scene
        self.state_dir = folder / "state"
        self.state_dir.mkdir(exist_ok=True)
        self.program = folder / "vllm"
        self.write(self.program, VLLM)
        environ = {"TOKEN": f"END_SCENE={scene.token}", "SAY": f"exec {SLEEP}"}
        managed.setdefault("command", [str(self.program), "serve"])
        managed["env"] = environ | managed.get("env", {})
        self.port = free_port()
        self.server = ServerConfig.model_validate(
            {
                "name": "llama",
                "mode": "managed",
                "model": "org/name",
                "url": f"http://127.0.0.1:{self.port}",
                "managed": managed | {"user": own_name()},
            }
        )
        self.dropped: list[str] = []
        self.events: list[Event] = []
        self.launches: list[Sighting] = []
        self.processes: list[ProcessId] = []
        self.heard = asyncio.Event()
        self.launcher = self.made()

    @staticmethod
    def write(path: Path, text: str) -> None:
        path.write_text(text, encoding="ascii")
        path.chmod(0o755)

    def made(self) -> ManagedLauncher:
        return ManagedLauncher(
            self.server,
            host=LocalHost(self.scene.proc, list, now, self.dropped.append),
            state_dir=self.state_dir,
            launched=self.launched,
            agent_environ={"PATH": os.environ["PATH"]},
        )

    def replaced(self) -> ManagedLauncher:
        """As after a restart of the agent."""
        self.launcher.close()
        self.launcher = self.made()
        return self.launcher

    def launched(self, sighting: Sighting) -> None:
        self.launches.append(sighting)
        self.processes.append(sighting.process)
        self.heard.set()

    def tell(self, event: Event) -> None:
        self.events.append(event)
        self.heard.set()

    async def until(self, is_true: Callable[[], object]) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not is_true():
                self.heard.clear()
                await self.heard.wait()

    async def answer(self) -> Event:
        """The next event."""
        await self.until(lambda: self.events)
        return self.events.pop(0)

    async def refusal(self, attempt: int = 1) -> StartRefused:
        self.launcher.start(attempt, None, self.tell)
        refused = await self.answer()
        assert isinstance(refused, StartRefused)
        assert refused.attempt == attempt
        return refused

    async def launch(self) -> Sighting:
        """Starts it, and waits until it says that it loads."""
        self.launcher.start(1, None, self.tell)
        await self.until(lambda: self.launches or self.events)
        assert not self.events
        log = self.logs()[-1]
        await eventually(lambda: b"loading" in log.read_bytes())
        return self.launches.pop()

    async def clear(self, process: ProcessId) -> None:
        self.launcher.kill_all(process, self.tell)
        assert await self.answer() == Cleared(process)

    def logs(self) -> list[Path]:
        return sorted(self.state_dir.glob("logs/llama/*.log"))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture
def scene() -> Iterator[Scene]:
    with Scene() as made:
        yield made


@pytest.fixture
def make(scene: Scene, tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    made: list[Agent] = []

    def make(**managed: Any) -> Agent:
        made.append(Agent(scene, tmp_path, **managed))
        return made[-1]

    yield make
    for agent in made:
        agent.launcher.close()
    scene.close()
    for process in (process for agent in made for process in agent.processes):
        # Its launcher may have reaped it.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, process.pid, os.WEXITED)
        group = find_group(scene.proc, process)
        if group is not None:
            group.remove()


@pytest.fixture
async def agent(make: Callable[..., Agent]) -> Agent:
    return make()


class SlowSpawn:
    """Makes each process only once the test lets it, in the middle of a start."""

    def __init__(self) -> None:
        self.has_begun = asyncio.Event()
        self.may_end = threading.Event()
        self.made: list[Child] = []
        self._loop = asyncio.get_running_loop()

    def __call__(self, *arguments: Any) -> Child:
        self._loop.call_soon_threadsafe(self.has_begun.set)
        self.may_end.wait(WAIT_SECONDS)
        self.made.append(spawn(*arguments))
        return self.made[-1]


@pytest.fixture
async def slow_spawn(monkeypatch: pytest.MonkeyPatch) -> SlowSpawn:
    made = SlowSpawn()
    monkeypatch.setattr(starting, "spawn", made)
    return made


# A start.


async def test_a_start_makes_a_marked_session_leader_that_writes_to_a_log(agent):
    sighting = await agent.launch()
    pid = sighting.process.pid
    stat = agent.scene.proc.stat(pid)
    assert (sighting.session, stat.session) == (pid, pid)
    assert sighting.command.served_name == "org/name"
    environ = read_environ(agent.scene.proc, pid)
    assert environ is not None
    assert Mark.of("llama", agent.state_dir).is_in(environ)
    assert f"{MARKER}=llama/".encode() in environ
    assert len(agent.logs()) == 1
    assert not agent.events


async def test_what_preflight_refuses_is_told_with_its_reason(agent):
    with socket.create_server(("127.0.0.1", agent.port)):
        refused = await agent.refusal()
    assert refused.reason is Reason.PORT_IN_USE
    assert str(agent.port) in refused.detail
    assert str(os.getpid()) in refused.holder
    assert not agent.logs()
    assert not agent.launches


async def test_a_program_that_cannot_run_is_told_and_leaves_no_log(agent):
    agent.write(agent.program, "#!/nonexistent/interpreter\n")
    refused = await agent.refusal(attempt=7)
    assert refused.reason is Reason.SPAWN_FAILED
    assert "vllm" in refused.detail
    assert not agent.logs()
    assert not agent.launches


async def test_the_model_that_was_chosen_is_started(agent):
    agent.launcher.start(1, "other/model", agent.tell)
    await agent.until(lambda: agent.launches)
    assert agent.launches[0].command.model == "other/model"


async def test_a_start_that_is_cancelled_before_it_began_comes_to_nothing(agent, monkeypatch):
    monkeypatch.setattr(starting, "preflight", lambda *_: asyncio.Event().wait())
    agent.launcher.start(1, None, agent.tell)
    agent.launcher.cancel()
    assert await agent.answer() == StartRefused(1, None)
    assert not agent.scene.alive()


async def test_a_start_that_is_cancelled_while_it_waits_for_room_comes_to_nothing(
    agent, monkeypatch
):
    has_begun = asyncio.Event()

    async def wait(*_: object) -> None:
        has_begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(starting, "preflight", wait)
    agent.launcher.start(1, None, agent.tell)
    await has_begun.wait()
    agent.launcher.cancel()
    assert await agent.answer() == StartRefused(1, None)
    monkeypatch.undo()
    # The next one is not affected.
    await agent.launch()


async def test_a_cancel_that_comes_too_late_is_answered_by_the_launch(agent, slow_spawn):
    agent.launcher.start(1, None, agent.tell)
    await slow_spawn.has_begun.wait()
    agent.launcher.cancel()
    slow_spawn.may_end.set()
    await agent.until(lambda: agent.launches)
    assert not agent.events


async def test_starts_follow_each_other(agent, monkeypatch):
    under_way, most = 0, 0

    async def refuse(*_: object) -> Refusal:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        return Refusal(Reason.GPU_MEMORY_TAKEN, "too little", "somebody")

    monkeypatch.setattr(starting, "preflight", refuse)
    for attempt in (1, 2):
        agent.launcher.start(attempt, None, agent.tell)
    expected = [
        StartRefused(attempt, Reason.GPU_MEMORY_TAKEN, "too little", "somebody")
        for attempt in (1, 2)
    ]
    assert [await agent.answer(), await agent.answer()] == expected
    assert most == 1


class HungDisk:
    """Opens each log only once the test lets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.has_begun = asyncio.Event()
        self.may_end = threading.Event()
        self.opens = 0
        loop, open_it = asyncio.get_running_loop(), LaunchFiles.open

        def slow(*arguments: Any) -> Any:
            self.opens += 1
            loop.call_soon_threadsafe(self.has_begun.set)
            self.may_end.wait(WAIT_SECONDS)
            return open_it(*arguments)

        monkeypatch.setattr(LaunchFiles, "open", slow)


@pytest.fixture
async def hung_disk(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HungDisk]:
    disk = HungDisk(monkeypatch)
    yield disk
    disk.may_end.set()


async def test_a_disk_that_hangs_when_the_log_is_opened_refuses_the_start(
    agent, hung_disk, monkeypatch
):
    monkeypatch.setattr(starting, "HUNG_SECONDS", 0.05)
    monkeypatch.setattr(starting, "SPAWN_SECONDS", 0.05)
    for attempt in (1, 2):
        refused = await agent.refusal(attempt)
        assert refused.reason is Reason.SPAWN_FAILED
        assert refused.detail.startswith(f"the log of the server in {agent.state_dir}/logs/llama")
        assert "hangs" in refused.detail
    # The second left no other thread behind.
    assert hung_disk.opens == 1
    hung_disk.may_end.set()
    spawning = agent.launcher._starter._spawning
    await asyncio.wait({spawning})
    assert not agent.logs()
    assert not agent.scene.alive()
    monkeypatch.undo()
    await agent.launch()
    assert not agent.events


async def test_no_process_is_made_once_whoever_follows_has_stopped_waiting(
    agent, hung_disk, monkeypatch
):
    monkeypatch.setattr(starting, "SPAWN_SECONDS", 0.05)
    agent.launcher.start(1, None, agent.tell)
    await hung_disk.has_begun.wait()
    before = agent.launcher
    agent.replaced()
    await before.settled()
    hung_disk.may_end.set()
    await asyncio.wait({before._starter._spawning})
    assert not agent.logs()
    assert not agent.scene.alive()


async def test_what_a_launcher_was_starting_when_it_was_closed_does_not_stay_beside_its_next_start(
    agent, slow_spawn
):
    agent.launcher.start(1, None, agent.tell)
    await slow_spawn.has_begun.wait()
    # As its runner does that begins again after a fault.
    agent.launcher.close()
    slow_spawn.has_begun.clear()
    agent.launcher.start(2, None, agent.tell)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(slow_spawn.has_begun.wait(), 0.2)
    assert not slow_spawn.has_begun.is_set()
    slow_spawn.may_end.set()
    await agent.until(lambda: agent.launches)
    first, second = (child.sighting.process for child in slow_spawn.made)
    assert [sighting.process for sighting in agent.launches] == [second]
    wait_ended(first.pid)
    await eventually(lambda: agent.scene.alive() == {second.pid})


async def listening_at(agent: Agent, path: Path) -> None:
    """Its server is to listen on a unix socket."""
    url = parse_server_url(f"unix://{path}")
    agent.server = agent.server.model_copy(update={"url": url})
    agent.replaced()


async def test_the_socket_that_a_launch_before_left_is_removed(agent, tmp_path):
    path = tmp_path / "vllm.sock"
    await listening_at(agent, path)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    await agent.launch()
    assert not path.exists()


async def test_a_socket_that_somebody_listens_on_stays_and_refuses_the_start(agent, tmp_path):
    path = tmp_path / "vllm.sock"
    await listening_at(agent, path)
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(path))
        taken.listen()
        refused = await agent.refusal()
        assert refused.reason is Reason.PORT_IN_USE
        assert str(path) in refused.detail
        assert str(os.getpid()) in refused.holder
    assert path.exists()
    assert not agent.launches


async def test_without_a_state_directory_nothing_is_started(agent):
    agent.state_dir.rmdir()
    refused = await agent.refusal()
    assert refused.reason is Reason.SPAWN_FAILED
    assert "--state.dir" in refused.detail


@pytest.mark.parametrize("place", ["preflight", "spawn"])
async def test_a_fault_of_ours_is_logged_and_refuses_the_start(agent, monkeypatch, caplog, place):
    def fail(*_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(starting, place, fail)
    refused = await agent.refusal()
    assert refused.reason is Reason.SPAWN_FAILED
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_what_was_started_and_cannot_be_told_does_not_stay(make, monkeypatch, caplog):
    agent = make(env={"SCRIPT": DAEMON})

    def fail(sighting: Sighting) -> None:
        agent.processes.append(sighting.process)
        raise RuntimeError("a fault")

    monkeypatch.setattr(agent.launcher, "_launched", fail)
    refused = await agent.refusal()
    assert refused.reason is Reason.SPAWN_FAILED
    assert caplog.records
    assert not agent.scene.alive()


async def test_what_nobody_remembers_is_ended_before_the_first_start(agent):
    left = agent.scene.start(f"{DAEMON}; exec {SLEEP}", mark=Mark.of("llama", agent.state_dir))
    other = agent.scene.start(f"exec {SLEEP}", mark=Mark.of("other", agent.state_dir))
    sighting = await agent.launch()
    assert left.wait(WAIT_SECONDS) == -signal.SIGKILL
    assert other.poll() is None
    assert agent.scene.alive() == {sighting.process.pid, other.pid}


async def test_what_cannot_be_ended_before_a_start_refuses_it(agent, monkeypatch):
    monkeypatch.setattr(starting, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda *_: None)
    agent.scene.start(f"exec {SLEEP}", mark=Mark.of("llama", agent.state_dir))
    refused = await agent.refusal()
    assert refused.reason is Reason.SPAWN_FAILED
    assert "earlier launch" in refused.detail
    assert not agent.launches


# The agent ends.


async def test_an_agent_that_ends_while_it_looks_for_room_tells_nothing(agent, monkeypatch):
    has_begun, is_over = asyncio.Event(), asyncio.Event()

    async def wait(*_: object) -> None:
        has_begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            is_over.set()

    monkeypatch.setattr(starting, "preflight", wait)
    agent.launcher.start(1, None, agent.tell)
    await has_begun.wait()
    agent.launcher.close()
    await is_over.wait()
    await asyncio.sleep(0)
    assert not agent.events


async def test_a_launch_that_an_agent_was_making_when_it_ended_is_found_by_the_next(
    agent, monkeypatch
):
    has_begun, may_end, has_ended = asyncio.Event(), threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    spawn_it = Starter._spawn

    def slow(self: Starter, *arguments: Any) -> Any:
        loop.call_soon_threadsafe(has_begun.set)
        may_end.wait(WAIT_SECONDS)
        made = spawn_it(self, *arguments)
        loop.call_soon_threadsafe(has_ended.set)
        return made

    monkeypatch.setattr(Starter, "_spawn", slow)
    agent.launcher.start(1, None, agent.tell)
    await has_begun.wait()
    successor = agent.replaced()
    may_end.set()
    await has_ended.wait()
    assert not agent.launches
    found = await until_found(successor)
    assert found.command.served_name == "org/name"
    assert found.url == f"http://127.0.0.1:{agent.port}"
    assert not agent.events
    await agent.clear(found.process)
    assert not agent.scene.alive()


async def test_whoever_follows_waits_for_a_process_that_is_being_started(agent, slow_spawn):
    agent.launcher.start(1, None, agent.tell)
    await slow_spawn.has_begun.wait()
    before = agent.launcher
    successor = agent.replaced()
    settling = asyncio.create_task(before.settled())
    # It is cancelled first, which must not let go of the process.
    for _ in range(3):
        await asyncio.sleep(0)
    assert not settling.done()
    slow_spawn.may_end.set()
    await settling
    found = await successor.find(None)
    assert found.process == slow_spawn.made[0].sighting.process
    assert not agent.launches
    assert not agent.events
    await agent.clear(found.process)


async def test_a_process_that_is_never_started_is_not_waited_for_without_end(
    agent, slow_spawn, monkeypatch
):
    monkeypatch.setattr(starting, "SPAWN_SECONDS", 0.01)
    agent.launcher.start(1, None, agent.tell)
    await slow_spawn.has_begun.wait()
    await agent.launcher.settled()
    assert not slow_spawn.made
    slow_spawn.may_end.set()
    await agent.until(lambda: agent.launches)
    await agent.launcher.settled()


async def test_what_starts_nothing_is_settled(agent):
    async with asyncio.timeout(WAIT_SECONDS):
        await agent.launcher.settled()


async def test_what_was_being_started_when_its_launcher_was_closed_is_reaped_at_its_end(
    agent, slow_spawn, monkeypatch
):
    monkeypatch.setattr("vllm_agent.host.launching.spawn.ZOMBIE_SECONDS", 0.0)
    agent.launcher.start(1, None, agent.tell)
    await slow_spawn.has_begun.wait()
    before = agent.launcher
    agent.replaced()
    slow_spawn.may_end.set()
    await before.settled()
    process = slow_spawn.made[0].sighting.process
    os.kill(process.pid, signal.SIGKILL)
    await eventually(lambda: not agent.scene.proc.is_same(process))


async def until_found(successor: ManagedLauncher) -> Sighting:
    async with asyncio.timeout(WAIT_SECONDS):
        while (found := await successor.find(None)) is None:
            pass
    return found


async def test_an_agent_that_ends_leaves_its_server_alone(agent):
    sighting = await agent.launch()
    agent.launcher.close()
    assert agent.scene.proc.is_same(sighting.process)
    assert not agent.scene.proc.stat(sighting.process.pid).is_zombie


async def test_a_child_is_reaped_whatever_becomes_of_its_launcher(agent, monkeypatch):
    monkeypatch.setattr("vllm_agent.host.launching.spawn.ZOMBIE_SECONDS", 0.0)
    sighting = await agent.launch()
    agent.replaced()
    os.kill(sighting.process.pid, signal.SIGKILL)
    await eventually(lambda: not agent.scene.proc.is_same(sighting.process))


# Found again.


async def test_a_remembered_process_is_found_if_it_lives(agent):
    sighting = await agent.launch()
    found = await agent.replaced().find(sighting.process)
    assert found is not None
    assert replace(found, start_seconds=sighting.start_seconds) == sighting
    assert found.start_seconds == pytest.approx(sighting.start_seconds, abs=0.1)


async def test_of_a_remembered_process_that_is_gone_the_number_says_nothing(agent):
    sighting = await agent.launch()
    gone = replace(sighting.process, start_ticks=sighting.process.start_ticks - 1)
    # The mark still tells the launch.
    assert (await agent.replaced().find(gone)).process == sighting.process
    await agent.clear(sighting.process)
    assert await agent.replaced().find(sighting.process) is None


async def test_a_zombie_is_not_found(agent):
    sighting = await agent.launch()
    os.kill(sighting.process.pid, signal.SIGKILL)
    wait_ended(sighting.process.pid)
    assert await agent.replaced().find(sighting.process) is None


async def test_a_wrapper_is_found_by_its_arguments_and_described_by_the_configuration(
    make, tmp_path
):
    wrapper = tmp_path / "wrapper"
    Agent.write(wrapper, WRAPPER)
    agent = make(command=[str(wrapper)])
    agent.launcher.start(1, None, agent.tell)
    await agent.until(lambda: agent.launches)
    sighting = agent.launches[0]
    found = await until_found(agent.replaced())
    assert found.process == sighting.process
    assert (found.command, found.url) == (sighting.command, sighting.url)


async def test_a_daemon_that_was_left_is_not_taken_for_the_server(agent):
    mark = Mark.of("llama", agent.state_dir)
    daemon = agent.scene.start(f"exec {SLEEP}", mark=mark)
    assert await agent.launcher.find(None) is None
    assert daemon.poll() is None


async def test_a_fork_that_the_server_left_is_not_taken_for_it(agent):
    agent.write(agent.program, VLLM.replace("os.system", "os.fork(); os.system"))
    process = (await agent.launch()).process
    await eventually(lambda: len(agent.scene.alive()) == 2)
    assert (await agent.replaced().find(None)).process == process
    os.kill(process.pid, signal.SIGKILL)
    wait_ended(process.pid)
    assert await agent.replaced().find(None) is None
    await eventually(lambda: len(agent.scene.alive()) == 1)


async def test_what_is_found_serves_what_its_own_arguments_say(agent):
    sighting = await agent.launch()
    agent.server = agent.server.model_copy(update={"model": "new/name"})
    found = await agent.replaced().find(sighting.process)
    assert found.command.model == "org/name"


@pytest.mark.parametrize("whose", ["server", "agent"])
async def test_the_launch_of_another_is_not_found(agent, tmp_path, whose):
    if whose == "server":
        mark = Mark.of("other", agent.state_dir)
    else:
        (tmp_path / "other").mkdir()
        mark = Mark.of("llama", tmp_path / "other")
    agent.scene.start(str(agent.program), "serve", "org/name", mark=mark)
    assert await agent.launcher.find(None) is None


async def test_a_host_that_cannot_be_looked_at_is_looked_at_again(agent, monkeypatch, caplog):
    monkeypatch.setattr(adoption, "RETRY_SECONDS", 0.001)
    sighting = await agent.launch()
    look, failing = Remains.look, [1, 2, 3]

    async def blind_at_first(self: Remains) -> list[ProcessId]:
        if failing:
            failing.pop()
            raise CannotLook("blind")
        return await look(self)

    monkeypatch.setattr(Remains, "look", blind_at_first)
    assert (await agent.replaced().find(None)).process == sighting.process
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


# The end.


async def test_sigterm_goes_to_the_main_process_only(make):
    agent = make(env={"SCRIPT": 'sh -c "$SAY" &'})
    sighting = await agent.launch()
    agent.launcher.terminate(sighting.process)
    wait_ended(sighting.process.pid)
    (child,) = agent.scene.alive()
    # To a number alone it is not sent.
    agent.launcher.terminate(replace(agent.scene.identify(child), start_ticks=1))
    assert agent.scene.alive() == {child}
    await agent.clear(sighting.process)
    assert not agent.scene.alive()
    agent.launcher.terminate(sighting.process)


async def test_a_signal_that_may_not_be_sent_is_logged(agent, monkeypatch, caplog):
    sighting = await agent.launch()

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
    agent.launcher.terminate(sighting.process)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_everything_of_a_launch_is_ended_and_then_told(make):
    agent = make(env={"SCRIPT": f'{DAEMON}; sh -c "$SAY" > /dev/null &'})
    sighting = await agent.launch()
    has_group = LaunchCgroup.found(agent.scene.proc, sighting.process) is not None
    assert has_group is is_writable(agent.scene.proc)
    await agent.clear(sighting.process)
    assert not agent.scene.alive()
    assert LaunchCgroup.found(agent.scene.proc, sighting.process) is None
    # Once more is not wrong.
    await agent.clear(sighting.process)


@pytest.mark.parametrize("is_adopted", [False, True], ids=["started", "found"])
async def test_what_a_crash_left_in_the_session_is_ended_though_it_has_no_mark(
    make, monkeypatch, is_adopted
):
    monkeypatch.setattr("vllm_agent.host.launching.spawn.ZOMBIE_SECONDS", 0.0)
    monkeypatch.setattr(LaunchCgroup, "found", lambda *_: None)
    unmarked = 'env -i PATH="$PATH" "$TOKEN" sh -c "$SAY" > /dev/null &'
    agent = make(env={"SCRIPT": unmarked})
    process = (await agent.launch()).process
    if is_adopted:
        await agent.replaced().find(process)
    os.kill(process.pid, signal.SIGKILL)
    await eventually(lambda: not agent.scene.proc.is_same(process))
    # In the middle of an exec it shows no environment.
    await eventually(lambda: len(agent.scene.alive()) == 1)
    await agent.clear(process)
    assert not agent.scene.alive()


async def test_the_newest_who_asks_is_told_once(agent):
    sighting = await agent.launch()
    told: list[Event] = []
    agent.launcher.kill_all(sighting.process, told.append)
    await agent.clear(sighting.process)
    assert not told
    assert not agent.events


async def test_a_launcher_that_was_closed_while_it_killed_can_clear_again(agent, monkeypatch):
    sighting = await agent.launch()
    has_begun = asyncio.Event()

    async def hang(*_: object, **__: object) -> int:
        has_begun.set()
        await asyncio.Event().wait()
        return 0

    told: list[Event] = []
    monkeypatch.setattr(launcher, "kill_all", hang)
    agent.launcher.kill_all(sighting.process, told.append)
    await has_begun.wait()
    # As its runner does that begins again after a fault.
    agent.launcher.close()
    monkeypatch.setattr(launcher, "kill_all", kill_all)
    await agent.clear(sighting.process)
    assert not agent.scene.alive()
    assert not told


async def test_a_fault_while_killing_is_logged_once_and_tried_again(agent, monkeypatch, caplog):
    monkeypatch.setattr(launcher, "RETRY_SECONDS", 0.001)
    sighting = await agent.launch()
    failing = [1, 2, 3]

    async def fail(*arguments: Any, **options: Any) -> int:
        if failing:
            failing.pop()
            raise RuntimeError("a fault")
        return await kill_all(*arguments, **options)

    monkeypatch.setattr(launcher, "kill_all", fail)
    await agent.clear(sighting.process)
    assert not agent.scene.alive()
    assert [record.levelno for record in caplog.records if record.exc_info] == [logging.ERROR]


# What is kept.


def ending(number: int = 1) -> Ending:
    return Ending(
        launch_number=number,
        at=NOW,
        state=ServerState.CRASHED,
        reason=Reason.ENGINE_DIED,
        rule=4,
    )


def text_of(kept: EvidenceKept) -> str:
    return Path(kept.path).read_text(encoding="utf-8")


async def test_evidence_is_kept_and_told(agent):
    await agent.launch()
    agent.launcher.keep_evidence(ending(3), local_server(), agent.tell)
    kept = await agent.answer()
    assert isinstance(kept, EvidenceKept)
    assert kept.launch_number == 3
    assert Path(kept.path).is_relative_to(agent.state_dir)
    assert str(agent.logs()[-1]) in text_of(kept)


async def test_the_log_of_a_launch_that_was_found_is_in_its_evidence(agent):
    sighting = await agent.launch()
    await agent.replaced().find(sighting.process)
    agent.launcher.keep_evidence(ending(), local_server(), agent.tell)
    kept = await agent.answer()
    assert isinstance(kept, EvidenceKept)
    assert str(agent.logs()[-1].resolve()) in text_of(kept)


async def test_evidence_that_cannot_be_kept_is_counted_and_logged_once(agent, caplog):
    (agent.state_dir / "evidence").write_text("in the way", encoding="ascii")
    for number in (1, 2):
        agent.launcher.keep_evidence(ending(number), local_server(), agent.tell)
    await eventually(lambda: len(agent.dropped) == 2)
    assert agent.dropped == [EVIDENCE_DROPPED] * 2
    assert len(caplog.records) == 1
    assert not agent.events


async def test_logs_are_bounded_now_and_then(agent, monkeypatch):
    monkeypatch.setattr(launcher, "BOUND_SECONDS", 0.01)
    monkeypatch.setattr("vllm_agent.host.launching.launch_files.MAX_LOG_BYTES", 100)
    await agent.launch()
    with agent.logs()[-1].open("ab") as log:
        log.write(b"x" * 200)
    await eventually(lambda: LOG_DROPPED in agent.dropped)
    assert agent.logs()[-1].stat().st_size == 0
