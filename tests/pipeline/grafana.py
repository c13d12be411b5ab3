"""What Grafana makes of a dashboard's queries before it sends them to Prometheus.

As its Prometheus data source does it in Grafana 10 to 13: chosen values are written as regular
expressions, escaped once for the expression and once for the string that it stands in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.pipeline.boards import Board
    from tests.pipeline.processes import Prometheus

_Frame: TypeAlias = "list[dict[str, Any]]"

ANNOTATION_STEP: Final = "60s"
"""Of an annotation that names none."""
LEGEND_LABEL: Final = re.compile(r"{{\s*(\w+)\s*}}")
_UNITS: Final = MappingProxyType({"s": 1, "m": 60, "h": 3600, "d": 86_400})
_VARIABLE: Final = re.compile(r"\$\{(\w+)(?::(\w+))?\}|\$(\w+)")
_LABEL_VALUES: Final = re.compile(r"label_values\((?:(.+), *)?(\w+)\)")
_SPECIAL: Final = re.compile(r"[$^*{}\[\]'+?.()|]")
_SPECIAL_ONCE: Final = re.compile(r"[\\^$*+?.()|\[\]{}/-]")
"""What `:regex` escapes: once only, which is not enough within a string of PromQL."""


def seconds(duration: str) -> int:
    """A duration as a dashboard has it, such as `5m`."""
    return int(duration[:-1]) * _UNITS[duration[-1]]


@dataclass(frozen=True, slots=True)
class Window:
    """The time that a viewer looks at, and how often the data source is scraped.

    A screen has more points than the window has scrapes.
    """

    start: int
    end: int
    scrape_seconds: int

    def step_seconds(self, panel: Mapping[str, Any], target: Mapping[str, Any]) -> int:
        """`$__interval`: of what a panel or a query say they need at least, the longest."""
        least = (one["interval"] for one in (panel, target) if one.get("interval"))
        return max(self.scrape_seconds, *map(seconds, least), 0)

    def built_in(self, panel: Mapping[str, Any], target: Mapping[str, Any]) -> Mapping[str, str]:
        """The variables that every query may use."""
        step, length = self.step_seconds(panel, target), self.end - self.start
        # A query's own least step counts as its scrape interval; a panel's does not.
        least = target.get("interval")
        scrape = seconds(least) if least else self.scrape_seconds
        return {
            "__interval": f"{step}s",
            "__interval_ms": f"{step * 1000}",
            "__rate_interval": f"{max(step + scrape, 4 * scrape)}s",
            "__range": f"{length}s",
            "__range_s": f"{length}",
            "__range_ms": f"{length * 1000}",
        }


def legend_text(template: str, labels: Mapping[str, str]) -> str:
    """What the legend calls a series."""
    return LEGEND_LABEL.sub(lambda found: labels.get(found[1], ""), template)


class Viewer:
    """Somebody who looks at a dashboard and has chosen values of some variables, All of the rest.

    `options` is what each variable offers, which depends on what is chosen of those before it.
    """

    def __init__(
        self,
        board: Board,
        prometheus: Prometheus,
        window: Window,
        chosen: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.board = board
        self.window = window
        self.chosen = chosen
        self.options: dict[str, Sequence[str]] = {}
        self._prometheus = prometheus

        for name, variable in board.variables.items():
            if variable["type"] == "query":
                self.options[name] = self._offered(variable)

    def values(self, name: str) -> Sequence[str]:
        """The values that a variable stands for."""
        return [self.chosen[name]] if name in self.chosen else self.options[name]

    def copies(self, panel: Mapping[str, Any]) -> Iterator[Viewer]:
        """Who sees each copy of a panel that is repeated for the values of a variable."""
        repeat = panel.get("repeat")
        if repeat is None:
            yield self
            return
        for value in self.values(repeat):
            chosen = {**self.chosen, repeat: value}
            yield Viewer(self.board, self._prometheus, self.window, chosen)

    def sent(self, query: str, built_in: Mapping[str, str]) -> str:
        """The query as Grafana sends it."""

        def written(found: re.Match[str]) -> str:
            name = found[1] or found[3]
            return built_in[name] if name in built_in else self._written(name, found[2])

        return _VARIABLE.sub(written, query)

    def ask(self, target: Mapping[str, Any], panel: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The series of a query, each with `values`: one where the query is instant."""
        expr = self.sent(target["expr"], self.window.built_in(panel, target))
        if target.get("instant"):
            found = self._prometheus.query(expr, self.window.end)
            return [{"metric": one["metric"], "values": [one["value"]]} for one in found]
        step = self.window.step_seconds(panel, target)
        # Grafana's data source begins and ends at whole steps.
        start, end = (at // step * step for at in (self.window.start, self.window.end))
        return self._prometheus.query_range(expr, start, end, step)

    def rows(self, panel: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The rows of a table panel, by the titles of their columns; empty cells are left out."""
        found = {target["refId"]: self.ask(target, panel) for target in panel["targets"]}
        frames = _frames({ref_id: series for ref_id, series in found.items() if series})
        for step in panel["transformations"]:
            frames = _transformed(frames, step["id"], step["options"])
        return [
            {title: cell for title, cell in row.items() if cell != ""}
            for frame in frames
            for row in frame
        ]

    def ask_annotation(self, annotation: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The series whose values that are not 0 are drawn as marks."""
        target = {"expr": annotation["expr"], "interval": annotation.get("step", ANNOTATION_STEP)}
        return self.ask(target, {})

    def _written(self, name: str, form: str | None) -> str:
        variable = self.board.variables[name]
        if name not in self.chosen and "allValue" in variable:
            return str(variable["allValue"])
        return _joined(self.values(name), form)

    def _offered(self, variable: Mapping[str, Any]) -> Sequence[str]:
        query = self.sent(variable["query"]["query"], self.window.built_in({}, {}))
        found = _LABEL_VALUES.fullmatch(query)
        assert found, query
        asked: dict[str, Any] = {"start": self.window.start, "end": self.window.end}
        if found[1]:
            asked["match[]"] = found[1]
        offered = self._prometheus.get(f"/api/v1/label/{found[2]}/values", asked)["data"]
        return [value for value in offered if re.search(variable.get("regex") or "", value)]


def _joined(values: Sequence[str], form: str | None) -> str:
    match form:
        case None:
            escaped = [_escaped(value) for value in values]
        case "regex":
            escaped = [_SPECIAL_ONCE.sub(r"\\\g<0>", value) for value in values]
        case _:
            raise AssertionError(f"no query here needs the form {form}")
    return escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"


def _escaped(value: str) -> str:
    return _SPECIAL.sub(r"\\\\\g<0>", value.replace("\\", "\\" * 4))


def _transformed(frames: Sequence[_Frame], step: str, options: Mapping[str, Any]) -> list[_Frame]:
    match step:
        case "filterFieldsByName":
            names = options["include"]["names"]
            return [[_picked(row, {name: name for name in names}) for row in one] for one in frames]
        case "merge":
            return [_merged(frames)]
        case "organize":
            names = {name for frame in frames for row in frame for name in row}
            left_out = {
                name for name, is_left_out in options["excludeByName"].items() if is_left_out
            }
            titles = {name: options["renameByName"].get(name, name) for name in names - left_out}
            return [[_picked(row, titles) for row in frame] for frame in frames]
        case _:
            raise AssertionError(f"no table here needs {step}")


def _picked(row: Mapping[str, Any], titles: Mapping[str, str]) -> dict[str, Any]:
    return {title: row[name] for name, title in titles.items() if name in row}


def _frames(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[_Frame]:
    """The rows of each query of a table: its labels, the metric's name too, the time and a value.

    A value is named after its query only where several queries have rows.
    """
    frames = []
    for ref_id, series in found.items():
        value = f"Value #{ref_id}" if len(found) > 1 else "Value"
        labels = {label for one in series for label in one["metric"]}
        frames.append(
            [
                {
                    "Time": one["values"][0][0],
                    **{label: one["metric"].get(label, "") for label in sorted(labels)},
                    value: float(one["values"][0][1]),
                }
                for one in series
            ]
        )
    return frames


def _merged(frames: Sequence[_Frame]) -> _Frame:
    """The frames as one: rows join where they differ in no field that both have.

    As Grafana's transformation does it, which looks at the fields that all frames have first and
    comes to the same.
    """
    merged: _Frame = []
    for row in (row for frame in frames for row in frame):
        joined = [known for known in merged if all(known.get(k, v) == v for k, v in row.items())]
        for known in joined:
            known.update(row)
        if not joined:
            merged.append(dict(row))
    return merged
