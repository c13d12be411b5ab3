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
        return Guarded(replace(life, load=LoadProgress.begun(look, began)))
    load = load.after(
        look,
        life.load_history,
        start_seconds=policy.start_timeout_seconds,
        load_seconds=policy.load_timeout_seconds,
    )
    life = replace(life, load=load)
    if not load.is_stalled:
        return Guarded(life, Trigger.PROGRESSED)
    quiet_seconds = look.at.since(load.last_progress)
    detail = f"its load made no progress for {quiet_seconds:.0f} s in stage {load.stage}"
    if look.trouble:
        detail += f"; its log says: {look.trouble}"
    return Guarded(life, Trigger.STALLED, Reason.LOAD_STALLED, detail)


def served_or_ended(life: ServerLife, target: Phase, now: Instant) -> ServerLife:
    """The load after the server left the phases of a load for `target`."""
    load = life.load
    if load is None or load.ended is not None or target in LOADING_PHASES:
        return life
    history = life.load_history
    if target is Phase.READY:
        history = history.with_load(load, now)
    return replace(life, load=load.entered(Stage.NONE, now), load_history=history)
