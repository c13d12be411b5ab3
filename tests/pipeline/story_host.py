"""One host of the story: its GPUs, its agent, and the page that the agent serves at a scrape."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NoReturn

from prometheus_client import CollectorRegistry

from vllm_agent.expose.exposition import Exposition
from vllm_agent.expose.text_format import TextFormat
from vllm_agent.host.gpu.attribution import Owners, attribute
from vllm_agent.observations import Gpu, GpuProcess, GpuVendor, Instant
from vllm_agent.snapshot import AgentSnapshot, CollectorSnapshot, FaultCount

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.pipeline.story_server import Moment, Span, StoryServer
    from vllm_agent.snapshot import GpuSnapshot

MIB: Final = 2**20
RESERVED_BYTES: Final = 640 * MIB
"""What the driver keeps for itself: used and free do not add up to the total."""
DRIVER_BYTES: Final = 96 * MIB
"""In use on an idle device, held by nobody who could be named."""
COLLECTORS: Final = ("discovery", "processes", "probes", "gpu", "logs", "store")
_STRANGER_PID: Final = 90_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU. `others` is when a process that is no vLLM's holds `others_bytes` of it.

    `faults` are XIDs and when each was told, `uncorrected` when an ECC error was first counted.
    """

    index: str
    name: str
    total_bytes: int
    limit_watts: float
    others: Span | None = None
    others_bytes: int = 0
    faults: Sequence[tuple[int, int]] = ()
    uncorrected: int | None = None

    @property
    def uuid(self) -> str:
        return f"GPU-{self.name.split()[1].lower()}-{self.index}"

    def faults_between(self, start: int, end: int) -> dict[int, FaultCount]:
        """How often each XID was told in that time, and when last."""
        counts: dict[int, FaultCount] = {}
        for xid, told_at in self.faults:
            if start <= told_at <= end:
                before = counts.get(xid)
                counts[xid] = FaultCount(1 if before is None else before.count + 1, float(told_at))
        return counts


@dataclass(slots=True)
class Host:
    """One agent and what it watches. `servers` have lived through the whole story.

    `away` is when the agent is down, `bad_configuration` when its file cannot be read,
    `gpu_blind` when the driver does not answer. `dropped` is what it left out, and when.
    """

    instance: str
    servers: Sequence[StoryServer]
    devices: Sequence[Device] = ()
    away: Span | None = None
    bad_configuration: Span | None = None
    gpu_blind: Span | None = None
    dropped: Sequence[tuple[str, int]] = ()
    began: int = 0
    _exposition: Exposition = field(init=False)

    def __post_init__(self) -> None:
        self._exposition = self._new_exposition()

    def page(self, number: int, unix_seconds: int) -> str | None:
        """What scrape `number` gets; None where nobody answers."""
        if self.away is not None and unix_seconds in self.away:
            self._exposition = self._new_exposition()
            return None
        moments = [found for server in self.servers if (found := server.moments[number])]
        now = Instant(float(unix_seconds - self.began), float(unix_seconds))
        agent = self._agent(moments, unix_seconds)
        return self._exposition.render(TextFormat.PROMETHEUS, agent, now).decode()

    def _new_exposition(self) -> Exposition:
        # What it says of its own process would be this test's.
        return Exposition(_unused, _unused, self._fail, own_process=CollectorRegistry())

    def _fail(self, kind: str) -> None:
        raise AssertionError(f"{self.instance}: the page lacks something: {kind}")

    def _agent(self, moments: Sequence[Moment], at: int) -> AgentSnapshot:
        is_blind = self.gpu_blind is not None and at in self.gpu_blind
        is_bad = self.bad_configuration is not None and at in self.bad_configuration
        began = self._began(at)
        loaded = began
        if self.bad_configuration is not None and at >= self.bad_configuration.end:
            loaded = self.bad_configuration.end
        dropped: dict[str, int] = {}
        for kind, when in self.dropped:
            if began <= when <= at:
                dropped[kind] = dropped.get(kind, 0) + 1
        return AgentSnapshot(
            started=Instant(0.0, float(began)),
            generation=at,
            is_ready=True,
            servers=tuple(moment.server for moment in moments),
            collectors=tuple(self._collectors(at, is_blind=is_blind)),
            dropped=MappingProxyType(dropped),
            config_load_unix_seconds=float(loaded),
            is_config_load_successful=not is_bad,
            discovered=sum(moment.server.is_discovered for moment in moments),
            gpus=() if is_blind else self._gpus(moments, at),
        )

    def _began(self, at: int) -> int:
        """When the agent that answers was started."""
        is_second = self.away is not None and at >= self.away.end
        return self.away.end if is_second and self.away is not None else self.began

    def _collectors(self, at: int, *, is_blind: bool) -> list[CollectorSnapshot]:
        has_gpus = bool(self.devices)
        return [
            CollectorSnapshot(
                name=name,
                is_up=not (name == "gpu" and is_blind),
                duration_seconds=0.004 + 0.002 * number,
                last_success_unix_seconds=float(
                    self.gpu_blind.start
                    if name == "gpu" and is_blind and self.gpu_blind is not None
                    else at - 3
                ),
            )
            for number, name in enumerate(COLLECTORS)
            if name != "gpu" or has_gpus
        ]

    def _gpus(self, moments: Sequence[Moment], at: int) -> tuple[GpuSnapshot, ...]:
        owners = Owners.of([moment.server for moment in moments], {})
        faults = {
            device.uuid: device.faults_between(self._began(at), at) for device in self.devices
        }
        gpus = [self._gpu(device, moments, at) for device in self.devices]
        return attribute(gpus, owners, {_STRANGER_PID: "python3"}, faults)

    def _gpu(self, device: Device, moments: Sequence[Moment], at: int) -> Gpu:
        processes = [process for moment in moments for process in moment.held.get(device.index, ())]
        has_others = device.others is not None and at in device.others
        if has_others:
            processes.append(GpuProcess(_STRANGER_PID, device.others_bytes))
        used = DRIVER_BYTES + sum(process.used_bytes or 0 for process in processes)
        free = device.total_bytes - RESERVED_BYTES - used
        assert free >= 0, f"{self.instance} GPU {device.index} is too full at {at}"
        utilization = self._utilization(device, moments, at, has_others=has_others)
        is_worn = device.uncorrected is not None and at >= device.uncorrected
        return Gpu(
            index=device.index,
            uuid=device.uuid,
            vendor=GpuVendor.NVIDIA,
            name=device.name,
            driver_version="580.95.05",
            pci_bus_id=f"00000000:{16 + int(device.index):02X}:00.0",
            memory_total_bytes=device.total_bytes,
            memory_used_bytes=used,
            memory_free_bytes=free,
            utilization_ratio=round(utilization, 2),
            temperature_celsius=round(34 + 38 * utilization),
            power_watts=round(70 + 0.82 * utilization * (device.limit_watts - 70), 1),
            power_limit_watts=device.limit_watts,
            ecc_corrected_errors=3 if is_worn else 0,
            ecc_uncorrected_errors=int(is_worn),
            processes=tuple(processes),
        )

    def _utilization(
        self, device: Device, moments: Sequence[Moment], at: int, *, has_others: bool
    ) -> float:
        if has_others:
            return 0.97
        wave = 0.25 * math.sin(at / 300 + int(device.index) / 3) + 0.05 * math.sin(at / 23)
        is_served = any(
            moment.server.life.has_served_now
            and not moment.server.life.is_launch_over
            and device.index in moment.held
            for moment in moments
        )
        return 0.62 + wave if is_served else 0.0


def _unused() -> NoReturn:
    raise AssertionError("only what is given to render() is shown")
