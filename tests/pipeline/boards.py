"""The committed dashboards, read as Grafana reads them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from dashboards.board import path_of
from dashboards.links import FLEET_UID, GPU_UID, SERVER_UID
from tests.pipeline.promql import with_variables

if TYPE_CHECKING:
    from collections.abc import Mapping

Json: TypeAlias = dict[str, Any]

ALL_SELECTED: Final = MappingProxyType(
    {
        "job": ".+",
        "instance": ".+",
        "server": ".+",
        "model_name": ".*",
        "gpu": ".+",
        "__range": "2h",
        "__range_s": "7200",
        "__interval_ms": "60000",
        "__rate_interval": "4m",
    }
)
"""What a viewer sees who has chosen nothing, with a scrape interval of one minute."""


@dataclass(frozen=True)
class Board:
    """One dashboard's file."""

    json: Json

    @property
    def uid(self) -> str:
        uid: str = self.json["uid"]
        return uid

    @cached_property
    def panels(self) -> dict[int, Json]:
        """The panels that show something, by id: all but the rows' headings."""
        return {panel["id"]: panel for panel in self.json["panels"] if panel["type"] != "row"}

    @cached_property
    def rows(self) -> list[Json]:
        """The headings between the panels."""
        return [panel for panel in self.json["panels"] if panel["type"] == "row"]

    @cached_property
    def variables(self) -> dict[str, Json]:
        return {variable["name"]: variable for variable in self.json["templating"]["list"]}

    @cached_property
    def targets(self) -> list[Target]:
        """Every query of every panel."""
        return [
            Target(self, panel, target)
            for panel in self.panels.values()
            for target in panel["targets"]
        ]

    @cached_property
    def annotations(self) -> list[Annotation]:
        return [Annotation(self, one) for one in self.json["annotations"]["list"]]


@dataclass(frozen=True, slots=True)
class Target:
    """One query of one panel."""

    board: Board
    panel: Mapping[str, Any]
    target: Mapping[str, Any]

    @property
    def title(self) -> str:
        return f"{self.board.uid} {self.panel['id']} {self.panel['title']} {self.target['refId']}"

    @property
    def expr(self) -> str:
        """The query as it is in the file."""
        expr: str = self.target["expr"]
        return expr

    @property
    def sent(self) -> str:
        """The query as Grafana sends it, with everything selected."""
        return with_variables(self.expr, ALL_SELECTED)


@dataclass(frozen=True, slots=True)
class Annotation:
    """One query whose series are drawn as marks over all graphs of a dashboard."""

    board: Board
    json: Mapping[str, Any]

    @property
    def title(self) -> str:
        return f"{self.board.uid} {self.json['name']}"

    @property
    def expr(self) -> str:
        """The query as it is in the file."""
        expr: str = self.json["expr"]
        return expr

    @property
    def sent(self) -> str:
        """The query as Grafana sends it, with everything selected."""
        return with_variables(self.expr, ALL_SELECTED)


def _read(uid: str) -> Board:
    return Board(json.loads(path_of(uid).read_text(encoding="utf-8")))


BOARDS: Final = MappingProxyType({uid: _read(uid) for uid in (FLEET_UID, SERVER_UID, GPU_UID)})
"""All dashboards, by uid."""

TARGETS: Final = tuple(target for board in BOARDS.values() for target in board.targets)
"""Every query of every panel of every dashboard."""
