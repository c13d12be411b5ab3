"""GPUs that do not exist, for the demonstration on a machine without one. Everything is invented.

The devices, what is used of them, their load, temperature and power follow from the clock and from
the ages of the vLLM processes that are watched, and say nothing about these. Only the PIDs are
real.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from vllm_agent.host.vllm_argv import role_of_name
from vllm_agent.observations import ComponentRole, Gpu, GpuProcess, GpuVendor

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from vllm_agent.host.proc import Proc, ProcessStat
    from vllm_agent.observations import GpuFault, Instant, ProcessId

DEVICES: Final = 4
"""As many as one page of a terminal shows well."""

TOTAL_BYTES: Final = 80 * 1024**3

OTHER_BYTES: Final = 400 * 1024**2
"""Used on the first device by nobody who is listed, as by a desktop."""

WEIGHTS_SHARE: Final = 0.12
WEIGHTS_SECONDS: Final = 6.0
"""How long the invented weights take to arrive."""

FULL_SHARE: Final = 0.3
"""Held once there is a KV cache: three servers fit on a device."""

_IDLE_CELSIUS: Final = 34.0
_IDLE_WATTS: Final = 65.0
_LIMIT_WATTS: Final = 400.0
_BUSY_CELSIUS: Final = 45.0  # above idle, at full load


class DemoReader:
    """Some synthetic devices, on which each vLLM process that is watched gets memory.

    A worker holds memory, and an EngineCore that has no worker. It is put on the device with the
    fewest holders, stays there while it lives, and gets no more than is free.
    """

    name: Final = "demo"

    def __init__(self, proc: Proc, clock: Callable[[], Instant]) -> None:
        self._proc = proc
        self._clock = clock
        self._places: dict[ProcessId, int] = {}

    def open(self) -> None:
        """There is nothing to load."""

    def read(
        self,
        pids: Collection[int],
        tell: Callable[[GpuFault], None],  # noqa: ARG002 - it has no faults
    ) -> tuple[Gpu, ...]:
        """Every device, with those of these processes that are of a vLLM."""
        now = self._clock()
        holders = {self._proc.identify(stat): stat for stat in self._holders(pids)}
        self._places = {one: place for one, place in self._places.items() if one in holders}
        for process in holders:
            if process not in self._places:
                self._places[process] = self._emptiest()
        ages = {
            process: now.unix_seconds - self._proc.start_unix_seconds(stat)
            for process, stat in holders.items()
        }
        return tuple(
            _gpu(
                place,
                {one.pid: ages[one] for one, at in self._places.items() if at == place},
                now.monotonic_seconds,
            )
            for place in range(DEVICES)
        )

    def close(self) -> None:
        """Nothing is held."""

    def _holders(self, pids: Collection[int]) -> Iterable[ProcessStat]:
        """The processes that would hold memory of a GPU, in the order in which they started."""
        workers, engines = [], []
        for stat in map(self._proc.stat, pids):
            role = None if stat is None or stat.is_zombie else role_of_name(stat.name)
            if stat is not None and role is ComponentRole.WORKER:
                workers.append(stat)
            elif stat is not None and role is ComponentRole.ENGINE_CORE:
                engines.append(stat)
        parents = {worker.parent for worker in workers}
        alone = [engine for engine in engines if engine.pid not in parents]
        return sorted([*workers, *alone], key=lambda stat: (stat.start_ticks, stat.pid))

    def _emptiest(self) -> int:
        taken = list(self._places.values())
        return min(range(DEVICES), key=taken.count)


def _gpu(place: int, ages: dict[int, float], now_seconds: float) -> Gpu:
    """A device and its holders, by their PIDs; the first of them takes what it wants first."""
    used_bytes = 0 if place else OTHER_BYTES
    processes = []
    for pid, age_seconds in ages.items():
        held_bytes = min(_wanted_bytes(age_seconds), TOTAL_BYTES - used_bytes)
        used_bytes += held_bytes
        processes.append(GpuProcess(pid, held_bytes))
    load = _load(place, now_seconds) if processes else 0.0
    return Gpu(
        index=str(place),
        uuid=f"GPU-demo-{place}",
        vendor=GpuVendor.NVIDIA,
        name="Demo GPU 80 GiB (synthetic)",
        driver_version="demo",
        memory_total_bytes=TOTAL_BYTES,
        memory_used_bytes=used_bytes,
        memory_free_bytes=TOTAL_BYTES - used_bytes,
        utilization_ratio=load,
        temperature_celsius=round(_IDLE_CELSIUS + load * _BUSY_CELSIUS, 1),
        power_watts=round(_IDLE_WATTS + load * (_LIMIT_WATTS - _IDLE_WATTS), 1),
        power_limit_watts=_LIMIT_WATTS,
        processes=tuple(one for one in processes if one.used_bytes),
    )


def _wanted_bytes(age_seconds: float) -> int:
    """Weights arrive little by little, the KV cache at once."""
    if age_seconds >= WEIGHTS_SECONDS:
        return int(TOTAL_BYTES * FULL_SHARE)
    return int(TOTAL_BYTES * WEIGHTS_SHARE * max(age_seconds, 0.0) / WEIGHTS_SECONDS)


def _load(place: int, now_seconds: float) -> float:
    """Between 30 % and 90 %, each device with a rhythm of its own."""
    return round(0.6 + 0.3 * math.sin(now_seconds / (11 + 3 * place) + place), 3)
