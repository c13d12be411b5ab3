"""The dashboards over the story, for all tests that look at them."""

from __future__ import annotations

from functools import cache

import pytest

from tests.pipeline import story_blocks
from tests.pipeline.boards import BOARDS
from tests.pipeline.grafana import Viewer
from tests.pipeline.views import CHOSEN, EVERYTHING, WINDOW


@pytest.fixture(scope="package")
def stored(tmp_path_factory):
    """A Prometheus on the story."""
    with story_blocks.Storage(tmp_path_factory.mktemp("story")) as prometheus:
        yield prometheus


@pytest.fixture(scope="package")
def looking(stored):
    """`looking(uid, view)` is the viewer of a dashboard who has chosen what the view says."""

    @cache
    def looking(uid: str, view: str = EVERYTHING) -> Viewer:
        board = BOARDS[uid]
        chosen = {name: value for name, value in CHOSEN[view].items() if name in board.variables}
        return Viewer(board, stored, WINDOW, chosen)

    return looking
