"""What the end-to-end tests share: long runs, which are asked for by `-m soak`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Declares the marker of the long runs."""
    config.addinivalue_line("markers", "soak: takes minutes; run by pytest tests/e2e -m soak")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the long runs out of a run that does not ask for them."""
    if "soak" in config.option.markexpr:
        return
    long_runs = [item for item in items if item.get_closest_marker("soak") is not None]
    if long_runs:
        config.hook.pytest_deselected(items=long_runs)
        items[:] = [item for item in items if item not in long_runs]
