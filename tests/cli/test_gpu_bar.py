"""The bar of a device: whoever holds anything is in it, and it is never longer than it is."""

from __future__ import annotations

import pytest
from hypothesis import given

from tests.expose.snapshots import GIB, bare_device, device, devices, gpu, orphaned_device
from vllm_agent.cli.gpu_bar import BAR_CELLS, SIGNS, Holder, bar, bar_text
from vllm_agent.expose.gpu_view import gpu_view


def test_each_holder_has_its_part() -> None:
    shared = device(
        gpu=gpu(memory_used_bytes=60 * GIB),
        servers={"a": 20 * GIB, "b": 20 * GIB},
        orphan_bytes=12 * GIB,
        other_bytes=8 * GIB,
    )

    assert bar_text(gpu_view(shared)) == "##########!!!..-----"


def test_little_is_not_nothing_and_all_but_nothing_is_not_all() -> None:
    little = device(
        gpu=gpu(memory_used_bytes=80 * GIB - 1),
        servers={"llama": 79 * GIB},
        orphan_bytes=300 * 2**20,
        other_bytes=724 * 2**20 - 1,
    )

    assert bar_text(gpu_view(little)) == "##################!."


def test_what_is_used_by_nobody_knows_whom_is_no_free_memory() -> None:
    untold = device(servers={}, orphans=None, orphan_bytes=None, other_bytes=None)
    of_one = orphaned_device(other_bytes=None)

    assert bar_text(gpu_view(untold)) == "??????????????????--"
    assert bar_text(gpu_view(of_one)) == "###############!!!?-"


@pytest.mark.parametrize("changes", [{"memory_total_bytes": None}, {"memory_used_bytes": None}])
def test_no_bar_of_what_is_not_told(changes) -> None:
    assert bar_text(gpu_view(device(gpu=gpu(**changes)))) == "-"
    assert bar_text(gpu_view(bare_device())) == "-"


def test_processes_that_claim_more_than_there_is_fill_the_bar_and_no_more() -> None:
    whole = gpu(memory_total_bytes=1, memory_used_bytes=0)
    claimed = device(gpu=whole, servers={"llama": 10**12 + 1}, other_bytes=-(10**12))

    assert bar_text(gpu_view(claimed)) == "#" * BAR_CELLS


def test_signs_are_told_apart_without_colour() -> None:
    assert len(set(SIGNS.values())) == len(SIGNS) == len(Holder)
    assert "".join(SIGNS.values()).isascii()


@given(devices)
def test_any_bar_is_full_and_in_order(snapshot) -> None:
    view = gpu_view(snapshot)

    cells = bar(view)

    assert len(cells) in {0, BAR_CELLS}
    assert list(cells) == sorted(cells, key=list(Holder).index)
    if cells:
        assert (Holder.SERVERS in cells) == any(s["used_bytes"] for s in view["servers"])
        assert (Holder.ORPHANS in cells) == bool(view["orphan_memory_bytes"])
        assert (Holder.OTHER in cells) == ((view["other_memory_bytes"] or 0) > 0)
