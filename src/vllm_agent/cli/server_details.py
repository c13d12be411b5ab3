"""Everything about one server, as labelled lines of plain text. Pure."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vllm_agent.cli.gpu_lines import server_gpu_rows
from vllm_agent.cli.load_lines import load_rows
from vllm_agent.cli.managed_lines import managed_rows
from vllm_agent.cli.process_rows import process_rows
from vllm_agent.cli.text import UNKNOWN, age_of, local_time, plain, shown
from vllm_agent.config.duration import format_duration
from vllm_agent.lifecycle.states import LifecycleMode, ServerState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vllm_agent.expose.gpu_view import GpusView
    from vllm_agent.expose.history_view import EndingView
    from vllm_agent.expose.json_view import ProbeView, ServerView

RULE_MEANING: Final = MappingProxyType(
    {
        1: "it was asked for, or the server was in maintenance",
        2: "a cause was seen: the OOM killer, a GPU fault, or a line of its log",
        3: "a sign of a stop came before any trouble",
        4: "a part of it ended badly, or was left alive, before its main process was told to go",
        5: "its main process ended by itself, with an error or by a signal",
        6: "all its other processes were gone or on their way out when its listener closed",
        7: "nothing that was seen tells why",
    }
)
"""The rules of docs/lifecycle.md by their numbers. 0 is none: only a URL was seen, or no end."""


@dataclass(frozen=True, slots=True)
class DetailRow:
    """One line; `state` is set where the line is about that state."""

    label: str
    text: str
    state: str | None = None


def detail_rows(
    server: ServerView, gpus: GpusView | None, now_unix_seconds: float
) -> list[DetailRow]:
    """The lines, in the order of what matters first; without `gpus` none is about them."""
    on_gpus = () if gpus is None else server_gpu_rows(server["name"], gpus, now_unix_seconds)
    return [
        DetailRow("server", f"{plain(server['name'])} ({_origin(server)})"),
        DetailRow("url", shown(server["url"])),
        *_condition(server, now_unix_seconds),
        *(DetailRow(label, text) for label, text in managed_rows(server, now_unix_seconds)),
        *(DetailRow(label, text) for label, text in load_rows(server, now_unix_seconds)),
        DetailRow("model", _models(server)),
        DetailRow("version", shown(server["version"])),
        *_launches(server),
        *_last_ending(server["last_ending"], server),
        *(DetailRow(label, text) for label, text in (*process_rows(server), *on_gpus)),
        DetailRow("last check", _last_check(server, now_unix_seconds)),
        *(_probe(name, probe) for name, probe in server["probes"].items()),
    ]


def _origin(server: ServerView) -> str:
    return f"{server['mode']}, discovered" if server["discovered"] else server["mode"]


def _condition(server: ServerView, now: float) -> Iterator[DetailRow]:
    state, entered = server["state"], server["state_entered_timestamp_seconds"]
    asleep = ", sleeping" if server["sleeping"] else ""
    since = f"{state}{asleep} for {age_of(entered, now)}, since {local_time(entered)}"
    yield DetailRow("state", since, state)
    if server["reason"]:
        yield DetailRow("reason", server["reason"])
    if server["detail"]:
        yield DetailRow("detail", plain(server["detail"]))
    if server["advice"]:
        yield DetailRow("advice", plain(server["advice"]))
    if server["in_maintenance"]:
        until = server["maintenance_until_timestamp_seconds"]
        end = "until it is switched off" if until is None else f"until {local_time(until)}"
        yield DetailRow("maintenance", end)


def _models(server: ServerView) -> str:
    others = [name for name in server["model_names"] if name != server["model_name"]]
    also = f", also {', '.join(map(plain, others))}" if others else ""
    return shown(server["model_name"]) + also


def _launches(server: ServerView) -> Iterator[DetailRow]:
    start = server["process_start_time_seconds"]
    process = "" if start is None else f", the newest process started at {local_time(start)}"
    yield DetailRow("launches", f"{server['launches']}{process}")
    yield DetailRow("restarts", _counts(server["restarts"]))
    newest = server["last_crash_timestamp_seconds"]
    crashes = [
        f"{count} {reason} (last {local_time(newest.get(reason))})"
        for reason, count in server["crashes"].items()
    ]
    yield DetailRow("crashes", ", ".join(crashes) or "0")
    budget = server["restart_budget"]
    window = budget["window_seconds"]
    per = "" if window is None else f", full again after {format_duration(window)} of running"
    reached = "LIMIT REACHED, " if budget["limit_reached"] else ""
    yield DetailRow(
        "budget", f"{reached}{budget['remaining']} of {budget['limit']} restarts left{per}"
    )


def _last_ending(ending: EndingView | None, server: ServerView) -> Iterator[DetailRow]:
    if ending is None:
        return
    parts = [f"launch {ending['launch']} {ending['state']}"]
    if ending["reason"]:
        parts.append(ending["reason"])
    if ending["exit_code"] is not None:
        parts.append(f"exit code {ending['exit_code']}")
    if ending["signal"] is not None:
        parts.append(f"signal {ending['signal']}")
    parts.append(f"at {local_time(ending['timestamp_seconds'])}")
    yield DetailRow("last ending", ", ".join(parts), ending["state"])
    if ending["rule"] in RULE_MEANING:
        yield DetailRow("judged by", f"rule {ending['rule']}: {RULE_MEANING[ending['rule']]}")
    for fact in ending["evidence"]:
        yield DetailRow("evidence", plain(fact))
    # An agent of an older version tells of none of these.
    holder, advice, bundle = ending.get("holder"), ending.get("advice"), ending.get("bundle")
    if holder:
        yield DetailRow("held by", plain(holder))
    if advice and not (server["advice"] or "").startswith(advice):
        yield DetailRow("advice", plain(advice))
    if bundle:
        yield DetailRow("evidence in", plain(bundle))
    if ending["state"] == ServerState.CRASHED and server["mode"] != LifecycleMode.EXTERNAL:
        name = shlex.quote(plain(server["name"]))
        yield DetailRow("its log", f"vllm-agent history {name} --log")


def _last_check(server: ServerView, now: float) -> str:
    at = server["last_check_timestamp_seconds"]
    if at is None:
        return "none yet"
    failures = server["consecutive_failures"]
    failed = f", {failures} failed in a row" if failures else ""
    return f"{age_of(at, now)} ago{failed}"


def _probe(name: str, probe: ProbeView) -> DetailRow:
    if probe["success"] is None:
        return DetailRow(f"probe {name}", "no result yet")
    parts = ["ok" if probe["success"] else f"failed: {probe['cause'] or UNKNOWN}"]
    if probe["http_status"] is not None:
        parts.append(f"HTTP {probe['http_status']}")
    if probe["duration_seconds"] is not None:
        parts.append(f"{probe['duration_seconds'] * 1_000:.1f} ms")
    parts.append(f"{probe['requests']} sent")
    if probe["failures"]:
        parts.append(f"{sum(probe['failures'].values())} failed ({_counts(probe['failures'])})")
    told = f"; {plain(probe['detail'])}" if probe["detail"] else ""
    return DetailRow(f"probe {name}", ", ".join(parts) + told)


def _counts(counts: Mapping[str, int]) -> str:
    told = [f"{count} {word}" for word, count in counts.items() if count]
    return ", ".join(told) or "0"
