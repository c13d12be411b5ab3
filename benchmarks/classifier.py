"""What it costs to find the causes of failures in a log: in real ones, and in tracebacks only."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from benchmarks.programs import ROOT, NotMeasurableError
from benchmarks.result import Result
from benchmarks.rows import CLASSIFIER
from benchmarks.statistic import median
from vllm_agent.host.failure_patterns import CANDIDATE, cause_of
from vllm_agent.host.log_line import lines_of, read_line

if TYPE_CHECKING:
    from benchmarks.session import Session

RECORDINGS: Final = ROOT / "tests" / "testdata" / "vllm-0.32.0"

LOG_BYTES: Final = 8 * 1024 * 1024
"""Of recordings, one after the other again and again: more than a cache of the processor holds."""

CHUNK_BYTES: Final = 256 * 1024
"""Read at a time, as the agent does."""

PASSES: Final = 20
_MB: Final = 1e6


def measure(_session: Session) -> list[Result]:
    """Passes over a log of loads, requests, stops and failures; and of failures' tracebacks."""
    recorded = [path.read_bytes() for path in sorted(RECORDINGS.glob("*.log"))]
    failures = [path.read_bytes() for path in sorted(RECORDINGS.glob("fail-*.log"))]
    if not failures:
        raise NotMeasurableError(f"no recordings in {RECORDINGS}")
    tracebacks = [
        line
        for line in b"".join(failures).splitlines(keepends=True)
        if b" INFO " not in line and b" WARNING " not in line
    ]
    log, hard = _repeated(b"".join(recorded)), _repeated(b"".join(tracebacks))
    samples = _samples(log)
    note = (
        f"{PASSES} passes over {LOG_BYTES / _MB:.0f} MB of {len(recorded)} logs of vLLM 0.32 in "
        f"pieces of {CHUNK_BYTES // 1024} KiB, {_speed(samples)}; tracebacks only: "
        f"{_speed(_samples(hard))}"
    )
    return [Result(CLASSIFIER, samples, notes=(note,))]


def _repeated(content: bytes) -> bytes:
    return (content * (LOG_BYTES // len(content) + 1))[:LOG_BYTES]


def _samples(log: bytes) -> tuple[float, ...]:
    """CPU of each pass, in milliseconds per megabyte."""
    chunks = [log[place : place + CHUNK_BYTES] for place in range(0, len(log), CHUNK_BYTES)]
    samples = []
    for _ in range(PASSES):
        began = time.thread_time()
        causes = sum(_causes(chunk) for chunk in chunks)
        samples.append(1000 * (time.thread_time() - began) / (len(log) / _MB))
        if not causes:
            raise NotMeasurableError("no cause was found")
    return tuple(samples)


def _causes(chunk: bytes) -> int:
    count = 0
    for _, raw in lines_of(chunk, len(chunk), (CANDIDATE,), lambda _: False):
        line = read_line(raw)
        count += cause_of(line.message, line.level) is not None
    return count


def _speed(samples: tuple[float, ...]) -> str:
    return f"{1000 / median(samples):.0f} MB/s"
