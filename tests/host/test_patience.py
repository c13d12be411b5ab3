"""Items that hang cost one thread each, and nobody else's result."""

from __future__ import annotations

import threading

import pytest

from vllm_agent.host import patience
from vllm_agent.host.patience import Patience, TooManyHung


@pytest.fixture
def patient():
    patient = Patience(hung_seconds=0.02)
    yield patient
    patient.close()


@pytest.fixture
def driver():
    """What hangs until it is set, which is at the end of the test at the latest."""
    event = threading.Event()
    yield event
    event.set()


async def test_results_keep_their_order(patient):
    assert await patient.map(str, range(1000)) == ([str(n) for n in range(1000)], [])
    assert await patient.map(str, []) == ([], [])


async def test_one_thread_does_it_all(patient):
    names = set()
    for _ in range(10):
        found, _ = await patient.map(lambda _: threading.get_ident(), range(3))
        names |= set(found)
    assert len(names) == 1
    assert threading.get_ident() not in names


async def test_an_item_that_hangs_is_left_out(patient, driver):
    def work(number: int) -> int:
        if number in {3, 5}:
            driver.wait()
        return number

    results, hung = await patient.map(work, range(8))
    assert results == [0, 1, 2, 4, 6, 7]
    assert hung == [3, 5]
    assert (await patient.map(work, [1]))[0] == [1]


async def test_what_comes_back_late_goes_no_further(patient, driver):
    done: list[int] = []

    def work(number: int) -> None:
        if number == 0:
            driver.wait()
        done.append(number)

    await patient.map(work, [0, 1])
    driver.set()
    for thread in patient._left_behind:
        thread.join()
    assert sorted(done) == [0, 1]


async def test_slow_is_not_hung():
    patient = Patience(hung_seconds=0.2)
    tick = threading.Event()
    results, hung = await patient.map(lambda _: tick.wait(0.03), range(12))
    patient.close()
    assert (len(results), hung) == (12, [])


async def test_threads_left_behind_are_bounded(patient, driver, monkeypatch):
    monkeypatch.setattr(patience, "MAX_HUNG_THREADS", 2)
    for _ in range(2):
        assert await patient.map(lambda _: driver.wait(), [1]) == ([], [1])
    with pytest.raises(TooManyHung, match="2 reads of processes hang"):
        await patient.map(str, [1])
    driver.set()
    for thread in patient._left_behind:
        thread.join()
    assert await patient.map(str, [1]) == (["1"], [])


async def test_a_fault_belongs_to_whoever_waits(patient):
    def fail(number: int) -> int:
        return 1 // number

    with pytest.raises(ZeroDivisionError):
        await patient.map(fail, [1, 0])
    assert await patient.map(fail, [1]) == ([1], [])
