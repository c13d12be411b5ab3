"""Tells from single lines of its log why a vLLM failed.

What counts is the last line of a traceback (`module.SomeError: …`), bare or logged as an error, and
a few errors that are told without one. A pattern is matched where a text begins, never inside it,
and no line below ERROR counts: prompts are logged there, and what vLLM only warns of it survives.
What is kept of a line is the name of its pattern, for its text may hold a prompt.

A line that only says that something else failed gives no cause (`Engine core initialization failed.
See root cause above.`, `EngineCore failed to start.`, `EngineDeadError: …`): exit statuses say as
much, and a stop brings some of them about too. One that tells of a SIGKILL does: nothing else need
be in the log then, and no stop logs it.
"""

from __future__ import annotations

import re
from typing import Final

from vllm_agent.host.failure_cause import Cause, Rank
from vllm_agent.host.failure_table import PATTERNS, START_REASONS

__all__ = ["CANDIDATE", "START_REASONS", "Cause", "Rank", "cause_of"]

MAX_MESSAGE_CHARACTERS: Final = 4096
"""Of a longer message only the beginning is read: the words that tell a cause stand within the
first few hundred characters."""

CANDIDATE: Final = re.compile(
    rb"Error(?:: |_)|: error: |Value error, |Assertion failed, |OfflineModeIsEnabled|Timeout: "
    rb"|Exception: |MemoryError|Failed to load model - |Errno 98|Watchdog caught"
    rb"|Process group watchdog|Memory access fault"
)
"""Has a match in every line that may be a cause; made to be searched over whole chunks of a log: an
alternative costs where its first letter stands, so each begins with one that is rare."""

_LEVELS: Final = frozenset({None, "ERROR", "CRITICAL"})
_CLASS: Final = re.compile(r"[A-Za-z_][\w.]{0,200}")
_OTHER_ERRORS: Final = frozenset(
    {
        "ConnectTimeout", "NVMLError_DriverNotLoaded", "NVMLError_LibraryNotFound",
        "OfflineModeIsEnabled", "ReadTimeout",
    }
)  # fmt: skip
_RANK: Final = "[rank"
_NATIVE: Final = re.compile(
    r"(?:\[rank\d{1,6}\]:)?\[E[^\[\]]{1,100}\] (?:\[[^\[\]]{1,200}\] ?)?"
    r"(?:Process group watchdog thread terminated with exception: (?:\[[^\[\]]{1,200}\] ?)?)?"
)
_QUOTED: Final = re.compile(r"Worker failed with error ['\"]|Value error, |Assertion failed, ")


def cause_of(message: str, level: str | None) -> Cause | None:
    """The cause that a line without its prefix tells; None where it tells none.

    `level` is that of the line, None where it has none, as the last one of a traceback.
    """
    message = message[:MAX_MESSAGE_CHARACTERS]
    if level not in _LEVELS:
        return None
    raised = _raised(message)
    for pattern in PATTERNS:
        if raised is not None and pattern.matches(*raised):
            return pattern.cause
        is_alone = pattern.is_bare if level is None else pattern.is_logged
        if is_alone and pattern.matches("", message):
            return pattern.cause
    return None


def _raised(message: str) -> tuple[str, str] | None:
    """The class and the text of an error; the class is empty where the line quotes another's text.

    vLLM quotes what a worker failed with, pydantic what a check found, torch's watchdog what ended
    it: there the quoted text may be all that is left of the cause.
    """
    native = _NATIVE.match(message)
    if native is not None:
        return "", message[native.end() :]
    # torch writes the rank before each line of a traceback, Python a bar before those of a group.
    if message.startswith(_RANK):
        message = message.partition("]: ")[2]
    message = message.lstrip(" |")
    head, _, text = message.partition(": ")
    if not _is_error(head.rstrip()):
        head, text = "", message
    quoted = _QUOTED.match(text)
    if quoted is not None:
        return "", text[quoted.end() :]
    return (head.rstrip(), text) if head else None


def _is_error(name: str) -> bool:
    if _CLASS.fullmatch(name) is None:
        return False
    name = name.rpartition(".")[2]
    return name.endswith(("Error", "Exception")) or name in _OTHER_ERRORS
