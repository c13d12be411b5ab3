"""Rewrites the files that are rendered from code, or with --check tells which ones are stale."""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from alerts.output import generated_files as alert_files
from dashboards.output import generated_files as dashboard_files
from tests.generated import lifecycle_page
from tests.pipeline import quiet_receivers
from vllm_agent.config import markdown as configuration_page
from vllm_agent.expose import metrics_page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

ROOT: Final = Path(__file__).parents[2]

FILES: Final[tuple[tuple[str, Callable[[], str]], ...]] = (
    ("docs/lifecycle.md", lifecycle_page.render),
    ("docs/metrics.md", metrics_page.render),
    ("docs/configuration.md", configuration_page.render),
    ("deploy/alertmanager/alertmanager.yml", quiet_receivers.render),
    *(
        (str(path.relative_to(ROOT)), lambda text=text: text)
        for path, text in (alert_files() | dashboard_files()).items()
    ),
)
"""Path below the root, and what renders it. A new generated file is one line here."""


def stale(files: Iterable[tuple[str, Callable[[], str]]], root: Path) -> dict[str, tuple[str, str]]:
    """What is in each file that is not as rendered, and what should be; missing ones are empty."""
    found = {}
    for name, render in files:
        path = root / name
        there = path.read_text(encoding="utf-8") if path.exists() else ""
        wanted = render()
        if there != wanted:
            found[name] = (there, wanted)
    return found


def diff(name: str, there: str, wanted: str) -> str:
    lines = difflib.unified_diff(
        there.splitlines(keepends=True),
        wanted.splitlines(keepends=True),
        name,
        f"{name} (rendered)",
    )
    return "".join(lines)


def run(
    arguments: Sequence[str], files: Iterable[tuple[str, Callable[[], str]]], root: Path
) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.generated", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if stale")
    is_check = parser.parse_args(arguments).check
    changed = stale(files, root)
    for name, (there, wanted) in changed.items():
        if is_check:
            print(diff(name, there, wanted))
        else:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(wanted, encoding="utf-8")
            print(f"wrote {name}")
    if changed and is_check:
        print(f"stale: {', '.join(changed)}; run 'make docs'", file=sys.stderr)
    return 1 if changed and is_check else 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], FILES, ROOT))
