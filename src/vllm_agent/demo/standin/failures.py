"""Loads that fail: at which moment, with which recorded words, with which exit status."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

# The recording whose wrapper ("Engine core initialization failed …") fits every engine failure.
ENGINE_FAILURE_RECORDING: Final = "fail-kv_cache_too_small"
_ENGINE_SOURCE: Final = "/opt/vllm/lib/python3.11/site-packages/vllm/v1/engine/core.py"
_SAVING_MEMORY: Final = (
    "See https://docs.vllm.ai/en/latest/configuration/conserving_memory/ for more details."
)


class Moment(StrEnum):
    """Where in the load a failure happens."""

    ARGUMENTS = "arguments"
    BIND = "bind"
    FETCH_CONFIG = "fetch_config"
    CONFIGURE = "configure"
    ENGINE_INIT = "engine_init"
    WEIGHTS = "weights"
    KV_CACHE = "kv_cache"


@dataclass(frozen=True, slots=True)
class Failure:
    """One failing load. `error` ends its traceback where nothing was recorded.

    `reason` is the reason that a monitor should give, where its name is another.
    """

    moment: Moment
    error: str | None = None
    exit_status: int = 1
    reason: str = ""


# Recorded failures have no `error`: their text is recordings/fail-<name>.log.
FAILURES: Final = MappingProxyType(
    {
        "bad_arguments": Failure(Moment.ARGUMENTS, exit_status=2),
        "port_in_use": Failure(Moment.BIND),
        "model_not_found": Failure(Moment.FETCH_CONFIG),
        "folder_missing": Failure(Moment.FETCH_CONFIG, reason="model_not_found"),
        "hf_auth": Failure(Moment.FETCH_CONFIG),
        "hf_network": Failure(Moment.FETCH_CONFIG),
        "hf_rate_limited": Failure(Moment.FETCH_CONFIG, reason="hf_network"),
        "airgapped": Failure(Moment.FETCH_CONFIG),
        "context_too_long": Failure(Moment.CONFIGURE),
        "unsupported_model": Failure(
            Moment.CONFIGURE,
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
            "  Value error, Model architectures ['MadeUpForCausalLM'] are not supported for now.",
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
        "kv_cache_too_small": Failure(Moment.KV_CACHE),
        "kv_cache_none": Failure(
            Moment.KV_CACHE,
            "ValueError: No available memory for the cache blocks. Try increasing "
            "`gpu_memory_utilization` when initializing the engine (this flag also controls CPU "
            f"memory reservation on the CPU backend, despite its name). {_SAVING_MEMORY}",
            reason="kv_cache_too_small",
        ),
        "kv_cache_one_request": Failure(
            Moment.KV_CACHE,
            "ValueError: To serve at least one request with the model's max seq len (131072), "
            "(16.0 GiB KV cache is needed, which is larger than the available KV cache memory "
            "(9.53 GiB). Based on the available memory, the estimated maximum model length is "
            "78064. Try increasing `gpu_memory_utilization` (which also controls CPU memory on "
            "the CPU backend) or decreasing `max_model_len` when initializing the engine. "
            f"{_SAVING_MEMORY}",
            reason="kv_cache_too_small",
        ),
    }
)


def reason_of(name: str) -> str:
    """The reason that a monitor should give for this failure."""
    return FAILURES[name].reason or name


def engine_traceback(error: str) -> list[str]:
    """What EngineCore logs before it exits, when only the last line is known."""
    return [
        "EngineCore failed to start.",
        "Traceback (most recent call last):",
        f'  File "{_ENGINE_SOURCE}", line 1482, in run_engine_core',
        "    engine_core = EngineCoreProc(*args, engine_index=dp_rank, **kwargs)",
        *error.splitlines(),
    ]
