"""Which lines of a log explain a failure; and that no prompt and no secret is among them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.host.log_scene import keep
from vllm_agent.host.log_excerpt import (
    MAX_EXCERPT_BYTES,
    MAX_LINE_CHARS,
    MAX_LINES,
    MAX_OPEN,
    MESSAGE_LINES,
    LogExcerpt,
    is_about_requests,
)
from vllm_agent.host.log_line import LogLine, lines_of, read_line

RECORDED = Path(__file__).parents[1] / "testdata" / "vllm-0.32.0"
CANARY = "canary-0123456789"
TRACEBACK = "Traceback (most recent call last):"


def bare(text: str) -> list[LogLine]:
    return [LogLine(line) for line in text.splitlines()]


def lines(*taken: LogLine, redact=keep) -> list[str]:
    excerpt = LogExcerpt(redact)
    for line in taken:
        excerpt.take(line)
    return [text for _, text in excerpt.lines()]


def error(message: str, pid: int | None = None) -> LogLine:
    return LogLine(message, pid, level="ERROR")


@pytest.mark.parametrize("level", ["WARNING", "ERROR", "CRITICAL"])
def test_trouble_is_kept_with_its_level(level):
    assert lines(LogLine("it", level=level)) == [f"{level} it"]


@pytest.mark.parametrize("level", ["INFO", "DEBUG", None])
def test_nothing_else_is_kept(level):
    assert lines(LogLine("it", level=level)) == []
    assert lines(*(LogLine(text, level="INFO") for text in (TRACEBACK, '  File "x"', "E: y"))) == []


def test_the_line_of_a_cause_is_kept_whatever_its_level():
    excerpt = LogExcerpt(keep)
    excerpt.take(LogLine("vllm: error: unrecognized arguments: --x"), is_cause=True)
    assert excerpt.lines() == ((None, "vllm: error: unrecognized arguments: --x"),)


SCRIPT = f"""{TRACEBACK}
  File "/opt/vllm/bin/vllm", line 6, in <module>
    sys.exit(main())
             ^^^^^^
  File "uvloop/loop.pyx", line 1515, in uvloop.loop.Loop.run_until_complete
  File "/opt/a.py", line 348, in create_server_socket
    sock.bind(addr)
    ~~~~~~~~~^^^^^^
OSError: [Errno 98] Address already in use"""
KEPT = [
    TRACEBACK,
    "    sys.exit(main())",
    '  File "uvloop/loop.pyx", line 1515, in uvloop.loop.Loop.run_until_complete',
    '  File "/opt/a.py", line 348, in create_server_socket',
    "    sock.bind(addr)",
    "OSError: [Errno 98] Address already in use",
]


def test_of_a_bare_traceback_the_innermost_frames_are_kept():
    assert lines(LogLine("usage: x"), *bare(SCRIPT)) == KEPT


def test_of_a_traceback_that_is_logged_the_same_is_kept():
    taken = [error("failed", 5), *(error(line.message, 5) for line in bare(SCRIPT))]
    assert lines(*taken, error("then this", 5)) == ["ERROR failed", *KEPT, "ERROR then this"]


def test_tracebacks_of_several_processes_are_told_apart():
    taken = [
        LogLine(line.message.replace("98", str(pid)), pid, level="ERROR")
        for line in bare(SCRIPT)
        for pid in (5, 6)
    ]
    found = lines(*taken)
    assert found == [line.replace("98", pid) for pid in ("5", "6") for line in KEPT]


def test_another_line_of_the_process_does_not_end_its_traceback():
    first, *rest = bare(SCRIPT)
    taken = [first, LogLine("an access", level="INFO"), LogLine("warned", level="WARNING"), *rest]
    assert lines(*taken) == ["WARNING warned", *KEPT]


def test_a_message_of_several_lines_is_kept_after_its_exception():
    more = [f"more {number}" for number in range(MESSAGE_LINES + 1)]
    assert lines(*bare(SCRIPT), *map(LogLine, more)) == [*KEPT, *more[:-1]]


@pytest.mark.parametrize(
    "other",
    [
        LogLine("an access", level="INFO"),
        LogLine("of another process", 7, level="INFO"),
        LogLine('127.0.0.1:1234 - "GET /?q=prompt HTTP/1.1" 500'),
        LogLine("Capturing CUDA graphs:  45%|####   | 23/51 [00:01<00:01]"),
    ],
)
def test_it_ends_with_a_line_of_another_kind(other):
    assert lines(*bare(SCRIPT), other, LogLine("no more")) == KEPT


def test_what_python_says_of_leaks_at_the_end_is_left_out():
    said = [
        "/x/resource_tracker.py:254: UserWarning: resource_tracker: There appear to be 1 leaked",
        "  warnings.warn('resource_tracker: There appear to be %d '",
    ]
    assert lines(*bare(SCRIPT), *map(LogLine, said)) == KEPT


def test_a_group_of_exceptions_is_taken_apart():
    group = """  + Exception Group Traceback (most recent call last):
  |   File "x.py", line 1, in <module>
  |     run()
  | ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "y.py", line 2, in run
    |     fail()
    | ValueError: nothing
    +------------------------------------"""
    found = lines(*bare(group))
    assert found[0] == "Exception Group Traceback (most recent call last):"
    assert "ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)" in found
    assert found[-2:] == ["ValueError: nothing", "    +------------------------------------"]


def test_what_comes_again_is_kept_where_it_came_last():
    taken = [error("one"), error("two"), error("one")]
    assert lines(*taken) == ["ERROR two", "ERROR one"]


def test_the_newest_lines_are_kept():
    taken = [error(f"line {number}") for number in range(MAX_LINES + 5)]
    assert lines(*taken) == [f"ERROR line {number}" for number in range(5, MAX_LINES + 5)]


def test_a_long_line_is_cut():
    [found] = lines(error("x " * 10_000))
    assert len(found) == MAX_LINE_CHARS
    assert found.endswith("...")


def test_all_lines_together_are_bounded():
    rockets = "\U0001f680 " * 900
    taken = [error(f"{number} {rockets}") for number in range(MAX_LINES)]
    found = lines(*taken)
    assert 5 < len(found) < MAX_LINES
    assert sum(len(line.encode()) for line in found) <= MAX_EXCERPT_BYTES
    assert found[-1].startswith(f"ERROR {MAX_LINES - 1} ")


def test_tracebacks_that_never_end_are_bounded():
    excerpt = LogExcerpt(keep)
    for pid in range(1000):
        excerpt.take(error(TRACEBACK, pid))
        excerpt.take(error("  File " + "x" * 100_000, pid))
    assert len(excerpt._open) == MAX_OPEN
    assert all(len(line) < 10_000 for one in excerpt._open.values() for line in one.frames)


def test_what_could_harm_a_terminal_or_a_database_is_left_out():
    assert lines(error("a\x1b]0;b\x07c\x00d\tE\ud800f\u202eg")) == ["ERROR a]0;bcd\tEfg"]


def test_all_is_redacted():
    taken = [error(f"key {CANARY}"), *bare(SCRIPT.replace("98", CANARY).replace("a.py", CANARY))]
    found = lines(*taken, LogLine(CANARY), redact=lambda text: text.replace(CANARY, "***"))
    assert found
    assert CANARY not in "".join(found)


def test_a_secret_is_not_cut_before_it_is_redacted():
    """Half of it would not be known."""
    for place in range(4 * MAX_LINE_CHARS - 40, 4 * MAX_LINE_CHARS + 2):
        text = ("a " * 2000)[:place] + CANARY + " b" * 99
        # A redaction that shortens what is before it to nothing.
        [found] = lines(
            error(text), redact=lambda text: text.replace(CANARY, "***").replace("a ", "")
        )
        assert "cana" not in found


REQUESTS = [
    f"Received request cmpl-1: prompt: '{CANARY}', params: SamplingParams()",
    f"Dumping input data for V1 LLM engine (v0.32.0) with config: {CANARY}, ",
    f"Dumping scheduler output for model execution: SchedulerOutput({CANARY})",
    f"Dumping scheduler stats: {CANARY}",
    f"Added request {CANARY}",
    f"Request cmpl-1 failed: {CANARY}",
    f'127.0.0.1:1234 - "GET /{CANARY} HTTP/1.1" 500 Internal Server Error',
]


@pytest.mark.parametrize("message", REQUESTS)
def test_a_line_about_requests_is_known(message):
    assert is_about_requests(message)


@pytest.mark.parametrize(
    "message",
    [
        *REQUESTS[1:4],
        f"Error in it: prompt='{CANARY}'",
        f"Error in it: prompt_token_ids=[1, 2, {CANARY}]",
        f'Error in it: {{"messages": [{{"role": "user", "content": "{CANARY}"}}]}}',
        f"NewRequestData(req_id=1, prompt_token_ids = ({CANARY}))",
    ],
)
def test_what_users_sent_is_left_out(message):
    [found] = lines(error(message))
    assert CANARY not in found
    assert found.endswith("(left out)")


@pytest.mark.parametrize("message", [REQUESTS[0], *REQUESTS[4:]])
@pytest.mark.parametrize("level", ["WARNING", "ERROR"])
def test_a_line_about_requests_is_left_out(message, level):
    assert lines(LogLine(message, level=level)) == []


def recorded(name: str) -> list[str]:
    content = (RECORDED / f"{name}.log").read_bytes()
    raws = lines_of(content, len(content), [], lambda _: True)
    return lines(*(read_line(raw) for _, raw in raws))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fail-port-in-use", "OSError: [Errno 98] Address already in use"),
        (
            "fail-context-too-long",
            "  Value error, User-specified max_model_len (2000000) is greater",
        ),
        ("fail-kv-cache-memory", "ValueError: Available memory on node 0 (7.91/9.34 GiB)"),
        ("fail-model-not-found-offline", "huggingface_hub.errors.LocalEntryNotFoundError: Cannot"),
        ("engine-core-killed", "WARNING [shutdown] MPClient: engine core exited unexpectedly"),
    ],
)
def test_the_line_that_says_why_is_kept_of_a_recorded_failure(name, expected):
    found = recorded(name)
    assert [line for line in found if line.startswith(expected)]
    assert len(found) <= MAX_LINES
    assert not [line for line in found if "INFO" in line or "GET /" in line]


LINES = st.builds(
    LogLine,
    st.one_of(
        st.text(max_size=40), st.sampled_from([TRACEBACK, '  File "x"', "    ^", "V: x", ""])
    ),
    st.sampled_from([None, 1, 2]),
    level=st.sampled_from([None, "INFO", "ERROR"]),
)


@given(st.lists(LINES, max_size=80))
def test_any_lines_are_bounded_and_redacted(taken):
    found = lines(*taken, redact=lambda _: "redacted")
    assert len(found) <= MAX_LINES
    assert set(found) <= {"redacted"}
