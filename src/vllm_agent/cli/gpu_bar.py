"""The memory of a device as a bar: who holds how much of it. Pure."""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vllm_agent.cli.text import UNKNOWN

if TYPE_CHECKING:
    from vllm_agent.expose.gpu_view import GpuView

BAR_CELLS: Final = 20
"""A cell is 4 GiB of an H100, and a line with all columns still fits into 80 characters."""


class Holder(StrEnum):
    """Who holds a part of the memory, in the order of the bar."""

    SERVERS = "servers"
    ORPHANS = "orphans"
    OTHER = "other"
    UNKNOWN = "used by unknown"
    FREE = "free"


SIGNS: Final = MappingProxyType(
    {
        Holder.SERVERS: "#",
        Holder.ORPHANS: "!",
        Holder.OTHER: ".",
        Holder.UNKNOWN: "?",
        Holder.FREE: "-",
    }
)
"""They stay apart without colour, and in ASCII."""


def bar(gpu: GpuView) -> tuple[Holder, ...]:
    """Who holds each cell; empty where the driver does not tell how much is used, or of how much.

    Whoever holds anything has a cell: a few hundred MiB of an orphan can fail the next start.
    """
    total, used = gpu["memory_total_bytes"], gpu["memory_used_bytes"]
    if not total or used is None:
        return ()
    held = _held(gpu, used)
    whole = max(total, sum(held.values()))
    cells = {who: max(1, round(BAR_CELLS * part / whole)) for who, part in held.items() if part}
    while sum(cells.values()) > BAR_CELLS:
        cells[max(cells, key=cells.__getitem__)] -= 1
    cells[Holder.FREE] = BAR_CELLS - sum(cells.values())
    return tuple(who for who in Holder for _ in range(cells.get(who, 0)))


def bar_text(gpu: GpuView) -> str:
    """The bar in characters, or the sign for unknown."""
    return "".join(SIGNS[who] for who in bar(gpu)) or UNKNOWN


def _held(gpu: GpuView, used_bytes: int) -> dict[Holder, int]:
    """What is used, by holder; the driver may tell of the whole without telling who."""
    held = {
        Holder.SERVERS: sum(server["used_bytes"] or 0 for server in gpu["servers"]),
        Holder.ORPHANS: gpu["orphan_memory_bytes"] or 0,
        Holder.OTHER: max(0, gpu["other_memory_bytes"] or 0),
    }
    return {**held, Holder.UNKNOWN: max(0, used_bytes - sum(held.values()))}
