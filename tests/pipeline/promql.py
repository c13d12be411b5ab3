"""What a PromQL expression uses, read from its syntax tree."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import promql_parser

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

COMPARISONS = frozenset({"==", "!=", ">", "<", ">=", "<="})
RATE_FUNCTIONS = frozenset({"rate", "irate", "increase"})


@dataclass(frozen=True, slots=True)
class Selector:
    """One metric in an expression, with the matchers it is narrowed by."""

    metric: str
    matchers: Mapping[str, str]


def nodes(expr: str) -> Iterator[promql_parser.Expr]:
    """Every node of the syntax tree, outermost first."""
    found: list[promql_parser.Expr] = []
    promql_parser.walk(promql_parser.parse(expr), found.append)
    return iter(found)


def selectors(expr: str) -> list[Selector]:
    """Every metric that the expression reads."""
    return [
        Selector(node.name or "", {one.name: one.value for one in node.matchers.matchers})
        for node in nodes(expr)
        if isinstance(node, promql_parser.VectorSelector)
    ]


def has_comparison(expr: str) -> bool:
    """Whether a comparison filters the result, as an alert needs it."""
    return any(
        isinstance(node, promql_parser.BinaryExpr)
        and str(node.op).split()[0] in COMPARISONS
        and not (node.modifier and node.modifier.return_bool)
        for node in nodes(expr)
    )


def rate_arguments(expr: str) -> set[str]:
    """The metrics under rate(), irate() or increase()."""
    return {
        argument.vector_selector.name or ""
        for node in nodes(expr)
        if isinstance(node, promql_parser.Call) and node.func.name in RATE_FUNCTIONS
        for argument in node.args
        if isinstance(argument, promql_parser.MatrixSelector)
    }


def range_seconds(expr: str) -> set[float]:
    """The windows that the expression looks back over."""
    return {
        node.range.total_seconds()
        for node in nodes(expr)
        if isinstance(node, promql_parser.MatrixSelector)
    }


def aggregated_labels(expr: str) -> set[str] | None:
    """The labels that the outermost aggregation keeps, or None where nothing is aggregated."""
    for node in nodes(expr):
        if isinstance(node, promql_parser.AggregateExpr):
            return set(node.modifier.labels) if node.modifier else set()
    return None


def label_names(expr: str) -> set[str]:
    """Every label that the expression matches, groups, joins or copies by."""
    names = {label for selector in selectors(expr) for label in selector.matchers}
    for node in nodes(expr):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            names |= set(node.modifier.labels)
        if isinstance(node, promql_parser.BinaryExpr) and node.modifier:
            matching = node.modifier.matching
            names |= set(matching.labels) if matching else set()
            names |= set(node.modifier.group_labels or ())
    return names


def with_variables(expr: str, values: Mapping[str, str]) -> str:
    """The expression as Grafana sends it, with its variables replaced."""
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], expr)
