"""NVML, the library of NVIDIA's driver: loaded, asked, and its error codes given a meaning."""

from __future__ import annotations

import ctypes
import logging
import os
from contextlib import suppress
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, TypeVar

from vllm_agent.host.gpu.reader import DriverError, NoDriverError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

LIBRARY: Final = "libnvidia-ml.so.1"
"""What the driver installs, and a container runtime mounts; pynvml loads it by this name too."""

_LOGGER: Final = logging.getLogger(__name__)


class Code(IntEnum):
    """What NVML returns, of nvmlReturn_t in nvml.h: the codes with a meaning of their own here."""

    UNINITIALIZED = 1
    INVALID_ARGUMENT = 2
    NOT_SUPPORTED = 3
    NO_PERMISSION = 4
    NOT_FOUND = 6
    DRIVER_NOT_LOADED = 9
    TIMEOUT = 10
    LIBRARY_NOT_FOUND = 12
    FUNCTION_NOT_FOUND = 13
    GPU_IS_LOST = 15
    RESET_REQUIRED = 16
    LIB_RM_VERSION_MISMATCH = 18
    NO_DATA = 21
    VGPU_ECC_NOT_SUPPORTED = 22
    ARGUMENT_VERSION_MISMATCH = 25
    DEPRECATED = 26


_NO_DRIVER: Final = frozenset({Code.DRIVER_NOT_LOADED, Code.LIBRARY_NOT_FOUND})
_LOST: Final = frozenset({Code.GPU_IS_LOST, Code.RESET_REQUIRED})
_NO_ANSWER_FROM_ANY: Final = _NO_DRIVER | {Code.UNINITIALIZED, Code.LIB_RM_VERSION_MISMATCH}

_WITHOUT_THIS_FORM: Final = frozenset(
    {
        Code.NOT_SUPPORTED,
        Code.FUNCTION_NOT_FOUND,
        Code.ARGUMENT_VERSION_MISMATCH,
        Code.DEPRECATED,
    }
)
"""Of the device or the driver, for as long as it runs: another form of the call may work."""

_NOTHING_TO_TELL: Final = _WITHOUT_THIS_FORM | {
    Code.NO_PERMISSION,
    Code.NO_DATA,
    Code.VGPU_ECC_NOT_SUPPORTED,
    # Of a MIG instance that was removed, and of a wait for an event that did not come.
    Code.INVALID_ARGUMENT,
    Code.NOT_FOUND,
    Code.TIMEOUT,
}

_WHAT_TO_DO: Final = {
    Code.LIB_RM_VERSION_MISMATCH: (
        "the NVIDIA driver's library and its kernel module are of different versions, as after an "
        "upgrade: reload the module or reboot, then restart the agent"
    ),
    Code.NO_PERMISSION: (
        "the agent may not use the NVIDIA driver: it needs read and write access to "
        "/dev/nvidiactl and /dev/nvidia0, /dev/nvidia1 …"
    ),
    Code.DRIVER_NOT_LOADED: "the NVIDIA driver's kernel module is not loaded",
    Code.UNINITIALIZED: "the NVIDIA driver's library was shut down and is opened again",
}


class LostError(Exception):
    """The device fell off its bus, or needs a reset before it answers again."""


class NvmlLibrary:
    """The library, initialized. What it cannot say is None; unless expected, that is told once.

    `nvml` is the module pynvml, whose functions `ask` is given. `told` remembers what was told.
    """

    def __init__(self, told: set[tuple[str, str]]) -> None:
        """Loads and initializes it. Raises NoDriverError or DriverError."""
        # Without the driver, what pynvml costs (some MiB, and its import) is saved.
        _load()
        import pynvml  # noqa: PLC0415

        self.nvml: Final[Any] = pynvml
        self._told = told
        try:
            # A host whose devices are all gone still has a driver, and no devices.
            self.nvml.nvmlInitWithFlags(self.nvml.NVML_INIT_FLAG_NO_GPUS)
        except self.nvml.NVMLError as error:
            kind = NoDriverError if error.value in _NO_DRIVER else DriverError
            raise kind(_sentence(error)) from error

    def ask(self, function: Callable[..., T], *arguments: object) -> T | None:
        """What a function of pynvml returns; None where the device or the driver cannot say.

        Raises:
            LostError: the device that was asked about does not answer.
            DriverError: the driver answers nothing at all.
        """
        return self.ask_forms((function, arguments))

    def ask_forms(self, *forms: tuple[Callable[..., T], tuple[object, ...]]) -> T | None:
        """As `ask`, with each form of a call in turn, until the driver has one of them.

        One that the driver has and that fails is not made up for by the next, which may mean
        something else.
        """
        for function, arguments in forms:
            try:
                return function(*arguments)
            except UnicodeDecodeError as error:
                self.tell_once(function.__name__, str(error))
                return None
            except self.nvml.NVMLError as error:
                self._judge(function, error)
                if error.value not in _WITHOUT_THIS_FORM:
                    return None
        return None

    def do(self, function: Callable[..., None], *arguments: object) -> bool:
        """Whether the driver did something; raises as `ask` does."""
        try:
            function(*arguments)
        except self.nvml.NVMLError as error:
            self._judge(function, error)
            return False
        return True

    def must(self, function: Callable[..., T], *arguments: object) -> T:
        """As `ask`, of something without which nothing else can be said. Raises DriverError."""
        try:
            return function(*arguments)
        except self.nvml.NVMLError as error:
            raise DriverError(_sentence(error)) from error

    def release(self, function: Callable[..., None], *arguments: object) -> None:
        """Lets go of something, which a driver that is gone has let go of itself. Never raises."""
        with suppress(self.nvml.NVMLError):
            function(*arguments)

    def close(self) -> None:
        """Shuts it down; it stays in memory, as a library cannot be unloaded safely."""
        self.release(self.nvml.nvmlShutdown)

    def tell_once(self, function: str, detail: str) -> None:
        """Logs that something is unknown because of what this function answered."""
        if (function, detail) in self._told:
            return
        self._told.add((function, detail))
        text = "the NVIDIA driver does not say something about a GPU"
        _LOGGER.warning(text, extra={"function": function, "detail": detail})

    def _judge(self, function: Callable[..., object], error: Any) -> None:
        """Raises LostError or DriverError where the error means that; else tells of it."""
        if error.value in _LOST:
            raise LostError(str(error)) from error
        if error.value in _NO_ANSWER_FROM_ANY:
            raise DriverError(_sentence(error)) from error
        if error.value not in _NOTHING_TO_TELL:
            self.tell_once(function.__name__, str(error))


def _load() -> None:
    """Loads the library, which then is where pynvml looks for it. Raises NoDriverError.

    By libc's own function, as every thread of Python stands still while `ctypes.CDLL` loads a
    library, and what this one does then may take as long as the driver likes.
    """
    libc = ctypes.CDLL(None)
    # Both are looked up first: to look one up is what forgets the last error.
    load, last_error = libc.dlopen, libc.dlerror
    load.restype, last_error.restype = ctypes.c_void_p, ctypes.c_char_p
    if load(LIBRARY.encode(), os.RTLD_NOW) is None:
        detail = (last_error() or b"").decode(errors="replace")
        text = f"the NVIDIA driver's library cannot be loaded: {detail}"
        raise NoDriverError(text)


def _sentence(error: Any) -> str:
    known = _WHAT_TO_DO.get(error.value)
    return known or f"the NVIDIA driver does not answer: {error} (NVML code {error.value})"
