"""The story that the dashboards are tried on is one that the agent could have told."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final, TypeAlias

import pytest

from tests.pipeline import story, story_blocks
from tests.pipeline.catalogue import COUNTERS, METRIC_LABELS
from tests.pipeline.story_host import RESERVED_BYTES
from vllm_agent.expose.family import PREFIX
from vllm_agent.lifecycle.load_history import LOADING_STAGES
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.states import LifecycleMode, ServerState

if TYPE_CHECKING:
    from collections.abc import Mapping

    Labels: TypeAlias = Mapping[str, str]
    Values: TypeAlias = Mapping[int, float]

MAX_SAMPLES: Final = 600_000
"""Made into blocks in three seconds."""
_LINE: Final = re.compile(r"(\w+)\{(.*)\} (\S+) (\d+)\n")
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"(?:,|$)')
_FROM_THE_STORE: Final = {
    "vllm_agent_server_launches_total",
    "vllm_agent_server_restarts_total",
    "vllm_agent_server_crashes_total",
    "vllm_agent_server_state_transitions_total",
    "vllm_agent_gpu_ecc_errors_total",
    "vllm_agent_load_duration_seconds_bucket",
    "vllm_agent_load_duration_seconds_count",
    "vllm_agent_load_duration_seconds_sum",
}
"""Counters that go on when an agent was restarted."""


@dataclass(frozen=True, slots=True)
class Series:
    """One series of the story, its values by unix time."""

    metric: str
    labels: Labels
    values: Values

    def key(self, *labels: str) -> tuple[str, ...]:
        return tuple(self.labels.get(label, "") for label in labels)


@pytest.fixture(scope="module")
def lines():
    return list(story_blocks.samples())


@pytest.fixture(scope="module")
def series(lines):
    values: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for line in lines:
        found = _LINE.fullmatch(line)
        assert found, line
        metric, labels, value, unix_seconds = found.groups()
        at = int(unix_seconds)
        assert at not in values[metric, labels], f"twice: {line}"
        values[metric, labels][at] = float(value)
    by_metric: dict[str, list[Series]] = defaultdict(list)
    for (metric, labels), samples in values.items():
        by_metric[metric].append(Series(metric, dict(_LABEL.findall(labels)), samples))
    return by_metric


def _by(series: list[Series], *labels: str) -> dict[tuple[str, ...], list[Series]]:
    grouped: dict[tuple[str, ...], list[Series]] = defaultdict(list)
    for one in series:
        grouped[one.key(*labels)].append(one)
    return grouped


def _sums(series: list[Series], *labels: str) -> dict[tuple[str, ...], dict[int, float]]:
    """Like `sum by (labels)`: the sum at each scrape."""
    sums: dict[tuple[str, ...], dict[int, float]] = {}
    for key, group in _by(series, *labels).items():
        total = sums.setdefault(key, defaultdict(float))
        for one in group:
            for at, value in one.values.items():
                total[at] += value
    return sums


def test_there_are_few_enough_samples(lines):
    assert len(lines) < MAX_SAMPLES


def test_samples_are_of_scrapes(series):
    scrapes = set(story.SCRAPES)
    assert all(set(one.values) == scrapes for one in series["up"])
    assert all(set(one.values) <= scrapes for group in series.values() for one in group)


def test_every_metric_and_label_is_declared(series):
    for metric, group in series.items():
        assert all(set(one.labels) == METRIC_LABELS[metric] for one in group), metric


def test_every_metric_is_shown(series):
    """A panel of a metric that the story never shows would be tested on nothing."""
    own = {name for name in METRIC_LABELS if name.startswith(PREFIX)}
    assert set(series) == own | {"up"}


def test_every_server_is_in_one_state(series):
    for total in _sums(series["vllm_agent_server_state"], "instance", "server").values():
        assert set(total.values()) == {1}


def test_a_reason_is_told_while_a_server_is_failed_or_crashed(series):
    states = [
        one
        for one in series["vllm_agent_server_state"]
        if one.labels["state"] in {ServerState.FAILED, ServerState.CRASHED}
    ]
    down = {
        (*key, at)
        for key, total in _sums(states, "instance", "server").items()
        for at, value in total.items()
        if value
    }
    reasons = _sums(series["vllm_agent_server_failure_reason"], "instance", "server")
    assert down == {(*key, at) for key, total in reasons.items() for at in total}
    assert all(set(total.values()) == {1} for total in reasons.values())


def test_a_server_that_starts_is_in_one_stage(series):
    starting = {
        one.key("instance", "server"): one.values
        for one in series["vllm_agent_server_state"]
        if one.labels["state"] == ServerState.STARTING
    }
    stages = [one for one in series["vllm_agent_load_stage"] if one.labels["stage"] != "none"]
    for key, total in _sums(stages, "instance", "server").items():
        for at, value in total.items():
            # One that hangs in its load is failed, and in its stage for all that.
            assert value >= starting[key][at]
            assert value <= 1
    assert {at for values in starting.values() for at, value in values.items() if value}


def test_memory_of_a_gpu_adds_up(series):
    def of(metric: str) -> dict[tuple[str, ...], dict[int, float]]:
        return _sums(series[f"vllm_agent_{metric}"], "instance", "gpu", "uuid")

    used, servers = of("gpu_memory_used_bytes"), of("server_gpu_memory_used_bytes")
    free, total = of("gpu_memory_free_bytes"), of("gpu_memory_total_bytes")
    orphans, other = of("gpu_orphan_memory_bytes"), of("gpu_other_memory_bytes")
    assert len(used) == 12
    for key, values in used.items():
        for at, value in values.items():
            held = servers.get(key, {}).get(at, 0)
            assert value == held + orphans[key][at] + other[key][at]
            assert total[key][at] == value + free[key][at] + RESERVED_BYTES


def test_orphans_of_a_server_are_those_on_its_gpus(series):
    on_gpus = _sums(series["vllm_agent_gpu_orphan_processes"], "instance")
    of_servers = _sums(series["vllm_agent_orphan_processes"], "instance")
    for (instance,), total in on_gpus.items():
        assert all(of_servers[instance,][at] == count for at, count in total.items())
    assert max(of_servers["gpu1:10060",].values()) == 2


def test_available_time_is_part_of_the_desired(series):
    desired = _sums(series["vllm_agent_server_desired_seconds_total"], "instance", "server")
    available = _sums(series["vllm_agent_server_available_seconds_total"], "instance", "server")
    assert desired.keys() == available.keys()
    for key, total in available.items():
        assert all(0 <= value <= desired[key][at] for at, value in total.items())


@pytest.mark.parametrize("metric", sorted(COUNTERS))
def test_counters_never_fall_but_with_a_new_agent(series, metric):
    for one in series[metric]:
        values = sorted(one.values.items())
        for (earlier, before), (at, after) in pairwise(values):
            is_away_over = earlier < story.AGENT_AWAY.end <= at
            is_new = one.labels["instance"] == "gpu2:10060" and is_away_over
            assert after >= before or (is_new and metric not in _FROM_THE_STORE), (one, at)


@pytest.mark.parametrize("name", ["load_duration_seconds", "probe_duration_seconds"])
def test_buckets_of_a_histogram_are_cumulative(series, name):
    counts = {one.key("server", "probe"): one for one in series[f"vllm_agent_{name}_count"]}
    buckets = _by(series[f"vllm_agent_{name}_bucket"], "server", "probe")
    assert counts.keys() == buckets.keys()
    for key, group in buckets.items():
        ordered = sorted(group, key=lambda one: float(one.labels["le"]))
        for at, count in counts[key].values.items():
            heights = [one.values[at] for one in ordered]
            assert heights == sorted(heights)
            assert heights[-1] == count


def test_ratios_are_ratios(series):
    ratios = [one for metric in series if metric.endswith("_ratio") for one in series[metric]]
    assert ratios
    assert all(0 <= value <= 1 for one in ratios for value in one.values.values())


def test_the_story_is_the_one_that_is_promised(series):
    """What the panels are there for happens, so that none of them is tried on a quiet fleet."""

    def ever(metric: str, label: str) -> set[str]:
        found = series[f"vllm_agent_{metric}"]
        return {one.labels[label] for one in found if any(one.values.values())}

    assert ever("server_info", "mode") == set(LifecycleMode)
    # An agent that starts looks before its first scrape.
    assert ever("server_state", "state") == set(ServerState) - {ServerState.UNKNOWN}
    assert ever("load_stage", "stage") == {*LOADING_STAGES, "none"}
    assert ever("server_crashes_total", "reason") == {
        *(Reason.ENGINE_DIED, Reason.GPU_MEMORY_TAKEN, Reason.GPU_OOM, Reason.GPU_FAULT)
    }
    assert ever("server_failure_reason", "reason") == {
        *ever("server_crashes_total", "reason"),
        *(Reason.LOAD_STALLED, Reason.UNREACHABLE),
    }
    assert ever("server_restarts_total", "initiator") == {"agent", "operator", "outside"}
    assert ever("load_stalled", "server") == {"mistral"}
    assert ever("server_restart_limit_reached", "server") == {"phi"}
    assert ever("server_sleeping", "server") == {"embed@8001"}
    assert ever("probe_failures_total", "cause") == {"dns", "refused", "timeout"}
    assert ever("gpu_xid_errors_total", "xid") == {"45", "48"}
    assert ever("gpu_ecc_errors_total", "kind") == {"corrected", "uncorrected"}
    assert ever("dropped_total", "kind") == {"component_exit", "process"}


def test_what_happens_to_agents_shows(series):
    agents = [one for one in series["up"] if one.labels["job"] == story_blocks.JOB]
    up = {one.labels["instance"]: one.values for one in agents}
    assert set(up) == {*story.INSTANCES, story.INSTANCE_DOWN}
    assert not any(up[story.INSTANCE_DOWN].values())
    for at, value in up["gpu2:10060"].items():
        assert value == (at not in story.AGENT_AWAY)
    accepted = {
        one.labels["instance"]: one.values
        for one in series["vllm_agent_config_last_reload_successful"]
    }
    for at, value in accepted["gpu1:10060"].items():
        assert value == (at not in story.BAD_CONFIGURATION)
    on_gpu1 = [one for one in series["vllm_agent_gpu_info"] if one.labels["gpu"] == "7"]
    assert [at for at in up["gpu1:10060"] if at in story.GPU_BLIND]
    assert not any(at in story.GPU_BLIND for one in on_gpu1 for at in one.values)
