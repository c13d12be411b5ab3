"""`--watch` of `status` and `gpus`: shows what changes, until Ctrl-C."""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from vllm_agent.cli.agent_client import GPUS_PATH
from vllm_agent.cli.arguments import is_terminal
from vllm_agent.cli.gpu_lines import FREE_IT, compact_rows
from vllm_agent.cli.gpu_rows import gpu_notices, held_by_orphans
from vllm_agent.cli.load_bar import load_of
from vllm_agent.cli.outcome import CommandError, ExitCode
from vllm_agent.cli.status_table import notices
from vllm_agent.cli.text import local_time, plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from vllm_agent.cli.agent_client import AgentClient, Answer, Json
    from vllm_agent.expose.gpu_view import GpusView
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


@dataclass(frozen=True, slots=True)
class _Look:
    """The newest answers, and what hinders newer ones; GPUs only where they are shown."""

    answer: Answer
    gpus: Answer | None = None
    trouble: str = ""


def _looks(
    client: AgentClient, path: str, first: Answer, *, at_gpus: bool = False
) -> Iterator[_Look]:
    """What there is to see, again and again."""
    look = _Look(first)
    if at_gpus:
        look = _newer(client, path, look, at_gpus=True)
    yield look
    while True:
        time.sleep(POLL_SECONDS)
        look = _newer(client, path, look, at_gpus=at_gpus)
        yield look


def _newer(client: AgentClient, path: str, known: _Look, *, at_gpus: bool) -> _Look:
    look = replace(known, trouble="")
    try:
        answer = client.read_if_changed(path, known.answer.etag)
        look = replace(look, answer=answer or known.answer)
        if at_gpus:
            look = replace(look, gpus=client.gpus(known.gpus))
    except CommandError as error:
        return replace(look, trouble=str(error))
    return look


def _print_json(client: AgentClient, path: str, first: Answer) -> None:
    shown: Answer | None = None
    for look in _looks(client, path, first):
        if look.answer is not shown:
            shown = look.answer
            print(shown.body.decode(), end="", flush=True)


def _print_changes(client: AgentClient, path: str, first: Answer) -> None:
    """A line per server or device at first, then one per change of its condition."""
    shown: Answer | None = None
    known: dict[str, object] = {}
    told, notes = "", ""
    for look in _looks(client, path, first):
        if look.answer is not shown:
            shown = look.answer
            view = shown.json
            conditions = _conditions(view)
            for one in conditions:
                if known.get(one.of) != one.value:
                    print(one.line, flush=True)
            known = {one.of: one.value for one in conditions}
            # Without a device there is no line to say why.
            notes = "\n".join(gpu_notices(view)) if path == GPUS_PATH else ""
        trouble = look.trouble or notes
        if trouble != told:
            told = trouble
            if told:
                print(told, file=sys.stderr)


class _Condition(NamedTuple):
    """What is to be said of a server or a device when `value` changes."""

    of: str
    value: object
    line: str


def _conditions(view: Json) -> list[_Condition]:
    if "gpus" in view:
        at = local_time(time.time())
        return [_Condition(row[0], row, "  ".join((at, *row))) for row in compact_rows(view)]
    servers: list[ServerView] = view.get("servers", [view])
    return [_Condition(s["name"], _condition(s), _line(s)) for s in servers]


def _condition(server: ServerView) -> tuple[object, ...]:
    load = load_of(server)
    return server["state"], server["reason"], None if load is None else load["stage"]


def _line(server: ServerView) -> str:
    load = load_of(server)
    entered = server["state_entered_timestamp_seconds"]
    # A look comes every second, so the newest one is that which saw the stage begin.
    at = local_time(entered if load is None else load["as_of_timestamp_seconds"])
    stage = "" if load is None else load["stage"]
    condition = (server["state"], stage, server["reason"], plain(server["detail"]))
    return "  ".join(part for part in (at, plain(server["name"]), *condition) if part)


def _draw(client: AgentClient, path: str, first: Answer) -> None:
    from vllm_agent.cli import gpu_terminal, terminal  # noqa: PLC0415 - they import rich

    def frame(look: _Look) -> RenderableType:
        view, notes = look.answer.json, [look.trouble] if look.trouble else []
        gpus = None if look.gpus is None else look.gpus.json
        now = time.time()
        if "gpus" in view:
            notes += _gpu_notes(view)
            return gpu_terminal.watched_devices(view, now, notes, terminal.height())
        if "servers" in view:
            notes += notices(view)
            return gpu_terminal.servers_and_gpus(view, gpus, now, notes, terminal.height())
        return terminal.server_grid(view, gpus, now, notes)

    shown: _Look | None = None
    drawn_seconds = 0.0
    with terminal.live() as live:
        for look in _looks(client, path, first, at_gpus=path != GPUS_PATH):
            is_old = time.monotonic() - drawn_seconds >= REDRAW_SECONDS
            if look != shown or is_old:
                shown, drawn_seconds = look, time.monotonic()
                live.update(frame(look), refresh=True)


def _gpu_notes(view: GpusView) -> list[str]:
    held = held_by_orphans(view)
    return gpu_notices(view) + ([f"{held}: {FREE_IT}"] if held else [])
