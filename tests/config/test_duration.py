"""Durations in Prometheus' grammar."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_agent.config.duration import MAX_MILLISECONDS, format_duration, parse_duration


# From TestParseDuration in model/time_test.go of prometheus/common.
@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("0w", 0.0),
        ("0s", 0.0),
        ("324ms", 0.324),
        ("3s", 3.0),
        ("5m", 300.0),
        ("1h", 3_600.0),
        ("4d", 345_600.0),
        ("4d1h", 349_200.0),
        ("14d", 1_209_600.0),
        ("3w", 1_814_400.0),
        ("3w2d1h", 1_990_800.0),
        ("10y", 315_360_000.0),
        ("1h30m", 5_400.0),
    ],
)
def test_durations_mean_what_they_mean_in_prometheus(text: str, seconds: float):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "1", "10", "1y1m1d", "-1w", "1.5d", "d", " 1s", "1s ", "1s\n", "1S", "٣s", "1m1m", "1µs"],
)
def test_what_prometheus_refuses_is_refused(text: str):
    with pytest.raises(ValueError, match="must be a duration such as 500ms, 10s or 1h30m"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["294y", "200y10400w", "107675d", "9999999999999ms"])
def test_what_overflows_in_prometheus_is_refused(text: str):
    with pytest.raises(ValueError, match="shorter than 292 years"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0"), (0.5, "500ms"), (90.0, "1m30s"), (86_400.0, "1d")]
)
def test_durations_are_written_with_the_largest_units(seconds: float, text: str):
    assert format_duration(seconds) == text


@given(milliseconds=st.integers(min_value=0, max_value=MAX_MILLISECONDS))
def test_what_is_written_reads_back_as_the_same(milliseconds: int):
    seconds = milliseconds / 1_000

    assert parse_duration(format_duration(seconds)) == seconds
