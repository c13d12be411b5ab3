"""What several dashboards ask, and selectors checked against what the agent declares.

A metric or label that the agent does not declare fails here, when the dashboards are written, and
not as an empty panel at the viewer's.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from vllm_agent.expose.family import PREFIX, Family, MetricType
from vllm_agent.expose.metric_families import (
    AGENT_FAMILIES,
    GPU_FAMILIES,
    MOMENT_FAMILIES,
    SERVER_FAMILIES,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from collections.abc import Set as AbstractSet

TARGET_LABELS: Final = ("job", "instance")
"""What Prometheus adds to every series it scrapes."""
_CHOSEN: Final = (*TARGET_LABELS, "server")
"""Labels that have a variable on every dashboard."""
SAME_SERVER: Final = "on (job, instance, server)"
SAME_GPU: Final = "on (job, instance, gpu, uuid)"
AVAILABILITY_TARGET: Final = 0.99
"""Where a dashboard's judgement on availability turns; the burn rate alerts have it from here."""

_FAMILIES: Final[tuple[Family[Any], ...]] = (
    *SERVER_FAMILIES,
    *MOMENT_FAMILIES,
    *GPU_FAMILIES,
    *AGENT_FAMILIES,
)


def _series(family: Family[Any]) -> Iterator[tuple[str, frozenset[str]]]:
    labels = frozenset((*TARGET_LABELS, *family.all_labels))
    if family.type is MetricType.HISTOGRAM:
        yield f"{family.name}_bucket", labels | {"le"}
        yield f"{family.name}_sum", labels
        yield f"{family.name}_count", labels
    else:
        yield family.name, labels


_LABELS: Final = MappingProxyType(
    {name: labels for family in _FAMILIES for name, labels in _series(family)}
)


def metric(name: str, /, *, chosen: tuple[str, ...] = (), **labels: str | Sequence[str]) -> str:
    """A selector of the metric that follows the dashboard's variables and has the given labels.

    `name` goes without the agent's prefix; of a histogram it is one of its three series. A label is
    a value, or several of which the series may have any. `chosen` are labels that this dashboard
    has a variable for beside those that all have.

    Raises:
        KeyError: The agent declares no such metric.
        ValueError: The metric has no such label.
    """
    known = _check_labels(name, labels.keys())
    followed = [label for label in (*_CHOSEN, *chosen) if label in known]
    matchers = (*map(_follows, followed), *(_matcher(*one) for one in labels.items()))
    return f"{PREFIX}{name}{{{', '.join(matchers)}}}"


def label_values(name: str, label: str, *followed: str) -> str:
    """A query for a variable: what the label is in series that follow the variables before it.

    Raises:
        KeyError: The agent declares no such metric.
        ValueError: The metric does not have all of these labels.
    """
    _check_labels(name, {label, *followed})
    selector = f"{{{', '.join(map(_follows, followed))}}}" if followed else ""
    return f"label_values({PREFIX}{name}{selector}, {label})"


def target_up() -> str:
    """Prometheus' own `up` of the chosen agents, and of no target of a job without agents.

    An agent that is down tells nothing, but another of its job did, or it itself before.
    """
    up = f"up{{{', '.join(map(_follows, TARGET_LABELS))}}}"
    return f"({up} and on (job) group by (job) (last_over_time({metric('build_info')}[$__range])))"


def events(counter: str, by: str, *, chosen: tuple[str, ...] = ()) -> str:
    """How often something happened in each interval, by labels; no series where it did not.

    Whole events: increase() extrapolates to the window's edges and would draw 1.02 crashes.
    """
    return (
        f"round(sum by ({by}) (increase({metric(counter, chosen=chosen)}[$__rate_interval]))) > 0"
    )


def desired_seconds(window: str) -> str:
    """For how long each server was wanted up; no series for one that was not."""
    return f"(increase({metric('server_desired_seconds_total')}[{window}]) > 0)"


def available_seconds(window: str) -> str:
    """For how long each server was wanted up and running."""
    return f"increase({metric('server_available_seconds_total')}[{window}])"


def state_since() -> str:
    """When each server entered its state, in ms, with the labels that say what it is and why.

    A healthy server has no reason series; its state series stands in, which has no such label.
    """
    state = f"{metric('server_state')} == 1"
    reason = f"{metric('server_failure_reason')} == 1"
    return (
        f"1000 * {metric('server_state_entered_timestamp_seconds')}"
        f" * {SAME_SERVER} group_left (mode, model_name, version, url) {metric('server_info')}"
        f" * {SAME_SERVER} group_left (state) ({state})"
        f" * {SAME_SERVER} group_left (reason) ({reason} or {SAME_SERVER} {state})"
    )


def _check_labels(name: str, used: AbstractSet[str]) -> frozenset[str]:
    known = _LABELS[PREFIX + name]
    if unknown := used - known:
        raise ValueError(f"{PREFIX}{name} has no label {', '.join(sorted(unknown))}")
    return known


def _follows(label: str) -> str:
    return f'{label}=~"${label}"'


def _matcher(label: str, value: str | Sequence[str]) -> str:
    if isinstance(value, str):
        return f'{label}="{value}"'
    return f'{label}=~"{"|".join(value)}"'
