"""Two hours of a small fleet as stored samples, so that a real Prometheus can draw each panel.

gpu1 has three servers: `llama` crashes after an hour and is back five minutes later, `qwen` reached
its restart limit, `remote` is watched by URL and runs. The agent of gpu2 is down throughout; that
of gpu3 is up and watches nothing.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Final

from tests.pipeline.catalogue import METRIC_LABELS
from vllm_agent.lifecycle.states import ServerState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STEP_SECONDS: Final = 60
MINUTES: Final = 120
# Any past moment works; a whole number of minutes since 1970 keeps the steps aligned.
START: Final = 1_760_000_040
END: Final = START + MINUTES * STEP_SECONDS
CRASHED_AT: Final = START + 60 * STEP_SECONDS

_GPU1 = {"job": "vllm-agent", "instance": "gpu1:10060"}
_GPU2 = {"job": "vllm-agent", "instance": "gpu2:10060"}
_GPU3 = {"job": "vllm-agent", "instance": "gpu3:10060"}
_PREFIX = "vllm_agent_"


def llama_state(minute: int) -> ServerState:
    """Its life: running, crashed, loading again, running."""
    if minute < 60:
        return ServerState.RUNNING
    if minute < 62:
        return ServerState.CRASHED
    return ServerState.STARTING if minute < 65 else ServerState.RUNNING


_STATES: Final[dict[str, Callable[[int], ServerState]]] = {
    "llama": llama_state,
    "qwen": lambda _: ServerState.FAILED,
    "remote": lambda _: ServerState.RUNNING,
}
_REASONS: Final[dict[str, Callable[[int], str | None]]] = {
    "llama": lambda minute: "engine_died" if 60 <= minute < 62 else None,
    "qwen": lambda _: "gpu_oom",
    "remote": lambda _: None,
}


class Samples:
    """Sample lines, grouped by metric as OpenMetrics wants them."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {}

    def add(self, metric: str, labels: dict[str, str], minute: int, value: float) -> None:
        """One sample; the metric and its labels must be declared."""
        name = metric if metric == "up" else _PREFIX + metric
        assert set(labels) == METRIC_LABELS[name], name
        written = ",".join(f'{label}="{text}"' for label, text in labels.items())
        line = f"{name}{{{written}}} {float(value)} {START + minute * STEP_SECONDS}"
        self._lines.setdefault(name, []).append(line)

    def text(self) -> str:
        """Everything as OpenMetrics."""
        return "\n".join(line for lines in self._lines.values() for line in lines) + "\n# EOF\n"


def write_blocks(directory: Path) -> Path:
    """Prometheus storage with the whole scenario."""
    source = directory / "scenario.om"
    source.write_text(_samples().text(), encoding="utf-8")
    blocks = directory / "blocks"
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(source), str(blocks)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return blocks


def _samples() -> Samples:
    samples = Samples()
    for minute in range(MINUTES + 1):
        samples.add("up", _GPU1, minute, 1)
        samples.add("up", _GPU2, minute, 0)
        samples.add("up", _GPU3, minute, 1)
        build = {"version": "0.1.0", "python_version": "3.11.2"}
        samples.add("build_info", _GPU1 | build, minute, 1)
        for collector in ("discovery", "processes", "probes", "gpu", "logs", "store"):
            is_up = not (collector == "gpu" and minute >= 30)
            samples.add("collector_up", _GPU1 | {"collector": collector}, minute, is_up)
        for server in _STATES:
            _add_server(samples, server, minute)
    return samples


def _add_server(samples: Samples, server: str, minute: int) -> None:
    labels = _GPU1 | {"server": server}
    state, reason = _STATES[server](minute), _REASONS[server](minute)
    for one in ServerState:
        samples.add("server_state", labels | {"state": one}, minute, one is state)
    if reason:
        samples.add("server_failure_reason", labels | {"reason": reason}, minute, 1)
    is_restarted = server == "llama" and minute >= 62
    entered = START + 65 * STEP_SECONDS if is_restarted else START
    samples.add("server_state_entered_timestamp_seconds", labels, minute, entered)
    samples.add("server_desired_up", labels, minute, 1)
    samples.add("server_restart_limit_reached", labels, minute, server == "qwen")
    _add_info(samples, labels, minute)
    _add_counters(samples, labels, minute)


def _add_info(samples: Samples, labels: dict[str, str], minute: int) -> None:
    is_remote = labels["server"] == "remote"
    about = {
        "mode": "external" if is_remote else "monitored",
        # Not known of a server that never came up.
        "model_name": "" if labels["server"] == "qwen" else "meta-llama/Llama-3.1-8B-Instruct",
        "url": "http://10.0.0.7:8000" if is_remote else "http://127.0.0.1:8000",
        "version": "0.28.0",
        "discovered": "false" if is_remote else "true",
    }
    samples.add("server_info", labels | about, minute, 1)


def _add_counters(samples: Samples, labels: dict[str, str], minute: int) -> None:
    server = labels["server"]
    crashes = int(server == "llama" and minute >= 60)
    for reason in ("engine_died", "host_oom"):
        counted = crashes if reason == "engine_died" else 0
        samples.add("server_crashes_total", labels | {"reason": reason}, minute, counted)
    if crashes:
        crashed = labels | {"reason": "engine_died"}
        samples.add("server_last_crash_timestamp_seconds", crashed, minute, CRASHED_AT - 5)
    for initiator in ("agent", "operator", "outside"):
        counted = int(initiator == "outside" and server == "llama" and minute >= 62)
        samples.add("server_restarts_total", labels | {"initiator": initiator}, minute, counted)
    seconds = minute * STEP_SECONDS
    lost = min(max(minute - 60, 0), 5) * STEP_SECONDS if server == "llama" else 0
    available = 0 if server == "qwen" else seconds - lost
    samples.add("server_desired_seconds_total", labels, minute, seconds)
    samples.add("server_available_seconds_total", labels, minute, available)
    if server == "qwen":
        failures = labels | {"probe": "health", "cause": "refused"}
        samples.add("probe_failures_total", failures, minute, 6 * minute)
