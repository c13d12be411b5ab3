"""SIGKILL until nothing of a launch is left, to nobody else, and never to a number alone."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest

from tests.host.launching.end_scene import SLEEP, WAIT_SECONDS, Scene, end, eventually, told_pid
from tests.host.tree_scene import open_fds
from vllm_agent.host.launching import killing
from vllm_agent.host.launching.killing import EMPTY_LOOKS, STUCK_DROPPED, kill_all, send_signal
from vllm_agent.host.launching.remains import CannotLook, Mark, Remains
from vllm_agent.host.patience import TooManyHung

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_agent.observations import ProcessId

HIDING_PLACES = {
    "alone": f"echo $$; exec {SLEEP}",
    "session": 'sh -c "$SAY" & wait',
    "ignores SIGTERM": f"trap '' TERM; echo $$; {SLEEP}; {SLEEP}",
    "stopped": f"echo $$; kill -STOP $$; {SLEEP}",
    "daemon": f'(setsid sh -c "$SAY" &); {SLEEP}',
    "daemon that forked twice": f"""setsid sh -c '(sh -c "$SAY" &)'; {SLEEP}""",
}
BELOW_ITS_PARENT = 'env -i PATH="$PATH" "$TOKEN" setsid sh -c "$SAY" & wait'
# Three at a time watch their parents, and each that loses its own starts one more.
FORKING = """
import os, select, time
for _ in range(3):
    if os.fork() == 0:
        break
else:
    print(os.getpid(), flush=True)
    time.sleep(600)
for _ in range(20):
    select.select([os.pidfd_open(os.getppid())], [], [])
    if os.fork():
        time.sleep(600)
    os.setsid()
time.sleep(600)
"""


@pytest.fixture
def scene() -> Iterator[Scene]:
    with Scene() as made:
        yield made


async def clear(scene: Scene, remains: Remains) -> int:
    return await kill_all(remains, scene.proc, server="llama", count_dropped=scene.dropped.append)


@pytest.mark.parametrize(
    ("script", "is_main_gone"),
    [
        *((script, is_gone) for script in HIDING_PLACES.values() for is_gone in (False, True)),
        (BELOW_ITS_PARENT, False),
    ],
    ids=[
        *(f"{place} {when}" for place in HIDING_PLACES for when in ("at a stop", "after its end")),
        "below its parent",
    ],
)
async def test_nothing_is_left_of_a_launch_and_others_live(scene, script, is_main_gone):
    main = scene.start(script)
    told_pid(main)
    other = scene.start(f"exec {SLEEP}", mark=Mark("other", scene.mark.owner))
    beside = scene.start(f"exec {SLEEP}", is_leader=False, mark=Mark("none", ""))
    process = scene.identify(main.pid)
    if is_main_gone:
        end(main)
    before = open_fds()
    remains = scene.remains(process, was_seen_alive=True)
    await clear(scene, remains)
    remains.close()
    assert scene.alive() <= {other.pid, beside.pid}
    assert other.poll() is beside.poll() is None
    assert not scene.dropped
    assert open_fds() == before


async def test_those_that_fork_when_their_parent_is_killed_come_to_an_end(scene):
    main = scene.start(sys.executable, "-S", "-c", FORKING)
    told_pid(main)
    assert await clear(scene, scene.remains(scene.identify(main.pid))) > 1
    assert not scene.alive()


async def test_what_appears_after_a_kill_is_found_by_the_next_look(scene, monkeypatch):
    remains = scene.remains(None)
    look, left = remains.look, ["2 at first", "1 later"]

    async def look_after_a_start() -> list[ProcessId]:
        for _ in range(int(left.pop(0)[0]) if left else 0):
            told_pid(scene.start('sh -c "$SAY" & wait'))
        found: list[ProcessId] = await look()
        return found

    monkeypatch.setattr(remains, "look", look_after_a_start)
    assert await clear(scene, remains) == 6
    assert not scene.alive()


async def test_more_than_are_awaited_at_once_are_ended(scene, monkeypatch):
    monkeypatch.setattr(killing, "AWAITED_AT_ONCE", 2)
    main = scene.start('for i in 1 2 3 4 5 6; do sh -c "$SAY" & done; wait')
    for _ in range(6):
        told_pid(main)
    before = open_fds()
    remains = scene.remains(scene.identify(main.pid))
    assert await clear(scene, remains) == 7
    remains.close()
    assert not scene.alive()
    assert open_fds() == before


# Signals.


def test_a_signal_goes_to_that_process_and_not_to_its_number(scene):
    main = scene.start(f"trap 'echo 15; exit' TERM; echo $$; while :; do {SLEEP} & wait; done")
    told_pid(main)
    process = scene.identify(main.pid)
    for stranger in (
        replace(process, start_ticks=process.start_ticks - 1),
        replace(process, boot_id="another"),
    ):
        assert not send_signal(stranger, signal.SIGKILL, scene.proc)
    assert send_signal(process, signal.SIGTERM, scene.proc)
    assert told_pid(main) == signal.SIGTERM
    main.wait(WAIT_SECONDS)
    assert not send_signal(process, signal.SIGTERM, scene.proc)


def test_a_signal_that_may_not_be_sent_is_told(scene, monkeypatch):
    main = scene.start(f"exec {SLEEP}")

    def refuse(fd, number):
        raise PermissionError(number)

    monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
    before = open_fds()
    with pytest.raises(PermissionError):
        send_signal(scene.identify(main.pid), signal.SIGTERM, scene.proc)
    assert open_fds() == before


# What goes wrong.


class ToyRemains:
    """Looks that find what a test says; an exception is raised."""

    def __init__(self, *looks: list[ProcessId] | Exception) -> None:
        self.looks = list(looks)
        self.is_group_removed = False

    async def look(self) -> list[ProcessId]:
        look = self.looks.pop(0)
        if isinstance(look, Exception):
            raise look
        return look

    async def kill_group(self) -> None:
        """There is none."""

    async def remove_group(self) -> None:
        self.is_group_removed = True


async def test_one_look_that_finds_nothing_is_not_enough(scene):
    main = scene.start(f"exec {SLEEP}")
    nothing: list[list[ProcessId] | Exception] = [[] for _ in range(EMPTY_LOOKS - 1)]
    remains = ToyRemains(*nothing, [scene.identify(main.pid)], *nothing, [], [])
    await clear(scene, cast("Remains", remains))
    assert remains.looks == [[]]
    assert remains.is_group_removed
    assert not scene.alive()


@pytest.mark.parametrize("problem", [CannotLook("blind"), TooManyHung("hung")])
async def test_a_look_that_tells_nothing_is_tried_again_and_told_of_once(
    scene, problem, monkeypatch, caplog
):
    monkeypatch.setattr(killing, "ROUND_SECONDS", 0.001)
    main = scene.start(f"exec {SLEEP}")
    left = [scene.identify(main.pid)]
    remains = ToyRemains([], problem, problem, left, problem, [], [])
    await clear(scene, cast("Remains", remains))
    assert remains.looks == []
    await eventually(lambda: not scene.alive())
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_without_a_file_to_spare_it_is_tried_again(scene, monkeypatch, caplog):
    monkeypatch.setattr(killing, "ROUND_SECONDS", 0.01)
    main = scene.start(f"exec {SLEEP}")
    remains = scene.remains(scene.identify(main.pid))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.open("/proc", os.O_RDONLY)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
    try:
        clearing = asyncio.create_task(clear(scene, remains))
        await eventually(lambda: caplog.records)
        assert not clearing.done()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(spare)
    await clearing
    assert not scene.alive()


async def test_what_does_not_end_is_waited_for_told_once_and_counted(scene, monkeypatch, caplog):
    monkeypatch.setattr(killing, "ROUND_SECONDS", 0.01)
    monkeypatch.setattr(killing, "STUCK_ROUND_SECONDS", 0.01)
    monkeypatch.setattr(killing, "STUCK_SECONDS", 0.05)
    main = scene.start(f"exec {SLEEP}")
    free = asyncio.Event()
    sent = []
    send = signal.pidfd_send_signal

    def held(fd, number):
        sent.append(number)
        if free.is_set():
            send(fd, number)

    monkeypatch.setattr(signal, "pidfd_send_signal", held)
    clearing = asyncio.create_task(clear(scene, scene.remains(scene.identify(main.pid))))
    await eventually(lambda: scene.dropped)
    told = len(sent)
    await eventually(lambda: len(sent) >= told + 5)
    assert not clearing.done()
    free.set()
    assert await clearing == 1
    assert scene.dropped == [STUCK_DROPPED]
    assert [record.pid for record in caplog.records] == [main.pid]


async def test_one_that_may_not_be_killed_is_waited_for_and_spares_nobody(
    scene, monkeypatch, caplog
):
    main = scene.start('sh -c "$SAY" & wait; exec sleep 600')
    child = told_pid(main)
    asked: list[int] = []
    send = signal.pidfd_send_signal

    def refuse_first(fd, number):
        asked.append(number)
        if len(asked) == 1:
            raise PermissionError
        send(fd, number)

    monkeypatch.setattr(signal, "pidfd_send_signal", refuse_first)
    clearing = asyncio.create_task(clear(scene, scene.remains(scene.identify(main.pid))))
    await eventually(lambda: len(asked) == 2)
    await eventually(lambda: child not in scene.alive())
    assert main.poll() is None
    assert not clearing.done()
    main.kill()
    await clearing
    assert not caplog.records


async def test_a_cancelled_kill_leaves_no_file_open(scene, monkeypatch):
    main = scene.start(f"exec {SLEEP}")
    asked = asyncio.Event()
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda *_: asked.set())
    remains = scene.remains(scene.identify(main.pid))
    before = open_fds()
    clearing = asyncio.create_task(clear(scene, remains))
    async with asyncio.timeout(WAIT_SECONDS):
        await asked.wait()
    clearing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await clearing
    remains.close()
    assert open_fds() == before
