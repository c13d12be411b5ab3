from __future__ import annotations

import json
import time
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_agent.host.hf_hub import checkpoint
from vllm_agent.host.hf_hub.checkpoint import (
    INDEXES,
    MAX_NAME_LENGTH,
    MAX_TOKEN_BYTES,
    MAX_WEIGHT_BYTES,
    MAX_WEIGHT_FILES,
    Index,
    is_inside,
    others_of,
    read_index,
    weights_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

MAP = '{"weight_map": {"a": "m.safetensors"'
INDEX = INDEXES[0]
SHARDS = frozenset({"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"})


def index(files: dict[str, str], **metadata: object) -> bytes:
    return json.dumps({"metadata": metadata, "weight_map": files}).encode()


def read(content: bytes, piece: int = 1 << 17) -> Index | None:
    return read_index(content[at : at + piece] for at in range(0, len(content), piece))


names = st.from_regex(r"[a-zé]{1,9}(-[0-9]{5})?(/[a-z]{1,5})?\.safetensors", fullmatch=True)


@given(
    st.dictionaries(st.text(max_size=20), names, min_size=1, max_size=20),
    st.integers(1, MAX_WEIGHT_BYTES),
    st.integers(400, 2000),
    st.sampled_from([None, 2]),
)
def test_index_is_read_as_json_would_be_in_pieces_of_any_size(weight_map, total, piece, indent):
    value = {"metadata": {"total_size": total, "format": "pt"}, "weight_map": weight_map}
    content = json.dumps(value, indent=indent).encode()
    assert read(content, piece) == Index(frozenset(weight_map.values()), total)


@given(st.binary(max_size=2000) | st.text('{}[]":,\\0ae. ', max_size=200).map(str.encode))
def test_garbage_is_no_index(content):
    found = read(content)
    assert found is None or all(map(is_inside, found.files))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b'{"weight_map": {}}',
        b'{"weight_map": 7}',
        b'{"a": "m.safetensors"}',  # no map
        MAP.encode(),  # cut
        f"[{MAP}}}}}]".encode(),
        index({"a": "../../etc/passwd.safetensors"}),
        index({"a": "m.safetensors", "b": "/etc/x.safetensors"}),
        index({"a": "m.safetensors", "b": "x/./y.safetensors"}),
        index({"a": "m.safetensors", "b": "a\u202eb.safetensors"})
        .decode("unicode_escape")
        .encode(),
        index({str(at): f"{at}.safetensors" for at in range(MAX_WEIGHT_FILES + 1)}),
        index({"a": "x" * MAX_NAME_LENGTH + ".safetensors"}),
        index({"x" * MAX_TOKEN_BYTES * 100: "m.safetensors"}),
        index({"a": "m.safetensors"}).replace(b"m.", b"m\\x."),
    ],
)
def test_index_that_lies_is_none(content):
    assert read(content) is None


@pytest.mark.parametrize(
    "total", [0, -5, 1.5, "12", None, True, [1], MAX_WEIGHT_BYTES + 1, 10**400]
)
def test_total_that_is_none_is_unknown(total):
    assert read(index({"a": "m.safetensors"}, total_size=total)) == Index(
        frozenset({"m.safetensors"}), None
    )


def test_two_totals_are_none():
    content = MAP.encode() + b'}, "metadata": {"total_size": 5}, "total_size": 6}'
    assert read(content) == Index(frozenset({"m.safetensors"}), None)


def test_total_as_a_whole_number_of_floating_point():
    assert read(index({"a": "m.safetensors"}, total_size=12.0)) == Index(
        frozenset({"m.safetensors"}), 12
    )


def test_largest_index_costs_little_memory_and_time():
    weight_map = {
        f"model.layers.{at % 61}.mlp.experts.{at}.down_proj.weight_scale_inv": (
            f"model-{at % 163 + 1:05d}-of-000163.safetensors"
        )
        for at in range(92_000)
    }
    content = index(weight_map, total_size=688_586_727_753)
    pieces = [content[at : at + (1 << 17)] for at in range(0, len(content), 1 << 17)]
    tracemalloc.start()
    start = time.perf_counter()
    found = read_index(pieces)
    seconds = time.perf_counter() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == Index(frozenset(weight_map.values()), 688_586_727_753)
    assert peak < 2**20
    print(f"{len(content) / 2**20:.1f} MiB in {seconds * 1e3:.0f} ms, {peak / 2**10:.0f} KiB")


@pytest.mark.parametrize("pattern", [b':"', b': "a"', b'""', b'\\"', b'":"a.bin"'])
def test_hostile_index_is_given_up(monkeypatch, pattern):
    monkeypatch.setattr(checkpoint, "MAX_STRINGS", 1000)
    piece = pattern * 8000
    taken = []

    def pieces() -> Iterator[bytes]:
        for number in range(1000):
            taken.append(number)
            yield piece

    assert read_index(pieces()) is None
    assert len(taken) == 1


@pytest.mark.parametrize("pattern", [b':"', b'\\"', b'"\\', b'":"a.bin"', b'"total_size": '])
def test_time_is_linear_in_what_is_read(pattern):
    def seconds(length: int) -> float:
        content = pattern * (length // len(pattern))
        start = time.perf_counter()
        read_index([content])
        return time.perf_counter() - start

    small = min(seconds(1 << 15) for _ in range(3))
    assert min(seconds(1 << 18) for _ in range(3)) < 8 * 5 * small + 0.05


@pytest.mark.parametrize(
    ("files", "load_format", "expected"),
    [
        ({"config.json", INDEX, *SHARDS}, None, SHARDS),
        ({INDEX, *SHARDS, "sub/x.safetensors", "pytorch_model.bin"}, "auto", SHARDS),
        ({INDEX, *SHARDS, "original/a/b.safetensors"}, "safetensors", SHARDS),
        ({"model.safetensors", "pytorch_model.bin"}, None, {"model.safetensors"}),
        ({"model.safetensors", "pytorch_model.bin"}, "HF".lower(), {"model.safetensors"}),
        ({"a.bin", "b.pt"}, None, {"a.bin"}),
        ({"b.pt"}, None, {"b.pt"}),
        ({"model.safetensors", "a.bin"}, "npcache", {"a.bin"}),
        ({"model.safetensors", "b.pt"}, "pt", {"b.pt"}),
        # without an index the pattern reaches into folders, except those of the original
        ({"m.safetensors", "sub/x.safetensors", "original/a/b.safetensors"}, None,
         {"m.safetensors", "sub/x.safetensors"}),
        ({"sub/x.safetensors", "a.bin"}, None, {"a.bin"}),
        ({"consolidated.safetensors", "params.json"}, "mistral", {"consolidated.safetensors"}),
        ({"config.json"}, None, set()),
        ({"a.bin"}, "safetensors", set()),
        (set(), None, set()),
    ],
)  # fmt: skip
def test_weights_are_those_that_vllm_fetches(files, load_format, expected):
    assert weights_of(files, load_format) == expected


@pytest.mark.parametrize(
    ("files", "load_format"),
    [
        ({INDEX, *SHARDS, "consolidated.safetensors"}, None),  # depends on the version
        ({"model.safetensors"}, "tensorizer"),
        ({"model.safetensors"}, "some-plugin"),
        ({"model-q4.gguf", "model-q8.gguf"}, None),
    ],
)
def test_weights_that_are_not_clear_are_unknown(files, load_format):
    assert weights_of(files, load_format) is None


def test_one_file_of_a_set_tells_of_the_others():
    assert others_of("model-00002-of-00002.safetensors") == SHARDS
    for alone in (
        "model.safetensors",
        "a-00001-of-00000.bin",
        "a-00001-of-99999.bin",
        "a-1-of-2.bin",
    ):
        assert others_of(alone) == {alone}
