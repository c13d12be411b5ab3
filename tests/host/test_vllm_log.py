"""Following the logs of real processes, on files that grow, shrink, turn and vanish."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.host.log_scene import (
    FATAL,
    LOST,
    NO_MEMORY,
    NO_PORT,
    STOPPED,
    Drops,
    Reader,
    append,
    line,
)
from vllm_agent.demo.launch import StandIn
from vllm_agent.host.log_file import (
    MAX_READ_BYTES,
    MAX_TAIL_BYTES,
    NotAFileError,
)
from vllm_agent.host.log_findings import Caused
from vllm_agent.host.proc import Proc
from vllm_agent.host.vllm_log import (
    Logs,
    LogTail,
    Source,
    _is_written,
    configured_logs,
    find_logs,
)
from vllm_agent.host.vllm_markers import Marked, MarkKind, decisive
from vllm_agent.observations import (
    LogProgress,
    ProcessId,
    Sight,
    Sighting,
    SightKind,
    Stage,
    VllmCommand,
)

CONTAINER = "4" * 64


def tail_of(path: Path, drops: Drops | None = None, **facts) -> LogTail:
    facts = {"started_unix_seconds": 0.0, "is_new": True} | facts
    return LogTail(Source(path=str(path), **facts), Drops() if drops is None else drops)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "vllm.log"
    path.write_bytes(b"")
    return path


def names(tail: LogTail | Logs, *pids: int) -> list[str]:
    return [mark.name for mark in Reader().read(tail, pids)]


def test_markers_come_once_and_in_order(log):
    with tail_of(log) as tail:
        assert names(tail) == []
        append(log, line(FATAL) + b"INFO:     else\n" + line(LOST))
        assert names(tail) == ["engine failed", "API server lost its engine"]
        assert names(tail) == []
        append(log, line(STOPPED))
        [mark] = Reader().read(tail)
        assert mark.kind is MarkKind.STOP
        assert mark.at_seconds is None
        assert mark.written_seconds == pytest.approx(time.time(), abs=5)


def test_what_was_there_before_a_new_launch_is_not_its_own(log):
    append(log, line(LOST))
    with tail_of(log) as tail:
        append(log, line(FATAL))
        assert names(tail) == ["engine failed"]


def test_a_new_launch_may_begin_in_the_middle_of_a_line(log):
    append(log, line(LOST)[:-20])
    with tail_of(log) as tail:
        append(log, line(LOST)[-20:] + line(FATAL))
        assert names(tail) == ["engine failed"]


def test_a_line_is_read_when_it_has_ended(log):
    with tail_of(log) as tail:
        append(log, line(LOST)[:-1])
        assert names(tail) == []
        append(log, b"\n")
        assert names(tail) == ["API server lost its engine"]


def test_a_line_of_another_process_is_another_launchs(log):
    with tail_of(log) as tail:
        append(log, line(LOST, pid=5) + line(FATAL, pid=6))
        assert names(tail, 6, 7) == ["engine failed"]


def test_the_pids_of_another_namespace_tell_nothing(log):
    with tail_of(log, has_host_pids=False) as tail:
        append(log, line(LOST, pid=1))
        assert names(tail, 4711) == ["API server lost its engine"]


# A launch that began before the agent.


def test_looking_back_takes_what_has_a_pid_of_the_launch(log):
    append(log, line(LOST, pid=5) + line(FATAL, pid=6) + b"AsyncLLM output_handler failed.\n")
    with tail_of(log, is_new=False) as tail:
        assert names(tail, 6) == ["engine failed"]


def test_looking_back_goes_by_stamps_where_pids_tell_nothing(log):
    now = time.time()
    append(log, line(LOST, pid=1, at=now - 100) + line(FATAL, pid=1, at=now))
    with tail_of(log, is_new=False, has_host_pids=False, started_unix_seconds=now - 50) as tail:
        assert names(tail) == ["engine failed"]


def test_looking_back_stops_where_the_launch_begins(log):
    append(log, line(LOST) + line("non-default args: {'port': 1}") + line(FATAL))
    with tail_of(log, is_new=False) as tail:
        assert names(tail) == ["engine failed"]


def test_looking_back_is_over_after_the_first_read(log):
    append(log, b"INFO:     something\n")
    with tail_of(log, is_new=False) as tail:
        names(tail)
        append(log, line(LOST) + line("non-default args: {'port': 1}"))
        assert names(tail) == ["API server lost its engine"]


def test_looking_back_is_bounded(log):
    append(log, line(FATAL, pid=6) + b"x" * 99 + b"\n")
    append(log, (b"y" * 127 + b"\n") * (MAX_TAIL_BYTES // 128))
    drops = Drops()
    with tail_of(log, drops, is_new=False) as tail:
        append(log, line(LOST, pid=6))
        assert names(tail, 6) == ["API server lost its engine"]
    assert drops == []


def test_looking_back_at_exactly_the_bound_loses_no_line(log):
    first = line(FATAL, pid=6)
    append(log, b"0123\n" + first + b"z" * (MAX_TAIL_BYTES - len(first) - 1) + b"\n")
    with tail_of(log, is_new=False) as tail:
        assert names(tail, 6) == ["engine failed"]


def test_looking_back_takes_bare_lines_with_the_line_above_them(log):
    """For causes and the load; what ends a launch is not judged by them."""
    bare = b"Loading safetensors checkpoint shards:  50% Completed | 3/6 [00:01<00:01,  2it/s]\n"
    append(log, b"ValueError: of another\n" + line("Starting to load model x...", pid=6) + bare)
    append(log, f"{NO_PORT}\n{LOST}\n".encode() + line("else", pid=5) + NO_MEMORY.encode() + b"\n")
    reader = Reader()
    with tail_of(log, is_new=False) as tail:
        assert reader.read(tail, (6,), is_loading=True) == []
    assert reader.causes == ["address already in use"]
    assert reader.told.progress == LogProgress(Stage.LOAD_WEIGHTS, 4, 3, 6)


def test_looking_back_takes_them_of_a_launch_that_serves_too(log):
    """Though most lines are not looked at then."""
    append(log, line("x", pid=5, level="INFO") + f"{NO_MEMORY}\n".encode())
    append(log, line("x", pid=6, level="INFO") + f"{NO_PORT}\n".encode())
    reader = Reader()
    with tail_of(log, is_new=False) as tail:
        reader.read(tail, (6,))
    assert reader.causes == ["address already in use"]


def test_looking_back_at_a_launch_that_began_just_now_takes_what_has_its_pid(log):
    """The stamps of the launch before may be of the same second."""
    append(log, line(LOST, pid=5) + f"{NO_PORT}\n".encode())
    append(log, line("Resolved architecture: x", pid=6) + f"{NO_MEMORY}\n".encode())
    reader = Reader()
    with tail_of(log) as tail:
        append(log, line("Starting to load model x...", pid=7) + b"bare\n")
        assert reader.read(tail, (6,), is_loading=True) == []
    assert reader.causes == ["the GPU is out of memory"]
    assert reader.told.progress.stage is Stage.LOAD_WEIGHTS
    assert reader.told.progress.new_lines == 4


def test_a_line_of_a_process_that_is_not_known_yet_keeps_its_pid(log):
    reader = Reader()
    with tail_of(log) as tail:
        append(log, line(LOST, pid=5))
        assert reader.read(tail, (6,)) == []
    [mark] = reader.found
    assert isinstance(mark, Marked)
    assert (mark.pid, mark.name) == (5, "API server lost its engine")


# Files that do not only grow.


def test_processes_are_told_from_each_other_where_their_pids_mean_nothing_here(log):
    with tail_of(log, has_host_pids=False) as tail:
        append(log, line(NO_MEMORY, pid=1) + line(NO_MEMORY, pid=2))
        reader = Reader()
        reader.read(tail)
    found = [(one.pid, one.writer) for one in reader.found if isinstance(one, Caused)]
    assert found == [(None, 1), (None, 2)]


def test_a_truncated_file_is_read_from_its_beginning(log):
    with tail_of(log) as tail:
        append(log, line(LOST) * 3)
        names(tail)
        os.truncate(log, 0)
        append(log, line(FATAL))
        assert names(tail) == ["engine failed"]


def test_a_truncated_file_that_grew_beyond_where_it_was_is_noticed(log):
    with tail_of(log) as tail:
        append(log, line("short"))
        names(tail)
        os.truncate(log, 0)
        append(log, line(FATAL) + line("more and more"))
        assert names(tail) == ["engine failed"]


def test_a_writer_without_append_leaves_zeros_when_its_file_is_truncated(log):
    with log.open("wb", buffering=0) as writer, tail_of(log) as tail:
        writer.write(line("x") * 1000)
        names(tail)
        os.truncate(log, 0)
        writer.write(line(LOST))
        assert names(tail) == ["API server lost its engine"]


def test_a_file_that_is_truncated_before_the_first_read_is_read_anew(log):
    append(log, b"x" * (MAX_TAIL_BYTES * 2))
    with tail_of(log, is_new=False) as tail:
        os.truncate(log, 0)
        append(log, line(FATAL, pid=6))
        assert names(tail, 6) == ["engine failed"]


def test_a_rotated_file_is_followed_by_its_name(log):
    drops = Drops()
    with tail_of(log, drops, is_rotated=True) as tail:
        append(log, line(LOST))
        log.rename(log.with_suffix(".1"))
        assert names(tail) == ["API server lost its engine"]
        append(log.with_suffix(".1"), line(FATAL))
        append(log, line(STOPPED))
        assert names(tail) == ["engine failed", "API server told to stop"]
        append(log, line(LOST))
        assert names(tail) == ["API server lost its engine"]
    assert drops == []


def test_a_file_that_is_held_open_is_read_on_after_its_removal(log):
    with log.open("ab", buffering=0) as writer, tail_of(log, is_rotated=True) as tail:
        log.unlink()
        writer.write(line(LOST))
        assert names(tail) == ["API server lost its engine"]


def test_something_else_in_the_place_of_a_rotated_file_is_not_opened(log):
    drops = Drops()
    with tail_of(log, drops, is_rotated=True) as tail:
        log.unlink()
        os.mkfifo(log)
        assert names(tail) == []
        assert drops == ["log_read"]


def test_a_disk_error_is_counted_and_survived(log, monkeypatch):
    drops = Drops()
    with tail_of(log, drops) as tail:
        append(log, line(LOST))
        with monkeypatch.context() as broken:
            broken.setattr(os, "pread", lambda *_: (_ for _ in ()).throw(OSError(5, "I/O error")))
            assert names(tail) == []
        assert drops == ["log_read"]
        assert names(tail) == ["API server lost its engine"]


# Bounds.


def test_of_a_gigabyte_only_the_newest_part_is_read(log):
    drops = Drops()
    with tail_of(log, drops) as tail:
        append(log, line(FATAL))
        os.truncate(log, 1 << 30)
        append(log, b"\n" + line(LOST))
        assert names(tail) == ["API server lost its engine"]
        assert drops == ["log_bytes"]
        append(log, line(FATAL))
        assert names(tail) == ["engine failed"]


def test_a_gigabyte_that_was_there_before_costs_nothing(log, monkeypatch):
    os.truncate(log, 1 << 30)
    append(log, b"\n" + line(LOST, pid=6))
    asked = watch_reads(monkeypatch)
    with tail_of(log, is_new=False) as tail:
        assert names(tail, 6) == ["API server lost its engine"]
    assert sum(asked) <= MAX_TAIL_BYTES + 1000


def test_a_line_without_an_end_is_not_kept(log):
    with tail_of(log) as tail:
        append(log, line(LOST)[:-1] + b"x" * 100_000)
        assert names(tail) == ["API server lost its engine"]
        assert len(tail._file._rest) == 0
        append(log, b"x" * 100_000)
        assert names(tail) == []
        append(log, b"\n" + line(FATAL))
        assert names(tail) == ["engine failed"]


def test_a_log_that_grows_as_fast_as_it_can_does_not_hold_a_read(log, monkeypatch):
    chunk = line("x") * 20_000
    asked = watch_reads(monkeypatch)
    stop = threading.Event()

    def flood() -> None:
        with log.open("ab", buffering=0) as file:
            while not stop.is_set() and file.tell() < 1 << 28:
                file.write(chunk)

    writer = threading.Thread(target=flood)
    with tail_of(log) as tail:
        writer.start()
        try:
            for _ in range(20):
                asked.clear()
                names(tail)
                assert asked
                assert sum(asked) <= MAX_READ_BYTES + 1000
        finally:
            stop.set()
            writer.join()
        append(log, line(LOST))
        assert names(tail) == ["API server lost its engine"]


def watch_opens(monkeypatch) -> list[str]:
    """The paths of all files that are opened from now on."""
    opened: list[str] = []
    really_open = os.open

    def note(path: str, *flags: int) -> int:
        opened.append(path)
        return really_open(path, *flags)

    monkeypatch.setattr(os, "open", note)
    return opened


def watch_reads(monkeypatch) -> list[int]:
    """How many bytes are asked for with each read of a file from now on."""
    asked: list[int] = []
    really_read = os.pread

    def note(file: int, count: int, place: int) -> bytes:
        asked.append(count)
        return really_read(file, count, place)

    monkeypatch.setattr(os, "pread", note)
    return asked


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "socket"])
def test_what_is_no_regular_file_is_not_opened(tmp_path, monkeypatch, kind):
    path = tmp_path / "log"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    else:
        path = Path("/dev/null")
    opened = watch_opens(monkeypatch)
    with pytest.raises(NotAFileError):
        tail_of(path)
    assert opened == []


def test_a_file_that_turns_into_a_fifo_while_it_is_opened_does_not_block(log, monkeypatch):
    stat = os.stat

    def turn(path):
        found = stat(path)
        log.unlink()
        os.mkfifo(log)
        return found

    monkeypatch.setattr(os, "stat", turn)
    with pytest.raises(NotAFileError):
        tail_of(log)


def test_the_bounds_are_those_of_the_design():
    assert MAX_TAIL_BYTES == 256 * 1024
    assert MAX_READ_BYTES == 4 * 1024 * 1024


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 3)),
        st.tuples(st.just("part"), st.integers(1, 60)),
        st.tuples(st.just("noise"), st.integers(0, 3000)),
        st.tuples(st.just("truncate"), st.just(0)),
        st.tuples(st.just("rotate"), st.just(0)),
        st.tuples(st.just("read"), st.just(0)),
    ),
    max_size=30,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(STEPS)
def test_each_marker_is_seen_once_whatever_happens_to_the_file(tmp_path, steps):
    """Except what was removed before it could be read, or was not a whole line."""
    path = tmp_path / "log"
    path.write_bytes(b"")
    number = 0
    expected: list[int] = []
    unread: list[int] = []
    seen: list[float] = []
    pending = b""  # the part of a line that was not yet written
    since = int(time.time()) - 1000

    def whole() -> bytes:
        nonlocal number
        number += 1
        # A time of its own makes each line different, and is told back by its mark.
        return line(LOST, at=since + number)

    with tail_of(path, is_rotated=True) as tail:

        def read() -> None:
            seen.extend(mark.written_seconds or 0 for mark in Reader().read(tail))
            expected.extend(unread)
            unread.clear()

        for action, count in [*steps, ("read", 0)]:
            if action == "write":
                for _ in range(count):
                    if pending:
                        append(path, pending)
                        pending = b""
                        unread.append(number)
                    append(path, whole())
                    unread.append(number)
            elif action == "part" and not pending:
                text = whole()
                append(path, text[:count])
                pending = text[count:]
            elif action == "noise" and not pending:
                append(path, b"n" * count + f" {number}\n".encode())
            elif action == "truncate":
                # copytruncate: what was not read is gone, as the beginning of the open line is
                read()
                os.truncate(path, 0)
                pending = b""
            elif action == "rotate":
                read()
                path.rename(tmp_path / "log.1")
                path.write_bytes(b"")
                pending = b""
                read()
            elif action == "read":
                read()
    assert seen == [since + number for number in expected]


# Containers.


def wrapped(message: str, form: str, at: float) -> bytes:
    moment = (
        datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "")
    )
    text = line(message, pid=1).decode()
    if form == "docker":
        record = {"log": text, "stream": "stdout", "time": f"{moment}123Z"}
        return json.dumps(record).encode() + b"\n"
    return f"{moment}123+00:00 stdout F {text}".encode()


@pytest.mark.parametrize("form", ["docker", "cri"])
def test_the_log_of_a_container_has_the_launches_before_it_too(log, form):
    now = time.time()
    append(log, wrapped(LOST, form, now - 60) + b"{nonsense\n" + b"{}\n" + b"LOST\n")
    append(log, wrapped(FATAL, form, now))
    append(log, b'{"log": "AsyncLLM output_handler failed.", "time": "yesterday"}\n')
    with tail_of(
        log, is_new=False, is_wrapped=True, has_host_pids=False, started_unix_seconds=now - 30
    ) as tail:
        [mark] = Reader().read(tail)
    assert mark.name == "engine failed"
    assert mark.written_seconds == pytest.approx(now, abs=0.001)


@pytest.mark.parametrize("form", ["docker", "cri"])
def test_the_rest_of_a_line_in_an_envelope_is_no_line(log, form):
    """Runtimes cut lines at 16 kB: what comes next may be somebody's prompt."""

    def part(text: str, tag: str, stream: str = "stdout") -> bytes:
        if form == "docker":
            end = "\n" if tag == "F" else ""
            record = {"log": text + end, "stream": stream, "time": "2026-11-23T09:06:16Z"}
            return json.dumps(record).encode() + b"\n"
        return f"2026-11-23T09:06:16Z {stream} {tag} {text}\n".encode()

    with tail_of(log, is_wrapped=True, has_host_pids=False) as tail:
        append(log, part("(APIServer pid=1) INFO 11-23 09:06:58 [x.py:1] prompt: ", "P"))
        append(log, part(LOST, "P") + part(FATAL, "F", "stderr"))
        assert names(tail) == ["engine failed"]
        append(log, part(LOST, "F") + part(LOST, "F"))
        assert names(tail) == ["API server lost its engine"]


def test_a_line_of_16_kilobytes_that_is_escaped_in_its_envelope_is_read(log):
    text = line(LOST, pid=1).decode().strip() + "\x01" * 16_000
    with tail_of(log, is_wrapped=True, has_host_pids=False) as tail:
        append(log, json.dumps({"log": text + "\n", "time": "2026-11-23T09:06:16Z"}).encode())
        append(log, b"\n")
        assert names(tail) == ["API server lost its engine"]


# A log that the configuration names.


def configured(path: Path, drops: Drops | None = None, **facts) -> Logs:
    facts = {"is_new": True} | facts
    return configured_logs(
        Proc(), sighting_of(os.getpid()), str(path), Drops() if drops is None else drops, **facts
    )


def test_a_configured_log_is_followed_across_rotation(log):
    logs = configured(log)
    assert logs.sight == Sight(SightKind.LOG, is_visible=True)
    append(log, line(LOST))
    log.rename(log.with_suffix(".1"))
    append(log, line(FATAL))
    assert names(logs) == ["API server lost its engine", "engine failed"]
    logs.close()


@pytest.mark.parametrize("form", ["plain", "docker", "cri"])
def test_a_configured_log_may_have_envelopes(log, form):
    logs = configured(log)
    append(log, line(LOST) if form == "plain" else wrapped(LOST, form, time.time()))
    assert names(logs) == ["API server lost its engine"]
    logs.close()


def test_a_configured_log_has_the_launches_before_it_too(log):
    append(log, line(LOST, at=time.time() - 3600) + line("x", at=time.time() - 3600))
    append(log, line(FATAL, pid=6))
    logs = configured(log, is_new=False)
    assert names(logs) == ["engine failed"]
    logs.close()


def test_a_configured_log_that_is_not_there_is_told(tmp_path):
    path = tmp_path / "later.log"
    logs = configured(path)
    assert logs.tails == ()
    assert logs.is_missing
    assert not logs.sight.is_visible
    assert "No such file" in logs.sight.why_not
    append(path, line(LOST))
    logs = configured(path, was_missing=True)
    assert names(logs) == ["API server lost its engine"]
    logs.close()


def test_a_configured_log_that_is_a_fifo_is_not_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    opened = watch_opens(monkeypatch)
    logs = configured(tmp_path / "fifo")
    assert (logs.tails, logs.is_missing) == ((), False)
    assert str(tmp_path / "fifo") not in opened
    assert "regular file" in logs.sight.why_not


def sighting_of(pid: int, **facts) -> Sighting:
    proc = Proc()
    stat = proc.stat(pid)
    process = ProcessId(proc.boot_id, pid, 0) if stat is None else proc.identify(stat)
    facts = {"start_seconds": time.time() - 1, "uid": os.geteuid(), "session": pid} | facts
    return Sighting(process=process, command=VllmCommand(), **facts)


def find(pid: int, drops: Drops | None = None, *, root: Path = Path("/nowhere"), **facts) -> Logs:
    return find_logs(
        Proc(),
        sighting_of(pid, **facts),
        Drops() if drops is None else drops,
        is_new=True,
        root=root,
    )


SLEEPER = [sys.executable, "-c", "import sys; sys.stdin.read()"]


class Sleeper:
    """A process with an output of its own, which ends when its input does."""

    def __init__(self, stdout, stderr=None) -> None:
        self._process = subprocess.Popen(
            SLEEPER, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr or stdout
        )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def test_the_output_of_a_process_is_found_once_if_both_streams_share_a_file(log):
    with log.open("ab") as file, Sleeper(file) as process:
        logs = find(process.pid)
        assert len(logs.tails) == 1
        assert logs.sight.kind is SightKind.LOG
        assert logs.sight.is_visible
        append(log, line(LOST, pid=process.pid))
        assert names(logs, process.pid) == ["API server lost its engine"]
        logs.close()


def test_two_files_are_both_followed(tmp_path):
    with (
        (tmp_path / "out").open("ab") as out,
        (tmp_path / "err").open("ab") as err,
        Sleeper(out, err) as process,
    ):
        logs = find(process.pid)
        append(tmp_path / "err", line(LOST))
        append(tmp_path / "out", line(FATAL))
        assert names(logs) == ["engine failed", "API server lost its engine"]
        logs.close()


OPENER = """
import os, sys
file = os.open(sys.argv[1], eval(sys.argv[2]))
os.dup2(file, 1)
os.dup2(file, 2)
os.set_blocking(0, True)
os.write(int(sys.argv[3]), b"x")
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("flags", "is_output"),
    [
        ("os.O_PATH", False),
        ("os.O_RDONLY", False),
        ("os.O_WRONLY | os.O_APPEND", True),
        ("os.O_RDWR", True),
    ],
)
def test_what_a_process_cannot_write_to_is_not_its_output(log, monkeypatch, flags, is_output):
    reading, writing = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", OPENER, str(log), flags, str(writing)],
        stdin=subprocess.PIPE,
        pass_fds=[writing],
    ) as process:
        os.close(writing)
        assert os.read(reading, 1)
        os.close(reading)
        opened = watch_opens(monkeypatch)
        drops = Drops()
        logs = find(process.pid, drops)
        process.communicate()
    assert [logs.sight.is_visible, len(logs.tails)] == [is_output, is_output]
    assert any("/fd/" in path for path in opened) is is_output
    assert drops == []
    logs.close()


@pytest.mark.parametrize(
    ("info", "is_written"),
    [
        (b"pos:\t0\nflags:\t0100001\nmnt_id:\t27\n", True),
        (b"pos:\t0\nflags:\t010000001\nmnt_id:\t27\n", False),
        (b"pos:\t0\nmnt_id:\t27\n", False),
        (b"", False),
    ],
)
def test_whether_a_file_is_written_is_told_by_its_flags(info, is_written):
    assert _is_written(info) is is_written


def test_another_file_in_the_place_of_the_output_is_not_read(log, monkeypatch):
    """It may be put there between the look at it and the moment that it is opened."""
    secret = log.with_name("secret")
    secret.write_bytes(line(LOST))
    real = os.open

    def swapped(path: str, *facts: int) -> int:
        return real(str(secret) if "/fd/" in path else path, *facts)

    drops = Drops()
    with log.open("ab") as file, Sleeper(file) as process:
        monkeypatch.setattr("vllm_agent.host.log_file.os.open", swapped)
        logs = find(process.pid, drops)
    assert logs.tails == ()
    assert drops == ["log_open"]


def test_an_output_of_which_nothing_is_told_is_not_opened(log, monkeypatch):
    monkeypatch.setattr("vllm_agent.host.vllm_log.read_small", lambda _: None)
    with log.open("ab") as file, Sleeper(file) as process:
        logs = find(process.pid)
    assert logs.tails == ()
    assert "may not look" in logs.sight.why_not


def test_a_log_that_was_removed_is_followed_still(log):
    with log.open("ab", buffering=0) as file, Sleeper(file) as process:
        log.unlink()
        logs = find(process.pid)
        file.write(line(LOST))
        assert names(logs) == ["API server lost its engine"]
        logs.close()


def test_a_fifo_or_a_device_as_output_is_never_opened(tmp_path, monkeypatch):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with fifo.open("r+b", buffering=0) as both, Sleeper(both, subprocess.DEVNULL) as process:
        opened = watch_opens(monkeypatch)
        drops = Drops()
        logs = find(process.pid, drops)
    assert logs.tails == ()
    assert not [path for path in opened if "/fd/" in path]
    assert drops == []
    assert not logs.sight.is_visible
    assert "pipe" in logs.sight.why_not
    assert ">>" in logs.sight.fix


def test_a_process_that_is_gone_has_no_log():
    with Sleeper(subprocess.DEVNULL) as process:
        pid = process.pid
    assert find(pid).tails == ()


def test_a_unit_whose_output_is_a_socket_logs_to_the_journal():
    ours, its = socket.socketpair()
    with ours, its, Sleeper(its) as process:
        assert find(process.pid, unit="vllm.service").is_in_journal
        assert not find(process.pid).is_in_journal


def test_a_journal_that_cannot_be_asked_is_told(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    ours, its = socket.socketpair()
    with ours, its, Sleeper(its) as process:
        sight = find(process.pid, unit="vllm.service").sight
    assert not sight.is_visible
    assert "journalctl" in sight.why_not


def test_output_that_may_not_be_looked_at_is_told(monkeypatch):
    def deny(path: str) -> os.stat_result:
        raise PermissionError(path)

    monkeypatch.setattr(os, "stat", deny)
    sight = find(1, uid=1234).sight
    assert not sight.is_visible
    assert "1234" in sight.fix
    assert "CAP_SYS_PTRACE" in sight.fix


CONTAINER_FILES = [
    f"var/lib/docker/containers/{CONTAINER}/{CONTAINER}-json.log",
    f"var/log/containers/pod_space_vllm-{CONTAINER}.log",
    f"var/lib/containers/storage/overlay-containers/{CONTAINER}/userdata/ctr.log",
]


@pytest.mark.parametrize("name", CONTAINER_FILES)
def test_the_log_of_a_container_is_found(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    with Sleeper(subprocess.DEVNULL) as process:
        logs = find(process.pid, root=tmp_path, container_id=CONTAINER)
    assert logs.sight.is_visible
    append(path, wrapped(LOST, "docker" if "json" in name else "cri", time.time()))
    assert names(logs, 4711) == ["API server lost its engine"]
    logs.close()


def test_a_container_without_a_log_file_is_told(tmp_path):
    with Sleeper(subprocess.DEVNULL) as process:
        sight = find(process.pid, root=tmp_path, container_id=CONTAINER).sight
    assert not sight.is_visible
    assert "/var/lib/docker" in sight.fix


def test_a_log_that_cannot_be_opened_is_counted(log, monkeypatch):
    drops = Drops()
    with log.open("ab") as file, Sleeper(file) as process:

        def refuse(path: str, *facts: int) -> int:
            if "/fd/" in path:
                raise PermissionError
            return real(path, *facts)

        real = os.open

        with monkeypatch.context() as broken:
            broken.setattr("vllm_agent.host.vllm_log.os.open", refuse)
            broken.setattr("vllm_agent.host.proc.Proc.inner_pid", lambda _, pid: pid)
            logs = find(process.pid, drops)
    assert logs.tails == ()
    assert drops == ["log_open"]


def test_a_pid_is_the_same_in_the_hosts_namespace():
    assert Proc().inner_pid(os.getpid()) == os.getpid()
    assert Proc().inner_pid(1 << 30) is None


@pytest.mark.parametrize(
    ("ending", "kind"), [("term-idle", MarkKind.STOP), ("kill_engine-idle", MarkKind.DEATH)]
)
def test_the_log_of_a_server_says_how_it_ended(log, ending, kind):
    way = ending.split("-")[0]
    with StandIn.start("--speed", "20", "--ending", way, log=log) as server:
        logs = find(server.pid, start_seconds=time.time() - 1)
        server.wait()
        mark = decisive(Reader().read(logs))
        logs.close()
    assert mark is not None
    assert mark.kind is kind
