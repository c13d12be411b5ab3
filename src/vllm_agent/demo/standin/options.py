"""The command line: vLLM's own flags where they matter, and what to reproduce."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, field, fields
from pathlib import Path

from vllm_agent.demo.standin.endings import ENDINGS
from vllm_agent.demo.standin.failures import FAILURES
from vllm_agent.demo.standin.faults import FAULTS, Fault
from vllm_agent.demo.standin.hub_cache import named_cache
from vllm_agent.demo.standin.serving_failures import SERVING_FAILURES
from vllm_agent.demo.standin.timing import Timing

# vLLM's own default when no model is named.
_DEFAULT_MODEL = "Qwen/Qwen3-0.6B"
# Little enough for any disk, and enough to be seen growing.
_DOWNLOAD_BYTES = 64 * 2**20
# What --failures-left is about.
_FAILURES = frozenset(
    {
        *("fail_load", "hang_load", "ending", "fail_serving", "exit_code", "hang_after"),
        *("health_status", "stop_answering", "wrong_model"),
    }
)
# Where a load can hang, in the order of a load; a download hangs by --stall-download.
HANGS = ("configure", "init", "load_weights", "compile", "warmup")


@dataclass(frozen=True, slots=True)
class Options:
    """What one stand-in server does. Times are seconds; `timing` is already scaled."""

    model: str = _DEFAULT_MODEL
    served_model_names: tuple[str, ...] = (_DEFAULT_MODEL,)
    host: str = "127.0.0.1"
    port: int = 8000
    uds: str | None = None
    api_keys: tuple[str, ...] = ()
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    max_model_len: int = 512
    shutdown_timeout: float = 0.0
    enforce_eager: bool = False
    access_log: bool = True
    silent_endpoints: frozenset[str] = frozenset()
    workers: int = 1
    api_servers: int = 1
    engines: int = 1
    load_seconds: float = 0.0
    shards: int = 6
    download_dir: str | None = None
    download_seconds: float | None = None
    download_bytes: int = _DOWNLOAD_BYTES
    stall_download: float | None = None
    retry_download: float | None = None
    fail_load: str | None = None
    hang_load: str | None = None
    hang_spin: bool = False
    daemonise: bool = False
    swallow_sigterm_while_loading: bool = True
    orphan_while_loading: bool = False
    ignore_sigterm: bool = False
    exit_code: int | None = None
    ending: str | None = None
    fail_serving: str | None = None
    ending_after: float = 0.0
    orphan_lifetime: float = 120.0
    hang_after: float | None = None
    fault_after: float = 0.0
    health_status: int = 200
    stop_answering: bool = False
    sleeping: bool = False
    wrong_model: bool = False
    token_seconds: float = 0.02
    faults: tuple[Fault, ...] = ()
    timing: Timing = field(default_factory=Timing)
    non_default_args: str = "{}"

    @property
    def ends_by_itself(self) -> bool:
        """Whether it ends after a while without a signal from outside."""
        return (self.ending, self.fail_serving, self.exit_code) != (None, None, None)

    @property
    def several_processes(self) -> bool:
        """Whether the main process only watches, and API servers of their own listen."""
        return self.api_servers > 1

    @property
    def address(self) -> str:
        """Where the server listens, as vLLM logs it."""
        if self.uds is not None:
            return f"unix:{self.uds}"
        scheme = "https" if self.ssl_certfile else "http"
        return f"{scheme}://{self.host}:{self.port}"


def parse(arguments: list[str]) -> Options:
    """Options from the command line.

    `serve` and the model come first, as in `vllm serve MODEL`. Flags of vLLM that change
    nothing here are accepted and ignored. Exits with status 2 on a wrong value.
    """
    rest = [_dashes(argument) for argument in arguments]
    if rest[:1] == ["serve"]:
        del rest[0]
    tag = rest.pop(0) if rest and not rest[0].startswith("-") else None
    parser = _parser()
    chosen, _ignored = parser.parse_known_args(rest)
    if chosen.ending is not None:
        needed = list(ENDINGS[chosen.ending].arguments)
        chosen, _ignored = parser.parse_known_args([*rest, *needed])
    if (chosen.ssl_certfile is None) != (chosen.ssl_keyfile is None):
        parser.error("--ssl-certfile and --ssl-keyfile go together")
    if chosen.download_seconds is not None:
        _check_download(parser, tag or chosen.model or _DEFAULT_MODEL, chosen.download_dir)
    return _options(chosen, tag)


def _check_download(parser: argparse.ArgumentParser, model: str, folder: str | None) -> None:
    if model.startswith("/") or model.count("/") != 1:
        parser.error("--download-seconds needs a model of the Hub, such as org/name")
    if named_cache(os.environ, folder) is None:
        parser.error("--download-seconds needs HF_HOME or --download-dir: it fills that cache")


def _options(chosen: argparse.Namespace, tag: str | None) -> Options:
    values = vars(chosen)
    model = tag or values.pop("model") or _DEFAULT_MODEL
    values.pop("model", None)
    known = values.pop("known_models")
    if known is not None and model not in known:
        values["fail_load"] = "model_not_found"
    failures_left = values.pop("failures_left")
    if failures_left is not None and not _take_one(failures_left):
        values.update({one.name: one.default for one in fields(Options) if one.name in _FAILURES})
    names = values.pop("served_model_name") or [model]
    engines = values.pop("data_parallel_size")
    tensor_parallel = values.pop("tensor_parallel_size")
    workers = values.pop("workers")
    environment_key = os.environ.get("VLLM_API_KEY")
    keys = values.pop("api_key") or ([environment_key] if environment_key else [])
    shown = {"model_tag": model, "port": values["port"], "model": model}
    if names != [model]:
        shown["served_model_name"] = names
    return Options(
        model=model,
        served_model_names=tuple(names),
        api_keys=tuple(keys),
        workers=tensor_parallel if workers is None else workers,
        engines=engines,
        # vLLM defaults to one API server for each data parallel engine.
        api_servers=values.pop("api_server_count") or engines,
        timing=Timing().divided_by(values.pop("speed")),
        access_log=not values.pop("disable_uvicorn_access_log"),
        silent_endpoints=_endpoints(values.pop("disable_access_log_for_endpoints")),
        faults=tuple(values.pop("hostile")),
        non_default_args=repr(shown),
        **values,
    )


def _take_one(failures_left: Path) -> bool:
    """Whether the number in the file was above 0; it is one less then."""
    number = int(failures_left.read_text())
    if number > 0:
        failures_left.write_text(str(number - 1))
    return number > 0


def _endpoints(text: str) -> frozenset[str]:
    return frozenset(part for part in text.split(",") if part)


def _dashes(argument: str) -> str:
    """`--a_b=c` as `--a-b=c`: vLLM takes both."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _positive(text: str) -> float:
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be more than 0, got {text}")
    return value


def _ratio(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, got {text}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vllm_agent.demo.server",
        usage="%(prog)s [serve] [MODEL] [options]",
        description=(
            "A stand-in for a vLLM 0.32 server: the same processes, port, log, HTTP and endings, "
            "without a model. Other flags of vLLM are accepted and ignored. SIGUSR1 switches a "
            "hang of the engine on and off."
        ),
        allow_abbrev=False,
    )
    _vllm_flags(parser.add_argument_group("vLLM's own flags"))
    _load_flags(parser.add_argument_group("loading"))
    _ending_flags(parser.add_argument_group("endings"))
    _fault_flags(parser.add_argument_group("faults while serving"))
    return parser


def _vllm_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--model", help=f"model when none comes first (default {_DEFAULT_MODEL})")
    add("--served-model-name", nargs="+", metavar="NAME", help="names in /v1/models")
    add("--host", default="127.0.0.1", help="address to bind (default %(default)s)")
    add("--port", type=int, default=8000, help="port to bind (default %(default)s)")
    add("--uds", metavar="PATH", help="unix socket instead of host and port")
    add("--api-key", nargs="+", metavar="KEY", help="keys for /v1 (or VLLM_API_KEY)")
    add("--ssl-certfile", metavar="FILE", help="serve https")
    add("--ssl-keyfile", metavar="FILE", help="key of the certificate")
    add("--max-model-len", type=int, default=512, metavar="N", help="shown in /v1/models")
    add("--tensor-parallel-size", "-tp", type=int, default=1, metavar="N", help="workers")
    add("--data-parallel-size", "-dp", type=int, default=1, metavar="N", help="engines")
    add("--api-server-count", "-asc", type=int, metavar="N", help="API servers (default: engines)")
    add("--shutdown-timeout", type=float, default=0.0, metavar="S", help="drain before a stop")
    add("--download-dir", metavar="DIR", help="cache of the Hub instead of that of HF_HOME")
    add("--enforce-eager", action="store_true", help="no compile lines in the log")
    add("--disable-uvicorn-access-log", action="store_true", help="no line for each request")
    add("--disable-access-log-for-endpoints", default="", metavar="PATHS", help="comma separated")


def _load_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--load-seconds", type=float, default=0.0, metavar="S", help="length of the load")
    add("--shards", type=int, default=6, metavar="N", help="checkpoint shards")
    add(
        "--download-seconds",
        type=float,
        metavar="S",
        help="download the model into the cache that HF_HOME or --download-dir names",
    )
    add(
        "--download-bytes",
        type=int,
        default=_DOWNLOAD_BYTES,
        metavar="N",
        help="size of its weights (default %(default)s); so much of the disk is taken",
    )
    add("--stall-download", type=_ratio, metavar="RATIO", help="stop there for ever")
    add("--retry-download", type=_ratio, metavar="RATIO", help="begin anew there, once")
    add("--workers", type=int, metavar="N", help="worker processes; 0: inside EngineCore")
    add("--fail-load", choices=sorted(FAILURES), metavar="REASON", help=", ".join(sorted(FAILURES)))
    add(
        "--hang-load",
        nargs="?",
        const="load_weights",
        choices=HANGS,
        metavar="STAGE",
        help=f"stop in the middle of it for ever: {', '.join(HANGS)} (default load_weights)",
    )
    add("--hang-spin", action="store_true", help="take a whole core while it hangs")
    add("--known-models", nargs="+", metavar="NAME", help="any other model is not found")
    add(
        "--daemonise",
        action="store_true",
        help="leave a child in a session of its own, as a compile worker may be",
    )
    group.add_argument(
        "--ignore-sigterm-while-loading",
        dest="swallow_sigterm_while_loading",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="swallow the first SIGTERM of a load, as vLLM does (default)",
    )
    add(
        "--orphan-while-loading",
        action="store_true",
        help="leave the engine behind when the second SIGTERM of a load ends it, as vLLM may",
    )


def _ending_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--ending", choices=ENDINGS, metavar="NAME", help=", ".join(ENDINGS))
    add(
        "--fail-serving",
        choices=sorted(SERVING_FAILURES),
        metavar="REASON",
        help=f"break the engine at --ending-after: {', '.join(sorted(SERVING_FAILURES))}",
    )
    add("--ending-after", type=float, default=0.0, metavar="S", help="seconds of serving before it")
    add(
        "--exit-code",
        type=int,
        metavar="N",
        help="exit with N, at --ending-after if no ending is named",
    )
    add("--ignore-sigterm", action="store_true", help="never stop by SIGTERM or SIGINT")
    add(
        "--failures-left",
        type=Path,
        metavar="FILE",
        help="end, fail or hang as asked only while the number in it is above 0, and take one off",
    )
    add("--orphan-lifetime", type=float, default=120.0, metavar="S", help="engine without a parent")
    add("--speed", type=_positive, default=1.0, metavar="X", help="divide every reproduced delay")


def _fault_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--hang-after", type=float, metavar="S", help="the engine hangs, /health says 200")
    add("--fault-after", type=float, default=0.0, metavar="S", help="delay of the faults below")
    add("--health-status", type=int, default=200, metavar="N", help="status of /health")
    add("--stop-answering", action="store_true", help="accept and never answer")
    add("--sleeping", action="store_true", help="sleep level 1")
    add("--wrong-model", action="store_true", help="serve another model than asked")
    add("--token-seconds", type=float, default=0.02, metavar="S", help="time for each token")
    add(
        "--hostile",
        action="append",
        type=Fault.parse,
        default=[],
        metavar="MODE[:ARG][:/PATH]",
        help=f"repeatable; {', '.join(FAULTS)}; redirect:URL and status:N take an argument",
    )
