from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from vllm_agent.host.name_lookup import MAX_ADDRESSES, NameLookup


class Resolver:
    """Stand in for the system's: names that begin with `slow` wait until it is `released`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.released = threading.Event()

    def getaddrinfo(self, host, port, **_):
        self.asked.append(host)
        if host.startswith("slow"):
            self.released.wait()
        if host.startswith("bad"):
            raise UnicodeError("label too long")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"192.0.2.{n}", 0)) for n in range(99)]


@pytest.fixture
def resolver(monkeypatch):
    resolver = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", resolver.getaddrinfo)
    yield resolver
    resolver.released.set()


async def test_addresses_keep_their_order_up_to_a_bound(resolver):
    addresses = await NameLookup().addresses("a.test")
    assert addresses == tuple(f"192.0.2.{n}" for n in range(MAX_ADDRESSES))


async def test_nothing_is_cached(resolver):
    lookup = NameLookup()
    await lookup.addresses("a.test")
    await lookup.addresses("a.test")
    assert resolver.asked == ["a.test", "a.test"]


async def test_name_is_asked_once_at_a_time_even_when_a_caller_gives_up(resolver):
    lookup = NameLookup()
    first = asyncio.create_task(lookup.addresses("slow.test"))
    second = asyncio.create_task(lookup.addresses("slow.test"))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    resolver.released.set()
    assert len(await second) == MAX_ADDRESSES
    assert resolver.asked == ["slow.test"]


async def test_threads_are_bounded_and_reused(resolver):
    lookup = NameLookup(max_threads=2)
    before = threading.active_count()
    waiting = [asyncio.create_task(lookup.addresses(f"slow{n}.test")) for n in range(5)]
    await asyncio.sleep(0)
    assert threading.active_count() - before == 2
    resolver.released.set()
    await asyncio.gather(*waiting)
    assert len(resolver.asked) == 5
    assert threading.active_count() - before == 2


async def test_name_that_cannot_be_encoded_is_an_oserror(resolver):
    with pytest.raises(OSError, match="not a host name"):
        await NameLookup().addresses("bad.test")


def test_hung_lookup_does_not_keep_the_process_alive(resolver):
    before = set(threading.enumerate())

    async def give_up() -> None:
        lookup = NameLookup()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(lookup.addresses("slow.test"), 0.01)

    asyncio.run(give_up())
    started = set(threading.enumerate()) - before
    assert all(thread.daemon for thread in started)
