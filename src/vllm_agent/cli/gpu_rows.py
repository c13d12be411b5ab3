"""What `vllm-agent gpus` says, as plain text; where it is drawn is no concern of this. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vllm_agent.cli.gpu_bar import Holder, bar_text
from vllm_agent.cli.process_rows import SHOW_ORPHANS
from vllm_agent.cli.status_table import collector_trouble
from vllm_agent.cli.text import UNKNOWN, age_of, columns, gib, plain, shown, size_shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vllm_agent.expose.gpu_view import GpuOrphanView, GpuOtherView, GpusView, GpuView, XidView

HEADINGS: Final = ("GPU", "MEMORY", "USED/TOTAL", "UTIL", "TEMP", "POWER", "NAME")
"""One word each, and no value has a space in it but the last: columns stay columns."""

LOST: Final = "lost: the driver no longer reaches it"
NO_DRIVER: Final = "no driver of NVIDIA or AMD was found on this host, or GPUs are switched off"
NO_DEVICE: Final = "the driver answers, and lists no GPU"

FIRST_ORDINARY_PID: Final = 2
"""kill(1) takes 0 and less for whole groups of processes, and 1 is the init of the host."""

_INSTANCE_INDENT: Final = "  "

_STRANGER_INDENT: Final = "  "
"""Below `other`. Whoever names its process `orphan` does not make a line that begins with that."""

_SHORT_UUID: Final = len("GPU-") + 8
"""The first group of a uuid, which tells the devices of a host apart."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line below a device: who holds its memory, or, without a holder, what is wrong with it."""

    text: str
    holder: Holder | None = None


def plain_lines(view: GpusView, now_unix_seconds: float) -> list[str]:
    """The table for pipes. Each line begins with its device, so that grep keeps them together."""
    gpus = view["gpus"]
    heading, *rows = columns([HEADINGS, *(device_row(gpu, gpus) for gpu in gpus)]).splitlines()
    width = heading.index(HEADINGS[1])
    lines = [heading]
    for gpu, row in zip(gpus, rows, strict=True):
        lines.append(row)
        own = f"{_indented(gpu, gpus):{width}}"
        lines += [own + line.text for line in device_lines(gpu, now_unix_seconds)]
    return lines


def device_row(gpu: GpuView, gpus: Sequence[GpuView]) -> tuple[str, ...]:
    """One of all the devices, a cell for each of `HEADINGS`."""
    temperature, utilization = gpu["temperature_celsius"], gpu["utilization_ratio"]
    return (
        _indented(gpu, gpus),
        bar_text(gpu),
        memory_text(gpu, unit="GiB"),
        UNKNOWN if utilization is None else f"{utilization:.0%}",
        UNKNOWN if temperature is None else f"{temperature:.0f}C",
        _power(gpu),
        shown(gpu["name"]),
    )


def device_lines(gpu: GpuView, now_unix_seconds: float) -> list[Line]:
    """What is to be said of a device below its row."""
    lines = [Line(LOST)] if gpu["lost"] else []
    lines += [Line(xid_text(xid, now_unix_seconds)) for xid in gpu["xids"]]
    lines += [
        Line(
            f"server {plain(server['server'])}, {size_shown(server['used_bytes'])}", Holder.SERVERS
        )
        for server in gpu["servers"]
    ]
    lines += [
        Line(f"orphan {orphan_text(orphan, now_unix_seconds)}", Holder.ORPHANS)
        for orphan in gpu["orphans"] or ()
    ]
    if gpu["other_memory_bytes"] is not None or gpu["others"]:
        lines.append(Line(f"other, {size_shown(gpu['other_memory_bytes'])}", Holder.OTHER))
    lines += [Line(_STRANGER_INDENT + _other_text(other), Holder.OTHER) for other in gpu["others"]]
    return lines


def label(gpu: GpuView, gpus: Sequence[GpuView]) -> str:
    """What one of all the devices is called: its number, and more where that is not enough.

    That is the vendor where there are two, and the uuid where two have the same number: a driver
    that numbers its devices anew gives that of a lost one away.
    """
    is_alone = all(other["vendor"] == gpu["vendor"] for other in gpus)
    number = gpu["gpu"] if is_alone else f"{gpu['vendor']}/{gpu['gpu']}"
    namesakes = [o for o in gpus if (o["vendor"], o["gpu"]) == (gpu["vendor"], gpu["gpu"])]
    if len(namesakes) > 1:
        shorts = {other["uuid"][:_SHORT_UUID] for other in namesakes}
        is_enough = len(shorts) == len(namesakes)
        number += f"({gpu['uuid'][:_SHORT_UUID] if is_enough else gpu['uuid']})"
    return plain(number)


def short_name(gpu: GpuView) -> str:
    """The name without that of the vendor."""
    return shown(gpu["name"]).removeprefix(f"{gpu['vendor'].upper()} ")


def memory_text(gpu: GpuView, unit: str) -> str:
    """Used and total, as in `71.2/79.6GiB`."""
    used, total = gpu["memory_used_bytes"], gpu["memory_total_bytes"]
    return UNKNOWN if used is None and total is None else f"{gib(used)}/{gib(total)}{unit}"


def orphan_text(orphan: GpuOrphanView, now_unix_seconds: float) -> str:
    """Who it is, what it holds and how old it is."""
    whose = "" if orphan["server"] is None else f" of {plain(orphan['server'])}"
    start = orphan["start_time_seconds"]
    old = "" if start is None else f", {age_of(start, now_unix_seconds)} old"
    return f"PID {orphan['pid']} {orphan['role']}{whose}, {size_shown(orphan['used_bytes'])}{old}"


def _other_text(other: GpuOtherView) -> str:
    name = f"{plain(other['name'])} " if other["name"] else ""
    return f"{name}PID {other['pid']}, {size_shown(other['used_bytes'])}"


def xid_text(xid: XidView, now_unix_seconds: float) -> str:
    """Its number, how often it was told of, and when last."""
    often = "once," if xid["count"] == 1 else f"{xid['count']} times, last"
    last = xid["last_timestamp_seconds"]
    return f"XID {xid['xid']}, {often} {age_of(last, now_unix_seconds)} ago"


def orphan_pids(view: GpusView) -> list[int]:
    """Every orphan that holds memory of a device, once."""
    pids = {orphan["pid"] for gpu in view["gpus"] for orphan in gpu["orphans"] or ()}
    return sorted(pid for pid in pids if pid >= FIRST_ORDINARY_PID)


def held_by_orphans(view: GpusView) -> str:
    """How many they are and what they hold together; empty where there are none."""
    count = len(orphan_pids(view))
    if not count:
        return ""
    held = [gpu["orphan_memory_bytes"] for gpu in view["gpus"] if gpu["orphans"]]
    known = [amount for amount in held if amount is not None]
    amount = size_shown(sum(known)) if len(known) == len(held) else "memory"
    return f"{'1 orphan holds' if count == 1 else f'{count} orphans hold'} {amount}"


def advice(view: GpusView) -> list[str]:
    """How to free what orphans hold; nothing where there are none."""
    pids = orphan_pids(view)
    if not pids:
        return []
    check = f"check first that nobody needs them: ps -fp {','.join(map(str, pids))}"
    return [
        f"{held_by_orphans(view)}; {check}",
        f"then free it, as root or as the user that ran vLLM: kill -9 {' '.join(map(str, pids))}",
        f"others may be left without GPU memory, their parent is no vLLM: {SHOW_ORPHANS}",
    ]


def gpu_notices(view: GpusView) -> list[str]:
    """Sentences on what the table cannot show, and on why there is none."""
    told = list(_hidden(view))
    if not view["gpus"] and not told:
        told.append(NO_DRIVER if view["collector"] is None else NO_DEVICE)
    return told


def _hidden(view: GpusView) -> Iterator[str]:
    hidden = [sight for sight in view["sights"] if not sight["visible"]]
    for sight in hidden:
        fix = f"; try: {sight['fix']}" if sight["fix"] else ""
        yield plain(f"{sight['kind']} not visible: {sight['why_not']}{fix}")
    collector = view["collector"]
    if collector is not None and not collector["up"] and not hidden:
        yield collector_trouble(collector)


def _indented(gpu: GpuView, gpus: Sequence[GpuView]) -> str:
    return ("" if gpu["parent_uuid"] is None else _INSTANCE_INDENT) + label(gpu, gpus)


def _power(gpu: GpuView) -> str:
    watts, limit = gpu["power_watts"], gpu["power_limit_watts"]
    if watts is None and limit is None:
        return UNKNOWN
    drawn = UNKNOWN if watts is None else f"{watts:.0f}"
    return f"{drawn}/{UNKNOWN if limit is None else f'{limit:.0f}'}W"
