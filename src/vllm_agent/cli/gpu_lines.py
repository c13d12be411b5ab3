"""GPUs in `status`: a line per device below the servers, and rows among those of a server. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from vllm_agent.cli.gpu_rows import LOST, label, memory_text, orphan_text, short_name
from vllm_agent.cli.text import UNKNOWN, gib, plain, size_shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_agent.expose.gpu_view import GpusView, GpuView

CompactRow: TypeAlias = tuple[str, str, str, str]

FREE_IT: Final = "'vllm-agent gpus' shows the command that frees it"


def compact_rows(view: GpusView) -> list[CompactRow]:
    """Device, name, memory and holders. A device cut into instances leaves the telling to them."""
    gpus = view["gpus"]
    cut = {gpu["parent_uuid"] for gpu in gpus}
    return [
        (f"GPU {label(gpu, gpus)}", short_name(gpu), memory_text(gpu, unit=" GiB"), _holders(gpu))
        for gpu in gpus
        if gpu["lost"] or gpu["uuid"] not in cut
    ]


def server_gpu_rows(
    name: str, view: GpusView, now_unix_seconds: float
) -> Iterator[tuple[str, str]]:
    """Label and text of each line on what one server, and the orphans that it left, hold."""
    heading = "gpu memory"
    for gpu in view["gpus"]:
        for server in gpu["servers"]:
            if server["server"] == name:
                size, total = size_shown(server["used_bytes"]), gpu["memory_total_bytes"]
                yield heading, f"GPU {label(gpu, view['gpus'])}: {size} of {size_shown(total)}"
                heading = ""
    yield from _orphan_rows(name, view, now_unix_seconds)


def _orphan_rows(name: str, view: GpusView, now: float) -> Iterator[tuple[str, str]]:
    heading = "gpu orphans"
    for gpu in view["gpus"]:
        for orphan in gpu["orphans"] or ():
            if orphan["server"] == name:
                yield heading, f"GPU {label(gpu, view['gpus'])}: {orphan_text(orphan, now)}"
                heading = ""
    if not heading:
        yield "to free it", FREE_IT


def _holders(gpu: GpuView) -> str:
    if gpu["lost"]:
        return LOST
    parts = [f"{plain(held['server'])} {gib(held['used_bytes'])}" for held in gpu["servers"]]
    if gpu["orphans"]:
        parts.append(f"orphans {gib(gpu['orphan_memory_bytes'])}")
    if gpu["other_memory_bytes"] is not None:
        parts.append(f"other {gib(gpu['other_memory_bytes'])}")
    return ", ".join(parts) or UNKNOWN
