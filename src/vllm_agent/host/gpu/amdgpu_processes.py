"""Who holds the memory of AMD GPUs: asked of KFD, and of DRM where KFD does not tell.

KFD is the compute half of amdgpu, which ROCm works through. It lists every process that uses it,
in /sys/class/kfd/kfd/proc, by the number that the process has on the host, whatever namespace the
reader is in (kfd_create_process_sysfs() in drivers/gpu/drm/amd/amdkfd/kfd_process.c). Everybody may
read that. Which device is meant is in /sys/class/kfd/kfd/topology, and hidden from a container that
may not use the device (node_show() in kfd_topology.c). DRM tells the same in /proc/PID/fdinfo, of
the processes that the reader may trace (Documentation/gpu/drm-usage-stats.rst).
"""

from __future__ import annotations

import errno
import logging
import os
import re
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from vllm_agent.host.gpu.sysfs import MAX_VALUE_BYTES, parse_number, read_number
from vllm_agent.host.proc import read_small
from vllm_agent.observations import GpuProcess

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

MAX_PROCESSES: Final = 512
"""Processes looked at in one reading, those asked for first, at 10 µs each and device. A host of
8 GPUs runs some dozens that use them."""

MAX_NODES: Final = 256
"""Nodes of KFD's topology: one for each socket, and up to 8 for each GPU that is partitioned."""

MAX_FDS: Final = 4096
"""Open files of one process that are looked at, lowest first, at 2 µs each: a device is opened
early, and a busy server has some hundred connections."""

_KIBIBYTES: Final = 1024
_UNITS: Final = {b"": 1, b"KiB": _KIBIBYTES, b"MiB": _KIBIBYTES**2}
_SIZE: Final = re.compile(rb"([0-9]{1,20})[ \t]*(KiB|MiB|)")
_MEMORY_KEYS: Final = (b"drm-resident-vram", b"drm-memory-vram")
_GONE: Final = frozenset({errno.ENOENT, errno.ESRCH})
_LOGGER: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DrmClient:
    """One opening of a DRM device: files that were duplicated or inherited share it."""

    bus_id: str
    client_id: int
    vram_bytes: int


def parse_drm_client(content: bytes) -> DrmClient | None:
    """A file of /proc/PID/fdinfo as a value; None unless it is a client of amdgpu, and complete.

    What counts is memory that is in VRAM now: `drm-resident-vram`, which older kernels call
    `drm-memory-vram`. Linux before 5.19 has no `drm-client-id`: nothing can be counted once there.
    """
    values = dict(_pairs(content))
    bus_id, client_id = values.get(b"drm-pdev"), parse_number(values.get(b"drm-client-id"))
    size = next((_SIZE.fullmatch(values[key]) for key in _MEMORY_KEYS if key in values), None)
    if values.get(b"drm-driver") != b"amdgpu":
        return None
    if bus_id is None or client_id is None or size is None:
        return None
    vram_bytes = int(size[1]) * _UNITS[size[2]]
    return DrmClient(bus_id.decode("ascii", "replace"), client_id, vram_bytes)


def parse_bus_id(properties: bytes) -> str | None:
    """The PCI bus id in the properties of a node of KFD's topology; None if it tells none.

    `location_id` is bus, device and function in 16 bits. Of a partitioned GPU it carries the number
    of the partition too, in the function or in bits 28 to 31, as kernels differ.
    """
    values = dict(line.partition(b" ")[::2] for line in properties.split(b"\n"))
    domain, location = parse_number(values.get(b"domain")), parse_number(values.get(b"location_id"))
    if domain is None or location is None or domain < 0 or location < 0:
        return None
    return f"{domain:04x}:{location >> 8 & 0xFF:02x}:{location >> 3 & 0x1F:02x}.{location & 7}"


class AmdgpuProcesses:
    """Reads which processes hold memory of which devices."""

    def __init__(self, sys_root: Path, proc_root: Path) -> None:
        self._kfd = f"{sys_root}/class/kfd/kfd"
        self._proc = f"{proc_root}"
        self._is_bound_told = False

    def read(
        self, bus_ids: Collection[str], pids: Collection[int]
    ) -> Mapping[str, tuple[GpuProcess, ...] | None]:
        """The processes of each device, by its PCI bus id; None where neither KFD nor DRM tells.

        Those of KFD are all that compute; those of DRM are among `pids`, without the ones that the
        agent may not trace.
        """
        told = self._from_kfd(bus_ids, pids)
        missing = [bus_id for bus_id in bus_ids if bus_id not in told]
        return {**told, **self._from_drm(missing, pids)} if missing else told

    def _from_kfd(
        self, bus_ids: Collection[str], pids: Collection[int]
    ) -> dict[str, tuple[GpuProcess, ...]]:
        gpu_ids = self._gpu_ids(bus_ids)
        try:
            names = os.listdir(f"{self._kfd}/proc")
        except OSError:
            return {}
        listed = [int(name) for name in names if name.isdecimal()]
        chosen = self._bounded(sorted(listed, key=lambda pid: (pid not in pids, pid)))
        return {
            bus_id: tuple(
                GpuProcess(pid, held) for pid in chosen if (held := self._held(pid, ids)) != 0
            )
            for bus_id, ids in gpu_ids.items()
        }

    def _gpu_ids(self, bus_ids: Collection[str]) -> dict[str, list[int]]:
        """The numbers that KFD has given to each device, one for each partition of it."""
        nodes = f"{self._kfd}/topology/nodes"
        found: dict[str, list[int]] = {}
        try:
            names = os.listdir(nodes)
        except OSError:
            return found
        for name in names[:MAX_NODES]:
            gpu_id = read_number(f"{nodes}/{name}/gpu_id")
            if not gpu_id:  # 0 is a processor
                continue
            bus_id = parse_bus_id(read_small(f"{nodes}/{name}/properties") or b"") or ""
            if bus_id not in bus_ids:
                bus_id = f"{bus_id[:-1]}0"
            if bus_id in bus_ids:
                found.setdefault(bus_id, []).append(gpu_id)
        return found

    def _held(self, pid: int, gpu_ids: Sequence[int]) -> int | None:
        """Bytes of VRAM; None if the kernel says something else, 0 also if the process is gone."""
        held = 0
        for gpu_id in gpu_ids:
            content = read_small(f"{self._kfd}/proc/{pid}/vram_{gpu_id}", MAX_VALUE_BYTES)
            if content is None:
                continue
            amount = parse_number(content)
            if amount is None or amount < 0:
                return None
            held += amount
        return held

    def _from_drm(
        self, bus_ids: Sequence[str], pids: Collection[int]
    ) -> dict[str, tuple[GpuProcess, ...] | None]:
        held: dict[str, dict[int, int]] = {bus_id: {} for bus_id in bus_ids}
        seen: set[tuple[str, int]] = set()
        is_any_read = is_any_refused = False
        for pid in self._bounded(sorted(pids)):
            try:
                clients = list(self._clients(pid))
            except OSError as fault:
                is_any_refused |= fault.errno not in _GONE
                continue
            is_any_read = True
            for client in clients:
                key = client.bus_id, client.client_id
                if client.bus_id in held and client.vram_bytes and key not in seen:
                    seen.add(key)
                    of_device = held[client.bus_id]
                    of_device[pid] = of_device.get(pid, 0) + client.vram_bytes
        if is_any_refused and not is_any_read:
            return dict.fromkeys(bus_ids)
        return {
            bus_id: tuple(GpuProcess(pid, used) for pid, used in of_device.items())
            for bus_id, of_device in held.items()
        }

    def _clients(self, pid: int) -> Iterator[DrmClient]:
        """What a process has open of amdgpu. Raises OSError where its files may not be listed."""
        with os.scandir(f"{self._proc}/{pid}/fd") as entries:
            for entry in islice(entries, MAX_FDS):
                try:
                    name = os.path.basename(os.readlink(entry.path))
                except OSError:  # closed since
                    continue
                if name.startswith(("renderD", "card")):
                    content = read_small(f"{self._proc}/{pid}/fdinfo/{entry.name}")
                    client = None if content is None else parse_drm_client(content)
                    if client is not None:
                        yield client

    def _bounded(self, pids: list[int]) -> list[int]:
        if len(pids) > MAX_PROCESSES and not self._is_bound_told:
            self._is_bound_told = True
            text = "not all processes that use AMD GPUs are looked at: there are too many"
            _LOGGER.warning(text, extra={"processes": len(pids), "looked_at": MAX_PROCESSES})
        return pids[:MAX_PROCESSES]


def _pairs(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    for line in content.split(b"\n"):
        key, _, value = line.partition(b":")
        yield key, value.strip()
