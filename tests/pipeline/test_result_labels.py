"""Which labels a result has, as Prometheus would give it."""

from __future__ import annotations

import pytest

from tests.pipeline.result_labels import result_labels

KNOWN = {"a": {"job", "x"}, "b": {"job", "y"}, "c": {"job", "x", "y"}}


@pytest.mark.parametrize(
    ("expr", "labels"),
    [
        ("a > 1", {"job", "x"}),
        ("1 - rate(a[5m])", {"job", "x"}),
        ("time() - a < 300", {"job", "x"}),
        ("a and on (job) b", {"job", "x"}),
        ("a unless b", {"job", "x"}),
        ("a or c", {"job", "x"}),
        ("a or b", {"job"}),
        ("a / a", {"job", "x"}),
        ("a / on (job) b", {"job"}),
        ("c * ignoring (y) a", {"job", "x"}),
        ("a * on (job) group_left (y) b", {"job", "x", "y"}),
        ("sum(a)", set()),
        ("sum by (x, gone) (a)", {"x"}),
        ("max without (x) (a)", {"job"}),
        ("clamp_min(2 * a, 1)", {"job", "x"}),
        ("max_over_time((a > 1)[1h:1m])", {"job", "x"}),
        ('absent(a{job="j", x=~"y"})', {"job"}),
    ],
)
def test_result_has(expr, labels):
    assert result_labels(expr, KNOWN) == labels


def test_scalar_has_none():
    with pytest.raises(TypeError, match="scalar"):
        result_labels("time() - 5", KNOWN)
