"""Each recorded ending of a real vLLM, done to the stand-in."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

import pytest

from tests.standin.measure import CLOSE, Measured, measure

ROWS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "testdata" / "endings.jsonl").read_text().splitlines()
]
NAMES = [row["name"] for row in ROWS]
SPEED = 4.0
# Recorded events closer than this came in either order in repeated runs of the real server;
# the states at the close are compared without a tolerance.
UNORDERED_SECONDS = 0.2
# The servers sleep nearly all of the time; more at once would disturb each other.
AT_ONCE = 4


@pytest.fixture(scope="module")
def measured() -> dict[str, Measured]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(NAMES, pool.map(lambda row: measure(row, SPEED), ROWS), strict=True))


@pytest.fixture(params=ROWS, ids=NAMES)
def row(request):
    return request.param


def recorded_events(row: dict) -> list[tuple[float, str]]:
    return [
        (event["t"], CLOSE if event["ev"] == "listener_closed" else event["who"])
        for event in row["events"]
    ]


def test_same_events(row, measured):
    """The same processes exit, and the connection closes."""
    assert {name for _, name in measured[row["name"]].events} == {
        name for _, name in recorded_events(row)
    }


def test_same_order(row, measured):
    """What was clearly first in the recording is first here."""
    times = {name: moment for moment, name in measured[row["name"]].events}
    for (first, one), (second, other) in combinations(recorded_events(row), 2):
        if second - first > UNORDERED_SECONDS:
            assert times[one] < times[other], f"{one} before {other}"


def test_same_delays(row, measured):
    """Long delays are those of the recording, scaled."""
    times = {name: moment for moment, name in measured[row["name"]].events}
    for moment, name in recorded_events(row):
        assert times[name] * SPEED == pytest.approx(moment, rel=0.4, abs=2.0), name


def test_same_exit_statuses(row, measured):
    """Wait statuses agree wherever both were seen."""
    recorded = {
        name.partition("#")[0]: status
        for name, status in row["wait_status"].items()
        if status is not None
    }
    seen = measured[row["name"]].statuses
    both = recorded.keys() & seen.keys()
    assert {name: seen[name] for name in both} == {name: recorded[name] for name in both}


def test_same_states_at_close(row, measured):
    """At the close of an idle connection the same processes are alive, the others ending."""
    close = next(event for event in row["events"] if event["ev"] == "listener_closed")
    recorded = {
        name.partition("#")[0]: state["exiting"] or state["killed_pending"] or state["gone"]
        for name, state in close["components"].items()
    }
    assert measured[row["name"]].ending_at_close == recorded


def test_same_survivors(row, measured):
    """Orphans and lingering API servers are those of the recording."""
    assert measured[row["name"]].survivors == set(row["orphans"])
