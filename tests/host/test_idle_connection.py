from __future__ import annotations

import asyncio
import socket
from dataclasses import replace

import pytest

from tests.host.raw_server import open_sockets, raw_server, raw_socket_server, target
from vllm_agent.config.url import parse_server_url
from vllm_agent.host.clock import now
from vllm_agent.host.dial import Target, TlsOptions
from vllm_agent.host.idle_connection import (
    KEEPALIVE_IDLE_SECONDS,
    MAX_UNASKED_BYTES,
    IdleConnection,
)
from vllm_agent.observations import ProbeCause


class Peer:
    """A server that keeps its connections until told; `gone` counts what the clients closed."""

    def __init__(self, greeting: bytes = b"") -> None:
        self._greeting = greeting
        self.received = b""
        self.arrived, self.leave, self.gone = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def talk(self, reader, writer):
        writer.write(self._greeting)
        self.arrived.set()
        leaving = asyncio.create_task(self.leave.wait())
        reading = asyncio.create_task(reader.read())
        try:
            await asyncio.wait([leaving, reading], return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                self.received += reading.result()
                self.gone.set()
        finally:
            leaving.cancel()
            reading.cancel()


class Owner:
    """Who waits for the end of a connection."""

    def __init__(self, at: Target) -> None:
        self.lives: list[float] = []
        self.told = asyncio.Event()
        self.connection = IdleConnection(at, now, self._on_closed)

    def _on_closed(self, lived_seconds: float) -> None:
        self.lives.append(lived_seconds)
        self.told.set()

    async def wait(self) -> None:
        await asyncio.wait_for(self.told.wait(), 5)


async def test_end_of_the_peer_is_told_at_once_with_the_life():
    peer = Peer()
    async with raw_server(peer.talk) as port:
        owner = Owner(target(port))
        assert await owner.connection.connect() is None
        assert owner.connection.is_open
        await asyncio.sleep(0.02)
        assert owner.lives == []
        peer.leave.set()
        await owner.wait()
    assert len(owner.lives) == 1
    assert 0.01 <= owner.lives[0] < 5
    assert not owner.connection.is_open


async def test_nothing_is_sent():
    peer = Peer()
    async with raw_server(peer.talk) as port:
        owner = Owner(target(port))
        await owner.connection.connect()
        await peer.arrived.wait()
        owner.connection.close()
        await asyncio.wait_for(peer.gone.wait(), 5)
    assert peer.received == b""


async def test_close_by_the_owner_is_not_told():
    peer, sockets = Peer(), open_sockets()
    async with raw_server(peer.talk) as port:
        owner = Owner(target(port))
        await owner.connection.connect()
        owner.connection.close()
        await asyncio.wait_for(peer.gone.wait(), 5)
        owner.connection.close()
    assert owner.lives == []
    assert not owner.connection.is_open
    assert open_sockets() == sockets


async def test_closed_before_it_is_open_never_opens():
    peer = Peer()
    async with raw_server(peer.talk) as port:
        owner = Owner(target(port))
        connecting = asyncio.create_task(owner.connection.connect())
        await asyncio.sleep(0)
        owner.connection.close()
        assert await connecting is ProbeCause.RESET
        await asyncio.sleep(0)
        assert not owner.connection.is_open


async def test_closed_port_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    owner = Owner(target(port))
    assert await owner.connection.connect() is ProbeCause.REFUSED
    assert owner.lives == []
    assert not owner.connection.is_open


async def test_greeting_is_ignored():
    peer = Peer(greeting=b"x" * MAX_UNASKED_BYTES)
    async with raw_server(peer.talk) as port:
        owner = Owner(target(port))
        assert await owner.connection.connect() is None
        await asyncio.sleep(0.02)
        assert owner.connection.is_open
        owner.connection.close()


async def test_flood_ends_the_connection():
    peer = Peer(greeting=b"x" * (MAX_UNASKED_BYTES + 1))
    async with raw_server(peer.talk) as port:
        owner = Owner(target(port))
        if await owner.connection.connect() is None:
            await owner.wait()
        assert not owner.connection.is_open


async def test_vanished_host_is_noticed_by_keepalive():
    async with raw_server(Peer().talk) as port:
        owner = Owner(target(port))
        await owner.connection.connect()
        assert owner.connection._transport is not None
        end = owner.connection._transport.get_extra_info("socket")
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        idle_seconds = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        assert idle_seconds == KEEPALIVE_IDLE_SECONDS
        owner.connection.close()


async def test_unix_socket(tmp_path):
    path, peer = tmp_path / "vllm.sock", Peer()
    async with raw_socket_server(peer.talk, path):
        owner = Owner(replace(target(1), url=parse_server_url(f"unix://{path}")))
        assert await owner.connection.connect() is None
        peer.leave.set()
        await owner.wait()


@pytest.mark.needs("openssl")
async def test_tls_is_open_once_hands_are_shaken(authority):
    peer = Peer()
    async with raw_server(peer.talk, tls=authority.server_context()) as port:
        stranger = Owner(target(port, scheme="https"))
        assert await stranger.connection.connect() is ProbeCause.TLS
        owner = Owner(target(port, scheme="https", tls=TlsOptions(ca_file=authority.ca)))
        assert await owner.connection.connect() is None
        peer.leave.set()
        await owner.wait()
    assert stranger.lives == []
    assert len(owner.lives) == 1


@pytest.mark.needs("openssl")
async def test_handshake_has_the_deadline_of_the_target():
    sockets = open_sockets()
    async with raw_server(Peer().talk) as port:
        owner = Owner(target(port, scheme="https", timeout_seconds=0.05))
        assert await owner.connection.connect() is ProbeCause.TIMEOUT
    await asyncio.sleep(0)
    assert owner.lives == []
    assert open_sockets() == sockets


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_cancelled_connect_leaves_nothing_behind(scheme):
    peer, sockets, tasks = Peer(), open_sockets(), asyncio.all_tasks()
    async with raw_server(peer.talk) as port:
        owner = Owner(target(port, scheme=scheme))
        connecting = asyncio.create_task(owner.connection.connect())
        await asyncio.sleep(0)
        if scheme == "https":
            await peer.arrived.wait()
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        for _ in range(3):
            await asyncio.sleep(0)
    assert owner.lives == []
    assert not owner.connection.is_open
    assert open_sockets() == sockets
    assert asyncio.all_tasks() == tasks
