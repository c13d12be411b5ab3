"""The queries of docs/gpu.md use what the agent declares, and find what their text promises."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.pipeline.catalogue import METRIC_LABELS
from tests.pipeline.promql import label_names, selectors

PAGE: Final = Path(__file__).parents[2] / "docs" / "gpu.md"
QUERIES: Final = re.findall(
    r"^```promql\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
)
AGENT: Final = 'job="vllm-agent", instance="host:10060"'

SERIES: Final = {
    # Two servers share the first GPU, orphans hold some of the second, the third is lost at 6m.
    'vllm_agent_server_gpu_memory_used_bytes{server="a", gpu="0", uuid="GPU-0", AGENT}': "20x20",
    'vllm_agent_server_gpu_memory_used_bytes{server="b", gpu="0", uuid="GPU-0", AGENT}': "60x20",
    'vllm_agent_gpu_memory_total_bytes{gpu="0", uuid="GPU-0", AGENT}': "80x20",
    'vllm_agent_gpu_memory_free_bytes{gpu="0", uuid="GPU-0", AGENT}': "0x20",
    'vllm_agent_gpu_memory_free_bytes{gpu="1", uuid="GPU-1", AGENT}': "34359738368x20",
    'vllm_agent_gpu_orphan_memory_bytes{gpu="0", uuid="GPU-0", AGENT}': "0x20",
    'vllm_agent_gpu_orphan_memory_bytes{gpu="1", uuid="GPU-1", AGENT}': "34359738368x20",
    # Orphans since two minutes on the first, since fourteen on the second.
    'vllm_agent_gpu_orphan_processes{gpu="0", uuid="GPU-0", AGENT}': "0x12 2x7",
    'vllm_agent_gpu_orphan_processes{gpu="1", uuid="GPU-1", AGENT}': "0 2x20",
    'vllm_agent_gpu_info{gpu="0", uuid="GPU-0", AGENT}': "1x20",
    'vllm_agent_gpu_info{gpu="2", uuid="GPU-2", AGENT}': "1x6",
    'vllm_agent_gpu_last_xid_timestamp_seconds{gpu="2", uuid="GPU-2", xid="79", AGENT}': "360x20",
    'vllm_agent_collector_up{collector="gpu", AGENT}': "1x20",
    'vllm_agent_server_state{server="a", state="running", AGENT}': "1x20",
    'vllm_agent_server_state{server="idle", state="running", AGENT}': "1x20",
    'vllm_agent_server_state{server="far", state="running", AGENT}': "1x20",
    'vllm_agent_server_info{server="a", mode="monitored", AGENT}': "1x20",
    'vllm_agent_server_info{server="idle", mode="monitored", AGENT}': "1x20",
    'vllm_agent_server_info{server="far", mode="external", AGENT}': "1x20",
    'DCGM_FI_PROF_DRAM_ACTIVE{gpu="0", UUID="GPU-0", job="dcgm", instance="host:9400"}': "0.5x20",
    'DCGM_FI_PROF_DRAM_ACTIVE{gpu="1", UUID="GPU-1", job="dcgm", instance="host:9400"}': "0.1x20",
}

FOUND: Final[dict[str, dict[str, float]]] = {
    "group_left vllm_agent_gpu_memory_total_bytes": {
        '{server="a", gpu="0", uuid="GPU-0", AGENT}': 0.25,
        '{server="b", gpu="0", uuid="GPU-0", AGENT}': 0.75,
    },
    "min_over_time": {'{gpu="1", uuid="GPU-1", AGENT}': 2},
    "> 60 * 2^30": {'{gpu="1", uuid="GPU-1", AGENT}': 2**36},
    "unless on (job, instance, server)": {
        'vllm_agent_server_state{server="idle", state="running", AGENT}': 1
    },
    "offset 10m": {'vllm_agent_gpu_info{gpu="2", uuid="GPU-2", AGENT}': 1},
    "time() -": {'{gpu="2", uuid="GPU-2", xid="79", AGENT}': 540},
    "DCGM_FI_": {
        '{server="a", gpu="0", uuid="GPU-0", AGENT}': 0.5,
        '{server="b", gpu="0", uuid="GPU-0", AGENT}': 0.5,
    },
}
"""What each query finds at 15m, by a part of it."""


def query(part: str) -> str:
    (found,) = (one for one in QUERIES if part in one)
    return str(found).strip()


def test_every_query_is_tried() -> None:
    assert sorted(query(part) for part in FOUND) == sorted(one.strip() for one in QUERIES)


@pytest.mark.parametrize("part", FOUND)
def test_a_query_uses_metrics_and_labels_that_exist(part: str) -> None:
    used = {selector.metric for selector in selectors(query(part))}
    own = {name for name in used if not name.startswith("DCGM_FI_")}
    known = set().union(*(METRIC_LABELS[name] for name in own))
    assert label_names(query(part)) <= known
    for selector in selectors(query(part)):
        assert set(selector.matchers) <= METRIC_LABELS.get(selector.metric, frozenset())


@pytest.mark.needs("promtool")
def test_queries_find_what_they_promise(tmp_path: Path) -> None:
    tests = {
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": series.replace("AGENT", AGENT), "values": values}
                    for series, values in SERIES.items()
                ],
                "promql_expr_test": [
                    {
                        "expr": query(part),
                        "eval_time": "15m",
                        "exp_samples": [
                            {"labels": labels.replace("AGENT", AGENT), "value": value}
                            for labels, value in samples.items()
                        ],
                    }
                    for part, samples in FOUND.items()
                ],
            }
        ],
    }
    path = tmp_path / "queries.yml"
    path.write_text(json.dumps(tests), encoding="utf-8")
    result = subprocess.run(
        ["promtool", "test", "rules", path], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
