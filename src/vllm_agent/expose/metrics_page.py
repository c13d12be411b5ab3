"""The reference of all metrics as a Markdown page, written from the declarations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vllm_agent.expose.metric_families import (
    AGENT_FAMILIES,
    GPU_FAMILIES,
    MOMENT_FAMILIES,
    SERVER_FAMILIES,
)
from vllm_agent.lifecycle.states import LifecycleMode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vllm_agent.expose.family import Family, Subject

EXTERNAL_SERIES_BUDGET: Final = 60
"""Series that one external server may cost in ordinary life, restarts and crashes included."""
LOCAL_SERIES_BUDGET: Final = 160
"""The same of a server whose processes are seen, with 8 GPUs and a rank on each, its memory on each
of them included."""
GPU_SERIES_BUDGET: Final = 13
"""Series that a device costs, the memory of servers and XIDs aside: one for each value."""

_HEAD: Final = ("metric", "type", "labels", "unit", "modes", "meaning")
_UNITS: Final = {
    "_timestamp_seconds": "unix time in seconds",
    "_time_seconds": "unix time in seconds",
    "_seconds": "seconds",
    "_bytes": "bytes",
    "_ratio": "0 to 1",
    "_celsius": "degrees Celsius",
    "_watts": "watts",
}

_INTRODUCTION: Final = f"""\
# Metrics

The agent serves them at `/metrics`, in the Prometheus text format 0.0.4 or as OpenMetrics 1.0.0.
What is unknown has no sample; it is never 0, but for `vllm_agent_probe_success`, which is 0 until a
probe succeeds. Counters of launches, restarts, crashes, transitions and loads continue after a
restart of the agent, and ECC errors are those of the GPU's life; all others start at 0 with the
agent.

From the start a server has every series of `vllm_agent_server_state`, `vllm_agent_load_stage`,
`vllm_agent_server_restarts_total`, `vllm_agent_server_crashes_total` and
`vllm_agent_probe_success` that its mode can produce. Other series appear when they first have
something to say. In ordinary life a server takes at most {EXTERNAL_SERIES_BUDGET} series where only
its URL is known, and at most {LOCAL_SERIES_BUDGET} where its processes are seen; every further kind
of state change, crash or probe failure that it goes through adds one. That is why what tells of a
load that is under way has series only until it is over, and of the stage that it is in;
`vllm_agent_load_stage_seconds` tells of the load before until the next one begins.
"""

_OF_A_GPU: Final = f"""\
A device, or a MIG instance of one (`gpu` is then `0:1`), takes at most {GPU_SERIES_BUDGET} series,
one more for each server that holds memory of it, and two for each kind of XID that it had. What it
does not support has no series. A device that its driver has lost keeps its XIDs only, which tell
why. Where there is no driver, or it does not answer (`vllm_agent_collector_up` of `gpu` is 0),
there are none.

`vllm_agent_server_gpu_memory_used_bytes` says which server is on which device. By `uuid` it joins
to what other exporters say of the device, and by `server` to everything above.
"""

_OWN_PROCESS: Final = """\
The agent's own process has the usual `process_*` metrics: `process_cpu_seconds_total`,
`process_resident_memory_bytes`, `process_virtual_memory_bytes`, `process_start_time_seconds`,
`process_open_fds` and `process_max_fds`.
"""


def render() -> str:
    """The page, ending with a newline."""
    return "\n".join(
        (
            _INTRODUCTION,
            "## Of a server\n",
            _table((*_rows(SERVER_FAMILIES), *_rows(MOMENT_FAMILIES))),
            "## Of a GPU\n",
            _OF_A_GPU,
            _table(_rows(GPU_FAMILIES)),
            "## Of the agent\n",
            _table(_rows(AGENT_FAMILIES)),
            _OWN_PROCESS,
        )
    )


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    by_name = sorted(rows, key=lambda cells: cells[0].strip("`"))
    lines = (_HEAD, ("---",) * len(_HEAD), *by_name)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _rows(families: Iterable[Family[Subject]]) -> Iterator[tuple[str, ...]]:
    for family in families:
        modes = "all" if len(family.modes) == len(LifecycleMode) else ", ".join(family.modes)
        labels = ", ".join(f"`{label}`" for label in family.all_labels)
        yield f"`{family.name}`", family.type, labels, _unit(family.name), modes, family.help


def _unit(name: str) -> str:
    base = name.removesuffix("_total")
    return next((unit for suffix, unit in _UNITS.items() if base.endswith(suffix)), "")
