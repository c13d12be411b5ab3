"""Frozen facts from outside: what a probe, a connection or a process told the agent.

No judgement here, and no I/O. Unknown is None, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Instant:
    """One moment on both clocks: monotonic for durations and deadlines, unix for people."""

    monotonic_seconds: float
    unix_seconds: float

    def since(self, earlier: Instant) -> float:
        """Seconds from `earlier` to here, by the clock that never steps."""
        return self.monotonic_seconds - earlier.monotonic_seconds


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
class MetricsFacts:
    """What the agent reads from a vLLM's own /metrics page; None where it does not say."""

    process_start_time_seconds: float | None = None
    is_sleeping: bool | None = None
    model_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProbeRound:
    """One look at a server: the requests sent back to back and what their answers said.

    `results` holds only what was asked: a round ends at its first failure to reach the server.
    `model_names` is None where /v1/models was not asked or its answer is no evidence (401, 403).
    """

    started: Instant
    finished: Instant
    results: tuple[ProbeResult, ...]
    model_names: tuple[str, ...] | None = None
    metrics: MetricsFacts | None = None
    version: str | None = None

    def result(self, probe: Probe) -> ProbeResult | None:
        """The result of `probe`, or None if this round did not ask it."""
        return next((r for r in self.results if r.probe is probe), None)


class ComponentRole(StrEnum):
    """The parts of a vLLM's process tree."""

    API_SERVER = "api_server"
    ENGINE_CORE = "engine_core"
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class ComponentAtClose:
    """A process of the tree, other than the main one, at the moment the listener closed.

    `is_exiting` is PF_EXITING of /proc/PID/stat; `has_kill_pending` is SIGKILL in ShdPnd or SigPnd
    of /proc/PID/status.
    """

    role: ComponentRole
    is_gone: bool
    is_exiting: bool
    has_kill_pending: bool

    @property
    def is_alive(self) -> bool:
        """Running on, with nothing that says it is about to end."""
        return not (self.is_gone or self.is_exiting or self.has_kill_pending)


@dataclass(frozen=True, slots=True)
class ComponentExit:
    """The end of a process of the tree other than the main one.

    `wait_status` is what waitpid(2) reports; None where the kernel would not tell us.
    `at_seconds` is on the monotonic clock.
    """

    role: ComponentRole
    at_seconds: float
    wait_status: int | None
