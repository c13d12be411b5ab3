"""The past of servers as lines of plain text, in the order in which it happened. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from vllm_agent.cli.text import age, local_time, plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from vllm_agent.expose.history_view import (
        EndingView,
        HistoryView,
        LaunchView,
        TransitionView,
    )

_GAP: Final = "  "
_INDENT: Final = "    "
"""No time begins with it: what belongs to an entry is told from the next one."""

_SEEN, _CHANGED, _ENDED = range(3)


@dataclass(frozen=True, slots=True)
class _Event:
    """Something that happened; what happened at the same time is told launch by launch.

    `more` are lines that belong to it.
    """

    at_unix_seconds: float
    launch: int
    kind: int
    text: str
    more: tuple[str, ...] = ()

    @property
    def position(self) -> tuple[float, int, int]:
        return self.at_unix_seconds, self.launch, self.kind


def server_entries(history: HistoryView, *, with_log: bool = False) -> list[str]:
    """Transitions, launches and endings of one server in the order of time, in local time.

    Each is a line, or several of which all but the first are indented: what is known of an ending,
    and, with `with_log`, what was kept of its log.
    """
    return [_entry(event) for event in _events(history, with_log=with_log)]


def merged_entries(histories: Sequence[HistoryView], *, with_log: bool = False) -> list[str]:
    """The same of several servers at once, each with the name of its server."""
    names = [plain(history["server"]) for history in histories]
    width = max(map(len, names), default=0)
    events = [
        (event, name.ljust(width))
        for name, history in zip(names, histories, strict=True)
        for event in _events(history, with_log=with_log)
    ]
    events.sort(key=lambda event: event[0].at_unix_seconds)
    return [_entry(event, name) for event, name in events]


def _entry(event: _Event, *names: str) -> str:
    first = _GAP.join((local_time(event.at_unix_seconds), *names, plain(event.text)))
    return "\n".join((first, *((_INDENT + plain(line)).rstrip() for line in event.more)))


def _events(history: HistoryView, *, with_log: bool) -> list[_Event]:
    oldest_first = history["transitions"][::-1]
    advised = _advised(history["launches"])
    events = list(_changes(oldest_first))
    for launch in history["launches"]:
        events.append(_seen(launch))
        ending = launch["ending"]
        if ending is not None:
            more = tuple(_known_of(ending, advised, with_log=with_log))
            events.append(replace(_end(ending, oldest_first), more=more))
    # Transitions of one moment stay in the order in which they were committed.
    events.sort(key=lambda event: event.position)
    return events


def _changes(oldest_first: Iterable[TransitionView]) -> Iterator[_Event]:
    launch = 0
    for transition in oldest_first:
        launch = transition["launch"] or launch
        at = transition["timestamp_seconds"] or 0.0
        yield _Event(at, launch, _CHANGED, _transition(transition))


def _seen(launch: LaunchView) -> _Event:
    number, start = launch["number"], launch["process_start_time_seconds"]
    process = "" if start is None else f", its process started at {local_time(start)}"
    seen = launch["first_seen_timestamp_seconds"] or 0.0
    return _Event(seen, number, _SEEN, f"launch {number} seen{process}")


def _end(ending: EndingView, oldest_first: Sequence[TransitionView]) -> _Event:
    number = ending["launch"]
    text = f"launch {number} {_ended(ending)}{_settled(ending, oldest_first)}"
    return _Event(ending["timestamp_seconds"] or 0.0, number, _ENDED, text)


def _advised(newest_first: Sequence[LaunchView]) -> dict[str, int]:
    """The newest launch of those that have the same advice: a crash loop needs it once."""
    endings = [launch["ending"] for launch in reversed(newest_first)]
    return {
        advice: ending["launch"]
        for ending in endings
        if ending is not None and (advice := ending.get("advice"))
    }


def _known_of(ending: EndingView, advised: Mapping[str, int], *, with_log: bool) -> Iterator[str]:
    """Who was in the way, what to do, where the evidence is, and what the server said itself."""
    # An agent of an older version tells of none of these.
    holder, advice, log = ending.get("holder"), ending.get("advice"), ending.get("log") or []
    bundle = ending.get("bundle")
    if holder:
        yield f"held by: {holder}"
    if advice and advised[advice] == ending["launch"]:
        yield f"advice: {advice}"
    if bundle:
        yield f"evidence: {bundle}"
    if log and with_log:
        yield "log:"
        yield from (_INDENT + line for line in log)
    elif log:
        yield f"log: {len(log)} line{'' if len(log) == 1 else 's'} kept, --log shows them"


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
