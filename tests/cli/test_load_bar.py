"""A load in a table: a word or a bar that claims no more than is done."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.loads import HALF, LAST_TIME, ago, downloading, load, loading_server, stalled_server
from tests.expose.snapshots import GIB, local_server, server
from vllm_agent.cli.load_bar import (
    MAX_SECONDS_LEFT,
    bar_text,
    drawn_forms,
    left_text,
    percent,
    table_cells,
)
from vllm_agent.expose.json_view import server_view
from vllm_agent.lifecycle.load_history import LoadHistory
from vllm_agent.observations import Stage


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(0.0, "0%"), (0.29, "29%"), (0.57, "57%"), (0.9999, "99%"), (1.0, "100%")],
)
def test_all_but_everything_is_not_all(ratio, text) -> None:
    assert percent(ratio) == text


@given(st.floats(-1, 2), st.integers(1, 60))
def test_a_bar_is_never_longer_than_it_is_and_full_only_when_all_is_done(ratio, cells) -> None:
    bar = bar_text(ratio, cells)

    assert len(bar) == cells
    assert bar == "".join(sorted(bar)), "what is done comes first: # sorts before -"
    assert ("-" in bar) == (ratio < 1 - 1e-9 / cells)


@pytest.mark.parametrize(
    ("snapshot", "cells"),
    [
        (loading_server(), ("load_weights", "50%", "~1m28s")),
        (loading_server(of=downloading(1.5, 6)), ("download", "25%", "~3m48s")),
        (loading_server(of=downloading(1.5, None)), ("download", "-", "-")),
        (loading_server(of=load(Stage.COMPILE)), ("compile", "-", "~28s")),
        (loading_server(load_history=LoadHistory()), ("load_weights", "50%", "-")),
        (stalled_server(), ("load_weights", "50%", "stalled")),
        (loading_server(of=load(Stage.NONE, ended=ago(0))), ("-", "-", "-")),
        (local_server(), ("-", "-", "-")),
        (server(), ("-", "-", "-")),
    ],
)
def test_a_row_has_stage_share_and_time_left_a_word_each(snapshot, cells) -> None:
    assert table_cells(server_view(snapshot)) == cells


@pytest.mark.parametrize(
    ("snapshot", "forms"),
    [
        (
            loading_server(),
            ("load_weights #####----- 50% ~1m28s", "load_weights 50% ~1m28s", "load_weights 50%"),
        ),
        (
            stalled_server(),
            (
                "load_weights #####----- 50% stalled",
                "load_weights 50% stalled",
                "load_weights stalled",
            ),
        ),
        (loading_server(of=load(Stage.WARMUP, weights=None)), ("warmup", "warmup", "warmup")),
        (server(), ("-", "-", "-")),
    ],
)
def test_a_cell_has_less_in_it_where_there_is_less_room(snapshot, forms) -> None:
    assert drawn_forms(server_view(snapshot)) == forms


def test_an_estimate_that_is_none_is_not_shown() -> None:
    hardly = replace(HALF, shard=1, done_bytes=1, size_bytes=10**15 * GIB)

    view = server_view(loading_server(of=load(weights=hardly), load_history=LAST_TIME))

    assert view["load"] is not None
    assert (view["load"]["seconds_left"] or 0.0) > MAX_SECONDS_LEFT
    assert left_text(view["load"]) == ""


def test_less_than_a_second_is_no_time_left() -> None:
    view = server_view(loading_server(of=load(Stage.COMPILE, stage_entered=ago(57.5))))

    assert view["load"] is not None
    assert 0.0 < (view["load"]["seconds_left"] or 0.0) < 1.0
    assert left_text(view["load"]) == ""


def test_an_agent_of_an_older_version_tells_of_no_load() -> None:
    view: Any = server_view(loading_server())
    del view["load"]

    assert table_cells(view) == drawn_forms(view) == ("-", "-", "-")
