"""A program that holds memory of the first GPU, and makes a kernel of it fail, as its input says.

It speaks to the CUDA driver itself, so that nothing needs to be installed. A line of input is
"allocate BYTES" or "fault"; each is answered by a line when done, and so is the start.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Final

NO_CUDA: Final = 3
"""The exit status where the CUDA driver or a device that it can use is missing."""

_WRITES_TO_NOWHERE: Final = b"""
.version 6.3
.target sm_75
.address_size 64
.visible .entry fault()
{
    .reg .u64 %address;
    .reg .u32 %value;
    mov.u64 %address, 16;
    mov.u32 %value, 1;
    st.global.u32 [%address], %value;
    ret;
}
"""


class Cuda:
    """The primary context of the first device."""

    def __init__(self) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._must("cuInit", 0)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._must("cuDeviceGet", ctypes.byref(device), 0)
        self._must("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._must("cuCtxSetCurrent", context)

    def allocate(self, size_bytes: int) -> None:
        """Takes memory until the program ends."""
        address = ctypes.c_uint64()
        self._must("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size_bytes))

    def fault(self) -> None:
        """Runs a kernel that writes where nothing is; the driver reports an XID for it."""
        module, kernel = ctypes.c_void_p(), ctypes.c_void_p()
        self._must("cuModuleLoadData", ctypes.byref(module), _WRITES_TO_NOWHERE)
        self._must("cuModuleGetFunction", ctypes.byref(kernel), module, b"fault")
        one, none = ctypes.c_uint(1), ctypes.c_void_p()
        shape = (one, one, one, one, one, one)
        self._must("cuLaunchKernel", kernel, *shape, ctypes.c_uint(0), none, none, none)
        if self._driver.cuCtxSynchronize() == 0:
            sys.exit("the kernel did not fail")

    def _must(self, function: str, *arguments: object) -> None:
        code = getattr(self._driver, function)(*arguments)
        if code != 0:
            text = f"{function} returned {code}"
            raise OSError(text)


def main() -> None:
    """Does what the input says."""
    try:
        cuda = Cuda()
    except OSError as error:
        print(error, file=sys.stderr)
        sys.exit(NO_CUDA)
    print("ready", flush=True)
    for line in sys.stdin:
        word, *numbers = line.split()
        if word == "allocate":
            cuda.allocate(int(numbers[0]))
        else:
            cuda.fault()
        print("done", flush=True)


if __name__ == "__main__":
    main()
