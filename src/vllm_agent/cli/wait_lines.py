"""What `wait` tells while it waits: lines on standard error, for whoever reads a log."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self

from vllm_agent.cli.load_bar import load_of
from vllm_agent.cli.load_lines import load_parts, trouble_text
from vllm_agent.cli.managed_lines import managed_of, outlook
from vllm_agent.cli.text import plain
from vllm_agent.lifecycle.states import ServerState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_agent.expose.json_view import ServerView

SAY_AGAIN_SECONDS: Final = 15.0
"""A load that goes on is told of so often: a log without a word looks like a hang."""

_FAILURES: Final = frozenset({ServerState.FAILED, ServerState.CRASHED})
_GONE: Final = frozenset({ServerState.STOPPED, ServerState.CRASHED})


@dataclass(frozen=True, slots=True)
class WaitLook:
    """What there is to tell: the server, what is waited for and how long still.

    `rest_seconds` is infinite while a load is waited for, `trouble` what hinders newer answers.
    """

    server: ServerView
    states: Sequence[str]
    rest_seconds: float
    trouble: str
    now_seconds: float
    now_unix_seconds: float

    @property
    def condition(self) -> tuple[str | None, ...]:
        """What is told when it changes: state and reason, stage and trouble of a load."""
        load = load_of(self.server)
        of_load = () if load is None else (load["stage"], trouble_text(load))
        return self.server["state"], self.server["reason"], *of_load

    @property
    def is_failure(self) -> bool:
        """Whether the server has failed or crashed."""
        return self.server["state"] in _FAILURES


class Display(Protocol):
    """Where a wait is told of; what it writes to may go away, and the wait goes on."""

    def __enter__(self) -> Self:
        """Begins."""

    def __exit__(self, *_: object) -> None:
        """Leaves nothing behind but what was told."""

    def show(self, look: WaitLook) -> None:
        """Tells what is new."""


class StderrLines:
    """A line when something changes, and now and then while it loads."""

    def __init__(self) -> None:
        self._known: tuple[str | None, ...] = ()
        self._told_seconds = 0.0
        self._trouble = ""
        self._is_read = sys.stderr is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, look: WaitLook) -> None:
        """Tells what is new."""
        if look.trouble != self._trouble:
            self._trouble = look.trouble
            if look.trouble:
                self._tell([f"{look.trouble}; still waiting"])
        is_due = look.now_seconds - self._told_seconds >= SAY_AGAIN_SECONDS
        if look.condition != self._known:
            self._tell([headline(look), *failure_lines(look.server)])
        elif load_of(look.server) is None or look.trouble or not is_due:
            return
        else:
            self._tell([headline(look)])
        self._known, self._told_seconds = look.condition, look.now_seconds

    def _tell(self, lines: Sequence[str]) -> None:
        if not self._is_read:
            return
        try:
            print("\n".join(lines), file=sys.stderr, flush=True)
        except OSError:
            # The exit code says whether the state was reached: nobody listening must not set it.
            self._is_read = False
            abandon_stderr()


def headline(look: WaitLook) -> str:
    """How it is, and what is waited for if it does not load."""
    server = look.server
    load = load_of(server)
    told = [server["state"], *filter(None, [server["reason"]])]
    if load is None:
        told.append(f"waiting for {' or '.join(look.states)}")
    else:
        told += load_parts(load)
    return f"{plain(server['name'])}: {', '.join(told)}"


def failure_lines(server: ServerView) -> list[str]:
    """What is known of a failure and what to do about it; nothing for a server that has none."""
    told = []
    ending = server["last_ending"]
    if server["state"] in _FAILURES:
        told.append(server["detail"])
        if server["advice"]:
            told.append(f"advice: {server['advice']}")
        if server["state"] == ServerState.CRASHED and ending is not None and ending.get("holder"):
            told.append(f"held by {ending['holder']}")
    if managed_of(server) is not None:
        told.append(outlook(server))
    elif server["state"] in _GONE and server["supervised"] is False:
        told.append("nobody starts it again: no systemd service or container keeps it up")
    name = plain(server["name"])
    return [f"{name}: {plain(text)}" for text in told if text]


def abandon_stderr() -> None:
    """Lets the interpreter's last flush succeed: nobody reads standard error any more."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stderr.fileno())
    os.close(devnull)
