"""Whether the disks of a launch have room for its log and for what it will download."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

from vllm_agent.host.hf_hub.completeness import Presence
from vllm_agent.host.launching.asking import ask
from vllm_agent.host.launching.refusal import Refusal
from vllm_agent.host.load.download import uses_hub_of
from vllm_agent.lifecycle.reasons import Reason

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_agent.host.hf_hub.sizes import HubSizes
    from vllm_agent.host.launching.model_at_hand import CachedModel
    from vllm_agent.host.patience import Patience

MIN_FREE_BYTES: Final = 32 * 2**20
"""On the disk of the log, and on that of the cache where anything is to come there. The log of a
start has some 100 kB; what a full disk loses of it is why the start failed."""

HUB_SECONDS: Final = 5.0
"""For the Hub to tell a size: it answers within one or two. It is asked only for what is not here,
and downloading that takes longer."""

_GIB: Final = 2**30


async def lacks_disk(
    log_folder: Path, model: CachedModel | None, hub: HubSizes | None, patience: Patience
) -> Refusal | None:
    """Whether a disk is too full for the log of a launch, or for what is missing of its model.

    `model` is the one that it would fetch. Where nobody tells how large it is, a little must be
    free.
    """
    free_bytes = await ask(patience, free_bytes_at, str(log_folder))
    if free_bytes is not None and free_bytes < MIN_FREE_BYTES:
        return _refusal(f"the disk of the server's log has {_size(free_bytes)} free", log_folder)
    if model is None or model.is_offline or model.completeness.is_complete:
        return None
    needed_bytes = await _missing_bytes(model, hub)
    free_bytes = await ask(patience, free_bytes_at, model.folder)
    if free_bytes is None or free_bytes >= max(needed_bytes or 0, MIN_FREE_BYTES):
        return None
    text = f"the disk of the model cache has {_size(free_bytes)} free"
    if needed_bytes:
        text = f"{text}, and {model.repo.id} still needs {_size(needed_bytes)}"
    return _refusal(text, model.folder)


def free_bytes_at(path: str) -> int | None:
    """What a user may still write at a path, or where it will be made; None if it is unknown."""
    while True:
        try:
            disk = os.statvfs(path)
        except FileNotFoundError:
            parent = os.path.dirname(path)
            if parent == path:
                return None
            path = parent
        except OSError:
            return None
        else:
            # Some file systems, such as those of programs, do not tell their size.
            return disk.f_bavail * disk.f_frsize if disk.f_blocks else None


async def _missing_bytes(model: CachedModel, hub: HubSizes | None) -> int | None:
    """What of the weights is still to come; None where nobody tells."""
    total_bytes = model.total_bytes
    is_asked = model.can_ask and model.completeness.presence is not Presence.UNKNOWN
    if total_bytes is None and hub is not None and is_asked and uses_hub_of(model.environment, hub):
        try:
            async with asyncio.timeout(HUB_SECONDS):
                total_bytes = await hub.ask(model.repo.id, model.revision)
        except TimeoutError:
            return None
    return None if total_bytes is None else max(0, total_bytes - model.done_bytes)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.1f} GiB"


def _refusal(text: str, path: str | Path) -> Refusal:
    return Refusal(Reason.DISK_FULL, f"{text} ({path})")
