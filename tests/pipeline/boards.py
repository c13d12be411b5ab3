"""The committed dashboards, read as Grafana reads them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dashboards.fleet import PATH
from tests.pipeline.promql import with_variables

if TYPE_CHECKING:
    from collections.abc import Mapping

BOARD: Final[dict[str, Any]] = json.loads(PATH.read_text(encoding="utf-8"))
PANELS: Final[dict[int, dict[str, Any]]] = {panel["id"]: panel for panel in BOARD["panels"]}
VARIABLES: Final[dict[str, dict[str, Any]]] = {
    variable["name"]: variable for variable in BOARD["templating"]["list"]
}
ALL_SELECTED: Final = {
    "job": ".+",
    "instance": ".+",
    "server": ".+",
    "model_name": ".*",
    "__range": "2h",
    "__rate_interval": "4m",
}
"""What a viewer sees who has chosen nothing, with a scrape interval of one minute."""


@dataclass(frozen=True, slots=True)
class Target:
    """One query of one panel."""

    panel: Mapping[str, Any]
    target: Mapping[str, Any]

    @property
    def title(self) -> str:
        return f"{self.panel['id']} {self.panel['title']} {self.target['refId']}"

    @property
    def expr(self) -> str:
        """The query as it is in the file."""
        expr: str = self.target["expr"]
        return expr

    @property
    def sent(self) -> str:
        """The query as Grafana sends it, with everything selected."""
        return with_variables(self.expr, ALL_SELECTED)


TARGETS: Final = [Target(panel, target) for panel in PANELS.values() for target in panel["targets"]]
