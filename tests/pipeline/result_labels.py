"""Which labels the result of a PromQL expression has for sure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import promql_parser

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

_SET_OPERATORS = frozenset({"and", "unless"})


def result_labels(expr: str, metric_labels: Mapping[str, AbstractSet[str]]) -> frozenset[str]:
    """The labels that every series of the result has.

    `metric_labels` are the labels of each metric. Vectors are matched one to one, or with
    `group_left`.

    Raises:
        TypeError: the result is a scalar.
    """
    found = _labels(promql_parser.parse(expr), metric_labels)
    if found is None:
        raise TypeError(f"a scalar has no labels: {expr}")
    return found


def _labels(node: Any, known: Mapping[str, AbstractSet[str]]) -> frozenset[str] | None:
    found: frozenset[str] | None = None
    match node:
        case promql_parser.VectorSelector():
            found = frozenset(known[node.name or ""])
        case promql_parser.MatrixSelector():
            found = _labels(node.vector_selector, known)
        case promql_parser.ParenExpr() | promql_parser.UnaryExpr() | promql_parser.SubqueryExpr():
            found = _labels(node.expr, known)
        case promql_parser.AggregateExpr():
            found = _aggregated(node, known)
        case promql_parser.Call():
            found = _called(node, known)
        case promql_parser.BinaryExpr():
            found = _combined(node, known)
    return found


def _aggregated(node: Any, known: Mapping[str, AbstractSet[str]]) -> frozenset[str]:
    inner = _labels(node.expr, known) or frozenset()
    if node.modifier is None:
        return frozenset()
    named = frozenset(node.modifier.labels)
    is_by = node.modifier.type == promql_parser.AggModifierType.By
    return inner & named if is_by else inner - named


def _called(node: Any, known: Mapping[str, AbstractSet[str]]) -> frozenset[str] | None:
    if node.func.name == "absent":
        [selector] = node.args
        return frozenset(
            one.name for one in selector.matchers.matchers if one.op == promql_parser.MatchOp.Equal
        )
    vectors = [found for one in node.args if (found := _labels(one, known)) is not None]
    return vectors[0] if vectors else None


def _combined(node: Any, known: Mapping[str, AbstractSet[str]]) -> frozenset[str] | None:
    left, right = _labels(node.lhs, known), _labels(node.rhs, known)
    operator = str(node.op).split()[0]
    if left is None or right is None:
        return left if right is None else right
    if operator in _SET_OPERATORS:
        return left
    if operator == "or":
        return left & right
    matching = node.modifier.matching if node.modifier else None
    if matching is None:
        return left
    named = frozenset(matching.labels)
    if node.modifier.card == promql_parser.VectorMatchCardinality.ManyToOne:
        return left | frozenset(node.modifier.group_labels)
    is_on = matching.type == promql_parser.LabelModifierType.Include
    return left & named if is_on else left - named
