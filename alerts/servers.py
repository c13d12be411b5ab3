"""Alerts about one vLLM server.

A page is about a server that somebody wants up (`server_desired_up`). One of which nobody said so,
a `vllm serve` in a shell, has a ticket in place of each page. A planned stop has neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from alerts.rule import AlertRule
from alerts.texts import (
    LAST_REASON,
    LAST_STATE,
    LOAD_STAGE,
    LOOK,
    READ_HISTORY,
    REASON_OR_LAST_CRASH,
    SAME_SERVER,
    SERVER,
    SERVER_NAME,
    URL,
    of_nobody,
    wanted,
)
from alerts.timing import Severity, duration
from dashboards.links import (
    SERVER_ENDINGS,
    SERVER_PROBES,
    SERVER_PROCESSES,
    SERVER_RESTART_BUDGET,
    SERVER_STAGES,
    SERVER_TIMELINE,
)

if TYPE_CHECKING:
    from alerts.timing import Timing
    from dashboards.links import PanelLink

SLOW_START_FACTOR: Final = 3
"""How many times its own mean a load takes before it is slow. A load with cold caches (the model's
files, compiled kernels) takes longer than the others of the same server, and is no trouble."""

RESTART_LOOP: Final = 3
"""How many restarts of one server in an hour somebody has to look into now, even if each of them
helped: users have lost their requests as often."""

_ENDED: Final = "VllmServerCrashed|VllmServerRestartLimitReached"
"""Alerts that tell why an agent restarted a server."""


def server_alerts(timing: Timing) -> tuple[AlertRule, ...]:
    """All alerts about one server: what is silenced before what silences it.

    A restart is told where no crash was, and reads the alerts of crashes.
    """
    return (
        _slow_start(timing),
        *_page_and_ticket(
            "VllmServerFailed",
            # Without its label the alert has the labels of all others of the server.
            'max without (state) (vllm_agent_server_state{state="failed"}) == 1',
            "A vLLM server has failed and does not serve.",
            f"{SERVER_NAME} has been failed for more than {duration(timing.down_for_seconds)}, "
            f"reason: {LAST_REASON}. {READ_HISTORY}",
            SERVER_PROBES,
            timing=timing,
            active_for_seconds=timing.down_for_seconds,
        ),
        _down(timing),
        _unreachable(timing),
        *_page_and_ticket(
            "VllmServerLoadStalled",
            "vllm_agent_load_stalled == 1",
            "A vLLM server makes no progress in loading its model.",
            f"{SERVER_NAME} makes no progress in stage {LOAD_STAGE} of its load. {LOOK}",
            SERVER_STAGES,
            timing=timing,
            active_for_seconds=timing.load_for_seconds,
        ),
        *_page_and_ticket(
            "VllmServerRestartLimitReached",
            "vllm_agent_server_restart_limit_reached == 1",
            "A vLLM server has used up its restarts.",
            f"{SERVER_NAME} has used up its restarts. Last seen {LAST_STATE}, "
            f"reason: {REASON_OR_LAST_CRASH}. Mend that before it is started again: {READ_HISTORY}",
            SERVER_RESTART_BUDGET,
            timing=timing,
        ),
        *_page_and_ticket(
            "VllmServerCrashed",
            _crashed(timing),
            "A vLLM server crashed.",
            f"{SERVER_NAME} crashed: {{{{ $labels.reason }}}}. Last seen {LAST_STATE}. "
            f"{READ_HISTORY}",
            SERVER_TIMELINE,
            timing=timing,
        ),
        *_restarted(timing),
        _orphans(timing),
    )


def _page_and_ticket(
    name: str,
    expr: str,
    summary: str,
    description: str,
    panel: PanelLink,
    *,
    timing: Timing,
    active_for_seconds: float | None = None,
) -> tuple[AlertRule, AlertRule]:
    """A page for a server that is wanted up, a ticket for one of which nobody said so."""
    page, ticket = (
        AlertRule(
            name,
            severity,
            narrowed,
            summary,
            description,
            panel,
            SERVER,
            active_for_seconds,
            timing.keep_firing_seconds,
        )
        for severity, narrowed in (
            (Severity.CRITICAL, wanted(expr)),
            (Severity.WARNING, of_nobody(expr, timing)),
        )
    )
    return page, ticket


def _crashed(timing: Timing) -> str:
    # A counter would miss a crash that the first scrape already shows. So the time of the last
    # crash decides; changes() sees it where the agent's clock is behind; the last arm holds while
    # it is down. An end without a known reason, or out of reach, pages only if it stays down.
    last_crash = 'vllm_agent_server_last_crash_timestamp_seconds{reason!~"unknown|unreachable"}'
    return f"""\
(
    time() - {last_crash} < {timing.crash_window_seconds:g}
  or
    changes({last_crash}[{duration(timing.crash_window_seconds)}]) > 0
  or
      vllm_agent_server_failure_reason == 1
    and {SAME_SERVER}
      vllm_agent_server_state{{state="crashed"}} == 1
)"""


def _down(timing: Timing) -> AlertRule:
    # Failed and crashed have alerts of their own; starting is judged by load progress and ends in
    # failed; stopping by its own deadline. Unknown is not down: the agent of a container network
    # often cannot reach a server that serves well.
    elsewhere = "running|starting|stopping|unknown|failed|crashed"
    return AlertRule(
        "VllmServerDown",
        Severity.CRITICAL,
        "vllm_agent_server_desired_up == 1\n"
        f"unless {SAME_SERVER}\n"
        f'  vllm_agent_server_state{{state=~"{elsewhere}"}} == 1',
        "A vLLM server that should be up does not serve.",
        f"{SERVER_NAME} should be up and has not served for more than "
        f"{duration(timing.down_for_seconds)}. Last seen {LAST_STATE}. "
        "Start it as it is started there: its systemd unit, its container, or for a managed one "
        "'vllm-agent start {{ $labels.server }}'. If it is not wanted, say so: "
        "'vllm-agent maintenance {{ $labels.server }} on'.",
        SERVER_TIMELINE,
        SERVER,
        timing.down_for_seconds,
        timing.keep_firing_seconds,
    )


def _unreachable(timing: Timing) -> AlertRule:
    return AlertRule(
        "VllmServerUnreachable",
        Severity.CRITICAL,
        wanted(
            # Without the label `reason`, which says nothing that the name does not.
            'max without (reason) (vllm_agent_server_failure_reason{reason="unreachable"}) == 1\n'
            f"and {SAME_SERVER}\n"
            '  vllm_agent_server_info{mode="external"}'
        ),
        "An external vLLM server cannot be reached.",
        "Server {{ $labels.server }} cannot be reached from {{ $labels.instance }} "
        f"at {URL}. Look whether it runs on its own host, then at the network between.",
        SERVER_PROBES,
        SERVER,
        timing.unreachable_for_seconds,
        timing.keep_firing_seconds,
    )


def _slow_start(timing: Timing) -> AlertRule:
    # How long a download takes depends on the network and on what is cached already; all else of a
    # load takes its time every time. A server that nobody saw load has no mean and is not judged.
    # The agent measures the stages, so its clock and that of Prometheus may differ.
    mean = "vllm_agent_load_duration_seconds_sum / vllm_agent_load_duration_seconds_count"
    return AlertRule(
        "VllmServerStartSlow",
        Severity.WARNING,
        f"""\
(
    sum without (stage) (vllm_agent_load_stage_seconds{{stage!="download"}})
  -
    {mean}
)
>
  clamp_min({SLOW_START_FACTOR - 1} * {mean}, {timing.slow_start_seconds:g})
and {SAME_SERVER}
  vllm_agent_server_state{{state="starting"}} == 1
unless {SAME_SERVER}
  vllm_agent_server_desired_up == 0""",
        "A vLLM server takes much longer to start than it usually does.",
        f"{SERVER_NAME} is in stage {LOAD_STAGE} and takes "
        "{{ $value | humanizeDuration }} longer than its loads do on average, downloads left out. "
        f"Compare its stages with those of the start before. {LOOK}",
        SERVER_STAGES,
        SERVER,
        timing.load_for_seconds,
        timing.keep_firing_seconds,
    )


def _restarted(timing: Timing) -> tuple[AlertRule, AlertRule]:
    """A managed server that hangs is restarted too soon for any other alert to see it.

    A crash has a page of its own, and so has a server that used up its restarts: each lasts longer
    than the restart that follows it.
    """

    def restarts(window_seconds: float, least: int) -> str:
        window = duration(window_seconds)
        counted = 'vllm_agent_server_restarts_total{initiator="agent"}'
        ended = f'ALERTS{{alertname=~"{_ENDED}", alertstate="firing"}}'
        return (
            f"round(sum without (initiator) (increase({counted}[{window}]))) >= {least}\n"
            f"unless {SAME_SERVER}\n"
            f"  max_over_time({ended}[{window}]) == 1\n"
            # The start after a maintenance is the agent's, too.
            f"unless {SAME_SERVER}\n  min_over_time(vllm_agent_server_desired_up[{window}]) == 0"
        )

    def told(severity: Severity, window_seconds: float, least: int, summary: str) -> AlertRule:
        return AlertRule(
            "VllmServerRestarted",
            severity,
            wanted(restarts(window_seconds, least)),
            summary,
            f"{SERVER_NAME} was started again by its agent {{{{ $value }}}} times in the last "
            f"{duration(window_seconds)}, without a crash: its checks failed, or its load stood "
            f"still. Requests that it had were lost. {READ_HISTORY}",
            SERVER_ENDINGS,
            SERVER,
            keep_firing_seconds=timing.keep_firing_seconds,
        )

    return (
        told(
            Severity.CRITICAL,
            timing.restart_loop_window_seconds,
            RESTART_LOOP,
            "A vLLM server hangs or fails again and again, and its agent restarts it.",
        ),
        told(
            Severity.WARNING,
            timing.restart_window_seconds,
            1,
            "A vLLM server hung or failed, and its agent restarted it.",
        ),
    )


def _orphans(timing: Timing) -> AlertRule:
    return AlertRule(
        "VllmServerOrphans",
        Severity.WARNING,
        """\
vllm_agent_orphan_processes > 0
unless on (job, instance)
  vllm_agent_gpu_orphan_memory_bytes > 0""",
        "Parts of a vLLM server outlived it.",
        "{{ $value }} processes of server {{ $labels.server }} on {{ $labels.instance }} outlived "
        "its main process. No GPU is seen to be held by them; the next start may still fail. "
        f"{LOOK}",
        SERVER_PROCESSES,
        SERVER,
        timing.leftover_for_seconds,
        timing.keep_firing_seconds,
    )
