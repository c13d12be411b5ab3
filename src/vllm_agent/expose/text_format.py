"""The two text formats of Prometheus, written for families that keep most of their lines.

The text is byte for byte what prometheus_client writes for the same families. It is written here
because everything of a line but its number stays the same from scrape to scrape.
"""

from __future__ import annotations

from enum import StrEnum
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Generic

from prometheus_client.utils import floatToGoString

from vllm_agent.expose.family import MetricType, Samples, Subject
from vllm_agent.snapshot import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_agent.expose.family import Family

OPENMETRICS_END: Final = "# EOF\n"
_MAX_KEPT_SERIES: Final = 128
"""Per family and subject, above the 49 pairs of states; a server that renames its model with every
answer must not fill the memory."""
_PLAIN_BELOW: Final = 1_000_000.0
"""From here on Go writes an exponent where Python does not."""
_go_string: Final[Callable[[float], str]] = floatToGoString  # the library declares no types for it


class TextFormat(StrEnum):
    """A format of the page; the value is its content type."""

    PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def number(value: float) -> str:
    """The number as Go's strconv writes it, a float in any case."""
    if -_PLAIN_BELOW < value < _PLAIN_BELOW:
        return repr(float(value))
    return _go_string(value)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _escaped_quoted(text: str) -> str:
    return _escaped(text).replace('"', r"\"")


def header(family: Family[Subject], text_format: TextFormat) -> str:
    """The HELP and TYPE lines of a family."""
    name, text = family.name, _escaped(family.help)
    if text_format is TextFormat.OPENMETRICS:
        text = _escaped_quoted(family.help)
        if family.type is MetricType.COUNTER:
            name = name.removesuffix("_total")
    return f"# HELP {name} {text}\n# TYPE {name} {family.type}\n"


def _beginning(name: str, labels: dict[str, str]) -> str:
    """A line up to its number."""
    pairs = ",".join(f'{key}="{_escaped_quoted(labels[key])}"' for key in sorted(labels))
    return f"{name}{{{pairs}}} " if pairs else f"{name} "


class FamilyText(Generic[Subject]):
    """The sample lines of one family about one subject.

    Keeps how each line begins, and the whole text for as long as the samples are the same.
    """

    __slots__ = ("_beginnings", "_samples", "_subject_values", "_text", "family")

    def __init__(self, family: Family[Subject], *subject_values: str) -> None:
        self.family = family
        self._subject_values = subject_values
        self._beginnings: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._samples: Samples | None = None
        self._text = ""

    def render(self, subject: Subject) -> str:
        """The lines of all series; both formats write them alike."""
        samples = self.family.samples(subject)
        if samples == self._samples:
            return self._text
        lines: list[str] = []
        for values, value in samples:
            beginnings = self._beginnings.get(values) or self._keep(values)
            if isinstance(value, Histogram):
                cumulative = tuple(accumulate(value.counts))
                numbers = (*cumulative, cumulative[-1], value.sum_seconds)
                lines += (
                    f"{beginning}{number(count)}\n"
                    for beginning, count in zip(beginnings, numbers, strict=True)
                )
            else:
                lines.append(f"{beginnings[0]}{number(value)}\n")
        self._samples, self._text = samples, "".join(lines)
        return self._text

    def _keep(self, values: tuple[str, ...]) -> tuple[str, ...]:
        if len(self._beginnings) >= _MAX_KEPT_SERIES:
            self._beginnings.clear()
        family = self.family
        labels = dict(zip(family.all_labels, self._subject_values + values, strict=True))
        if family.type is MetricType.HISTOGRAM:
            name = family.name
            bounds = (_go_string(bound) for bound in (*family.buckets, float("inf")))
            kept = (
                *(_beginning(f"{name}_bucket", labels | {"le": le}) for le in bounds),
                _beginning(f"{name}_count", labels),
                _beginning(f"{name}_sum", labels),
            )
        else:
            kept = (_beginning(family.name, labels),)
        self._beginnings[values] = kept
        return kept
