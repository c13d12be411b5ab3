"""Asks a vLLM server what it says of itself, at a bounded cost whatever it answers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from vllm_agent import __version__
from vllm_agent.config.files import read_api_key
from vllm_agent.host.dial import ProbeError, Target, TlsOptions, dial, one_line
from vllm_agent.host.http_connection import (
    Answer,
    ByteBudget,
    ClosedWithoutAnswerError,
    HttpConnection,
)
from vllm_agent.host.vllm_answers import (
    BadBodyError,
    judge_answer,
    parse_model_names,
    parse_version,
)
from vllm_agent.host.vllm_metrics import MetricsScanner
from vllm_agent.observations import Probe, ProbeCause, ProbeResult, ProbeRound

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_agent.observations import EngineFacts, Instant, MetricsFacts

__all__ = ["Target", "TlsOptions", "VllmHttp"]

MAX_ROUND_BYTES: Final = 4 * 2**20
"""What a server may send in one look: a /metrics page has about 50 kB per engine."""

MAX_MODELS_BYTES: Final = 512 * 1024
"""/v1/models, which is parsed at once: over a thousand cards of 450 bytes."""

MAX_VERSION_BYTES: Final = 4 * 1024
"""/version has 21 bytes."""

ENGINE_SECONDS: Final = 30.0
"""How long a server that answers no check is given to tell of its engine: one that is flooded with
requests answers after all of them."""

MIN_TIME_SHARE: Final = 0.1
"""With less than this part of the timeout left a further probe could only time out."""


class VllmHttp:
    """The HTTP side of one server; holds no connection between two looks.

    vLLM closes a kept connection after 5 s, and looks are further apart.
    """

    def __init__(self, target: Target, clock: Callable[[], Instant]) -> None:
        self._target = target
        self._clock = clock

    async def look(
        self, *, ask_models: bool, ask_metrics: bool = True, ask_version: bool = False
    ) -> ProbeRound:
        """Send one round of probes: /health, then what is asked, until one cannot reach the server.

        It takes at most the timeout of the target and reads at most `MAX_ROUND_BYTES`. Never raises
        for what a server does.
        """
        started = self._clock()
        look = _Look(self._target, self._clock)
        try:
            async with asyncio.timeout(self._target.timeout_seconds) as limit:
                deadline_seconds = limit.when()
                await look.ask_health()
                if ask_models and look.has_time(deadline_seconds):
                    await look.ask_models()
                if ask_metrics and look.has_time(deadline_seconds):
                    await look.ask_metrics()
                if ask_version and look.has_time(deadline_seconds):
                    await look.ask_version()
        except TimeoutError:
            look.record(ProbeCause.TIMEOUT, look.timeout_detail())
        except ProbeError as error:
            look.record(error.cause, error.detail)
        finally:
            look.close()
        return ProbeRound(
            started=started,
            finished=self._clock(),
            results=tuple(look.results),
            model_names=look.model_names,
            metrics=look.metrics,
            version=look.version,
        )

    async def ask_engine(self) -> EngineFacts | None:
        """What the engine has done so far, by /metrics alone and with more patience than a look.

        None where it does not say, or not in time.
        """
        look = _Look(self._target, self._clock)
        try:
            async with asyncio.timeout(ENGINE_SECONDS):
                await look.ask_metrics()
        except (TimeoutError, ProbeError):
            return None
        finally:
            look.close()
        return None if look.metrics is None else look.metrics.engine


class _Look:
    """One round of probes in progress."""

    def __init__(self, target: Target, clock: Callable[[], Instant]) -> None:
        self.results: list[ProbeResult] = []
        self.model_names: tuple[str, ...] | None = None
        self.metrics: MetricsFacts | None = None
        self.version: str | None = None
        self._target = target
        self._clock = clock
        self._budget = ByteBudget(MAX_ROUND_BYTES)
        self._connection: HttpConnection | None = None
        # /version has no results of its own: it is asked for what it says, not for how it does.
        self._probe: Probe | None = None
        self._path = ""
        self._asked_seconds = 0.0

    async def ask_health(self) -> None:
        answer = await self._ask(Probe.HEALTH, "/health", _drop)
        self._judge(answer)

    async def ask_models(self) -> None:
        try:
            key, remark = _read_key(self._target), ""
        except ValueError as error:
            # Asked without: a server that wants no key answers, another says 401, no evidence.
            key, remark = None, f"api_key_file {error}; asked without a key."
        body = _Body(MAX_MODELS_BYTES)
        answer = await self._ask(Probe.MODELS, "/v1/models", body.feed, key)
        self._judge(answer, lambda: self._read_models(body.content(), key), remark)

    async def ask_metrics(self) -> None:
        page = MetricsScanner()
        answer = await self._ask(Probe.METRICS, "/metrics", page.feed)
        self._judge(answer, lambda: self._read_metrics(page))

    async def ask_version(self) -> None:
        body = _Body(MAX_VERSION_BYTES)
        answer = await self._ask(None, "/version", body.feed)
        self._judge(answer, lambda: self._read_version(body.content()))

    def has_time(self, deadline_seconds: float | None) -> bool:
        """Whether one more probe has a chance; a server out of time is not asked and not blamed."""
        if deadline_seconds is None:
            return True
        left_seconds = deadline_seconds - asyncio.get_running_loop().time()
        return left_seconds >= MIN_TIME_SHARE * self._target.timeout_seconds

    def record(self, cause: ProbeCause | None, detail: str, http_status: int | None = None) -> None:
        """Record how the probe in progress ended."""
        if self._probe is not None:
            duration_seconds = self._clock().monotonic_seconds - self._asked_seconds
            result = ProbeResult(self._probe, cause, duration_seconds, http_status, detail)
            self.results.append(result)

    def timeout_detail(self) -> str:
        """Say what did not happen in time."""
        seconds = self._target.timeout_seconds
        if self._connection is None:
            return one_line(f"No connection to {self._target.url} within {seconds:g} s.")
        return one_line(f"No answer to GET {self._path} within {seconds:g} s.")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.abort()

    async def _ask(
        self,
        probe: Probe | None,
        path: str,
        sink: Callable[[bytes], None],
        key: str | None = None,
    ) -> Answer:
        self._probe, self._path = probe, path
        self._asked_seconds = self._clock().monotonic_seconds
        request = _request(self._target, path, key)
        if self._connection is not None and self._connection.is_reusable:
            try:
                return await self._connection.get(request, sink)
            except ClosedWithoutAnswerError:
                # Closed while it was idle: the request and the close crossed on the way.
                pass
        self.close()
        self._connection = None
        self._connection = await dial(self._target, self._new_connection)
        return await self._connection.get(request, sink)

    def _new_connection(self) -> HttpConnection:
        return HttpConnection(str(self._target.url), self._budget)

    def _judge(
        self, answer: Answer, read: Callable[[], None] | None = None, remark: str = ""
    ) -> None:
        cause, detail = judge_answer(answer, self._path)
        if cause is None and read is not None:
            try:
                read()
            except BadBodyError as error:
                cause, detail = ProbeCause.BAD_BODY, f"The answer to {self._path} {error}."
        self.record(cause, one_line(f"{detail} {remark}".strip()), answer.status)

    def _read_models(self, body: bytes, key: str | None) -> None:
        names = parse_model_names(body)
        if key is not None and any(key in name for name in names):
            raise BadBodyError("repeats the API key")
        self.model_names = names

    def _read_metrics(self, page: MetricsScanner) -> None:
        self.metrics = page.facts()

    def _read_version(self, body: bytes) -> None:
        self.version = parse_version(body)


class _Body:
    """A body that is kept whole, up to a bound."""

    def __init__(self, max_bytes: int) -> None:
        self._pieces: list[bytes] = []
        self._left = max_bytes
        self._max_bytes = max_bytes

    def feed(self, piece: bytes) -> None:
        self._left -= len(piece)
        if self._left < 0:
            detail = f"The answer is longer than {self._max_bytes} bytes."
            raise ProbeError(ProbeCause.TOO_LARGE, detail)
        self._pieces.append(piece)

    def content(self) -> bytes:
        return b"".join(self._pieces)


def _drop(piece: bytes) -> None:
    del piece


def _read_key(target: Target) -> str | None:
    return None if target.api_key_file is None else read_api_key(target.api_key_file)


def _request(target: Target, path: str, key: str | None) -> bytes:
    host = target.url.origin.partition("://")[2]
    authorization = "" if key is None else f"Authorization: Bearer {key}\r\n"
    return (
        f"GET {target.url.root_path}{path} HTTP/1.1\r\n"
        f"Host: {host}\r\n"
        f"User-Agent: vllm-agent/{__version__}\r\n"
        f"Accept-Encoding: identity\r\n"
        f"{authorization}\r\n"
    ).encode("ascii")
