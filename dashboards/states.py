"""How dashboards draw the states of a server and the stages of its start: codes, words, colours.

Codes exist only inside dashboard queries; the metrics have the state and the stage as a label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from dashboards.panels import words
from dashboards.queries import metric
from vllm_agent.lifecycle.states import ServerState
from vllm_agent.observations import Stage


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


@dataclass(frozen=True, slots=True)
class StageStyle:
    """One stage of a start on a dashboard."""

    stage: Stage
    code: int
    color: str
    title: str


# In the order in which most starts pass through them.
STAGE_STYLES: Final = (
    StageStyle(Stage.INIT, 1, "light-blue", "Init"),
    StageStyle(Stage.DOWNLOAD, 2, "purple", "Download"),
    StageStyle(Stage.LOAD_WEIGHTS, 3, "blue", "Load weights"),
    StageStyle(Stage.COMPILE, 4, "yellow", "Compile"),
    StageStyle(Stage.WARMUP, 5, "orange", "Warm-up"),
)


def state_code_query() -> str:
    """PromQL for one series per server whose value is the code of its state.

    Exactly one of the seven state series is 1, so the sum has one term that is not 0.
    """
    terms = " or ".join(f"{style.code} * {_in_state(style.state)}" for style in STATE_STYLES)
    return f"sum by (job, instance, server) ({terms})"


def stage_query(style: StageStyle) -> str:
    """PromQL for the stage's code while a server is in it, and nothing otherwise."""
    return f"{style.code} * ({metric('load_stage', stage=style.stage)} == 1)"


def state_codes() -> list[dict[str, Any]]:
    """Value mappings from state code to word and colour."""
    return words(*((style.code, style.state, style.color) for style in STATE_STYLES))


def stage_codes() -> list[dict[str, Any]]:
    """Value mappings from stage code to word and colour."""
    return words(*((style.code, style.title, style.color) for style in STAGE_STYLES))


def state_words() -> list[dict[str, Any]]:
    """Value mappings that colour the state's own word, for tables."""
    return words(*((style.state, style.state, style.color) for style in STATE_STYLES))


def _in_state(state: ServerState) -> str:
    return metric("server_state", state=state)
