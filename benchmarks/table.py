"""The results as one table, with the notes of each row below it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.rows import Judged
from benchmarks.statistic import median, p99

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.result import Result

HEADINGS = ("row", "what", "median", "p99", "unit", "bar", "verdict", "beside")


def render(results: Sequence[Result]) -> str:
    """The table, ending with a line on how many bars are met."""
    lines = [HEADINGS, *(_cells(result) for result in results)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    text = [_line(line, widths) for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    notes = [f"{result.row.name}: {note}" for result in results for note in _notes(result)]
    return "\n".join([*text, "", *notes, "", _summary(results)]) + "\n"


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return "  ".join(padded).rstrip()


def _cells(result: Result) -> tuple[str, ...]:
    row, samples = result.row, result.samples
    return (
        row.name,
        row.what,
        number(median(samples)) if samples else "-",
        number(p99(samples)) if len(samples) > 1 else "-",
        row.unit,
        row.bar.text if row.bar is not None else "none",
        _verdict(result),
        _beside(result),
    )


def _verdict(result: Result) -> str:
    if result.problem:
        return "NOT MEASURED, see below"
    bar, judged = result.row.bar, result.judged
    if bar is None:
        return "-"
    if judged is None:
        reason = result.peer.problem if result.peer is not None else ""
        return f"NOT MEASURED: {reason or 'no samples'}"
    if result.is_met:
        return "met"
    value = ratio_text(judged) if bar.judged is Judged.RATIO else number(judged)
    return f"MISSED: {value}, {number(judged / bar.limit)} times the bar"


def _notes(result: Result) -> tuple[str, ...]:
    return (*result.notes, result.problem) if result.problem else result.notes


def _beside(result: Result) -> str:
    peer = result.peer
    if peer is None:
        return ""
    if not peer.samples:
        return f"{peer.name}: {peer.problem}"
    values = number(median(peer.samples))
    if len(peer.samples) > 1:
        values += f" / {number(p99(peer.samples))}"
    ratio = result.ratio
    return f"{peer.name} {values}" + (f"; we need {ratio_text(ratio)}" if ratio else "")


def ratio_text(ratio: float) -> str:
    """A ratio as people say it: a part of the other, or so many times as much."""
    return f"1/{number(1 / ratio)} of it" if ratio < 1 else f"{number(ratio)} times it"


def _summary(results: Sequence[Result]) -> str:
    verdicts = [result.is_met for result in results if result.row.bar is not None]
    unmeasured = sum(not result.is_measured for result in results)
    text = f"{verdicts.count(True)} of {len(verdicts)} bars met, {verdicts.count(False)} missed"
    return f"{text}, {unmeasured} rows not measured." if unmeasured else f"{text}."
