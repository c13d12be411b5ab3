"""The errors that NVIDIA's driver reports of a device, by their XID numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from vllm_agent.host.gpu.nvml_library import LostError
from vllm_agent.observations import GpuFault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from vllm_agent.host.gpu.nvml_library import NvmlLibrary
    from vllm_agent.observations import Instant

MAX_XIDS: Final = 1024
"""Of one device in one pass. A failing device repeats an XID for every one of its channels; what
is more waits in the driver for the next pass, so that one pass ends. To take one costs 5 to 10 µs
where the driver answers at once, and so many not more than 10 ms."""

_WHOLE_DEVICE: Final = 0xFFFFFFFF
"""What the driver gives as an instance where an XID is not of one."""


class XidWatch:
    """Is told of XIDs from the moment a device is watched.

    Every device has an event set of its own: the wait on a set with a lost device fails, and then
    does not tell of the others in it.
    """

    def __init__(self, library: NvmlLibrary, now: Callable[[], Instant]) -> None:
        self._library = library
        self._nvml = library.nvml
        self._now = now
        self._sets: dict[str, Any] = {}
        self._instances: dict[str, Mapping[tuple[int, int], str]] = {}

    def watch(self, uuid: str, handle: object) -> None:
        """Begins to listen to a device, unless that was done; what fails is tried at each call.

        Raises LostError, DriverError.
        """
        if uuid in self._sets:
            return
        ask, nvml = self._library.ask, self._nvml
        xid = nvml.nvmlEventTypeXidCriticalError
        types = ask(nvml.nvmlDeviceGetSupportedEventTypes, handle) or 0
        events = ask(nvml.nvmlEventSetCreate) if types & xid else None
        if events is None:
            return
        is_registered = False
        try:
            is_registered = self._library.do(nvml.nvmlDeviceRegisterEvents, handle, xid, events)
        finally:
            if is_registered:
                self._sets[uuid] = events
            else:
                self._free(events)

    def know_instances(self, uuid: str, instances: Mapping[tuple[int, int], str]) -> None:
        """The MIG instances of a device, by their GPU and compute instance numbers."""
        self._instances[uuid] = instances

    def drain(self) -> Iterator[GpuFault]:
        """What was told since the last time. Raises DriverError."""
        for uuid, events in list(self._sets.items()):
            yield from self._drain(uuid, events)

    def close(self) -> None:
        """Stops listening. Never raises."""
        for events in self._sets.values():
            self._free(events)
        self._sets.clear()

    def _drain(self, uuid: str, events: object) -> Iterator[GpuFault]:
        nvml = self._nvml
        try:
            for _ in range(MAX_XIDS):
                event = self._library.ask(nvml.nvmlEventSetWait_v2, events, 0)
                if event is None:
                    return
                instance = self._instance(uuid, event.gpuInstanceId, event.computeInstanceId)
                yield GpuFault(uuid, event.eventData, self._now(), instance)
        except LostError:
            # It is listened to anew when it answers again.
            self._free(self._sets.pop(uuid))

    def _instance(self, uuid: str, gpu_instance: int, compute_instance: int) -> str | None:
        fitting = [
            instance
            for ids, instance in self._instances.get(uuid, {}).items()
            if ids[0] == gpu_instance and compute_instance in (ids[1], _WHOLE_DEVICE)
        ]
        return fitting[0] if len(fitting) == 1 else None

    def _free(self, events: object) -> None:
        self._library.release(self._nvml.nvmlEventSetFree, events)
