"""What one run of the benchmarks is given: where to write, and how long to look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Scale:
    """How many repetitions and how long the windows are.

    A window of probing is `window_seconds` long and is measured `windows` times; it is the interval
    of the probes, so that each server is looked at once in each.
    """

    starts: int
    deaths: int
    pages: int
    launches: int
    health_requests: int
    restarts: int
    small_page_rounds: int
    large_page_rounds: int
    huge_page_scrapes: int
    windows: int
    rest_windows: int
    load_windows: int
    gpu_passes: int
    flat_from_seconds: float
    flat_until_seconds: float


FULL: Final = Scale(
    starts=10,
    deaths=110,
    pages=24,
    launches=40,
    health_requests=2000,
    restarts=40,
    small_page_rounds=27,
    large_page_rounds=25,
    huge_page_scrapes=30,
    windows=6,
    rest_windows=4,
    load_windows=5,
    gpu_passes=200,
    flat_from_seconds=30.0,
    flat_until_seconds=120.0,
)
QUICK: Final = Scale(
    starts=3,
    deaths=30,
    pages=8,
    launches=15,
    health_requests=500,
    restarts=16,
    small_page_rounds=6,
    large_page_rounds=2,
    huge_page_scrapes=10,
    windows=1,
    rest_windows=2,
    load_windows=2,
    gpu_passes=50,
    flat_from_seconds=15.0,
    flat_until_seconds=45.0,
)

PROBE_SECONDS: Final = 10.0
"""The default interval of the probes."""

SCRAPE_SECONDS: Final = 15.0
"""How often a Prometheus scrapes whose operator set the interval; its own default is 60 s."""


@dataclass(frozen=True, slots=True)
class Session:
    """One run; `folder` is empty and removed after it."""

    folder: Path
    scale: Scale
