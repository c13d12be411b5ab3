"""Alerts about the agents: what is not watched, or not as its operator wants it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alerts.rule import AlertRule
from alerts.texts import AGENT
from alerts.timing import Severity, duration
from dashboards.links import FLEET_AGENTS_DOWN, FLEET_COLLECTORS, FLEET_CONFIGURATION

if TYPE_CHECKING:
    from alerts.site import Site
    from alerts.timing import Timing


def agent_alerts(site: Site, timing: Timing) -> tuple[AlertRule, ...]:
    """All alerts about one agent, and the one about having none."""
    restart_window = duration(timing.agent_restart_window_seconds)
    return (
        AlertRule(
            "VllmAgentDown",
            Severity.CRITICAL,
            f'up{{job="{site.job}"}} == 0',
            "A vllm-agent is gone, and its vLLM servers are not watched.",
            "Prometheus cannot scrape the vllm-agent on {{ $labels.instance }}. Crashes of its "
            "servers page nobody until it is back. Look whether its host is up, then "
            "'systemctl status vllm-agent' there.",
            FLEET_AGENTS_DOWN,
            AGENT,
            timing.down_for_seconds,
        ),
        AlertRule(
            "VllmAgentAbsent",
            Severity.CRITICAL,
            # absent() needs the job by equality to carry it on.
            f'absent(up{{job="{site.job}"}}) == 1',
            "No vllm-agent is scraped, and no vLLM server is watched.",
            "Prometheus has no target at all in job {{ $labels.job }}. Crashes of vLLM servers "
            "page nobody until it has. Look at its targets page, then at its configuration or "
            "service discovery: a job that was renamed looks like this.",
            FLEET_AGENTS_DOWN,
            ("job",),
            timing.down_for_seconds,
        ),
        AlertRule(
            "VllmAgentRestarting",
            Severity.WARNING,
            # One that dies every minute is never down for as long as VllmAgentDown takes.
            f'changes(process_start_time_seconds{{job="{site.job}"}}[{restart_window}]) '
            f"> {timing.agent_restart_count}",
            "A vllm-agent does not stay up, and watches its vLLM servers badly.",
            "The vllm-agent on {{ $labels.instance }} has restarted {{ $value }} times in the last "
            f"{restart_window}. What happens while it is away is seen late or not at all. "
            "Look why it ends: 'journalctl --unit vllm-agent' there.",
            FLEET_AGENTS_DOWN,
            AGENT,
            keep_firing_seconds=timing.keep_firing_seconds,
        ),
        AlertRule(
            "VllmAgentCollectorDown",
            Severity.WARNING,
            'vllm_agent_collector_up{collector!="store"} == 0',
            "A source of a vllm-agent does not work, and what it tells is missing.",
            "Source {{ $labels.collector }} of the vllm-agent on {{ $labels.instance }} fails. "
            "'vllm-agent doctor' there says what is missing, and the agent's log why.",
            FLEET_COLLECTORS,
            AGENT,
            timing.fault_for_seconds,
            timing.keep_firing_seconds,
        ),
        AlertRule(
            "VllmAgentStoreFailing",
            Severity.WARNING,
            'vllm_agent_collector_up{collector="store"} == 0',
            "A vllm-agent cannot keep its state, and forgets when it restarts.",
            "The vllm-agent on {{ $labels.instance }} cannot write its state directory: history, "
            "restart budgets and maintenance would not outlast its own restart. "
            "Look at the disk and the rights of --state.dir, and at the agent's log.",
            FLEET_COLLECTORS,
            AGENT,
            timing.fault_for_seconds,
            timing.keep_firing_seconds,
        ),
        AlertRule(
            "VllmAgentConfigReloadFailed",
            Severity.WARNING,
            "vllm_agent_config_last_reload_successful == 0",
            "A vllm-agent has refused its configuration and goes on with the old one.",
            "The vllm-agent on {{ $labels.instance }} could not load its configuration when it was "
            "last read. Its log says in which line; "
            "'vllm-agent check-config --config.file FILE' too.",
            FLEET_CONFIGURATION,
            AGENT,
            timing.fault_for_seconds,
            timing.keep_firing_seconds,
        ),
    )
