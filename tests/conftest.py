"""What every test may ask for."""

from __future__ import annotations

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
