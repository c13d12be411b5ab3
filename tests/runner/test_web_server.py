"""The agent's sockets: what they are, and what is said when they cannot be had."""

from __future__ import annotations

import socket
import stat

import pytest
from aiohttp import ClientSession, UnixConnector, web

from vllm_agent.config.listen_address import parse_listen_address
from vllm_agent.web_server import CannotListen, WebServer


def app() -> web.Application:
    async def hello(_: web.Request) -> web.Response:
        return web.Response(text="hello")

    application = web.Application()
    application.router.add_get("/", hello)
    return application


async def test_every_address_is_served_and_told_as_bound():
    server = WebServer()
    try:
        addresses = [parse_listen_address("127.0.0.1:0"), parse_listen_address("[::1]:0")]
        bound = await server.serve(addresses, app())
        assert len(bound) == 2
        async with ClientSession() as client:
            for address in bound:
                async with client.get(f"http://{address}/") as answer:
                    assert await answer.text() == "hello"
    finally:
        await server.close()


async def test_a_taken_port_names_its_holder_and_the_flag():
    server = WebServer()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = parse_listen_address(f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(CannotListen, match=r"in use by .+ \(PID \d+\).+--web.listen-address"):
            await server.serve([address], app())
    await server.close()


async def test_an_address_of_another_host_is_told():
    server = WebServer()
    with pytest.raises(CannotListen, match=r"192\.0\.2\.1:1234"):
        await server.serve([parse_listen_address("192.0.2.1:1234")], app())
    await server.close()


async def test_the_control_socket_is_for_owner_and_group_and_goes_with_the_agent(tmp_path):
    path = tmp_path / "control.sock"
    path.touch()
    server = WebServer()
    await server.serve_socket(path, app())
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    async with (
        ClientSession(connector=UnixConnector(str(path))) as client,
        client.get("http://agent/") as answer,
    ):
        assert await answer.text() == "hello"
    await server.close()
    assert not path.exists()


async def test_a_socket_path_that_cannot_be_is_told(tmp_path):
    server = WebServer()
    with pytest.raises(CannotListen, match="missing"):
        await server.serve_socket(tmp_path / "missing" / "control.sock", app())
    await server.close()


async def test_a_socket_path_that_is_too_long_says_what_to_choose(tmp_path):
    server = WebServer()
    with pytest.raises(CannotListen, match=r"choose a shorter --state\.dir"):
        await server.serve_socket(tmp_path / ("x" * 108), app())
    await server.close()


async def test_a_name_that_does_not_resolve_is_told_in_words():
    server = WebServer()
    with pytest.raises(CannotListen, match=r"nosuch\.invalid:1: (?!Unknown error)"):
        await server.serve([parse_listen_address("nosuch.invalid:1")], app())
    await server.close()
