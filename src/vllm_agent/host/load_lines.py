"""What the lines of a vLLM's log tell of its load, of versions 0.11 to 0.32.

A line that is new is a sign of progress; one that comes again, with another stamp or from another
process, is none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vllm_agent.observations import LogProgress, Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_agent.host.log_line import LogLine

MAX_DIFFERENT_LINES: Final = 4096
"""Lines of one load that are told from each other, at 100 bytes each. A load on eight GPUs that
logs at level DEBUG has some hundreds; the new lines of a log with more tell no progress."""

MAX_WRITERS: Final = 64
"""Processes of one load that are told from each other: a worker for each GPU of a large host, and
some more. Of those beyond it is not known that they went on."""

_GIB: Final = 2**30
_LOADED: Final = "loaded"  # what comes next depends on how it was started

_BEGINS: Final[dict[str, tuple[str, ...]]] = {
    Stage.INIT: (
        "non-default args: ",
        "Automatically detected platform ",
        "Resolved architecture: ",
        "Using max model len ",
        "Enforce eager set",
        "Cudagraph is disabled under eager mode",
        "Started DP Coordinator process ",
        "Initializing a V1 LLM engine ",
        "world_size=",
        r"rank \d+ in world size ",
    ),
    Stage.LOAD_WEIGHTS: (
        "Starting to load model ",
        "Loading model from scratch",
        "Loading drafter model",
        # Nothing is logged while it downloads.
        "Time spent downloading weights for ",
        "Initializing model took ",
        "Filesystem type for checkpoints: ",
        "Prefetching checkpoint files ",
        r"(?:Loading|Multi-thread loading) [\w ]{0,40}shards",
        "Loading safetensors using ",
        "Loading weights took ",
    ),
    _LOADED: ("Model loading took ",),
    Stage.COMPILE: (
        "Using cache directory: ",
        r"vLLM's torch\.compile cache is disabled",
        r"Starting torch\.compile",
        "Dynamo bytecode transform time",
        "Compiling a graph for ",
        "Cache the graph ",
        "Directly load ",
        r"torch\.compile (?:took|takes) ",
        "saved AOT compiled function ",
        "Warming up model for the compilation",
    ),
    Stage.WARMUP: (
        "Initial profiling/warmup run ",
        "Warm(?:ing up|ed) ",
        "Profiling CUDA graph memory",
        "Estimated CUDA graph memory",
        "Available KV cache memory: ",
        r"\w{1,10} KV cache size: ",
        "Capturing ",
        "Graph capturing finished",
        "(?:JIT kernel|DeepGEMM|Multi-modal) warmup",
        "(?:Running FlashInfer autotune|Autotuning )",
        "init engine ",
        "Supported[ _]tasks: ",
        "Starting vLLM ",
        "Available routes are:",
        "Started server process ",
        "Waiting for application startup",
        "Application startup complete",
    ),
}
"""How the lines begin that tell a stage. The stages come in this order: a line of one that is over
comes from a process that lags behind, or is repeated by each."""

_TELLS: Final = tuple(_BEGINS)
_STAGE: Final = re.compile(
    # Lines on compiling may begin with the part of the model that they are about.
    r"(?:\[\w{1,40}\] )?(?:"
    + "|".join(f"({'|'.join(begins)})" for begins in _BEGINS.values())
    + ")"
)
_ORDER: Final = tuple(Stage)
_EAGER: Final = re.compile(
    r"'enforce_eager': True|\benforce_eager=True|Enforce eager set|disabled under eager mode"
)
_BAR: Final = re.compile(
    r"[\w -]{1,80}(?:\(\w{1,20}\))?: +\d{1,3}% ?(?:Completed )?\|(?:[^|]{0,200}\|)? ?"
    r"(?P<done>\d{1,5})/(?P<count>\d{1,5}) \["
)
_CHECKPOINT: Final = re.compile(r"Checkpoint size: (?P<gib>\d{1,9}(?:\.\d{1,9})?) GiB")

# What is another each time: tqdm's `[elapsed<left, rate]`, moments, processes.
_VOLATILE: Final = re.compile(
    r"\[(?:\d+:)?\d\d:\d\d<[^\]]{0,60}\]"
    r"|(?:\d{4}-\d\d-\d\d[T ]|[IWEF]\d{4} )?\d\d:\d\d:\d\d(?:[.,]\d{1,9})?"
    r"|pid[=:]? ?\d+"
)
# What waits counts seconds. Of numbers only those that have an end to reach tell progress.
_COUNTS: Final = re.compile(r"(?P<kept>\d+/\d+|\d+(?:\.\d+)?%)|\d+(?:[.,]\d+)*")


@dataclass(slots=True)
class _Reached:
    """How far a process has got: `bar` is what it showed since the last trouble."""

    stage: Stage | None = None
    bar: tuple[int, int] | None = None


class LoadLines:
    """What the lines of one launch have told so far.

    Counts `log_lines` when there were too many to tell new ones.
    """

    def __init__(self, count_dropped: Callable[[str], None]) -> None:
        self._count_dropped = count_dropped
        self._seen: set[int] = set()
        self._is_full = False
        self._is_eager = False
        self._stage: Stage | None = None
        self._shards: tuple[int, int] | None = None
        self._weights_bytes: int | None = None
        self._reached: dict[int | None, _Reached] = {}

    def take(self, line: LogLine) -> tuple[int | None, ...]:
        """Reads the next line of the log; returns by their `writer` who went on with the load.

        A process did that comes to a later stage, or moves its bar. If none had got there before,
        those went on, too, that no line names.
        """
        message = line.message
        if not message:
            return ()
        self._note_if_new(message)
        found = _STAGE.match(message)
        if found is None or found.lastindex is None:
            return ()
        tells = _TELLS[found.lastindex - 1]
        bar = None
        if tells is Stage.INIT:
            self._is_eager = self._is_eager or _EAGER.search(message) is not None
        elif tells is Stage.LOAD_WEIGHTS:
            bar = self._note_weights(message)
        stage = self._after_weights if tells is _LOADED else Stage(tells)
        is_first = _is_later(stage, self._stage)
        if is_first:
            self._stage = stage
        return self._gone_on(line.writer, stage, bar, is_first=is_first)

    def note_trouble(self) -> None:
        """An error was logged: a bar says that its process went on when it moves from now on.

        Once it may be drawn anew without that: tqdm does so when an error ends it.
        """
        for reached in self._reached.values():
            reached.bar = None

    def progress(self) -> LogProgress:
        """What they have told."""
        done, count = self._shards or (None, None)
        return LogProgress(self._stage, len(self._seen), done, count, self._weights_bytes)

    @property
    def _after_weights(self) -> Stage:
        return Stage.WARMUP if self._is_eager else Stage.COMPILE

    def _gone_on(
        self, writer: int | None, stage: Stage, bar: tuple[int, int] | None, *, is_first: bool
    ) -> tuple[int | None, ...]:
        if writer not in self._reached and len(self._reached) >= MAX_WRITERS:
            return ()
        reached = self._reached.setdefault(writer, _Reached())
        has_moved = bar is not None and reached.bar is not None and bar > reached.bar
        is_later = _is_later(stage, reached.stage)
        if is_later:
            reached.stage = stage
        if bar is not None:
            reached.bar = bar
        gone_on: set[int | None] = set()
        if is_first or has_moved:
            gone_on.add(None)
        if writer is not None and (is_later or has_moved):
            gone_on.add(writer)
        return tuple(gone_on)

    def _note_weights(self, message: str) -> tuple[int, int] | None:
        """Takes what it tells of the weights; returns what is done and how much there is."""
        bar = _BAR.match(message)
        shards = None if bar is None else (int(bar["done"]), int(bar["count"]))
        if shards is not None:
            # A bar after one that is full is of a second model, for speculative decoding.
            is_full = self._shards is not None and self._shards[0] == self._shards[1]
            if not is_full and 0 < shards[1] >= shards[0]:
                self._shards = shards
        size = _CHECKPOINT.search(message)
        if size is not None and self._weights_bytes is None:
            # vLLM rounds to the hundredth: one that is small is not known to be empty.
            self._weights_bytes = round(float(size["gib"]) * _GIB) or None
        return shards

    def _note_if_new(self, message: str) -> None:
        if self._is_full:
            return
        if len(self._seen) >= MAX_DIFFERENT_LINES:
            self._is_full = True
            self._count_dropped("log_lines")
            return
        self._seen.add(hash(_COUNTS.sub(r"\g<kept>", _VOLATILE.sub("", message))))


def _is_later(stage: Stage, other: Stage | None) -> bool:
    return other is None or _ORDER.index(stage) > _ORDER.index(other)
