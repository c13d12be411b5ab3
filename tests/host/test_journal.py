"""What the journal has of a unit: from a journal of a real journald, and from bad programs."""

from __future__ import annotations

import json
import lzma
import os
import shlex
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.host.log_scene import NO_PORT, Drops, Reader
from vllm_agent.host import journal
from vllm_agent.host.journal import MAX_RECORD_BYTES, JournalTail, UnitInJournal, _Records
from vllm_agent.host.log_findings import Caused
from vllm_agent.host.vllm_markers import Marked, MarkKind, decisive

if TYPE_CHECKING:
    from vllm_agent.host.log_findings import WentOn

# Two lives of vllm.service: its engine is killed and systemd starts it again, then it is stopped.
# After it, a vllm.service of the systemd of user 1000 is started and stopped. Between them, two
# records that are none of theirs: other.service is stopped, and a process of forger.service says
# that vllm.service is.
RECORDING = Path(__file__).parents[1] / "testdata" / "logs" / "unit.journal.xz"
BOOT = "4e356ce1-7287-4895-bfba-e7da2d708273"
UNIX_OFFSET_SECONDS = 1795445970.238528 - 13469.964466  # between the clocks of the recording
STOP, DEATH = MarkKind.STOP, MarkKind.DEATH


@pytest.fixture(scope="module")
def journalctl(tmp_path_factory) -> tuple[str, str]:
    path = tmp_path_factory.mktemp("journal") / "system.journal"
    path.write_bytes(lzma.decompress(RECORDING.read_bytes()))
    return "journalctl", f"--file={path}"


def drop_nothing(kind: str) -> None:
    pytest.fail(kind)


@dataclass(frozen=True)
class JournalRead:
    """The marks of a unit, in order; None and a sentence where the journal cannot be read."""

    marks: tuple[Marked, ...] | None
    why_not: str = ""


def tail(
    journalctl, *, unit="vllm.service", since=0.0, boot=BOOT, drops=drop_nothing, uid=None
) -> JournalTail:
    return JournalTail(UnitInJournal(unit, boot, uid), since, drops, journalctl=journalctl)


async def read_on(log: JournalTail, reader: Reader | None = None, **look: bool) -> JournalRead:
    reader = Reader() if reader is None else reader
    reader.findings.begin_look(is_loading=look.get("is_loading", False))
    why_not = await log.read(reader.findings)
    reader.told = reader.findings.told()
    reader.found += reader.told.findings
    if why_not:
        return JournalRead(None, why_not)
    return JournalRead(tuple(one for one in reader.told.findings if isinstance(one, Marked)))


async def read(journalctl, **facts) -> JournalRead:
    return await read_on(tail(journalctl, **facts))


def parse_journal(
    output: bytes, since: float, *, piece: int = 1 << 20
) -> tuple[Marked | Caused | WentOn, ...]:
    reader = Reader()
    records = _Records(reader.findings, since, None)
    for place in range(0, len(output), piece):
        records.feed(output[place : place + piece])
    return reader.findings.told().findings


def names(found: JournalRead) -> list[str]:
    assert found.marks is not None
    return [mark.name for mark in found.marks]


DIED = ["engine vanished", "API server lost its engine", "engine failed"]


@pytest.mark.needs("journalctl")
async def test_all_that_a_unit_and_systemd_about_it_logged_is_found(journalctl):
    found = await read(journalctl)
    assert names(found)[:3] == DIED
    assert names(found)[3] == "systemd told to stop the unit"
    assert set(names(found)[4:]) == {"API server told to stop"}


@pytest.mark.needs("journalctl")
async def test_moments_are_exact_and_in_order(journalctl):
    found = await read(journalctl)
    assert found.marks is not None
    moments = [mark.at_seconds for mark in found.marks]
    assert None not in moments
    assert moments == sorted(moments, key=lambda moment: moment or 0)
    assert moments[3] is not None
    assert moments[0] is not None
    assert moments[3] - moments[0] == pytest.approx(3.56, abs=0.01)


@pytest.mark.needs("journalctl")
async def test_an_earlier_launch_lends_nothing(journalctl):
    both = await read(journalctl)
    assert both.marks is not None
    between = (both.marks[3].at_seconds or 0) - 0.5 + UNIX_OFFSET_SECONDS
    found = await read(journalctl, since=between)
    assert found.marks == both.marks[3:]
    mark = decisive(found.marks)
    assert mark is not None
    assert mark.kind is STOP


@pytest.mark.needs("journalctl")
async def test_whole_seconds_of_journalctl_are_cut_to_the_moment(journalctl):
    both = await read(journalctl)
    assert both.marks is not None
    after = (both.marks[3].at_seconds or 0) + 0.000_1 + UNIX_OFFSET_SECONDS
    assert (await read(journalctl, since=after)).marks == both.marks[4:]


@pytest.mark.needs("journalctl")
async def test_another_boot_has_nothing(journalctl):
    assert (await read(journalctl, boot=BOOT.replace("4", "5"))).marks == ()


@pytest.mark.needs("journalctl")
async def test_a_unit_of_a_user_is_another_one(journalctl):
    found = await read(journalctl, uid=1000)
    assert names(found) == ["systemd told to stop the unit", "API server told to stop"]
    assert (await read(journalctl, uid=1001)).marks == ()


@pytest.mark.needs("journalctl")
@pytest.mark.parametrize("unit", ["none.service", "", "--help", "a b;c"])
async def test_a_unit_that_never_was_has_nothing(journalctl, unit):
    assert (await read(journalctl, unit=unit)).marks == ()


@pytest.mark.needs("journalctl")
async def test_a_journal_that_is_not_there_is_told(tmp_path):
    found = await read(("journalctl", f"--file={tmp_path}/none.journal"))
    assert found.marks is None
    assert "No such file" in found.why_not


def program(folder: Path, script: str) -> tuple[str, ...]:
    path = folder / "journalctl"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return (str(path),)


async def test_a_missing_program_is_told(tmp_path):
    found = await read((str(tmp_path / "journalctl"),))
    assert found == JournalRead(
        None, f"{tmp_path}/journalctl cannot be started: No such file or directory"
    )


async def test_a_program_that_fails_is_quoted(tmp_path):
    found = await read(program(tmp_path, "echo 'No journal files were opened.' >&2; exit 1"))
    assert found == JournalRead(None, "No journal files were opened.")


async def test_messages_of_others_that_may_not_be_read_are_not_taken_for_none(tmp_path):
    hint = "Hint: You are currently not seeing messages from other users and the system."
    found = await read(program(tmp_path, f"echo '{hint}' >&2"))
    assert found.marks is None
    assert "its own user's messages only" in found.why_not


async def test_a_program_that_hangs_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "DEADLINE_SECONDS", 0.3)
    script = f"echo $$ >{shlex.quote(str(tmp_path))}/pid; exec sleep 60"
    found = await read(program(tmp_path, script))
    assert found.marks is None
    assert "did not answer" in found.why_not
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


async def test_more_than_is_read_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "MAX_JOURNAL_BYTES", 1000)
    drops = Drops()
    found = await read(program(tmp_path, "exec yes"), drops=drops)
    assert found.marks == ()
    assert drops == ["journal_bytes"]


async def test_the_arguments_are_bounded_and_name_the_unit(tmp_path):
    script = f'for one in "$@"; do echo "$one"; done >{shlex.quote(str(tmp_path))}/arguments'
    await read(program(tmp_path, script), unit="my vllm.service", since=1795444864.9)
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert "--lines=4000" in arguments
    assert "--since=@1795444864" in arguments
    boot = f"_BOOT_ID={BOOT.replace('-', '')}"
    assert arguments[-6:] == [
        "_SYSTEMD_UNIT=my vllm.service",
        boot,
        "+",
        "UNIT=my vllm.service",
        "_PID=1",
        boot,
    ]


def record(message: object, **fields: object) -> bytes:
    base = {
        "__CURSOR": "s=1;i=1",
        "__REALTIME_TIMESTAMP": "1000000000",
        "__MONOTONIC_TIMESTAMP": "5500000",
    }
    # As journalctl writes it: without spaces.
    return json.dumps(base | {"MESSAGE": message} | fields, separators=(",", ":")).encode() + b"\n"


def test_a_record_is_a_mark_at_its_moment():
    output = record("EngineCore encountered a fatal error.")
    assert parse_journal(output, 0.0) == (Marked(DEATH, "engine failed", 5.5),)


def test_a_coloured_message_comes_as_numbers():
    text = "\x1b[1;36m(EngineCore_0 pid=5)\x1b[0;0m ERROR 11-23 09:06:58 [core.py:7] "
    output = record(list((text + "EngineCore encountered a fatal error.").encode()))
    [mark] = parse_journal(output, 0.0)
    assert isinstance(mark, Marked)
    assert (mark.kind, mark.name, mark.at_seconds) == (DEATH, "engine failed", 5.5)


@pytest.mark.parametrize(
    "output",
    [
        b"",
        b"AsyncLLM output_handler failed.\n",
        b'{"MESSAGE": "AsyncLLM output_handler failed."}\n',
        b'["AsyncLLM output_handler failed."]\n',
        record(None, MESSAGE_ID="x"),
        record([300]),
        record(["a", "b"]),
        record("AsyncLLM output_handler failed.")[:-9],
        record("AsyncLLM output_handler failed.", __MONOTONIC_TIMESTAMP="soon"),
        record("ordinary"),
    ],
)
def test_what_is_no_record_of_a_marker_is_none(output):
    assert parse_journal(output, 0.0) == ()


def test_the_rest_of_a_line_that_journald_cut_is_no_line():
    """It may be somebody's prompt."""
    cut = {"_LINE_BREAK": "line-max"}
    fatal = "EngineCore encountered a fatal error."
    output = record("INFO", **cut) + record(fatal, **cut) + record(fatal) + record(fatal)
    assert len(parse_journal(output, 0.0)) == 1


def test_a_cause_has_the_moment_of_its_record():
    [caused] = parse_journal(record(NO_PORT), 0.0)
    assert isinstance(caused, Caused)
    assert caused.at_seconds == 5.5


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_records_may_come_in_any_pieces(piece):
    output = b"".join(record(message) for message in ("x", NO_PORT, "y", NO_PORT))
    assert len(parse_journal(output, 0.0, piece=piece)) == 1


def test_a_record_without_an_end_is_not_kept():
    reader = Reader()
    records = _Records(reader.findings, 0.0, None)
    for _ in range(100):
        records.feed(b"x" * 10_000)
        assert len(records._rest) <= MAX_RECORD_BYTES + 10_000
    records.feed(b"\n" + record(NO_PORT))
    assert len(reader.findings.told().findings) == 1


@pytest.mark.needs("journalctl")
async def test_nothing_is_read_twice(journalctl):
    log, reader = tail(journalctl), Reader()
    first = await read_on(log, reader, is_loading=True)
    assert len(first.marks or ()) > 4
    lines = reader.told.progress.new_lines
    assert lines > 30
    assert (await read_on(log, reader, is_loading=True)).marks == ()
    assert reader.told.progress.new_lines == lines


def fake_journal(folder: Path, records: list[bytes]) -> tuple[str, ...]:
    """A journalctl that prints the newest of these, and notes how it was called."""
    (folder / "records").write_bytes(b"".join(records))
    return program(
        folder, f'echo "$@" >>{folder}/calls; tail -n {journal.MAX_LINES} {folder}/records'
    )


def numbered(number: int, *, moment: int | None = None) -> bytes:
    at = 1_000_000_000 + (number if moment is None else moment)
    return record(f"{NO_PORT} {'x' * number}", __CURSOR=f"i={number}", __REALTIME_TIMESTAMP=str(at))


async def test_a_read_goes_on_where_the_last_one_ended(tmp_path):
    """Several records may have come in the same microsecond."""
    records = [numbered(number, moment=number // 3) for number in range(10)]
    log, reader = tail(fake_journal(tmp_path, records[:5])), Reader()
    found = []
    for count in (5, 5, 8, 10):
        fake_journal(tmp_path, records[:count])
        await read_on(log, reader, is_loading=True)
        found.append(reader.told.progress.new_lines)
    assert found == [5, 5, 8, 10]
    assert "--since=@1000 " in (tmp_path / "calls").read_text().splitlines()[-1]


async def test_a_read_goes_on_where_what_was_last_is_gone(tmp_path):
    log, reader = tail(fake_journal(tmp_path, [numbered(1), numbered(2)])), Reader()
    await read_on(log, reader, is_loading=True)
    fake_journal(tmp_path, [numbered(3), numbered(4)])
    await read_on(log, reader, is_loading=True)
    assert reader.told.progress.new_lines == 4


async def test_more_records_than_are_read_at_a_time_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "MAX_LINES", 3)
    drops = Drops()
    log, reader = tail(fake_journal(tmp_path, [numbered(1)]), drops=drops), Reader()
    await read_on(log, reader, is_loading=True)
    fake_journal(tmp_path, [numbered(number) for number in range(9)])
    await read_on(log, reader, is_loading=True)
    assert reader.told.progress.new_lines == 4
    assert drops == ["journal_bytes"]


async def test_a_journal_of_megabytes_costs_little_memory(tmp_path):
    """Coloured lines are printed as numbers."""
    line = record([*b"\x1b[31mERROR\x1b[0m it" * 150])
    (tmp_path / "records").write_bytes(line * (5_000_000 // len(line)))
    log, reader = tail(program(tmp_path, f"exec cat {tmp_path}/records")), Reader()
    tracemalloc.start()
    try:
        await read_on(log, reader)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1024 * 1024


@given(st.binary(max_size=300))
def test_any_output_is_read_without_an_error(output):
    assert parse_journal(output + b'\nAsyncLLM output_handler failed."MESSAGE":[', 0.0) == ()
