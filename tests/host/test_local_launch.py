"""What a launch hands to those who read its log, its memory and its port."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.host import tree_scene
from tests.host.tree_scene import PATIENCE_SECONDS, sighting
from vllm_agent.host import local_launch, local_server
from vllm_agent.host.clock import now
from vllm_agent.host.followed_files import FollowedFiles
from vllm_agent.host.local_host import LocalHost
from vllm_agent.host.local_launch import LocalLaunch
from vllm_agent.host.local_server import LocalServer
from vllm_agent.host.proc import Proc
from vllm_agent.host.secrets import MAX_SECRETS
from vllm_agent.host.vllm_http import Target
from vllm_agent.lifecycle.ending import judge
from vllm_agent.lifecycle.events import EndBegan, EndSettled, LoadLooked
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.observations import ProcessTree, VllmCommand

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from vllm_agent.lifecycle.ending import EndingEvidence
    from vllm_agent.lifecycle.events import Event
    from vllm_agent.observations import Sighting

PORT_IN_USE = "OSError: [Errno 98] Address already in use"
CANARY = "NotTheShapeOfAnyKey"
WRITES_AND_FAILS = ("sed", "-u", "q1")
"""Writes its first line and exits with 1. A shell would move its files and variables about."""


class HungGpus:
    """GPUs whose driver does not answer, so that no end is settled while they are waited for."""

    async def look_now(self) -> None:
        await asyncio.Event().wait()

    def used_bytes(self, pids: Iterable[int]) -> int | None:
        del pids
        return None


class Events:
    """What was told of a launch."""

    def __init__(self) -> None:
        self.told: list[Event] = []
        self._news = asyncio.Event()

    def tell(self, event: Event) -> None:
        self.told.append(event)
        self._news.set()

    async def first(self, kind: type[Event]) -> Event:
        """The first event of that kind, once it was told."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                for event in self.told:
                    if isinstance(event, kind):
                        return event
                self._news.clear()
                await self._news.wait()

    async def evidence(self) -> EndingEvidence:
        settled = await self.first(EndSettled)
        assert isinstance(settled, EndSettled)
        return settled.evidence


@dataclass
class Followed:
    """A process that is followed as the main one of a launch."""

    process: subprocess.Popen[str]
    launch: LocalLaunch
    events: Events

    async def log_is_open(self) -> None:
        """Its log was found, and what must not be shown of it is known."""
        reading = self.launch._log._reading
        assert reading is not None
        await asyncio.wait_for(asyncio.shield(reading), PATIENCE_SECONDS)

    def write(self, line: str) -> None:
        """Lets the process write a line; it may end then."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()


def a_host(**changes: object) -> tuple[LocalHost, Counter[str]]:
    dropped: Counter[str] = Counter()
    fields = {"count_dropped": lambda kind: dropped.update([kind]), **changes}
    return LocalHost(Proc(), list, now, **fields), dropped  # type: ignore[arg-type]


def until_in_memory(pid: int) -> None:
    """For a moment after its exec a process shows neither a command line nor an environment."""
    place, deadline = Path(f"/proc/{pid}/environ"), time.monotonic() + PATIENCE_SECONDS
    while not place.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@contextlib.contextmanager
def following(
    host: LocalHost,
    *,
    log: Path | None = None,
    log_file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    port: int = 8000,
) -> Iterator[Followed]:
    """A process that writes the line it is given to `log`, which is its output, and fails."""
    with contextlib.ExitStack() as stack:
        output = subprocess.DEVNULL if log is None else stack.enter_context(log.open("ab"))
        process = stack.enter_context(
            subprocess.Popen(
                WRITES_AND_FAILS,
                stdin=subprocess.PIPE,
                stdout=output,
                text=True,
                start_new_session=True,
                env=dict(os.environ if environ is None else environ),
            )
        )
        stack.callback(process.kill)
        until_in_memory(process.pid)
        found = sighting(host.proc, process.pid, VllmCommand(port=port, host="127.0.0.1"))
        events = Events()
        launch = LocalLaunch(
            found,
            host,
            events.tell,
            lambda: None,
            None if log_file is None else str(log_file),
        )
        followed = Followed(process, launch, events)
        launch.start()
        stack.callback(launch.close)
        yield followed


async def test_the_log_that_the_operator_names_is_read(tmp_path):
    """Its own output goes nowhere; something else writes what it says to the file."""
    host, _ = a_host()
    log = tmp_path / "vllm.log"
    log.touch()
    with following(host, log_file=log) as followed:
        await followed.log_is_open()
        log.write_text(f"{PORT_IN_USE}\n")
        followed.write("")
        assert (await followed.events.evidence()).logged_cause is Reason.PORT_IN_USE


async def test_its_own_output_is_read_where_no_log_is_named(tmp_path):
    host, _ = a_host()
    with following(host, log=tmp_path / "vllm.log") as followed:
        await followed.log_is_open()
        followed.write(PORT_IN_USE)
        evidence = await followed.events.evidence()
        assert evidence.logged_cause is Reason.PORT_IN_USE
        assert evidence.log == (PORT_IN_USE,)


async def test_what_is_started_in_its_place_has_the_log_to_itself(tmp_path, monkeypatch):
    """A line without a process tells nothing in a log that two launches write to at a time."""
    monkeypatch.setattr(local_launch, "SETTLE_SECONDS", PATIENCE_SECONDS)
    host, _ = a_host(gpus=HungGpus(), log_files=FollowedFiles())
    log = tmp_path / "vllm.log"
    with following(host, log=log) as first:
        await first.log_is_open()
        first.write("")
        await first.events.first(EndBegan)
        with following(replace_gpus(host), log=log) as second:
            await second.log_is_open()
            second.write(PORT_IN_USE)
            assert (await second.events.evidence()).logged_cause is Reason.PORT_IN_USE
        assert not any(isinstance(event, EndSettled) for event in first.events.told)


def replace_gpus(host: LocalHost) -> LocalHost:
    """The same host, whose ends wait for no GPU."""
    return LocalHost(
        host.proc, host.processes, host.clock, host.count_dropped, log_files=host.log_files
    )


@pytest.mark.parametrize("may_read_environ", [True, False])
async def test_the_environment_is_read_for_its_secrets_only_where_that_is_allowed(
    tmp_path, may_read_environ
):
    host, _ = a_host(may_read_environ=may_read_environ)
    environ = {**os.environ, "SOME_TOKEN": CANARY}
    with following(host, log=tmp_path / "vllm.log", environ=environ) as followed:
        await followed.log_is_open()
        followed.write(f"ERROR 11-24 10:00:00 [launcher.py:10] cannot use {CANARY}")
        [line] = (await followed.events.evidence()).log
        assert (CANARY in line) is not may_read_environ


@pytest.mark.parametrize(("secrets", "dropped"), [(MAX_SECRETS // 2, 0), (MAX_SECRETS + 1, 1)])
async def test_secrets_that_are_too_many_are_counted_once(tmp_path, secrets, dropped):
    host, counts = a_host()
    environ = {f"TOKEN_{n}": f"a-secret-with-number-{n}" for n in range(secrets)}
    with following(host, log=tmp_path / "vllm.log", environ=environ) as followed:
        await followed.log_is_open()
        assert counts == Counter(secrets=dropped)


class Search:
    """Whose port was looked for, in the place of the search itself."""

    def __init__(self) -> None:
        self.pids: list[int] = []
        self.found = "python3 (PID 7)"

    def __call__(self, proc: Proc, pid: int, command: VllmCommand) -> str:
        del proc, command
        self.pids.append(pid)
        return self.found


@pytest.fixture
def search(monkeypatch) -> Search:
    search = Search()
    monkeypatch.setattr(local_launch, "port_holder", search)
    return search


@pytest.mark.parametrize(
    ("line", "is_in_this_network"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory.", True),
        # What listens in the agent's network was not in the way of one in another.
        (PORT_IN_USE, False),
        (PORT_IN_USE, None),
    ],
)
@pytest.mark.usefixtures("search")
async def test_who_holds_a_port_is_not_looked_for_late_where_that_tells_nothing(
    tmp_path, monkeypatch, line, is_in_this_network
):
    monkeypatch.setattr(local_launch, "is_same_network", lambda *_: is_in_this_network)
    host, _ = a_host()
    with following(host, log=tmp_path / "vllm.log") as followed:
        await followed.log_is_open()
        followed.write(line)
        assert (await followed.events.evidence()).port_holder == ""


async def test_a_stranger_that_was_seen_is_not_looked_for_again(tmp_path, search):
    host, _ = a_host()
    with following(host, log=tmp_path / "vllm.log") as followed:
        await followed.log_is_open()
        followed.launch.note_stranger()
        followed.launch.note_stranger()
        followed.write(PORT_IN_USE)
        assert (await followed.events.evidence()).port_holder == search.found
        assert search.pids == [followed.process.pid]


async def test_a_stranger_that_could_not_be_found_is_looked_for_again_when_it_has_ended(
    tmp_path, search
):
    search.found = ""
    host, _ = a_host()
    with following(host, log=tmp_path / "vllm.log") as followed:
        await followed.log_is_open()
        followed.launch.note_stranger()
        followed.write(PORT_IN_USE)
        assert (await followed.events.evidence()).port_holder == ""
        assert search.pids == [followed.process.pid, os.getpid()]


async def test_a_stranger_that_is_looked_for_once_the_process_is_gone_is_unknown(tmp_path, caplog):
    host, _ = a_host()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with following(host, log=tmp_path / "vllm.log", port=port) as followed:
        await followed.log_is_open()
        followed.write(PORT_IN_USE)
        followed.process.wait(PATIENCE_SECONDS)
        followed.launch.note_stranger()
        evidence = await followed.events.evidence()
    assert (evidence.logged_cause, evidence.port_holder) == (Reason.PORT_IN_USE, "")
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    verdict = judge(evidence)
    assert verdict.reason is Reason.PORT_IN_USE
    assert not any("held by" in told for told in verdict.evidence)


async def test_an_end_ends_the_watch_of_its_load(tmp_path, monkeypatch):
    monkeypatch.setattr(local_launch, "SETTLE_SECONDS", PATIENCE_SECONDS)
    host, _ = a_host(gpus=HungGpus())
    with following(host, log=tmp_path / "vllm.log") as followed:
        followed.launch.watch_load()
        await followed.events.first(LoadLooked)
        watch = followed.launch._load._task
        assert watch is not None
        followed.write("")
        await followed.events.first(EndBegan)
        await asyncio.wait({watch}, timeout=PATIENCE_SECONDS)
        assert watch.cancelled()


class NotedLaunch:
    """A launch that notes what it is told to do."""

    def __init__(self, sighting: Sighting, *_: object) -> None:
        self.sighting = sighting
        self.done: list[str] = []
        self.pids = (sighting.process.pid,)
        self.is_over = False

    def __getattr__(self, name: str) -> Callable[[], None]:
        return lambda: self.done.append(name)

    def refreshed_tree(self) -> ProcessTree:
        return ProcessTree(process=self.sighting.process, is_main_alive=True)


class TestLaunchesOfAServer:
    """What a server asks of its launches, the newest and those before it."""

    @pytest.fixture
    def server(self, monkeypatch) -> Iterator[LocalServer]:
        monkeypatch.setattr(local_server, "LocalLaunch", NotedLaunch)
        server = LocalServer(a_host()[0], lambda url: Target(url, timeout_seconds=5.0))
        yield server
        server.close()

    @pytest.fixture
    def processes(self) -> Iterator[list[Sighting]]:
        with contextlib.ExitStack() as stack:
            processes = [
                stack.enter_context(subprocess.Popen(["cat"], stdin=subprocess.PIPE))
                for _ in range(2)
            ]
            yield [sighting(Proc(), process.pid) for process in processes]

    @staticmethod
    def done(server: LocalServer) -> list[list[str]]:
        return [launch.done for launch in server._launches]  # type: ignore[attr-defined]

    async def test_a_load_that_begins_later_is_watched_and_the_one_before_no_more(
        self, server, processes
    ):
        server.follow(processes[0], lambda _: None)
        assert self.done(server) == [["start"]]
        server.watch_load()
        assert self.done(server) == [["start", "watch_load"]]
        server.follow(processes[1], lambda _: None)
        assert self.done(server) == [
            ["start", "watch_load", "leave_load"],
            ["start", "watch_load"],
        ]

    async def test_after_a_load_the_next_launch_is_watched_when_that_is_asked_for(
        self, server, processes
    ):
        server.watch_load()
        server.follow(processes[0], lambda _: None)
        assert self.done(server) == [["start", "watch_load"]]
        server.leave_load()
        server.follow(processes[1], lambda _: None)
        assert self.done(server) == [
            ["start", "watch_load", "leave_load", "leave_load"],
            ["start"],
        ]


async def test_a_stranger_on_its_port_is_named_when_it_ends():
    host, _ = a_host()
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        tree_scene.bash("read -r line; exit 1") as process,
    ):
        command = VllmCommand(port=other.getsockname()[1], host="127.0.0.1")
        server = LocalServer(host, lambda url: Target(url, timeout_seconds=5.0))
        events = Events()
        server.follow(sighting(Proc(), process.pid, command), events.tell)
        try:
            knock = await server.knock()
            assert not knock.is_accepted
            finding = server._launches[-1]._finding
            assert finding is not None
            await asyncio.wait({finding}, timeout=PATIENCE_SECONDS)
            process.communicate(b"")
            assert f"(PID {os.getpid()})" in (await events.evidence()).port_holder
        finally:
            server.close()
