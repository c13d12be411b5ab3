"""The reference page knows every metric."""

from __future__ import annotations

import pytest
from prometheus_client import ProcessCollector

from vllm_agent.expose import metrics_page
from vllm_agent.expose.metric_families import (
    AGENT_FAMILIES,
    GPU_FAMILIES,
    MOMENT_FAMILIES,
    SERVER_FAMILIES,
)

PAGE = metrics_page.render()
UNITS = ("_seconds", "_bytes", "_ratio", "_celsius", "_watts")


@pytest.mark.parametrize(
    "family",
    [*SERVER_FAMILIES, *MOMENT_FAMILIES, *GPU_FAMILIES, *AGENT_FAMILIES],
    ids=lambda family: family.name,
)
def test_every_family_has_one_complete_row(family):
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{family.name}` |")]
    name, kind, labels, unit, modes, meaning = row.strip("| ").split(" | ")
    assert name == f"`{family.name}`"
    assert kind == family.type
    assert labels.strip() == ", ".join(f"`{label}`" for label in family.all_labels)
    assert meaning == family.help
    assert modes
    assert bool(unit.strip()) == any(part in name for part in UNITS)


def test_a_family_of_some_modes_names_them():
    (row,) = [line for line in PAGE.splitlines() if "server_last_exit_info" in line]
    assert "| monitored, managed |" in row


def test_the_agents_own_process_is_complete():
    for metric in ProcessCollector(registry=None).collect():
        assert f"`{metric.name}" in PAGE


def test_the_page_is_the_same_every_time():
    assert metrics_page.render() == PAGE
    assert PAGE.endswith("\n")
    assert not PAGE.endswith("\n\n")
