"""Which measurement gives which rows, in which order, and what runs beside it."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from benchmarks import (
    alert_page,
    classifier,
    deaths,
    fleet,
    gpu_cost,
    load_watch,
    local_deaths,
    local_launches,
    local_rest,
    managed,
    managed_many,
    rest,
    rows,
    scrape_cost,
    startup,
)
from benchmarks.programs import NotMeasurableError
from benchmarks.result import Result
from benchmarks.scraper import NoAnswerError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from benchmarks.rows import Row
    from benchmarks.session import Session


@dataclass(frozen=True, slots=True)
class Measurement:
    """Something that gives several rows at once; a `quiet` one mostly waits."""

    measure: Callable[[Session], list[Result]]
    rows: tuple[Row, ...]
    is_quiet: bool = False


MEASUREMENTS: Final = (
    Measurement(startup.measure, (rows.START,)),
    Measurement(rest.measure_growth, (rows.FLAT_MEMORY,), is_quiet=True),
    Measurement(rest.measure, (rows.MEMORY_8, rows.REST_CPU_8), is_quiet=True),
    # Before the others: each process that comes and goes costs the agent something.
    Measurement(load_watch.measure, (rows.LOAD_WATCH,)),
    Measurement(deaths.measure, (rows.EXTERNAL_DEATH,)),
    Measurement(local_deaths.measure, (rows.LOCAL_DEATH, rows.LOCAL_VERDICT)),
    Measurement(alert_page.measure, (rows.ALERT_PAGE,)),
    Measurement(local_launches.measure_sight, (rows.NEW_SERVER,)),
    Measurement(local_launches.measure_cost, (rows.LAUNCH_CPU, rows.LAUNCH_MEMORY)),
    Measurement(managed.measure_health, (rows.ENSURE_HEALTHY,)),
    Measurement(managed.measure_restart, (rows.MANAGED_RESTART,)),
    Measurement(scrape_cost.measure, (rows.SERIES_CPU, rows.PAGE_8)),
    Measurement(scrape_cost.measure_local, (rows.LOCAL_PAGE_8,)),
    Measurement(classifier.measure, (rows.CLASSIFIER,)),
    # Not beside those before it: each process that comes and goes costs the agent something.
    Measurement(local_rest.measure, (rows.LOCAL_MEMORY_8, rows.LOCAL_REST_CPU_8), is_quiet=True),
    Measurement(gpu_cost.measure_pass, (rows.GPU_PASS,), is_quiet=True),
    Measurement(gpu_cost.measure_rest, (rows.GPU_CPU, rows.GPU_MEMORY), is_quiet=True),
    Measurement(
        fleet.measure,
        (
            rows.PROBE_CPU,
            rows.FLEET_200_CPU,
            rows.FLEET_200_PAGE,
            rows.FLEET_1000_CPU,
            rows.FLEET_1000_PAGE,
        ),
    ),
    Measurement(
        managed_many.measure,
        (rows.MANAGED_50_CPU, rows.MANAGED_50_MEMORY, rows.MANAGED_50_PAGE),
    ),
)


def run(session: Session, names: Collection[str]) -> list[Result]:
    """The rows of these names, in the order of the table.

    Quiet measurements need under 2 % of a core and run beside the others; only the start of the
    agent, which needs a whole core, has the machine for itself.
    """
    wanted = [m for m in MEASUREMENTS if any(row.name in names for row in m.rows)]
    by_name: dict[str, Result] = {}
    with ThreadPoolExecutor() as pool:
        quiet = []
        for measurement in wanted:
            if measurement.is_quiet:
                quiet.append(pool.submit(_results, measurement, session))
            else:
                by_name |= _results(measurement, session)
        for future in quiet:
            by_name |= future.result()
    return [by_name[row.name] for row in rows.ROWS if row.name in names]


def _results(measurement: Measurement, session: Session) -> dict[str, Result]:
    names = ", ".join(row.name for row in measurement.rows)
    began = time.monotonic()
    try:
        results = measurement.measure(session)
    except (NotMeasurableError, NoAnswerError, OSError) as error:
        results = [Result(row, problem=str(error)) for row in measurement.rows]
    print(f"measured {names}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return {result.row.name: result for result in results}
