"""What breaks an engine that serves, in the words of PyTorch and vLLM."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vllm_agent.demo.standin.log import Log

_EXECUTOR_SOURCE: Final = (
    "/opt/vllm/lib/python3.11/site-packages/vllm/v1/executor/multiproc_executor.py"
)
_ENGINE_SOURCE: Final = "/opt/vllm/lib/python3.11/site-packages/vllm/v1/engine/core.py"


@dataclass(frozen=True, slots=True)
class ServingFailure:
    """The last lines of the traceback; or, with a signal, bare lines that go before it."""

    lines: tuple[str, ...]
    signum: signal.Signals | None = None

    @property
    def message(self) -> str:
        """The error without its type, as vLLM passes it on."""
        return "\n".join(self.lines).partition(": ")[2]


SERVING_FAILURES: Final = MappingProxyType(
    {
        "gpu_fault": ServingFailure(
            (
                "torch.AcceleratorError: CUDA error: an illegal memory access was encountered",
                (
                    "Search for `cudaErrorIllegalAddress' in https://docs.nvidia.com/cuda/"
                    "cuda-runtime-api/group__CUDART__TYPES.html for more information."
                ),
                (
                    "CUDA kernel errors might be asynchronously reported at some other API call, "
                    "so the stacktrace below might be incorrect."
                ),
                "For debugging consider passing CUDA_LAUNCH_BLOCKING=1",
                "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.",
            )
        ),
        "gpu_oom": ServingFailure(
            (
                (
                    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 "
                    "has a total capacity of 79.25 GiB of which 1.12 GiB is free. Process 4711 has "
                    "78.12 GiB memory in use. Of the allocated memory 76.40 GiB is allocated by "
                    "PyTorch, and 214.63 MiB is reserved by PyTorch but unallocated."
                ),
            )
        ),
        "nccl": ServingFailure(
            (
                (
                    "[rank0]:[E1123 09:15:01.123456789 ProcessGroupNCCL.cpp:693] [Rank 0] Watchdog "
                    "caught collective operation timeout: WorkNCCL(SeqNum=1845, OpType=ALLREDUCE, "
                    "NumelIn=8192, NumelOut=8192, Timeout(ms)=600000) ran for 600029 milliseconds "
                    "before timing out."
                ),
                "terminate called after throwing an instance of 'c10::DistBackendError'",
            ),
            signal.SIGABRT,
        ),
    }
)


def log_of_worker(failure: ServingFailure, log: Log) -> None:
    """What a worker prints of a step that failed; it lives on."""
    for line in (
        "WorkerProc hit an exception.",
        "Traceback (most recent call last):",
        f'  File "{_EXECUTOR_SOURCE}", line 1055, in _execute_worker_rpc',
        "    output = func(*args, **kwargs)",
        "             ^^^^^^^^^^^^^^^^^^^^^",
        *failure.lines,
    ):
        log.record("ERROR", "multiproc_executor.py:1063", line)


def engine_traceback_of(failure: ServingFailure, *, has_workers: bool) -> tuple[str, ...]:
    """The traceback of EngineCore, which has the error of a worker at second hand."""
    last = failure.lines
    if has_workers:
        text = f"RuntimeError: Worker failed with error '{failure.message}', please check the "
        last = tuple(f"{text}stack trace above for the root cause".splitlines())
    return (
        "Traceback (most recent call last):",
        f'  File "{_ENGINE_SOURCE}", line 1496, in run_engine_core',
        "    engine_core.run_busy_loop()",
        *last,
    )


def log_of_engine(traceback: tuple[str, ...], log: Log) -> None:
    """What EngineCore logs when a step failed."""
    log.record(
        "ERROR",
        "dump_input.py:72",
        "Dumping input data for V1 LLM engine (v0.32.0) with config: model='/models/model', ",
    )
    for line in ("EngineCore encountered a fatal error.", *traceback):
        log.record("ERROR", "core.py:1512", line)
