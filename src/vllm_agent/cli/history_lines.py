"""The past of servers as lines of plain text, in the order in which it happened. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vllm_agent.cli.text import age, local_time, plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vllm_agent.expose.history_view import (
        EndingView,
        HistoryView,
        LaunchView,
        TransitionView,
    )

_GAP: Final = "  "
_SEEN, _CHANGED, _ENDED = range(3)


@dataclass(frozen=True, slots=True)
class _Event:
    """Something that happened; what happened at the same time is told launch by launch."""

    at_unix_seconds: float
    launch: int
    kind: int
    text: str

    @property
    def position(self) -> tuple[float, int, int]:
        return self.at_unix_seconds, self.launch, self.kind


def server_lines(history: HistoryView) -> list[str]:
    """Transitions, launches and endings of one server in the order of time, in local time."""
    return [_line(event.at_unix_seconds, plain(event.text)) for event in _events(history)]


def merged_lines(histories: Sequence[HistoryView]) -> list[str]:
    """The same of several servers at once, each line with the name of its server."""
    names = [plain(history["server"]) for history in histories]
    width = max(map(len, names), default=0)
    events = [
        (event.at_unix_seconds, name, plain(event.text))
        for name, history in zip(names, histories, strict=True)
        for event in _events(history)
    ]
    events.sort(key=lambda event: event[0])
    return [_line(at, name.ljust(width), text) for at, name, text in events]


def _line(at_unix_seconds: float, *parts: str) -> str:
    return _GAP.join((local_time(at_unix_seconds), *parts))


def _events(history: HistoryView) -> list[_Event]:
    oldest_first = history["transitions"][::-1]
    events = [
        *_changes(oldest_first),
        *(event for one in history["launches"] for event in _launch_events(one, oldest_first)),
    ]
    # Transitions of one moment stay in the order in which they were committed.
    events.sort(key=lambda event: event.position)
    return events


def _changes(oldest_first: Iterable[TransitionView]) -> Iterator[_Event]:
    launch = 0
    for transition in oldest_first:
        launch = transition["launch"] or launch
        at = transition["timestamp_seconds"] or 0.0
        yield _Event(at, launch, _CHANGED, _transition(transition))


def _launch_events(launch: LaunchView, oldest_first: Sequence[TransitionView]) -> Iterator[_Event]:
    number, start = launch["number"], launch["process_start_time_seconds"]
    process = "" if start is None else f", its process started at {local_time(start)}"
    seen = launch["first_seen_timestamp_seconds"] or 0.0
    yield _Event(seen, number, _SEEN, f"launch {number} seen{process}")
    ending = launch["ending"]
    if ending is not None:
        at = ending["timestamp_seconds"] or 0.0
        text = f"launch {number} {_ended(ending)}{_settled(ending, oldest_first)}"
        yield _Event(at, number, _ENDED, text)


def _ended(ending: EndingView) -> str:
    told = [ending["state"]]
    if ending["reason"]:
        told.append(ending["reason"])
    if ending["exit_code"] is not None:
        told.append(f"exit code {ending['exit_code']}")
    if ending["signal"] is not None:
        told.append(f"signal {ending['signal']}")
    return f"ended: {', '.join(told)}" + "".join(f"; {fact}" for fact in ending["evidence"])


def _settled(ending: EndingView, oldest_first: Sequence[TransitionView]) -> str:
    """How long after the end it was known, where the transition that committed it is at hand."""
    at = ending["timestamp_seconds"] or 0.0
    # A limit may have cut off the transition in question: what is left would tell a later one.
    if not oldest_first or (oldest_first[0]["timestamp_seconds"] or 0.0) > at:
        return ""
    for transition in oldest_first:
        is_it = (
            transition["launch"] == ending["launch"]
            and transition["to_state"] == ending["state"] != transition["from_state"]
        )
        late_seconds = (transition["timestamp_seconds"] or 0.0) - at
        if is_it and late_seconds >= 0:
            whole = round(late_seconds)
            return f" (settled {age(whole)} later)" if whole else ""
    return ""


def _transition(transition: TransitionView) -> str:
    old, new = transition["from_state"], transition["to_state"]
    if transition["from_phase"] == transition["to_phase"]:
        # Nothing moved: it is a note, and the detail says what of.
        return transition["detail"] or transition["reason"] or f"still {new}"
    if old == new:
        moved = f"{new} ({transition['from_phase']} -> {transition['to_phase']})"
    else:
        moved = f"{old} -> {new}"
    return _GAP.join(filter(None, (moved, transition["reason"], transition["detail"])))
