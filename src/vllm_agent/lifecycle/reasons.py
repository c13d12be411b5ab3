"""Why a server failed or crashed: a closed set, with what each means and what to do about it.

This is the one place that declares a reason; labels, log, API, CLI and docs read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Reason(StrEnum):
    """The reason of a failure or an ending. Closed: these are label values."""

    ENGINE_DIED = "engine_died"
    API_SERVER_DIED = "api_server_died"
    EXIT_NONZERO = "exit_nonzero"
    SIGNAL = "signal"
    HOST_OOM = "host_oom"
    GPU_OOM = "gpu_oom"
    GPU_MEMORY_TAKEN = "gpu_memory_taken"
    KV_CACHE_TOO_SMALL = "kv_cache_too_small"
    CONTEXT_TOO_LONG = "context_too_long"
    GPU_FAULT = "gpu_fault"
    GPU_UNAVAILABLE = "gpu_unavailable"
    NCCL = "nccl"
    MODEL_NOT_FOUND = "model_not_found"
    HF_AUTH = "hf_auth"
    HF_NETWORK = "hf_network"
    DISK_FULL = "disk_full"
    AIRGAPPED = "airgapped"
    UNSUPPORTED_MODEL = "unsupported_model"
    BAD_ARGUMENTS = "bad_arguments"
    PORT_IN_USE = "port_in_use"
    LOAD_STALLED = "load_stalled"
    UNHEALTHY = "unhealthy"
    UNRESPONSIVE = "unresponsive"
    UNREACHABLE = "unreachable"
    MODEL_MISSING = "model_missing"
    ENGINE_STALLED = "engine_stalled"
    SPAWN_FAILED = "spawn_failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ReasonText:
    """What a reason means and what an operator does about it, one sentence each.

    `specific` is advice with `Facts` in braces: the first of which all are known takes the place of
    `advice`. Of a server that the agent manages `managed` comes before, in its configuration's
    words.
    """

    meaning: str
    advice: str
    specific: tuple[str, ...] = ()
    managed: tuple[str, ...] = ()


_LOG: Final = "Read the server's own log from its last start on"
_KEPT_LOG: Final = (
    "Run 'vllm-agent history --log {logged}' on its host for the last lines of its log"
)
_XIDS: Final = "NVIDIA's catalogue (https://docs.nvidia.com/deploy/xid-errors)"

REASON_TEXT: Final = MappingProxyType(
    {
        Reason.ENGINE_DIED: ReasonText(
            "The engine or one of its workers ended while the API server was still there.",
            f"{_LOG}; the first traceback of EngineCore or a worker names the cause.",
            specific=(
                f"{_KEPT_LOG}; the first traceback of EngineCore or a worker names the cause.",
            ),
        ),
        Reason.API_SERVER_DIED: ReasonText(
            "One of several API server processes ended first.",
            f"{_LOG}; look for a traceback of that API server and for the kernel's OOM killer.",
            specific=(f"{_KEPT_LOG}; look for a traceback of that API server.",),
        ),
        Reason.EXIT_NONZERO: ReasonText(
            "The main process ended with a status other than 0.",
            f"{_LOG}; its first error most often names the cause.",
            specific=(f"{_KEPT_LOG}; if they point to an earlier error, its whole log has that.",),
        ),
        Reason.SIGNAL: ReasonText(
            "The main process was ended by a signal that is no request to stop.",
            "Find who sent it: the kernel's OOM killer (dmesg), a supervisor, or a person; "
            "'vllm-agent gpus' shows whether its workers still hold a GPU.",
        ),
        Reason.HOST_OOM: ReasonText(
            "The host ran out of memory: the OOM killer ended a process, or one was given no more.",
            "Give its cgroup or host more memory, or lower swap space and --max-model-len.",
        ),
        Reason.GPU_OOM: ReasonText(
            "The GPU ran out of memory.",
            "Lower --gpu-memory-utilization, --max-model-len or --max-num-seqs, "
            "or spread the model over more GPUs.",
            managed=(
                (
                    "Lower managed.gpu_memory_utilization, or --max-model-len or --max-num-seqs in "
                    "managed.args, or raise managed.tensor_parallel_size."
                ),
            ),
        ),
        Reason.GPU_MEMORY_TAKEN: ReasonText(
            "Somebody else held the GPU memory that the server wanted at its start.",
            "End who holds it (often an orphan: see 'vllm-agent gpus'), then start again.",
            specific=(
                "GPU memory is held by {holder}: end that, or lower --gpu-memory-utilization.",
            ),
            managed=(
                (
                    "GPU memory is held by {holder}: end that, or lower "
                    "managed.gpu_memory_utilization."
                ),
                (
                    "End who holds GPU memory (see 'vllm-agent gpus'), or lower "
                    "managed.gpu_memory_utilization."
                ),
            ),
        ),
        Reason.KV_CACHE_TOO_SMALL: ReasonText(
            "After loading the model too little memory was left for the KV cache.",
            "Lower --max-model-len (the log says what fits) or raise --gpu-memory-utilization.",
            managed=(
                (
                    "Lower --max-model-len in managed.args (the log says what fits) or raise "
                    "managed.gpu_memory_utilization."
                ),
            ),
        ),
        Reason.CONTEXT_TOO_LONG: ReasonText(
            "--max-model-len is larger than the model allows.",
            "Lower --max-model-len to what the model's configuration states.",
            specific=(
                "Lower --max-model-len to what config.json at {page} states.",
                "Lower --max-model-len to what {folder}/config.json states.",
            ),
        ),
        Reason.GPU_FAULT: ReasonText(
            "A GPU that it held had a fault: the driver told an XID, or lost the device.",
            "If 'vllm-agent history' names an XID, look it up in NVIDIA's catalogue, else read the "
            "first error of the server's own log; drain the host if it comes back.",
            specific=(f"Look up XID {{xid}} in {_XIDS}; drain the host if it comes back.",),
        ),
        Reason.GPU_UNAVAILABLE: ReasonText(
            "No usable GPU was found.",
            "Check the driver with nvidia-smi or rocm-smi, and what the container may see.",
            managed=(
                (
                    "Check with nvidia-smi or rocm-smi that managed.user sees as many GPUs as "
                    "managed.tensor_parallel_size and managed.pipeline_parallel_size ask for."
                ),
            ),
        ),
        Reason.NCCL: ReasonText(
            "Communication between the GPUs failed.",
            "Check that all ranks are alive, then start again with NCCL_DEBUG=INFO.",
        ),
        Reason.MODEL_NOT_FOUND: ReasonText(
            "The model is neither on the Hub nor a local folder.",
            "Check the spelling of the model name or path.",
            specific=(
                "Check that {page} exists, or it is private: set HF_TOKEN.",
                "{folder} is not there, holds no model, or the server's user may not read it.",
            ),
            managed=(
                (
                    "Check that {page} exists, or it is private: set HF_TOKEN for the agent or in "
                    "managed.env."
                ),
                "{folder} is not there, holds no model, or managed.user may not read it.",
            ),
        ),
        Reason.HF_AUTH: ReasonText(
            "The Hub refused access to the model.",
            "Set HF_TOKEN to a token of an account that has accepted the model's terms.",
            specific=("Accept the terms at {page} and set HF_TOKEN to a token of that account.",),
            managed=(
                (
                    "Accept the terms at {page} and set HF_TOKEN to a token of that account, for "
                    "the agent or in managed.env."
                ),
            ),
        ),
        Reason.HF_NETWORK: ReasonText(
            "The Hub could not be reached.",
            "Check the network and proxy, or download the model first and set HF_HUB_OFFLINE=1.",
            specific=(
                "Check the network and proxy, or run '{download}' elsewhere and copy its HF_HOME.",
            ),
            managed=(
                (
                    "Check the network and proxy, or run '{download}' elsewhere, copy its HF_HOME "
                    "and set managed.airgapped."
                ),
            ),
        ),
        Reason.DISK_FULL: ReasonText(
            "The disk is full.",
            "Free space where the model cache lies, or point HF_HOME elsewhere.",
            managed=(
                (
                    "Free space on the disk that is named: of the logs in --state.dir, or of the "
                    "model cache (HF_HOME in managed.env)."
                ),
            ),
        ),
        Reason.AIRGAPPED: ReasonText(
            "The model is not complete in the local cache and downloads are off.",
            "Copy the model into the cache of this host: below HF_HOME of the server.",
            specific=(
                "Run '{download}' on a host with a network, then copy its HF_HOME to the server's.",
            ),
            managed=(
                (
                    "Run '{download}' on a host with a network and copy its HF_HOME to the "
                    "server's, or set managed.airgapped: false."
                ),
                ("Copy the model to {folder} in full, where managed.user may read it."),
            ),
        ),
        Reason.UNSUPPORTED_MODEL: ReasonText(
            "This vLLM does not support the model's architecture.",
            "Use a newer vLLM, or --trust-remote-code where the model brings its own code.",
            specific=("See at {page} which vLLM it needs, and whether --trust-remote-code.",),
            managed=(
                (
                    "See at {page} which vLLM it needs, and whether --trust-remote-code in "
                    "managed.args."
                ),
            ),
        ),
        Reason.BAD_ARGUMENTS: ReasonText(
            "vLLM rejected its command line.",
            "Compare the arguments with `vllm serve --help` of the installed version.",
            specific=(f"{_KEPT_LOG}, and compare its arguments with `vllm serve --help`.",),
            managed=(
                f"{_KEPT_LOG}, and compare managed.args with `vllm serve --help`.",
                ("Compare managed.args with `vllm serve --help` of the installed version."),
            ),
        ),
        Reason.PORT_IN_USE: ReasonText(
            "Another process holds the port.",
            "Find it with `ss -ltnp`, end it, or choose another --port.",
            specific=(
                "Port {port} is held by {holder}: end that, or choose another --port.",
                "Its port is held by {holder}: end that, or choose another --port.",
                "Find who holds port {port} with `ss -ltnp`, end it, or choose another --port.",
            ),
            managed=(
                ("Port {port} is held by {holder}: end that, or write another port in `url`."),
                (
                    "Find who holds port {port} with `ss -ltnp`, end it, or write another port in "
                    "`url`."
                ),
            ),
        ),
        Reason.LOAD_STALLED: ReasonText(
            "Loading made no progress for longer than load_timeout.",
            "Look for a hung download, NCCL start or disk; raise load_timeout if it is only slow.",
            specific=(
                (
                    "No progress in stage {stage} for {quiet}: look at {suspect}. "
                    "If it is only slow, raise {limit_key}, which is {limit}."
                ),
                (
                    "No progress in stage {stage}: look at {suspect}. "
                    "If it is only slow, raise {limit_key}, which is {limit}."
                ),
            ),
        ),
        Reason.UNHEALTHY: ReasonText(
            "It answers its checks with errors or with something no vLLM says.",
            f"{_LOG}; check that the URL is the server's own.",
            managed=(
                (
                    "Read its newest log, below logs/ in the state directory; "
                    "'vllm-agent restart {server}' restarts it at once."
                ),
            ),
        ),
        Reason.UNRESPONSIVE: ReasonText(
            "It accepts connections but does not answer in time.",
            "Look at its load and its CPU; raise probe.timeout if it is only slow.",
            managed=(
                (
                    "Look at its load and its CPU; raise probe.timeout if it is only slow. The "
                    "agent restarts it only once its engine stands still."
                ),
            ),
        ),
        Reason.UNREACHABLE: ReasonText(
            "No connection can be made to it.",
            "Check that it runs, its address, port and certificate, and the network between.",
        ),
        Reason.MODEL_MISSING: ReasonText(
            "It serves, but not the model that is expected of it.",
            "Compare `model` in the configuration with the names in its /v1/models.",
            managed=(
                (
                    "Compare `model` and managed.served_model_name with the names in its "
                    "/v1/models: the agent restarts it only once for that."
                ),
            ),
        ),
        Reason.ENGINE_STALLED: ReasonText(
            "Requests wait and the engine makes no progress.",
            "Take a stack dump of EngineCore (py-spy dump), then restart the server.",
            managed=(
                (
                    "Take a stack dump of EngineCore (py-spy dump), then "
                    "'vllm-agent restart {server}'."
                ),
            ),
        ),
        Reason.SPAWN_FAILED: ReasonText(
            "Its process could not be started.",
            "Check managed.command and the rights of managed.user.",
            managed=(
                (
                    "Run managed.command with --help as managed.user: the command has to be there, "
                    "and that user has to exist and may run it."
                ),
            ),
        ),
        Reason.UNKNOWN: ReasonText(
            "It ended and nothing that was seen tells why.",
            f"{_LOG}.",
            specific=(f"{_KEPT_LOG}.",),
        ),
    }
)
