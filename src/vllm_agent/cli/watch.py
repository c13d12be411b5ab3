"""`vllm-agent status --watch`: shows what changes, until Ctrl-C."""

from __future__ import annotations

import signal
import sys
import time
from typing import TYPE_CHECKING, Final

from vllm_agent.cli.arguments import is_terminal
from vllm_agent.cli.outcome import CommandError, ExitCode
from vllm_agent.cli.status_table import notices
from vllm_agent.cli.text import local_time, plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from vllm_agent.cli.agent_client import AgentClient, Answer
    from vllm_agent.expose.json_view import ServerView

POLL_SECONDS: Final = 0.5
"""A change shows before anybody looks twice."""

REDRAW_SECONDS: Final = 1.0
"""Ages are shown in seconds."""


def watch(client: AgentClient, path: str, first: Answer, *, as_json: bool) -> int:
    """Shows `first` and whatever comes after it at `path`."""
    # SIGTERM has to leave the terminal as it was, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if as_json:
            _print_json(client, path, first)
        elif is_terminal():
            _draw(client, path, first)
        else:
            _print_changes(client, path, first)
    except KeyboardInterrupt:
        return ExitCode.DONE
    return ExitCode.DONE


def _looks(client: AgentClient, path: str, first: Answer) -> Iterator[tuple[Answer, str]]:
    """The newest answer, again and again, and what hinders a newer one."""
    answer = first
    yield answer, ""
    while True:
        time.sleep(POLL_SECONDS)
        trouble = ""
        try:
            answer = client.read_if_changed(path, answer.etag) or answer
        except CommandError as error:
            trouble = str(error)
        yield answer, trouble


def _print_json(client: AgentClient, path: str, first: Answer) -> None:
    shown: Answer | None = None
    for answer, _ in _looks(client, path, first):
        if answer is not shown:
            shown = answer
            print(answer.body.decode(), end="", flush=True)


def _print_changes(client: AgentClient, path: str, first: Answer) -> None:
    """A line per server at first, then one per change of its state or reason."""
    shown: Answer | None = None
    known: dict[str, tuple[str, str | None]] = {}
    told = ""
    for answer, trouble in _looks(client, path, first):
        if trouble != told:
            told = trouble
            if trouble:
                print(trouble, file=sys.stderr)
        if answer is shown:
            continue
        shown = answer
        for server in _servers(answer):
            condition = (server["state"], server["reason"])
            if known.get(server["name"]) != condition:
                known[server["name"]] = condition
                print(_line(server), flush=True)


def _line(server: ServerView) -> str:
    at = local_time(server["state_entered_timestamp_seconds"])
    parts = (at, plain(server["name"]), server["state"], server["reason"], plain(server["detail"]))
    return "  ".join(part for part in parts if part)


def _servers(answer: Answer) -> list[ServerView]:
    view = answer.json
    return list(view["servers"]) if "servers" in view else [view]


def _draw(client: AgentClient, path: str, first: Answer) -> None:
    from vllm_agent.cli import terminal  # noqa: PLC0415 - it imports rich

    def frame(answer: Answer, trouble: str) -> RenderableType:
        view, notes = answer.json, [trouble] if trouble else []
        if "servers" in view:
            notes += notices(view)
            return terminal.servers_table(view, time.time(), notes, terminal.height())
        return terminal.server_grid(view, time.time(), notes)

    shown: tuple[Answer, str] | None = None
    drawn_seconds = 0.0
    with terminal.live() as live:
        for look in _looks(client, path, first):
            is_old = time.monotonic() - drawn_seconds >= REDRAW_SECONDS
            if look != shown or is_old:
                shown, drawn_seconds = look, time.monotonic()
                live.update(frame(*look), refresh=True)
