"""All rules of vllm-agent, in groups. Valid in Prometheus 2.42 and newer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alerts.agents import agent_alerts
from alerts.availability import availability_groups
from alerts.gpus import gpu_alerts
from alerts.rule import RecordingRule, RuleGroup
from alerts.servers import server_alerts

if TYPE_CHECKING:
    from alerts.site import Site
    from alerts.timing import Timing


def rule_groups(site: Site, timing: Timing) -> tuple[RuleGroup, ...]:
    """Every group of rules for one site."""
    return (
        # One group, since groups are evaluated at different moments. What is silenced stands before
        # what silences it, and so ends first; Alertmanager's group_wait makes up for the beginning.
        RuleGroup(
            "vllm-agent",
            (*server_alerts(timing), *gpu_alerts(timing), *agent_alerts(site, timing)),
        ),
        *availability_groups(site, timing),
        RuleGroup("vllm-agent-fleet", _fleet()),
    )


def _fleet() -> tuple[RecordingRule, ...]:
    """Counts over all servers, for overviews that span many hosts."""
    return (
        RecordingRule(
            "job_state:vllm_agent_server_state:sum",
            "sum by (job, state) (vllm_agent_server_state)",
        ),
        RecordingRule(
            "job:vllm_agent_server_desired_up:sum",
            "sum by (job) (vllm_agent_server_desired_up)",
        ),
    )
