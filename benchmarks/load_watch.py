"""What it costs an agent to watch a local server load, with every witness there is."""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.local_servers import await_serving
from benchmarks.process import cpu_seconds
from benchmarks.programs import (
    NotMeasurableError,
    config_of,
    free_port,
    local_server,
    running_servers,
    started_agent,
)
from benchmarks.result import Result
from benchmarks.rows import LOAD_WATCH
from benchmarks.scraper import Scraper
from benchmarks.session import PROBE_SECONDS
from benchmarks.statistic import median
from vllm_agent.demo.launch import StandIn, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.programs import Program
    from benchmarks.session import Session

WINDOW_SECONDS: Final = 5.0
"""Several looks, and a log line of the agent now and then."""

BEGIN_SECONDS: Final = 3.0
"""From the exec of the server to the first window: finding a new process costs something by itself,
which is the row launch-cpu."""

END_SECONDS: Final = 2.0
"""How much longer than the windows the load takes."""

WORKERS: Final = 4
SHARDS: Final = 40

MAPPINGS: Final = 4000
"""Of each process. A worker of vLLM without GPUs has 1,000; libraries and GPUs add thousands."""

MAP: Final = f"""
import ctypes, mmap
with open(__file__, "rb") as file:
    libc = ctypes.CDLL(None)
    for _ in range({MAPPINGS}):
        libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_PRIVATE, file.fileno(), 0)
"""
"""A module that Python imports at its start: it maps itself again and again."""

LOOKED: Final = b"\nvllm_agent_load_last_progress_timestamp_seconds{"


def measure(session: Session) -> list[Result]:
    """An agent that waits for one server, and the same agent while that loads."""
    folder, windows, port = session.folder / "load-watch", session.scale.load_windows, free_port()
    load_seconds = BEGIN_SECONDS + windows * WINDOW_SECONDS + END_SECONDS
    with started_agent(folder, config_of([port], server=local_server)) as watcher:
        rest = _percent(watcher, PROBE_SECONDS)
        with _loading(folder, port, load_seconds) as server:
            time.sleep(BEGIN_SECONDS)
            loading = [_percent(watcher, WINDOW_SECONDS) for _ in range(windows)]
            with Scraper(watcher.port) as scraper:
                page = scraper.get().body
            if LOOKED not in page or running_servers(page):
                raise NotMeasurableError("the agent did not watch the load in every window")
            lines = [_mappings(pid) for pid in server.pids()]
            await_serving([server])
    note = (
        f"{windows} windows of {WINDOW_SECONDS:g} s in a load of {len(lines)} processes with "
        f"{median(lines):,.0f} mappings each (median), less {rest:.2f} % before it was started. It "
        "holds all that an agent does while a server loads, knocking at its port as well"
    )
    return [Result(LOAD_WATCH, tuple(percent - rest for percent in loading), notes=(note,))]


@contextmanager
def _loading(folder: Path, port: int, seconds: float) -> Iterator[StandIn]:
    """A server as large as one with several GPUs, with a cache and a log of its own."""
    (folder / "sitecustomize.py").write_text(MAP, encoding="utf-8")
    with StandIn.start(
        f"--load-seconds={seconds}",
        f"--tensor-parallel-size={WORKERS}",
        model=str(write_checkpoint(folder / "model", SHARDS)),
        port=port,
        log=folder / f"{port}.log",
        environment={
            "PYTHONPATH": str(folder),
            "HF_HOME": str(folder / "huggingface"),
            "VLLM_CACHE_ROOT": str(folder / "vllm"),
        },
    ) as server:
        yield server


def _mappings(pid: int) -> int:
    return Path(f"/proc/{pid}/maps").read_bytes().count(b"\n")


def _percent(watcher: Program, seconds: float) -> float:
    began, cpu = time.perf_counter(), cpu_seconds(watcher.pid)
    time.sleep(seconds)
    return 100 * (cpu_seconds(watcher.pid) - cpu) / (time.perf_counter() - began)
