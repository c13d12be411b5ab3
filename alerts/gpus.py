"""Alerts about GPUs: memory that dead servers left behind, and faults that the driver tells of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from alerts.rule import AlertRule
from alerts.texts import GPU, GPU_NAME
from alerts.timing import Severity, duration
from dashboards.links import GPU_ORPHANS, GPU_XIDS

if TYPE_CHECKING:
    from alerts.timing import Timing

CRITICAL_XIDS: Final = (
    46,  # the GPU stopped processing
    48,  # a double bit error of its memory
    62,  # its microcontroller halted
    64,  # a bad row of its memory could not be replaced
    74,  # NVLink, up to Hopper
    79,  # it has fallen off the bus
    95,  # a memory error that reached more than one program
    109,  # it did not switch contexts in time
    110,  # a security fault
    119,  # its firmware (GSP) did not answer in time
    120,  # its firmware failed
    136,  # a link could not be trained
    140,  # a memory error that its driver could not contain
    143,  # it could not be initialized
    149,  # NVLink, from Blackwell on: most often a link is down
    150,  # NVLink, from Blackwell on: its management failed
    151,  # keys of confidential computing could not be renewed
    156,  # a part of it was retired
    158,  # a fatal timeout
)
"""XIDs after which the GPU is of no use until somebody acts: NVIDIA's catalogue says to reset it or
to restart its machine, at once or as the way out of its own procedure for the XID.

Not 155: links that go to sleep on purpose are told by it. Not 144 to 148: what to do depends on a
subcode that no metric has. Not 94: only the program that was hit has to start again.

Source: https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html, "Resolution Bucket
(Immediate Action)" of Ampere to Blackwell.
"""

FOLLOWING_XID: Final = 45
"""Tells that a program was ended, by a kill or by a fault with an XID of its own: never why."""

_CRITICAL: Final = "|".join(map(str, CRITICAL_XIDS))


def gpu_alerts(timing: Timing) -> tuple[AlertRule, ...]:
    """All alerts about one GPU."""
    return (
        _xid(
            Severity.CRITICAL,
            f'xid=~"{_CRITICAL}"',
            "A GPU has a fault and needs a reset.",
            "Take its servers to another GPU, then reset it or boot the host; "
            "if it comes back, have the GPU replaced.",
            timing,
        ),
        _xid(
            Severity.WARNING,
            f'xid!~"{FOLLOWING_XID}|{_CRITICAL}"',
            "A GPU told of an error.",
            "13, 31 and 43 mostly come from the program, 63, 92 and 94 from the GPU's memory; "
            "NVIDIA's catalogue (https://docs.nvidia.com/deploy/xid-errors) says what to do.",
            timing,
        ),
        AlertRule(
            "VllmGpuOrphanMemory",
            Severity.WARNING,
            "vllm_agent_gpu_orphan_memory_bytes > 0",
            "Processes that outlived their vLLM hold memory of a GPU.",
            f"Orphans hold {{{{ $value | humanize1024 }}}}B of {GPU_NAME}, and the next start "
            "there may fail for want of memory. "
            "'vllm-agent gpus' on the host lists them, and the commands that end them.",
            GPU_ORPHANS,
            GPU,
            timing.leftover_for_seconds,
            timing.keep_firing_seconds,
        ),
    )


def _xid(
    severity: Severity, matcher: str, summary: str, first_step: str, timing: Timing
) -> AlertRule:
    # As for crashes: a counter would miss an XID that the first scrape already shows, and changes()
    # sees one where the agent's clock is behind.
    is_fault = severity is Severity.CRITICAL
    window = timing.xid_window_seconds if is_fault else timing.crash_window_seconds
    # Longer than the alert lasts, or it forgets them before it ends.
    recently = duration(window + timing.crash_window_seconds)
    last_xid = f"vllm_agent_gpu_last_xid_timestamp_seconds{{{matcher}}}"
    return AlertRule(
        "VllmGpuXid",
        severity,
        f"time() - {last_xid} < {window:g}\nor\nchanges({last_xid}[{duration(window)}]) > 0",
        summary,
        f"{GPU_NAME} ({{{{ $labels.uuid }}}}) had XID {{{{ $labels.xid }}}}. "
        f"Servers on it in the last {recently}: {_servers_on(recently)}. {first_step}",
        GPU_XIDS,
        GPU,
        keep_firing_seconds=timing.keep_firing_seconds,
    )


def _servers_on(window: str) -> str:
    """A template: the servers that held memory of the GPU in the window, or `none`."""
    # Those of a GPU that was lost have no series at once, and one needs to know who was on it.
    query = (
        "last_over_time(vllm_agent_server_gpu_memory_used_bytes"
        f"{{job=%q, instance=%q, uuid=%q}}[{window}])"
    )
    return (
        f"{{{{ range $i, $series := printf `{query}` $labels.job $labels.instance $labels.uuid "
        "| query | sortByLabel `server` }}{{ if $i }}, {{ end }}{{ $series.Labels.server }}"
        "{{ else }}none{{ end }}"
    )
