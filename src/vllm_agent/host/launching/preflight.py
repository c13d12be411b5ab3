"""What a start needs of its host, looked at before anything is started.

What cannot be told never stands in the way; what hangs does, since vLLM would hang there as well,
in a state in which nothing can end it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_agent.host.launching.asking import USERS, HangsError, ask
from vllm_agent.host.launching.disk_room import lacks_disk
from vllm_agent.host.launching.free_port import lacks_port
from vllm_agent.host.launching.gpu_room import lacks_gpu_memory, lacks_gpus
from vllm_agent.host.launching.model_at_hand import model_at_hand
from vllm_agent.host.launching.program import lacks_program
from vllm_agent.host.launching.refusal import Refusal
from vllm_agent.host.launching.start_error import StartError
from vllm_agent.host.launching.user import user_to_become
from vllm_agent.host.patience import TooManyHung
from vllm_agent.lifecycle.reasons import Reason

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_agent.host.launching.plan import LaunchPlan
    from vllm_agent.host.local_host import LocalHost
    from vllm_agent.host.patience import Patience

__all__ = ["Refusal", "preflight"]


async def preflight(
    plan: LaunchPlan, host: LocalHost, log_folder: Path, patience: Patience
) -> Refusal | None:
    """Why a launch cannot come to anything, the first reason found; None where none is.

    The log of the launch will be in `log_folder`. `patience` is the caller's, of
    `asking.patience`. It takes milliseconds; up to `HUB_SECONDS` more where a model is not here,
    and up to `GPU_MEMORY_WAIT_SECONDS` where GPU memory is being released. It may be cancelled at
    any time.
    """
    try:
        return await _first_refusal(plan, host, log_folder, patience)
    except StartError as error:
        return Refusal(error.reason, error.detail)
    except (HangsError, TooManyHung) as error:
        return Refusal(Reason.SPAWN_FAILED, str(error))


async def lacks_model(plan: LaunchPlan, patience: Patience) -> Refusal | None:
    """Why its model cannot be served, as far as that can be told beforehand; None where it may."""
    try:
        user = await ask(patience, lambda _: user_to_become(plan.user), USERS)
        model = await model_at_hand(plan, user, patience)
    except StartError as error:
        return Refusal(error.reason, error.detail)
    except (HangsError, TooManyHung) as error:
        return Refusal(Reason.LOAD_STALLED, str(error))
    return model if isinstance(model, Refusal) else None


async def _first_refusal(
    plan: LaunchPlan, host: LocalHost, log_folder: Path, patience: Patience
) -> Refusal | None:
    user = await ask(patience, lambda _: user_to_become(plan.user), USERS)
    if refusal := await lacks_program(plan, user, patience):
        return refusal
    try:
        model = await model_at_hand(plan, user, patience)
    except HangsError as error:
        return Refusal(Reason.LOAD_STALLED, str(error))
    if isinstance(model, Refusal):
        return model
    return (
        await lacks_port(plan, host.proc, patience)
        or await lacks_gpus(plan, host.gpus)
        or await lacks_disk(log_folder, model, host.hub, patience)
        or await lacks_gpu_memory(plan, host.gpus, patience)
    )
