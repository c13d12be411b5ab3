"""The GPUs on the status page: a bar of the memory of each, and who holds it."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from vllm_agent.expose.gpu_view import gpu_collector
from vllm_agent.expose.size_text import size_text
from vllm_agent.expose.status_page.rows import server_link
from vllm_agent.expose.status_page.words import UNKNOWN, moment

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vllm_agent.observations import Gpu, Instant
    from vllm_agent.snapshot import AgentSnapshot, GpuOrphan, GpuSnapshot, GpuStranger

COLUMNS: Final = ("GPU", "Memory", "Servers", "Orphans", "Other", "Load", "Faults")

MAX_LINES: Final = 8
"""Servers, orphans, others or faults of a GPU that are named, the rest is counted: a row stays a
row, and the API lists them all."""


def section(snapshot: AgentSnapshot, now: Instant) -> Iterator[str]:
    """The GPUs in pieces, one each; nothing where there is none to show or to miss."""
    source = gpu_collector(snapshot)
    is_down = source is not None and not source.is_up
    if not snapshot.gpus and not is_down:
        return
    yield "<h2>GPUs</h2>\n"
    if is_down:
        text = "What is not shown here is not known: the agent's collector of GPUs does not work."
        yield f'<p class="notice" role="status">{text}</p>\n'
    if snapshot.gpus:
        yield from _table(snapshot, now)


def _table(snapshot: AgentSnapshot, now: Instant) -> Iterator[str]:
    if any(device.orphans for device in snapshot.gpus):
        yield (
            '<p class="notice" role="status">Orphans hold memory of a GPU: parts of a vLLM whose '
            "main process is gone. The next start may find too little of it free. On that host "
            "<code>vllm-agent gpus</code> says how to free it.</p>\n"
        )
    yield '<p class="quiet">The same <a href="api/v1/gpus">as JSON</a>.</p>\n'
    head = "".join(f'<th scope="col">{column}</th>' for column in COLUMNS)
    yield (
        '<div class="scroll" role="region" aria-label="GPUs" tabindex="0">\n<table>\n'
        f"<thead>\n<tr>{head}</tr>\n</thead>\n<tbody>\n"
    )
    divided = {device.gpu.parent_uuid for device in snapshot.gpus}
    for device in snapshot.gpus:
        yield _row(device, now, is_divided=device.gpu.uuid in divided)
    yield "</tbody>\n</table>\n</div>\n"


def _row(device: GpuSnapshot, now: Instant, *, is_divided: bool) -> str:
    gpu = device.gpu
    if gpu.is_lost:
        memory = '<span class="state state-crashed">lost</span><br>the driver cannot reach it'
    elif is_divided:
        memory = '<span class="quiet">cut into instances</span>'
    else:
        memory = _memory(device)
    holders = ("", "", "") if gpu.is_lost or is_divided else _holders(device, now)
    servers, orphans, other = holders
    style = ' class="why"' if device.orphans else ""
    cells = (
        f'<th scope="row">{_name(gpu)}</th>',
        f'<td data-label="Memory">{memory}</td>',
        f'<td data-label="Servers">{servers}</td>',
        f'<td{style} data-label="Orphans">{orphans}</td>',
        f'<td data-label="Other">{other}</td>',
        f'<td data-label="Load">{"" if gpu.is_lost else _load(gpu)}</td>',
        f'<td data-label="Faults">{_faults(device, now)}</td>',
    )
    return f"<tr>{''.join(cells)}</tr>\n"


def _name(gpu: Gpu) -> str:
    name = escape(gpu.name or gpu.vendor)
    full = f"{name}, {escape(gpu.uuid)}"
    return f'{escape(gpu.index)} <span class="name quiet" title="{full}">{name}</span>'


def _memory(device: GpuSnapshot) -> str:
    used, total = device.gpu.memory_used_bytes, device.gpu.memory_total_bytes
    bar = "" if used is None or not total else _bar(device, used, total)
    return f"{bar}{_size(used)} of {_size(total)}"


def _bar(device: GpuSnapshot, used_bytes: int, total_bytes: int) -> str:
    """The numbers beside it say the same. A page without inline styles has widths in SVG only."""
    of_servers = sum(used or 0 for used in device.servers.values())
    of_orphans = device.orphan_bytes or 0
    rest = used_bytes - of_servers - of_orphans
    parts, start = [], 0.0
    for kind, held in (("held", of_servers), ("orphaned", of_orphans), ("other", rest)):
        width = min(max(100 * held / total_bytes, 0.0), 100 - start)
        if width:
            parts.append(
                f'<rect class="{kind}" x="{start:.1f}%" width="{width:.1f}%" height="100%"/>'
            )
        start += width
    return f'<svg class="bar" aria-hidden="true">{"".join(parts)}</svg>'


def _holders(device: GpuSnapshot, now: Instant) -> tuple[str, str, str]:
    """The servers, the orphans and the others that hold memory."""
    largest_first = sorted(device.servers.items(), key=lambda held: -(held[1] or 0))
    servers = [f"{server_link(name)} {_size(used)}" for name, used in largest_first]
    other = _lines((_size(device.other_bytes), *map(_stranger, device.strangers)))
    if device.orphans is None:
        return _lines(servers) or UNKNOWN, UNKNOWN, other
    orphans = [_orphan(orphan, now) for orphan in device.orphans]
    if orphans:
        orphans.insert(0, f'<span class="state state-crashed">{_size(device.orphan_bytes)}</span>')
    return _lines(servers) or "none", _lines(orphans) or "none", other


def _orphan(orphan: GpuOrphan, now: Instant) -> str:
    of = "" if orphan.server is None else f" of {server_link(orphan.server)}"
    what = f"PID {orphan.pid}, {orphan.role}{of}, {_size(orphan.used_bytes)}"
    return f"{what}, started {moment(orphan.start_seconds, now)}"


def _stranger(stranger: GpuStranger) -> str:
    name = f"{escape(stranger.name)} " if stranger.name else ""
    return f"{name}PID {stranger.pid}, {_size(stranger.used_bytes)}"


def _load(gpu: Gpu) -> str:
    """As far as the device tells."""
    parts = []
    if gpu.utilization_ratio is not None:
        parts.append(f"{100 * gpu.utilization_ratio:.0f} % busy")
    if gpu.temperature_celsius is not None:
        parts.append(f"{gpu.temperature_celsius:.0f} °C")
    if gpu.power_watts is not None:
        limit = "" if gpu.power_limit_watts is None else f" of {gpu.power_limit_watts:.0f}"
        parts.append(f"{gpu.power_watts:.0f}{limit} W")
    return ", ".join(parts) or UNKNOWN


def _faults(device: GpuSnapshot, now: Instant) -> str:
    newest_first = sorted(device.xids.items(), key=lambda told: -told[1].last_unix_seconds)
    return _lines(
        f"<strong>XID {xid}</strong> {moment(told.last_unix_seconds, now)}"
        f"{'' if told.count == 1 else f', {told.count} times'}"
        for xid, told in newest_first
    )


def _lines(lines: Iterable[str]) -> str:
    every = list(lines)
    more = len(every) - MAX_LINES
    if more > 0:
        every[MAX_LINES:] = [f'<span class="quiet">and {more} more</span>']
    return "<br>".join(every)


def _size(size_bytes: int | None) -> str:
    return UNKNOWN if size_bytes is None else size_text(size_bytes)
