"""Loads that fail: at which moment, with which recorded words, with which exit status."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

# The recording whose wrapper ("Engine core initialization failed …") fits every engine failure.
ENGINE_FAILURE_RECORDING: Final = "fail-kv_cache_too_small"
_ENGINE_SOURCE: Final = "/opt/vllm/lib/python3.11/site-packages/vllm/v1/engine/core.py"


class Moment(StrEnum):
    """Where in the load a failure happens."""

    ARGUMENTS = "arguments"
    BIND = "bind"
    CONFIGURE = "configure"
    ENGINE_INIT = "engine_init"
    WEIGHTS = "weights"
    KV_CACHE = "kv_cache"


@dataclass(frozen=True, slots=True)
class Failure:
    """One failing load; `error` is the last line of its traceback where nothing was recorded."""

    moment: Moment
    error: str | None = None
    exit_status: int = 1


# Recorded failures have no `error`: their text is recordings/fail-<reason>.log.
FAILURES: Final = MappingProxyType(
    {
        "port_in_use": Failure(Moment.BIND),
        "model_not_found_offline": Failure(Moment.CONFIGURE),
        "context_too_long": Failure(Moment.CONFIGURE),
        "kv_cache_too_small": Failure(Moment.KV_CACHE),
        "bad_arguments": Failure(
            Moment.ARGUMENTS, "vllm: error: unrecognized arguments: --no-such-flag", exit_status=2
        ),
        "model_not_found": Failure(
            Moment.CONFIGURE,
            "ValueError: Invalid repository ID or local directory specified: '<model>'.",
        ),
        "hf_auth": Failure(
            Moment.CONFIGURE,
            "OSError: You are trying to access a gated repo. "
            "Make sure to have access to it. 401 Client Error.",
        ),
        "unsupported_model": Failure(
            Moment.CONFIGURE,
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig: "
            "Value error, Model architectures ['MadeUpForCausalLM'] are not supported for now.",
        ),
        "gpu_unavailable": Failure(Moment.CONFIGURE, "RuntimeError: Failed to infer device type"),
        "gpu_memory_taken": Failure(
            Moment.ENGINE_INIT,
            "ValueError: Free memory on device cuda:0 (3.12/79.25 GiB) on startup is less than "
            "desired GPU memory utilization (0.92, 72.91 GiB). Decrease GPU memory utilization "
            "or reduce GPU memory used by other processes.",
        ),
        "nccl": Failure(
            Moment.ENGINE_INIT,
            "RuntimeError: NCCL error: unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
        ),
        "disk_full": Failure(Moment.WEIGHTS, "OSError: [Errno 28] No space left on device"),
        "gpu_oom": Failure(
            Moment.WEIGHTS,
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a "
            "total capacity of 79.25 GiB of which 812.44 MiB is free.",
        ),
    }
)


def engine_traceback(error: str) -> list[str]:
    """What EngineCore logs before it exits, when only the last line is known."""
    return [
        "EngineCore failed to start.",
        "Traceback (most recent call last):",
        f'  File "{_ENGINE_SOURCE}", line 1482, in run_engine_core',
        "    engine_core = EngineCoreProc(*args, engine_index=dp_rank, **kwargs)",
        error,
    ]
