"""What is asked of a managed server, and how far the agent is with it, as lines and words. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vllm_agent.cli.text import UNKNOWN, age, plain, shell_word
from vllm_agent.lifecycle.states import Phase

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_agent.expose.json_view import ServerView
    from vllm_agent.expose.managed_view import ManagedView, StopView

_MIN_SHOWN_SECONDS: Final = 0.1
_WHOLE_SECONDS: Final = 10.0
"""From here on tenths of a second tell nobody anything."""


def managed_of(server: ServerView) -> ManagedView | None:
    """What is asked of a managed server; an agent of an older version tells of none."""
    return server.get("managed")


def stop_text(stop: StopView) -> str:
    """How a stop went: `gracefully in 1.2 s`, `with SIGKILL after 30 s`."""
    how, time = ("with SIGKILL", "after") if stop["is_forced"] else ("gracefully", "in")
    seconds = stop["seconds"]
    return how if seconds is None else f"{how} {time} {_seconds(seconds)}"


def managed_rows(server: ServerView, now_unix_seconds: float) -> Iterator[tuple[str, str]]:
    """Label and text of each line; none for a server that is only watched."""
    managed = managed_of(server)
    if managed is None:
        return
    yield "wanted", _wanted(server, managed)
    if managed["model_before"]:
        before = shell_word(managed["model_before"])
        back = f"vllm-agent set-model {shell_word(server['name'])} {before}"
        yield "model before", f"{plain(managed['model_before'])}; to serve it again: {back}"
    if managed["next_restart_timestamp_seconds"] is not None:
        left = age(managed["next_restart_timestamp_seconds"] - now_unix_seconds)
        yield "next restart", f"in {left}" if left != age(0) else "now"
    if managed["phase"] == Phase.GAVE_UP:
        yield "given up", "the agent starts it no more until somebody asks for it"
    if managed["is_dry_run"]:
        yield "dry run", "restarts are only logged and counted, as restart.dry_run asks"
    if managed["last_stop"] is not None:
        stop = managed["last_stop"]
        yield "last stop", f"launch {stop['launch']}, {stop_text(stop)}"


def managed_cells(server: ServerView, now_unix_seconds: float) -> tuple[str, str]:
    """Whether it is wanted up or down, and the time until its next restart, a word each."""
    managed = managed_of(server)
    if managed is None:
        return UNKNOWN, UNKNOWN
    at = managed["next_restart_timestamp_seconds"]
    return managed["goal"], UNKNOWN if at is None else age(at - now_unix_seconds)


def managed_remarks(server: ServerView, now_unix_seconds: float) -> Iterator[str]:
    """What is special about a managed server beyond its state and reason."""
    managed = managed_of(server)
    if managed is None:
        return
    if managed["next_restart_timestamp_seconds"] is not None:
        yield f"restart in {age(managed['next_restart_timestamp_seconds'] - now_unix_seconds)}"
    if managed["phase"] == Phase.GAVE_UP:
        yield "given up"
    if managed["is_dry_run"]:
        yield "dry run"


def outlook(server: ServerView) -> str:
    """What becomes of a managed server that does not run; empty where its advice says that."""
    managed = managed_of(server)
    if managed is None:
        return ""
    if managed["goal"] == "down":
        return f"it is wanted down until: vllm-agent start {shell_word(server['name'])}"
    is_planned = managed["next_restart_timestamp_seconds"] is not None
    return "the agent starts it again by itself" if is_planned else ""


def _wanted(server: ServerView, managed: ManagedView) -> str:
    model = "" if managed["model"] is None else f" with {plain(managed['model'])}"
    if managed["goal"] == "up":
        return f"up{model}"
    return f"down until: vllm-agent start {shell_word(server['name'])}"


def _seconds(seconds: float) -> str:
    if seconds < _MIN_SHOWN_SECONDS:
        return f"<{_MIN_SHOWN_SECONDS:g} s"
    return f"{seconds:.0f} s" if seconds >= _WHOLE_SECONDS else f"{seconds:.1f} s"
