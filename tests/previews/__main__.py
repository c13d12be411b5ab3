"""Writes `docs/dashboards/<uid>.png` from the recorded scenario; needs Debian's chromium."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.pipeline import scenario
from tests.pipeline.processes import ROOT, Prometheus
from tests.previews.drawing import PAGE_PIXELS, Series
from tests.previews.page import height_of, html_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BOARDS: Final = ROOT / "dashboards" / "grafana"
PICTURES: Final = ROOT / "docs" / "dashboards"
STEP_SECONDS: Final = 60
RATE_INTERVAL: Final = "4m"
"""What Grafana makes of a scrape interval of one minute."""
SCREENSHOT_SECONDS: Final = 120

CHOSEN: Final[Mapping[str, Mapping[str, str]]] = {
    "vllm-agent-server": {"server": "llama", "instance": "gpu1:10060"},
    "vllm-agent-gpu": {"instance": "gpu1:10060"},
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
        blocks = scenario.write_blocks(folder)
        with Prometheus(folder / "run", storage=blocks) as prometheus:
            for path in sorted(BOARDS.glob("*.json")):
                board = json.loads(path.read_text(encoding="utf-8"))
                page = folder / f"{board['uid']}.html"
                page.write_text(_page(prometheus, board), encoding="utf-8")
                picture = PICTURES / f"{board['uid']}.png"
                _screenshot(chromium, page, picture, height_of(board), folder)
                print(f"wrote {picture.relative_to(ROOT)}")
                if options.html:
                    shutil.copy(page, options.html)
    return 0


def _page(prometheus: Prometheus, board: Mapping[str, Any]) -> str:
    names = [one["name"] for one in board["templating"]["list"] if one["type"] == "query"]
    chosen = {**dict.fromkeys(names, "All"), **CHOSEN.get(board["uid"], {})}
    values = {name: ".*" if value == "All" else value for name, value in chosen.items()}
    values |= {"__rate_interval": RATE_INTERVAL, "__range": "2h", "__interval": "1m"}
    answers = {
        panel["id"]: [
            series
            for target in panel.get("targets", ())
            for series in _answer(prometheus, panel, target, values)
        ]
        for panel in board["panels"]
    }
    return html_of(board, chosen, answers, scenario.START, scenario.END)


def _answer(
    prometheus: Prometheus,
    panel: Mapping[str, Any],
    target: Mapping[str, Any],
    values: Mapping[str, str],
) -> list[Series]:
    expr = _with_values(target["expr"], values)
    if target["instant"]:
        found = prometheus.query(expr, scenario.END)
        points = [[one["value"]] for one in found]
    else:
        step = 300 if panel.get("interval") == "5m" else STEP_SECONDS
        found = prometheus.query_range(expr, scenario.START, scenario.END, step)
        points = [one["values"] for one in found]
    return [
        Series(
            target["refId"],
            _name(target["legendFormat"], one["metric"]),
            one["metric"],
            [(float(at), float(value)) for at, value in own],
        )
        for one, own in zip(found, points, strict=True)
    ]


def _with_values(expr: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)(?::\w+)?\}?", lambda found: values[found[1]], expr)


def _name(legend: str, labels: Mapping[str, str]) -> str:
    if legend == "__auto":
        return ", ".join(f"{name}={value}" for name, value in labels.items() if name != "__name__")
    return re.sub(r"{{\s*(\w+)\s*}}", lambda found: labels.get(found[1], ""), legend)


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
