"""Answers that probes must survive."""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import time

import pytest

from tests.standin.conftest import FAST, ask
from vllm_agent.demo.launch import StandIn
from vllm_agent.demo.standin.faults import FAULTS, Fault

ARGUMENTS = {"status": ":418", "redirect": ":http://127.0.0.1:1/x"}


@pytest.fixture(scope="module")
def server():
    """Each mode on the path of its name."""
    modes = [(mode, ARGUMENTS.get(mode, "")) for mode in FAULTS]
    flags = [f"--hostile={mode}{argument}:/{mode}" for mode, argument in modes]
    with StandIn.start(*FAST, *flags) as one:
        yield one.wait_serving()


def exchange(
    server: StandIn, path: str, seconds: float = 5.0, limit: int = 1 << 22
) -> tuple[bytes, bool]:
    """What comes back for GET, and whether the peer closed in time."""
    received = b""
    deadline = time.monotonic() + seconds
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        while len(received) < limit:
            client.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                part = client.recv(1 << 16)
            except TimeoutError:
                return received, False
            if not part:
                return received, True
            received += part
    return received, False


def test_other_paths_are_well(server):
    assert ask(server, "/health").status == 200


def test_status(server):
    assert ask(server, "/status").status == 418


def test_bad_json(server):
    with pytest.raises(json.JSONDecodeError):
        ask(server, "/bad-json").json()


def test_redirect(server):
    answer = ask(server, "/redirect")
    assert (answer.status, answer.headers["location"]) == (307, "http://127.0.0.1:1/x")


def test_garbage(server):
    received, closed = exchange(server, "/garbage")
    assert closed
    assert received.startswith(b"\0")


def test_truncated(server):
    with pytest.raises(http.client.IncompleteRead):
        ask(server, "/truncated")


def test_headers_huge(server):
    received, _ = exchange(server, "/headers-huge", limit=900_000)
    assert received.startswith(b"HTTP/1.1 200 OK")
    assert b"\r\n\r\n" not in received


def test_silent(server):
    assert exchange(server, "/silent", seconds=0.3) == (b"", False)


def test_drip(server):
    received, closed = exchange(server, "/drip", seconds=0.5)
    assert not closed
    assert 2 <= received.count(b"#") <= 6  # each 1 s, ten times faster


def test_endless(server):
    received, closed = exchange(server, "/endless")
    assert not closed
    assert len(received) >= 1 << 22


def test_huge(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", "/huge")
    with connection.getresponse() as response:
        assert response.getheader("Content-Length") == "100000000"
        assert len(response.read(1 << 20)) == 1 << 20
    connection.close()


def test_reset(server):
    with pytest.raises(ConnectionResetError):
        exchange(server, "/reset")


def test_reset_of_every_connection(serve):
    """Without a path no request is waited for."""
    one = serve("--hostile", "reset")
    with (
        socket.create_connection(("127.0.0.1", one.port)) as client,
        pytest.raises(ConnectionResetError),
    ):
        client.recv(1)


def test_every_path(serve):
    one = serve("--hostile", "status:500")
    assert [ask(one, path).status for path in ("/health", "/x")] == [500, 500]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("silent", Fault("silent")),
        ("silent:/v1/models", Fault("silent", path="/v1/models")),
        ("status:418", Fault("status", "418")),
        ("status:418:/x", Fault("status", "418", "/x")),
        ("redirect:http://h:1/x", Fault("redirect", "http://h:1/x")),
        ("redirect:http://h:1/x:/health", Fault("redirect", "http://h:1/x", "/health")),
        ("redirect:http://h", Fault("redirect", "http://h")),
    ],
)
def test_parse(text, fault):
    assert Fault.parse(text) == fault


@pytest.mark.parametrize("text", ["", "loud", "status", "status:/x", "status:ok", "redirect"])
def test_parse_refuses(text):
    with pytest.raises(argparse.ArgumentTypeError):
        Fault.parse(text)
