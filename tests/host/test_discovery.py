"""Servers are found, once each, among everything else that runs on a host."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.host.fake_proc import FakeProc
from vllm_agent.demo.launch import StandIn
from vllm_agent.host import discovery as discovery_module
from vllm_agent.host import patience
from vllm_agent.host.clock import now
from vllm_agent.host.discovery import Discovery
from vllm_agent.host.new_processes import POLL_SECONDS, SWEEP_SECONDS
from vllm_agent.host.proc import Proc, ProcessStat
from vllm_agent.host.vllm_argv import is_main
from vllm_agent.observations import Instant, Sighting

if TYPE_CHECKING:
    from pathlib import Path

FAST = ("--speed", "20")


class Watch:
    """A discovery and what it told."""

    def __init__(self, proc: Proc | None = None, clock=now, **options) -> None:
        self.found: list[Sighting] = []
        self.arrived: list[ProcessStat] = []
        self.dropped: Counter[str] = Counter()
        self.changed = asyncio.Event()
        self.discovery = Discovery(
            proc or Proc(),
            found=self._note,
            arrived=self.arrived.extend,
            clock=clock,
            count_dropped=lambda kind: self.dropped.update([kind]),
            **options,
        )

    def _note(self, sighting):
        self.found.append(sighting)
        self.changed.set()

    @property
    def pids(self):
        return [sighting.process.pid for sighting in self.found]

    async def until(self, pid: int, seconds: float = 10.0):
        async with asyncio.timeout(seconds):
            while pid not in self.pids:
                self.changed.clear()
                await self.changed.wait()
        return self.found[self.pids.index(pid)]


@contextlib.asynccontextmanager
async def running(watch: Watch):
    task = asyncio.create_task(watch.discovery.run())
    try:
        yield watch
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture(autouse=True)
def _sees_ends_at_once(monkeypatch):
    monkeypatch.setattr(discovery_module, "FORGET_SECONDS", 0.0)


@pytest.fixture
def spawn(tmp_path):
    """Starts processes with any command line: a shell whose script waits for its input to end."""
    (tmp_path / "serve").write_text("read -r _\n")
    started: list[subprocess.Popen] = []

    def popen(*arguments, **options):
        process = subprocess.Popen(
            arguments, executable="/bin/sh", stdin=subprocess.PIPE, cwd=tmp_path, **options
        )
        started.append(process)
        return process

    yield popen
    for process in started:
        end(process)


def end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def make_zombie(process: subprocess.Popen) -> None:
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def waiting(*arguments, **options) -> subprocess.Popen:
    """A program that waits for its input to end."""
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, **options)


async def look(watch: Watch) -> Watch:
    await watch.discovery._look()
    return watch


async def test_a_server_is_told_of_with_all_that_is_known():
    with StandIn.start(*FAST, "--served-model-name", "tiny", model="org/tiny") as server:
        watch = Watch()
        async with running(watch):
            sighting = await watch.until(server.pid)
            await watch.discovery.first_look_done.wait()
    proc = Proc()
    assert sighting.process.boot_id == proc.boot_id
    assert sighting.command.served_name == "tiny"
    assert sighting.command.port == server.port
    assert sighting.url == server.url
    assert sighting.uid == os.geteuid()
    assert sighting.session == server.pid
    assert abs(sighting.start_seconds - time.time()) < 60
    assert not sighting.is_supervised
    assert server.pid in {stat.pid for stat in watch.arrived}


async def test_no_other_process_of_a_server_is_one():
    """Children have the line of their parent until their title."""
    watch = Watch()
    async with running(watch):
        await watch.discovery.first_look_done.wait()
        with StandIn.start(*FAST, "--api-server-count", "2") as server:
            await server.serving()
            await watch.until(server.pid)
            await asyncio.sleep(2 * POLL_SECONDS)
            others = {*server.pids()} - {server.pid}
            assert others <= {stat.pid for stat in watch.arrived}
            assert [pid for pid in watch.pids if pid in {server.pid, *others}] == [server.pid]


async def test_a_child_with_the_line_of_its_parent_is_no_server(spawn, tmp_path):
    (tmp_path / "serve").write_text("exec 3<&0; read -r _ <&3 & wait\n")
    main = spawn("vllm", "serve", "m")
    watch = await look(Watch())
    deadline = time.monotonic() + 10
    while not (children := [s.pid for s in watch.arrived if s.parent == main.pid]):
        assert time.monotonic() < deadline
        await look(watch)
    await look(watch)
    assert Proc().command_line(children[0]) == Proc().command_line(main.pid)
    assert main.pid in watch.pids
    assert children[0] not in watch.pids


async def test_a_server_is_seen_within_a_second_of_its_exec(spawn, tmp_path):
    watch = Watch()
    async with running(watch):
        await watch.discovery.first_look_done.wait()
        started = time.monotonic()
        at_once = spawn("vllm", "serve", "m", "--port", "1")
        late = waiting("bash", "-c", "sleep 0.3; exec -a vllm sh serve m", cwd=tmp_path)
        await watch.until(at_once.pid)
        first = time.monotonic() - started
        await watch.until(late.pid)
        second = time.monotonic() - started - 0.3
        end(late)
    print(f"seen {first:.2f} s after exec, and {second:.2f} s after one that came late")
    # A busy machine may be late; at rest it is half a second.
    assert max(first, second) < 5


async def test_each_launch_is_told_once(spawn):
    process = spawn("vllm", "serve", "m")
    watch = Watch()
    for _ in range(3):
        await look(watch)
    assert watch.pids.count(process.pid) == 1


async def test_many_servers_are_bounded_and_counted_once_each(tmp_path):
    fake = FakeProc(tmp_path)
    for pid in range(300, 400):
        fake.add(pid, "vllm", "serve", f"m{pid}", start=1000 - pid)
    watch = Watch(fake.proc, max_servers=32)
    for _ in range(3):
        await look(watch)
    # The oldest first, and every other counted once.
    assert watch.pids == list(range(399, 399 - 32, -1))
    assert watch.dropped == {"servers": 68}
    assert watch.discovery.servers == 100


def test_five_hundred_real_command_lines(spawn):
    processes = {spawn("vllm", "serve", f"m{n}", "--port", "1").pid for n in range(500)}
    watch = Watch(max_servers=0, is_wanted=lambda sighting: sighting.process.pid in processes)
    started, busy = time.monotonic(), time.process_time()
    asyncio.run(look(watch))
    print(f"500 servers judged in {time.monotonic() - started:.3f} s, ", end="")
    print(f"{time.process_time() - busy:.3f} s of CPU")
    assert processes <= set(watch.pids)


async def test_what_is_configured_is_let_in(spawn):
    wanted = [spawn("vllm", "serve", "m", "--port", "7") for _ in range(3)]
    others = [spawn("vllm", "serve", "m", "--port", "8") for _ in range(3)]
    watch = await look(Watch(max_servers=1, is_wanted=lambda s: s.command.port == 7))
    assert {process.pid for process in wanted} <= set(watch.pids)
    assert len({process.pid for process in others} & set(watch.pids)) <= 1
    assert watch.dropped["servers"] >= len(others) - 1


async def test_a_zombie_is_no_server(spawn):
    process = spawn("vllm", "serve", "m")
    watch = await look(Watch())
    assert process.pid in watch.pids
    make_zombie(process)
    await look(watch)
    assert process.pid not in {main.pid for main in watch.discovery._mains}
    assert process.pid not in (await look(Watch())).pids


async def test_a_socket_is_shown_as_the_server_was_given_it(spawn):
    """From here its path may lead through /proc/PID, and a PID is no part of a label."""
    process = spawn("vllm", "serve", "m", "--uds", "/nowhere/vllm.sock")
    watch = await look(Watch())
    [found] = [one for one in watch.found if one.process.pid == process.pid]
    assert found.url == "unix:///nowhere/vllm.sock"


async def test_ends_are_looked_for_now_and_then(spawn, monkeypatch):
    """Whoever follows a server knows at once; here it costs a read for each, at each look."""
    monkeypatch.setattr(discovery_module, "FORGET_SECONDS", 100.0)
    process = spawn("vllm", "serve", "m")
    started, late = now(), 0.0
    watch = Watch(clock=lambda: Instant(started.monotonic_seconds + late, started.unix_seconds))
    await look(watch)
    assert process.pid in watch.pids
    end(process)
    await look(watch)
    assert process.pid in {main.pid for main in watch.discovery._mains}
    late = 100.0
    await look(watch)
    assert process.pid not in {main.pid for main in watch.discovery._mains}


async def test_hostile_command_lines(spawn):
    odd = [
        spawn("vllm", "serve", "\x1b[2J\r\n", "--port", "1"),
        spawn("vllm", "serve", os.fsdecode(b"\xff\xfe"), "--host", "a\nb"),
        spawn("vllm", "serve", "--port", "not a number", "--uds"),
    ]
    big = spawn("vllm", "serve", "m", *["x" * 100_000] * 19)
    watch = Watch()
    deadline = time.monotonic() + 10
    while not {process.pid for process in [*odd, big]} <= set(watch.pids):
        assert time.monotonic() < deadline
        await look(watch)
    assert watch.dropped == {"command_line": 1}


async def test_the_file_of_config_is_read_or_done_without(spawn, tmp_path, caplog):
    (tmp_path / "c.yaml").write_text("port: 9\n")
    for name, port in (("c.yaml", 9), ("none.yaml", 8000)):
        process = spawn("vllm", "serve", "m", "--config", name)
        watch = await look(Watch())
        assert watch.found[watch.pids.index(process.pid)].command.port == port
        end(process)
    assert "was not read" in caplog.text


AS_NOBODY = """
import asyncio, os
from vllm_agent.host.clock import now
from vllm_agent.host.discovery import Discovery
from vllm_agent.host.proc import Proc
os.setgroups([]); os.setgid(65534); os.setuid(65534)
async def main():
    found = []
    discovery = Discovery(Proc(), found=found.append, arrived=len, clock=now, count_dropped=print)
    await discovery._look()
    for sighting in found:
        print(sighting.process.pid, sighting.uid, sighting.url)
asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_a_user_without_rights_finds_the_servers_of_others(spawn):
    process = spawn("vllm", "serve", "m", "--port", "7")
    words = [sys.executable, "-c", AS_NOBODY]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert f"{process.pid} 0 http://127.0.0.1:7\n" in told


@pytest.mark.needs("unshare")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes namespaces")
async def test_a_server_in_a_container_is_found(tmp_path):
    """Its PID there is another one, and its loopback as well."""
    (tmp_path / "serve").write_text("read -r _\n")
    words = ["unshare", "--fork", "--pid", "--net", "--mount-proc", "--kill-child"]
    script = "exec -a vllm sh serve in-a-container"
    inside = waiting(*words, "bash", "-c", script, cwd=tmp_path)
    watch = Watch()
    deadline = time.monotonic() + 10
    while not (found := [s for s in watch.found if s.command.model == "in-a-container"]):
        assert time.monotonic() < deadline
        await look(watch)
    end(inside)
    assert found[0].url is None


async def test_orphans_at_the_start_are_strays():
    with StandIn.start(*FAST) as server, StandIn.start(*FAST) as other:
        server.wait_serving()
        other.wait_serving()
        orphans = {*server.engine_pids, *server.worker_pids}
        server.kill()
        server.wait()
        watch = await look(Watch())
        strays = {stat.pid for stat in watch.discovery.strays}
        assert orphans <= strays
        assert not strays & {*other.engine_pids, *other.worker_pids}
        assert server.pid not in watch.pids
        assert other.pid in watch.pids


async def test_a_component_of_another_program_is_no_stray(tmp_path):
    fake = FakeProc(tmp_path)
    fake.add(10, "python", "offline.py", name="python3")
    fake.add(11, "VLLM::EngineCore", parent=10)
    fake.add(20, "vllm", "serve", "m", parent=1, name="vllm")
    fake.add(21, "VLLM::EngineCore", parent=20)
    fake.add(22, "VLLM::Worker_TP0", parent=21)
    fake.add(30, "containerd-shim", name="containerd-shim")
    fake.add(31, "VLLM::EngineCore", parent=30)
    fake.add(32, "VLLM::Worker", parent=31)
    watch = await look(Watch(fake.proc))
    assert [stat.pid for stat in watch.discovery.strays] == [31, 32]


async def test_a_server_that_is_the_first_process_of_its_container_has_no_strays(tmp_path):
    fake = FakeProc(tmp_path)
    fake.become(1, "vllm", "serve", "m")
    fake.add(7, "VLLM::EngineCore", parent=1)
    watch = await look(Watch(fake.proc))
    assert watch.pids == [1]
    assert watch.discovery.strays == ()


class Hours:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> Instant:
        return Instant(self.seconds, self.seconds)


async def test_a_place_that_becomes_free_is_given_to_one_left_out(tmp_path):
    fake = FakeProc(tmp_path)
    for pid in (10, 11, 12):
        fake.add(pid, "vllm", "serve", "m", start=pid)
    watch = await look(Watch(fake.proc, max_servers=1))
    assert watch.pids == [10]
    assert watch.dropped == {"servers": 2}
    fake.end(10)
    await look(watch)
    assert watch.pids == [10, 11]
    assert watch.dropped == {"servers": 2}
    assert watch.discovery.servers == 2


async def test_what_was_left_out_and_ended_is_forgotten(tmp_path):
    fake, clock = FakeProc(tmp_path), Hours()
    for pid in (10, 11):
        fake.add(pid, "vllm", "serve", "m", start=pid)
    watch = await look(Watch(fake.proc, clock, max_servers=1))
    fake.end(11)
    clock.seconds += SWEEP_SECONDS
    for _ in range(31):
        await look(watch)
    assert watch.discovery.servers == 1


async def test_a_fault_is_told_and_does_not_end_the_watch(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(discovery_module, "POLL_SECONDS", 0.001)
    fake, clock = FakeProc(tmp_path), Hours()
    listing = Proc.inodes

    faults = asyncio.Event()

    def fail(proc):
        if watch.dropped["discovery"] == 3:
            faults.set()
        raise OSError("no /proc")

    watch = Watch(fake.proc, clock)
    monkeypatch.setattr(Proc, "inodes", fail)
    async with running(watch):
        async with asyncio.timeout(10):
            await faults.wait()
        assert not watch.discovery.status.is_up
        assert watch.discovery.status.detail == "a look at the processes failed: no /proc"
        assert watch.discovery.servers is None
        monkeypatch.setattr(Proc, "inodes", listing)
        await watch.discovery.first_look_done.wait()
        fake.add(10, "vllm", "serve", "m")
        await watch.until(10)
        while not watch.discovery.status.is_up:
            clock.seconds += POLL_SECONDS
            await asyncio.sleep(0.001)
    status = watch.discovery.status
    assert (status.name, status.detail, status.last_success_unix_seconds) == (
        "discovery",
        "",
        pytest.approx(clock.seconds, abs=SWEEP_SECONDS),
    )
    assert sum("a look at the processes failed" in r.message for r in caplog.records) == 1


async def test_a_fault_with_one_server_does_not_hide_the_others(tmp_path, caplog):
    fake = FakeProc(tmp_path)
    for pid, name in ((10, "bad.yaml"), (11, "good.yaml")):
        fake.add(pid, "vllm", "serve", "m", "--config", name, start=pid)

    def read(proc, pid, path):
        if pid == 10:
            raise ZeroDivisionError
        return {"port": 9}

    watch = await look(Watch(fake.proc, read_config=read))
    assert watch.pids == [11]
    assert watch.dropped == {"discovery": 1}
    assert not watch.discovery.status.is_up


async def test_a_fault_of_who_is_told_does_not_hide_the_others(tmp_path, caplog):
    fake = FakeProc(tmp_path)
    for pid in (10, 11):
        fake.add(pid, "vllm", "serve", "m", start=pid)
    watch = Watch(fake.proc)
    told = []

    def fail(sighting):
        told.append(sighting.process.pid)
        raise ZeroDivisionError

    def fail_too(stats):
        raise ZeroDivisionError

    watch.discovery._found, watch.discovery._arrived = fail, fail_too
    for _ in range(2):
        await look(watch)
    assert told == [10, 11]
    assert watch.dropped == {"discovery": 3}
    assert len(caplog.records) == 1


async def test_a_line_that_cannot_be_judged_does_not_hide_the_others(tmp_path, monkeypatch):
    fake = FakeProc(tmp_path)
    fake.add(10, "bad")
    fake.add(11, "vllm", "serve", "m")

    def judge(words):
        return is_main(words) if words[0] != "bad" else 1 / 0

    monkeypatch.setattr(discovery_module, "is_main", judge)
    watch = await look(Watch(fake.proc))
    assert watch.pids == [11]
    assert watch.dropped == {"discovery": 1}


async def test_lines_are_kept_while_nothing_can_be_judged(tmp_path, monkeypatch):
    fake = FakeProc(tmp_path)
    fake.add(10, "vllm", "serve", "m")
    watch = Watch(fake.proc)
    with monkeypatch.context() as broken:
        broken.setattr(watch.discovery, "_judge", None)
        with pytest.raises(TypeError):
            await look(watch)
    await look(watch)
    assert watch.pids == [10]


async def test_a_process_that_cannot_be_read_does_not_hide_the_others(tmp_path, monkeypatch):
    """Its memory is locked by a hung driver: reading its line never returns."""
    monkeypatch.setattr(patience, "HUNG_SECONDS", 0.05)
    fake = FakeProc(tmp_path)
    fake.add(10, "hung")
    fake.add(11, "vllm", "serve", "m")
    os.unlink(tmp_path / "10/cmdline")  # noqa: PTH108
    os.mkfifo(tmp_path / "10/cmdline")
    watch = Watch(fake.proc)
    watch.discovery._patience = patience.Patience(hung_seconds=0.05)
    for _ in range(2):
        await look(watch)
    assert watch.pids == [11]
    assert 10 in {stat.pid for stat in watch.arrived}
    assert watch.dropped == {"command_line": 1}
    assert watch.discovery.status.detail == "the kernel does not let process 10 be read"
    os.close(os.open(tmp_path / "10/cmdline", os.O_WRONLY))


async def test_before_the_first_look_nothing_is_known(tmp_path):
    watch = Watch(FakeProc(tmp_path).proc)
    assert watch.discovery.servers is None
    assert not watch.discovery.status.is_up
    await look(watch)
    assert watch.discovery.servers == 0
    assert watch.discovery.status.is_up
    assert [sight.kind.value for sight in watch.discovery.sights] == ["processes"]


async def test_without_sight_there_is_no_count(tmp_path, caplog):
    fake = FakeProc(tmp_path)
    fake.end(1)
    watch = await look(Watch(fake.proc))
    assert watch.discovery.servers is None
    assert not watch.discovery.status.is_up
    fake.add(10, "vllm", "serve", "m")
    await look(watch)
    assert len(watch.found) == 1
    assert watch.discovery.servers is None
    text = "discovery does not see the processes of the host"
    assert [record.message for record in caplog.records].count(text) == 1


async def launch_and_end(watch: Watch, folder: Path, count: int) -> None:
    processes = [
        waiting("vllm", "serve", "m", executable="/bin/sh", cwd=folder) for _ in range(count)
    ]
    pids = {process.pid for process in processes}
    deadline = time.monotonic() + 20
    while not pids <= set(watch.pids):
        assert time.monotonic() < deadline
        await look(watch)
    for process in processes:
        end(process)
    await look(watch)
    assert not pids & {main.pid for main in watch.discovery._mains}
    watch.found.clear()
    watch.arrived.clear()


def test_a_thousand_launches_leave_nothing_behind(tmp_path):
    (tmp_path / "serve").write_text("read -r _\n")
    sizes = []

    async def launch() -> None:
        watch = Watch(max_servers=1000)
        for _ in range(10):
            await launch_and_end(watch, tmp_path, 100)
            gc.collect()
            fds = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
            sizes.append((fds, tracemalloc.get_traced_memory()[0]))

    tracemalloc.start()
    try:
        asyncio.run(launch())
    finally:
        tracemalloc.stop()
    print("fds and bytes after each 100 launches:", sizes)
    assert sizes[-1][0] == sizes[1][0]
    assert sizes[-1][1] < sizes[1][1] + 100_000  # 100 bytes a launch would be a leak


def test_a_zombie_is_there_and_not_alive(spawn):
    process = spawn("sh", "serve")
    proc = Proc()
    stat = proc.stat(process.pid)
    assert stat is not None
    identity = proc.identify(stat)
    assert proc.is_same(identity)
    assert proc.is_alive(identity)
    make_zombie(process)
    assert proc.is_same(identity)
    assert not proc.is_alive(identity)
    assert not proc.is_alive(replace(identity, boot_id="of another boot"))
