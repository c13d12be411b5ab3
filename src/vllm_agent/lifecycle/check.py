"""Judges one look at a server by HTTP: is this a vLLM that serves what it should? Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vllm_agent.lifecycle.events import LookNow
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.states import Phase
from vllm_agent.observations import Probe, ProbeCause

if TYPE_CHECKING:
    from vllm_agent.lifecycle.events import Effect
    from vllm_agent.lifecycle.server_life import ServerLife
    from vllm_agent.observations import ProbeResult, ProbeRound

CAUSE_REASON: Final = MappingProxyType(
    {
        ProbeCause.REFUSED: Reason.UNREACHABLE,
        ProbeCause.RESET: Reason.UNREACHABLE,
        ProbeCause.DNS: Reason.UNREACHABLE,
        ProbeCause.TLS: Reason.UNREACHABLE,
        ProbeCause.TIMEOUT: Reason.UNRESPONSIVE,
        ProbeCause.HTTP_4XX: Reason.UNHEALTHY,
        ProbeCause.HTTP_5XX: Reason.UNHEALTHY,
        ProbeCause.BAD_BODY: Reason.UNHEALTHY,
        ProbeCause.TOO_LARGE: Reason.UNHEALTHY,
    }
)
"""Why a server is failed when its checks fail for that cause."""

_NO_EVIDENCE_STATUS: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_TOLERATED_FOR_METRICS: Final = frozenset({ProbeCause.HTTP_4XX, ProbeCause.HTTP_5XX})


class Outcome(StrEnum):
    """The three ways a look can go."""

    PASSED = "passed"
    FAILED = "failed"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class CheckVerdict:
    """What one look says; `reason` and `detail` explain a look that did not pass."""

    outcome: Outcome
    reason: Reason | None = None
    detail: str = ""


def judge_look(look: ProbeRound, *, expected_model: str | None, has_served: bool) -> CheckVerdict:
    """The verdict on `look`.

    A launch that has not served yet must answer every probe as a vLLM does; afterwards /health and
    /v1/models decide, since a busy server may be slow with its /metrics.
    """
    health = look.result(Probe.HEALTH)
    if health is None or health.cause is not None:
        return _failed(health)
    models = look.result(Probe.MODELS)
    if models is None:
        if not has_served:
            detail = "answered /health, but left no time to ask for /v1/models"
            return CheckVerdict(Outcome.FAILED, Reason.UNRESPONSIVE, detail)
    elif models.cause is not None and models.http_status not in _NO_EVIDENCE_STATUS:
        return _failed(models)
    metrics = look.result(Probe.METRICS)
    if (
        not has_served
        and metrics is not None
        and metrics.cause is not None
        and metrics.cause not in _TOLERATED_FOR_METRICS
    ):
        return _failed(metrics)
    return _judge_models(look, expected_model)


def _failed(result: ProbeResult | None) -> CheckVerdict:
    if result is None or result.cause is None:
        return CheckVerdict(Outcome.FAILED, Reason.UNKNOWN, "was not asked for its health")
    if result.cause is ProbeCause.REFUSED:
        return CheckVerdict(Outcome.REFUSED, Reason.UNREACHABLE, result.detail)
    return CheckVerdict(Outcome.FAILED, CAUSE_REASON[result.cause], result.detail)


def _judge_models(look: ProbeRound, expected_model: str | None) -> CheckVerdict:
    names = look.model_names
    if names is None:
        # Not asked, or withheld. /metrics does not tell either: it knows one name of several.
        return CheckVerdict(Outcome.PASSED)
    if not names:
        return CheckVerdict(Outcome.FAILED, Reason.MODEL_MISSING, "/v1/models lists no model")
    if expected_model is not None and expected_model not in names:
        detail = f"serves {', '.join(names)}, not {expected_model}"
        return CheckVerdict(Outcome.FAILED, Reason.MODEL_MISSING, detail)
    return CheckVerdict(Outcome.PASSED)


def look_again_after_reset(life: ServerLife, look: ProbeRound) -> tuple[Effect, ...]:
    """A reset is often the last word of a server that goes: the next look will tell."""
    health = look.result(Probe.HEALTH)
    is_reset = health is not None and health.cause is ProbeCause.RESET
    is_first = life.consecutive_failures == 1 and life.phase is Phase.READY
    return (LookNow(),) if is_reset and is_first else ()


def told_sleeping(life: ServerLife, look: ProbeRound) -> ServerLife:
    """Books whether it sleeps, where it says."""
    if look.metrics is None or look.metrics.is_sleeping == life.is_sleeping:
        return life
    return replace(life, is_sleeping=look.metrics.is_sleeping)
