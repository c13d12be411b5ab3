"""Who belongs to one launch, whatever its processes do, and that none is missed."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time

import pytest

from tests.host.blind_proc import BlindProc
from tests.host.fake_host import FakeHost, follow
from tests.host.tree_scene import (
    ENGINE_AND_WORKER,
    Watched,
    bash,
    everybody,
    open_fds,
    tiny_process,
)
from vllm_agent.host import launch_members
from vllm_agent.host.launch_members import DROPPED_EXIT, DROPPED_EXIT_WATCH, DROPPED_PROCESS
from vllm_agent.host.proc import Proc
from vllm_agent.host.process_tree import ComponentGone
from vllm_agent.observations import (
    ComponentRole,
)

API, ENGINE, WORKER = ComponentRole
NOBODY = 65534


@pytest.fixture
def host(tmp_path, monkeypatch) -> FakeHost:
    made = FakeHost(tmp_path)
    monkeypatch.setattr(launch_members, "ExitWatch", made.watch)
    made.add(10, 1, "vllm serve m")
    return made


async def test_child_that_is_listed_before_its_parent_belongs_to_it(host):
    """Numbers start again at the top."""
    stats = [
        host.add(11, 40, session=0, start=3),
        host.add(40, 90, session=0, start=2),
        host.add(90, 10, session=0, start=2),
        host.add(91, 1, session=0, start=2),
    ]
    watched = Watched(10, proc=host.proc).start(stats)
    assert watched.tree.pids == (10, 90, 40, 11)


async def test_session_of_the_main_process_holds_no_stranger(host):
    host.add(11, 1)
    host.add(12, 1, session=99)
    assert follow(host).tree.pids == (10, 11)


async def test_session_that_a_shell_leads_tells_nothing(host):
    host.add(10, 1, "vllm serve m", session=9)
    host.add(11, 1, session=9)
    host.add(12, 10, session=9)
    assert follow(host).tree.pids == (10, 12)


async def test_session_number_is_not_believed_once_the_session_is_empty(host):
    watched = follow(host)
    host.end(10)
    watched.tree.arrived([host.add(11, 1)])
    assert watched.tree.pids == ()


async def test_session_outlives_its_leader(host):
    host.add(11, 10)
    watched = follow(host)
    host.end(10)
    watched.tree.arrived([host.add(12, 1)])
    assert watched.tree.pids == (11, 12)


async def test_process_that_is_told_twice_is_taken_once(host):
    host.add(11, 10)
    watched = follow(host)
    watched.tree.arrived(host.everybody())
    assert watched.tree.pids == (10, 11)


async def test_number_that_another_process_has_now_is_not_the_member(host):
    host.add(11, 10, "VLLM::EngineCore")
    watched = follow(host)
    old = host.watches[11]
    watched.tree.arrived(
        [host.add(11, 1, session=5, start=9_000), host.add(12, 11, session=5, start=9_001)]
    )
    assert watched.tree.pids == (10,)
    assert old.is_closed
    await asyncio.sleep(0)
    assert [event.role for event in watched.events if isinstance(event, ComponentGone)] == [ENGINE]
    assert watched.tree.evidence().exits[0].wait_status is None


async def test_number_that_the_launch_uses_again_is_a_new_member(host):
    host.add(11, 10, "VLLM::EngineCore")
    watched = follow(host)
    watched.tree.arrived([host.add(11, 10, "VLLM::Worker", start=9_000)])
    components = watched.tree.tree().components
    assert [(c.role, c.is_alive) for c in components] == [
        (API, True),
        (ENGINE, False),
        (WORKER, True),
    ]


async def test_an_end_that_is_told_twice_counts_once(host):
    host.add(11, 10, "VLLM::EngineCore", ticks=100)
    watched = follow(host)
    watched.tree.refresh()
    for at_seconds, status in ((1.0, 9), (2.0, None)):
        host.end(11, at_seconds, status)
    await asyncio.sleep(0)
    gone = [event for event in watched.events if isinstance(event, ComponentGone)]
    assert len(gone) == 1
    [ended] = watched.tree.evidence().exits
    assert (ended.at_seconds, ended.wait_status) == (1.0, 9)
    assert watched.tree.pids == (10,)
    assert watched.tree.cpu_seconds == 1.0


async def test_a_late_word_of_an_end_leaves_whoever_has_the_number_now(host):
    host.add(11, 10, "VLLM::EngineCore")
    watched = follow(host)
    old = host.watches[11]
    watched.tree.arrived([host.add(11, 10, "VLLM::Worker", start=9_000)])
    # Its watch was closed, and had its call under way.
    old.on_exit(1.0, 0)
    assert 11 in watched.tree.pids
    assert [gone.role for gone in watched.tree.evidence().exits] == [ENGINE]
    host.end(11)
    assert 11 not in watched.tree.pids


async def test_zombie_never_becomes_a_member(host):
    host.add(11, 10, state="Z")
    assert follow(host).tree.pids == (10,)


async def test_processes_beyond_the_bound_are_counted(host, monkeypatch):
    monkeypatch.setattr(launch_members, "MAX_PROCESSES", 3)
    for pid in range(11, 15):
        host.add(pid, 10)
    watched = follow(host)
    assert watched.tree.pids == (10, 11, 12)
    assert watched.dropped == [DROPPED_PROCESS] * 2


async def test_ended_components_beyond_the_bound_are_counted(host, monkeypatch):
    monkeypatch.setattr(launch_members, "MAX_EXITS", 1)
    for pid in (11, 12):
        host.add(pid, 10, f"VLLM::EngineCore_DP{pid}")
    watched = follow(host)
    for pid in (11, 12):
        host.end(pid)
    await asyncio.sleep(0)
    assert len(watched.events) == 2
    assert len(watched.tree.evidence().exits) == 1
    assert watched.dropped == [DROPPED_EXIT]


def test_bounds_leave_room_for_the_largest_machines():
    assert (launch_members.MAX_PROCESSES, launch_members.MAX_EXITS) == (512, 256)


# Titles.


async def test_title_is_read_again_until_there_is_one_and_when_it_changes(host):
    spawned = "python -c from multiprocessing.spawn import spawn_main"
    host.add(11, 10, spawned)
    watched = follow(host)
    assert watched.roles == [(API, "")]
    host.add(11, 10, "VLLM::Worker")
    watched.tree.refresh()
    assert watched.roles == [(API, ""), (WORKER, "")]
    host.add(11, 10, "VLLM::Worker_TP0")
    watched.tree.refresh()
    assert watched.roles == [(API, ""), (WORKER, "tp0")]
    host.add(11, 10, "")
    watched.tree.refresh()
    assert watched.roles == [(API, ""), (WORKER, "tp0")]


async def test_fork_that_still_has_the_title_of_its_parent_is_no_component(host):
    """Its end would look like the end of an engine."""
    host.add(11, 10, "VLLM::EngineCore")
    host.add(12, 11, "VLLM::EngineCore")
    host.add(13, 12, "VLLM::EngineCore")
    host.add(14, 12, "VLLM::EngineCore")
    host.add(15, 12, "VLLM::EngineCore")
    watched = follow(host)
    host.end(14)
    host.end(12)
    watched.tree.refresh()
    host.end(15)
    await asyncio.sleep(0)
    assert watched.events == []
    assert watched.roles == [(API, ""), (ENGINE, "")]
    host.add(13, 1, "VLLM::Worker")
    watched.tree.refresh()
    assert watched.roles == [(API, ""), (ENGINE, ""), (WORKER, "")]


async def test_fork_that_was_seen_before_the_title_of_its_parent_loses_its_role(host):
    host.add(11, 10, "python -c x")
    host.add(12, 11, "VLLM::Worker")
    watched = follow(host)
    assert watched.roles == [(API, ""), (WORKER, "")]
    host.add(11, 10, "VLLM::Worker_TP0")
    watched.tree.refresh()
    assert watched.roles == [(API, ""), (WORKER, "tp0")]


# Ends without a watch.


async def test_without_descriptors_an_end_is_noticed_at_the_next_look(host):
    host.failing = OSError(errno.EMFILE, "Too many open files")
    host.add(11, 10, "VLLM::EngineCore")
    host.add(12, 10, "VLLM::Worker")
    watched = follow(host)
    assert watched.dropped == [DROPPED_EXIT_WATCH] * 3
    host.add(11, 10, "", state="Z", status=9)
    host.remove(12)
    watched.tree.refresh()
    assert {(e.role, e.wait_status) for e in watched.tree.evidence().exits} == {
        (ENGINE, 9),
        (WORKER, None),
    }
    host.remove(10)
    watched.tree.refresh()
    assert watched.tree.evidence().is_complete
    assert watched.tree.is_over


async def test_without_access_the_status_of_a_zombie_is_not_believed(tmp_path, monkeypatch):
    made = FakeHost(tmp_path)
    made.proc = BlindProc(tmp_path)
    made.failing = OSError(errno.EMFILE, "Too many open files")
    monkeypatch.setattr(launch_members, "ExitWatch", made.watch)
    made.add(10, 1, "vllm serve m")
    watched = follow(made)
    made.add(10, 1, "", state="Z")
    watched.tree.refresh()
    evidence = watched.tree.evidence()
    assert (evidence.main_wait_status, evidence.is_complete) == (None, True)


async def test_watch_is_tried_again_at_the_next_look(host):
    host.failing = OSError(errno.EMFILE, "Too many open files")
    watched = follow(host)
    host.failing = None
    watched.tree.refresh()
    assert watched.dropped == [DROPPED_EXIT_WATCH]
    host.end(10, 1.0, 0)
    assert watched.tree.evidence().main_wait_status == 0


async def test_child_that_was_gone_before_it_could_be_watched_is_an_exit(host):
    watched = follow(host)
    host.failing = ProcessLookupError(errno.ESRCH, "No such process")
    watched.tree.arrived([host.add(11, 10)])
    assert watched.tree.pids == (10,)
    assert watched.dropped == []


# Real processes.


# Two shells below a shell: neither leads the session, and its `cat` is a stranger to both.
OF_ONE_SHELL = f"""
exec 4<&0
cat <&4 &
bash -c '{ENGINE_AND_WORKER.replace("3<&0", "3<&4")}' &
bash -c '{ENGINE_AND_WORKER.replace("3<&0", "3<&4")}' &
wait
"""


def mains_of(shell: int) -> list[int]:
    """The two shells that the shell has started."""
    proc = Proc()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = [s.pid for s in everybody(proc) if s.parent == shell and s.name == "bash"]
        below = {s.parent for s in everybody(proc)}
        if len(found) == 2 and below >= {*found}:
            return found
        time.sleep(0.005)
    raise AssertionError("the shell has not started both")


async def test_two_servers_of_one_shell_are_two_trees():
    with bash(OF_ONE_SHELL) as shell:
        first, second = (Watched(pid).start() for pid in mains_of(shell.pid))
        await first.until_seen(lambda: len(first.roles) == 3)
        await second.until_seen(lambda: len(second.roles) == 3)
        assert len(first.tree.pids) == len(second.tree.pids) == 3
        assert not {*first.tree.pids} & {*second.tree.pids}
        first.tree.close()
        second.tree.close()


async def test_member_stays_a_member_whatever_parent_it_gets():
    with bash(OF_ONE_SHELL) as shell:
        main, _ = mains_of(shell.pid)
        watched = Watched(main).start()
        await watched.until_seen(lambda: len(watched.roles) == 3)
        os.kill(main, signal.SIGKILL)
        await watched.until_gone()
        watched.look()
        assert len(watched.tree.tree().orphans) == 2
        assert watched.tree.tree().processes == 2
        watched.tree.close()


async def test_a_thousand_launches_leave_no_descriptor_open():
    before = open_fds()
    for _ in range(500):  # on each of two loops
        with tiny_process() as main:
            watched = Watched(main.pid).start([])
            await watched.until_gone()
            assert watched.tree.evidence().main_wait_status == 1 << 8
            watched.tree.close()
    assert open_fds() == before


async def test_fork_storm_is_bounded_counted_and_leaves_nothing(monkeypatch):
    monkeypatch.setattr(launch_members, "MAX_PROCESSES", 20)
    script = "exec 3<&0; for i in {1..300}; do cat <&3 & done; echo; wait"
    with bash(script) as main:
        assert main.stdout is not None
        assert main.stdin is not None
        before = open_fds()
        watched = Watched(main.pid).start([])
        await asyncio.to_thread(main.stdout.readline)
        watched.look()
        assert len(watched.tree.pids) == 20
        assert watched.dropped == [DROPPED_PROCESS] * 281
        assert open_fds() == before + 20
        main.stdin.close()
        await watched.until(lambda: not watched.tree.pids)
        assert watched.tree.evidence().exits == ()
        assert open_fds() == before - 1
        watched.tree.close()


async def test_whoever_belonged_to_it_is_remembered_be_it_without_a_name(host, monkeypatch):
    """What EngineCore logs when it fails in its first second is of this launch."""
    host.add(11, 10)
    watched = follow(host)
    host.end(11)
    host.remove(11)
    assert (watched.tree.pids, watched.tree.all_pids) == ((10,), (10, 11))
    monkeypatch.setattr(launch_members, "MAX_PIDS", 3)
    watched.tree.arrived([host.add(12, 10), host.add(13, 10)])
    host.end(13)
    host.remove(13)
    assert watched.tree.all_pids == (10, 11, 12)
