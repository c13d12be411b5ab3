"""A GPU driver of few words, which answers, fails and hangs as a test says."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vllm_agent.observations import Gpu, GpuFault, GpuProcess, GpuVendor, Instant

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

GIB = 1 << 30
DEADLINE_SECONDS = 10.0


def gpu(index: str = "0", *processes: tuple[int, int | None], **changes: object) -> Gpu:
    """A device of 80 GiB, of which `processes` hold some, and the driver 1 GiB for nobody."""
    used = GIB + sum(held or 0 for _, held in processes)
    values: dict = {
        "uuid": f"GPU-{index}",
        "vendor": GpuVendor.NVIDIA,
        "name": "NVIDIA H100",
        "memory_total_bytes": 80 * GIB,
        "memory_used_bytes": used,
        "memory_free_bytes": 80 * GIB - used,
        "processes": tuple(GpuProcess(pid, held) for pid, held in processes),
    }
    return Gpu(index=index, **(values | changes))


def xid(
    number: int, uuid: str = "GPU-0", at: float = 1_000.0, instance: str | None = None
) -> GpuFault:
    return GpuFault(uuid, number, Instant(at, at), instance)


def no_fault(fault: GpuFault) -> None:
    """Told by drivers that tell of none."""
    raise AssertionError(fault)


@dataclass
class ToyReader:
    """A reader that gives `gpus`, and each of `faults` once; `error` is raised instead.

    While `may_answer` is not set a reading hangs, and `is_hanging` says that it does.
    """

    gpus: tuple[Gpu, ...] = ()
    faults: list[GpuFault] = field(default_factory=list)
    error: Exception | None = None
    open_error: Exception | None = None
    name: str = "toy"
    calls: list[str] = field(default_factory=list)
    asked: list[tuple[int, ...]] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    may_answer: threading.Event = field(default_factory=threading.Event)
    is_hanging: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.may_answer.set()

    def hang(self) -> None:
        self.may_answer.clear()

    def open(self) -> None:
        self._note("open")
        if self.open_error is not None:
            raise self.open_error

    def read(self, pids: Collection[int], tell: Callable[[GpuFault], None]) -> tuple[Gpu, ...]:
        self._note("read")
        self.asked.append(tuple(pids))
        faults, self.faults = self.faults, []
        for fault in faults:
            tell(fault)
        if not self.may_answer.is_set():
            self.is_hanging.set()
            self.may_answer.wait(DEADLINE_SECONDS)
        if self.error is not None:
            raise self.error
        return self.gpus

    def close(self) -> None:
        self._note("close")

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self.threads.add(threading.get_ident())
