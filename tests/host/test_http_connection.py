"""The client's side of HTTP/1.1, without sockets."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_agent.host.dial import ProbeError
from vllm_agent.host.http_connection import Answer, ByteBudget, HttpConnection
from vllm_agent.observations import ProbeCause

BODY = b"some text of a page\n" * 3
_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x"
FRAMINGS = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY),
    "chunks": (_CHUNKED + b"\r\n%b\r\n0\r\n\r\n") % (len(BODY), BODY),
    "trailers": (_CHUNKED + b";x=y\r\n%b\r\n0\r\nX: y\r\n\r\n") % (len(BODY), BODY),
    "until close": b"HTTP/1.1 200 OK\r\n\r\n" + BODY,
}


class Wire(asyncio.Transport):
    """Keep what is sent; close as a transport does."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self.is_aborted = False

    def write(self, data):
        self.sent.append(bytes(data))

    def abort(self) -> None:
        self.is_aborted = True


async def exchange(pieces: list[bytes], budget_bytes: int = 10_000) -> tuple[Answer, bytes, bool]:
    """Let a server answer with `pieces` and close; the last value is whether it could go on."""
    connection, wire = HttpConnection("http://a", ByteBudget(budget_bytes)), Wire()
    body: list[bytes] = []
    connection.connection_made(wire)
    asking = asyncio.ensure_future(connection.get(b"GET", body.append))
    await asyncio.sleep(0)
    assert wire.sent == [b"GET"]
    for piece in pieces:
        connection.data_received(piece)
    was_reusable = connection.is_reusable
    connection.connection_lost(None)
    assert not connection.is_reusable
    return await asking, b"".join(body), was_reusable


@given(st.sampled_from(sorted(FRAMINGS)), st.lists(st.integers(0, 200), max_size=6))
def test_pieces_make_no_difference(framing, cuts):
    whole = FRAMINGS[framing]
    edges = [0, *sorted(cuts), len(whole)]
    pieces = [whole[start:end] for start, end in itertools.pairwise(edges)]
    answer, body, was_reusable = asyncio.run(exchange([piece for piece in pieces if piece]))
    assert (answer, body) == (Answer(200, is_encoded=False), BODY)
    assert was_reusable == (framing != "until close")


@given(st.sampled_from(["length", "chunks", "trailers"]), st.data())
def test_answer_that_breaks_off_anywhere_is_no_success(framing, data):
    whole = FRAMINGS[framing]
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ProbeError) as caught:
        asyncio.run(exchange([whole[:cut]] if cut else []))
    assert caught.value.cause in {ProbeCause.RESET, ProbeCause.BAD_BODY}


async def test_chunks_of_one_byte_are_passed_on_together():
    pieces: list[bytes] = []
    connection = HttpConnection("http://a", ByteBudget(2**20))
    connection.connection_made(Wire())
    asking = asyncio.ensure_future(connection.get(b"GET", pieces.append))
    await asyncio.sleep(0)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    connection.data_received(head + b"1\r\nx\r\n" * 10_000 + b"0\r\n\r\n")
    await asking
    assert pieces == [b"x" * 10_000]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: a\r\nConnection: upgrade\r\n\r\n",
    ],
)
async def test_answer_that_is_not_the_last_one_ends_the_connection(answer):
    found, _, was_reusable = await exchange([answer])
    assert found.status < 200
    assert not was_reusable


@pytest.mark.parametrize("head", ["200 OK\r\nContent-Encoding: gzip", "503 Dead", "307 Moved"])
async def test_body_that_nobody_wants_is_dropped_and_not_waited_for(head):
    answer = f"HTTP/1.1 {head}\r\nContent-Length: 9\r\n\r\nbody".encode()
    found, body, was_reusable = await exchange([answer])
    assert found.status == int(head[:3])
    assert body == b""
    assert not was_reusable


async def test_more_than_the_budget_is_too_large_and_closes():
    with pytest.raises(ProbeError) as caught:
        await exchange([FRAMINGS["length"]], budget_bytes=50)
    assert caught.value.cause is ProbeCause.TOO_LARGE


async def test_bytes_that_nobody_asked_for_close_the_connection():
    connection, wire = HttpConnection("http://a", ByteBudget(100)), Wire()
    connection.connection_made(wire)
    connection.data_received(b"HTTP/1.1 200 OK\r\n")
    assert wire.is_aborted
    assert not connection.is_reusable


async def test_nothing_is_sent_on_a_closed_connection():
    connection, wire = HttpConnection("http://a", ByteBudget(100)), Wire()
    connection.connection_made(wire)
    connection.connection_lost(None)
    with pytest.raises(ProbeError):
        await connection.get(b"GET", bytearray().extend)
    assert wire.sent == []
