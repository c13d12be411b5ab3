"""Expressions and templates that several alerts share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from alerts.timing import duration

if TYPE_CHECKING:
    from alerts.timing import Timing

AGENT: Final = ("job", "instance")
SERVER: Final = (*AGENT, "server")
GPU: Final = (*AGENT, "gpu")

SAME_SERVER: Final = "on (job, instance, server)"
SERVER_NAME: Final = "Server {{ $labels.server }} on {{ $labels.instance }}"
_OF_SERVER: Final = "{job=%q, instance=%q, server=%q}"
GPU_NAME: Final = "GPU {{ $labels.gpu }} of {{ $labels.instance }}"


def wanted(expr: str) -> str:
    """`expr` where somebody wants the server up; not in maintenance, nor stopped on request."""
    return f"{expr}\nand {SAME_SERVER}\n  vllm_agent_server_desired_up == 1"


def of_nobody(expr: str, timing: Timing) -> str:
    """`expr` where nobody said whether the server is wanted: a `vllm serve` in a shell.

    Of a server that `wanted` has a series for, there is none here.
    """
    # As far back as `expr` looks: where a scrape misses the agent, its servers are not nobody's.
    window = duration(timing.crash_window_seconds)
    return f"{expr}\nunless {SAME_SERVER}\n  last_over_time(vllm_agent_server_desired_up[{window}])"


def _looked_up(metric: str, label: str, otherwise: str = "unknown") -> str:
    """A template: the label of the server's series of `metric` that is 1 right now."""
    return _label_of(f"{metric}{_OF_SERVER} == 1", label, otherwise)


def _label_of(query: str, label: str, otherwise: str) -> str:
    """A template: the label of what the query about the server finds, or text if it is nothing."""
    return (
        f"{{{{ with printf `{query}` $labels.job $labels.instance $labels.server | query }}}}"
        f"{{{{ . | first | label `{label}` }}}}{{{{ else }}}}{otherwise}{{{{ end }}}}"
    )


_NO_REASON: Final = "not known yet"
"""Not `unknown`, which is a reason of its own: an end that was seen and tells nothing."""

LAST_STATE: Final = _looked_up("vllm_agent_server_state", "state")
LAST_REASON: Final = _looked_up("vllm_agent_server_failure_reason", "reason", _NO_REASON)
# Between two crashes, and after the last of them, the server has no failure.
REASON_OR_LAST_CRASH: Final = _looked_up(
    "vllm_agent_server_failure_reason",
    "reason",
    _label_of(
        f"topk(1, vllm_agent_server_last_crash_timestamp_seconds{_OF_SERVER})",
        "reason",
        _NO_REASON,
    ),
)
LOAD_STAGE: Final = _looked_up("vllm_agent_load_stage", "stage")
URL: Final = _looked_up("vllm_agent_server_info", "url")

LOOK: Final = "'vllm-agent status {{ $labels.server }}' on its host says more."
READ_HISTORY: Final = (
    "'vllm-agent history {{ $labels.server }}' on its host shows what happened; "
    "the runbook has the advice for each reason."
)
