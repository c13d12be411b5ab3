"""What `doctor` finds in the answer on GPUs; what may not be seen is with all sights. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from vllm_agent.cli.finding import Finding, Level
from vllm_agent.cli.gpu_rows import LOST, NO_DEVICE, NO_DRIVER, label, short_name, xid_text
from vllm_agent.cli.text import size_shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vllm_agent.expose.gpu_view import GpusView, GpuView

RECENT_XID_SECONDS: Final = 24 * 3600.0
"""Whoever looks in the morning sees what happened in the night."""

SHOW_GPUS: Final = "vllm-agent gpus"
GIVE_GPUS: Final = "docker run --gpus all, if it is in a container; else `gpu` in the configuration"
SHOW_KERNEL_LOG: Final = (
    "dmesg, for what happened; a reset of the device or a reboot brings it back"
)
XID_PAGE: Final = "https://docs.nvidia.com/deploy/xid-errors, for what the number means"

_ABOUT: Final = "gpus"


def gpu_findings(
    view: GpusView, now_unix_seconds: float, *, has_local_server: bool
) -> Iterator[Finding]:
    """The drivers, and what is wrong with a device or holds memory of it for nobody."""
    gpus = view["gpus"]
    yield from _drivers(gpus)
    if not gpus:
        yield from _none(view, has_local_server=has_local_server)
    for gpu in gpus:
        name = f"GPU {label(gpu, gpus)}" + (f" ({short_name(gpu)})" if gpu["name"] else "")
        if gpu["lost"]:
            yield Finding(Level.PROBLEM, _ABOUT, f"{name} is {LOST}", SHOW_KERNEL_LOG)
        for xid in gpu["xids"]:
            last = xid["last_timestamp_seconds"]
            if last is None or now_unix_seconds - last < RECENT_XID_SECONDS:
                text = f"{name} had {xid_text(xid, now_unix_seconds)}"
                yield Finding(Level.NOTE, _ABOUT, text, XID_PAGE)
        if gpu["orphans"]:
            yield Finding(Level.NOTE, _ABOUT, f"{name}: {_orphans(gpu)}", SHOW_GPUS)


def orphans_by_server(gpus: Sequence[GpuView]) -> Counter[str]:
    """How many orphans of each server hold memory of a device, each once."""
    whose = {orphan["pid"]: orphan["server"] for gpu in gpus for orphan in gpu["orphans"] or ()}
    return Counter(server for server in whose.values() if server is not None)


def tells_all_holders(gpus: Sequence[GpuView]) -> bool:
    """Whether an orphan that holds memory of some device would have been told of.

    One that is cut into instances has none itself.
    """
    cut = {gpu["parent_uuid"] for gpu in gpus}
    whole = [gpu for gpu in gpus if gpu["uuid"] not in cut]
    return bool(whole) and all(gpu["orphans"] is not None for gpu in whole)


def _drivers(gpus: Sequence[GpuView]) -> Iterator[Finding]:
    for vendor in dict.fromkeys(gpu["vendor"] for gpu in gpus):
        own = [gpu for gpu in gpus if gpu["vendor"] == vendor]
        # A device that is lost has no driver any more, and amdgpu is as old as its kernel.
        version = next((gpu["driver_version"] for gpu in own if gpu["driver_version"]), "")
        instances = sum(gpu["parent_uuid"] is not None for gpu in own)
        cut = f", {instances} MIG instance(s)" if instances else ""
        found = f"driver of {vendor.upper()} {version}".rstrip()
        text = f"{found} found, {len(own) - instances} device(s){cut}"
        yield Finding(Level.OK, _ABOUT, text)


def _none(view: GpusView, *, has_local_server: bool) -> Iterator[Finding]:
    """Nothing is said here where a sight or the collector says more."""
    if any(not sight["visible"] for sight in view["sights"]):
        return
    collector = view["collector"]
    if collector is None and has_local_server:
        text = f"{NO_DRIVER}, though vLLM runs on it; none is needed where that has no GPU either"
        yield Finding(Level.NOTE, _ABOUT, text, GIVE_GPUS)
    elif collector is None:
        yield Finding(Level.OK, _ABOUT, NO_DRIVER)
    elif collector["up"]:
        yield Finding(Level.NOTE, _ABOUT, NO_DEVICE)


def _orphans(gpu: GpuView) -> str:
    orphans = gpu["orphans"] or []
    servers = sorted({orphan["server"] for orphan in orphans if orphan["server"] is not None})
    of = f" of {', '.join(servers)}" if servers else ""
    who = "1 orphan" if len(orphans) == 1 else f"{len(orphans)} orphans"
    holds = "holds" if len(orphans) == 1 else "hold"
    return f"{who}{of} {holds} {size_shown(gpu['orphan_memory_bytes'])}"
