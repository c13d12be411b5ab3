"""Writes `docs/dashboards/<uid>.png` from the story of tests.pipeline; needs Debian's chromium."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dashboards.links import FLEET_UID, GPU_UID, SERVER_UID
from tests.pipeline import story_blocks
from tests.pipeline.boards import BOARDS
from tests.pipeline.grafana import Viewer, legend_text
from tests.pipeline.processes import ROOT
from tests.pipeline.views import WINDOW
from tests.previews.canvas import PAGE_PIXELS, Drawn, Series
from tests.previews.page import height_of, html_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PICTURES: Final = ROOT / "docs" / "dashboards"
SCREENSHOT_SECONDS: Final = 120

CHOSEN: Final[Mapping[str, Mapping[str, str]]] = {
    FLEET_UID: {},
    SERVER_UID: {"server": "llama"},
    GPU_UID: {"instance": "gpu1:10060"},
}
"""What a reader has chosen on each dashboard; everything else is on All."""


def main() -> int:
    """Draw every dashboard; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.previews", description=__doc__)
    parser.add_argument("--html", type=Path, metavar="FOLDER", help="also keep the pages there")
    options = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        print("chromium is not installed: apt-get install chromium", file=sys.stderr)
        return 1
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with story_blocks.Storage(folder) as prometheus:
            for uid, board in BOARDS.items():
                viewer = Viewer(board, prometheus, WINDOW, CHOSEN[uid])
                page, picture = folder / f"{uid}.html", PICTURES / f"{uid}.png"
                page.write_text(_page(viewer), encoding="utf-8")
                _screenshot(chromium, page, picture, height_of(board.json), folder)
                print(f"wrote {picture.relative_to(ROOT)}")
                if options.html:
                    shutil.copy(page, options.html)
    return 0


def _page(viewer: Viewer) -> str:
    chosen = dict.fromkeys(viewer.options, "All") | dict(viewer.chosen)
    panels = [_asked(viewer, panel) for panel in viewer.board.json["panels"]]
    return html_of(viewer.board.json, chosen, panels)


def _asked(viewer: Viewer, panel: Mapping[str, Any]) -> Drawn:
    if panel["type"] == "table":
        return Drawn(panel, (), WINDOW.start, WINDOW.end, viewer.rows(panel))
    series = [
        Series(target["refId"], _name(target["legendFormat"], one["metric"]), one["metric"], points)
        for target in panel.get("targets", ())
        for one in viewer.ask(target, panel)
        if (points := [(float(at), float(value)) for at, value in one["values"]])
    ]
    return Drawn(panel, series, WINDOW.start, WINDOW.end)


def _name(legend: str, labels: Mapping[str, str]) -> str:
    if legend == "__auto":
        return ", ".join(f"{name}={value}" for name, value in labels.items() if name != "__name__")
    return legend_text(legend, labels)


def _screenshot(chromium: str, page: Path, picture: Path, height: int, folder: Path) -> None:
    command: Sequence[str] = (
        chromium,
        "--headless=new",
        # Chromium refuses to run as root with its sandbox; the page is our own and has no script.
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={folder / 'chromium'}",
        f"--window-size={PAGE_PIXELS},{height}",
        f"--screenshot={picture}",
        page.as_uri(),
    )
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=SCREENSHOT_SECONDS
    )
    if done.returncode != 0 or not picture.is_file():
        raise RuntimeError(f"chromium drew nothing: {done.stderr[-2000:]}")


if __name__ == "__main__":
    sys.exit(main())
