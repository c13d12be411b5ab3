"""A load as the API tells it: as of its newest look, and with a word from each witness."""

from __future__ import annotations

import json
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest
from hypothesis import given

from tests.expose import snapshots
from tests.expose.snapshots import (
    GIB,
    LOOKED,
    NOW,
    downloading,
    late_load,
    life,
    load,
    loaded,
    loading_life,
    loading_server,
    local_server,
    look,
    server,
)
from vllm_agent.expose.json_text import encode
from vllm_agent.expose.json_view import server_view
from vllm_agent.expose.load_view import LoadView, load_view
from vllm_agent.lifecycle.load_history import LoadHistory
from vllm_agent.lifecycle.states import Phase
from vllm_agent.observations import Download, LogProgress, Shard, Stage, Witness

if TYPE_CHECKING:
    from vllm_agent.lifecycle.load_progress import LoadProgress
    from vllm_agent.observations import LoadLook


def viewed(progress: LoadProgress, phase: Phase = Phase.LOADING) -> LoadView:
    view = load_view(loading_server(life=loading_life(phase, load=progress)))
    assert view is not None
    return view


def told(seen: LoadLook) -> dict[str, str | None]:
    """What each witness gave, by its name."""
    view = viewed(load(look=seen))
    return {witness["witness"]: witness["told"] for witness in view["witnesses"]}


@given(snapshots.servers)
def test_every_load_is_valid_json_with_every_key(subject) -> None:
    view = json.loads(encode(server_view(subject)), parse_constant=pytest.fail)["load"]

    assert view is None or view.keys() == LoadView.__annotations__.keys()


def test_a_load_of_weights() -> None:
    view = viewed(load())

    assert view["stage"] == "load_weights"
    assert view["as_of_timestamp_seconds"] == LOOKED.unix_seconds
    assert view["started_timestamp_seconds"] == 1_750_000_030
    assert view["ended_timestamp_seconds"] is None
    assert view["last_progress_timestamp_seconds"] == 1_750_000_099
    assert (view["stalled"], view["trouble"]) == (False, None)
    assert view["stages"] == [
        {"stage": "init", "seconds": 10, "last_seconds": 12},
        {"stage": "download", "seconds": 30, "last_seconds": None},
        {"stage": "load_weights", "seconds": 30, "last_seconds": 55},
        {"stage": "compile", "seconds": None, "last_seconds": 40},
        {"stage": "warmup", "seconds": None, "last_seconds": 8},
    ]
    assert (view["seconds"], view["last_seconds"]) == (70, 115)
    assert view["seconds_left"] == 30 * 15 / 4 - 30 + 40 + 8
    assert view["weights"] == {
        "shard": 4,
        "shards": 11,
        "bytes": 4 * GIB,
        "size_bytes": 15 * GIB,
        "ratio": 4 / 15,
        "source": "shards",
    }


def test_a_download_that_is_measured_by_the_hub() -> None:
    view = viewed(downloading())

    assert view["stage"] == "download"
    assert view["weights"] is None
    assert view["download"] == {
        "bytes": 3 * GIB,
        "size_bytes": 15 * GIB,
        "size_source": "hub",
        "ratio": 0.2,
    }


def test_progress_that_nobody_saw_has_no_time() -> None:
    assert viewed(late_load())["last_progress_timestamp_seconds"] is None


def test_what_is_unknown_is_null() -> None:
    unseen = look(
        **dict.fromkeys(
            (
                *("download", "shards", "io_bytes", "gpu_bytes", "cpu_seconds"),
                *("compile_changes", "log"),
            )
        )
    )
    blind = load(look=unseen, download=None, weights=None, is_stalled=None, last_busy=None)
    fresh = loading_server(life=loading_life(load=blind, load_history=LoadHistory()))

    view = load_view(fresh)

    assert view is not None
    for key in ("stalled", "download", "weights", "last_seconds", "seconds_left", "trouble"):
        assert dict(view)[key] is None
    gave = {witness["witness"]: witness["told"] for witness in view["witnesses"]}
    assert {name for name, text in gave.items() if text is not None} == {"components"}
    assert {stage["last_seconds"] for stage in view["stages"]} == {None}


def test_every_witness_says_what_it_gave() -> None:
    assert told(look()) == {
        "hf_cache": "15.0 GiB of 15.0 GiB on disk",
        "hub": None,
        "shards": "shard 4 of 11 is mapped, by the slowest of 2 processes",
        "io": "5.0 GiB read and written",
        "gpu_memory": "4.0 GiB held",
        "components": "EngineCore and workers were started",
        "compile_cache": "0 changes since the start",
        "log": "stage load_weights, 3 of 11 shards loaded, 57 different lines",
        "cpu": "82 s of CPU time",
    }
    assert set(told(look())) == set(Witness)


@pytest.mark.parametrize(
    ("changes", "witness", "text"),
    [
        (
            {"download": Download(GIB, 2 * GIB, Witness.HUB, is_under_way=True)},
            *("hf_cache", "1.0 GiB on disk, a file is on its way"),
        ),
        (
            {"download": Download(GIB, 2 * GIB, Witness.HUB, is_under_way=True)},
            *("hub", "all files come to 2.0 GiB"),
        ),
        ({"download": Download(5, None, None, is_under_way=False)}, "hf_cache", "5 B on disk"),
        ({"shards": ()}, "shards", "no file of the checkpoint is mapped"),
        ({"shards": (Shard(7, 1, 1),)}, "shards", "shard 1 of 1 is mapped"),
        ({"has_worker": False}, "components", "EngineCore was started"),
        (
            {"has_worker": False, "has_engine": False},
            *("components", "no EngineCore was started"),
        ),
        ({"log": LogProgress(Stage.COMPILE, 9)}, "log", "stage compile, 9 different lines"),
        ({"log": LogProgress()}, "log", "0 different lines"),
    ],
)
def test_what_a_witness_says(changes, witness, text) -> None:
    assert told(look(**changes))[witness] == text


def test_when_a_witness_last_saw_progress() -> None:
    witnesses = {one["witness"]: one for one in viewed(load())["witnesses"]}

    assert witnesses["shards"]["last_progress_timestamp_seconds"] == 1_750_000_099
    assert witnesses["cpu"]["last_progress_timestamp_seconds"] == LOOKED.unix_seconds
    assert witnesses["io"]["last_progress_timestamp_seconds"] is None


def test_a_load_that_came_to_serve_is_the_last_itself() -> None:
    started = loading_life().launch
    assert started is not None
    served = loading_life(
        Phase.READY, load=loaded(ended=NOW), launch=replace(started, has_served=True)
    )

    view = load_view(loading_server(life=served))

    assert view is not None
    assert (view["stage"], view["seconds"], view["seconds_left"]) == ("none", 70.5, None)
    assert view["ended_timestamp_seconds"] == view["as_of_timestamp_seconds"] == NOW.unix_seconds
    assert view["last_seconds"] is None
    assert {stage["last_seconds"] for stage in view["stages"]} == {None}
    assert [stage["seconds"] for stage in view["stages"]] == [12, 30, 55, 40, 8]


def test_a_load_that_failed_is_beside_the_last_that_served() -> None:
    view = viewed(loaded(), Phase.CRASHED)

    assert view["last_seconds"] == 115
    assert view["stages"][0]["last_seconds"] == 12


def test_what_its_log_says_of_a_stalled_load() -> None:
    stalled = load(is_stalled=True, look=look(trouble="NCCL timeout"))

    view = viewed(stalled, Phase.STALLED)

    assert (view["stalled"], view["trouble"]) == (True, "NCCL timeout")


@pytest.mark.parametrize(
    "subject",
    [
        server(),
        local_server(),
        local_server(life=life(load=load())),
        loading_server(life=loading_life(load=load(process=snapshots.sighting().process))),
    ],
    ids=["external", "no load seen", "another launch", "this launch"],
)
def test_a_load_is_told_of_the_newest_launch_only(subject) -> None:
    is_of_newest = subject.life.launch.process is not None
    assert (load_view(subject) is not None) == is_of_newest


def test_a_view_changes_with_its_snapshot_only() -> None:
    shown = loading_server()
    again = replace(shown, life=replace(shown.life, load=load(look=look(at=LOOKED))))

    assert encode(server_view(shown)) == encode(server_view(again))


def test_stages_that_nobody_knows_cost_nothing() -> None:
    odd = load(stage_seconds=MappingProxyType({}))

    assert viewed(odd)["stages"][0]["seconds"] is None
