"""The files by which amdgpu, KFD and DRM tell of GPUs and their processes, in a folder.

As on real hosts a card is a link to a folder below the PCI bus that it sits on, and its sensors are
in a folder whose number means nothing. `sys_root` and `proc_root` are what a reader is given.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

GIB = 1024**3
MI300X = "0x74a1"

DEVICE_FILES = {
    "device": MI300X,
    "mem_info_vram_total": str(192 * GIB),
    "mem_info_vram_used": str(2 * GIB),
    "gpu_busy_percent": "0",
    "power/runtime_status": "active",
}


@dataclass(frozen=True)
class AmdCard:
    """One GPU of the tree: `folder` is its device."""

    bus_id: str
    folder: Path

    def write(self, name: str, content: str | float) -> None:
        _write(self.folder / name, content)

    def remove(self, name: str) -> None:
        (self.folder / name).unlink()

    def sensor(self, name: str, content: str | float) -> None:
        """A file of hwmon."""
        folder = next((self.folder / "hwmon").iterdir())
        _write(folder / name, content)

    def break_file(self, name: str) -> None:
        """Reads of the file fail with EIO, by the kernel: nothing is mapped at address 0."""
        self.remove(name)
        (self.folder / name).symlink_to("/proc/self/mem")

    def unbind(self) -> None:
        """The driver lets go of the device, as it does when it is pulled or reset by hand."""
        self.remove("driver")

    def bind(self, driver: str = "amdgpu") -> None:
        (self.folder / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")


class AmdTree:
    """Cards, nodes of KFD and processes appear and vanish as a test says."""

    def __init__(self, root: Path) -> None:
        self.sys_root = root / "sys"
        self.proc_root = root / "proc"
        self.drm = self.sys_root / "class/drm"
        self.kfd = self.sys_root / "class/kfd/kfd"
        self.drm.mkdir(parents=True)
        self.proc_root.mkdir()
        self._nodes = 0

    def add_card(
        self, number: int, bus_id: str, *, unique_id: str | None = None, driver: str = "amdgpu"
    ) -> AmdCard:
        """A device with the driver, as /sys/class/drm/card`number`."""
        folder = self.sys_root / "devices" / f"pci{bus_id[:7]}" / bus_id
        card = AmdCard(bus_id, folder)
        for name, content in DEVICE_FILES.items():
            card.write(name, content)
        if unique_id is not None:
            card.write("unique_id", unique_id)
        (folder / f"hwmon/hwmon{number + 3}").mkdir(parents=True)
        card.bind(driver)
        self.link_card(number, card)
        return card

    def link_card(self, number: int, card: AmdCard) -> None:
        """The name that DRM gives to a device."""
        folder = card.folder / f"drm/card{number}"
        folder.mkdir(parents=True)
        (folder / "device").symlink_to("../..")
        (self.drm / f"card{number}").symlink_to(os.path.relpath(folder, self.drm))
        connector = folder / f"card{number}-DP-1"
        connector.mkdir()
        (connector / "device").symlink_to("..")
        (self.drm / f"card{number}-DP-1").symlink_to(os.path.relpath(connector, self.drm))
        render_node = card.folder / f"drm/renderD{number + 128}"
        render_node.mkdir()
        (render_node / "device").symlink_to("../..")
        (self.drm / render_node.name).symlink_to(os.path.relpath(render_node, self.drm))

    def pull(self, card: AmdCard) -> None:
        """The device is gone from the bus, and its cards are dead links."""
        shutil.rmtree(card.folder)

    def add_node(self, gpu_id: int, location: int = 0, domain: int = 0) -> Path:
        """A node of KFD's topology: a processor where `gpu_id` is 0."""
        folder = self.kfd / f"topology/nodes/{self._nodes}"
        self._nodes += 1
        _write(folder / "gpu_id", gpu_id)
        properties = f"cpu_cores_count 0\nlocation_id {location}\ndomain {domain}\nunique_id 7\n"
        _write(folder / "properties", properties)
        (self.kfd / "proc").mkdir(parents=True, exist_ok=True)
        return folder

    def add_compute_process(self, pid: int, **held: int | str) -> None:
        """A process of KFD: `vram_4711=GIB`, for each device."""
        for name, amount in held.items():
            _write(self.kfd / f"proc/{pid}/{name}", amount)
        (self.kfd / f"proc/{pid}/queues").mkdir(parents=True)

    def open_file(self, pid: int, fd: int, target: str, info: str = "") -> None:
        """An open file of a process, and what its driver tells of it."""
        folder = self.proc_root / str(pid)
        (folder / "fd").mkdir(parents=True, exist_ok=True)
        (folder / f"fd/{fd}").symlink_to(target)
        _write(folder / f"fdinfo/{fd}", f"pos:\t0\nflags:\t02100002\nmnt_id:\t28\n{info}")

    def open_device(
        self, pid: int, fd: int, bus_id: str, *, client: int, vram: str, key: str = "resident"
    ) -> None:
        """A render node that a process has open."""
        self.open_file(pid, fd, "/dev/dri/renderD128", drm_info(bus_id, client, vram, key))


def drm_info(bus_id: str, client: int, vram: str, key: str = "resident") -> str:
    """What amdgpu tells of an open device; `vram` with its unit."""
    return (
        f"drm-driver:\tamdgpu\ndrm-client-id:\t{client}\ndrm-pdev:\t{bus_id}\npasid:\t32770\n"
        f"drm-total-vram:\t999 GiB\ndrm-{key}-vram:\t{vram}\ndrm-memory-gtt: \t2048 KiB\n"
        "drm-engine-compute:\t17 ns\n"
    )


def location(bus_id: str) -> int:
    """The number by which KFD calls a place on the bus."""
    _, bus, rest = bus_id.split(":")
    device, function = rest.split(".")
    return int(bus, 16) << 8 | int(device, 16) << 3 | int(function)


def _write(path: Path, content: str | float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{content}\n")
