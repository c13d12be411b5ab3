"""From rows back to values, whatever a newer or a damaged agent wrote there. No I/O here."""

from __future__ import annotations

import json
from enum import StrEnum
from itertools import pairwise
from math import inf, isfinite
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from vllm_agent.lifecycle.load_history import LOAD_BUCKETS_SECONDS, LOADING_STAGES, LoadHistory
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.restart_budget import RestartBudget
from vllm_agent.lifecycle.server_life import Ending, Launch, Memory, Tally, Transition
from vllm_agent.lifecycle.states import Initiator, Phase, ServerState
from vllm_agent.observations import Instant, ProcessId, Stage
from vllm_agent.store.bounds import MAX_UNKNOWN_VALUES
from vllm_agent.store.records import History, LaunchRecord
from vllm_agent.store.rows import (
    LAST_LOAD_SECONDS,
    LAST_STAGE_SECONDS,
    LOADS_SECONDS_SUM,
    LOADS_UP_TO,
    LONGEST_STAGE_SECONDS,
)

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Mapping

    from vllm_agent.store.rows import (
        EndingRow,
        HistoryRows,
        LaunchRow,
        MemoryRow,
        MemoryRows,
        TransitionRow,
    )

_Word = TypeVar("_Word", bound=StrEnum)
_Row = TypeVar("_Row")
_Value = TypeVar("_Value")
_Number = TypeVar("_Number", int, float)


class RowReader:
    """Turns rows into values; what this version does not know is left out and counted once."""

    def __init__(self, dropped: Counter[str]) -> None:
        self._dropped = dropped
        self._unknown: set[str] = set()

    def memory(self, rows: MemoryRows) -> Memory | None:
        """The memory in `rows`, or None where nothing can be made of it."""
        return self._read(self._memory, rows)

    def history(self, rows: HistoryRows) -> History:
        """The history in `rows`, without what this version does not know."""
        transitions = (self._read(self._transition, row) for row in rows.transitions)
        launches = (self._launch_record(*pair) for pair in rows.launches)
        return History(
            transitions=tuple(t for t in transitions if t is not None),
            launches=tuple(record for record in launches if record is not None),
        )

    def _read(self, read: Callable[[_Row], _Value], row: _Row) -> _Value | None:
        try:
            return read(row)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            # Any program may have written there: a column can hold any type.
            self._leave_out(str(error))
            return None

    def _leave_out(self, value: str) -> None:
        if value not in self._unknown and len(self._unknown) < MAX_UNKNOWN_VALUES:
            self._unknown.add(value)
            self._dropped["store_value"] += 1

    def _word(self, words: type[_Word], text: str, otherwise: _Word) -> _Word:
        try:
            return words(text)
        except ValueError as error:
            self._leave_out(str(error))
            return otherwise

    def _reason(self, text: str | None) -> Reason | None:
        return None if text is None else self._word(Reason, text, Reason.UNKNOWN)

    def _memory(self, rows: MemoryRows) -> Memory:
        row = rows.memory
        values: dict[str, dict[str, float]] = {}
        for counter in rows.counters:
            values.setdefault(counter.counter, {})[counter.key] = counter.value
        return Memory(
            phase=self._word(Phase, row.phase, Phase.UNOBSERVED),
            reason=self._reason(row.reason),
            has_served=bool(row.has_served),
            newest_start_seconds=_optional(float, row.newest_start_seconds),
            is_load_balanced=bool(row.is_load_balanced),
            budget=RestartBudget(
                limit=int(row.budget_limit),
                remaining=int(row.budget_remaining),
                is_limit_reached=bool(row.is_limit_reached),
            ),
            tally=self._tally(values),
            maintenance_until_unix_seconds=_optional(float, row.maintenance_until_unix_seconds),
            entered_unix_seconds=_optional(float, row.entered_unix_seconds),
            last_ending=self._last_ending(rows.last_ending),
            model_name=_text(row.model_name),
            version=_text(row.version),
            process=_process(row),
            launch_has_served=bool(row.launch_has_served),
            url=_text(row.url),
            is_discovered=bool(row.is_discovered),
            is_wanted=bool(row.is_wanted),
            is_forgotten=bool(row.is_forgotten),
            load_history=self._load_history(values),
            is_goal_up=None if row.is_goal_up is None else bool(row.is_goal_up),
            chosen_model=_text(row.chosen_model),
        )

    def _tally(self, values: Mapping[str, Mapping[str, float]]) -> Tally:
        transitions = self._known(_state_pair, int, values.get("transitions", {}))
        return Tally(
            launches=int(values.get("launches", {}).get("", 0)),
            restarts=self._known(Initiator, int, values.get("restarts", {})),
            crashes=self._known(Reason, int, values.get("crashes", {})),
            transitions=transitions,
            last_crash_unix_seconds=self._known(
                Reason, float, values.get("last_crash_unix_seconds", {})
            ),
        )

    def _load_history(self, values: Mapping[str, Mapping[str, float]]) -> LoadHistory:
        def stages(counter: str) -> Mapping[Stage, float]:
            return self._known(_loading_stage, _seconds, values.get(counter, {}))

        def seconds(counter: str) -> float | None:
            return self._known(str, _seconds, values.get(counter, {})).get("")

        return LoadHistory(
            counts=self._load_counts(values.get(LOADS_UP_TO, {})),
            sum_seconds=seconds(LOADS_SECONDS_SUM) or 0.0,
            last_seconds=seconds(LAST_LOAD_SECONDS),
            last_stage_seconds=stages(LAST_STAGE_SECONDS),
            longest_stage_seconds=stages(LONGEST_STAGE_SECONDS),
        )

    def _load_counts(self, values: Mapping[str, float]) -> tuple[int, ...]:
        """Loads per bucket of this version, from those that took no longer than each bound.

        What was counted for a bound that this version does not know is in the next longer bucket.
        """
        bounds = (*LOAD_BUCKETS_SECONDS, inf)
        up_to = self._known(float, _count, values)
        for unknown in up_to.keys() - set(bounds):
            self._leave_out(f"no bucket of loads up to {unknown:g} s")
        reached = [max((up_to[at] for at in up_to if at <= bound), default=0) for bound in bounds]
        return tuple(after - before for before, after in pairwise([0, *reached]))

    def _known(
        self,
        key: Callable[[str], _Value],
        number: Callable[[float], _Number],
        values: Mapping[str, float],
    ) -> Mapping[_Value, _Number]:
        pairs = (self._read(lambda p: (key(p[0]), number(p[1])), pair) for pair in values.items())
        return MappingProxyType(dict(pair for pair in pairs if pair is not None))

    def _transition(self, row: TransitionRow) -> Transition:
        return Transition(
            at=_remembered(row.at_unix_seconds),
            from_phase=Phase(row.from_phase),
            to_phase=Phase(row.to_phase),
            reason=self._reason(row.reason),
            detail=str(row.detail),
            launch_number=_optional(int, row.launch_number),
        )

    def _launch_record(self, launch_row: LaunchRow, row: EndingRow | None) -> LaunchRecord | None:
        launch = self._read(_launch, launch_row)
        ending = self._last_ending(row)
        return None if launch is None else LaunchRecord(launch, ending)

    def _last_ending(self, row: EndingRow | None) -> Ending | None:
        return None if row is None else self._read(self._ending, row)

    def _ending(self, row: EndingRow) -> Ending:
        return Ending(
            launch_number=int(row.number),
            at=_remembered(row.ended_unix_seconds),
            state=ServerState(row.end_state),
            reason=self._reason(row.end_reason),
            rule=int(row.end_rule),
            evidence=tuple(str(sentence) for sentence in json.loads(row.end_evidence)),
            exit_code=_optional(int, row.end_exit_code),
            signal=_optional(int, row.end_signal),
            holder=_text(row.end_holder) or "",
            log=() if row.end_log is None else self._read(_lines, row.end_log) or (),
            bundle=_text(row.end_bundle) or "",
        )


def _launch(row: LaunchRow) -> Launch:
    return Launch(
        number=int(row.number),
        start_seconds=_optional(float, row.start_seconds),
        first_seen=_remembered(row.first_seen_unix_seconds),
        has_served=bool(row.has_served),
        process=_process(row),
    )


def _process(row: MemoryRow | LaunchRow) -> ProcessId | None:
    boot_id, pid, start_ticks = row.process_boot_id, row.process_pid, row.process_start_ticks
    if boot_id is None or pid is None or start_ticks is None:
        return None
    return ProcessId(str(boot_id), int(pid), int(start_ticks))


def _remembered(unix_seconds: float) -> Instant:
    return Instant(monotonic_seconds=0.0, unix_seconds=float(unix_seconds))


def _optional(number: Callable[[float], _Number], value: float | None) -> _Number | None:
    return None if value is None else number(value)


def _text(value: str | None) -> str | None:
    return None if value is None else str(value)


def _lines(array: str) -> tuple[str, ...]:
    lines = json.loads(array)
    if not isinstance(lines, list):
        raise TypeError("the lines of a log are no array")
    return tuple(str(line) for line in lines)


def _loading_stage(key: str) -> Stage:
    stage = Stage(key)
    if stage not in LOADING_STAGES:
        raise ValueError(f"{stage} is no stage of a load")
    return stage


def _count(value: float) -> int:
    count = int(value)
    if count < 0:
        raise ValueError("a count is below zero")
    return count


def _seconds(value: float) -> float:
    seconds = float(value)
    if not isfinite(seconds) or seconds < 0:
        raise ValueError("a duration is below zero or without an end")
    return seconds


def _state_pair(key: str) -> tuple[ServerState, ServerState]:
    old, new = key.split(">")
    return ServerState(old), ServerState(new)
