"""Frozen facts about what probes of a server were answered. Unknown is None, never 0."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_agent.observations.instant import Instant


class Probe(StrEnum):
    """What one request asks of a server."""

    HEALTH = "health"
    MODELS = "models"
    METRICS = "metrics"


class ProbeCause(StrEnum):
    """Why a probe failed. Closed: these are label values."""

    REFUSED = "refused"
    RESET = "reset"
    TIMEOUT = "timeout"
    DNS = "dns"
    TLS = "tls"
    HTTP_4XX = "http_4xx"
    HTTP_5XX = "http_5xx"
    BAD_BODY = "bad_body"
    TOO_LARGE = "too_large"


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The outcome of one request; `cause` is None for a success.

    `detail` is a sentence for people (log, API, CLI); it never holds a credential.
    """

    probe: Probe
    cause: ProbeCause | None
    duration_seconds: float
    http_status: int | None = None
    detail: str = ""

    @property
    def is_success(self) -> bool:
        """Whether the server answered as a vLLM does."""
        return self.cause is None


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the engine of a vLLM has done and does, summed over its engines; None if not told.

    `iterations` counts steps that put something out, the tokens are counters too.
    """

    iterations: float | None = None
    prompt_tokens: float | None = None
    generation_tokens: float | None = None
    requests_running: float | None = None
    requests_waiting: float | None = None
    kv_cache_usage_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class MetricsFacts:
    """What the agent reads from a vLLM's own /metrics page; None where it does not say."""

    process_start_time_seconds: float | None = None
    is_sleeping: bool | None = None
    model_names: tuple[str, ...] = ()
    engine: EngineFacts | None = None


class Listener(StrEnum):
    """Whose the listening socket of a local server's port is."""

    OWN = "own"
    STRANGER = "stranger"


@dataclass(frozen=True, slots=True)
class Knock:
    """One TCP (or unix) connect to a local server that has not served yet, nothing sent.

    `is_accepted` is whether a socket of its own took it. `out_of_reach` says, in a sentence, that
    the server listens where the agent cannot connect to; None where it does not listen.
    """

    is_accepted: bool
    out_of_reach: str | None = None


@dataclass(frozen=True, slots=True)
class ProbeRound:
    """One look at a server: the requests sent back to back and what their answers said.

    `results` holds only what was asked: a round ends at its first failure to reach the server.
    `model_names` is None where /v1/models was not asked or its answer is no evidence (401, 403).
    `listener` is whose socket answered; None where that cannot be told.
    """

    started: Instant
    finished: Instant
    results: tuple[ProbeResult, ...]
    model_names: tuple[str, ...] | None = None
    metrics: MetricsFacts | None = None
    version: str | None = None
    listener: Listener | None = None

    def result(self, probe: Probe) -> ProbeResult | None:
        """The result of `probe`, or None if this round did not ask it."""
        return next((r for r in self.results if r.probe is probe), None)
