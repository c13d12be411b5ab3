"""Expressions and templates that several alerts share."""

from __future__ import annotations

from typing import Final

AGENT: Final = ("job", "instance")
SERVER: Final = (*AGENT, "server")
GPU: Final = (*AGENT, "gpu")

SAME_SERVER: Final = "on (job, instance, server)"
SERVER_NAME: Final = "Server {{ $labels.server }} on {{ $labels.instance }}"
GPU_NAME: Final = "GPU {{ $labels.gpu }} of {{ $labels.instance }}"


def wanted(expr: str) -> str:
    """`expr` where somebody wants the server up; not in maintenance, nor stopped on request."""
    return f"{expr}\nand {SAME_SERVER}\n  vllm_agent_server_desired_up == 1"


def of_nobody(expr: str) -> str:
    """`expr` where nobody said whether the server is wanted: a `vllm serve` in a shell.

    Exactly the servers that `wanted` has no series for, so no server is in both.
    """
    return f"{expr}\nunless {SAME_SERVER}\n  vllm_agent_server_desired_up"


def _looked_up(metric: str, label: str) -> str:
    """A template: the label of the server's series of `metric` that is 1 right now."""
    query = f"{metric}{{job=%q, instance=%q, server=%q}} == 1"
    return (
        f"{{{{ with printf `{query}` $labels.job $labels.instance $labels.server | query }}}}"
        f"{{{{ . | first | label `{label}` }}}}{{{{ else }}}}unknown{{{{ end }}}}"
    )


LAST_STATE: Final = _looked_up("vllm_agent_server_state", "state")
LAST_REASON: Final = _looked_up("vllm_agent_server_failure_reason", "reason")
LOAD_STAGE: Final = _looked_up("vllm_agent_load_stage", "stage")
URL: Final = _looked_up("vllm_agent_server_info", "url")

LOOK: Final = "'vllm-agent status {{ $labels.server }}' on its host says more."
READ_HISTORY: Final = (
    "'vllm-agent history {{ $labels.server }}' on its host shows what happened; "
    "the runbook has the advice for each reason."
)
