"""Who holds the memory of the GPUs, as a line for people. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from vllm_agent.snapshot import GpuSnapshot

MAX_HOLDERS: Final = 3
"""Holders that are named: the largest ones are in the way."""

_GIB: Final = 2**30


def holders_text(gpus: Iterable[GpuSnapshot], other_than: Collection[int] = ()) -> str:
    """The largest holders of any GPU but those PIDs, `orphan of llama (PID 7): 20.1 GiB of gpu0`.

    Empty where nobody holds any, or where that cannot be told.
    """
    found = [holder for gpu in gpus for holder in _holders(gpu, other_than)]
    found.sort(key=lambda holder: -holder[0])
    return ", ".join(text for _, text in found[:MAX_HOLDERS])


def _holders(gpu: GpuSnapshot, other_than: Collection[int]) -> Iterator[tuple[int, str]]:
    name = f"GPU {gpu.gpu.index}"
    for server, used in gpu.servers.items():
        if used:
            yield used, f"server {server}: {used / _GIB:.1f} GiB of {name}"
    for orphan in gpu.orphans or ():
        if orphan.used_bytes and orphan.pid not in other_than:
            of = "" if orphan.server is None else f" of {orphan.server}"
            text = f"orphan{of} (PID {orphan.pid}): {orphan.used_bytes / _GIB:.1f} GiB of {name}"
            yield orphan.used_bytes, text
    for stranger in gpu.strangers:
        if stranger.used_bytes and stranger.pid not in other_than:
            who = stranger.name or "a process"
            amount = f"{stranger.used_bytes / _GIB:.1f} GiB of {name}"
            yield stranger.used_bytes, f"{who} (PID {stranger.pid}): {amount}"
