"""What the witness sees while the real huggingface_hub downloads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.hub.downloader import Downloader, looked, seen
from tests.hub.model import INDEX, REPO, SHARD_BYTES, SHARDS, sharded, single
from tests.hub.standin import GATED, PIECE, Hub, Refusal
from vllm_agent.host.hf_hub.sizes import HubSizes
from vllm_agent.observations import Witness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vllm_agent.observations import Download

SMALL_BYTES = len(sharded()["config.json"] + sharded()["tokenizer.json"] + sharded()[INDEX])
ALL_BYTES = 3 * SHARD_BYTES + SMALL_BYTES
PATTERNS = ("*.safetensors", "*.json")


def at_least(done_bytes: int) -> Callable[[Download], bool]:
    return lambda look: look.done_bytes >= done_bytes


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(REPO, sharded()) as running:
        yield running


@pytest.fixture
def server(hub: Hub, tmp_path: Path) -> Iterator[Downloader]:
    with Downloader(hub, tmp_path, *PATTERNS) as running:
        yield running


def test_download_is_seen_to_grow_to_stall_and_to_end(hub, server):
    witness = server.witness()
    assert witness.look() is None  # nothing of it is there yet
    for name in SHARDS:
        hub.let(name, 0)
    server.begin()
    # A small file is in the total once it has come.
    first = seen(witness, lambda look: look.size_bytes == ALL_BYTES)
    assert first.done_bytes == SMALL_BYTES
    assert first.size_source is Witness.HF_CACHE
    for done_shards, name in enumerate(SHARDS):
        before = done_shards * SHARD_BYTES + SMALL_BYTES
        for share in (4, 8, 12):
            hub.let(name, share * PIECE)
            look = seen(witness, at_least(before + share * PIECE))
            assert look.done_bytes == before + share * PIECE
            assert look.is_under_way
            assert look.size_bytes == ALL_BYTES
        if name != SHARDS[-1]:
            hub.let(name, SHARD_BYTES)
    almost = looked(witness)
    assert almost.done_bytes / ALL_BYTES == pytest.approx(0.92, abs=0.01)
    assert [witness.look() for _ in range(3)] == [almost] * 3  # it stalls
    hub.let(SHARDS[-1], SHARD_BYTES)
    assert server.outcome() == "done"
    end = looked(witness)
    assert (end.done_bytes, end.size_bytes, end.is_under_way) == (ALL_BYTES, ALL_BYTES, False)


def test_retry_that_begins_anew_is_shown_to_shrink(hub, server):
    witness = server.witness()
    hub.let(SHARDS[0], 8 * PIECE)
    server.begin()
    far = seen(witness, lambda look: look.done_bytes == SMALL_BYTES + 8 * PIECE)
    hub.refusal = Refusal(503)
    hub.cut_at[SHARDS[0]] = 8 * PIECE
    hub.let(SHARDS[0], 9 * PIECE)
    assert server.outcome() == "HfHubHTTPError"
    given_up = looked(witness)
    assert given_up.done_bytes == SMALL_BYTES
    assert given_up.is_under_way  # more must come, or the server ends
    hub.refusal = None
    hub.let(SHARDS[0], 2 * PIECE)
    server.begin()
    again = seen(witness, lambda look: look.done_bytes > SMALL_BYTES)
    assert again.done_bytes <= SMALL_BYTES + 2 * PIECE < far.done_bytes
    assert again.size_bytes == far.size_bytes == ALL_BYTES
    hub.let(SHARDS[0], SHARD_BYTES)
    assert server.outcome() == "done"
    assert looked(witness).done_bytes == ALL_BYTES


def test_connection_that_is_lost_is_resumed_and_never_shrinks(hub, server):
    witness = server.witness()
    hub.cut_at[SHARDS[1]] = 3 * PIECE
    hub.let(SHARDS[1], 6 * PIECE)
    server.begin()
    look = seen(witness, lambda look: look.done_bytes >= SHARD_BYTES + SMALL_BYTES + 6 * PIECE)
    assert look.done_bytes == SHARD_BYTES + SMALL_BYTES + 6 * PIECE
    assert SHARDS[1] not in hub.cut_at


def test_files_that_came_before_are_there_and_not_under_way(hub, server, tmp_path):
    server.begin()
    assert server.outcome() == "done"
    with Downloader(hub, tmp_path, *PATTERNS) as later:
        look = looked(later.witness())
        assert (look.done_bytes, look.size_bytes) == (ALL_BYTES, ALL_BYTES)
        assert not look.is_under_way


def test_what_an_ended_launch_left_behind_does_not_count(hub, tmp_path):
    hub.let(SHARDS[0], 8 * PIECE)
    with Downloader(hub, tmp_path, *PATTERNS) as first:
        first.begin()
        seen(first.witness(), lambda look: look.done_bytes == SMALL_BYTES + 8 * PIECE)
    assert [*tmp_path.rglob("*.incomplete")]
    with Downloader(hub, tmp_path, *PATTERNS) as second:
        witness = second.witness()
        look = looked(witness)
        assert (look.done_bytes, look.is_under_way) == (SMALL_BYTES, False)
        hub.let(SHARDS[0], 3 * PIECE)
        second.begin()
        look = seen(witness, lambda look: look.is_under_way and look.done_bytes > SMALL_BYTES)
        assert look.done_bytes <= SMALL_BYTES + 3 * PIECE


def test_gated_model_never_begins(hub, server):
    hub.refusal = GATED
    server.begin()
    assert server.outcome() == "GatedRepoError"
    assert server.witness().look() is None


def test_total_is_that_of_the_index_where_no_list_of_files_was_kept(hub, server, tmp_path):
    witness = server.witness()
    hub.let(SHARDS[0], 8 * PIECE)
    server.begin()
    seen(witness, lambda look: look.done_bytes == SMALL_BYTES + 8 * PIECE)
    (listing,) = tmp_path.rglob("trees/*.json")  # as huggingface_hub 1 leaves none
    listing.unlink()
    look = looked(server.witness())
    assert look.size_source is Witness.HF_CACHE
    assert look.size_bytes == ALL_BYTES - 3 * 1000  # tensors, without the headers of their files


async def test_total_of_a_single_file_comes_from_the_hub_where_it_may_be_asked(tmp_path):
    with Hub(REPO, single()) as hub, Downloader(hub, tmp_path, "*.safetensors", "*.json") as server:
        sizes = HubSizes({"HF_ENDPOINT": hub.url})
        witness = server.witness(sizes)
        hub.let("model.safetensors", 4 * PIECE)
        server.begin()
        seen(witness, lambda look: look.done_bytes == 2 + 4 * PIECE)
        (listing,) = tmp_path.rglob("trees/*.json")
        listing.unlink()
        witness = server.witness(sizes)
        assert looked(witness).size_bytes is None
        assert witness.question == (REPO, "main")
        assert await sizes.ask(*witness.question) == SHARD_BYTES
        look = looked(witness)
        assert (look.size_bytes, look.size_source) == (SHARD_BYTES + 2, Witness.HUB)
        hub.let("model.safetensors", SHARD_BYTES)
        assert server.outcome() == "done"
        assert looked(witness).done_bytes == SHARD_BYTES + 2
