"""What of a log counts when a launch has ended: by order, time, process and what came since."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.host.log_scene import Drops
from vllm_agent.host.failure_patterns import Cause, Rank
from vllm_agent.host.log_evidence import (
    DEATH_STANDS_SECONDS,
    MAX_ENTRIES,
    LogEvidence,
    LoggedCause,
    LogSource,
)
from vllm_agent.host.log_excerpt import MAX_LINES
from vllm_agent.host.log_findings import Caused, WentOn
from vllm_agent.host.vllm_markers import LATE_STOP_SECONDS, Marked, MarkKind
from vllm_agent.lifecycle.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Sequence

STOP, DEATH = MarkKind.STOP, MarkKind.DEATH
FILES, JOURNAL = LogSource.FILES, LogSource.JOURNAL
SPECIFIC = Cause(Reason.GPU_OOM, "specific", Rank.SPECIFIC)
GENERAL = Cause(Reason.NCCL, "general", Rank.GENERAL)
WRAPPER = Cause(Reason.GPU_FAULT, "wrapper", Rank.WRAPPER)
OF_START = Cause(Reason.PORT_IN_USE, "of a start", Rank.SPECIFIC)


def mark(kind: MarkKind, **facts) -> Marked:
    return Marked(kind, f"a {kind}", **facts)


def caused(cause: Cause = SPECIFIC, **facts) -> Caused:
    return Caused(cause, cause.name, **facts)


def evidence(
    *findings: tuple[Marked | Caused | WentOn, float],
    source: LogSource = FILES,
    pids: Sequence[int] = (),
) -> LogEvidence:
    found = LogEvidence(Drops())
    found.know(pids)
    for finding, at_seconds in findings:
        found.note(finding, source, at_seconds)
    return found


def cause(*findings: tuple[Marked | Caused | WentOn, float], **facts) -> str | None:
    told = evidence(*findings, **facts).cause()
    return None if told is None else told.name


def test_nothing_tells_nothing():
    assert evidence().cause() is None
    assert evidence().deciding() is None


def test_the_first_of_the_best_rank_is_the_cause():
    other = Cause(Reason.KV_CACHE_TOO_SMALL, "other", Rank.SPECIFIC)
    found = [(WRAPPER, 1.0), (GENERAL, 2.0), (SPECIFIC, 3.0), (other, 4.0)]
    told = evidence(*((caused(one), at) for one, at in found)).cause()
    assert told == LoggedCause(Reason.GPU_OOM, "specific", 3.0)


def test_a_cause_after_a_stop_does_not_count():
    assert cause((mark(STOP), 1.0), (caused(), 2.0)) is None
    assert cause((caused(), 1.0), (mark(STOP), 2.0)) == "specific"
    assert cause((caused(GENERAL), 1.0), (mark(STOP), 2.0), (caused(), 3.0)) == "general"


def test_the_order_is_that_of_the_log_and_not_of_what_made_us_read():
    assert cause((mark(STOP), 2.0), (caused(), 1.0)) is None


def test_a_stop_in_another_log_has_no_order():
    """Their times are compared where all evidence comes together."""
    found = evidence((mark(STOP), 1.0))
    found.note(caused(), JOURNAL, 2.0)
    assert found.cause() is not None


@pytest.mark.parametrize(
    ("age", "expected"), [(LATE_STOP_SECONDS, None), (LATE_STOP_SECONDS + 1, "specific")]
)
def test_a_stop_that_is_logged_late_was_there_before(age, expected):
    late = mark(STOP, is_late=True, written_seconds=100.0)
    assert cause((caused(written_seconds=100.0 - age), 1.0), (late, 1.0)) == expected
    # Without stamps, by when they were read.
    assert cause((caused(), 100.0 - age), (late, 100.0)) == expected


def test_a_late_stop_after_a_last_word_explains_nothing():
    word, late = mark(DEATH, is_last_word=True), mark(STOP, is_late=True)
    assert cause((caused(), 1.0), (word, 1.0), (late, 1.0)) == "specific"


def test_what_another_process_wrote_does_not_count():
    found = evidence((caused(pid=5), 1.0), (mark(DEATH, pid=5), 1.0), (caused(GENERAL), 2.0))
    for pids, name in (((), "specific"), ([6], "general"), ([5, 6], "specific")):
        found.know(pids)
        told = found.cause()
        assert told is not None
        assert told.name == name
        assert (found.deciding() is None) is (name == "general")


def test_all_that_the_journal_has_of_a_unit_is_its_own():
    assert cause((caused(pid=5), 1.0), source=JOURNAL, pids=[6]) == "specific"


def test_processes_may_become_known_later():
    found = evidence((caused(pid=7), 1.0), pids=[6])
    assert found.cause() is None
    found.know([6, 7])
    found.know([])
    assert found.cause() is not None


# What it outlived.


def test_a_death_that_the_server_outlived_is_none():
    found = evidence((mark(DEATH), 100.0))
    found.note_serving(100.0 + DEATH_STANDS_SECONDS - 1.0)
    assert found.deciding() is not None
    found.note_serving(100.0 + DEATH_STANDS_SECONDS)
    assert found.deciding() is None


def test_a_stop_is_one_however_long_it_serves_on():
    found = evidence((mark(STOP), 100.0))
    found.note_serving(1000.0)
    assert found.deciding() == (100.0, mark(STOP))


def test_a_death_that_was_told_again_counts_from_then():
    found = evidence((mark(DEATH), 100.0), (mark(DEATH), 150.0))
    found.note_serving(100.0 + DEATH_STANDS_SECONDS)
    assert found.deciding() == (150.0, mark(DEATH))
    found.note_serving(150.0 + DEATH_STANDS_SECONDS)
    assert found.deciding() is None


def test_what_did_not_prevent_that_it_serves_is_no_cause():
    found = evidence((caused(), 100.0), (mark(DEATH), 100.0))
    found.note_serving(100.0)
    assert found.cause() is None
    assert found.deciding() is not None
    # What is read later may be older.
    found.note(caused(), FILES, 99.0)
    assert found.cause() is None


def test_a_cause_after_it_began_to_serve_stands_for_a_while():
    found = evidence()
    found.note_serving(100.0)
    found.note(caused(), FILES, 110.0)
    found.note_serving(110.0 + DEATH_STANDS_SECONDS - 1.0)
    assert found.cause() == LoggedCause(Reason.GPU_OOM, "specific", 110.0)
    found.note_serving(110.0 + DEATH_STANDS_SECONDS)
    assert found.cause() is None
    found.note(caused(at_seconds=105.0), JOURNAL, 999.0)
    assert found.cause() is None


def test_a_server_that_serves_has_no_cause_not_to_start():
    found = evidence((caused(OF_START), 100.0))
    assert found.cause() is not None
    found.note_serving(90.0)
    assert found.cause() is None
    found.note(caused(OF_START), FILES, 120.0)
    assert found.cause() is None


# The excerpt.


def test_the_lines_of_other_processes_are_left_out_of_the_excerpt():
    found = evidence(pids=[5])
    of_files = [(5, "ours"), (6, "theirs"), (None, "bare")]
    assert found.excerpt(of_files, [(6, "journal")]) == ("ours", "bare", "journal")


@pytest.mark.parametrize("known", ["specific", "ERROR specific"])
def test_the_line_of_the_cause_is_in_the_excerpt_once(known):
    found = evidence((caused(GENERAL), 1.0), (caused(), 2.0))
    others = [(None, f"line {number}") for number in range(MAX_LINES + 9)]
    assert found.excerpt([(None, known), *others[:3]], [])[0] == known
    lines = found.excerpt([(None, known), *others], [])
    assert len(lines) == MAX_LINES
    assert lines[0] == "specific"
    assert lines[-1] == others[-1][1]


def test_without_text_the_excerpt_has_none():
    found = evidence((Caused(SPECIFIC, ""), 1.0))
    assert found.excerpt([], []) == ()


def test_what_is_kept_is_bounded():
    drops = Drops()
    found = LogEvidence(drops)
    for pid in range(MAX_ENTRIES + 3):
        for _ in range(3):
            found.note(mark(DEATH, pid=pid), FILES, 1.0)
    assert len(found._entries) == MAX_ENTRIES
    assert set(drops) == {"log_marks"}


# What the load survived.


def went_on(*writers: int | None, **facts) -> WentOn:
    return WentOn(writers, **facts)


@pytest.mark.parametrize(
    ("cause_facts", "went_on_facts", "stands"),
    [
        ({"writer": 5}, {"writers": (5,)}, False),
        ({"writer": 5}, {"writers": (6, None)}, True),
        ({}, {"writers": (6, None)}, False),
        ({"writer": 5, "log": 1}, {"writers": (5,)}, True),
        ({}, {"writers": (None,), "pid": 9}, True),
    ],
)
def test_a_cause_after_which_its_process_went_on_is_none(cause_facts, went_on_facts, stands):
    found = evidence((caused(**cause_facts), 2.0), (WentOn(**went_on_facts), 1.0), pids=[5, 6])
    assert (found.cause() is not None) is stands


def test_a_cause_that_comes_again_after_it_went_on_stands():
    assert cause((caused(), 1.0), (went_on(None), 1.0), (caused(), 1.0)) == "specific"
    assert cause((caused(), 1.0), (went_on(None), 1.0), (caused(GENERAL), 1.0)) == "general"


def test_the_same_cause_of_two_processes_is_two():
    found = evidence((caused(writer=1), 1.0), (caused(writer=2), 1.0), (went_on(1), 1.0))
    assert found.cause() is not None


def test_marks_and_the_other_log_are_not_taken_away():
    found = evidence((mark(DEATH), 1.0))
    found.note(caused(), JOURNAL, 1.0)
    found.note(went_on(None), FILES, 1.0)
    assert found.deciding() is not None
    assert found.cause() is not None
    found.note(went_on(None, pid=99), JOURNAL, 1.0)
    assert found.cause() is None
