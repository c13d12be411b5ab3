from __future__ import annotations

import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.host.raw_server import recorded_page
from vllm_agent.host.vllm_answers import BadBodyError
from vllm_agent.host.vllm_metrics import (
    MAX_LINE_BYTES,
    MAX_MODEL_NAME_LENGTH,
    MAX_MODEL_NAMES,
    MetricsScanner,
)
from vllm_agent.observations import MetricsFacts

IDLE = recorded_page("metrics-idle.txt")


def read(page: bytes, piece_bytes: int | None = None) -> MetricsFacts:
    scanner = MetricsScanner()
    step = piece_bytes or len(page) or 1
    for start in range(0, len(page), step):
        scanner.feed(page[start : start + step])
    return scanner.facts()


@pytest.mark.parametrize("name", ["metrics-idle.txt", "metrics-after-one-request.txt"])
def test_recorded_page_of_vllm_is_read(name):
    assert read(recorded_page(name)) == MetricsFacts(
        process_start_time_seconds=1795423597.3, is_sleeping=False, model_names=("tiny",)
    )


@pytest.mark.parametrize("piece_bytes", [1, 7, 100, 4096])
def test_pieces_of_any_size_give_the_same_facts(piece_bytes):
    assert read(IDLE, piece_bytes) == read(IDLE)


@pytest.mark.parametrize(
    ("page", "facts"),
    [
        (b"", MetricsFacts()),
        (b"# EOF\n", MetricsFacts()),
        (b"# EOF", MetricsFacts()),
        (b"something_else 1\n", MetricsFacts()),
        (b"process_start_time_seconds 0\n", MetricsFacts()),
        (b"process_start_time_seconds NaN\n", MetricsFacts()),
        (b"process_start_time_seconds +Inf\n", MetricsFacts()),
        (b"process_start_time_seconds 1.5e9\n# EOF\n", MetricsFacts(1.5e9)),
        (b'process_start_time_seconds{pod="a"} 7 1700000000\n', MetricsFacts(7.0)),
        (b"other_process_start_time_seconds 5\n", MetricsFacts()),
        (b'vllm:engine_sleep_state{sleep_state="awake"} 0.0\n', MetricsFacts(is_sleeping=True)),
        (b'vllm:engine_sleep_state{sleep_state="awake"} 1\n', MetricsFacts(is_sleeping=False)),
        (b'vllm:engine_sleep_state{sleep_state="discard_all"} 0.0\n', MetricsFacts()),
        (
            b"\n".join(
                b'vllm:engine_sleep_state{engine="%d",sleep_state="awake"} %d' % (n, n)
                for n in range(3)
            )
            + b"\n",
            MetricsFacts(is_sleeping=True),
        ),
    ],
)
def test_page_says_what_it_says_and_nothing_else(page, facts):
    assert read(page) == facts


def test_names_are_those_of_vllm_series_only_each_once_unescaped():
    page = (
        b'other{model_name="not-vllm"} 1\n'
        b'vllm:a{lora_model_name="adapter",model_name="one"} 1\n'
        b'vllm:b{engine="0",model_name="one"} 2\n'
        b'vllm:c{engine="0",model_name="t\\"w\\\\o"} 2\n'
        b'vllm:d{model_name="line\\nbreak"} 2\n'
    )
    assert read(page).model_names == ("one", 't"w\\o')


def test_names_are_bounded_in_number_and_length():
    longest = "x" * MAX_MODEL_NAME_LENGTH
    names = [longest + "x", longest, *(f"model-{n}" for n in range(MAX_MODEL_NAMES))]
    page = "".join(f'vllm:a{{model_name="{name}"}} 1\n' for name in names)
    found = read(page.encode()).model_names
    assert found == (longest, *(f"model-{n}" for n in range(MAX_MODEL_NAMES - 2)))


@pytest.mark.parametrize(
    "page",
    [
        b"<html><body>It works!</body></html>\n",
        b"<html>\n<body>\nvllm:a 1\n",
        b"# a heading\nwith prose below it\n",
        b'{"detail": "Not Found"}\n',
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\n",
        b"OK\n",
        b"Hello world\n",
        b'{"detail": "Not Found"}',
        b"vllm:a 1\nvllm:b",
        b"x" * (MAX_LINE_BYTES + 1),
    ],
)
def test_what_is_no_whole_metrics_page_is_refused(page):
    with pytest.raises(BadBodyError):
        read(page)
    with pytest.raises(BadBodyError):
        read(page, 3)


def test_memory_does_not_grow_with_the_page():
    scanner = MetricsScanner()
    block = IDLE * 4
    tracemalloc.start()
    try:
        for _ in range(50):
            scanner.feed(block)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 3 * len(block)


def test_line_without_end_is_not_kept():
    scanner = MetricsScanner()
    tracemalloc.start()
    try:
        for _ in range(100):
            scanner.feed(b"x" * MAX_LINE_BYTES)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 5 * MAX_LINE_BYTES
    with pytest.raises(BadBodyError):
        scanner.facts()


@pytest.mark.parametrize(
    "line",
    [
        b"vllm:engine_sleep_state{" + b'sleep_state="awake"' * 3300,
        b"vllm:engine_sleep_state{" + b'sleep_state="awake"} ' * 3000,
        b"vllm:a{" + b'model_name="\\"' * 4000,
        b"process_start_time_seconds{" + b"} " * 30_000,
        b"a" + b"{}" * 30_000,
    ],
)
def test_crafted_line_costs_its_length_not_the_square(line):
    started = time.process_time()
    scanner = MetricsScanner()
    for _ in range(60):
        scanner.feed(b"x 1\n" + line + b"\nx 1\n")
    assert time.process_time() - started < 1


@given(st.lists(st.binary(max_size=200), max_size=8))
def test_no_bytes_at_all_raise_anything_but_the_one_error(pieces):
    scanner = MetricsScanner()
    for piece in pieces:
        scanner.feed(piece)
    try:
        facts = scanner.facts()
    except BadBodyError:
        return
    assert isinstance(facts, MetricsFacts)


@given(
    st.text(min_size=1, max_size=20).filter(str.isprintable),
    st.integers(min_value=1, max_value=400),
)
def test_any_printable_name_survives_its_escaping(name, piece_bytes):
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    page = f'vllm:a{{model_name="{escaped}"}} 1\nvllm:b{{model_name="{escaped}"}} 1\n'
    assert read(page.encode(), piece_bytes).model_names == (name,)


def test_model_name_is_kept_without_secrets():
    page = b'vllm:num_requests_running{model_name="https://u:hunter2@h/m?token=topsecret"} 0.0\n'
    scanner = MetricsScanner()
    scanner.feed(page)
    assert scanner.facts().model_names == ("https://[redacted]@h/m?token=[redacted]",)
