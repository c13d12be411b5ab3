"""Whether the GPUs that a launch needs are there, and have the memory that it will take.

What is not known never stands in the way: vLLM finds out.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Final

from vllm_agent.host.gpu.sysfs import read_text
from vllm_agent.host.launching.asking import HangsError, ask
from vllm_agent.host.launching.refusal import Refusal
from vllm_agent.host.launching.visible_gpus import (
    CUDA,
    VisibleGpus,
    are_hidden,
    named,
    visible_gpus,
)
from vllm_agent.host.vllm_grammar import read_flags
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.observations import GpuVendor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm_agent.host.gpu.seen import GpusSeen
    from vllm_agent.host.launching.plan import LaunchPlan
    from vllm_agent.host.local_host import Gpus
    from vllm_agent.host.patience import Patience
    from vllm_agent.observations import Gpu

GPU_MEMORY_WAIT_SECONDS: Final = 30.0
"""For memory that is being released. The driver frees what a process held at its end, which takes
seconds where it had much memory of the host pinned; who has it for longer than this keeps it."""

LOOK_AGAIN_SECONDS: Final = 1.0
"""From one look at the memory to the next while a start waits for it."""

LOOK_SECONDS: Final = 10.0
"""For one look; it takes milliseconds. What a driver that hangs would say is not waited for."""

MAX_NAMED: Final = 3
"""GPUs that a sentence names, and lost ones: the others are alike."""

MAX_VARIABLE_CHARACTERS: Final = 100
"""Shown of a variable: two UUIDs. It is the operator's own text."""

_GIB: Final = 2**30
_WHOLE: Final = frozenset({None, "SPX"})  # None: a card that cannot be partitioned
_SPREADING: Final = ("data-parallel-backend", "distributed-executor-backend")
_CHOOSING: Final = "device-ids"
_OPT_OUT: Final = "a vLLM built for CPUs has CUDA_VISIBLE_DEVICES: '' in managed.env"
_LOGGER: Final = logging.getLogger(__name__)


async def lacks_gpus(plan: LaunchPlan, gpus: Gpus | None) -> Refusal | None:
    """Whether a launch needs more GPUs than it will see; this looks at them first."""
    if gpus is None or are_hidden(plan.environ) or not await _has_looked(gpus):
        return None
    seen = gpus.seen()
    text = _why_none(plan, seen) or _why_too_few(plan, seen)
    return Refusal(Reason.GPU_UNAVAILABLE, f"{text}; {_OPT_OUT}") if text else None


async def lacks_gpu_memory(
    plan: LaunchPlan, gpus: Gpus | None, patience: Patience
) -> Refusal | None:
    """Whether a GPU that a launch will use has too little memory free for it, and goes on so.

    The first judgement is by the newest look: the caller has just made one.
    """
    if gpus is None or are_hidden(plan.environ):
        return None
    loop = asyncio.get_running_loop()
    until_seconds = loop.time() + GPU_MEMORY_WAIT_SECONDS
    is_told = False
    while short := await _whole(short_gpus(plan, gpus.seen()), patience):
        detail = _why_short(short, plan.gpu_memory_utilization)
        holders = gpus.holders_of([gpu.uuid for gpu in short])
        if loop.time() >= until_seconds:
            return Refusal(Reason.GPU_MEMORY_TAKEN, f"{detail}; {_OPT_OUT}", holders)
        if not is_told:
            extra = {"server": plan.server, "detail": detail, "holders": holders}
            _LOGGER.info("a start waits for GPU memory", extra=extra)
            is_told = True
        await asyncio.sleep(LOOK_AGAIN_SECONDS)
        if not await _has_looked(gpus):
            return None
    return None


def short_gpus(plan: LaunchPlan, seen: GpusSeen) -> tuple[Gpu, ...]:
    """Those of the GPUs that a launch will use that have too little memory free.

    vLLM wants its share of all memory to be free when it starts (`request_memory`).
    """
    visible = _visible(plan, seen)
    rooms = [(gpu, _room_bytes(gpu, plan.gpu_memory_utilization)) for gpu in visible.candidates]
    if not visible.is_ordered:
        # Whichever it takes: with the emptiest it can do best, and of some nothing is known.
        rooms.sort(key=lambda room: math.inf if room[1] is None else room[1], reverse=True)
    return tuple(gpu for gpu, room in rooms[: plan.gpus] if room is not None and room < 0)


def _visible(plan: LaunchPlan, seen: GpusSeen) -> VisibleGpus:
    flags = read_flags(plan.arguments, {_CHOOSING, *_SPREADING})
    # Ray has all GPUs of the host at hand, and chooses; so may a line.
    is_spread = any(flags.value(name) == "ray" for name in _SPREADING)
    left_out = CUDA if is_spread else ""
    environ = {name: value for name, value in plan.environ.items() if name != left_out}
    visible = visible_gpus(seen.devices, environ)
    is_ordered = visible.is_ordered and not is_spread and flags.value(_CHOOSING) is None
    return VisibleGpus(visible.candidates, visible.count, is_ordered)


def _room_bytes(gpu: Gpu, utilization: float) -> int | None:
    """What is free beyond the share that is wanted, below 0 if that is less; None if unknown."""
    usable_bytes, free_bytes = _usable_bytes(gpu), gpu.memory_free_bytes
    if not usable_bytes or free_bytes is None:
        return None
    return free_bytes - int(usable_bytes * utilization)


def _usable_bytes(gpu: Gpu) -> int | None:
    """All memory but what the driver reserves for itself: CUDA counts that neither."""
    if gpu.memory_used_bytes is None or gpu.memory_free_bytes is None:
        return gpu.memory_total_bytes
    return gpu.memory_used_bytes + gpu.memory_free_bytes


async def _has_looked(gpus: Gpus) -> bool:
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            await gpus.look_now()
    except TimeoutError:
        return False
    return True


async def _whole(short: Iterable[Gpu], patience: Patience) -> tuple[Gpu, ...]:
    """Without those of AMD that are partitioned: what a partition has, the card does not say."""
    whole = []
    for gpu in short:
        if gpu.vendor is GpuVendor.AMD:
            path = f"/sys/bus/pci/devices/{gpu.pci_bus_id}/current_compute_partition"
            try:
                if await ask(patience, read_text, path) not in _WHOLE:
                    continue
            except HangsError:
                continue
        whole.append(gpu)
    return tuple(whole)


def _why_none(plan: LaunchPlan, seen: GpusSeen) -> str:
    """Where no GPU can be seen that is no evidence by itself: a vLLM for CPUs needs none."""
    if seen.devices or not seen.is_whole:
        return ""
    if name := named(plan.environ):
        return f"this host has no GPU, and {_shown(name)} names one"
    return "this host has no GPU, and the configuration requires one" if seen.is_required else ""


def _why_too_few(plan: LaunchPlan, seen: GpusSeen) -> str:
    if not seen.devices:
        return ""
    visible = _visible(plan, seen)
    if visible.count is None or visible.count >= plan.gpus:
        return ""
    text = f"it needs {_gpus(plan.gpus)} and would see {visible.count or 'none'}"
    if name := named(plan.environ):
        text = f"{text} ({_shown(name)})"
    lost = [gpu.index for gpu in seen.devices if gpu.is_lost][:MAX_NAMED]
    return f"{text}, the driver has lost GPU {', '.join(lost)}" if lost else text


def _why_short(short: tuple[Gpu, ...], utilization: float) -> str:
    texts = [
        f"GPU {gpu.index} has {(gpu.memory_free_bytes or 0) / _GIB:.1f} GiB free of "
        f"{(_usable_bytes(gpu) or 0) / _GIB:.1f} GiB"
        for gpu in short[:MAX_NAMED]
    ]
    if len(short) > MAX_NAMED:
        texts.append(f"{_gpus(len(short) - MAX_NAMED)} more have too little")
    return f"{', '.join(texts)}, and it takes {utilization:g} of each (gpu_memory_utilization)"


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"


def _shown(text: str) -> str:
    cut = text[:MAX_VARIABLE_CHARACTERS]
    return "".join(letter if letter.isprintable() else "?" for letter in cut)
