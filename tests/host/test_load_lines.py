"""What the log of a vLLM tells of its load, by recorded logs and by what each version logs."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.host.log_scene import Drops
from vllm_agent.host.load_lines import MAX_DIFFERENT_LINES, MAX_WRITERS, LoadLines
from vllm_agent.host.log_line import LogLine, lines_of, read_line
from vllm_agent.observations import LogProgress, Stage

RECORDED = Path(__file__).parents[1] / "testdata" / "vllm-0.32.0"
GIB = 2**30


def read(*messages: str, drops: Drops | None = None) -> LogProgress:
    lines = LoadLines(Drops() if drops is None else drops)
    for message in messages:
        lines.take(LogLine(message))
    return lines.progress()


def steps(name: str) -> list[LogProgress]:
    """What a recorded log tells after each of its lines."""
    content = (RECORDED / f"{name}.log").read_bytes()
    lines = LoadLines(Drops())
    found = []
    for _, raw in lines_of(content, len(content), [], lambda _: True):
        lines.take(read_line(raw))
        found.append(lines.progress())
    return found


def changes(progress: list[LogProgress]) -> list[tuple[object, ...]]:
    kept = [(one.stage, one.shards_done, one.shard_count) for one in progress]
    return [one for number, one in enumerate(kept) if not number or kept[number - 1] != one]


def test_a_recorded_load_goes_through_its_stages():
    """Its bar and what it maps agreed: 4/11, 7/11, 10/11."""
    found = steps("load-11-shards-torch-compile")
    assert changes(found) == [
        (None, None, None),
        (Stage.INIT, None, None),
        (Stage.LOAD_WEIGHTS, None, None),
        *((Stage.LOAD_WEIGHTS, done, 11) for done in range(12)),
        (Stage.COMPILE, 11, 11),
    ]
    assert found[-1].weights_bytes == round(1.85 * GIB)


def test_a_recorded_line_that_comes_again_is_not_new():
    """`No available shared memory broadcast block found in 60 seconds` is no progress."""
    found = steps("load-11-shards-torch-compile")
    repeated = [
        number
        for number in range(1, len(found))
        if found[number].new_lines == found[number - 1].new_lines
    ]
    content = (RECORDED / "load-11-shards-torch-compile.log").read_bytes()
    lines = [raw for _, raw in lines_of(content, len(content), [], lambda _: True)]
    assert sum(b"No available shared memory" in lines[number] for number in repeated) == 1


def test_a_server_that_runs_eagerly_warms_up_after_its_weights():
    found = steps("normal-stop-sigterm")
    assert [stage for stage, done, count in changes(found) if done == count and count] == [
        Stage.LOAD_WEIGHTS,
        Stage.WARMUP,
    ]


LOADED = "Model loading took 14.99 GiB memory and 24.123456 seconds"

BY_STAGE = {
    Stage.INIT: [
        "Automatically detected platform cuda.",
        "non-default args: {'model': 'x'}",
        "Resolved architecture: LlamaForCausalLM",
        "Using max model len 2048",
        "Started DP Coordinator process (PID: 7)",
        "Initializing a V1 LLM engine (v0.11.0) with config: model='x'",
        "world_size=8 rank=0 local_rank=0 distributed_init_method=tcp://x backend=nccl",
        "rank 3 in world size 8 is assigned as DP rank 0",
    ],
    Stage.LOAD_WEIGHTS: [
        "Starting to load model meta-llama/Llama-3.1-8B...",
        "Loading model from scratch...",
        "Time spent downloading weights for x: 12.345678 seconds",
        "Filesystem type for checkpoints: EXT4. Checkpoint size: 14.99 GiB.",
        "Prefetching checkpoint files into page cache started (in background)",
        "Loading weights took 22.82 seconds",
    ],
    Stage.COMPILE: [
        LOADED,
        "Model loading took 14.9889 GiB and 24.123456 seconds",
        "Using cache directory: /home/x/.cache/vllm/x/rank_0_0/backbone for vLLM's torch.compile",
        "Starting torch.compile",
        "[backbone] Starting torch.compile",
        "Dynamo bytecode transform time: 9.12 s",
        "Compiling a graph for compile range (1, 2048) takes 12.10 s",
        "Compiling a graph for dynamic shape takes 41.00 s",
        "Cache the graph for dynamic shape for later use",
        "[eagle_head] Directly load the compiled graph(s) for range (1, 2048) from the cache",
        "torch.compile took 27.1 s in total",
        "torch.compile takes 27.1 s in total",
        "[backbone] saved AOT compiled function to /x",
        "Warming up model for the compilation...",
    ],
    Stage.WARMUP: [
        "Initial profiling/warmup run took 1.58 s",
        "Warming up done.",
        "Warming up FlashInfer attention.",
        "Profiling CUDA graph memory: PIECEWISE=51 (largest=512), FULL=35 (largest=256)",
        "Estimated CUDA graph memory: 0.73 GiB total",
        "Available KV cache memory: 33.31 GiB",
        "GPU KV cache size: 1,587,648 tokens",
        "CPU KV cache size: 262,144 tokens, Maximum concurrency for 512 tokens",
        "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE): 45%|### | 23/51 [00:01<00:01]",
        "Graph capturing finished in 7 secs, took 0.95 GiB",
        "JIT kernel warmup (4 compile keys)",
        "init engine (profile, create kv cache, warmup model) took 25.99 seconds",
        "Supported tasks: ['generate']",
        "Starting vLLM server on http://0.0.0.0:8000",
        "Started server process [7]",
        "Application startup complete.",
    ],
}


@pytest.mark.parametrize(
    ("stage", "message"),
    [(stage, message) for stage, messages in BY_STAGE.items() for message in messages],
)
def test_each_line_tells_its_stage(stage, message):
    assert read("x", message, "y").stage is stage


@pytest.mark.parametrize(
    "eager",
    [
        "non-default args: {'model': 'x', 'enforce_eager': True}",
        "Initializing a V1 LLM engine (v0.32.0) with config: model='x', enforce_eager=True, x=1",
        "Enforce eager set, disabling torch.compile and CUDAGraphs.",
        "Cudagraph is disabled under eager mode",
    ],
)
def test_what_follows_the_weights_depends_on_how_it_was_started(eager):
    assert read(eager, LOADED).stage is Stage.WARMUP
    assert read(eager.replace("=True", "=False"), "x").stage is Stage.INIT


def test_a_stage_that_is_over_does_not_come_again():
    """Workers log the same lines one after the other, and child processes detect the platform."""
    assert read(LOADED, "Starting to load model x...", "world_size=2").stage is Stage.COMPILE


def test_a_message_that_quotes_a_line_tells_nothing():
    assert read("prompt: 'Starting to load model x...'").stage is None


BARS = [
    "Loading safetensors checkpoint shards:  64% Completed | 105/163 [09:30<04:59,  5.16s/it]",
    "Loading safetensors checkpoint shards (eager):  64% Completed | 105/163 [09:30<04:59, 1it/s]",
    "Loading pt checkpoint shards:  64% Completed | 105/163 [1:09:30<04:59,  5.16s/it]",
    "Loading np_cache checkpoint shards:  64% Completed | 105/163 [09:30<?, ?it/s]",
    "Multi-thread loading shards:  64% Completed | 105/163 [09:30<04:59,  5.16s/it]",
    "Multi-thread loading pt checkpoint shards:  64% Completed | 105/163 [09:30<04:59,  5.16s/it]",
    "Loading safetensors using Runai Model Streamer:  64% Completed | 105/163 [09:30<04:59]",
    "Loading safetensors using Fastsafetensor loader:  64% Completed | 105/163 [09:30<04:59]",
    "Loading safetensors checkpoint shards:  64%|######4   | 105/163 [09:30<04:59,  5.16s/it]",
]


@pytest.mark.parametrize("bar", BARS)
def test_each_bar_tells_how_many_files_are_loaded(bar):
    assert read(bar) == LogProgress(Stage.LOAD_WEIGHTS, 1, 105, 163)


@pytest.mark.parametrize(
    "bar",
    [
        "Loading safetensors using InstantTensor loader:  64% Completed | 9.6G/15.0G [09:30<04:59]",
        "Loading safetensors checkpoint shards: 0it [00:00, ?it/s]",
        "Loading safetensors checkpoint shards:   0% Completed | 0/0 [00:00<?, ?it/s]",
        "Loading safetensors checkpoint shards: 200% Completed | 22/11 [00:00<?, ?it/s]",
        "Loading safetensors checkpoint shards:   1% Completed | 1/99999999999 [00:00<?, ?it/s]",
    ],
)
def test_a_bar_that_tells_no_files_is_none(bar):
    assert read(bar) == LogProgress(Stage.LOAD_WEIGHTS, 1)


def test_the_bar_of_a_second_model_does_not_begin_anew():
    bar = "Loading safetensors checkpoint shards: {}% Completed | {} [00:00<?, ?it/s]"
    found = read(bar.format(100, "4/4"), bar.format(0, "0/1"))
    assert (found.shards_done, found.shard_count) == (4, 4)


@pytest.mark.parametrize(
    ("size", "expected"), [("14.99", round(14.99 * GIB)), ("1024", 1024 * GIB), ("0.00", None)]
)
def test_the_size_of_the_checkpoint_is_told(size, expected):
    line = (
        f"Filesystem type for checkpoints: EXT4. Checkpoint size: {size} GiB. Available RAM: 9 GiB."
    )
    assert read(line).weights_bytes == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("it", "it"),
        (
            "Loading: 5% Completed | 1/20 [00:01<00:19, 1it/s]",
            "Loading: 5% Completed | 1/20 [00:02<?, ?it/s]",
        ),
        (
            "[rank0]:[W1123 09:02:52.375218120 socket.cpp:68] x",
            "[rank0]:[W1124 10:02:52.1 socket.cpp:68] x",
        ),
        (
            "2026-11-23 09:02:52,375 - INFO - autotuner.py:3 - x",
            "2026-11-23 09:02:53,375 - INFO - autotuner.py:3 - x",
        ),
        ("(RayWorker pid=71, ip=1.2.3.4) x", "(RayWorker pid=72, ip=1.2.3.4) x"),
    ],
)
def test_what_differs_by_its_moment_or_process_only_is_not_new(one, other):
    assert read(one, other).new_lines == 1


def test_what_differs_otherwise_is_new():
    assert (
        read(
            "Loading: 5% Completed | 1/20 [00:01<00:19]",
            "Loading: 10% Completed | 2/20 [00:01<00:19]",
        ).new_lines
        == 2
    )
    assert read("", "x").new_lines == 1


def test_a_log_that_spams_is_no_progress_any_more():
    drops = Drops()
    found = read(*(f"line {number}/9" for number in range(MAX_DIFFERENT_LINES + 500)), drops=drops)
    assert found.new_lines == MAX_DIFFERENT_LINES
    assert drops == ["log_lines"]


def test_the_lines_that_are_told_apart_cost_little():
    tracemalloc.start()
    try:
        lines = LoadLines(Drops())
        for number in range(MAX_DIFFERENT_LINES):
            lines.take(LogLine(f"line {number}/9"))
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 512 * 1024


@given(st.text(max_size=200))
def test_any_line_is_read_without_an_error(text):
    read(text, f"Loading {text} shards: {text}", f"Filesystem type for checkpoints: {text}")


# Who went on with the load.

BAR = "Loading safetensors checkpoint shards:  50% Completed | {}/{} [00:01<00:01,  2it/s]"
START = "Starting to load model x..."


def gone_on(lines: LoadLines, message: str, pid: int | None = None) -> set[int | None]:
    return set(lines.take(LogLine(message, pid)))


def test_a_later_stage_of_a_process_shows_that_it_went_on():
    lines = LoadLines(Drops())
    assert gone_on(lines, "x", 1) == set()
    assert gone_on(lines, START, 1) == {1, None}
    assert gone_on(lines, START, 1) == set()
    assert gone_on(lines, START, 2) == {2}
    assert gone_on(lines, LOADED, 2) == {2, None}
    assert gone_on(lines, LOADED, 1) == {1}
    assert gone_on(lines, START) == set()
    assert gone_on(lines, BY_STAGE[Stage.WARMUP][0]) == {None}


@pytest.mark.parametrize("pid", [None, 1])
def test_a_bar_that_moves_shows_that_its_process_went_on(pid):
    lines = LoadLines(Drops())
    everybody = {pid, None}
    assert gone_on(lines, BAR.format(0, 4), pid) == everybody
    assert gone_on(lines, BAR.format(0, 4), pid) == set()
    assert gone_on(lines, BAR.format(1, 4), pid) == everybody
    assert gone_on(lines, BAR.format(0, 1), pid) == set()
    assert gone_on(lines, BAR.format(1, 1), pid) == everybody


def test_a_bar_that_is_drawn_once_after_an_error_shows_nothing():
    lines = LoadLines(Drops())
    gone_on(lines, BAR.format(1, 4), 1)
    lines.note_trouble()
    assert gone_on(lines, BAR.format(2, 4), 1) == set()
    assert gone_on(lines, BAR.format(3, 4), 1) == {1, None}


def test_processes_are_told_from_each_other_where_their_numbers_mean_nothing():
    lines = LoadLines(Drops())
    lines.take(LogLine(START, inner_pid=1))
    assert lines.take(LogLine(START, inner_pid=2)) == (2,)


def test_the_processes_that_are_told_from_each_other_are_bounded():
    lines = LoadLines(Drops())
    assert all(gone_on(lines, START, pid) for pid in range(MAX_WRITERS))
    assert not gone_on(lines, START, MAX_WRITERS)
    assert len(lines._reached) == MAX_WRITERS


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "Waiting for creating a placement group of specs for 10 seconds. specs=[{'GPU': 1.0}]",
            "Waiting for creating a placement group of specs for 20 seconds. specs=[{'GPU': 1.0}]",
        ),
        ("still loading, 1,010.5 s elapsed", "still loading, 20 s elapsed"),
    ],
)
def test_a_line_that_counts_is_new_once(one, other):
    assert read(one, other).new_lines == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("graph 12/51 after 3 s", "graph 13/51 after 4 s"),
        ("fetched 37%", "fetched 38%"),
        ("fetched 37.1%", "fetched 37.2%"),
    ],
)
def test_a_line_that_counts_to_an_end_is_new_each_time(one, other):
    assert read(one, other).new_lines == 2
