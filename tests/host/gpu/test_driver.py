"""One GPU driver: asked in one thread, and never waited for longer than its deadline."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from typing import TYPE_CHECKING

import pytest

from tests.host.gpu.scene import DEADLINE_SECONDS, ToyReader, gpu, xid
from vllm_agent.config.choices import GpuUse
from vllm_agent.host.gpu.driver import ABSENT_SECONDS, MAX_DEVICES, Driver
from vllm_agent.host.gpu.reader import DriverError, NoDriverError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_agent.observations import GpuFault

TIMEOUT_SECONDS = 0.05


class Scene:
    def __init__(self, reader: ToyReader, use: GpuUse = GpuUse.AUTO) -> None:
        self.reader = reader
        self.seconds = 0.0
        self.told: list[GpuFault] = []
        self.driver = Driver(
            reader,
            use,
            timeout_seconds=TIMEOUT_SECONDS,
            monotonic=lambda: self.seconds,
            told=self.told.append,
        )

    async def look(self) -> None:
        await self.driver.look(())

    async def until_answered(self) -> None:
        """Waits until the call that hung has come back."""
        call = self.driver._call
        assert call is not None
        await asyncio.wait({call}, timeout=DEADLINE_SECONDS)


@contextlib.contextmanager
def scene(reader: ToyReader, use: GpuUse = GpuUse.AUTO) -> Iterator[Scene]:
    played = Scene(reader, use)
    yield played
    reader.may_answer.set()
    played.driver.close()


async def test_a_driver_is_opened_once_and_read_each_time():
    reader = ToyReader((gpu("0"),))
    with scene(reader) as played:
        await played.driver.look((4, 2))
        await played.look()
        assert reader.calls == ["open", "read", "read"]
        assert reader.asked == [(4, 2), ()]
        assert played.driver.reading is not None
        assert played.driver.reading == reader.gpus
        assert (played.driver.fault, played.driver.is_absent) == ("", False)
        assert reader.threads.isdisjoint({threading.get_ident()})


async def test_a_driver_that_hangs_costs_one_thread_and_recovers():
    reader = ToyReader((gpu("0"),))
    with scene(reader) as played:
        await played.look()
        reader.hang()
        await played.look()
        assert "did not answer within 0.05 s" in played.driver.fault
        assert played.driver.fix
        assert played.driver.reading is None
        threads = threading.active_count()
        for _ in range(5):
            await played.look()
        assert reader.calls.count("read") == 2
        assert threading.active_count() == threads
        reader.may_answer.set()
        await played.until_answered()
        # What it said so late is not shown: it is asked again.
        assert played.driver.reading is None
        await played.look()
        assert (played.driver.fault, played.driver.fix) == ("", "")
        assert played.driver.reading is not None
        assert len(reader.threads) == 1


async def test_a_fault_is_told_though_the_driver_hangs_right_after_it():
    reader = ToyReader((gpu("0"),), faults=[xid(79)])
    with scene(reader) as played:
        reader.hang()
        await played.look()
        assert played.driver.reading is None
        assert played.told == [xid(79)]


async def test_devices_that_change_their_names_are_not_remembered_for_ever():
    reader = ToyReader()
    with scene(reader) as played:
        for number in range(MAX_DEVICES + 5):
            reader.gpus = (gpu(f"{number}"),)
            await played.look()
        assert len(list(played.driver.gpus())) == MAX_DEVICES
        assert next(played.driver.gpus()).index == f"{MAX_DEVICES + 4}"


async def test_a_driver_that_fails_is_closed_and_opened_again():
    reader = ToyReader((gpu("0"),))
    with scene(reader) as played:
        await played.look()
        reader.error = DriverError("the driver was replaced: reboot")
        await played.look()
        assert played.driver.fault == "the driver was replaced: reboot"
        assert "journalctl" in played.driver.fix
        assert played.driver.reading is None
        reader.error = None
        await played.look()
        assert reader.calls == ["open", "read", "read", "close", "open", "read"]
        assert played.driver.fault == ""


async def test_a_fault_of_ours_is_logged_once_and_the_driver_asked_again(caplog):
    reader = ToyReader(error=KeyError("oops"))
    with scene(reader) as played:
        await played.look()
        await played.look()
        assert "a fault of the agent" in played.driver.fault
        assert [r.exc_info is not None for r in caplog.records].count(True) == 1
        reader.error = None
        await played.look()
        assert played.driver.fault == ""


async def test_an_absent_driver_is_no_fault_and_looked_for_again(caplog):
    caplog.set_level(logging.INFO)
    reader = ToyReader(open_error=NoDriverError("no libtoy.so"))
    with scene(reader) as played:
        for _ in range(3):
            await played.look()
        assert (played.driver.is_absent, played.driver.fault) == (True, "")
        assert reader.calls.count("open") == 1
        played.seconds = ABSENT_SECONDS
        await played.look()
        assert reader.calls.count("open") == 2
        assert played.driver.detail == "no libtoy.so"
        assert caplog.records == []
        reader.open_error = None
        played.seconds *= 2
        await played.look()
        assert not played.driver.is_absent
        assert played.driver.reading is not None


async def test_an_absent_driver_that_is_required_is_a_fault():
    with scene(ToyReader(open_error=NoDriverError("no libtoy.so")), GpuUse.REQUIRED) as played:
        await played.look()
        assert (played.driver.is_absent, played.driver.fault) == (False, "no libtoy.so")
        assert "required" in played.driver.fix


async def test_a_driver_that_went_away_is_a_fault_even_where_it_may_be_absent():
    reader = ToyReader((gpu("0"),))
    with scene(reader) as played:
        await played.look()
        reader.error = DriverError("gone")
        await played.look()
        reader.open_error = NoDriverError("module is not loaded")
        await played.look()
        assert played.driver.fault == "module is not loaded"
        assert "journalctl" in played.driver.fix


@pytest.mark.parametrize("problem", [DriverError("mismatch"), NoDriverError("gone")])
async def test_the_same_problem_is_logged_once(caplog, problem):
    reader = ToyReader((gpu("0"),))
    with scene(reader) as played:
        await played.look()
        reader.error = problem
        for _ in range(3):
            await played.look()
            played.seconds += ABSENT_SECONDS
        warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
        assert [r.getMessage() for r in warnings] == ["no word from a GPU driver"]
