"""How a dashboard draws a server state: one table for codes, words and colours.

Codes exist only inside dashboard queries; the metric itself has the state as a label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from vllm_agent.lifecycle.states import ServerState


@dataclass(frozen=True, slots=True)
class StateStyle:
    """One state on a dashboard; `color` is a name of Grafana's palette, right in both themes."""

    state: ServerState
    code: int
    color: str


# Code 0 is free: a sum over no state at all must not look like one.
STATE_STYLES: Final = (
    StateStyle(ServerState.UNKNOWN, 1, "purple"),
    StateStyle(ServerState.STOPPED, 2, "text"),
    StateStyle(ServerState.STOPPING, 3, "light-yellow"),
    StateStyle(ServerState.STARTING, 4, "blue"),
    StateStyle(ServerState.RUNNING, 5, "green"),
    StateStyle(ServerState.FAILED, 6, "orange"),
    StateStyle(ServerState.CRASHED, 7, "red"),
)


def state_code_query(selector: str) -> str:
    """PromQL for one series per server whose value is the code of its state.

    Exactly one of the seven state series is 1, so the sum has one term that is not 0.
    """
    terms = " or ".join(
        f'{style.code} * vllm_agent_server_state{{state="{style.state}", {selector}}}'
        for style in STATE_STYLES
    )
    return f"sum by (job, instance, server) ({terms})"


def code_mappings() -> list[dict[str, Any]]:
    """Value mappings from state code to word and colour."""
    return [_value_mapping({str(style.code): style for style in STATE_STYLES})]


def word_mappings() -> list[dict[str, Any]]:
    """Value mappings that colour the state's own word, for tables."""
    return [_value_mapping({str(style.state): style for style in STATE_STYLES})]


def _value_mapping(styles: dict[str, StateStyle]) -> dict[str, Any]:
    return {
        "type": "value",
        "options": {
            key: {"text": str(style.state), "color": style.color, "index": index}
            for index, (key, style) in enumerate(styles.items())
        },
    }
