"""The rules of Grafana's dashboard-linter by their names, as far as they are about Prometheus.

Each takes a dashboard's JSON and tells what it finds wrong. They hold here for every kind of panel;
the linter itself passes over some kinds, such as tables in the rules on queries.
"""

from __future__ import annotations

import re
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import promql_parser

from tests.pipeline.promql import RATE_FUNCTIONS, nodes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Json: TypeAlias = dict[str, Any]
Rule: TypeAlias = "Callable[[Json], Iterator[str]]"

UNITS: Final = frozenset(
    {"none", "string", "short", "percent", "percentunit", "bytes", "decbytes", "Bps", "s", "ms"}
    | {"dateTimeFromNow", "dateTimeAsIso", "dateTimeAsLocal", "watt", "celsius", "joule", "hertz"}
    | {"dtdurations", "dthms", "cps", "ops", "reqps", "rps", "iops", "bool", "bool_yes_no"}
)
"""Units that the linter knows, as far as dashboards here may have a use for them."""
_RATE_INTERVAL_SECONDS: Final = 9973
"""A window that nobody would write by hand, so that it stands for `$__rate_interval` alone."""
_BUILT_IN: Final = MappingProxyType(
    {
        "__rate_interval": f"{_RATE_INTERVAL_SECONDS}s",
        "__interval": "9967s",
        "__interval_ms": "9967000",
        "__range": "9949s",
        "__range_s": "9949",
    }
)
_VARIABLE_FUNCTIONS: Final = frozenset({"label_names", "label_values", "metrics", "query_result"})


def template_datasource(board: Json) -> Iterator[str]:
    found = [one for one in _variables(board) if one["type"] == "datasource"]
    if not found:
        yield "has no variable for the data source"
    for one in found:
        if one["name"] not in {"datasource", f"{one['query']}_datasource"}:
            yield f"the data source variable is named {one['name']}"
        if one["label"] not in {"Data source", f"{one['query'].title()} data source"}:
            yield f"the data source variable is labelled {one['label']}"


def template_of(name: str, board: Json) -> Iterator[str]:
    found = [one for one in _variables(board) if one["name"] == name]
    if not found:
        yield f"has no variable {name}"
    for one in found:
        wanted = {"type": "query", "label": name.title(), "multi": True, "allValue": ".+"}
        yield from (
            f"{name}: {key} is not {value}"
            for key, value in wanted.items()
            if one.get(key) != value
        )
        if one["datasource"]["uid"] != "${datasource}":
            yield f"{name} asks another data source"


def template_label_promql(board: Json) -> Iterator[str]:
    for one in _query_variables(board):
        found = re.fullmatch(r"([a-z_]+)\((?:(.+), )?\w+\)", one["query"]["query"])
        if not found or found[1] not in _VARIABLE_FUNCTIONS:
            yield f"{one['name']} is filled from no function"
        elif found[2] is not None:
            yield from _syntax_errors(found[2])


def template_on_time_change_reload(board: Json) -> Iterator[str]:
    for one in _query_variables(board):
        if one["refresh"] != 2:
            yield f"{one['name']} is not asked again when the time range changes"


def panel_datasource(board: Json) -> Iterator[str]:
    for panel in _panels(board):
        asked = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        if any(one["uid"] != "${datasource}" for one in asked):
            yield f"{panel['title']} asks another data source"


def panel_title_description(board: Json) -> Iterator[str]:
    for panel in _panels(board):
        if not panel.get("title") or not panel.get("description"):
            yield f"{panel['id']} has no title or no description"


def panel_units(board: Json) -> Iterator[str]:
    for panel in _panels(board):
        config = panel["fieldConfig"]
        units = [
            one["value"]
            for override in config["overrides"]
            for one in override["properties"]
            if one["id"] == "unit"
        ]
        # The linter lets a panel with mappings be; a unit does no harm there.
        if not {config["defaults"].get("unit"), *units} <= UNITS:
            yield f"{panel['title']} has no unit, or one that Grafana does not have"


def panel_no_targets(board: Json) -> Iterator[str]:
    for panel in _panels(board):
        if not panel["targets"]:
            yield f"{panel['title']} asks nothing"


def target_promql(board: Json) -> Iterator[str]:
    for expr in _queries(board):
        yield from _syntax_errors(expr)


def target_rate_interval(board: Json) -> Iterator[str]:
    for expr in _queries(board):
        for name, window in _windows(expr):
            if name in {"rate", "irate"} and window.range.total_seconds() != _RATE_INTERVAL_SECONDS:
                yield f"a rate over another window than $__rate_interval: {expr}"


def target_of(label: str, board: Json) -> Iterator[str]:
    for expr in _queries(board):
        for selector in _selectors(expr):
            followed = {
                one.name
                for one in selector.matchers.matchers
                if one.op == promql_parser.MatchOp.Re and one.value == f"${one.name}"
            }
            if label not in followed:
                yield f'{selector.name} has no {label}=~"${label}": {expr}'


def target_counter_agg(board: Json) -> Iterator[str]:
    for expr in _queries(board):
        rated = {
            window.vector_selector.name for name, window in _windows(expr) if name in RATE_FUNCTIONS
        }
        for selector in _selectors(expr):
            if selector.name.endswith("_total") and selector.name not in rated:
                yield f"{selector.name} is shown as it is: {expr}"


def uneditable(board: Json) -> Iterator[str]:
    if board["editable"]:
        yield "can be edited, and the edit is lost"


RULES: Final = MappingProxyType[str, "Rule"](
    {
        "template-datasource-rule": template_datasource,
        "template-job-rule": partial(template_of, "job"),
        "template-instance-rule": partial(template_of, "instance"),
        "template-label-promql-rule": template_label_promql,
        "template-on-time-change-reload-rule": template_on_time_change_reload,
        "panel-datasource-rule": panel_datasource,
        "panel-title-description-rule": panel_title_description,
        "panel-units-rule": panel_units,
        "panel-no-targets-rule": panel_no_targets,
        "target-promql-rule": target_promql,
        "target-rate-interval-rule": target_rate_interval,
        "target-job-rule": partial(target_of, "job"),
        "target-instance-rule": partial(target_of, "instance"),
        "target-counter-agg-rule": target_counter_agg,
        "uneditable-dashboard": uneditable,
    }
)
"""All but those on LogQL."""

FROM_FIRST_EVENT: Final = ("vllm_agent_dropped_total", "vllm_agent_gpu_xid_errors_total")
"""Counters whose series come with the first event, which no rate shows; shown as counted."""
EXCLUDED: Final = MappingProxyType({"target-counter-agg-rule": FROM_FIRST_EVENT})
"""Rule → what may be in a finding of it that is right here."""


def _variables(board: Json) -> list[Json]:
    variables: list[Json] = board["templating"]["list"]
    return variables


def _query_variables(board: Json) -> list[Json]:
    return [one for one in _variables(board) if one["type"] == "query"]


def _panels(board: Json) -> list[Json]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def _queries(board: Json) -> Iterator[str]:
    """Every query, those of annotations included, with the variables that are no label values."""
    exprs = [target["expr"] for panel in _panels(board) for target in panel["targets"]]
    for expr in (*exprs, *(one["expr"] for one in board["annotations"]["list"])):
        yield _expanded(expr)


def _expanded(expr: str) -> str:
    return re.sub(r"\$(__\w+)", lambda found: _BUILT_IN[found[1]], expr)


def _syntax_errors(expr: str) -> Iterator[str]:
    try:
        promql_parser.parse(expr)
    except ValueError as error:
        yield f"{error}: {expr}"


def _found(expr: str) -> Iterator[promql_parser.Expr]:
    """Every node; none of a query that does not parse, which is another rule's business."""
    return iter(()) if any(_syntax_errors(expr)) else nodes(expr)


def _selectors(expr: str) -> list[Any]:
    return [node for node in _found(expr) if isinstance(node, promql_parser.VectorSelector)]


def _windows(expr: str) -> Iterator[tuple[str, Any]]:
    """Each range of the query, and the function that it is an argument of."""
    for node in _found(expr):
        if isinstance(node, promql_parser.Call):
            for argument in node.args:
                if isinstance(argument, promql_parser.MatrixSelector):
                    yield node.func.name, argument
