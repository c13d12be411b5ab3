"""What a look at a server finds, against real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import json
import os
import socket
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.host.raw_server import (
    RECORDED,
    ok,
    open_sockets,
    raw_server,
    raw_socket_server,
    read_request,
    recorded_page,
    reset,
    saying,
    target,
)
from vllm_agent.config.url import parse_server_url
from vllm_agent.host import dial, vllm_http
from vllm_agent.host.clock import now
from vllm_agent.host.dial import MAX_DETAIL_LENGTH, ProbeError, TlsOptions, connection_error
from vllm_agent.host.http_connection import MAX_HEAD_BYTES
from vllm_agent.host.vllm_answers import MAX_NAMES_LENGTH
from vllm_agent.host.vllm_http import MAX_MODELS_BYTES, MAX_ROUND_BYTES, VllmHttp
from vllm_agent.observations import Probe, ProbeCause, ProbeRound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from tests.host.certificates import Authority
    from vllm_agent.host.dial import Target

PAGE = recorded_page("metrics-idle.txt")
KEY = "canary-3f9c1d27"
NOBODY = 65_534


@dataclass(frozen=True)
class Seen:
    """A request as the server saw it."""

    path: str
    headers: Mapping[str, str]
    peer: tuple[str, int]


@contextlib.asynccontextmanager
async def recorded_vllm(requests: list[Seen]) -> AsyncIterator[int]:
    """Give the port of a server that answers as the recorded vLLM did."""
    bodies = {
        "/health": (b"", "text/plain"),
        "/v1/models": ((RECORDED / "v1_models.json").read_bytes(), "application/json"),
        "/metrics": (PAGE, "text/plain"),
        "/version": ((RECORDED / "version.json").read_bytes(), "application/json"),
    }

    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        peer = request.transport.get_extra_info("peername")
        requests.append(Seen(request.path, request.headers, peer))
        body, content_type = bodies["/" + request.match_info["path"]]
        return web.Response(body=body, content_type=content_type)

    app = web.Application()
    app.router.add_get("/prefix/{path:.*}", answer)
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as server:
        assert server.port is not None
        yield server.port


def scripted(answers: dict[str, bytes]):
    """Answer each request on a connection with what `answers` has for its path."""

    async def talk(reader, writer):
        while True:
            path, _ = await read_request(reader)
            writer.write(answers[path])

    return talk


async def look(target: Target, *, models=False, metrics=False, version=False) -> ProbeRound:
    found = await VllmHttp(target, now).look(
        ask_models=models, ask_metrics=metrics, ask_version=version
    )
    for result in found.results:
        assert len(result.detail) <= MAX_DETAIL_LENGTH
        assert result.detail.isprintable()
        assert bool(result.detail) or result.is_success
    return found


async def look_at(answers: dict[str, bytes], **asked) -> ProbeRound:
    async with raw_server(scripted(answers)) as port:
        return await look(target(port), **asked)


def cause_of(found: ProbeRound, probe: Probe = Probe.HEALTH) -> ProbeCause | None:
    result = found.result(probe)
    assert result is not None
    return result.cause


async def test_round_reads_all_that_a_vllm_says_over_one_connection():
    requests: list[Seen] = []
    async with recorded_vllm(requests) as port:
        found = await look(target(port), models=True, metrics=True, version=True)
    assert [r.probe for r in found.results] == [Probe.HEALTH, Probe.MODELS, Probe.METRICS]
    assert all(r.is_success and r.http_status == 200 for r in found.results)
    assert found.model_names == ("tiny",)
    assert found.metrics is not None
    assert found.metrics.process_start_time_seconds == 1795423597.3
    assert found.version == "0.32.0"
    assert found.finished.since(found.started) >= sum(r.duration_seconds for r in found.results)
    assert [r.path for r in requests] == ["/health", "/v1/models", "/metrics", "/version"]
    assert len({r.peer for r in requests}) == 1
    assert requests[0].headers["User-Agent"].startswith("vllm-agent/")
    assert "Authorization" not in requests[1].headers


async def test_round_asks_only_what_is_wanted_and_keeps_no_connection():
    requests: list[Seen] = []
    sockets = open_sockets()
    async with recorded_vllm(requests) as port:
        http = VllmHttp(target(port), now)
        first = await http.look(ask_models=False, ask_metrics=False)
        second = await http.look(ask_models=False, ask_metrics=False)
    assert [r.path for r in requests] == ["/health", "/health"]
    assert len({r.peer for r in requests}) == 2
    assert (first.model_names, first.metrics, first.version) == (None, None, None)
    assert second.results[0].is_success
    await asyncio.sleep(0)
    assert open_sockets() == sockets


async def test_root_path_of_the_url_comes_first():
    requests: list[Seen] = []
    async with recorded_vllm(requests) as port:
        url = parse_server_url(f"http://127.0.0.1:{port}/prefix")
        found = await look(replace(target(1), url=url), models=True)
    assert found.model_names == ("tiny",)
    assert [r.path for r in requests] == ["/prefix/health", "/prefix/v1/models"]


async def test_unix_socket(tmp_path):
    path = tmp_path / "vllm.sock"
    async with raw_socket_server(saying(ok()), path):
        found = await look(replace(target(1), url=parse_server_url(f"unix://{path}")))
    assert found.results[0].is_success


NAMED = b"HTTP/1.1 200 OK\r\n"
HOSTILE_ANSWERS = {
    "garbage": (b"\x00\x01\x02 not http\r\n\r\n", ProbeCause.BAD_BODY),
    "ssh": (b"SSH-2.0-OpenSSH_9.6\r\n", ProbeCause.BAD_BODY),
    "half a status line": (b"HTTP/1.1 2", ProbeCause.RESET),
    "half a head": (NAMED + b"Content-Length: 5\r\n", ProbeCause.RESET),
    "nothing": (b"", ProbeCause.RESET),
    "truncated": (NAMED + b"Content-Length: 5\r\n\r\nab", ProbeCause.BAD_BODY),
    "truncated chunks": (
        NAMED + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        ProbeCause.BAD_BODY,
    ),
    "no last chunk": (
        NAMED + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
        ProbeCause.BAD_BODY,
    ),
    "chunk size overflow": (
        NAMED + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n",
        ProbeCause.BAD_BODY,
    ),
    "chunk size no number": (
        NAMED + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        ProbeCause.BAD_BODY,
    ),
    "two lengths": (
        NAMED + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\na",
        ProbeCause.BAD_BODY,
    ),
    "length and chunks": (
        NAMED + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ProbeCause.BAD_BODY,
    ),
    "negative length": (NAMED + b"Content-Length: -1\r\n\r\n", ProbeCause.BAD_BODY),
    "huge header": (NAMED + b"X: " + b"x" * (MAX_HEAD_BYTES + 1), ProbeCause.TOO_LARGE),
    "huge header, complete": (
        NAMED + b"X: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
        ProbeCause.TOO_LARGE,
    ),
    "many headers": (NAMED + b"X: y\r\n" * (MAX_HEAD_BYTES // 2) + b"\r\n", ProbeCause.TOO_LARGE),
    "huge body": (ok(b"x" * (MAX_ROUND_BYTES + 1)), ProbeCause.TOO_LARGE),
    "gzip": (ok(gzip.compress(b"x" * 9999), "Content-Encoding: gzip"), ProbeCause.BAD_BODY),
    "unknown encoding": (ok(b"x", "Content-Encoding: rot13"), ProbeCause.BAD_BODY),
    "continue": (b"HTTP/1.1 100 Continue\r\n\r\n" + ok(), ProbeCause.BAD_BODY),
    "early hints": (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + ok(), ProbeCause.BAD_BODY),
    "websocket": (
        b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nxx",
        ProbeCause.BAD_BODY,
    ),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", ProbeCause.BAD_BODY),
    "redirect": (ok(b"", "Location: /elsewhere", status="307 Redirect"), ProbeCause.BAD_BODY),
    "unauthorized": (ok(status="401 Unauthorized"), ProbeCause.HTTP_4XX),
    "not found": (ok(b"gone", status="404 Not Found"), ProbeCause.HTTP_4XX),
    "engine dead": (ok(status="503 Service Unavailable"), ProbeCause.HTTP_5XX),
    "broken error": (b"HTTP/1.1 500 Oops\r\nContent-Length: 99\r\n\r\n", ProbeCause.HTTP_5XX),
    "status 999": (ok(status="999 Odd"), ProbeCause.BAD_BODY),
    "healthy": (ok(), None),
    "healthy with text": (ok(b"fine"), None),
    "healthy until close": (b"HTTP/1.0 200 OK\r\n\r\nfine", None),
    "identity": (ok(b"fine", "Content-Encoding: identity"), None),
}


@pytest.mark.parametrize(("answer", "cause"), HOSTILE_ANSWERS.values(), ids=HOSTILE_ANSWERS.keys())
async def test_every_answer_has_its_cause(answer, cause):
    async with raw_server(saying(answer)) as port:
        found = await look(target(port))
    assert cause_of(found) is cause


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab"])
async def test_reset_connection_is_reset(said):
    async def talk(reader, writer):
        await read_request(reader)
        writer.write(said)
        reset(writer)

    async with raw_server(talk) as port:
        assert cause_of(await look(target(port))) is ProbeCause.RESET


async def test_closed_port_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    found = await look(target(port), models=True, metrics=True)
    assert [r.probe for r in found.results] == [Probe.HEALTH]
    assert cause_of(found) is ProbeCause.REFUSED


async def test_missing_unix_socket_is_refused(tmp_path):
    url = parse_server_url(f"unix://{tmp_path}/none.sock")
    found = await look(replace(target(1), url=url))
    assert cause_of(found) is ProbeCause.REFUSED
    assert "none.sock" in found.results[0].detail


async def test_unix_socket_without_permission_says_what_to_do(tmp_path):
    path = tmp_path / "vllm.sock"
    async with raw_socket_server(saying(ok()), path):
        path.chmod(0)
        with _as_nobody():
            found = await look(replace(target(1), url=parse_server_url(f"unix://{path}")))
    assert cause_of(found) is ProbeCause.RESET
    assert "let the user of the agent" in found.results[0].detail


@contextlib.contextmanager
def _as_nobody():
    """Root may open every socket; its rights come back with its user."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize(
    ("error", "cause", "words"),
    [
        (PermissionError(errno.EACCES, "denied"), ProbeCause.RESET, "let the user of the agent"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), ProbeCause.TIMEOUT, "No route"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), ProbeCause.TIMEOUT, "unreachable"),
        (TimeoutError(errno.ETIMEDOUT, "timed out"), ProbeCause.TIMEOUT, "timed out"),
        (OSError(errno.EMFILE, "Too many open files"), ProbeCause.RESET, "LimitNOFILE"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), ProbeCause.RESET, "Broken pipe"),
        (ConnectionRefusedError(), ProbeCause.REFUSED, "nothing listens"),
        (NotADirectoryError(), ProbeCause.REFUSED, "no socket"),
        (OSError(), ProbeCause.RESET, "OSError"),
    ],
)
def test_error_of_the_system_becomes_a_cause(error, cause, words):
    found = connection_error(error, "http://gpu1:8000")
    assert found.cause is cause
    assert words in found.detail


def test_detail_is_one_bounded_line():
    error = ProbeError(ProbeCause.RESET, "a\r\n\x1b[31m\udc80" + "x" * 500)
    assert error.detail.startswith("a???[31m?xxx")
    assert len(error.detail) == MAX_DETAIL_LENGTH
    assert ProbeError(ProbeCause.RESET, "x" * MAX_DETAIL_LENGTH).detail.endswith("x")


@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 200 OK\r\nX: ", NAMED + b"Content-Length: 9\r\n\r\n"]
)
async def test_silent_server_costs_its_timeout_and_ends_the_round(said):
    async def talk(reader, writer):
        writer.write(said)
        await reader.read()

    async with raw_server(talk) as port:
        found = await look(target(port, timeout_seconds=0.1), models=True, metrics=True)
    assert [r.probe for r in found.results] == [Probe.HEALTH]
    assert cause_of(found) is ProbeCause.TIMEOUT
    assert 0.09 <= found.results[0].duration_seconds < 2


async def test_dripping_server_has_one_deadline_for_the_whole_round():
    async def talk(reader, writer):
        await read_request(reader)
        writer.write(NAMED + b"Transfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1\r\nx\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with raw_server(talk) as port:
        found = await look(target(port, timeout_seconds=0.2))
    assert cause_of(found) is ProbeCause.TIMEOUT
    assert found.finished.since(found.started) < 2


async def test_server_that_never_stops_sending_costs_the_byte_budget():
    sent = 0

    async def talk(reader, writer):
        nonlocal sent
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"# a comment\n" * 5000)
            await writer.drain()
            sent += 60_000

    async with raw_server(talk) as port:
        found = await look(target(port))
    assert cause_of(found) is ProbeCause.TOO_LARGE
    # What the kernel had buffered comes on top of what was read.
    assert sent < 6 * MAX_ROUND_BYTES


@pytest.mark.parametrize("header", ["X: y", "Connection: close"])
async def test_byte_budget_is_of_the_round_not_of_probe_or_connection(header):
    comment = b"# " + b"x" * 1000 + b"\n"
    filler = comment * (MAX_ROUND_BYTES * 3 // 5 // len(comment))
    found = await look_at({"/health": ok(filler, header), "/metrics": ok(filler)}, metrics=True)
    assert cause_of(found, Probe.HEALTH) is None
    assert cause_of(found, Probe.METRICS) is ProbeCause.TOO_LARGE


async def test_error_of_one_probe_does_not_end_the_round():
    answers = {
        "/health": ok(status="503 Service Unavailable"),
        "/v1/models": ok(b"<html>"),
        "/metrics": ok(PAGE),
    }
    found = await look_at(answers, models=True, metrics=True)
    causes = [r.cause for r in found.results]
    assert causes == [ProbeCause.HTTP_5XX, ProbeCause.BAD_BODY, None]


async def test_broken_connection_ends_the_round():
    answers = {"/health": ok(), "/v1/models": b"junk\r\n\r\n", "/metrics": ok(PAGE)}
    found = await look_at(answers, models=True, metrics=True)
    assert [r.cause for r in found.results] == [None, ProbeCause.BAD_BODY]
    assert found.metrics is None


async def test_too_little_time_left_is_no_failure(monkeypatch):
    monkeypatch.setattr(vllm_http, "MIN_TIME_SHARE", 1.1)
    found = await look_at({"/health": ok()}, models=True, metrics=True, version=True)
    assert [r.cause for r in found.results] == [None]


async def test_failing_version_is_no_probe_of_its_own():
    answers = {"/health": ok(), "/version": b"junk\r\n\r\n"}
    found = await look_at(answers, version=True)
    assert [r.cause for r in found.results] == [None]
    assert found.version is None


class TestReuse:
    async def test_connection_closed_while_idle_is_retried_once(self):
        connections = 0

        async def talk(reader, writer):
            nonlocal connections
            connections += 1
            await read_request(reader)
            writer.write(ok())
            if connections == 1:
                # The second request and this close cross on the way.
                await read_request(reader)

        async with raw_server(talk) as port:
            found = await look(target(port), metrics=True)
        assert connections == 2
        assert [r.cause for r in found.results] == [None, None]

    async def test_second_close_in_a_row_is_a_failure(self):
        connections = 0

        async def talk(reader, writer):
            nonlocal connections
            connections += 1
            await read_request(reader)
            if connections == 1:
                writer.write(ok())
                await read_request(reader)

        async with raw_server(talk) as port:
            found = await look(target(port), metrics=True)
        assert connections == 2
        assert [r.cause for r in found.results] == [None, ProbeCause.RESET]

    @pytest.mark.parametrize(
        "health",
        [
            ok(b"", "Connection: close"),
            b"HTTP/1.0 200 OK\r\n\r\n",
            ok() + b"HTTP/1.1 200 OK\r\n",
            ok() + ok(b"junk"),
            b"HTTP/1.1 503 Dead\r\nContent-Length: 5\r\n\r\n",
        ],
        ids=["close", "1.0", "half a second answer", "a second answer", "half an error"],
    )
    async def test_connection_in_doubt_is_not_used_again(self, health):
        paths: list[object] = []

        async def talk(reader, writer):
            path, _ = await read_request(reader)
            paths.append(path)
            writer.write(health if path == "/health" else ok(PAGE))
            if not health.startswith(b"HTTP/1.0"):
                with contextlib.suppress(asyncio.IncompleteReadError):
                    paths.append(await read_request(reader))

        async with raw_server(talk) as port:
            found = await look(target(port), metrics=True)
        assert paths == ["/health", "/metrics"]
        assert found.metrics is not None

    async def test_unasked_answer_is_not_taken_for_the_next_one(self):
        async def talk(reader, writer):
            path, _ = await read_request(reader)
            if path == "/health":
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                await writer.drain()
                writer.write(ok())
            else:
                writer.write(ok(PAGE))

        async with raw_server(talk) as port:
            found = await look(target(port), metrics=True)
        assert [r.cause for r in found.results] == [ProbeCause.BAD_BODY, None]


class TestEngine:
    async def test_only_metrics_are_asked_for_it_and_no_connection_is_kept(self):
        requests: list[Seen] = []
        sockets = open_sockets()
        async with recorded_vllm(requests) as port:
            http = VllmHttp(target(port), now)
            engine = await http.ask_engine()
            assert engine is not None
            look = await http.look(ask_models=False)
            assert look.metrics is not None
            assert engine == look.metrics.engine
        assert [r.path for r in requests] == ["/metrics", "/health", "/metrics"]
        assert len({r.peer for r in requests}) == 2
        assert open_sockets() == sockets

    async def test_it_is_waited_for_longer_than_a_look_takes(self):
        is_over = asyncio.Event()

        async def talk(reader, writer):
            path, _ = await read_request(reader)
            if path == "/metrics":
                await is_over.wait()
                writer.write(ok(PAGE))
            else:
                with contextlib.suppress(asyncio.IncompleteReadError):
                    await read_request(reader)

        async with raw_server(talk) as port:
            flooded = target(port, timeout_seconds=0.05)
            asking = asyncio.create_task(VllmHttp(flooded, now).ask_engine())
            for _ in range(2):
                assert cause_of(await look(flooded)) is ProbeCause.TIMEOUT
            assert not asking.done()
            is_over.set()
            assert await asking is not None

    async def test_one_that_says_nothing_is_not_waited_for_without_end(self, monkeypatch):
        monkeypatch.setattr(vllm_http, "ENGINE_SECONDS", 0.05)
        is_over = asyncio.Event()

        async def talk(reader, writer):
            del writer
            await read_request(reader)
            await is_over.wait()

        sockets = open_sockets()
        async with raw_server(talk) as port:
            assert await VllmHttp(target(port), now).ask_engine() is None
            is_over.set()
        assert open_sockets() == sockets

    @pytest.mark.parametrize(
        "answer",
        [
            ok(b"<html>\n"),
            ok(b"no\n", status="500 Dead"),
            ok(b"x" * (MAX_ROUND_BYTES + 1)),
            b"",
            b"junk\r\n\r\n",
        ],
        ids=["other page", "error", "too large", "closed", "no HTTP"],
    )
    async def test_an_answer_that_tells_nothing_is_none(self, answer):
        async def talk(reader, writer):
            await read_request(reader)
            writer.write(answer)

        async with raw_server(talk) as port:
            assert await VllmHttp(target(port), now).ask_engine() is None

    async def test_nobody_who_listens_is_none(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        assert await VllmHttp(target(port), now).ask_engine() is None


class TestModels:
    @pytest.mark.parametrize("status", [401, 403])
    async def test_refused_key_is_no_evidence(self, status):
        answers = {"/health": ok(), "/v1/models": ok(b"{}", status=f"{status} No")}
        found = await look_at(answers, models=True)
        result = found.result(Probe.MODELS)
        assert result is not None
        assert (result.cause, result.http_status) == (ProbeCause.HTTP_4XX, status)
        assert "api_key_file" in result.detail
        assert found.model_names is None

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"[]",
            b"{}",
            b'{"data": {}}',
            b'{"data": [1]}',
            b'{"data": [{}]}',
            b'{"data": [{"id": 5}]}',
            b'{"data": [{"id": ""}]}',
            b'{"data": [{"id": "\\u001b[31m"}]}',
            b'{"data": [{"id": "\\ud800"}]}',
            b'{"data": [{"id": "x"}]',
            b"\xff\xfe",
            b"[" * 100_000,
            b"1" * 10_000,
        ],
    )
    async def test_other_json_is_a_bad_body(self, body):
        found = await look_at({"/health": ok(), "/v1/models": ok(body)}, models=True)
        assert cause_of(found, Probe.MODELS) is ProbeCause.BAD_BODY
        assert found.model_names is None

    async def test_no_models_are_none_listed_not_unknown(self):
        found = await look_at({"/health": ok(), "/v1/models": ok(b'{"data": []}')}, models=True)
        assert found.model_names == ()

    async def test_names_keep_their_order_up_to_a_bound(self):
        names = [f"{n:04}" + "x" * 996 for n in range(100)]
        body = json.dumps({"data": [{"id": name} for name in names]}).encode()
        found = await look_at({"/health": ok(), "/v1/models": ok(body)}, models=True)
        assert found.model_names == tuple(names[: MAX_NAMES_LENGTH // 1000])

    async def test_long_list_is_too_large(self):
        body = b" " * (MAX_MODELS_BYTES + 1)
        found = await look_at({"/health": ok(), "/v1/models": ok(body)}, models=True)
        assert cause_of(found, Probe.MODELS) is ProbeCause.TOO_LARGE


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"version": 1}', b'{"version": ""}', b'{"version": "\\u0007"}']
)
async def test_odd_version_is_unknown(body):
    found = await look_at({"/health": ok(), "/version": ok(body)}, version=True)
    assert found.version is None


async def test_page_without_metrics_is_a_bad_body():
    found = await look_at({"/health": ok(), "/metrics": ok(b"<html>\n")}, metrics=True)
    assert cause_of(found, Probe.METRICS) is ProbeCause.BAD_BODY
    assert found.metrics is None


class TestKey:
    @pytest.fixture
    def key_file(self, tmp_path):
        path = tmp_path / "key"
        path.write_text(KEY + "\n")
        return path

    async def test_key_goes_to_v1_only_and_is_read_again_each_time(self, key_file):
        requests: list[Seen] = []
        async with recorded_vllm(requests) as port:
            http = VllmHttp(target(port, api_key_file=key_file), now)
            await http.look(ask_models=True, ask_version=True)
            key_file.write_text("rotated")
            await http.look(ask_models=True)
        sent = [(r.path, r.headers.get("Authorization")) for r in requests]
        assert [entry for entry in sent if entry[1] is not None] == [
            ("/v1/models", f"Bearer {KEY}"),
            ("/v1/models", "Bearer rotated"),
        ]

    async def test_redirect_gets_neither_a_request_nor_the_key(self, key_file):
        visitors = []

        async def elsewhere(reader, writer):
            visitors.append(await read_request(reader))

        async with raw_server(elsewhere) as other_port:
            location = f"Location: http://127.0.0.1:{other_port}/v1/models"
            moved = ok(b"", location, status="308 Permanent Redirect")
            async with raw_server(scripted({"/health": moved, "/v1/models": moved})) as port:
                found = await look(target(port, api_key_file=key_file), models=True)
        assert [r.cause for r in found.results] == [ProbeCause.BAD_BODY] * 2
        assert visitors == []

    @pytest.mark.parametrize(
        "answer",
        [
            lambda key: ok(status=f"401 {key}"),
            lambda key: ok(status=f"500 {key}"),
            lambda key: ok(key.encode(), f"X-Key: {key}"),
            lambda key: ok(b"", f"Location: http://{key}/", status="302 Found"),
            lambda key: f"HTTP/1.1 {key}\r\n\r\n".encode(),
            lambda key: key.encode() + b"\r\n\r\n",
            lambda key: ok(json.dumps({"data": [{"id": f"model-{key}"}]}).encode()),
        ],
    )
    async def test_key_that_a_server_repeats_shows_nowhere(self, key_file, caplog, answer):
        async def talk(reader, writer):
            while True:
                path, headers = await read_request(reader)
                key = headers.get("authorization", "").removeprefix("bearer ")
                writer.write(ok() if path == "/health" else answer(key))

        caplog.set_level(0)
        async with raw_server(talk) as port:
            at = target(port, api_key_file=key_file)
            http = VllmHttp(at, now)
            found = await http.look(ask_models=True, ask_metrics=False)
        assert cause_of(found, Probe.MODELS) is not None
        assert KEY not in f"{found!r} {http!r} {vars(http)!r} {at!r} {caplog.text}"

    @pytest.mark.parametrize("content", [None, "", "two\nkeys", "x" * 5000])
    async def test_unreadable_key_is_said_and_the_server_asked_without(self, key_file, content):
        key_file.unlink()
        if content is not None:
            key_file.write_text(content)
        requests: list[Seen] = []
        async with recorded_vllm(requests) as port:
            found = await look(target(port, api_key_file=key_file), models=True)
        assert "Authorization" not in requests[1].headers
        result = found.result(Probe.MODELS)
        assert result is not None
        assert result.is_success
        assert "api_key_file" in result.detail


@pytest.mark.needs("openssl")
class TestTls:
    async def look(
        self, authority: Authority, tls: TlsOptions, *, wants_client: bool = False
    ) -> ProbeRound:
        context = authority.server_context(wants_client=wants_client)
        async with raw_server(saying(ok()), tls=context) as port:
            return await look(target(port, scheme="https", tls=tls))

    async def test_known_authority(self, authority):
        found = await self.look(authority, TlsOptions(ca_file=authority.ca))
        assert found.results[0].is_success

    async def test_unknown_authority(self, authority):
        found = await self.look(authority, TlsOptions(ca_file=authority.other_ca))
        assert cause_of(found) is ProbeCause.TLS
        assert "ca_file" in found.results[0].detail

    async def test_any_certificate_when_told_so(self, authority):
        found = await self.look(authority, TlsOptions(insecure_skip_verify=True))
        assert found.results[0].is_success

    @pytest.mark.parametrize(("name", "cause"), [("vllm.test", None), ("a.test", ProbeCause.TLS)])
    async def test_server_name(self, authority, name, cause):
        tls = TlsOptions(ca_file=authority.ca, server_name=name)
        assert cause_of(await self.look(authority, tls)) is cause

    async def test_client_certificate(self, authority):
        tls = TlsOptions(ca_file=authority.ca)
        found = await self.look(authority, tls, wants_client=True)
        assert cause_of(found) in {ProbeCause.TLS, ProbeCause.RESET}
        certificate, key = authority.client
        tls = replace(tls, cert_file=certificate, key_file=key)
        found = await self.look(authority, tls, wants_client=True)
        assert found.results[0].is_success

    async def test_rotated_file_is_read_again(self, authority, tmp_path):
        ca_file = tmp_path / "ca.pem"
        tls = TlsOptions(ca_file=ca_file)
        ca_file.write_bytes(authority.other_ca.read_bytes())
        assert cause_of(await self.look(authority, tls)) is ProbeCause.TLS
        ca_file.unlink()
        ca_file.write_bytes(authority.ca.read_bytes())
        assert cause_of(await self.look(authority, tls)) is None

    @pytest.mark.parametrize("content", [None, b"no certificate"])
    async def test_unusable_file(self, authority, tmp_path, content):
        ca_file = tmp_path / "ca.pem"
        if content is not None:
            ca_file.write_bytes(content)
        found = await self.look(authority, TlsOptions(ca_file=ca_file))
        assert cause_of(found) is ProbeCause.TLS
        assert "tls_config" in found.results[0].detail

    async def test_server_without_tls(self):
        async def talk(reader, writer):
            await reader.read(1)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await reader.read()

        async with raw_server(talk) as port:
            found = await look(target(port, scheme="https"))
        assert cause_of(found) is ProbeCause.TLS

    async def test_server_that_never_shakes_hands(self):
        async def talk(reader, writer):
            await reader.read()

        async with raw_server(talk) as port:
            found = await look(target(port, scheme="https", timeout_seconds=0.1))
        assert cause_of(found) is ProbeCause.TIMEOUT

    async def test_server_that_hangs_up_on_the_handshake(self):
        async def talk(reader, writer):
            await reader.read(1)

        async with raw_server(talk) as port:
            found = await look(target(port, scheme="https"))
        assert cause_of(found) in {ProbeCause.RESET, ProbeCause.TLS}


class TestNames:
    @pytest.fixture
    def names(self, monkeypatch):
        """Resolve names from a table; an event in it holds the lookup up, an error is raised."""
        table: dict[str, list[str] | OSError | threading.Event] = {}

        def getaddrinfo(host, *_, **__):
            entry = table[host]
            if isinstance(entry, threading.Event):
                entry.wait()
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure")
            if isinstance(entry, OSError):
                raise entry
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, 0)) for a in entry]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield table
        for entry in table.values():
            if isinstance(entry, threading.Event):
                entry.set()

    def named(self, host: str, port: int = 1, *, timeout_seconds: float = 5.0) -> Target:
        return replace(
            target(1, timeout_seconds=timeout_seconds),
            url=parse_server_url(f"http://{host}:{port}"),
        )

    async def test_unknown_name_is_dns(self, names):
        names["gone.test"] = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        found = await look(self.named("gone.test"))
        assert cause_of(found) is ProbeCause.DNS
        assert found.results[0].detail == (
            "The name gone.test cannot be resolved: Name or service not known."
        )

    async def test_every_address_is_tried(self, names):
        names["two.test"] = ["127.0.0.2", "127.0.0.1"]
        async with raw_server(saying(ok())) as port:
            found = await look(self.named("two.test", port))
        assert found.results[0].is_success

    async def test_name_is_refused_if_every_address_is(self, names):
        names["two.test"] = ["127.0.0.2", "127.0.0.3"]
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        found = await look(self.named("two.test", port))
        assert cause_of(found) is ProbeCause.REFUSED

    @pytest.mark.parametrize("addresses", [["192.0.2.1", "127.0.0.1"], ["127.0.0.1", "192.0.2.1"]])
    async def test_name_with_one_unreached_address_is_not_refused(
        self, names, monkeypatch, addresses
    ):
        names["two.test"] = addresses
        unreached = OSError(errno.EHOSTUNREACH, "No route to host")

        async def connect(_, address, *__, **___):
            raise unreached if address == "192.0.2.1" else ConnectionRefusedError

        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", connect)
        found = await look(self.named("two.test"))
        assert cause_of(found) is ProbeCause.TIMEOUT

    async def test_silent_address_leaves_its_share_of_time_to_the_next(self, names, monkeypatch):
        names["two.test"] = ["192.0.2.1", "127.0.0.1"]
        loop = asyncio.get_running_loop()
        connect = loop.create_connection

        async def connect_or_hang(factory, address, *arguments, **options):
            if address == "192.0.2.1":
                await asyncio.Event().wait()
            return await connect(factory, address, *arguments, **options)

        monkeypatch.setattr(loop, "create_connection", connect_or_hang)
        async with raw_server(saying(ok())) as port:
            found = await look(self.named("two.test", port, timeout_seconds=0.4))
        assert found.results[0].is_success

    async def test_silent_name_server_is_dns_and_delays_no_other_name(self, names, monkeypatch):
        # Far enough from the end of the look for a busy machine.
        monkeypatch.setattr(dial, "NAME_LOOKUP_SHARE", 0.25)
        slow = [f"slow{n}.test" for n in range(20)]
        names.update({name: threading.Event() for name in slow})
        names["fast.test"] = ["127.0.0.1"]
        waiting = [
            asyncio.create_task(look(self.named(name, timeout_seconds=2.0))) for name in slow * 3
        ]
        await asyncio.sleep(0)
        async with raw_server(saying(ok())) as port:
            found = await look(self.named("fast.test", port))
        assert found.results[0].is_success
        assert found.finished.since(found.started) < 0.4
        for found in await asyncio.gather(*waiting):
            assert cause_of(found) is ProbeCause.DNS


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("said", [b"", NAMED, NAMED + b"Content-Length: 9\r\n\r\nab"])
async def test_cancelled_look_leaves_nothing_behind(scheme, said):
    asked, gone = asyncio.Event(), asyncio.Event()

    async def talk(reader, writer):
        await reader.read(1)
        writer.write(said)
        asked.set()
        with contextlib.suppress(OSError):
            await reader.read()
        gone.set()

    tasks, sockets = asyncio.all_tasks(), open_sockets()
    async with raw_server(talk) as port:
        looking = asyncio.create_task(look(target(port, scheme=scheme)))
        await asked.wait()
        await asyncio.sleep(0.01)
        if not looking.done():
            looking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await looking
        await asyncio.wait_for(gone.wait(), 5)
    assert asyncio.all_tasks() == tasks
    assert open_sockets() == sockets


HEADERS = st.sampled_from(
    [
        b"Content-Length: 3\r\n",
        b"Content-Length: 99999999999\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Encoding: gzip\r\n",
        b"Connection: close\r\n",
        b"Connection: upgrade\r\n",
        b"Upgrade: h2c\r\n",
        b" folded\r\n",
        b"no colon\r\n",
        b"\x00: \xff\r\n",
        b"\r\n",
    ]
)
RESPONSES = st.one_of(
    st.binary(max_size=300),
    st.tuples(
        st.sampled_from([b"HTTP/1.1 ", b"HTTP/1.0 ", b"HTTP/9.9 ", b"ICE/1.0 ", b""]),
        st.integers(min_value=0, max_value=1000).map(lambda n: str(n).encode()),
        st.sampled_from([b" OK\r\n", b"\r\n", b"\n"]),
        st.lists(HEADERS, max_size=4).map(b"".join),
        st.sampled_from([b"\r\n", b"\n", b""]),
        st.sampled_from([b"", b"abc", b"3\r\nabc\r\n0\r\n\r\n", b"{}", b"a 1\n"]),
    ).map(b"".join),
)


# A busy machine is no finding.
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(RESPONSES, min_size=1, max_size=4))
def test_whatever_is_answered_a_look_gives_a_round(responses):
    async def talk(reader, writer):
        for response in responses:
            await read_request(reader)
            writer.write(response)
            await writer.drain()

    async def run() -> None:
        async with raw_server(talk) as port:
            # An answer that announces more than it says is waited for.
            at = target(port, timeout_seconds=0.05)
            found = await look(at, models=True, metrics=True, version=True)
        assert found.results[0].probe is Probe.HEALTH

    asyncio.run(run())
