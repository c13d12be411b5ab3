"""One GPU driver: asked in a thread of its own, which is all that a driver that hangs can take."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import partial
from typing import TYPE_CHECKING, Final

from vllm_agent.config.choices import GpuUse
from vllm_agent.host.gpu.reader import DriverError, NoDriverError
from vllm_agent.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from vllm_agent.host.gpu.reader import GpuReader
    from vllm_agent.observations import Gpu, GpuFault

ABSENT_SECONDS: Final = 60.0
"""How often a driver that is not there is looked for again: modules are loaded long after boot, and
to look costs less than a millisecond."""

MAX_DEVICES: Final = 128
"""Devices remembered, so that one that is lost has a name; the largest hosts have 16, and a driver
that calls them by other names each time must not fill the memory."""

_KERNEL_LOG: Final = "look at the kernel's log: journalctl -k --grep 'NVRM|amdgpu'"
_INSTALL: Final = (
    "install the driver, or give its library to the agent's container (nvidia-container-toolkit); "
    "without 'required' in the configuration its absence is no fault"
)
_LOGGER: Final = logging.getLogger(__name__)


class Driver:
    """Asks one kind of driver, and knows whether it works.

    `reading` is what it said last, None where it did not answer the last time. `fault` says why and
    `fix` what to do, empty where nothing is wrong or the fault says it; `is_absent` is whether it
    is not on this host and need not be, and `detail` what was looked for; `is_missing` is whether
    it never was on this host and has to be. `told` gets the faults that it reports, in the event
    loop, as soon as it does.
    """

    def __init__(
        self,
        reader: GpuReader,
        use: GpuUse,
        *,
        timeout_seconds: float,
        monotonic: Callable[[], float],
        told: Callable[[GpuFault], None],
    ) -> None:
        self._reader = reader
        self._use = use
        self._timeout_seconds = timeout_seconds
        self._monotonic = monotonic
        self._told = told
        self._loop = asyncio.get_running_loop()
        self._worker = Worker(f"gpu {reader.name}")
        self._call: asyncio.Future[tuple[Gpu, ...]] | None = None
        self._is_open = False
        self._look_not_before_seconds = 0.0
        self._known: dict[str, Gpu] = {}
        self.reading: tuple[Gpu, ...] | None = None
        self.fault = ""
        self.fix = ""
        self.is_absent = False
        self.is_missing = False
        self.detail = ""
        self._was_present = False

    @property
    def name(self) -> str:
        """What the configuration calls it."""
        return self._reader.name

    @property
    def is_required(self) -> bool:
        """Whether the configuration says that it must be there."""
        return self._use is GpuUse.REQUIRED

    @property
    def has_settled(self) -> bool:
        """Whether it is known which devices it has: it answered the last time, or is not there."""
        return self.reading is not None or self.is_absent or self.is_missing

    async def look(self, pids: Collection[int]) -> None:
        """Asks it once, unless it still hangs or is known to be absent. Never raises."""
        if self._call is not None:
            if not self._call.done():
                return
            # What it said so late is no longer so; asyncio would complain of an error nobody read.
            self._call.exception()
            self._call = None
        if self._monotonic() < self._look_not_before_seconds:
            return
        call = self._worker.submit(partial(self._read, pids))
        try:
            await self._worker.wait(call, self._timeout_seconds)
        except TimeoutError:
            self._call = call
            text = f"the {self.name} driver did not answer within {self._timeout_seconds:g} s"
            self._fail(text, _KERNEL_LOG)
            return
        self._take(call)

    def gpus(self) -> Iterator[Gpu]:
        """Every device as of the last answer, with those that it told of before and does not now.

        A device that fell off its bus may be left out of the list; MIG instances come and go.
        """
        if self.reading is None:
            return
        yield from self.reading
        named = {gpu.uuid for gpu in self.reading}
        yield from (gpu for uuid, gpu in self._known.items() if uuid not in named)

    def close(self) -> None:
        """Lets its thread end, once the driver lets go of it."""
        self._worker.submit(self._reader.close)
        self._worker.stop()

    def _read(self, pids: Collection[int]) -> tuple[Gpu, ...]:
        """Runs in the thread, as does everything of the reader."""
        try:
            if not self._is_open:
                self._reader.open()
                self._is_open = True
            return self._reader.read(pids, self._tell_from_thread)
        except Exception:
            self._is_open = False
            self._reader.close()
            raise

    def _tell_from_thread(self, fault: GpuFault) -> None:
        # A loop that is closed has nobody who would listen.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._told, fault)

    def _take(self, call: asyncio.Future[tuple[Gpu, ...]]) -> None:
        try:
            reading = call.result()
        except NoDriverError as error:
            self._be_absent(str(error))
        except DriverError as error:
            self._fail(str(error), _KERNEL_LOG)
        except Exception as error:
            if not self.fault:
                _LOGGER.exception("a GPU driver could not be read", extra={"driver": self.name})
            self._fail(f"a fault of the agent: {error}")
        else:
            self._work(reading)

    def _work(self, reading: tuple[Gpu, ...]) -> None:
        if self.fault:
            _LOGGER.info("the GPU driver answers again", extra={"driver": self.name})
        elif not self._was_present:
            extra = {"driver": self.name, "gpus": len(reading)}
            _LOGGER.info("found a GPU driver", extra=extra)
        self.reading, self.fault, self.fix, self.is_absent = reading, "", "", False
        self.is_missing = False
        self._was_present = True
        for gpu in reading:
            if gpu.parent_uuid is None:
                self._known[gpu.uuid] = gpu.lost()
        while len(self._known) > MAX_DEVICES:
            del self._known[next(iter(self._known))]

    def _be_absent(self, detail: str) -> None:
        self._look_not_before_seconds = self._monotonic() + ABSENT_SECONDS
        if self.is_required or self._was_present:
            self._fail(detail, _INSTALL if self.is_required else _KERNEL_LOG)
            self.is_missing = not self._was_present
            return
        self.detail = detail
        self.reading, self.fault, self.fix, self.is_absent = None, "", "", True

    def _fail(self, detail: str, fix: str = "") -> None:
        if detail != self.fault:
            text = "no word from a GPU driver"
            _LOGGER.warning(text, extra={"driver": self.name, "detail": detail})
        self.reading, self.fault, self.fix, self.is_absent = None, detail, fix, False
        self.is_missing = False
