"""What the newest look at the GPUs saw, for who has to decide by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_agent.observations import Gpu


@dataclass(frozen=True, slots=True)
class GpusSeen:
    """The devices of every driver that answered, real ones only.

    `is_whole` is whether every kind of driver was asked and either answered or is not on this host.
    `is_required` is whether the configuration says that there must be one.
    """

    devices: tuple[Gpu, ...] = ()
    is_whole: bool = False
    is_required: bool = False
