"""Order statistics of small samples."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def quantile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least `share` of all do not exceed (nearest rank).

    With fewer than 100 samples the 0.99 quantile is the largest of them.
    """
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def median(samples: Sequence[float]) -> float:
    """The middle sample, the lower one of two."""
    return quantile(samples, 0.5)


def p99(samples: Sequence[float]) -> float:
    """The 0.99 quantile."""
    return quantile(samples, 0.99)
