"""Which lines belong to a traceback that ends no process."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_agent.host.log_line import LogLine
from vllm_agent.host.minor_tracebacks import MAX_OPEN, MESSAGE_LINES, MinorTracebacks

BEGIN = "Exception in thread Thread-4 (_report_usage_worker):"
TRACEBACK = "Traceback (most recent call last):"
CHAIN = "During handling of the above exception, another exception occurred:"
FRAME = '  File "x.py", line 1, in f'
LOST = "requests.exceptions.ConnectionError: x"


def belonging(*messages: str, pid: int | None = None) -> list[bool]:
    minor = MinorTracebacks()
    return [minor.has(LogLine(message, pid)) for message in messages]


@pytest.mark.parametrize("begin", [BEGIN, "Exception ignored in: <function X.__del__ at 0x7f>"])
@pytest.mark.parametrize("pid", [None, 7])
def test_all_of_one_belongs_to_it_and_nothing_of_the_next(begin, pid):
    inside = [begin, TRACEBACK, FRAME, "OSError: 1", CHAIN, TRACEBACK, FRAME, LOST]
    outside = [TRACEBACK, FRAME, "KeyError: 'x'"]
    assert belonging(*inside, *outside, pid=pid) == [True] * len(inside) + [False] * 3


def test_one_may_have_no_frames():
    assert belonging("Exception ignored in: x", LOST, LOST) == [True, True, False]


def test_a_chain_may_go_on_after_a_message_of_several_lines():
    message = ["not found", "  indented", "x"]
    lines = belonging(BEGIN, TRACEBACK, LOST, *message, CHAIN, TRACEBACK, LOST)
    assert lines[3:] == [False, True, False, True, True, True]
    assert belonging(BEGIN, LOST, *["x"] * (MESSAGE_LINES + 1), CHAIN)[-1] is False


def test_others_do_not_belong_to_it():
    minor = MinorTracebacks()
    assert minor.has(LogLine(BEGIN, 1))
    assert not minor.has(LogLine(LOST, 2))
    assert not minor.has(LogLine(LOST, 1), source=1)
    assert not minor.has(LogLine(LOST, 1, level="ERROR"))
    assert minor.has(LogLine(LOST, 1))


def test_it_is_over_with_the_next_line_that_has_a_level():
    minor = MinorTracebacks()
    for message, level in ((BEGIN, None), ("x", "INFO"), (LOST, None)):
        minor.has(LogLine(message, level=level))
        assert minor.is_open
    minor.has(LogLine("x", 5, level="INFO"))
    assert not minor.is_open


def test_it_can_be_forgotten():
    minor = MinorTracebacks()
    minor.has(LogLine(BEGIN))
    minor.clear()
    assert not minor.is_open


def test_those_that_are_open_are_bounded():
    minor = MinorTracebacks()
    for pid in range(MAX_OPEN * 2):
        minor.has(LogLine(BEGIN, pid))
    assert len(minor._open) == MAX_OPEN


@given(st.lists(st.sampled_from([BEGIN, TRACEBACK, FRAME, LOST, CHAIN, "", "x"])))
def test_any_lines_are_read(messages):
    belonging(*messages)
