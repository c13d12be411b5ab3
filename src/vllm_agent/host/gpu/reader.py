"""How one kind of driver is asked. Every call may block for ever, and is made in one thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from vllm_agent.observations import Gpu, GpuFault


class NoDriverError(Exception):
    """The driver, or its library, is not on this host. The text says what was looked for."""


class DriverError(Exception):
    """The driver is there and does not do what it was asked. The text says what, and why."""


class GpuReader(Protocol):
    """One kind of driver. After an error `close` is called, and `open` before the next `read`."""

    @property
    def name(self) -> str:
        """What the configuration calls it."""

    def open(self) -> None:
        """Loads what is needed. Raises NoDriverError or DriverError."""

    def read(self, pids: Collection[int], tell: Callable[[GpuFault], None]) -> tuple[Gpu, ...]:
        """Every device.

        `pids` are processes whose memory is wanted where the driver does not list them itself.
        `tell` is given each fault as soon as the driver has told it: what is asked next may hang.

        Raises:
            DriverError: nothing can be told of any device.
        """

    def close(self) -> None:
        """Lets go of the driver. Never raises, and may be repeated."""
