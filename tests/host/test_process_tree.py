"""What a tree tells: components, resources, ends as they happen, and the close noted."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time

import pytest

from tests.host.blind_proc import BlindProc
from tests.host.fake_host import PF_EXITING, FakeHost, follow
from tests.host.tree_scene import (
    ENGINE_AND_WORKER,
    Watched,
    bash,
    open_fds,
    sighting,
)
from vllm_agent.demo.launch import StandIn
from vllm_agent.host import launch_members, process_tree
from vllm_agent.host.pidfd import has_exit_info
from vllm_agent.host.proc import Proc
from vllm_agent.host.process_tree import ComponentGone, MainGone
from vllm_agent.observations import (
    ComponentAtClose,
    ComponentExit,
    ComponentRole,
    SightKind,
    VllmCommand,
)

API, ENGINE, WORKER = ComponentRole
NOBODY = 65534


@pytest.fixture
def host(tmp_path, monkeypatch) -> FakeHost:
    made = FakeHost(tmp_path)
    monkeypatch.setattr(launch_members, "ExitWatch", made.watch)
    made.add(10, 1, "vllm serve m")
    return made


# Real processes.


def pid_of(watched: Watched, role: ComponentRole) -> int:
    return next(c.pid for c in watched.tree.tree().components if c.role is role)


@pytest.mark.parametrize(
    ("arguments", "command", "expected"),
    [
        ((), VllmCommand(), {(API, ""), (ENGINE, ""), (WORKER, "")}),
        (
            ("--tensor-parallel-size", "2"),
            VllmCommand(),
            {(API, ""), (ENGINE, ""), (WORKER, "tp0"), (WORKER, "tp1")},
        ),
        (
            ("--api-server-count", "2", "--workers", "0"),
            VllmCommand(api_servers=2),
            {(API, "0"), (API, "1"), (ENGINE, "")},
        ),
        (
            ("--data-parallel-size", "2"),
            VllmCommand(),
            {
                *((API, "0"), (API, "1"), (ENGINE, "dp0"), (ENGINE, "dp1")),
                *((WORKER, "dp0"), (WORKER, "dp1")),
            },
        ),
    ],
    ids=["one of each", "two workers", "two API servers", "data parallel"],
)
async def test_components_of_a_layout_are_known_by_their_titles(arguments, command, expected):
    with StandIn.start("--speed", "10", *arguments) as server:
        await server.serving()
        watched = Watched(server.pid, command=command).start()
        await watched.until_seen(lambda: set(watched.roles) == expected)
        tree = watched.tree.tree()
        assert tree.is_main_alive
        assert all(component.is_alive for component in tree.components)
        # The others are Python's resource tracker and, with several engines, their coordinator.
        assert sorted(watched.tree.pids) == sorted(server.pids())
        assert tree.processes == len(watched.tree.pids)
        assert watched.tree.pids[0] == server.pid
        watched.tree.close()


async def test_processes_that_arrive_belong_to_it_from_the_first_one_on():
    with StandIn.start("--speed", "10", "--load-seconds", "0.3") as server:
        watched = Watched(server.pid).start()
        await watched.until_seen(lambda: len(watched.roles) == 3)
        watched.tree.close()


async def test_killed_main_process_is_told_at_once_and_its_orphans_are_followed():
    delays = []
    with StandIn.start("--speed", "10") as server:
        await server.serving()
        watched = Watched(server.pid).start()
        killed = time.monotonic()
        server.kill()
        gone = await watched.until_gone()
        delays.append(gone.at_seconds - killed)
        tree = watched.tree.tree()
        assert not tree.is_main_alive
        assert [(c.role, c.is_alive) for c in tree.components] == [
            (API, False),
            (ENGINE, True),
            (WORKER, True),
        ]
        assert (len(tree.orphans), watched.tree.is_over) == (2, False)
        evidence = watched.tree.evidence()
        assert evidence.main_wait_status == signal.SIGKILL
        assert evidence.main_exit_seconds == gone.at_seconds
        assert evidence.is_complete
        for pid in server.pids("VLLM::"):
            os.kill(pid, signal.SIGKILL)
        await watched.until(lambda: watched.tree.is_over)
        assert watched.tree.tree().orphans == ()
        watched.tree.close()
    print(f"SIGKILL to exit noted: {1000 * delays[0]:.1f} ms")


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
async def test_end_of_a_component_is_told_at_once_with_its_status(signum):
    with bash(f"ulimit -c 0; {ENGINE_AND_WORKER}") as main:
        watched = Watched(main.pid).start()
        await watched.until_seen(lambda: len(watched.roles) == 3)
        os.kill(pid_of(watched, ENGINE), signum)
        await watched.until(lambda: bool(watched.events))
        (event,) = watched.events
        assert event == ComponentGone(ENGINE, event.at_seconds)
        main.kill()
        await watched.until_gone()
        main.wait()
        assert await watched.tree.settled(5.0)
        (exited,) = watched.tree.evidence().exits
        expected = signum if has_exit_info() else exited.wait_status
        assert exited == ComponentExit(ENGINE, event.at_seconds, expected)
        tree = watched.tree.tree()
        assert tree.is_engine_gone
        watched.tree.close()


async def test_main_process_that_is_gone_already_is_told_as_well():
    with bash("read line") as main:
        proc = Proc()
        seen = sighting(proc, main.pid)
        main.kill()
        main.wait()
        watched = Watched(main.pid, seen=seen).start()
        assert watched.events == []
        await watched.until_gone()
        assert watched.tree.is_over
        evidence = watched.tree.evidence()
        assert (evidence.main_wait_status, evidence.is_complete) == (None, True)
        assert (evidence.close_seconds, evidence.at_close) == (None, None)
        assert watched.tree.tree().cpu_seconds is None


async def test_resources_are_those_of_the_whole_tree_and_cpu_never_falls():
    script = ENGINE_AND_WORKER.replace("wait", "for i in {1..40000}; do :; done; echo; wait")
    with bash(script) as main:
        assert main.stdout is not None
        await asyncio.to_thread(main.stdout.readline)
        watched = Watched(main.pid).start()
        await watched.until_seen(lambda: len(watched.roles) == 3)
        tree = watched.tree.tree()
        assert (tree.processes, tree.threads) == (3, 3)
        assert tree.resident_bytes is not None
        assert tree.resident_bytes > 3 << 20
        assert tree.open_fds is not None
        assert tree.open_fds >= 9
        assert tree.cpu_seconds is not None
        assert tree.cpu_seconds > 0
        used = tree.cpu_seconds
        main.kill()
        await watched.until_gone()
        main.wait()
        after = watched.tree.tree()
        assert after.cpu_seconds is not None
        assert after.cpu_seconds >= used
        assert after.processes == 2
        watched.tree.close()


async def test_another_user_is_told_of_the_end_and_of_its_status_once_it_was_reaped():
    """Without ptrace access: as nobody where the test is root, else with a blind /proc."""
    with StandIn.start("--speed", "10") as server:
        await server.serving()
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(NOBODY)
        try:
            watched = Watched(server.pid, proc=Proc() if is_root else BlindProc()).start()
            assert len(watched.tree.tree().components) == 3
            fds, status = watched.tree.sights()
            assert (fds.kind, fds.is_visible) == (SightKind.FDS, False)
            assert (status.kind, status.is_visible) == (
                SightKind.EXIT_STATUS,
                bool(has_exit_info()),
            )
            assert "user 1000" in fds.why_not
            assert "CAP_SYS_PTRACE" in fds.fix
        finally:
            if is_root:
                os.seteuid(0)
        server.kill()
        if is_root:
            os.seteuid(NOBODY)
        try:
            await watched.until_gone()
            evidence = watched.tree.evidence()
            assert (evidence.main_wait_status, evidence.is_complete) == (None, not has_exit_info())
        finally:
            if is_root:
                os.seteuid(0)
        server.wait()
        assert await watched.tree.settled(5.0)
        expected = signal.SIGKILL if has_exit_info() else None
        assert watched.tree.evidence().main_wait_status == expected
        watched.tree.close()


async def test_server_that_may_be_looked_into_has_all_sights():
    with bash("read line") as main:
        watched = Watched(main.pid).start([])
        assert [(s.kind, s.is_visible) for s in watched.tree.sights()] == [
            (SightKind.FDS, True),
            (SightKind.EXIT_STATUS, True),
        ]
        main.kill()
        await watched.until_gone()
        assert all(sight.is_visible for sight in watched.tree.sights())


async def test_evidence_waits_for_a_parent_that_does_not_reap():
    with bash("exit 3") as main:
        watched = Watched(main.pid, proc=BlindProc()).start([])
        await watched.until_gone()
        if has_exit_info():
            assert not await watched.tree.settled(0.01)
            assert not watched.tree.evidence().is_complete
        main.wait()
        assert await watched.tree.settled(5.0)
        expected = 3 << 8 if has_exit_info() else None
        assert watched.tree.evidence().main_wait_status == expected


async def test_close_while_a_status_is_awaited_ends_the_wait():
    with bash("exit 3") as main:
        before = open_fds()
        watched = Watched(main.pid, proc=BlindProc()).start([])
        await watched.until_gone()
        watched.tree.close()
        assert await watched.tree.settled(5.0)
        assert open_fds() == before


async def test_cost_of_noting_a_close_and_of_a_refresh():
    children = "".join(f"(exec -a VLLM::Worker_TP{n} cat <&3) & " for n in range(10))
    with bash(f"exec 3<&0; {children} wait") as main:
        watched = Watched(main.pid).start()
        await watched.until_seen(lambda: len(watched.roles) == 11)
        spent: dict[str, list[float]] = {"note_close": [], "refresh": [], "tree": []}
        for _ in range(20):
            for name, times in spent.items():
                began = time.perf_counter()
                getattr(watched.tree, name)()
                times.append(time.perf_counter() - began)
            watched.tree.forget_close()
        evidence = watched.tree.evidence()
        assert evidence.close_seconds is None
        watched.tree.close()
    typical = {name: 1000 * statistics.median(times) for name, times in spent.items()}
    print(", ".join(f"{name} {ms:.2f} ms" for name, ms in typical.items()), "for 10 components")


# What is shown.


@pytest.mark.parametrize(
    ("command", "title", "expected"),
    [
        (VllmCommand(), "VLLM::EngineCore", [(API, ""), (ENGINE, "")]),
        (VllmCommand(), "VLLM::APIServer_0", [(API, "0")]),
        (VllmCommand(is_headless=True), "VLLM::EngineCore", [(ENGINE, "")]),
        (VllmCommand(is_supervisor=True), "VLLM::APIServer_DP0", [(API, "dp0")]),
        (VllmCommand(api_servers=2), "python -c x", []),
        (VllmCommand(api_servers=1), "python -c x", [(API, "")]),
    ],
)
async def test_main_process_is_the_api_server_unless_others_are(host, command, title, expected):
    host.add(11, 10, title)
    assert follow(host, command).roles == expected


async def test_components_are_in_the_order_of_roles_and_ranks(host):
    for pid, title in enumerate(("Worker_TP10", "Worker_TP9", "EngineCore"), 11):
        host.add(pid, 10, f"VLLM::{title}")
    assert follow(host).roles == [(API, ""), (ENGINE, ""), (WORKER, "tp9"), (WORKER, "tp10")]


async def test_rank_that_was_started_again_is_the_newest_one(host):
    """Elastic scaling."""
    host.add(11, 10, "VLLM::EngineCore_DP1")
    watched = follow(host)
    host.end(11)
    host.remove(11)
    watched.tree.arrived([host.add(12, 10, "VLLM::EngineCore_DP1")])
    tree = watched.tree.tree()
    assert [(c.pid, c.is_alive) for c in tree.components] == [(10, True), (12, True)]
    assert len(watched.tree.evidence().exits) == 1
    assert watched.tree.all_pids == (10, 11, 12)


# Ends.


async def test_child_without_a_title_is_told_of_without_a_role(host):
    host.add(11, 10)
    host.add(12, 11)
    watched = follow(host)
    host.end(12, 1.0)
    host.end(11, 2.0)
    assert watched.events == []
    await asyncio.sleep(0)
    assert watched.events == [ComponentGone(None, 2.0)]
    assert watched.tree.evidence().exits == ()
    assert host.watches[11].is_closed


async def test_statuses_that_come_later_complete_the_evidence(host):
    host.add(11, 10, "VLLM::EngineCore")
    watched = follow(host)
    host.end(11, 1.0, None)
    assert not watched.tree.evidence().is_complete
    host.end(10, 2.0, None)
    host.watches[10].on_status(0)
    assert not watched.tree.evidence().is_complete
    host.watches[11].on_status(signal.SIGKILL)
    evidence = watched.tree.evidence()
    assert evidence.is_complete
    assert evidence.main_wait_status == 0
    assert evidence.exits == (ComponentExit(ENGINE, 1.0, signal.SIGKILL),)
    await asyncio.sleep(0)
    assert watched.events == [ComponentGone(ENGINE, 1.0), MainGone(2.0)]


async def test_orphan_that_ends_makes_the_evidence_incomplete_until_its_status_is_told(host):
    host.add(11, 10, "VLLM::EngineCore")
    watched = follow(host)
    host.end(10)
    assert watched.tree.evidence().is_complete
    host.end(11, 1.0, None)
    assert not watched.tree.evidence().is_complete
    host.watches[11].on_status(None)
    assert watched.tree.evidence().is_complete


async def test_zombie_that_no_watch_told_of_uses_nothing(host):
    host.add(11, 10)
    watched = follow(host)
    host.add(11, 10, state="Z")
    assert watched.tree.tree().processes == 1


async def test_status_that_stays_unknown_completes_the_evidence(host):
    watched = follow(host)
    host.end(10, 2.0, None)
    host.watches[10].on_status(None)
    evidence = watched.tree.evidence()
    assert (evidence.main_wait_status, evidence.is_complete) == (None, True)


async def test_nothing_is_told_after_close(host):
    host.add(11, 10, "VLLM::EngineCore")
    watched = follow(host)
    host.end(11)
    watched.tree.close()
    watched.tree.close()
    await asyncio.sleep(0)
    assert watched.events == []
    assert all(watch.is_closed for watch in host.watches.values())


async def test_used_cpu_of_what_ended_stays(host):
    host.add(11, 10, ticks=100)
    watched = follow(host)
    first = watched.tree.tree().cpu_seconds
    host.add(11, 10, ticks=300)
    assert watched.tree.tree().cpu_seconds == 3.0
    host.add(11, 10, ticks=200)
    assert watched.tree.tree().cpu_seconds == 3.0
    host.add(11, 10, ticks=400, state="Z")
    host.end(11)
    host.remove(11)
    assert (first, watched.tree.tree().cpu_seconds) == (1.0, 4.0)
    host.remove(10)
    host.end(10)
    tree = watched.tree.tree()
    assert tree.cpu_seconds == 4.0
    assert (tree.processes, tree.threads, tree.resident_bytes) == (0, None, None)


# The close of the listener.


async def test_close_notes_who_is_on_the_way_out(host):
    host.add(11, 10, "VLLM::EngineCore_DP0", flags=PF_EXITING)
    host.add(12, 10, "VLLM::EngineCore_DP1")
    host.set_pending(12, 1 << (signal.SIGKILL - 1))
    host.add(13, 10, "VLLM::Worker_DP0")
    host.add(14, 10, "VLLM::Worker_DP1")
    host.add(15, 10, "VLLM::Worker_DP2")
    host.add(16, 10, "VLLM::Worker_DP3")
    host.add(17, 10, "python -c x")
    watched = follow(host)
    host.end(13)
    host.remove(14)
    host.add(15, 10, state="Z")
    watched.tree.note_close()
    evidence = watched.tree.evidence()
    assert evidence.main_was_exiting_at_close is False
    assert evidence.close_seconds == pytest.approx(time.monotonic(), abs=5.0)
    assert evidence.at_close is not None
    assert sorted(evidence.at_close, key=str) == sorted(
        (
            ComponentAtClose(ENGINE, is_gone=False, is_exiting=True, has_kill_pending=False),
            ComponentAtClose(ENGINE, is_gone=False, is_exiting=False, has_kill_pending=True),
            ComponentAtClose(WORKER, is_gone=True, is_exiting=False, has_kill_pending=False),
            ComponentAtClose(WORKER, is_gone=True, is_exiting=False, has_kill_pending=False),
            ComponentAtClose(WORKER, is_gone=False, is_exiting=True, has_kill_pending=False),
            ComponentAtClose(WORKER, is_gone=False, is_exiting=False, has_kill_pending=False),
        ),
        key=str,
    )


@pytest.mark.parametrize(
    "how", ["exiting", "zombie", "kill pending", "gone", "told gone", "reused"]
)
async def test_close_notes_that_the_main_process_is_itself_exiting(host, how):
    watched = follow(host)
    match how:
        case "exiting":
            host.add(10, 1, flags=PF_EXITING)
        case "zombie":
            host.add(10, 1, state="Z")
        case "kill pending":
            host.set_pending(10, 1 << (signal.SIGKILL - 1))
        case "gone":
            host.remove(10)
        case "told gone":
            host.end(10)
        case "reused":
            host.add(10, 1, start=9_000)
    watched.tree.note_close()
    evidence = watched.tree.evidence()
    assert (evidence.main_was_exiting_at_close, evidence.at_close) == (True, ())


async def test_first_close_counts_until_it_is_forgotten(host):
    host.add(11, 10, "VLLM::EngineCore")
    watched = follow(host)
    watched.tree.note_close()
    first = watched.tree.evidence().close_seconds
    watched.tree.note_close()
    assert watched.tree.evidence().close_seconds == first
    watched.tree.forget_close()
    evidence = watched.tree.evidence()
    assert (evidence.close_seconds, evidence.at_close) == (None, None)
    assert evidence.main_was_exiting_at_close is None
    watched.tree.forget_close()
    watched.tree.note_close()
    assert watched.tree.evidence().close_seconds is not None


async def test_answer_of_a_connection_made_before_the_close_forgets_nothing(host):
    watched = follow(host)
    before = time.monotonic()
    watched.tree.note_close()
    watched.tree.forget_close(before)
    assert watched.tree.evidence().close_seconds is not None
    watched.tree.forget_close(time.monotonic())
    assert watched.tree.evidence().close_seconds is None


@pytest.mark.parametrize("how", ["exiting at the close", "gone since"])
async def test_answer_of_another_api_server_forgets_nothing(host, how):
    host.add(11, 10, "VLLM::APIServer_0", flags=PF_EXITING if how != "gone since" else 0)
    host.add(12, 10, "VLLM::APIServer_1")
    watched = follow(host)
    watched.tree.note_close()
    if how == "gone since":
        host.end(11)
    watched.tree.forget_close()
    assert watched.tree.evidence().close_seconds is not None


async def test_close_with_all_api_servers_alive_is_forgotten(host):
    host.add(11, 10, "VLLM::APIServer_0")
    host.add(12, 10, "VLLM::APIServer_1")
    watched = follow(host)
    watched.tree.note_close()
    watched.tree.forget_close()
    assert watched.tree.evidence().close_seconds is None


async def test_no_sight_says_what_to_do_on_any_linux(host, monkeypatch):
    monkeypatch.setattr(Proc, "shows_exit_status", lambda *_: False)
    monkeypatch.setattr(process_tree, "has_exit_info", lambda: None)
    watched = follow(host)
    fds, status = watched.tree.sights()
    assert (fds.is_visible, status.is_visible) == (False, False)
    assert "root" in fds.fix
    assert "Linux 6.15" in status.fix
    monkeypatch.setattr(process_tree, "has_exit_info", lambda: True)
    assert [sight.is_visible for sight in watched.tree.sights()] == [False, True]
