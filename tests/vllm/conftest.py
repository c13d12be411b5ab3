"""What the tests with a real vLLM share: their marker, and the table of the endings."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS = pytest.StashKey[list[dict[str, Any]]]()


def pytest_configure(config: pytest.Config) -> None:
    """Declares the marker of launches that only the whole run makes."""
    config.addinivalue_line("markers", "long: one of the launches that a short run leaves out")
    config.stash[ROWS] = []


@pytest.fixture(scope="session")
def write_row(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[dict[str, Any]], None]:
    """Appends one measured ending to a JSON-lines file, and to the table of the summary."""
    named = os.environ.get("VLLM_AGENT_ENDINGS_FILE")
    path = Path(named) if named else tmp_path_factory.mktemp("endings") / "endings.jsonl"

    def write(row: dict[str, Any]) -> None:
        request.config.stash[ROWS].append(row)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    return write


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the endings as a Markdown table."""
    rows = terminalreporter.config.stash[ROWS]
    if not rows:
        return
    columns = list(rows[0])
    terminalreporter.section("endings")
    terminalreporter.line("| " + " | ".join(columns) + " |")
    terminalreporter.line("|" + "---|" * len(columns))
    for row in rows:
        terminalreporter.line("| " + " | ".join(str(row[column]) for column in columns) + " |")
