"""New processes and new command lines, of the real host and of made-up ones."""

from __future__ import annotations

import os
import subprocess
import threading
import time

import pytest

from tests.host.fake_proc import FakeProc
from vllm_agent.host import new_processes
from vllm_agent.host.new_processes import (
    FINGERPRINT_BYTES,
    MAX_NUMBERS,
    MAX_WRAPPERS_PER_POLL,
    MAX_YOUNG_PER_POLL,
    POLL_SECONDS,
    SWEEP_SECONDS,
    WRAPPER_SECONDS,
    YOUNG_SECONDS,
    NewProcesses,
    is_process,
)
from vllm_agent.host.proc import MAX_COMMAND_LINE_BYTES, CommandLine, Proc

SLEEP = ("sleep", "60")


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


class Host:
    """A made-up host that is polled as time goes by."""

    def __init__(self, fake: FakeProc) -> None:
        self.fake = fake
        self.clock = Clock()
        self.listings = 0
        fake.proc.inodes = self._inodes  # type: ignore[method-assign]
        self.new = NewProcesses(fake.proc, clock=self.clock, kind_of=fake.kind_of)

    def _inodes(self):
        self.listings += 1
        return Proc.inodes(self.fake.proc)

    def poll(self, seconds: float = POLL_SECONDS):
        batch = self.new.poll()
        self.clock.seconds += seconds
        return batch

    def age(self, seconds: float = SWEEP_SECONDS + YOUNG_SECONDS) -> None:
        """Polls until nothing is young any more and a sweep has begun and ended."""
        for _ in range(round(seconds / POLL_SECONDS) + 1):
            self.poll()

    def arrived(self):
        return sorted(stat.pid for stat in self.poll().arrived)

    def lines(self):
        return sorted((stat.pid, *line.arguments) for stat, line in self.poll().lines)


@pytest.fixture
def host(tmp_path) -> Host:
    return Host(FakeProc(tmp_path))


@pytest.fixture
def spawn():
    """Starts real processes that end with the test."""
    started = []

    def popen(*arguments, **options):
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **options
        )
        started.append(process)
        return process

    yield popen
    for process in started:
        process.kill()
    for process in started:
        process.wait()


def test_first_poll_tells_of_everything(host):
    host.fake.add(7, "vllm", "serve", start=5)
    batch = host.poll()
    assert sorted((s.pid, s.start_ticks) for s in batch.arrived) == [(1, 1), (7, 5)]
    assert {line.arguments for _, line in batch.lines} == {("init",), ("vllm", "serve")}
    assert batch.is_whole
    assert host.poll() == new_processes.Batch()


def test_new_numbers_are_tried_without_a_listing(host):
    host.poll()
    host.fake.add(2, "a")
    host.fake.add(5, "b")
    assert host.lines() == [(2, "a"), (5, "b")]
    assert host.listings == 1


def test_a_thread_is_no_process(host):
    host.poll()
    host.fake.add(40, "thread")
    host.fake.threads.add(40)
    host.fake.add(41, "process")
    assert host.arrived() == [41]


def test_a_number_that_is_given_out_before_its_process_is_there_is_tried_again(host):
    host.poll()
    host.fake.newest = 9
    assert host.arrived() == []
    host.fake.add(9, "late")
    assert host.arrived() == [9]
    assert host.listings == 1


def test_a_number_that_is_given_out_as_a_sweep_begins_is_tried_again(host):
    host.poll()
    host.clock.seconds = host.new._sweep_due
    host.fake.newest = 9
    assert host.arrived() == []
    host.fake.add(9, "late")
    assert host.arrived() == [9]


def test_numbers_begin_again(host):
    host.fake.set_max_pid(32768)
    host.fake.newest = 32760
    host.poll()
    host.fake.add(32767, "last")
    host.fake.add(300, "first")
    host.fake.newest = 301
    assert host.arrived() == [300, 32767]
    assert host.listings == 1


def test_too_many_numbers_are_a_listing(host):
    host.poll()
    host.fake.add(2 + MAX_NUMBERS, "far")
    assert host.arrived() == [2 + MAX_NUMBERS]
    assert host.listings == 2


@pytest.mark.parametrize("newest", ["", "x"])
def test_without_the_newest_number_each_poll_is_a_listing(host, newest):
    host.fake.newest = newest
    host.poll()
    (host.fake.root / "7").mkdir()
    (host.fake.root / "7/stat").write_text((host.fake.root / "1/stat").read_text())
    host.poll()
    assert host.listings == 2
    assert host.new.known == 1  # a stat without its cmdline, of PID 1, is none of PID 7


def test_a_newest_number_that_stands_still_is_not_believed_for_long(host):
    host.poll()
    for pid in (5, 6, 7):
        host.fake.add(pid, "x")
        host.fake.newest = 1
        host.age(SWEEP_SECONDS)
    assert not host.new.counts_on_numbers
    host.fake.add(8, "x")
    assert host.arrived() == [8]


def test_processes_with_a_chosen_number_now_and_then_are_no_reason_for_distrust(host):
    host.fake.newest = 1000
    host.poll()
    for restored in (500, 501, 502):
        host.fake.add(restored, "restored")
        host.age()
        host.fake.newest += 1
        host.fake.add(host.fake.newest + 1, "x")
        host.age()
    assert host.new.counts_on_numbers
    assert host.new.known == 7


def test_another_view_of_the_numbers_is_not_believed(host):
    (host.fake.root / "self").unlink()
    (host.fake.root / "self").symlink_to("4711")
    assert not NewProcesses(host.fake.proc).counts_on_numbers


def test_a_kernel_that_cannot_tell_threads_is_not_asked_twice(host, caplog):
    def cannot(number):
        raise OSError(38, "not implemented")

    host.new = NewProcesses(host.fake.proc, clock=host.clock, kind_of=cannot)
    host.poll()
    host.fake.add(9, "x")
    assert host.arrived() == [9]
    assert not host.new.counts_on_numbers


def test_a_pid_that_is_used_again_is_new(host):
    host.fake.add(305, "a", start=10)
    host.fake.newest = 32760
    host.poll()
    host.fake.end(305)
    host.fake.add(305, "a", start=20)
    host.fake.newest = 306
    batch = host.poll()
    assert host.listings == 1
    assert [s.start_ticks for s in batch.arrived] == [20]
    assert [s.start_ticks for s, _ in batch.lines] == [20]


def test_a_pid_that_is_used_again_is_seen_in_a_listing(host):
    host.fake.add(7, "a", start=10)
    host.poll()
    host.age()
    host.fake.end(7)
    host.fake.add(7, "a", start=20)
    told = [s.start_ticks for _ in range(40) for s in host.poll().arrived]
    assert told == [20]


def test_a_pid_that_is_used_again_within_two_listings_is_new(host):
    host.fake.add(7, "a", start=10)
    host.fake.newest = ""
    host.poll()
    host.fake.end(7)
    host.fake.newest = 7
    host.fake.add(7, "a", start=20)
    host.fake.newest = ""
    assert host.arrived() == [7]


def test_exec_of_a_young_process_is_seen_at_the_next_poll(host):
    host.poll()
    host.fake.add(7, "fork-of-something")
    host.poll()
    host.fake.become(7, "vllm", "serve")
    assert host.lines() == [(7, "vllm", "serve")]
    assert host.lines() == []


def test_exec_of_an_old_shell_is_seen_at_the_next_poll(host):
    host.fake.add(7, "bash", name="bash")
    host.fake.add(8, "other", name="other")
    host.poll()
    host.age()
    for pid in (7, 8):
        host.fake.become(pid, "vllm")
    assert host.lines() == [(7, "vllm")]


def test_a_shell_of_somebody_who_went_home_is_left_to_the_sweep(host):
    host.fake.add(7, "bash", name="bash")
    host.poll()
    host.age()
    host.clock.seconds += WRAPPER_SECONDS
    host.poll()
    host.new._sweep.clear()
    assert host.new.plan() == []


def test_exec_of_any_old_process_is_seen_by_the_sweep(host):
    host.fake.add(7, "other")
    host.poll()
    host.age()
    host.fake.become(7, "vllm")
    batches = [host.poll() for _ in range(round(2 * SWEEP_SECONDS / POLL_SECONDS))]
    assert [(s.pid, *line.arguments) for b in batches for s, line in b.lines] == [(7, "vllm")]
    assert sum(batch.is_whole for batch in batches) == 2


def test_a_process_that_becomes_a_shell_is_looked_at_more_often(host):
    host.fake.add(7, "other")
    host.poll()
    host.age()
    stat = (host.fake.root / "7/stat").read_text()
    (host.fake.root / "7/stat").write_text(stat.replace("(x)", "(bash)"))
    host.fake.become(7, "bash")
    host.age(SWEEP_SECONDS)
    host.fake.become(7, "vllm")
    assert host.lines() == [(7, "vllm")]


def test_looks_per_poll_are_bounded_and_go_round(host):
    wrappers, young = set(range(10, 10 + 3 * MAX_WRAPPERS_PER_POLL)), MAX_YOUNG_PER_POLL + 50
    for pid in wrappers:
        host.fake.add(pid, "sh", name="sh")
    host.poll()
    host.clock.seconds += YOUNG_SECONDS
    host.new.plan()  # which drops those no longer young, and ends with a slice
    looked = [{look.pid for look in host.new.plan()} for _ in range(3)]
    assert set().union(*looked) >= wrappers
    assert max(map(len, looked)) <= MAX_WRAPPERS_PER_POLL
    newest = set(range(300, 300 + young))
    for pid in newest:
        host.fake.add(pid, "young")
    host.poll()
    looked = [{look.pid for look in host.new.plan()} & newest for _ in range(2)]
    assert max(map(len, looked)) <= MAX_YOUNG_PER_POLL
    assert set().union(*looked) == newest


def test_the_sweep_is_cut_into_slices(host):
    for pid in range(10, 310):
        host.fake.add(pid, "x")
    host.poll()
    host.age()
    while host.new._sweep:
        host.poll()
    host.clock.seconds = host.new._sweep_due
    sizes = [len(host.new.plan()) for _ in range(30)]
    assert sum(sizes) == host.new.known == 301
    assert max(sizes) == 11


def test_a_large_host_is_swept_more_slowly(host, monkeypatch):
    monkeypatch.setattr(new_processes, "MAX_SWEPT_PER_POLL", 5)
    for pid in range(10, 310):
        host.fake.add(pid, "x")
    host.poll()
    while host.new._sweep or host.new._young:
        host.poll()
    host.clock.seconds = host.new._sweep_due
    sizes: list[int] = []
    while not sizes or host.new._sweep:
        sizes.append(len(host.new.plan()))
    assert sizes == [5] * 60 + [1]


def test_kernel_threads_are_told_once_and_not_read_again(host):
    host.fake.add(2, name="kthreadd", parent=0)
    host.fake.add(3, name="kworker/0:0", parent=2)
    assert host.arrived() == [1, 2, 3]
    host.age()
    looked = set()
    for _ in range(70):
        looked |= {look.pid for look in host.new.plan()}
        host.clock.seconds += POLL_SECONDS
    assert looked == {1}


def test_a_process_that_ends_mid_read_is_forgotten(host):
    host.poll()
    host.fake.add(7, "x")
    looks = host.new.plan()
    host.fake.end(7)
    batch = host.new.take([host.new.read(look) for look in looks])
    assert batch.arrived == ()
    assert host.new.known == 1


def test_a_process_set_aside_is_told_once_and_its_line_not_read_again(host):
    host.poll()
    host.fake.add(7, "hangs")
    assert {look.pid for look in host.new.plan()} == {1, 7}
    assert [stat.pid for stat in host.new.set_aside([7, 4711]).arrived] == [7]
    assert host.new.set_aside([7]).arrived == ()
    for _ in range(70):
        assert 7 not in {look.pid for look in host.new.plan()}
        host.clock.seconds += POLL_SECONDS


def test_a_listing_that_fails_is_made_up_for(host, monkeypatch):
    host.poll()
    host.fake.add(2 + MAX_NUMBERS, "far")

    def fail():
        raise FileNotFoundError

    with monkeypatch.context() as broken:
        broken.setattr(host.fake.proc, "inodes", fail)
        with pytest.raises(FileNotFoundError):
            host.poll()
    assert host.arrived() == [2 + MAX_NUMBERS]


def test_a_line_is_compared_by_its_start(host):
    host.poll()
    host.fake.add(7, "x" * FINGERPRINT_BYTES, "end")
    host.poll()
    host.fake.become(7, "x" * FINGERPRINT_BYTES, "other end")
    assert host.lines() == []
    host.fake.become(7, "y" * FINGERPRINT_BYTES)
    assert len(host.lines()) == 1


def test_the_kernel_tells_threads_from_processes(spawn):
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    process = spawn("true")
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    try:
        assert is_process(os.getpid()) is True
        assert is_process(thread.native_id or 0) is False
        assert is_process(process.pid) is True  # a zombie
        process.wait()
        assert is_process(process.pid) is None
    finally:
        done.set()
        thread.join()


def test_real_processes_and_none_of_their_threads(spawn):
    new = NewProcesses(Proc())
    first = new.poll()
    assert os.getpid() in {stat.pid for stat in first.arrived}
    done = threading.Event()
    threads = [threading.Thread(target=done.wait) for _ in range(50)]
    for thread in threads:
        thread.start()
    children = [spawn(*SLEEP) for _ in range(5)]
    numbers = {thread.native_id for thread in threads}
    batch = new.poll()
    done.set()
    for thread in threads:
        thread.join()
    found = {stat.pid for stat in batch.arrived}
    assert found >= {child.pid for child in children}
    assert not found & numbers
    assert new.counts_on_numbers


def test_exec_after_fork_is_seen(spawn):
    new = NewProcesses(Proc())
    new.poll()
    gate, release = os.pipe()
    script = f"read -r _ <&{gate}; exec -a vllm sleep 60"
    child = spawn("bash", "-c", script, pass_fds=[gate])
    new.poll()
    os.write(release, b"\n")
    os.close(gate)
    os.close(release)
    deadline = time.monotonic() + 10
    seen: list[tuple[str, ...]] = []
    while ("vllm", "60") not in seen:
        assert time.monotonic() < deadline
        lines = new.poll().lines
        seen += [line.arguments for stat, line in lines if stat.pid == child.pid]
        time.sleep(0.01)
    assert seen[-1] == ("vllm", "60")


def test_hostile_command_lines(spawn):
    new = NewProcesses(Proc())
    new.poll()
    texts = [b"\x1b[2J\n\r\x07", b"\xff\xfe\x80"]
    strange = [spawn("sh", "-c", "sleep 60; :", os.fsdecode(text)) for text in texts]
    big = spawn("sh", "-c", "sleep 60; :", *["x" * 100_000] * 19)
    lines: dict[int, CommandLine] = {}
    deadline = time.monotonic() + 10
    # Right after exec the kernel has not set the line yet.
    while not {big.pid, *(process.pid for process in strange)} <= lines.keys():
        assert time.monotonic() < deadline
        lines |= {stat.pid: line for stat, line in new.poll().lines}
    for process, text in zip(strange, texts, strict=True):
        assert os.fsencode(lines[process.pid].arguments[3]) == text
    assert lines[big.pid].is_cut
    assert sum(map(len, lines[big.pid].arguments)) <= MAX_COMMAND_LINE_BYTES


def test_what_it_costs(spawn):
    """Printed, not judged: the machine may be busy."""
    children = [spawn(*SLEEP) for _ in range(1000)]
    clock = Clock()
    new = NewProcesses(Proc(), clock=clock)

    def cost(polls: int, step_seconds: float) -> float:
        busy = time.process_time()
        for _ in range(polls):
            clock.seconds += step_seconds
            new.poll()
        return (time.process_time() - busy) / polls

    print(f"first look at 1,000 processes: {cost(1, 0) * 1e3:.1f} ms")
    cost(round(2 * SWEEP_SECONDS / POLL_SECONDS), POLL_SECONDS)
    new._sweep.clear()
    print(f"a poll with nothing new: {cost(20, 0) * 1e6:.0f} us")
    seconds = cost(round(2 * SWEEP_SECONDS / POLL_SECONDS), POLL_SECONDS)
    print(f"a poll with its slice of the sweep: {seconds * 1e6:.0f} us,", end=" ")
    print(f"{seconds / POLL_SECONDS:.3%} of a core")
    children += [spawn(*SLEEP) for _ in range(100)]
    print(f"a poll with 100 new processes: {cost(1, 0) * 1e3:.1f} ms")
    assert new.known >= len(children)
