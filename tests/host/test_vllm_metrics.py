from __future__ import annotations

import re
import time
import tracemalloc
from typing import TYPE_CHECKING

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
from vllm_agent.observations import EngineFacts, MetricsFacts

if TYPE_CHECKING:
    from collections.abc import Sequence

IDLE = recorded_page("metrics-idle.txt")
RUNNING = b'vllm:num_requests_running{engine="0"} %b'
WAITING = b'vllm:num_requests_waiting{engine="0"} %b'
USAGE = b'usage_perc{engine="1",model_name="tiny"} %b'
USAGE_LINE = b"vllm:kv_cache_" + USAGE.replace(b',model_name="tiny"', b"")


def read(page: bytes, piece_bytes: int | None = None) -> MetricsFacts:
    scanner = MetricsScanner()
    step = piece_bytes or len(page) or 1
    for start in range(0, len(page), step):
        scanner.feed(page[start : start + step])
    return scanner.facts()


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("metrics-idle.txt", EngineFacts(0, 0, 0, 0, 0, 0)),
        ("metrics-after-one-request.txt", EngineFacts(20, 5, 20, 0, 0, 0)),
    ],
)
def test_recorded_page_of_vllm_is_read(name, engine):
    assert read(recorded_page(name)) == MetricsFacts(
        process_start_time_seconds=1795423597.3,
        is_sleeping=False,
        model_names=("tiny",),
        engine=engine,
    )


def of_several_engines(page: bytes, series: Sequence[bytes]) -> bytes:
    """The recorded page as prometheus_client writes it for several label sets of a family."""
    page = page.replace(b'engine="0",model_name="tiny"', b"LABELS")
    pieces = re.split(rb"(?m)^(?=# HELP )", page)
    return b"".join(
        help_and_type + b"".join(samples.replace(b"LABELS", labels) for labels in series)
        if b"LABELS" in samples
        else help_and_type + samples
        for help_and_type, samples in map(_head_and_samples, pieces)
    )


def _head_and_samples(family: bytes) -> tuple[bytes, bytes]:
    head = b"".join(line for line in family.splitlines(keepends=True) if line.startswith(b"#"))
    return head, family[len(head) :]


@pytest.mark.parametrize("piece_bytes", [1, 100, 4096, 10**6])
def test_engines_and_names_are_summed_and_the_fullest_cache_is_told(piece_bytes):
    page = recorded_page("metrics-after-one-request.txt")
    for name, value in (("num_requests_running", 2), ("num_requests_waiting", 3)):
        page = re.sub(rb"(?m)^(vllm:%b\{.*) 0\.0$" % name.encode(), rb"\1 %d.0" % value, page)
    page = of_several_engines(
        page,
        [
            b'engine="0",model_name="tiny"',
            b'engine="1",model_name="tiny"',
            b'engine="0",model_name="other"',
        ],
    )
    page = page.replace(b'usage_perc{engine="1",model_name="tiny"} 0.0', USAGE % b"0.75")
    facts = read(page, piece_bytes)
    assert facts.engine == EngineFacts(
        iterations=60,
        prompt_tokens=15,
        generation_tokens=60,
        requests_running=6,
        requests_waiting=9,
        kv_cache_usage_ratio=0.75,
    )
    assert facts.model_names == ("tiny", "other")


@pytest.mark.parametrize(
    ("lines", "engine"),
    [
        ([RUNNING % b"2"], EngineFacts(requests_running=2)),
        ([RUNNING % b"2", RUNNING % b"1e1"], EngineFacts(requests_running=12)),
        ([RUNNING % b"2 1700000000000"], EngineFacts(requests_running=2)),
        ([b'vllm:num_requests_running{model_name="a } 9"} 4'], EngineFacts(requests_running=4)),
        ([b'vllm:num_requests_running{a="\\"} 9",b="c"}\t4'], EngineFacts(requests_running=4)),
        ([RUNNING % b'5 # {trace="x"} 1 2'], EngineFacts(requests_running=5)),
        # What cannot be added up is unknown, and takes nothing else with it.
        ([RUNNING % b"2", RUNNING % b"NaN", WAITING % b"3"], EngineFacts(requests_waiting=3)),
        ([RUNNING % b"+Inf", RUNNING % b"2", WAITING % b"3"], EngineFacts(requests_waiting=3)),
        ([RUNNING % b"1e308", RUNNING % b"1e308", WAITING % b"3"], EngineFacts(requests_waiting=3)),
        ([RUNNING % b"1.2.3", WAITING % b"3"], EngineFacts(requests_waiting=3)),
        ([RUNNING % b"NaN"], None),
        ([b"vllm:num_requests_running 2"], None),
        ([b'vllm:num_requests_running{a="b} 2'], None),
        ([b'xvllm:num_requests_running{a="b"} 2'], None),
        ([b'vllm:num_requests_running_max{a="b"} 2'], None),
        # Samples of one name stand together; those behind another family are no vLLM's.
        ([RUNNING % b"2", b"# TYPE other gauge", RUNNING % b"2"], EngineFacts(requests_running=2)),
        ([USAGE_LINE % b"0.5", USAGE_LINE % b"0.25"], EngineFacts(kv_cache_usage_ratio=0.5)),
    ],
)
@pytest.mark.parametrize("piece_bytes", [1, 10**6])
def test_engine_facts_are_what_the_page_says(lines, engine, piece_bytes):
    assert read(b"\n".join([*lines, b"up 1", b""]), piece_bytes).engine == engine


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
        b'vllm:num_requests_running{lora_model_name="adapter",model_name="one"} 1\n'
        b'vllm:num_requests_running{engine="0",model_name="one"} 2\n'
        b'vllm:num_requests_waiting{engine="0",model_name="t\\"w\\\\o"} 2\n'
        b'vllm:num_requests_waiting{model_name="line\\nbreak"} 2\n'
        b'vllm:something_else{model_name="of a series that is not read"} 2\n'
    )
    assert read(page).model_names == ("one", 't"w\\o')


def test_names_are_bounded_in_number_and_length():
    longest = "x" * MAX_MODEL_NAME_LENGTH
    names = [longest + "x", longest, *(f"model-{n}" for n in range(MAX_MODEL_NAMES))]
    page = "".join(f'vllm:num_requests_running{{model_name="{name}"}} 1\n' for name in names)
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
        b"vllm:num_requests_running{" + b'model_name="\\"' * 4000,
        b"vllm:num_requests_running{" + b'a="' * 20_000,
        b"vllm:num_requests_running{" + b'model_name="a"' * 4000 + b"} 1",
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
    names = ("num_requests_running", "num_requests_waiting")
    page = "".join(f'vllm:{series}{{model_name="{escaped}"}} 1\n' for series in names)
    assert read(page.encode(), piece_bytes).model_names == (name,)


def test_model_name_is_kept_without_secrets():
    page = b'vllm:num_requests_running{model_name="https://u:hunter2@h/m?token=topsecret"} 0.0\n'
    scanner = MetricsScanner()
    scanner.feed(page)
    assert scanner.facts().model_names == ("https://[redacted]@h/m?token=[redacted]",)
