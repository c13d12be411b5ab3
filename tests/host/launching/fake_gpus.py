"""GPUs that a test lets be seen."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vllm_agent.host.gpu.seen import GpusSeen

if TYPE_CHECKING:
    from collections.abc import Collection

    from vllm_agent.observations import Gpu


class FakeGpus:
    """What each look sees, the last one for ever; `may_look` unset is a driver that hangs."""

    def __init__(
        self, *looks: tuple[Gpu, ...], is_whole: bool = True, is_required: bool = False
    ) -> None:
        self.looks = [GpusSeen(devices, is_whole, is_required) for devices in looks]
        self.may_look = asyncio.Event()
        self.may_look.set()
        self.has_looked = asyncio.Event()
        self.looked = 0
        self.asked: list[str] = []

    async def look_now(self) -> None:
        await self.may_look.wait()
        self.looked += 1
        self.has_looked.set()

    def seen(self) -> GpusSeen:
        return self.looks[min(self.looked, len(self.looks) - 1)]

    def holders_of(self, uuids: Collection[str]) -> str:
        self.asked = list(uuids)
        return f"python (PID 7): 60.0 GiB of {', '.join(uuids)}"
