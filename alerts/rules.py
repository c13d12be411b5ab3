"""The pages of vllm-agent: what fires, when, and what it says. Valid in Prometheus 2.42 and newer.

Every page is about a server that somebody wants up (`server_desired_up`) or about losing sight of
those servers. A planned stop pages nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dashboards.fleet import UID as DASHBOARD_UID

# A failed state already stands for three failed checks in a row, and a restart of the agent or of
# the server takes less than this.
DOWN_FOR: Final = "2m"
# Longer than DOWN_FOR: when an agent dies its pages go over into VllmAgentDown and do not resolve
# before, because losing sight of a crash is no recovery.
KEEP_FIRING_FOR: Final = "3m"


@dataclass(frozen=True, slots=True)
class Site:
    """What differs between installations: the links in the pages and the scrape job's name."""

    repository_url: str = "https://github.com/vllm-agent/vllm-agent"
    grafana_url: str = "http://localhost:3000"
    job: str = "vllm-agent"


@dataclass(frozen=True, slots=True)
class AlertRule:
    """One alert; durations as Prometheus writes them."""

    name: str
    expr: str
    summary: str
    description: str
    active_for: str | None = None
    keep_firing_for: str | None = KEEP_FIRING_FOR

    def links(self, site: Site) -> dict[str, str]:
        """Where the page sends its reader."""
        return {
            "runbook_url": f"{site.repository_url}/blob/main/docs/runbooks/{self.name}.md",
            "dashboard_url": f"{site.grafana_url}/d/{DASHBOARD_UID}?{_SELECTION}",
        }


# An agent that vanished has no instance, and an empty variable would select nothing.
_SELECTION = "var-job={{ $labels.job | urlquery }}" + "".join(
    f"{{{{ with $labels.{label} }}}}&var-{label}={{{{ . | urlquery }}}}{{{{ end }}}}"
    for label in ("instance", "server")
)
_SAME_SERVER = "on (job, instance, server)"
_SERVER = "Server {{ $labels.server }} on {{ $labels.instance }}"


def _looked_up(metric: str, label: str) -> str:
    """A template: the label of the server's series of `metric` that is 1 right now."""
    query = f"{metric}{{job=%q, instance=%q, server=%q}} == 1"
    return (
        f"{{{{ with printf `{query}` $labels.job $labels.instance $labels.server | query }}}}"
        f"{{{{ . | first | label `{label}` }}}}{{{{ else }}}}unknown{{{{ end }}}}"
    )


_LAST_STATE = _looked_up("vllm_agent_server_state", "state")
_LAST_REASON = _looked_up("vllm_agent_server_failure_reason", "reason")

# A counter would miss a crash that the first scrape already shows. So the time of the last crash
# decides; changes() sees it where the agent's clock is behind; the last arm holds while it is down.
# An end without a known reason, or out of reach, pages only if the server stays down.
_CRASHED = """\
(
    time() - vllm_agent_server_last_crash_timestamp_seconds{reason!~"unknown|unreachable"} < 300
  or
    changes(vllm_agent_server_last_crash_timestamp_seconds{reason!~"unknown|unreachable"}[5m]) > 0
  or
      vllm_agent_server_failure_reason == 1
    and on (job, instance, server)
      vllm_agent_server_state{state="crashed"} == 1
)
and on (job, instance, server)
  vllm_agent_server_desired_up == 1"""

# Not wanted any more means that an operator has it in hand, even with an empty restart budget.
_RESTART_LIMIT_REACHED = f"""\
vllm_agent_server_restart_limit_reached == 1
  and {_SAME_SERVER}
vllm_agent_server_desired_up == 1"""

# Starting is judged by load progress and ends in failed; stopping by its own deadline. Unknown is
# not down: the agent of a container network often cannot reach a server that serves well.
_DOWN = f"""\
vllm_agent_server_desired_up == 1
  unless {_SAME_SERVER}
vllm_agent_server_state{{state=~"running|starting|stopping|unknown"}} == 1"""


def alert_rules(site: Site) -> tuple[AlertRule, ...]:
    """All pages. Each is critical: nothing else tells that requests go unanswered or unseen."""
    return (
        AlertRule(
            "VllmServerCrashed",
            _CRASHED,
            "A vLLM server crashed.",
            f"{_SERVER} crashed: {{{{ $labels.reason }}}}. Last seen {_LAST_STATE}.",
        ),
        AlertRule(
            "VllmServerRestartLimitReached",
            _RESTART_LIMIT_REACHED,
            "A vLLM server crashed more often than its restart limit allows.",
            f"{_SERVER} has used up its restarts. Last seen {_LAST_STATE}, reason: {_LAST_REASON}.",
        ),
        AlertRule(
            "VllmServerDown",
            _DOWN,
            "A vLLM server that should be up does not serve.",
            f"{_SERVER} should be up and has not served for more than {DOWN_FOR}. "
            f"Last seen {_LAST_STATE}, reason: {_LAST_REASON}.",
            active_for=DOWN_FOR,
        ),
        _agent_down(site),
    )


def _agent_down(site: Site) -> AlertRule:
    # One alert for both ways to lose an agent: they have one runbook and one inhibition, and only
    # one of them can be true at a time. absent() needs the job by equality to carry it on.
    return AlertRule(
        "VllmAgentDown",
        f'up{{job="{site.job}"}} == 0\n  or\nabsent(up{{job="{site.job}"}}) == 1',
        "A vllm-agent is gone, and its vLLM servers are not watched.",
        "{{ with $labels.instance }}Prometheus cannot scrape the vllm-agent on {{ . }}"
        "{{ else }}Prometheus has no target at all in job {{ $labels.job }}{{ end }}. "
        "Crashes of its servers page nobody until it is back.",
        active_for=DOWN_FOR,
        keep_firing_for=None,
    )
