"""The table says plainly what is met, missed and not measured. Nothing here is timed."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from benchmarks.plan import MEASUREMENTS
from benchmarks.result import NOT_INSTALLED, Peer, Result
from benchmarks.rows import EXTERNAL_DEATH, FLEET_1000_PAGE, PROBE_CPU, ROWS
from benchmarks.statistic import quantile
from benchmarks.table import HEADINGS, render


def line_of(name: str, *results: Result) -> str:
    """The line of one row in the table of these results."""
    return next(line for line in render(results).splitlines() if line.startswith(f"{name} "))


def test_every_row_is_in_the_table():
    table = render([Result(row, (1.0, 2.0)) for row in ROWS])
    lines = table.splitlines()
    assert lines[0].split() == list(HEADINGS)
    assert [line.split()[0] for line in lines[2 : 2 + len(ROWS)]] == [row.name for row in ROWS]


def test_every_row_is_measured_by_exactly_one_measurement():
    measured = Counter(row.name for measurement in MEASUREMENTS for row in measurement.rows)
    assert measured == Counter(row.name for row in ROWS)


@pytest.mark.parametrize(
    ("result", "verdict", "is_met"),
    [
        (Result(EXTERNAL_DEATH, (5.0, 100.0)), "met", True),
        (Result(EXTERNAL_DEATH, (5.0, 150.0)), "MISSED: 150, 1.5 times the bar", False),
        (Result(EXTERNAL_DEATH, problem="no agent"), "NOT MEASURED, see below", None),
        (Result(PROBE_CPU, (200.0,), Peer("p", (1000.0,))), "met", True),
        (Result(PROBE_CPU, (500.0,), Peer("p", (1000.0,))), "MISSED: 1/2 of it, 2 times", False),
        (Result(PROBE_CPU, (500.0,), Peer("p", (1000.0,)), paired_ratio=0.2), "met", True),
        (Result(PROBE_CPU, (500.0,), Peer.missing("p")), f"NOT MEASURED: {NOT_INSTALLED}", None),
        (Result(FLEET_1000_PAGE, (500.0,)), "  -", None),
    ],
)
def test_a_verdict_says_by_how_much(result, verdict, is_met):
    line = line_of(result.row.name, result)
    assert f"  {verdict}" in line
    assert result.is_met is is_met


def test_a_row_counts_as_measured_when_it_can_be_judged():
    assert Result(EXTERNAL_DEATH, (5.0,), Peer.missing("p")).is_measured
    assert Result(FLEET_1000_PAGE, (5.0,)).is_measured
    assert not Result(PROBE_CPU, (5.0,), Peer.missing("p")).is_measured
    assert not Result(EXTERNAL_DEATH, problem="no agent").is_measured


def test_the_summary_counts_what_is_met_missed_and_not_measured():
    results = [
        Result(EXTERNAL_DEATH, (5.0,)),
        Result(EXTERNAL_DEATH, (6.0,)),
        Result(EXTERNAL_DEATH, (500.0,)),
        Result(PROBE_CPU, (5.0,), Peer.missing("p")),
        Result(FLEET_1000_PAGE, (5.0,)),
    ]
    assert render(results).endswith("2 of 4 bars met, 1 missed, 1 rows not measured.\n")


def test_the_peer_stands_beside_with_its_number_and_the_ratio():
    line = line_of("external-death", Result(EXTERNAL_DEATH, (5.0,), Peer("slow", (50.0, 90.0))))
    assert line.endswith("slow 50 / 90; we need 1/10 of it")


def test_what_could_not_be_measured_is_explained_below_the_table():
    assert "\nexternal-death: no agent\n" in render([Result(EXTERNAL_DEATH, problem="no agent")])


def test_the_notes_follow_the_table():
    text = render([Result(EXTERNAL_DEATH, (5.0,), notes=("110 deaths",))])
    assert "\nexternal-death: 110 deaths\n" in text


def test_the_numbers_are_json():
    numbers = json.loads(json.dumps(Result(PROBE_CPU, (2.0,), Peer("p", (10.0,))).as_json()))
    assert numbers["ratio"] == 0.2
    assert numbers["is_met"] is True
    assert numbers["peer"]["median"] == 10.0


def test_quantiles_are_samples_by_nearest_rank():
    assert quantile(range(1, 101), 0.99) == 99
    assert quantile(range(1, 11), 0.99) == 10
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    with pytest.raises(ValueError, match="no samples"):
        quantile([], 0.5)
