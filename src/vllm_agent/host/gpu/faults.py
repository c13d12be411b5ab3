"""What went wrong on which GPU, and who held it then: what explains the end of a server."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vllm_agent.snapshot import FaultCount

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vllm_agent.observations import Gpu, GpuFault

FAULT_SECONDS: Final = 60.0
"""A fault on a GPU explains a crash that follows within this time: a worker ends seconds later, an
engine that waits for the others by its own timeout of some ten."""

HELD_SECONDS: Final = FAULT_SECONDS + 30.0
"""Who held which GPU is remembered this long: a verdict may come seconds after the process ended,
and the process may have let go before."""

LOG_SECONDS: Final = 60.0
"""How often one kind of fault of one device is logged; it is counted each time."""

AFTERMATH_XIDS: Final = frozenset({45})
"""XIDs that follow the end of a process and never cause it: 45 is the driver's clean-up after a
process that was killed while the GPU worked for it (NVIDIA's XID catalogue)."""

_LOGGER: Final = logging.getLogger(__name__)


@dataclass(slots=True)
class _Spell:
    """One kind of fault of one device, over and over: when it was told first, and last."""

    first_seconds: float
    last_seconds: float


class FaultMemory:
    """Faults and holders of the last minutes. Times are on the monotonic clock."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[int, FaultCount]] = defaultdict(dict)
        # By device, MIG instance where one is named, and XID.
        self._spells: dict[tuple[str, str | None, int], _Spell] = {}
        self._held: dict[int, dict[str, float]] = {}
        self._gpus: dict[str, Gpu] = {}
        self._lost: set[str] = set()

    @property
    def counts(self) -> Mapping[str, Mapping[int, FaultCount]]:
        """How often each XID was told of each device, by uuid."""
        return self._counts

    def note(self, fault: GpuFault) -> None:
        """A fault that a driver told of."""
        counts = self._counts[fault.uuid]
        before = counts.get(fault.xid, FaultCount(0, 0.0))
        counts[fault.xid] = FaultCount(before.count + 1, fault.at.unix_seconds)
        key = (fault.uuid, fault.instance_uuid, fault.xid)
        seconds = fault.at.monotonic_seconds
        spell = self._spells.get(key)
        if spell is None or seconds - spell.last_seconds > FAULT_SECONDS:
            self._spells[key] = _Spell(seconds, seconds)
        else:
            spell.last_seconds = seconds
        if fault.at.unix_seconds - before.last_unix_seconds >= LOG_SECONDS:
            _LOGGER.warning("XID", extra={"gpu": fault.uuid, "xid": fault.xid})

    def remember(self, gpus: Iterable[Gpu], now_seconds: float) -> None:
        """Who holds which device now, and which of them are lost."""
        self._gpus = {gpu.uuid: gpu for gpu in gpus}
        for gpu in self._gpus.values():
            for process in gpu.processes or ():
                held = self._held.setdefault(process.pid, {})
                # A fault of a device is one of whoever holds a part of it.
                held |= dict.fromkeys(filter(None, (gpu.uuid, gpu.parent_uuid)), now_seconds)
        for pid, held in list(self._held.items()):
            recent = {uuid: at for uuid, at in held.items() if now_seconds - at <= HELD_SECONDS}
            if recent:
                self._held[pid] = recent
            else:
                del self._held[pid]
        for key, spell in list(self._spells.items()):
            if now_seconds - spell.last_seconds > HELD_SECONDS:
                del self._spells[key]
        self._tell_lost()

    def explain(self, pids: Iterable[int], ended_seconds: float) -> str | None:
        """A sentence about the first fault that explains an end of these processes.

        The last words of a device that fell off its bus are an XID that some drivers keep to
        themselves: so its loss is a fault, too.
        """
        held = {uuid for pid in pids for uuid in self._held.get(pid, ())}
        told = [
            (spell.first_seconds, uuid, xid)
            for (uuid, instance, xid), spell in self._spells.items()
            if (instance or uuid) in held
            and ended_seconds - spell.last_seconds <= FAULT_SECONDS
            and xid not in AFTERMATH_XIDS
        ]
        if told:
            _, uuid, xid = min(told)
            return f"XID {xid} on {self._name(uuid)}"
        lost = sorted(held & self._lost)
        return f"{self._name(lost[0])} was lost" if lost else None

    def _name(self, uuid: str) -> str:
        gpu = self._gpus.get(uuid)
        return uuid if gpu is None else f"GPU {gpu.index} ({uuid})"

    def _tell_lost(self) -> None:
        for uuid, gpu in self._gpus.items():
            if gpu.is_lost and uuid not in self._lost:
                self._lost.add(uuid)
                _LOGGER.error("a GPU is lost", extra={"gpu": gpu.index, "uuid": uuid})
            elif not gpu.is_lost and uuid in self._lost:
                self._lost.discard(uuid)
                _LOGGER.info("a GPU is back", extra={"gpu": gpu.index, "uuid": uuid})
