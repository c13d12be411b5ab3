"""`VLLM::Worker`: loads shards, answers steps, and dies after its EngineCore."""

from __future__ import annotations

import mmap
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_agent.demo.standin import process
from vllm_agent.demo.standin.failures import FAILURES, Moment
from vllm_agent.demo.standin.hub_cache import Repo, named_cache, shards_in
from vllm_agent.demo.standin.log import Log
from vllm_agent.demo.standin.reactor import Reactor
from vllm_agent.demo.standin.serving_failures import SERVING_FAILURES, log_of_worker
from vllm_agent.demo.standin.stages import stage_seconds

if TYPE_CHECKING:
    from vllm_agent.demo.standin.options import Options

# What EngineCore and a worker say to each other, one byte each.
LOAD, LOADED, FAILED, STEP, SHUT_DOWN, BREAK = b"l", b"r", b"f", b"s", b"q", b"x"

_SHARD_BAR = "Loading safetensors checkpoint shards: "
_WORTH_A_LINE_SECONDS = 0.5


def title(options: Options, engine: int, rank: int) -> str:
    """The process title of a worker: parts for data and tensor parallelism only where > 1."""
    parts = [f"DP{engine}"] if options.engines > 1 else []
    if options.workers > 1:
        parts.append(f"TP{rank}")
    return "_".join(["VLLM::Worker", *parts])


def run(options: Options, engine: int, rank: int, control: int) -> int:
    """The life of a worker process; returns its exit status."""
    process.die_slowly()
    return _Worker(options, title(options, engine, rank), rank, control).run()


class _Worker:
    def __init__(self, options: Options, name: str, rank: int, control: int) -> None:
        self._options = options
        self._name = name
        self._rank = rank
        self._control = control
        self._log = Log(name.removeprefix("VLLM::"))
        self._load_asked = False
        self._reactor = Reactor()
        self._reactor.on_readable(control, self._on_control)
        self._reactor.on_signal([signal.SIGTERM, signal.SIGINT], self._on_term)
        self._reactor.on_signal([signal.SIGSEGV], self._on_segv)

    def run(self) -> int:
        self._reactor.sleep(stage_seconds(self._options, "worker_spawn"))
        process.set_title(self._name)
        if self._reactor.run_until(lambda: self._load_asked):
            failed = load_weights(self._options, self._rank, self._log, self._reactor)
            if self._reactor.status is None:
                os.write(self._control, FAILED if failed else LOADED)
        return self._reactor.run()

    def _on_control(self) -> None:
        for byte in os.read(self._control, 1 << 12) or SHUT_DOWN:
            if byte == STEP[0]:
                os.write(self._control, STEP)
            elif byte == LOAD[0]:
                self._load_asked = True
            elif byte == BREAK[0]:
                break_down(self._options, self._log)
                os.write(self._control, BREAK)
            else:
                self._reactor.forget(self._control)
                self._log.section("endings", "worker_orphaned")
                self._tear_down()
                return

    def _on_term(self, _signum: int) -> None:
        self._tear_down()

    def _tear_down(self) -> None:
        self._reactor.call_later(
            self._options.timing.worker_teardown, lambda: self._reactor.stop(0)
        )

    def _on_segv(self, _signum: int) -> None:
        self._log.section("endings", "segfault")
        process.freeze_and_die_by(signal.SIGSEGV, self._options.timing.core_dump)


def break_down(options: Options, log: Log) -> None:
    """Prints what broke it, and dies of it where it is not an error that EngineCore is told."""
    failure = SERVING_FAILURES[options.fail_serving or ""]
    if failure.signum is None:
        log_of_worker(failure, log)
        return
    for line in failure.lines:
        log.bare(line + "\n")
    process.die_by(failure.signum)


def load_weights(options: Options, rank: int, log: Log, reactor: Reactor) -> bool:
    """Prints and takes the time of the weights; True when they fail to load.

    Each shard of a real checkpoint directory is mapped in turn, as vLLM does, so that
    /proc/PID/maps names the one that is being read.
    """
    if rank == 0:
        log.section("load", "worker_init", model=options.model)
    found = _checkpoint(options, rank, log, reactor)
    if rank == 0:
        size = sum(path.stat().st_size for path in found)
        log.section("load", "checkpoint", size=f"{size / 2**30:.2f}")
    failure = FAILURES.get(options.fail_load or "")
    shards: list[Path | None] = [*found] or [None] * options.shards
    seconds = stage_seconds(options, "weights")
    began = time.monotonic()
    for done, shard in enumerate(shards):
        _bar(log, rank, done, len(shards), time.monotonic() - began)
        middle = done >= len(shards) // 2
        if middle and options.hang_load == "load_weights":
            reactor.hang(is_spinning=options.hang_spin)
        if middle and failure is not None and failure.moment is Moment.WEIGHTS:
            return True
        if not _read_shard(shard, seconds / len(shards), reactor):
            return True
    _bar(log, rank, len(shards), len(shards), time.monotonic() - began)
    if rank == 0:
        log.bare("\n")
        took = time.monotonic() - began
        log.section("load", "weights_loaded", seconds=f"{took:.2f}")
    return False


def _checkpoint(options: Options, rank: int, log: Log, reactor: Reactor) -> list[Path]:
    """The shards of a model directory, or of a download, in natural order; else none."""
    cache = named_cache(os.environ, options.download_dir)
    if options.download_seconds is None or cache is None:
        return shards_in(Path(options.model))
    repo, began = Repo(cache, options), time.monotonic()
    repo.fetch_weights(reactor)
    took = time.monotonic() - began
    # As vLLM: a cache that was full is not worth a line.
    if rank == 0 and took > _WORTH_A_LINE_SECONDS:
        log.section("load", "downloaded", model=options.model, seconds=f"{took:.6f}")
    return repo.shards


def _read_shard(shard: Path | None, seconds: float, reactor: Reactor) -> bool:
    if shard is None:
        return reactor.sleep(seconds)
    with shard.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        # As a reader of the header does: a page fault tells that something is mapped.
        mapped.read_byte()
        return reactor.sleep(seconds)


def _bar(log: Log, rank: int, done: int, total: int, elapsed: float) -> None:
    if rank != 0:
        return
    if done == 0:
        log.bare(f"{_SHARD_BAR}  0% Completed | 0/{total} [00:00<?, ?it/s]\n")
        return
    rate = done / max(elapsed, 1e-6)
    speed = f"{rate:5.2f}it/s" if rate >= 1 else f"{1 / rate:5.2f}s/it"
    left = _clock((total - done) / rate)
    log.bare(
        f"{_SHARD_BAR}{100 * done / total:3.0f}% Completed | {done}/{total} "
        f"[{_clock(elapsed)}<{left}, {speed}]\n"
    )


def _clock(seconds: float) -> str:
    """Minutes and seconds as tqdm writes them."""
    return f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"
