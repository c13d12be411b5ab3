"""What real processes read and write, in every way that vLLM does."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_agent.host.load import tree_io as module
from vllm_agent.host.load.tree_io import TreeIo
from vllm_agent.host.proc import Proc, read_small

if TYPE_CHECKING:
    from collections.abc import Mapping

PROC = Proc()
NOBODY = 65534
MIB = 2**20
SLACK = 2**16
"""What an interpreter reads beside what it is told to."""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change to another user")

PROGRAM = """
import mmap, os, socket, subprocess, sys
print(flush=True)
for line in sys.stdin:
    exec(line)
    print(flush=True)
"""


class Worker:
    """A process that runs lines of Python as it is told."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid
        self._wait()

    def run(self, code: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(code.encode() + b"\n")
        self._process.stdin.flush()
        self._wait()

    def _wait(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"\n"


@contextmanager
def running():
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Worker(process)


@pytest.fixture
def worker():
    with running() as process:
        yield process


@pytest.fixture
def warm(tmp_path):
    path = tmp_path / "warm"
    path.write_bytes(b"x" * 4 * MIB)
    return path


def total_of(io: TreeIo, *pids: int) -> int:
    total = io.total(pids)
    assert total is not None
    return total


def added(io: TreeIo, worker: Worker, code: str) -> int:
    before = total_of(io, worker.pid)
    worker.run(code)
    return total_of(io, worker.pid) - before


def test_reading_and_writing_count_once(worker, warm):
    io = TreeIo(PROC)
    assert 4 * MIB <= added(io, worker, f"open({str(warm)!r}, 'rb').read()") < 4 * MIB + SLACK
    write = f"f = open({str(warm.parent / 'new')!r}, 'wb'); f.write(bytes({MIB})); f.close()"
    assert MIB <= added(io, worker, write) < MIB + SLACK
    assert added(io, worker, "pass") < 100


def test_cold_file_counts_once_whether_it_is_read_or_mapped(worker, warm):
    io = TreeIo(PROC)
    evict(warm)
    fetched = fetched_bytes(worker.pid)
    cold_read = added(io, worker, f"open({str(warm)!r}, 'rb').read()")
    if fetched_bytes(worker.pid) == fetched:
        pytest.skip("this file system keeps its files in memory")
    assert 4 * MIB <= cold_read < 4 * MIB + SLACK
    evict(warm)
    code = f"f = open({str(warm)!r}, 'rb'); m = mmap.mmap(f.fileno(), 0, prot=1); sum(m[::4096])"
    assert 4 * MIB <= added(io, worker, code) < 4 * MIB + SLACK
    assert added(io, worker, "sum(m[::4096])") < SLACK


def fetched_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/io").read_text().partition("\nread_bytes: ")[2].split()[0])


def evict(path: Path) -> None:
    """Drops a file from the memory of the system."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def test_messages_by_recv_do_not_count_and_by_read_they_do(worker):
    io = TreeIo(PROC)
    worker.run("a, b = socket.socketpair()")
    assert added(io, worker, "[(a.send(bytes(9999)), b.recv(9999)) for _ in range(99)]") < SLACK
    code = "[(os.write(a.fileno(), bytes(9999)), os.read(b.fileno(), 9999)) for _ in range(99)]"
    assert added(io, worker, code) >= 2 * 99 * 9999


def test_children_count_while_they_run_and_not_again_when_they_have_ended(worker, warm):
    io = TreeIo(PROC)
    before = total_of(io, worker.pid)
    child_code = (
        f"import sys; open({str(warm)!r}, 'rb').read(); print(flush=True); sys.stdin.read()"
    )
    start = f"p = subprocess.Popen([sys.executable, '-c', {child_code!r}], stdin=-1, stdout=-1)"
    worker.run(f"{start}; p.stdout.readline()")
    (child,) = map(int, Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split())
    both = total_of(io, worker.pid, child)
    assert both - before >= 4 * MIB
    worker.run("p.stdin.close(); p.wait(); p.stdout.close()")
    assert both <= total_of(io, worker.pid) < both + SLACK


def test_total_never_falls_while_processes_come_and_go(warm):
    io = TreeIo(PROC)
    with running() as one:
        with running() as other:
            other.run(f"open({str(warm)!r}, 'rb').read()")
            both = total_of(io, one.pid, other.pid)
        assert total_of(io, one.pid) == both
        one.run(f"open({str(warm)!r}, 'rb').read()")
        after = total_of(io, one.pid)
        assert after >= both + 4 * MIB
    assert total_of(io, one.pid) == after
    assert total_of(io) == after


def test_process_that_is_gone_is_unknown():
    with running() as process:
        pass
    assert TreeIo(PROC).total([process.pid]) is None
    assert TreeIo(PROC).total([]) is None


@as_root
def test_process_of_somebody_else_is_unknown(worker):
    code = f"""
import os, sys
from vllm_agent.host.load.tree_io import TreeIo
from vllm_agent.host.proc import Proc
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
print(TreeIo(Proc()).total([int(sys.argv[1])]))
"""
    command = [sys.executable, "-c", code, str(worker.pid)]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"None\n"


def test_look_that_hung_changes_nothing_when_it_comes_back(worker, warm, monkeypatch):
    io = TreeIo(PROC)
    io.total([worker.pid])
    is_reading, may_go_on, answers = Event(), Event(), []

    def hanging(path):
        content = read_small(path)
        is_reading.set()
        may_go_on.wait()
        return content

    monkeypatch.setattr(module, "read_small", hanging)
    late = Thread(target=lambda: answers.append(io.total([worker.pid])))
    late.start()
    is_reading.wait()
    monkeypatch.undo()
    worker.run(f"open({str(warm)!r}, 'rb').read()")
    newest = io.total([worker.pid])
    may_go_on.set()
    late.join()
    assert answers == [newest]
    assert io.total([worker.pid]) == newest


class Told(TreeIo):
    """Sees what a test tells it."""

    told: Mapping[int, tuple[int, ...] | None]

    def look(self, told: Mapping[int, tuple[int, ...] | None]) -> int | None:
        self.told = told
        return self.total(told)

    def _counts(self, pid: int) -> tuple[int, ...] | None:
        return self.told[pid]


COUNTS = st.tuples(*[st.integers(0, 2**64)] * 4)
LOOKS = st.lists(st.dictionaries(st.integers(1, 4), COUNTS | st.none()), max_size=8)


@given(LOOKS)
def test_any_counts_give_a_total_that_never_falls(looks):
    told = Told(PROC)
    totals = [told.look(look) for look in looks]
    known = [total for total in totals if total is not None]
    assert known == sorted(known)
    assert None not in totals[len(totals) - len(known) :]


def test_number_that_is_used_again_is_another_process():
    told = Told(PROC)
    assert told.look({7: (100, 0, 50, 0)}) == 150
    assert told.look({7: (10, 0, 60, 0)}) == 220


@pytest.mark.parametrize("content", [b"", b"rchar: 1\n", b"rchar: x\n", b"a b c", b"\xff"])
def test_what_is_no_count_is_unknown(content, monkeypatch):
    monkeypatch.setattr(module, "read_small", lambda _: content)
    assert TreeIo(PROC).total([1]) is None
