"""What everything that follows local servers needs of their host."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from vllm_agent.host.followed_files import FollowedFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from vllm_agent.host.gpu.seen import GpusSeen
    from vllm_agent.host.hf_hub.sizes import HubSizes
    from vllm_agent.host.proc import Proc, ProcessStat
    from vllm_agent.observations import Instant


class Gpus(Protocol):
    """What starts and ends want of the GPUs; `host.gpu.collector` is the real one."""

    def look_soon(self) -> None:
        """Makes the next look at the GPUs come at once."""

    async def look_now(self) -> None:
        """Waits for a look at the GPUs that begins after this call."""

    def fault_of(self, pids: Iterable[int], ended_seconds: float) -> str | None:
        """A sentence about the fault that explains an end of these processes."""

    def used_bytes(self, pids: Iterable[int]) -> int | None:
        """What these processes hold by the newest look; None where that cannot be told."""

    def holders(self, other_than: Iterable[int]) -> str:
        """Who else holds the most memory of the GPUs, for people; empty where nobody does."""

    def holders_of(self, uuids: Collection[str]) -> str:
        """Who holds the most memory of these devices, for people; empty if nobody is known to."""

    def seen(self) -> GpusSeen:
        """The real devices as of the newest look."""


@dataclass(frozen=True, slots=True)
class LocalHost:
    """What every launch on this host needs: /proc, its processes now, a clock, a counter.

    `gpus` is None where none are looked at, `hub` where it must not be asked. `may_read_environ` is
    whether a handful of environment variables of servers may be read. `log_files` are those that
    its launches read.
    """

    proc: Proc
    processes: Callable[[], Iterable[ProcessStat]]
    clock: Callable[[], Instant]
    count_dropped: Callable[[str], None]
    gpus: Gpus | None = None
    hub: HubSizes | None = None
    may_read_environ: bool = True
    log_files: FollowedFiles = field(default_factory=FollowedFiles)
