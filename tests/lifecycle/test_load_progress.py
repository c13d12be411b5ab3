"""How far a load is, and whether it moves, by what its witnesses saw."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lifecycle.sightings import process
from vllm_agent.lifecycle.load_history import LOADING_STAGES, LoadHistory, seconds_left
from vllm_agent.lifecycle.load_progress import (
    BUSY_SECONDS,
    MOVED_BYTES,
    UNMAPPED_LOOKS,
    LoadProgress,
)
from vllm_agent.observations import (
    Download,
    Instant,
    LoadLook,
    LogProgress,
    Shard,
    Stage,
    Witness,
)

BEGAN = 1_000_000.0
GIB = 2**30


def look(at: float = 0.0, **seen: Any) -> LoadLook:
    """A look `at` seconds after the first; the processes may be read unless told otherwise."""
    moment = Instant(100.0 + at, BEGAN + 5.0 + at)
    return LoadLook(**{"process": process(1), "at": moment, "io_bytes": 0, **seen})


@dataclass
class Loading:
    """A load that is looked at again and again; it is 5 s old at the first look."""

    load: LoadProgress
    now: float = 0.0
    history: LoadHistory = field(default_factory=LoadHistory)

    @classmethod
    def begun(cls, **seen: Any) -> Loading:
        return cls(LoadProgress.begun(look(**seen), BEGAN))

    def see(self, after: float = 1.0, **seen: Any) -> Loading:
        self.now += after
        self.load = self.load.after(
            look(self.now, **seen), self.history, start_seconds=120.0, load_seconds=300.0
        )
        return self

    @property
    def moment(self) -> Instant:
        return self.load.look.at


def shards(number: int, count: int = 11, *, pid: int = 7) -> tuple[Shard, ...]:
    return (Shard(pid, number, count, (number - 1) * GIB, count * GIB),)


def fetching(done: int, size: int | None = None) -> Download:
    source = None if size is None else Witness.HF_CACHE
    return Download(done, size, source, is_under_way=True)


def said(stage: Stage | None, lines: int = 1) -> LogProgress:
    return LogProgress(stage=stage, new_lines=lines)


# Stages.


def test_a_load_begins_with_the_start_of_its_process() -> None:
    load = Loading.begun().load
    assert load.stage is Stage.INIT
    assert load.seconds_in(Stage.INIT, load.look.at) == 5.0
    assert load.began == Instant(95.0, BEGAN)


def test_a_whole_load_passes_through_every_stage() -> None:
    loading = Loading.begun()
    stages = []
    for seen in (
        {"download": fetching(GIB)},
        {"has_engine": True, "shards": ()},
        {"has_engine": True, "shards": shards(1)},
        {"has_engine": True, "shards": (), "log": said(Stage.COMPILE)},
        {"has_engine": True, "shards": (), "log": said(Stage.WARMUP)},
    ):
        loading.see(10.0, **seen)
        stages.append(loading.load.stage)
    assert stages == [
        Stage.DOWNLOAD,
        Stage.INIT,
        Stage.LOAD_WEIGHTS,
        Stage.COMPILE,
        Stage.WARMUP,
    ]
    over = loading.load.entered(Stage.NONE, Instant(160.0, BEGAN + 65.0))
    assert dict(over.stage_seconds) == {
        Stage.INIT: 25.0,
        Stage.DOWNLOAD: 10.0,
        Stage.LOAD_WEIGHTS: 10.0,
        Stage.COMPILE: 10.0,
        Stage.WARMUP: 10.0,
    }
    assert over.seconds_in(Stage.WARMUP, Instant(500.0, BEGAN + 405.0)) == 10.0


def test_a_download_is_silent_in_the_log_and_seen_in_the_cache() -> None:
    loading = Loading.begun().see(log=said(Stage.LOAD_WEIGHTS), download=fetching(GIB))
    assert loading.load.stage is Stage.DOWNLOAD


def test_a_mapped_file_outweighs_what_the_log_said_before() -> None:
    loading = Loading.begun().see(log=said(Stage.COMPILE)).see(log=said(Stage.COMPILE))
    loading.see(log=said(Stage.COMPILE), shards=shards(3))
    assert loading.load.stage is Stage.LOAD_WEIGHTS


def test_a_file_that_is_left_mapped_does_not_outweigh_what_the_log_says_since() -> None:
    """A model may keep parts of it, and be compiled all the same."""
    bar = LogProgress(Stage.LOAD_WEIGHTS, 9, shards_done=3, shard_count=4)
    loading = Loading.begun().see(shards=shards(4, 4), log=bar)
    stages = [loading.load.stage]
    compiling = replace(bar, stage=Stage.COMPILE, shards_done=4, new_lines=12)
    for _ in range(2):
        loading.see(shards=shards(4, 4), log=compiling)
        stages.append(loading.load.stage)
    # A second model, for speculative decoding.
    for _ in range(2):
        loading.see(shards=shards(1, 2), log=compiling)
        stages.append(loading.load.stage)
    assert stages == [
        Stage.LOAD_WEIGHTS,
        *[Stage.COMPILE] * 2,
        *[Stage.LOAD_WEIGHTS] * 2,
    ]


@pytest.mark.parametrize("stage", [Stage.COMPILE, None])
def test_an_agent_that_comes_late_believes_the_log(stage: Stage | None) -> None:
    loading = Loading.begun(shards=shards(4, 4), log=said(stage))
    loading.see(shards=shards(4, 4), log=said(stage))
    assert loading.load.stage is (stage or Stage.LOAD_WEIGHTS)


def test_between_two_files_the_weights_are_still_loading() -> None:
    loading = Loading.begun().see(shards=shards(3))
    for _ in range(UNMAPPED_LOOKS - 1):
        loading.see(shards=())
        assert loading.load.stage is Stage.LOAD_WEIGHTS
    loading.see(shards=shards(4))
    assert loading.load.unmapped_looks == 0
    assert loading.load.stage is Stage.LOAD_WEIGHTS


@pytest.mark.parametrize(("is_eager", "stage"), [(False, Stage.COMPILE), (True, Stage.WARMUP)])
def test_without_a_log_what_follows_the_weights_is_told_by_the_command_line(
    is_eager: bool,  # noqa: FBT001
    stage: Stage,
) -> None:
    loading = Loading.begun().see(shards=shards(11))
    for _ in range(UNMAPPED_LOOKS):
        loading.see(shards=(), is_eager=is_eager)
    assert loading.load.stage is stage
    assert loading.load.ratio(Stage.LOAD_WEIGHTS) == 1.0


def test_a_bar_that_stands_still_outweighs_that_no_file_is_mapped() -> None:
    bar = LogProgress(Stage.LOAD_WEIGHTS, 9, shards_done=3, shard_count=11)
    loading = Loading.begun().see(shards=shards(4), log=bar)
    for _ in range(2 * UNMAPPED_LOOKS):
        loading.see(shards=(), log=bar)
        assert loading.load.stage is Stage.LOAD_WEIGHTS
    loading.see(shards=(), log=replace(bar, shards_done=11))
    assert loading.load.stage is Stage.COMPILE


# Weights.


def test_of_several_workers_the_slowest_counts() -> None:
    loading = Loading.begun().see(shards=(*shards(7), *shards(4, pid=8), *shards(9, pid=9)))
    weights = loading.load.weights
    assert weights is not None
    assert (weights.shard, weights.shards) == (4, 11)
    assert loading.load.ratio(Stage.LOAD_WEIGHTS) == pytest.approx(3 / 11)


def test_files_of_unknown_size_are_counted() -> None:
    loading = Loading.begun().see(shards=(Shard(7, 4, 8),))
    assert loading.load.ratio(Stage.LOAD_WEIGHTS) == 3 / 8


def test_where_mappings_cannot_be_seen_vllms_own_bar_tells() -> None:
    bar = LogProgress(Stage.LOAD_WEIGHTS, 9, shards_done=4, shard_count=8, weights_bytes=8 * GIB)
    loading = Loading.begun(io_bytes=None).see(log=bar, io_bytes=None)
    weights = loading.load.weights
    assert weights is not None
    assert (weights.shard, weights.shards, weights.source) == (5, 8, Witness.LOG)
    assert (weights.done_bytes, weights.size_bytes) == (4 * GIB, 8 * GIB)
    loading.see(log=replace(bar, shards_done=8, new_lines=10), io_bytes=None)
    assert loading.load.ratio(Stage.LOAD_WEIGHTS) == 1.0
    assert loading.load.stage is Stage.LOAD_WEIGHTS


def test_what_was_mapped_outweighs_the_bar() -> None:
    bar = LogProgress(Stage.LOAD_WEIGHTS, 9, shards_done=2, shard_count=11)
    loading = Loading.begun().see(shards=shards(4)).see(shards=(), log=bar)
    assert loading.load.weights is not None
    assert loading.load.weights.shard == 4


def test_a_load_that_ends_in_the_middle_has_not_loaded_its_weights() -> None:
    load = Loading.begun().see(shards=shards(4)).load
    ended = load.entered(Stage.NONE, load.look.at)
    assert ended.ratio(Stage.LOAD_WEIGHTS) == pytest.approx(3 / 11)


# Downloads.


def test_a_download_of_unknown_size_has_bytes_and_no_share() -> None:
    loading = Loading.begun().see(download=fetching(GIB))
    assert loading.load.ratio(Stage.DOWNLOAD) is None
    loading.see(download=fetching(GIB, 4 * GIB))
    assert loading.load.ratio(Stage.DOWNLOAD) == 0.25


def test_a_download_that_begins_anew_is_shown_as_it_is() -> None:
    loading = Loading.begun().see(download=fetching(3 * GIB, 4 * GIB))
    loading.see(download=fetching(GIB, 4 * GIB))
    assert loading.load.ratio(Stage.DOWNLOAD) == 0.25
    # To lose a file is no progress, to fetch it again is.
    assert loading.load.last_progress.since(loading.moment) == -1.0
    loading.see(download=fetching(2 * GIB, 4 * GIB))
    assert loading.load.last_progress == loading.moment


def test_a_share_is_never_more_than_all() -> None:
    loading = Loading.begun().see(download=fetching(5 * GIB, 4 * GIB))
    assert loading.load.ratio(Stage.DOWNLOAD) == 1.0


# Progress and its absence.

SIGNS: dict[Witness, tuple[dict[str, Any], dict[str, Any]]] = {
    Witness.COMPONENTS: ({}, {"has_worker": True}),
    Witness.HF_CACHE: ({"download": fetching(1)}, {"download": fetching(2)}),
    Witness.SHARDS: ({"shards": shards(1)}, {"shards": shards(2)}),
    Witness.IO: ({"io_bytes": 5}, {"io_bytes": 5 + MOVED_BYTES}),
    Witness.GPU_MEMORY: ({"gpu_bytes": 5}, {"gpu_bytes": 5 + MOVED_BYTES}),
    Witness.COMPILE_CACHE: ({"compile_changes": 1}, {"compile_changes": 2}),
    Witness.LOG: ({"log": said(None, 1)}, {"log": said(None, 2)}),
}


@pytest.mark.parametrize("witness", SIGNS)
def test_each_witness_alone_shows_that_a_load_moves(witness: Witness) -> None:
    before, after = SIGNS[witness]
    loading = Loading.begun(has_engine=True, **before).see(1.0, has_engine=True, **before)
    loading.see(310.0, has_engine=True, **before)
    assert loading.load.is_stalled
    loading.see(1.0, has_engine=True, **after)
    assert loading.load.is_stalled is False
    assert loading.load.signs[witness] == loading.moment
    assert loading.load.last_progress == loading.moment


@pytest.mark.parametrize("field", ["io_bytes", "gpu_bytes"])
def test_a_little_is_no_progress_until_it_comes_together(field: str) -> None:
    loading = Loading.begun(has_engine=True, **{field: 0}).see(has_engine=True, **{field: 0})
    begun = loading.load.last_progress
    half = MOVED_BYTES // 2
    loading.see(1.0, has_engine=True, **{field: half})
    assert loading.load.last_progress == begun
    loading.see(1.0, has_engine=True, **{field: 2 * half})
    assert loading.load.last_progress == loading.moment


def test_memory_that_is_given_back_and_taken_again_is_progress() -> None:
    loading = Loading.begun(gpu_bytes=GIB).see(gpu_bytes=GIB).see(gpu_bytes=0)
    loading.see(gpu_bytes=MOVED_BYTES)
    assert loading.load.signs[Witness.GPU_MEMORY] == loading.moment


def test_a_load_stalls_after_its_timeout_and_not_before() -> None:
    loading = Loading.begun(has_engine=True)
    loading.see(299.0, has_engine=True)
    assert loading.load.is_stalled is False
    loading.see(1.0, has_engine=True)
    assert loading.load.is_stalled is True


def test_before_the_first_engine_the_start_timeout_holds() -> None:
    loading = Loading.begun().see(119.0)
    assert loading.load.is_stalled is False
    loading.see(1.0)
    assert loading.load.is_stalled is True


def test_a_slow_load_that_moves_never_stalls() -> None:
    loading = Loading.begun(has_engine=True, io_bytes=0)
    for number in range(1, 50):
        loading.see(299.0, has_engine=True, io_bytes=number * MOVED_BYTES)
        assert loading.load.is_stalled is False


def test_where_nothing_can_be_seen_nothing_is_claimed() -> None:
    loading = Loading.begun(io_bytes=None).see(1000.0, io_bytes=None)
    assert loading.load.is_stalled is None


@pytest.mark.parametrize(
    ("stage", "is_stalled"),
    [
        (None, None),
        (Stage.INIT, None),
        (Stage.LOAD_WEIGHTS, None),
        (Stage.COMPILE, True),
        (Stage.WARMUP, True),
    ],
)
def test_a_log_alone_is_silent_while_files_are_fetched_and_read(
    stage: Stage | None,
    is_stalled: bool | None,  # noqa: FBT001
) -> None:
    loading = Loading.begun(io_bytes=None, log=said(stage))
    loading.see(1000.0, io_bytes=None, log=said(stage))
    assert loading.load.is_stalled is is_stalled


# An agent that comes in the middle.


def late(**seen: Any) -> Loading:
    load = LoadProgress.begun(look(1000.0, has_engine=True, **seen), BEGAN)
    return Loading(load, now=1000.0)


def test_what_was_before_it_came_is_no_time_of_a_stage_and_no_progress() -> None:
    loading = late()
    assert loading.load.is_watched_late
    assert loading.load.seen_progress is None
    loading.see(10.0, has_engine=True)
    assert loading.load.seconds_in(Stage.INIT, loading.moment) == 10.0
    assert loading.load.seen_progress is None
    loading.see(10.0, has_engine=True, io_bytes=MOVED_BYTES)
    assert loading.load.seen_progress == loading.moment


def test_one_that_was_there_from_the_start_counts_the_start() -> None:
    loading = Loading.begun()
    assert not loading.load.is_watched_late
    assert loading.load.seen_progress == loading.load.watched
    assert loading.load.seconds_in(Stage.INIT, loading.moment) == 5.0


def test_a_stall_that_an_agent_before_saw_lasts_until_there_is_a_sign() -> None:
    load = LoadProgress.begun(look(1000.0, has_engine=True), BEGAN, is_stalled=True)
    loading = Loading(load, now=1000.0).see(1.0, has_engine=True)
    assert loading.load.is_stalled is True
    loading.see(1.0, has_engine=True, io_bytes=MOVED_BYTES)
    assert loading.load.is_stalled is False


@pytest.mark.parametrize("stage", [Stage.COMPILE, Stage.WARMUP, Stage.INIT])
def test_a_busy_cpu_extends_the_silent_stages_for_half_an_hour(stage: Stage) -> None:
    loading = Loading.begun(has_engine=True, cpu_seconds=0.0)
    log = said(stage)
    loading.see(1.0, has_engine=True, log=log, cpu_seconds=1.0)
    for minute in range(1, 30):
        seconds = 60.0 * minute
        loading.see(60.0, has_engine=True, log=log, cpu_seconds=1.0 + seconds / 2)
        assert loading.load.is_stalled is False
    loading.see(60.0, has_engine=True, log=log, cpu_seconds=1e6)
    assert loading.load.is_stalled is True


def test_a_stage_that_took_long_before_is_given_three_times_that() -> None:
    loading = Loading.begun(has_engine=True, cpu_seconds=0.0)
    loading.history = LoadHistory(longest_stage_seconds={Stage.COMPILE: 1000.0})
    log = said(Stage.COMPILE)
    loading.see(1.0, has_engine=True, log=log, cpu_seconds=1.0)
    loading.see(BUSY_SECONDS, has_engine=True, log=log, cpu_seconds=BUSY_SECONDS)
    assert loading.load.is_stalled is False
    loading.see(3000.0 - BUSY_SECONDS, has_engine=True, log=log, cpu_seconds=1e6)
    assert loading.load.is_stalled is True


def test_a_busy_cpu_does_not_excuse_weights_that_do_not_come() -> None:
    loading = Loading.begun(has_engine=True, cpu_seconds=0.0, shards=shards(3))
    loading.see(1.0, has_engine=True, shards=shards(3), cpu_seconds=1.0)
    loading.see(300.0, has_engine=True, shards=shards(3), cpu_seconds=301.0)
    assert loading.load.is_stalled is True


def test_half_a_core_is_busy_and_less_is_not() -> None:
    loading = Loading.begun(cpu_seconds=0.0).see(10.0, cpu_seconds=4.9)
    assert loading.load.last_busy is None
    loading.see(10.0, cpu_seconds=9.9)
    assert loading.load.last_busy == loading.moment


# What is left.


def loaded_before() -> LoadHistory:
    loading = Loading.begun().see(10.0, shards=shards(1)).see(20.0, log=said(Stage.WARMUP))
    return LoadHistory().with_load(loading.load, Instant(140.0, BEGAN + 45.0))


def test_the_first_load_has_no_measure() -> None:
    loading = Loading.begun().see(shards=shards(4))
    assert seconds_left(loading.load, LoadHistory(), loading.moment) is None


def test_the_time_left_is_by_its_own_speed_and_by_the_load_before() -> None:
    history = loaded_before()
    assert dict(history.last_stage_seconds) == {
        Stage.INIT: 15.0,
        Stage.LOAD_WEIGHTS: 20.0,
        Stage.WARMUP: 10.0,
    }
    assert history.last_seconds == 45.0
    loading = Loading.begun()
    # 10 of 15 s of init are left, then weights and warm-up.
    assert seconds_left(loading.load, history, loading.moment) == 40.0
    loading.see(5.0, shards=shards(1, 4))
    assert seconds_left(loading.load, history, loading.moment) == 30.0
    loading.see(3.0, shards=shards(2, 4))
    # A quarter took 3 s: 9 s for the rest.
    assert seconds_left(loading.load, history, loading.moment) == 19.0


def test_a_stage_that_takes_longer_than_before_has_no_measure() -> None:
    loading = Loading.begun().see(10.0)
    assert seconds_left(loading.load, loaded_before(), loading.moment) == 30.0
    loading.see(1.0)
    assert seconds_left(loading.load, loaded_before(), loading.moment) is None


def test_what_has_stalled_has_no_measure() -> None:
    loading = Loading.begun(has_engine=True).see(shards=shards(4), has_engine=True)
    assert seconds_left(loading.load, loaded_before(), loading.moment) is not None
    loading.see(300.0, shards=shards(4), has_engine=True)
    assert seconds_left(loading.load, loaded_before(), loading.moment) is None


def test_a_download_of_what_is_there_already_is_not_waited_for() -> None:
    history = replace(loaded_before(), last_stage_seconds={Stage.INIT: 15.0, Stage.DOWNLOAD: 600.0})
    loading = Loading.begun()
    assert seconds_left(loading.load, history, loading.moment) == 610.0
    loading.see(download=Download(GIB, GIB, Witness.HF_CACHE, is_under_way=False))
    assert seconds_left(loading.load, history, loading.moment) == 9.0


def test_a_stage_that_never_came_before_leaves_it_open() -> None:
    loading = Loading.begun().see(download=fetching(GIB))
    assert seconds_left(loading.load, loaded_before(), loading.moment) is None


def test_loads_are_counted_by_how_long_they_took() -> None:
    history = loaded_before()
    assert history.counts == (0, 1, 0, 0, 0, 0)
    assert (history.count, history.sum_seconds) == (1, 45.0)
    load = Loading.begun().load
    long = history.with_load(load, Instant(95.0 + 7200.0, BEGAN + 7200.0))
    assert long.counts == (0, 1, 0, 0, 0, 1)
    assert long.longest_stage_seconds[Stage.INIT] == 7200.0
    assert long.longest_stage_seconds[Stage.LOAD_WEIGHTS] == 20.0


def test_a_load_that_was_found_half_way_is_counted_and_tells_nothing_of_stages() -> None:
    history = loaded_before()
    late = LoadProgress.begun(look(1000.0), BEGAN)
    after = history.with_load(late, Instant(1200.0, BEGAN + 1105.0))
    assert after.count == 2
    assert after.last_stage_seconds == history.last_stage_seconds
    assert after.longest_stage_seconds == history.longest_stage_seconds


# Whatever comes.

sizes = st.none() | st.integers(0, 2**50)
downloads = st.builds(
    Download, st.integers(0, 2**50), sizes, st.none() | st.just(Witness.HUB), st.booleans()
)
logs = st.builds(
    LogProgress,
    st.none() | st.sampled_from(LOADING_STAGES),
    st.integers(0, 100),
    st.none() | st.integers(0, 30),
    st.none() | st.integers(0, 20),
    sizes,
)
mapped = st.lists(
    st.builds(Shard, st.integers(1, 9), st.integers(1, 9), st.integers(9, 20), sizes, sizes),
    max_size=3,
).map(tuple)
looks = st.fixed_dictionaries(
    {
        "has_engine": st.booleans(),
        "download": st.none() | downloads,
        "shards": st.none() | mapped,
        "io_bytes": sizes,
        "gpu_bytes": sizes,
        "cpu_seconds": st.none() | st.floats(0, 1e9),
        "compile_changes": st.none() | st.integers(0, 9),
        "log": st.none() | logs,
    }
)


@given(st.lists(st.tuples(st.floats(0.0, 1000.0), looks), max_size=12))
def test_whatever_is_seen_the_account_holds(steps: list[tuple[float, dict[str, Any]]]) -> None:
    loading = Loading.begun()
    for after, seen in steps:
        before = loading.load
        loading.see(after, **seen)
        load, now = loading.load, loading.moment
        assert load.stage is not Stage.NONE
        spent = [load.seconds_in(stage, now) or 0.0 for stage in Stage]
        assert sum(spent) == pytest.approx(now.since(load.began))
        assert load.seen_progress is not None
        for stage in Stage:
            ratio = load.ratio(stage)
            assert ratio is None or 0.0 <= ratio <= 1.0
        assert load.last_progress.since(before.last_progress) >= 0
        if load.is_stalled:
            assert now.since(load.last_progress) >= 120.0
        left = seconds_left(load, loaded_before(), now)
        assert left is None or left >= 0
