"""A dashboard's file and the answers of a Prometheus, as one HTML page."""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING, Any, Final

from tests.previews.canvas import CELL_PIXELS, GAP_PIXELS, GRID_COLUMNS, PAGE_PIXELS
from tests.previews.drawing import draw

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.previews.canvas import Drawn

BAR_PIXELS: Final = 72
NOTE: Final = "An approximation of Grafana, drawn from the dashboard's file and recorded samples."

_STYLE: Final = f"""
* {{ box-sizing: border-box; margin: 0; }}
body {{ background: #111217; color: #ccccdc; width: {PAGE_PIXELS}px; position: relative;
  font: 13px Inter, 'DejaVu Sans', 'Liberation Sans', sans-serif; }}
header {{ height: {BAR_PIXELS}px; padding: 10px 8px; }}
header h1 {{ font-size: 18px; font-weight: 500; margin-bottom: 8px; }}
header span {{ background: #22252b; border-radius: 2px; padding: 4px 8px; margin-right: 6px; }}
header span b {{ color: #6e9fff; font-weight: 500; margin-right: 6px; }}
header em {{ float: right; color: #8e8e9c; font-size: 11px; }}
section {{ position: absolute; background: #181b1f; border: 1px solid #25282d; border-radius: 2px;
  overflow: hidden; padding: 0 8px; }}
section h2 {{ font-size: 13px; font-weight: 500; height: 30px; line-height: 30px; }}
section.row {{ background: none; border: none; }}
section.row h2 {{ font-size: 15px; }}
.none {{ color: #8e8e9c; text-align: center; padding-top: 16px; }}
.stat {{ display: flex; height: 70%; align-items: center; justify-content: space-around; }}
.stat .cell {{ text-align: center; }} .stat small {{ display: block; font-size: 13px; }}
.stat b {{ font-weight: 500; white-space: nowrap; }}
.legend {{ white-space: nowrap; overflow: hidden; font-size: 12px; }}
.legend span {{ margin-right: 14px; }}
.legend i {{ display: inline-block; width: 14px; height: 4px; margin: 0 5px 3px 0; }}
table {{ border-collapse: collapse; width: 100%; }}
.table td, .table th {{ text-align: left; padding: 5px 8px; border-bottom: 1px solid #25282d;
  white-space: nowrap; overflow: hidden; }}
.table th {{ color: #6e9fff; font-weight: 500; }}
.bars td {{ padding: 4px 6px; white-space: nowrap; }} .bars .wide {{ width: 70%; }}
.bars .bar {{ height: 18px; border-radius: 2px; min-width: 2px; }} .right {{ text-align: right; }}
"""


def height_of(board: Mapping[str, Any]) -> int:
    """How high the page of the board is, in pixels."""
    places = [panel["gridPos"] for panel in board["panels"]]
    lowest = int(max(place["y"] + place["h"] for place in places))
    return BAR_PIXELS + lowest * CELL_PIXELS + GAP_PIXELS


def html_of(board: Mapping[str, Any], chosen: Mapping[str, str], panels: Sequence[Drawn]) -> str:
    """The page of some panels; `chosen` is what its bar shows, by the name of the variable."""
    variables = "".join(
        f"<span><b>{escape(one['label'])}</b>{escape(chosen[one['name']])}</span>"
        for one in board["templating"]["list"]
        if one["name"] in chosen
    )
    sections = "".join(_panel(drawn, chosen) for drawn in panels)
    title = escape(board["title"])
    return (
        f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
        f"<header><em>{NOTE}</em><h1>{title}</h1><p>{variables}</p></header>{sections}"
    )


def _panel(drawn: Drawn, chosen: Mapping[str, str]) -> str:
    panel, place = drawn.panel, drawn.panel["gridPos"]
    column = PAGE_PIXELS / GRID_COLUMNS
    style = (
        f"left:{place['x'] * column:.0f}px;top:{BAR_PIXELS + place['y'] * CELL_PIXELS}px;"
        f"width:{place['w'] * column - GAP_PIXELS:.0f}px;"
        f"height:{place['h'] * CELL_PIXELS - GAP_PIXELS}px"
    )
    title = re.sub(r"\$\{?(\w+)\}?", lambda found: chosen.get(found[1], ""), panel["title"])
    if panel["type"] == "row":
        return f'<section class="row" style="{style}"><h2>{escape(title)}</h2></section>'
    return f'<section style="{style}"><h2>{escape(title)}</h2>{draw(drawn)}</section>'
