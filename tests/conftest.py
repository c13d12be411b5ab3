"""What every test may ask for."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable


def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    """Skips a test by the name of the program it needs and the machine has not."""
    for item in items:
        for marker in item.iter_markers("needs"):
            for program in marker.args:
                if shutil.which(program) is None:
                    reason = f"{program} is not installed: run 'make deps'"
                    item.add_marker(pytest.mark.skip(reason=reason))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fails a run of CI that skipped anything: what is not run there is run nowhere."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = len(reporter.stats.get("skipped", ())) if reporter is not None else 0
    if skipped and os.environ.get("CI") and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print(f"\nCI may skip nothing, and skipped {skipped}")
