"""The errors by which a vLLM tells why it failed: one table of patterns, each with its reason.

They are those of vLLM, torch, huggingface_hub, transformers, and of what these are built on.
"""

from __future__ import annotations

from typing import Final

from vllm_agent.host.failure_cause import Cause, Pattern, Rank
from vllm_agent.lifecycle.reasons import Reason


def _specific(reason: Reason, name: str) -> Cause:
    return Cause(reason, name, Rank.SPECIFIC)


def _general(reason: Reason, name: str) -> Cause:
    return Cause(reason, name, Rank.GENERAL)


def _of_gpu(*faults: str) -> tuple[str, ...]:
    return tuple(f"{platform} error: {fault}" for platform in ("CUDA", "HIP") for fault in faults)


_ANY: Final = ("",)
_FOLDER_OR_HUB: Final = "neither a folder nor a model on the Hub"
_FEWER_GPUS: Final = "fewer GPUs than it is to use"

_MEMORY: Final = (
    Pattern(
        _specific(Reason.GPU_OOM, "the GPU is out of memory"),
        (
            "CUDA out of memory", "HIP out of memory", "XPU out of memory",
            "CUDA driver error: out of memory", *_of_gpu("out of memory"),
        ),
    ),
    Pattern(
        _specific(Reason.GPU_OOM, "the GPU is out of memory"), ("Allocation on device",),
        errors=("torch.OutOfMemoryError", "torch.cuda.OutOfMemoryError"),
    ),
    Pattern(
        _specific(Reason.GPU_OOM, "the model does not fit into the GPU"),
        ("Failed to load model - not enough GPU memory",), "", "0.13.0", is_logged=True,
    ),
    Pattern(
        _general(Reason.GPU_OOM, "cuBLAS got no memory"), _of_gpu("CUBLAS_STATUS_ALLOC_FAILED")
    ),
    Pattern(
        _specific(Reason.GPU_MEMORY_TAKEN, "less GPU memory was free at its start than it may use"),
        ("Free memory on device ",), " on startup is less than ", "0.11.0",
    ),
    Pattern(
        _general(Reason.GPU_MEMORY_TAKEN, "others' GPU memory changed while it was measured"),
        ("Error in memory profiling. Initial free memory ",), "", "0.11.0",
    ),
    Pattern(
        _specific(Reason.KV_CACHE_TOO_SMALL, "no memory is left for the KV cache"),
        ("No available memory for the cache blocks",), "", "0.11.0",
    ),
    # "the models's max seq len" up to 0.15.
    Pattern(
        _specific(Reason.KV_CACHE_TOO_SMALL, "the KV cache is too small for one request"),
        ("To serve at least one request with the model",), " KV cache is needed",
        "0.11.0",
    ),
    Pattern(
        _specific(Reason.KV_CACHE_TOO_SMALL, "the KV cache is too small for one token"),
        ("Cannot auto-fit max_model_len: not enough GPU memory",), "", "0.15.1",
    ),
    Pattern(
        _specific(Reason.KV_CACHE_TOO_SMALL, "less memory is free than the KV cache is to have"),
        ("Available memory on node ",),
        " on kv cache allocation is less than requested memory for kv", "0.20.2",
    ),
    Pattern(
        _specific(Reason.HOST_OOM, "less memory was free at its start than it may use"),
        ("Available memory on node ",),
        " on startup is less than desired CPU memory utilization", "0.20.2",
    ),
    Pattern(
        _specific(Reason.HOST_OOM, "the host is out of memory"),
        ("[enforce fail at alloc_cpu.cpp",), "DefaultCPUAllocator: can't allocate memory",
    ),
    Pattern(
        _specific(Reason.HOST_OOM, "Ray ended it, for the host is out of memory"), _ANY,
        errors=("ray.exceptions.OutOfMemoryError",),
    ),
    # These may be about a limit, or the input of one request.
    Pattern(
        _general(Reason.HOST_OOM, "the host gave no memory"), ("[Errno 12] Cannot allocate memory",)
    ),
    Pattern(
        _general(Reason.HOST_OOM, "Python got no memory"), _ANY,
        errors=("MemoryError", "_ArrayMemoryError"),
    ),
)  # fmt: skip

_GPU: Final = (
    Pattern(
        _specific(Reason.GPU_FAULT, "illegal memory access"),
        ("Memory access fault by GPU node-", *_of_gpu("an illegal memory access was encountered")),
        is_bare=True,
    ),
    Pattern(
        _specific(Reason.GPU_FAULT, "device-side assert"), _of_gpu("device-side assert triggered")
    ),
    Pattern(
        _specific(Reason.GPU_FAULT, "uncorrectable ECC error"),
        _of_gpu("uncorrectable ECC error encountered"),
    ),
    Pattern(
        _specific(Reason.GPU_FAULT, "a kernel failed on the GPU"),
        _of_gpu(
            "unspecified launch failure", "misaligned address",
            "an illegal instruction was encountered", "the launch timed out and was terminated",
        ),
    ),
    Pattern(
        _specific(Reason.GPU_UNAVAILABLE, "no usable GPU"),
        (
            "No CUDA GPUs are available", "No HIP GPUs are available",
            "Found no NVIDIA driver on your system", "The NVIDIA driver on your system is too old",
            "Unexpected error from cudaGetDeviceCount()", "CUDA driver initialization failed",
            "CUDA unknown error - this may be due to an incorrectly set up environment",
            "libcuda.so.1: cannot open shared object file",
            *_of_gpu(
                "no CUDA-capable device is detected", "no ROCm-capable device is detected",
                "CUDA-capable device(s) is/are busy or unavailable", "invalid device function",
                "CUDA driver version is insufficient for CUDA runtime version",
                "no kernel image is available for execution on the device",
                "system not yet initialized",
            ),
        ),
    ),
    Pattern(
        _specific(Reason.GPU_UNAVAILABLE, "no driver of the GPU"), _ANY,
        errors=("NVMLError_LibraryNotFound", "NVMLError_DriverNotLoaded"),
    ),
    Pattern(
        _specific(Reason.GPU_UNAVAILABLE, "no device that it can use"),
        ("Failed to infer device type",), "", "0.11.0",
    ),
    Pattern(
        _specific(Reason.GPU_UNAVAILABLE, _FEWER_GPUS), _of_gpu("invalid device ordinal")
    ),
    Pattern(
        _specific(Reason.GPU_UNAVAILABLE, _FEWER_GPUS), ("World size (",),
        " is larger than the number of available GPUs", "0.13.0",
    ),
    Pattern(
        _specific(Reason.GPU_UNAVAILABLE, _FEWER_GPUS), ("DP adjusted local rank ",),
        " is out of bounds", "0.13.0",
    ),
    # All of NCCL is general: where one GPU fails, the others tell only that they miss it.
    Pattern(_general(Reason.NCCL, "NCCL error"), ("NCCL error: ",), "", "0.11.0"),
    Pattern(
        _general(Reason.NCCL, "NCCL error"), _ANY,
        errors=(
            "DistBackendError", "ncclInternalError", "ncclRemoteError", "ncclSystemError",
            "ncclUnhandledCudaError",
        ),
    ),
    Pattern(
        _general(Reason.NCCL, "a collective operation timed out"),
        ("Watchdog caught collective operation timeout: WorkNCCL(",),
    ),
    Pattern(
        _general(Reason.NCCL, "not every rank came to the meeting point"), ("Timed out after ",),
        " seconds waiting for clients.", errors=("DistStoreError",),
    ),
    Pattern(
        _general(Reason.NCCL, "the meeting point of the ranks was not reached"),
        ("The client socket has timed out", "The client socket has failed to connect"),
        errors=("DistNetworkError",),
    ),
)  # fmt: skip

_MODEL: Final = (
    Pattern(
        _specific(Reason.CONTEXT_TOO_LONG, "max_model_len is greater than the model allows"),
        ("User-specified max_model_len (",), " is greater than the derived max_model_len",
        "0.11.0",
    ),
    # The Hub says 401 for a model that is missing, and for a private one.
    Pattern(
        _specific(Reason.MODEL_NOT_FOUND, "the Hub does not know the model"), _ANY,
        errors=("RepositoryNotFoundError", "RevisionNotFoundError"),
    ),
    Pattern(
        _specific(Reason.MODEL_NOT_FOUND, _FOLDER_OR_HUB), _ANY, errors=("HFValidationError",)
    ),
    Pattern(
        _specific(Reason.MODEL_NOT_FOUND, _FOLDER_OR_HUB), ("Repo id must ",), errors=("OSError",)
    ),
    Pattern(
        _specific(Reason.MODEL_NOT_FOUND, _FOLDER_OR_HUB), _ANY,
        " is not a local folder and is not a valid model identifier", errors=("OSError",),
    ),
    # vLLM says this of whatever went wrong before.
    Pattern(
        _general(Reason.MODEL_NOT_FOUND, _FOLDER_OR_HUB),
        ("Invalid repository ID or local directory specified",), "", "0.11.0",
    ),
    Pattern(
        _general(Reason.MODEL_NOT_FOUND, "the model has no config.json"),
        ("Could not detect config format for no config file found",), "", "0.11.0",
    ),
    Pattern(
        _general(Reason.MODEL_NOT_FOUND, "the model lacks a file"), _ANY,
        " does not appear to have ", errors=("OSError",),
    ),
    Pattern(
        _general(Reason.MODEL_NOT_FOUND, "the model has no weights"), ("Cannot find any ",),
        "model weights with `", "0.11.0",
    ),
    Pattern(
        _general(Reason.MODEL_NOT_FOUND, "the model lacks weights"),
        ("Weight files referenced in index but missing",), "", "0.28.0",
    ),
    Pattern(
        _specific(Reason.UNSUPPORTED_MODEL, "the architecture is not supported"),
        ("Model architecture",), " not supported ", "0.11.0",
    ),
    Pattern(
        _general(Reason.UNSUPPORTED_MODEL, "the architecture could not be inspected"),
        ("Model architectures ",), " failed to be inspected", "0.11.0",
    ),
    Pattern(
        _specific(Reason.UNSUPPORTED_MODEL, "the architecture is not compatible with vLLM"),
        ("The Transformers implementation of ",), " is not compatible with vLLM",
        "0.11.0",
    ),
    Pattern(
        _specific(Reason.UNSUPPORTED_MODEL, "transformers does not know the architecture"),
        ("The checkpoint you are trying to load has model type ",),
    ),
    Pattern(
        _specific(Reason.UNSUPPORTED_MODEL, "the model brings its own code"),
        ("Failed to load the model config. If the model is a custom model",), "",
        "0.11.0",
    ),
    Pattern(
        _specific(Reason.UNSUPPORTED_MODEL, "the model brings its own code"), ("The repository ",),
        " contains custom code which must be executed",
    ),
    Pattern(
        _specific(Reason.UNSUPPORTED_MODEL, "the quantization method is unknown"),
        ("Unknown quantization method",), "", "0.11.0",
    ),
    Pattern(
        _specific(Reason.UNSUPPORTED_MODEL, "the GPU does not support the quantization method"),
        ("The quantization method ",), " is not supported for the current GPU", "0.11.0",
    ),
)  # fmt: skip

_HUB: Final = (
    Pattern(
        _specific(Reason.AIRGAPPED, "downloads are off"), _ANY, errors=("OfflineModeIsEnabled",)
    ),
    Pattern(
        _specific(Reason.AIRGAPPED, "not in the cache, and downloads are off"), _ANY,
        "outgoing traffic has been disabled", errors=("LocalEntryNotFoundError",),
    ),
    Pattern(
        _specific(Reason.HF_AUTH, "the model is gated"), _ANY, errors=("GatedRepoError",)
    ),
    Pattern(
        _specific(Reason.HF_AUTH, "the model is gated"), ("You are trying to access a gated repo",),
        errors=("OSError",),
    ),
    Pattern(
        _specific(Reason.HF_AUTH, "the Hub has disabled the model"), _ANY,
        errors=("DisabledRepoError",),
    ),
    # The words of huggingface_hub since 1.0, those for some codes, and those of older ones; then
    # the same from the HTTP client, which may be another's.
    *(
        Pattern(cause(reason, f"the Hub says {code}"), begins, errors=errors)
        for cause, errors in (
            (_specific, ("HfHubHTTPError",)),
            (_general, ("HTTPStatusError", "requests.exceptions.HTTPError")),
        )
        for reason, code, begins in (
            (Reason.HF_AUTH, "401", ("Client error '401 ", "401 ")),
            (Reason.HF_AUTH, "403", ("Client error '403 ", "403 ")),
            (Reason.HF_NETWORK, "429", ("Client error '429 ", "429 ")),
            (Reason.HF_NETWORK, "5xx", ("Server error '5", "500 ", "502 ", "503 ", "504 ")),
        )
    ),
    Pattern(
        _general(Reason.HF_NETWORK, "not in the cache, and the Hub was not reached"), _ANY,
        errors=("LocalEntryNotFoundError",),
    ),
    Pattern(
        _general(Reason.HF_NETWORK, "the Hub was not reached"), _ANY,
        errors=(
            "ConnectError", "ConnectTimeout", "MaxRetryError", "NewConnectionError", "ProxyError",
            "ReadTimeout", "requests.exceptions.ConnectionError", "requests.exceptions.SSLError",
        ),
    ),
    Pattern(
        _general(Reason.HF_NETWORK, "the Hub was not reached"),
        ("We couldn't connect to '", "There was a specific connection error when "),
        errors=("OSError",),
    ),
    Pattern(
        _specific(Reason.DISK_FULL, "no space left on device"),
        ("[Errno 28] No space left on device", "[Errno 122] Disk quota exceeded"),
    ),
    Pattern(
        _specific(Reason.DISK_FULL, "no space left on device"), _ANY,
        "No space left on device (os error 28)",
    ),
    Pattern(
        _general(Reason.HF_NETWORK, "a download failed"), ("Data processing error: ",),
        errors=("RuntimeError",),
    ),
)  # fmt: skip

_COMMAND: Final = (
    # Sockets between its own processes are told of in other words.
    Pattern(
        _specific(Reason.PORT_IN_USE, "address already in use"),
        (
            "[Errno 98] Address already in use",
            "[Errno 98] error while attempting to bind on address",
        ),
        is_logged=True,
    ),
    Pattern(
        _specific(Reason.BAD_ARGUMENTS, "vLLM does not take its arguments"),
        (
            "vllm: error: ", "vllm serve: error: ", "api_server.py: error: ", "entry.py: error: ",
            "main.py: error: ", "main.py serve: error: ",
        ),
        is_bare=True,
    ),
    Pattern(
        _specific(Reason.BAD_ARGUMENTS, "VLLM_PORT is a URI"), ("VLLM_PORT '",),
        " appears to be a URI", "0.11.0",
    ),
    Pattern(
        _specific(Reason.BAD_ARGUMENTS, "its heads cannot be shared among so many GPUs"),
        ("Total number of attention heads (",), " must be divisible by tensor parallel size",
        "0.11.0",
    ),
    Pattern(
        _specific(Reason.BAD_ARGUMENTS, "the GPU has no bfloat16"),
        ("Bfloat16 is only supported on GPUs with compute capability",), "", "0.11.0",
    ),
    Pattern(
        _specific(Reason.BAD_ARGUMENTS, "invalid data-parallel options"),
        ("Invalid data-parallel launch options: ",), "", "0.28.0",
    ),
    Pattern(
        _specific(Reason.BAD_ARGUMENTS, "the engines have different options"),
        ("Configuration mismatch detected for engine ",), "", "0.13.0",
    ),
    # The next line says what is wrong, and need not be about an argument at all.
    Pattern(
        Cause(Reason.BAD_ARGUMENTS, "invalid configuration", Rank.WRAPPER), _ANY, "Config",
        errors=("ValidationError",),
    ),
    Pattern(
        _general(Reason.ENGINE_STALLED, "a worker did not answer"), ("RPC call to ",),
        " timed out.", "0.11.0",
    ),
    Pattern(
        _general(Reason.LOAD_STALLED, "vLLM gave up waiting for its engines"),
        ("Timed out waiting for engine",), "", "0.11.0",
    ),
    Pattern(
        _general(Reason.LOAD_STALLED, "an engine gave up waiting for the API server"),
        ("Did not receive response from front-end process within ",), "", "0.11.0",
    ),
    # No other signal: a Ctrl-C during a load makes vLLM tell that its engine was ended by that one.
    Pattern(
        Cause(Reason.ENGINE_DIED, "its engine was killed by SIGKILL", Rank.WRAPPER),
        ("Engine core initialization failed. See root cause above. Failed core proc(s): {",),
        "': -9", "0.11.0",
    ),
)  # fmt: skip

PATTERNS: Final = (*_MEMORY, *_GPU, *_MODEL, *_HUB, *_COMMAND)
"""In the order in which they are tried. Not among them, for a server goes on or stops normally:
`port 8000 is used by process …`, `Too many open files` in the warning on ulimits, `EADDRINUSE` and
`Address already in use (addr=` of torch and ZeroMQ, `404 Client Error` of an optional file."""

START_REASONS: Final = frozenset(
    {
        Reason.AIRGAPPED, Reason.BAD_ARGUMENTS, Reason.CONTEXT_TOO_LONG, Reason.GPU_MEMORY_TAKEN,
        Reason.GPU_UNAVAILABLE, Reason.HF_AUTH, Reason.HF_NETWORK, Reason.KV_CACHE_TOO_SMALL,
        Reason.LOAD_STALLED, Reason.MODEL_NOT_FOUND, Reason.PORT_IN_USE, Reason.UNSUPPORTED_MODEL,
    }
)  # fmt: skip
"""For these a server never begins to serve. In the log of one that has served, such a line is about
something else: a request's image that answers 403, an adapter that is not there."""
