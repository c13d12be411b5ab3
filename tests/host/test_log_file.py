"""Following a file that grows, shrinks, turns and vanishes, also while another process writes."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import threading
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.host.log_scene import Drops, append
from vllm_agent.host import log_file
from vllm_agent.host.log_file import (
    CHUNK_BYTES,
    MAX_READ_BYTES,
    MAX_TAIL_BYTES,
    LogFile,
    NotAFileError,
)
from vllm_agent.host.log_line import MAX_LINE_BYTES, MAX_WRAPPED_BYTES, lines_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MEBIBYTE = 1024 * 1024


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "vllm.log"
    path.write_bytes(b"")
    return path


@contextlib.contextmanager
def opened(path: Path, drops: Drops | None = None, **facts: bool) -> Iterator[LogFile]:
    file = LogFile(str(path), Drops() if drops is None else drops, **facts)
    try:
        yield file
    finally:
        file.close()


def lines(file: LogFile, max_bytes: int = MAX_READ_BYTES) -> list[bytes]:
    return [
        raw
        for piece in file.pieces(max_bytes)
        for _, raw in lines_of(piece.content, piece.end, [], lambda _: True, piece.max_line_bytes)
    ]


def old_lines(file: LogFile) -> list[bytes]:
    return [
        raw
        for piece in file.pieces(MAX_READ_BYTES)
        for place, raw in lines_of(piece.content, piece.end, [], lambda _: True)
        if place < piece.old_end
    ]


def test_a_chunk_is_what_is_read_at_a_time(log):
    with opened(log) as file:
        append(log, b"0123456\n" * (CHUNK_BYTES // 4))
        sizes = [len(piece.content) for piece in file.pieces(MAX_READ_BYTES)]
    assert sizes == [CHUNK_BYTES, CHUNK_BYTES]


def test_what_is_left_of_a_look_comes_with_the_next(log):
    written = [b"%06d" % number for number in range(200_000)]
    drops = Drops()
    with opened(log, drops) as file:
        append(log, b"\n".join(written) + b"\n")
        looks = [lines(file, MEBIBYTE) for _ in range(3)]
    assert [line for look in looks for line in look] == written
    assert [bool(look) for look in looks] == [True, True, False]
    assert drops == []


def test_of_more_than_is_ever_read_the_newest_comes(log):
    drops = Drops()
    with opened(log, drops) as file:
        append(log, b"%07d\n" * 4 % (1, 2, 3, 4))
        assert len(lines(file)) == 4
        append(log, b"".join(b"%07d\n" % number for number in range(MAX_READ_BYTES // 8 + 1)))
        found = lines(file, MEBIBYTE)
    assert found[-1] == b"%07d" % (MAX_READ_BYTES // 8)
    assert len(found) == MEBIBYTE // 8
    assert drops == ["log_bytes"]


def test_what_is_old_is_told(log):
    append(log, b"old\n" * 3 + b"half")
    with opened(log) as file:
        append(log, b" a line\nnew\n")
        assert old_lines(file) == [b"old", b"old", b"old", b"half a line"]
        append(log, b"later\n")
        assert old_lines(file) == []
    with opened(log, is_all_new=True) as file:
        assert old_lines(file) == []
        assert lines(file) == []


def test_nothing_is_old_in_a_file_that_was_written_anew(log):
    append(log, b"old\n" * 100)
    with opened(log) as file:
        lines(file)
        os.truncate(log, 0)
        append(log, b"new\n")
        assert old_lines(file) == []


def test_of_what_was_there_before_the_end_is_read(log):
    append(log, b"x" * 99 + b"\n" + b"0123456\n" * (MAX_TAIL_BYTES // 8))
    with opened(log) as file:
        assert len(lines(file)) == MAX_TAIL_BYTES // 8


def test_a_line_in_an_envelope_may_be_longer(log):
    long = b"x" * (MAX_WRAPPED_BYTES + 1) + b"\n"
    with opened(log) as plain, opened(log, is_wrapped=True) as wrapped:
        for part in (long[:70_000], long[70_000:]):
            append(log, part)
            found = [list(map(len, lines(file))) for file in (plain, wrapped)]
            if part.endswith(b"\n"):
                assert found == [[], [MAX_WRAPPED_BYTES]]
            else:
                assert found == [[MAX_LINE_BYTES], []]


def test_a_rotated_file_is_read_to_its_end_first(log):
    written = [b"%06d" % number for number in range(100_000)]
    with opened(log, is_rotated=True) as file:
        append(log, b"\n".join(written) + b"\n")
        log.rename(log.with_suffix(".1"))
        append(log, b"new\n")
        looks = [lines(file, CHUNK_BYTES) for _ in range(4)]
    assert [line for look in looks for line in look] == [*written, b"new"]


def test_a_file_that_is_replaced_by_a_fifo_is_not_opened(log):
    with opened(log, is_rotated=True) as file:
        append(log, b"last\n")
        log.rename(log.with_suffix(".1"))
        os.mkfifo(log)
        pieces = file.pieces(MAX_READ_BYTES)
        assert next(pieces).content == b"last\n"
        with pytest.raises(NotAFileError):
            next(pieces)
        log.unlink()
        append(log, b"again\n")
        assert lines(file) == [b"again"]


BYTES = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.sampled_from([b"\n", b"\r", b"\r\n", b"a line\n", b"\0" * 40, b"x" * 30, b"\0x"]),
    ),
    max_size=30,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(BYTES, st.integers(1, 40), st.integers(1, 20))
def test_any_bytes_in_any_pieces_are_the_same_lines(tmp_path, parts, chunk, most):
    """Whenever they come, in whatever pieces they are read, and however long a line may be."""
    path = tmp_path / "log"
    path.write_bytes(b"")
    content = b"".join(parts) + b"\n"
    whole = [raw for _, raw in lines_of(content, len(content), [], lambda _: True, most)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_file, "CHUNK_BYTES", chunk)
        patch.setattr(log_file, "MAX_LINE_BYTES", most)
        with opened(path) as file:
            found = []
            for part in (*parts, b"\n"):
                append(path, part)
                found += lines(file)
    # Zeros alone are no line, which is known only at its end.
    assert [raw for raw in found if raw] == [raw for raw in whole if raw]


WRITER = """
import os, sys
path, count, way = sys.argv[1], int(sys.argv[2]), sys.argv[3]
file = open(path, "ab", buffering=0)
for number in range(count):
    file.write(b"%d\\n" % number)
    if number % 500 == 499:
        print(flush=True)
        sys.stdin.readline()
        if way == "rename":
            os.rename(path, path + ".1")
            file = open(path, "ab", buffering=0)
        elif way == "truncate":
            os.truncate(path, 0)
"""


@pytest.mark.parametrize("way", ["grow", "rename", "truncate"])
def test_what_another_process_writes_and_rotates_is_read_once(log, way):
    """What is not read when its file is truncated, or rotated twice, is gone; so it says when."""
    count = 3000
    with (
        opened(log, is_rotated=True) as file,
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(log), str(count), way],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as writer,
    ):
        assert writer.stdin is not None
        assert writer.stdout is not None
        found: list[bytes] = []
        for _ in range(count // 500):
            while not select.select([writer.stdout], [], [], 0)[0]:
                found += lines(file)
            assert writer.stdout.readline() == b"\n"
            found += lines(file)
            writer.stdin.write(b"\n")
            writer.stdin.flush()
    assert list(map(int, found)) == list(range(count))


def test_a_log_that_grows_50_megabytes_a_second_costs_little_memory(log):
    """Without an end of a line, too."""
    block = b"x" * MEBIBYTE
    stop = threading.Event()

    def flood() -> None:
        with log.open("ab", buffering=0) as file:
            while not stop.is_set() and file.tell() < 1 << 28:
                file.write(block)

    drops = Drops()
    with opened(log, drops) as file:
        writer = threading.Thread(target=flood)
        writer.start()
        tracemalloc.start()
        try:
            for _ in range(100):
                for _ in file.pieces(CHUNK_BYTES):
                    pass
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            stop.set()
            writer.join()
    assert peak < MEBIBYTE + CHUNK_BYTES * 3
