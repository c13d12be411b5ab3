"""Lines of a vLLM in every form that they come in, and how they are found in what was read."""

from __future__ import annotations

import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_agent.host.log_line import (
    MAX_LINE_BYTES,
    LogLine,
    Wrapped,
    lines_of,
    read_line,
    unwrap,
)

HEADER = "(EngineCore pid=77) {level} 11-23 09:06:58 [core.py:133] "


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"])
@pytest.mark.parametrize(
    "form",
    [
        "(EngineCore pid=77) {level} 11-23 09:06:58 [core.py:133] it",
        "{level} 11-23 09:06:58 [core.py:133] it",
        "my-server (EngineCore pid=77) {level} 11-23 09:06:58 [core.py:133] it",
        "(Worker pid=7) \x1b[31m{level}\x1b[0m \x1b[90m11-23 09:06:58\x1b[0m [c.py:1] it",
        "Loading: 100%|###| 2/2 [00:01<00:00](Worker pid=77) {level} 11-23 09:06:58 [c.py:1] it",
        "{level}:     it",
        '{{"levelname": "{level}", "message": "it"}}',
    ],
)
def test_the_level_of_a_line_is_told(form, level):
    line = read_line(form.format(level=level).encode())
    assert (line.level, line.message) == (level, "it")


@pytest.mark.parametrize(
    "text",
    [
        "Traceback (most recent call last):",
        "ValueError: nothing",
        "ERROR without a stamp",
        "(EngineCore_DP0 pid=5) ValueError: nothing",
        '{"levelname": 7, "message": "it"}',
        '{"levelname": "LOUD", "message": "it"}',
    ],
)
def test_a_bare_line_has_no_level(text):
    assert read_line(text.encode()).level is None


def test_the_indent_of_a_line_is_kept():
    """By it the lines of a traceback are known."""
    frame = '  File "x.py", line 3, in main'
    assert read_line(frame.encode()).message == frame
    assert read_line((HEADER.format(level="ERROR") + frame).encode()).message == frame


def test_the_first_header_of_a_line_is_the_one():
    quoted = HEADER.format(level="ERROR") + "x"
    line = read_line((HEADER.format(level="INFO") + quoted).encode())
    assert (line.level, line.message) == ("INFO", quoted)


def test_json_with_a_traceback_has_several_lines():
    record = {
        "asctime": "2026-11-23 09:06:58,123",
        "levelname": "ERROR",
        "process": 5,
        "message": "failed",
        "exc_info": "Traceback (most recent call last):\nValueError: nothing",
    }
    line = read_line(json.dumps(record).encode())
    assert [part.message for part in line.lines()] == [
        "failed",
        "Traceback (most recent call last):",
        "ValueError: nothing",
    ]
    assert {(part.level, part.pid) for part in line.lines()} == {("ERROR", 5)}


def test_a_moment_is_of_the_last_time_that_it_was():
    soon = time.strftime("%m-%d %H:%M:%S", time.localtime(time.time() + 2 * 86400))
    written = read_line(f"INFO {soon} [x.py:1] it".encode()).written_seconds
    assert written is not None
    assert written < time.time()


@pytest.mark.parametrize("stamp", ["02-30 00:00:00", "13-01 00:00:00", "00-00 99:99:99"])
def test_a_moment_that_never_was_is_unknown(stamp):
    line = read_line(f"INFO {stamp} [x.py:1] it".encode())
    assert (line.message, line.written_seconds) == ("it", None)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (
            b'{"log":"it\\n","stream":"stderr","time":"1970-01-01T00:00:02.5Z"}',
            Wrapped(b"it\n", "stderr", 2.5, is_whole=True),
        ),
        (
            b'{"log":"part of it","stream":"stdout","time":"soon"}',
            Wrapped(b"part of it", "stdout", None, is_whole=False),
        ),
        (
            b"1970-01-01T00:00:02.500000000+00:00 stdout F it",
            Wrapped(b"it", "stdout", 2.5, is_whole=True),
        ),
        (
            b"1970-01-01T00:00:02Z stderr P it",
            Wrapped(b"it", "stderr", 2.0, is_whole=False),
        ),
        (b"INFO 11-23 09:06:58 [x.py:1] it", None),
        (b'{"message": "it"}', None),
        (b"{" * 100_000, None),
        (b"", None),
    ],
)
def test_an_envelope_is_taken_off(raw, expected):
    assert unwrap(raw) == expected


@given(st.binary(max_size=300))
def test_any_line_is_read_without_an_error(raw):
    read_line(raw)
    unwrap(raw)
    read_line(b'{"message": "x", ' + raw)


def all_lines(content: bytes, **facts) -> list[bytes]:
    return [raw for _, raw in lines_of(content, len(content), [], lambda _: True, **facts)]


def test_lines_end_with_either_sign():
    assert all_lines(b"\n\none\r\n\rtwo\rthree\n\rlast") == [b"one", b"two", b"three", b"last"]


def test_places_are_those_of_the_lines():
    found = list(lines_of(b"ab\ncd\nef\n", 6, [], lambda _: True))
    assert found == [(0, b"ab"), (3, b"cd")]


def test_zeros_of_a_truncated_file_are_left_out():
    assert all_lines(b"\0" * 100_000 + b"it\n", max_bytes=10) == [b"it"]


def test_of_a_long_line_the_beginning_is_read():
    assert all_lines(b"x" * 100_000 + b"\ny\n") == [b"x" * MAX_LINE_BYTES, b"y"]


def test_lines_that_hold_a_pattern_are_found_and_what_is_wanted_after_them():
    content = b"a1\nb2\nc3\nd4\ne5\nf6\n"
    wanted = 0

    def wants_all(_: int) -> bool:
        return wanted > 0

    found = []
    for _, raw in lines_of(content, len(content), [re.compile(b"f"), re.compile(b"b")], wants_all):
        found.append(raw)
        wanted = {b"b2": 2, b"c3": 1}.get(raw, 0)
    assert found == [b"b2", b"c3", b"d4", b"f6"]


@given(st.lists(st.sampled_from([b"a", b"x", b"\n", b"\r", b"\0"]), max_size=60).map(b"".join))
def test_what_a_pattern_finds_are_the_lines_that_hold_it(content):
    found = [raw for _, raw in lines_of(content, len(content), [re.compile(b"x")], lambda _: False)]
    assert found == [raw for raw in all_lines(content) if b"x" in raw]


def test_a_line_is_what_it_says():
    line = LogLine("one")
    assert list(line.lines()) == [line]
