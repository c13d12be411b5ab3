"""Looks at a server as the prober would report them, in one line each."""

from __future__ import annotations

from dataclasses import replace

from vllm_agent.observations import (
    Instant,
    MetricsFacts,
    Probe,
    ProbeCause,
    ProbeResult,
    ProbeRound,
)

STARTED = 1_700_000_000.0
"""When the process behind most looks started, in unix time."""

AT = Instant(0.0, STARTED)


def result(probe: Probe, cause: ProbeCause | None = None, status: int | None = None) -> ProbeResult:
    return ProbeResult(probe, cause, 0.005, status, "" if cause is None else f"{probe} {cause}")


def serving(
    start_seconds: float | None = STARTED,
    *,
    names: tuple[str, ...] | None = ("tiny",),
    is_sleeping: bool | None = None,
) -> ProbeRound:
    """Everything answers; `names` None means that /v1/models was not asked this time."""
    asked = [result(Probe.HEALTH)]
    if names is not None:
        asked.append(result(Probe.MODELS))
    asked.append(result(Probe.METRICS))
    facts = MetricsFacts(start_seconds, is_sleeping, ("tiny",))
    return ProbeRound(AT, AT, tuple(asked), model_names=names, metrics=facts)


def failing(cause: ProbeCause = ProbeCause.TIMEOUT) -> ProbeRound:
    """/health fails, and nothing else is asked."""
    return ProbeRound(AT, AT, (result(Probe.HEALTH, cause),))


REFUSED = failing(ProbeCause.REFUSED)


def with_metrics(cause: ProbeCause, *, names: tuple[str, ...] | None = ("tiny",)) -> ProbeRound:
    """Everything answers but /metrics."""
    results = tuple(r for r in serving(names=names).results if r.probe is not Probe.METRICS)
    return replace(
        serving(names=names), results=(*results, result(Probe.METRICS, cause)), metrics=None
    )


def with_models(
    cause: ProbeCause, status: int | None = None, label: tuple[str, ...] = ("tiny",)
) -> ProbeRound:
    """Everything answers but /v1/models; `label` are the model names that /metrics tells."""
    results = (
        result(Probe.HEALTH),
        result(Probe.MODELS, cause, status),
        result(Probe.METRICS),
    )
    return ProbeRound(AT, AT, results, metrics=MetricsFacts(STARTED, None, label))
