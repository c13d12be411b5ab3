"""What the agent's log says of a load that goes on."""

from __future__ import annotations

from dataclasses import replace

from tests.lifecycle.test_load_progress import GIB, Loading, fetching, loaded_before, shards
from vllm_agent.lifecycle.load_history import LoadHistory
from vllm_agent.lifecycle.load_summary import summary


def told(loading: Loading, history: LoadHistory | None = None) -> dict[str, object]:
    return dict(summary(loading.load, history or LoadHistory(), loading.moment))


def test_what_is_not_known_is_not_said():
    assert told(Loading.begun()) == {"stage": "init", "seconds": 5}


def test_a_download_is_told_in_bytes():
    loading = Loading.begun().see(download=fetching(GIB))
    assert told(loading) == {"stage": "download", "seconds": 6, "bytes": GIB}
    loading.see(download=fetching(GIB, 4 * GIB))
    assert told(loading)["size_bytes"] == 4 * GIB
    loading.see(download=replace(fetching(4 * GIB, 4 * GIB), is_under_way=False))
    assert told(loading) == {"stage": "init", "seconds": 8}


def test_weights_are_told_by_file_and_bytes_and_the_time_left_if_known():
    loading = Loading.begun().see(5.0, shards=shards(1, 4)).see(3.0, shards=shards(2, 4))
    assert told(loading, loaded_before()) == {
        "stage": "load_weights",
        "seconds": 13,
        "shard": "2/4",
        "bytes": GIB,
        "size_bytes": 4 * GIB,
        "seconds_left": 19,
    }


def test_one_that_has_stalled_says_for_how_long_it_has_been_quiet() -> None:
    loading = Loading.begun(has_engine=True).see(300.0, has_engine=True)
    assert told(loading, loaded_before()) == {"stage": "init", "seconds": 305, "quiet_seconds": 300}
