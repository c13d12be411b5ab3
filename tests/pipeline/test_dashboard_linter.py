"""The rules of Grafana's dashboard-linter, and that each of them would find what it is for."""

from __future__ import annotations

import copy
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest

from dashboards import links
from tests.pipeline.boards import BOARDS
from tests.pipeline.linter import EXCLUDED, RULES

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS.keys())
@pytest.mark.parametrize("rule", RULES)
def test_rule(rule, board):
    assert [
        found
        for found in RULES[rule](board.json)
        if not any(part in found for part in EXCLUDED.get(rule, {}))
    ] == []


@pytest.mark.parametrize(
    ("rule", "part"), [(rule, part) for rule, parts in EXCLUDED.items() for part in parts]
)
def test_no_exception_is_left_over(rule, part):
    assert any(part in found for board in BOARDS.values() for found in RULES[rule](board.json))


def _variable(board: Any, name: str) -> Any:
    [found] = [one for one in board["templating"]["list"] if one["name"] == name]
    return found


def _graph(board: Any) -> Any:
    return next(panel for panel in board["panels"] if panel["type"] == "timeseries")


def _asks(expr: str) -> Callable[[Any], Any]:
    return lambda board: _graph(board)["targets"][0].update(expr=expr)


_AGENTS = 'job=~"$job", instance=~"$instance"'

FAULTS = MappingProxyType[str, "tuple[Callable[[Any], Any], ...]"](
    {
        "template-datasource-rule": (
            lambda board: board["templating"]["list"].pop(0),
            lambda board: _variable(board, "datasource").update(name="prometheus"),
            lambda board: _variable(board, "datasource").update(label="Prometheus"),
        ),
        "template-job-rule": (
            lambda board: _variable(board, "job").update(name="jobs"),
            lambda board: _variable(board, "job").update(allValue=".*"),
            lambda board: _variable(board, "job")["datasource"].update(uid="prometheus"),
        ),
        "template-instance-rule": (
            lambda board: _variable(board, "instance").update(multi=False),
            lambda board: _variable(board, "instance").update(label="Host"),
        ),
        "template-label-promql-rule": (
            lambda board: _variable(board, "server")["query"].update(query="label_values(up{, x)"),
            lambda board: _variable(board, "server")["query"].update(query="labels(up, x)"),
        ),
        "template-on-time-change-reload-rule": (
            lambda board: _variable(board, "server").update(refresh=1),
        ),
        "panel-datasource-rule": (
            lambda board: _graph(board)["datasource"].update(uid="prometheus"),
            lambda board: _graph(board)["targets"][0]["datasource"].update(uid="prometheus"),
        ),
        "panel-title-description-rule": (
            lambda board: _graph(board).update(title=""),
            lambda board: _graph(board).pop("description"),
        ),
        "panel-units-rule": (
            lambda board: _graph(board)["fieldConfig"]["defaults"].pop("unit"),
            lambda board: _graph(board)["fieldConfig"]["defaults"].update(unit="suffix:tok"),
        ),
        "panel-no-targets-rule": (lambda board: _graph(board)["targets"].clear(),),
        "target-promql-rule": (_asks("sum(up"), _asks("")),
        "target-rate-interval-rule": (
            _asks(f"rate(vllm_agent_server_launches_total{{{_AGENTS}}}[5m])"),
        ),
        "target-job-rule": (
            _asks('up{job="$job", instance=~"$instance"}'),
            _asks('up{instance=~"$instance"}'),
        ),
        "target-instance-rule": (_asks('up{job=~"$job"}'),),
        "target-counter-agg-rule": (
            _asks(f"vllm_agent_server_launches_total{{{_AGENTS}}}"),
            _asks(f"max_over_time(vllm_agent_server_launches_total{{{_AGENTS}}}[$__range])"),
        ),
        "uneditable-dashboard": (lambda board: board.update(editable=True),),
    }
)


def test_every_rule_is_tried():
    assert FAULTS.keys() == RULES.keys()


@pytest.mark.parametrize(
    ("rule", "fault"), [(rule, fault) for rule, faults in FAULTS.items() for fault in faults]
)
def test_rule_finds_its_fault(rule, fault):
    board = copy.deepcopy(BOARDS[links.SERVER_UID].json)
    fault(board)
    assert list(RULES[rule](board))
