"""What is left of a launch: all of it, wherever it went, and nothing else."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.host.fake_host import FakeHost
from tests.host.launching.end_scene import (
    SLEEP,
    WAIT_SECONDS,
    Scene,
    end,
    told_pid,
    until,
    wait_ended,
)
from vllm_agent.host.launching import remains as remains_module
from vllm_agent.host.launching.plan import MARKER
from vllm_agent.host.launching.remains import (
    UNREADABLE_DROPPED,
    CannotLook,
    Mark,
    Remains,
    list_processes,
)
from vllm_agent.host.patience import Patience

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DAEMONS = {
    "session of its own": '(setsid sh -c "$SAY" &)',
    "session whose leader is gone": """setsid sh -c '(sh -c "$SAY" &)'""",
}
UNMARKED = 'env -i PATH="$PATH" "$TOKEN"'
COMPONENT = """
exec 3<&0
bash -c 'echo $$; exec -c -a VLLM::EngineCore cat <&3' &
wait
"""
FIRST_THREAD_GONE = """
import ctypes, os, threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
print(os.getpid(), flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


@pytest.fixture
def scene() -> Iterator[Scene]:
    with Scene() as made:
        yield made


async def left(remains: Remains) -> list[int]:
    return [process.pid for process in await remains.look()]


# Real processes.


async def test_the_session_is_found_with_the_main_process_first(scene):
    main = scene.start('sh -c "$SAY" & sh -c "$SAY" & wait')
    children = {told_pid(main), told_pid(main)}
    found = await left(scene.remains(scene.identify(main.pid)))
    assert found[0] == main.pid
    assert set(found[1:]) == children


@pytest.mark.parametrize("script", DAEMONS.values(), ids=DAEMONS)
async def test_a_daemon_is_found_by_its_mark_when_its_parents_are_gone(scene, script):
    main = scene.start(f"{script}; {SLEEP}")
    daemon, process = told_pid(main), scene.identify(main.pid)
    end(main)
    assert daemon in await left(scene.remains(process))


async def test_an_unmarked_child_is_found_below_its_parent_and_not_lost_again(scene):
    main = scene.start(f'{UNMARKED} setsid sh -c "$SAY" & wait')
    child = told_pid(main)
    remains = scene.remains(scene.identify(main.pid))
    assert child in await left(remains)
    end(main)
    assert await left(remains) == [child]


async def test_what_is_below_a_daemon_is_found(scene):
    main = scene.start(f"""setsid sh -c '{UNMARKED} setsid sh -c "$SAY" & wait' & {SLEEP}""")
    below, process = told_pid(main), scene.identify(main.pid)
    end(main)
    assert below in await left(scene.remains(process))


@pytest.mark.parametrize("was_seen_alive", [True, False])
async def test_a_session_without_leader_is_that_of_the_launch_if_this_agent_saw_it_live(
    scene, was_seen_alive
):
    main = scene.start(f'{UNMARKED} sh -c "$SAY" & wait')
    child, process = told_pid(main), scene.identify(main.pid)
    end(main)
    remains = scene.remains(process, was_seen_alive=was_seen_alive)
    assert await left(remains) == ([child] if was_seen_alive else [])


async def test_a_component_is_known_by_the_title_that_it_wrote_over_its_environment(scene):
    main = scene.start(COMPONENT)
    engine, process = told_pid(main), scene.identify(main.pid)
    until(lambda: scene.proc.command_line(engine).arguments == ("VLLM::EngineCore",))
    end(main)
    assert engine in await left(scene.remains(process))


async def test_zombies_are_not_left(scene):
    main = scene.start(f'sh -c "$SAY" & exec {SLEEP}')
    child, process = told_pid(main), scene.identify(main.pid)
    os.kill(child, signal.SIGKILL)
    wait_ended(child)
    remains = scene.remains(process)
    assert await left(remains) == [main.pid]
    main.kill()
    wait_ended(main.pid)
    assert scene.proc.stat(child) is None or scene.proc.stat(child).is_zombie
    assert scene.proc.stat(main.pid).is_zombie
    assert await left(remains) == []


async def test_a_process_whose_first_thread_has_ended_is_left(scene):
    main = scene.start(sys.executable, "-S", "-c", FIRST_THREAD_GONE)
    told_pid(main)
    until(lambda: scene.proc.stat(main.pid).is_zombie)
    assert await left(scene.remains(scene.identify(main.pid))) == [main.pid]


@pytest.mark.parametrize("other", [Mark("llama2", ""), Mark("llama", "another agent")])
async def test_other_servers_and_those_of_other_agents_are_left_alone(scene, other):
    mark = replace(other, owner=other.owner or scene.mark.owner)
    main = scene.start(f"exec {SLEEP}")
    scene.start(f"exec {SLEEP}", mark=mark)
    assert await left(scene.remains(scene.identify(main.pid))) == [main.pid]


async def test_older_processes_are_of_an_older_launch(scene):
    scene.start(f"exec {SLEEP}")
    main = scene.start(f"exec {SLEEP}")
    process = scene.identify(main.pid)
    # A tick has passed for certain.
    later = replace(process, start_ticks=process.start_ticks + 1000)
    assert await left(scene.remains(later)) == []


async def test_any_launch_of_the_server_is_found_by_its_mark(scene):
    mains = [scene.start(f"exec {SLEEP}") for _ in range(2)]
    scene.start(f"exec {SLEEP}", mark=Mark("other", scene.mark.owner))
    assert set(await left(scene.remains(None))) == {main.pid for main in mains}


async def test_the_agent_and_its_session_are_never_left_of_a_launch(scene):
    beside = scene.start(f"exec {SLEEP}", is_leader=False)
    leader = os.getsid(0)
    process = scene.identify(leader) if leader and scene.proc.stat(leader) else None
    assert scene.proc.stat(beside.pid).session == scene.proc.stat(os.getpid()).session
    assert await left(scene.remains(process)) == []
    # As the parent of the launches the agent is above them, and so is what started it.
    for above in (os.getpid(), os.getppid()):
        found = await left(scene.remains(scene.identify(above)))
        assert not {os.getpid(), os.getppid(), 1} & set(found)


async def test_of_another_boot_nothing_is_left(scene):
    main = scene.start(f"exec {SLEEP}")
    process = replace(scene.identify(main.pid), boot_id="another")
    assert await left(scene.remains(process)) == []


def test_no_file_to_spare_is_not_taken_for_an_empty_host():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.open("/proc", os.O_RDONLY)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
    try:
        with pytest.raises(CannotLook):
            list_processes(Scene().proc)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(spare)


# Made-up processes.

MAIN, AGENT_SESSION = 10, 5


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    made = FakeHost(tmp_path)
    made.add(os.getpid(), 1, session=AGENT_SESSION, start=1)
    return made


def remains_of(host: FakeHost, *, was_seen_alive: bool = False) -> Remains:
    stat = host.add(MAIN, 1, session=MAIN, start=1000)
    return Remains(
        host.proc,
        host.proc.identify(stat),
        Mark("llama", "owner"),
        count_dropped=pytest.fail,
        was_seen_alive=was_seen_alive,
    )


async def test_a_session_whose_number_another_leads_by_now_is_not_that_of_the_launch(host):
    remains = remains_of(host, was_seen_alive=True)
    host.add(MAIN, 1, session=MAIN, start=2000)
    host.add(20, MAIN, "VLLM::EngineCore", session=MAIN, start=2001)
    assert await left(remains) == []
    # Nor when that leader has ended.
    host.remove(MAIN)
    host.add(21, 1, session=MAIN, start=2002)
    assert 21 not in await left(remains)
    remains.close()


async def test_what_came_into_the_session_after_the_main_process_was_gone_needs_a_mark(host):
    remains = remains_of(host, was_seen_alive=True)
    host.remove(MAIN)
    host.add(20, 1, session=MAIN, start=1001)
    far_ahead = remains_module._now_ticks() + 1000
    host.add(21, 1, session=MAIN, start=far_ahead)
    marked = host.add(22, 1, session=MAIN, start=far_ahead)
    environ = f"A=1\0{MARKER}=llama/1@owner\0"
    (host.root / str(marked.pid) / "environ").write_text(environ, encoding="ascii")
    assert set(await left(remains)) == {20, 22}
    remains.close()


async def test_what_started_the_agent_is_never_left_of_a_launch(host):
    remains = remains_of(host)
    host.add(os.getpid(), 20, session=AGENT_SESSION, start=1003)
    host.add(20, MAIN, session=MAIN, start=1001)
    host.add(21, MAIN, session=MAIN, start=1001)
    host.add(22, os.getpid(), session=22, start=1004)
    assert await left(remains) == [21]
    remains.close()


async def test_a_child_older_than_its_parent_is_not_its_child(host):
    remains = remains_of(host)
    host.add(20, MAIN, session=20, start=999)
    assert await left(remains) == [MAIN]
    remains.close()


async def test_a_host_that_does_not_show_the_agent_shows_nothing(host):
    remains = remains_of(host)
    host.remove(os.getpid())
    with pytest.raises(CannotLook):
        await remains.look()
    remains.close()


async def test_a_process_that_cannot_be_read_is_counted_once_and_left_out(
    host, monkeypatch, caplog
):
    process = host.proc.identify(host.add(MAIN, 1, session=MAIN, start=1000))
    host.add(20, 1, session=20, start=1001)
    free = threading.Event()
    dropped: list[str] = []

    def hung(proc, pid):
        del proc
        if pid == 20:
            free.wait(WAIT_SECONDS)

    monkeypatch.setattr(remains_module, "read_environ", hung)
    remains = Remains(host.proc, process, Mark("llama", "owner"), count_dropped=dropped.append)
    remains._patience = Patience(hung_seconds=0.05)
    assert await left(remains) == [MAIN]
    assert await left(remains) == [MAIN]
    assert dropped == [UNREADABLE_DROPPED]
    assert len(caplog.records) == 1
    free.set()
    remains.close()


async def test_a_list_that_does_not_come_back_tells_nothing(host, monkeypatch):
    remains = remains_of(host)
    free = threading.Event()
    monkeypatch.setattr(remains_module, "list_processes", lambda _: free.wait(WAIT_SECONDS))
    remains._patience = Patience(hung_seconds=0.05)
    with pytest.raises(CannotLook):
        await remains.look()
    free.set()
    remains.close()


def test_a_mark_is_of_one_server_of_one_state_directory(tmp_path):
    (tmp_path / "other").mkdir()
    mark, other = Mark.of("llama", tmp_path), Mark.of("llama", tmp_path / "other")
    environ = f"A=b\0{MARKER}={mark.value('1f')}\0C=d\0".encode()
    assert mark == Mark.of("llama", tmp_path)
    assert mark.is_in(environ)
    assert not other.is_in(environ)
    assert not Mark("lla", mark.owner).is_in(environ)
    assert not mark.is_in(environ.replace(MARKER.encode(), b"X" + MARKER.encode()))


async def test_an_environment_is_read_once_unless_it_was_empty_or_may_be_a_forks(host, monkeypatch):
    remains = remains_of(host)
    blocks = {20: b"A=1\0", 21: b"", 22: None}
    for pid in blocks:
        host.add(pid, 1, session=pid, start=1001)
    host.add(23, 1, session=23, start=remains_module._now_ticks())
    blocks[23] = b"A=1\0"
    asked: list[int] = []

    def read(proc, pid):
        asked.append(pid)
        return blocks.get(pid)

    monkeypatch.setattr(remains_module, "read_environ", read)
    assert await left(remains) == [MAIN]
    # During an exec there is none.
    blocks[21] = blocks[23] = f"A=1\0{MARKER}=llama/1@owner\0".encode()
    assert await left(remains) == [MAIN, 21, 23]
    empty = [21] * (1 + remains_module.EXEC_READS)
    assert sorted(asked) == [20, *empty, 21, 22, 22, 23, 23]
    remains.close()


async def test_a_program_that_is_just_being_executed_is_asked_again_in_the_same_look(
    host, monkeypatch
):
    host.add(21, 1, session=21, start=1001)
    host.add(22, remains_module.KTHREADD, session=22, start=1001)
    answers = {21: [b"", b"", f"A=1\0{MARKER}=llama/1@owner\0".encode()], 22: [b""]}
    monkeypatch.setattr(
        remains_module, "read_environ", lambda _, pid: answers[pid].pop(0) if pid > 20 else b"A=1\0"
    )
    remains = remains_of(host)
    assert await left(remains) == [MAIN, 21]
    remains.close()
