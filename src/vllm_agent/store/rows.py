"""Between the lifecycle's values and database rows, in both directions. No I/O here.

Instants keep their unix part only: the monotonic clock starts again with the host. Reading gives
them a monotonic part of 0.0.
"""

from __future__ import annotations

import json
from itertools import accumulate
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple

from vllm_agent.lifecycle.load_history import LOAD_BUCKETS_SECONDS
from vllm_agent.store.bounds import MAX_HOLDER_BYTES, MAX_LOG_BYTES, MAX_TEXT_BYTES

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator, Sequence

    from vllm_agent.lifecycle.load_history import LoadHistory
    from vllm_agent.lifecycle.server_life import Ending, Launch, Memory, Tally, Transition
    from vllm_agent.observations import ProcessId


LOADS_UP_TO: Final = "loads_up_to_seconds"
LOADS_SECONDS_SUM: Final = "loads_seconds_sum"
LONGEST_STAGE_SECONDS: Final = "longest_load_stage_seconds"
LAST_LOAD_SECONDS: Final = "last_load_seconds"
LAST_STAGE_SECONDS: Final = "last_load_stage_seconds"
LAST_LOAD: Final = (LAST_LOAD_SECONDS, LAST_STAGE_SECONDS)
"""Words of the column `counter` for what loads took; those of the last one also shrink."""


class MemoryRow(NamedTuple):
    """A server's memory, but for its counters.

    `last_ending_launch` is the number of the launch whose ending was the last; the history has it.
    """

    server: str
    phase: str
    reason: str | None
    has_served: bool
    newest_start_seconds: float | None
    is_load_balanced: bool
    budget_limit: int
    budget_remaining: int
    is_limit_reached: bool
    maintenance_until_unix_seconds: float | None
    entered_unix_seconds: float | None
    last_ending_launch: int | None
    model_name: str | None
    version: str | None
    process_boot_id: str | None
    process_pid: int | None
    process_start_ticks: int | None
    launch_has_served: bool
    url: str | None
    is_discovered: bool
    is_wanted: bool
    is_forgotten: bool
    is_goal_up: bool | None
    chosen_model: str | None
    committed_unix_seconds: float


class CounterRow(NamedTuple):
    """One number of a server: a counter or a timestamp that only grows, or a fact that changes."""

    server: str
    counter: str
    key: str
    value: float


class LaunchRow(NamedTuple):
    """A launch, without its ending."""

    server: str
    number: int
    start_seconds: float | None
    first_seen_unix_seconds: float
    has_served: bool
    process_boot_id: str | None
    process_pid: int | None
    process_start_ticks: int | None


class EndingRow(NamedTuple):
    """The ending of a launch; `end_evidence` is a JSON array of sentences, `end_log` of lines."""

    server: str
    number: int
    ended_unix_seconds: float
    end_state: str
    end_reason: str | None
    end_rule: int
    end_evidence: str
    end_exit_code: int | None
    end_signal: int | None
    end_holder: str | None
    end_log: str | None
    end_bundle: str | None


class TransitionRow(NamedTuple):
    """A change of phase."""

    server: str
    at_unix_seconds: float
    from_phase: str
    to_phase: str
    reason: str | None
    detail: str
    launch_number: int | None


class MemoryRows(NamedTuple):
    """Everything of one server's memory; `last_ending` is only read: endings are history.

    `counters` only grow. `last_load` replaces what was known of the load before, where there was
    one. Both are one table, which is read as `counters`.
    """

    memory: MemoryRow
    counters: tuple[CounterRow, ...]
    last_load: tuple[CounterRow, ...] = ()
    last_ending: EndingRow | None = None


HistoryRow = LaunchRow | EndingRow | TransitionRow


class HistoryRows(NamedTuple):
    """History as the database has it, newest first."""

    transitions: Sequence[TransitionRow] = ()
    launches: Sequence[tuple[LaunchRow, EndingRow | None]] = ()


def storable(text: str) -> str:
    """`text` as UTF-8 can hold it: file names and arguments may have bytes that it cannot."""
    return text.encode("utf-8", "backslashreplace").decode()


def memory_rows(server: str, memory: Memory, now_unix_seconds: float) -> MemoryRows:
    """The rows of `memory`."""
    boot_id, pid, start_ticks = _process_columns(memory.process)
    row = MemoryRow(
        server=server,
        phase=memory.phase.value,
        reason=memory.reason,
        has_served=memory.has_served,
        newest_start_seconds=memory.newest_start_seconds,
        is_load_balanced=memory.is_load_balanced,
        budget_limit=memory.budget.limit,
        budget_remaining=memory.budget.remaining,
        is_limit_reached=memory.budget.is_limit_reached,
        maintenance_until_unix_seconds=memory.maintenance_until_unix_seconds,
        entered_unix_seconds=memory.entered_unix_seconds,
        last_ending_launch=memory.last_ending.launch_number if memory.last_ending else None,
        model_name=_storable_name(memory.model_name),
        version=_storable_name(memory.version),
        process_boot_id=boot_id,
        process_pid=pid,
        process_start_ticks=start_ticks,
        launch_has_served=memory.launch_has_served,
        url=_storable_name(memory.url),
        is_discovered=memory.is_discovered,
        is_wanted=memory.is_wanted,
        is_forgotten=memory.is_forgotten,
        is_goal_up=memory.is_goal_up,
        chosen_model=_storable_name(memory.chosen_model),
        committed_unix_seconds=now_unix_seconds,
    )
    loads = memory.load_history
    return MemoryRows(
        row,
        counters=tuple(
            CounterRow(server, *counter)
            for counter in (*_counters(memory.tally), *_load_counters(loads))
        ),
        last_load=tuple(CounterRow(server, *fact) for fact in _last_load(loads)),
    )


def _counters(tally: Tally) -> Iterator[tuple[str, str, float]]:
    yield "launches", "", tally.launches
    for initiator, count in tally.restarts.items():
        yield "restarts", initiator.value, count
    for reason, count in tally.crashes.items():
        yield "crashes", reason.value, count
    for (old, new), count in tally.transitions.items():
        yield "transitions", f"{old}>{new}", count
    for reason, unix_seconds in tally.last_crash_unix_seconds.items():
        yield "last_crash_unix_seconds", reason.value, unix_seconds


def _load_counters(loads: LoadHistory) -> Iterator[tuple[str, str, float]]:
    if not loads.count:
        return
    # By the bound and not by its place, and with all shorter loads: a version with other bounds
    # still reads what is true of its own.
    for bound, count in zip((*LOAD_BUCKETS_SECONDS, inf), accumulate(loads.counts), strict=True):
        yield LOADS_UP_TO, str(bound), count
    yield LOADS_SECONDS_SUM, "", loads.sum_seconds
    for stage, seconds in loads.longest_stage_seconds.items():
        yield LONGEST_STAGE_SECONDS, stage.value, seconds


def _last_load(loads: LoadHistory) -> Iterator[tuple[str, str, float]]:
    if loads.last_seconds is not None:
        yield LAST_LOAD_SECONDS, "", loads.last_seconds
    for stage, seconds in loads.last_stage_seconds.items():
        yield LAST_STAGE_SECONDS, stage.value, seconds


def launch_row(server: str, launch: Launch) -> LaunchRow:
    """The row of `launch`."""
    boot_id, pid, start_ticks = _process_columns(launch.process)
    return LaunchRow(
        server=server,
        number=launch.number,
        start_seconds=launch.start_seconds,
        first_seen_unix_seconds=launch.first_seen.unix_seconds,
        has_served=launch.has_served,
        process_boot_id=boot_id,
        process_pid=pid,
        process_start_ticks=start_ticks,
    )


def ending_row(server: str, ending: Ending, dropped: Counter[str]) -> EndingRow:
    """The row of `ending`; text that is cut is counted in `dropped`."""
    # The last lines say most.
    log = _bounded(ending.log[::-1], dropped, MAX_LOG_BYTES)[::-1]
    return EndingRow(
        server=server,
        number=ending.launch_number,
        ended_unix_seconds=ending.at.unix_seconds,
        end_state=ending.state.value,
        end_reason=ending.reason,
        end_rule=ending.rule,
        end_evidence=json.dumps(_bounded(ending.evidence, dropped), ensure_ascii=False),
        end_exit_code=ending.exit_code,
        end_signal=ending.signal,
        end_holder="".join(_bounded((ending.holder,), dropped, MAX_HOLDER_BYTES)) or None,
        end_log=json.dumps(log, ensure_ascii=False) if log else None,
        end_bundle=_storable_name(ending.bundle or None),
    )


def transition_row(server: str, transition: Transition, dropped: Counter[str]) -> TransitionRow:
    """The row of `transition`; text that is cut is counted in `dropped`."""
    return TransitionRow(
        server=server,
        at_unix_seconds=transition.at.unix_seconds,
        from_phase=transition.from_phase.value,
        to_phase=transition.to_phase.value,
        reason=transition.reason,
        detail="".join(_bounded((transition.detail,), dropped)),
        launch_number=transition.launch_number,
    )


def _process_columns(process: ProcessId | None) -> tuple[str | None, int | None, int | None]:
    if process is None:
        return None, None, None
    return _storable_name(process.boot_id), process.pid, process.start_ticks


def _storable_name(name: str | None) -> str | None:
    return None if name is None else _cut(storable(name).encode(), MAX_TEXT_BYTES)


def _bounded(
    texts: Sequence[str], dropped: Counter[str], max_bytes: int = MAX_TEXT_BYTES
) -> list[str]:
    """As many of `texts`, from the first, as fit into the bound together; the last one cut."""
    kept: list[str] = []
    left_bytes = max_bytes
    for text in texts:
        encoded = text.encode("utf-8", "backslashreplace")
        if left_bytes > 0:
            kept.append(_cut(encoded, left_bytes))
        dropped["store_text"] += len(encoded) > max(0, left_bytes)
        left_bytes -= len(encoded)
    return kept


def _cut(encoded: bytes, max_bytes: int) -> str:
    return encoded[:max_bytes].decode("utf-8", "ignore")
