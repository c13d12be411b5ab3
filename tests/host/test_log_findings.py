"""All that the lines of a log tell, by recorded failures and by lines that may be anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.host.log_scene import (
    FATAL,
    LOST,
    NO_MEMORY,
    NO_PORT,
    STOPPED,
    Drops,
    Reader,
    keep,
    line,
)
from vllm_agent.host.log_findings import (
    CANDIDATES,
    MAX_ERROR_LINES,
    MAX_FINDINGS,
    MAX_LOAD_LINES,
    Caused,
    LogFindings,
    WentOn,
)
from vllm_agent.host.log_line import LogLine, lines_of, read_line
from vllm_agent.host.vllm_markers import Marked
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.observations import Stage

RECORDED = Path(__file__).parents[1] / "testdata" / "vllm-0.32.0"
CANARY = "canary-0123456789"


def feed(content: bytes, *, is_loading: bool = False, redact=keep) -> LogFindings:
    findings = LogFindings(redact, Drops())
    findings.begin_look(is_loading=is_loading)
    for _, raw in lines_of(content, len(content), CANDIDATES, lambda _: findings.wants_all):
        findings.take(read_line(raw))
    return findings


REASONS = {
    "fail-port-in-use": Reason.PORT_IN_USE,
    "fail-context-too-long": Reason.CONTEXT_TOO_LONG,
    "fail-kv-cache-memory": Reason.KV_CACHE_TOO_SMALL,
    "fail-model-not-found-offline": Reason.AIRGAPPED,
    "normal-stop-sigterm": None,
    "engine-core-killed": None,
    "load-11-shards-torch-compile": None,
}


@pytest.mark.parametrize("is_loading", [True, False])
@pytest.mark.parametrize(("name", "reason"), REASONS.items())
def test_a_recorded_failure_has_its_cause_watched_or_not(name, reason, is_loading):
    told = feed((RECORDED / f"{name}.log").read_bytes(), is_loading=is_loading).told()
    causes = [one.cause for one in told.findings if isinstance(one, Caused)]
    best = min(causes, key=lambda cause: cause.rank, default=None)
    assert (None if best is None else best.reason) is reason


@pytest.mark.parametrize("name", REASONS)
def test_the_excerpt_is_the_same_watched_or_not(name):
    content = (RECORDED / f"{name}.log").read_bytes()
    watched, read = (feed(content, is_loading=is_loading) for is_loading in (True, False))
    assert watched.told().excerpt == read.told().excerpt


def test_the_load_is_told_only_while_it_loads():
    content = line("Starting to load model x...", level="INFO")
    assert feed(content, is_loading=True).told().progress.stage is Stage.LOAD_WEIGHTS
    assert feed(content).told().progress.stage is None


def test_of_a_flood_only_what_matters_is_looked_at():
    flood = b"".join(b"%d\n" % number for number in range(MAX_LOAD_LINES + 100))
    findings = feed(flood + line(LOST) + f"{NO_PORT}\n".encode(), is_loading=True)
    assert not findings.wants_all
    assert [type(one) for one in findings.told().findings] == [Marked, Caused]


def test_findings_come_once_and_in_order():
    findings = feed(line(LOST) + f"{NO_MEMORY}\n".encode() + line(FATAL))
    names = [
        one.cause.name if isinstance(one, Caused) else one.name
        for one in findings.told().findings
        if not isinstance(one, WentOn)
    ]
    assert names == ["API server lost its engine", "the GPU is out of memory", "engine failed"]
    assert findings.told().findings == ()


def test_a_cause_that_comes_again_and_again_is_one():
    findings = feed(f"{NO_MEMORY}\n".encode() * 999 + line(NO_MEMORY, pid=5) * 999)
    assert [one.pid for one in findings.told().findings] == [None, 5]


def test_marks_of_a_piece_are_bounded():
    drops = Drops()
    findings = LogFindings(keep, drops)
    for _ in range(MAX_FINDINGS * 2):
        findings.take(LogLine(LOST))
    assert len(findings.told().findings) == MAX_FINDINGS
    assert drops == ["log_marks"]


def test_lines_of_a_piece_that_are_asked_for_a_cause_are_bounded():
    drops = Drops()
    findings = LogFindings(keep, drops)
    for number in range(MAX_ERROR_LINES + 1):
        findings.take(LogLine(f"RuntimeError: {number}"))
    findings.take(LogLine(NO_PORT))
    assert findings.told().findings == ()
    assert drops == ["log_marks"]
    findings.take(LogLine(NO_PORT))
    assert len(findings.told().findings) == 1


def test_each_line_of_a_message_is_looked_at_and_only_the_first_may_be_a_mark():
    """A prompt may have several lines, too."""
    record = {"levelname": "ERROR", "message": f"{FATAL}\n{LOST}", "exc_info": f"Trace\n{NO_PORT}"}
    findings = feed(json.dumps(record).encode() + b"\n")
    mark, cause = findings.told().findings
    assert isinstance(mark, Marked)
    assert isinstance(cause, Caused)
    assert (mark.name, cause.cause.reason) == ("engine failed", Reason.PORT_IN_USE)


@pytest.mark.parametrize(
    "message",
    [
        f"Received request cmpl-1: prompt: 'x', {NO_MEMORY}",
        f"Dumping scheduler output for model execution: {NO_MEMORY}",
        f"{NO_MEMORY} logged as no error",
    ],
)
def test_what_is_about_requests_or_no_error_is_no_cause(message):
    assert feed(line(message, level="INFO")).told().findings == ()


def test_what_may_be_of_another_launch_is_no_mark():
    findings = LogFindings(keep, Drops())
    findings.take(LogLine(LOST), may_mark=False)
    findings.take(LogLine(NO_PORT), may_mark=False)
    assert [type(one) for one in findings.told().findings] == [Caused]


def test_moments_are_those_that_are_known_best():
    findings = LogFindings(keep, Drops())
    stamped = LogLine(NO_PORT, written_seconds=5.0, level="ERROR")
    findings.take(stamped, written_seconds=7.0, at_seconds=1.0)
    findings.take(LogLine(LOST, written_seconds=5.0))
    cause, mark = findings.told().findings
    assert isinstance(cause, Caused)
    assert isinstance(mark, Marked)
    assert (cause.written_seconds, cause.at_seconds) == (7.0, 1.0)
    assert (mark.written_seconds, mark.at_seconds) == (5.0, None)


def test_where_a_launch_begins_all_before_is_forgotten():
    findings = feed(line("Starting to load model x...") + line(LOST), is_loading=True)
    findings.restart()
    told = findings.told()
    assert (told.findings, told.progress.new_lines, told.excerpt) == ((), 0, ())


def test_text_leaves_redacted():
    content = f"{NO_PORT} {CANARY}\n".encode() + line(CANARY)
    told = feed(content, redact=lambda text: text.replace(CANARY, "***")).told()
    assert [one.text for one in told.findings if isinstance(one, Caused)] == [f"{NO_PORT} ***"]
    assert CANARY not in str(told)


def test_a_reader_of_tests_reads_as_the_real_one():
    assert Reader().excerpt == []


@given(st.lists(st.one_of(st.binary(max_size=60), st.sampled_from([line(LOST), b"V\r", b"\n"]))))
def test_any_bytes_are_read_without_an_error(parts):
    for is_loading in (True, False):
        feed(b"".join(parts), is_loading=is_loading).told()


# What did not end it.

START = "Starting to load model x..."
LOADED = "Model loading took 1.0 GiB memory and 2.0 seconds"
FULL = "OSError: [Errno 28] No space left on device"
BAR = "Loading safetensors checkpoint shards:  50% Completed | {}/4 [00:01<00:01,  2it/s]\r"


def survived(*content: bytes) -> list[str]:
    """The findings by name; where a load went on, who did."""
    names = []
    for one in feed(b"".join(content), is_loading=True).told().findings:
        if isinstance(one, WentOn):
            names.append(f"went on: {one.writers}")
        else:
            names.append(one.name if isinstance(one, Marked) else one.cause.name)
    return names


FULL_NAME = "no space left on device"


def test_where_the_load_went_on_is_told_once_and_only_after_a_cause():
    found = survived(
        line(START, pid=7, level="INFO"), line(FULL, pid=7), line(LOADED, pid=7), line(FULL, pid=7)
    )
    assert found == [FULL_NAME, "went on: (7,)", FULL_NAME]


def test_another_process_that_goes_on_says_nothing_of_this_one():
    found = survived(line(START, pid=7), line(FULL, pid=7), line(LOADED, pid=8))
    assert found == [FULL_NAME]


def test_a_bar_that_moves_takes_away_bare_causes_only():
    bars = [BAR.format(number).encode() for number in range(5)]
    bare = f"{FULL}\n".encode()
    assert survived(bars[0], bare, *bars[1:]) == [FULL_NAME, "went on: (None,)"]
    assert survived(bars[0], bare, bars[1]) == [FULL_NAME]
    assert survived(bars[0], line(FULL, pid=7), *bars[1:]) == [FULL_NAME]


def test_logs_of_a_launch_are_told_apart():
    findings = LogFindings(keep, Drops())
    findings.begin_look(is_loading=True)
    findings.take(LogLine(FULL, 7), source=0)
    findings.take(LogLine(START, 7), source=1)
    assert [type(one) for one in findings.told().findings] == [Caused]


def test_an_error_that_ends_a_thread_is_no_cause():
    thread = "Exception in thread Thread-4 (_report_usage_worker):"
    trace = ["Traceback (most recent call last):", '  File "x.py", line 1, in f']
    lost = "requests.exceptions.ConnectionError: x"
    content = "\n".join([thread, *trace, lost, *trace, "KeyError: 'x'", ""]).encode()
    for is_loading in (True, False):
        assert feed(content, is_loading=is_loading).told().findings == ()
    own = "\n".join([thread, *trace, lost, *trace, lost, ""]).encode()
    for is_loading in (True, False):
        assert len(feed(own, is_loading=is_loading).told().findings) == 1


def test_the_end_of_a_thread_is_noticed_without_its_traceback():
    findings = feed(b"Exception in thread Thread-4:\n")
    assert findings.wants_all
    findings.restart()
    assert not findings.wants_all


def test_of_a_shared_log_only_lines_that_name_a_process_tell_anything():
    findings = LogFindings(keep, Drops())
    findings.begin_look(is_loading=True, is_shared=True)
    for message in (LOST, NO_PORT, START, STOPPED):
        findings.take(LogLine(message, level="ERROR"))
        findings.take(LogLine(message, level="ERROR", inner_pid=1))
    told = findings.told()
    assert (told.findings, told.excerpt, told.progress.new_lines) == ((), (), 0)
    findings.take(LogLine(NO_PORT, 7, level="ERROR"))
    told = findings.told()
    assert len(told.findings) == len(told.excerpt) == told.progress.new_lines == 1
