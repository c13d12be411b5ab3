"""Guards for the load of a local server: what its witnesses trigger. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from vllm_agent.lifecycle.guarded import Guarded
from vllm_agent.lifecycle.load_progress import LoadProgress
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.states import Phase
from vllm_agent.lifecycle.transitions import Trigger
from vllm_agent.observations import Stage

if TYPE_CHECKING:
    from vllm_agent.lifecycle.server_life import Policy, ServerLife
    from vllm_agent.observations import Instant, LoadLook

LOADING_PHASES: Final = frozenset({Phase.LOADING, Phase.STALLED})
"""Phases in which the witnesses of a load are asked."""


def looked(life: ServerLife, look: LoadLook, policy: Policy) -> Guarded:
    """What a look at a load means: that it goes on, or has stalled, or moves again."""
    launch = life.launch
    is_of_newest = launch is not None and launch.process == look.process
    if launch is None or not is_of_newest or life.phase not in LOADING_PHASES:
        return Guarded(life)
    load = life.load
    if load is None or load.process != look.process:
        began = look.at.unix_seconds if launch.start_seconds is None else launch.start_seconds
        is_stalled = life.phase is Phase.STALLED
        return Guarded(replace(life, load=LoadProgress.begun(look, began, is_stalled=is_stalled)))
    load = load.after(
        look,
        life.load_history,
        start_seconds=policy.start_timeout_seconds,
        load_seconds=policy.load_timeout_seconds,
    )
    life = replace(life, load=load)
    if not load.is_stalled:
        return Guarded(life, Trigger.PROGRESSED)
    return Guarded(life, Trigger.STALLED, Reason.LOAD_STALLED, _stall_text(load, look.at))


def waiting(life: ServerLife) -> Guarded:
    """What it means that its process is there and does not serve yet."""
    if life.phase is Phase.UNOBSERVED and life.remembered_phase is Phase.STALLED:
        detail = "its load had stalled before the agent started, and has not moved since"
        return Guarded(life, Trigger.STALLED, Reason.LOAD_STALLED, detail)
    return Guarded(life, Trigger.WAITING)


def stall_before_end(life: ServerLife) -> str:
    """A sentence where the newest launch ended in a load that had stalled; else empty."""
    load = life.load
    if load is None or load.ended is None or not load.has_ended_stalled:
        return ""
    return f"before it ended, {_stall_text(load, load.ended)}"


def _stall_text(load: LoadProgress, now: Instant) -> str:
    quiet_seconds = now.since(load.last_progress)
    stage = load.look_stage
    text = f"its load made no progress for {quiet_seconds:.0f} s in stage {stage}"
    return f"{text}; its log says: {load.look.trouble}" if load.look.trouble else text


def served_or_ended(life: ServerLife, target: Phase, now: Instant) -> ServerLife:
    """The load after the server left the phases of a load for `target`."""
    load = life.load
    if load is None or load.ended is not None or target in LOADING_PHASES:
        return life
    history = life.load_history
    if target is Phase.READY:
        history = history.with_load(load, now)
    return replace(life, load=load.entered(Stage.NONE, now), load_history=history)
