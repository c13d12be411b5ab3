"""The logs of launches: their names, their bounds, and what is in the way of one."""

from __future__ import annotations

import errno
import logging
import os
import stat
from typing import TYPE_CHECKING

import pytest

from tests.host.test_pidfd import open_fds
from vllm_agent.host.launching import launch_files
from vllm_agent.host.launching.launch_files import LaunchFiles, LogFileError
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.observations import Instant

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOON = 1_700_000_000.25
ID = "0123456789abcdef"


class Clock:
    """The wall clock, as the test sets it."""

    def __init__(self) -> None:
        self.unix_seconds = NOON

    def __call__(self) -> Instant:
        return Instant(0.0, self.unix_seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def files(tmp_path: Path, clock: Clock) -> Iterator[LaunchFiles]:
    before = open_fds()
    yield LaunchFiles(tmp_path / "state", clock)
    assert open_fds() == before


def begin(files: LaunchFiles, content: bytes = b"", launch_id: str = ID) -> Path:
    """A log of a launch that has ended."""
    file, path = files.open("llama", launch_id)
    os.write(file, content)
    os.close(file)
    return path


def names(files: LaunchFiles) -> list[str]:
    return sorted(path.name for path in (files._state_dir / "logs/llama").iterdir())


def test_a_log_appends_and_is_for_the_agent_and_its_group(files, tmp_path):
    mask = os.umask(0)
    try:
        file, path = files.open("llama", ID)
    finally:
        os.umask(mask)
    assert path == tmp_path / f"state/logs/llama/20231114T221320.250000Z-{ID}.log"
    os.write(file, b"one\n")
    path.write_bytes(b"")
    os.write(file, b"two\n")
    assert path.read_bytes() == b"two\n"
    assert not os.get_inheritable(file)
    os.close(file)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    for folder in path.parents[:3]:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o750


def test_names_sort_in_the_order_of_launches_whatever_the_clock_does(files, clock):
    begun = [begin(files, launch_id="f")]
    for moved in (0.0, 5.0, -7_200.0, 0.0, 86_400.0, -86_401.0):
        clock.unix_seconds += moved
        begun.append(begin(files, launch_id="0"))
    assert begun == sorted(begun)
    assert len({*begun}) == 7


def test_the_newest_are_kept_with_what_was_cut_from_them(files, clock):
    begun = []
    for _ in range(12):
        begun.append(begin(files).name)
        clock.unix_seconds -= 60
    assert names(files) == begun[-10:]
    folder = files._state_dir / "logs/llama"
    others = ["README", f"{ID}.log", f"{begun[0]}.2", "x.1"]
    for name in (f"{begun[2]}.1", f"{begun[3]}.1", f"{begun[0]}.1", *others):
        (folder / name).touch()
    begun.append(begin(files).name)
    kept = begun[-10:]
    assert names(files) == sorted([*kept, f"{begun[3]}.1", *others])
    files.prune("llama")
    assert names(files) == sorted([*kept, f"{begun[3]}.1", *others])


def test_a_server_that_was_never_started_has_nothing_to_bound(files, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert files.bound("llama") == 0
    assert caplog.text == ""
    files.prune("llama")
    assert not (tmp_path / "state").exists()


def test_servers_have_folders_of_their_own(files, monkeypatch):
    monkeypatch.setattr(launch_files, "KEPT_LOGS", 1)
    path = begin(files)
    file, other = files.open("other", ID)
    os.close(file)
    assert path.exists()
    assert other.parent.name == "other"


def test_bounds():
    assert launch_files.KEPT_LOGS == 10
    assert launch_files.MAX_LOG_BYTES == 32 * 2**20
    assert launch_files.MIN_FREE_BYTES == 2**20


def test_a_log_that_grew_too_large_goes_on_empty_and_its_end_is_kept(files, monkeypatch):
    monkeypatch.setattr(launch_files, "MAX_LOG_BYTES", 1000)
    file, path = files.open("llama", ID)
    aside = path.with_name(f"{path.name}.1")
    os.write(file, b"a" * 1000)
    assert files.bound("llama") == 0
    os.write(file, b"b" * 700)
    assert files.bound("llama") == 1
    assert aside.read_bytes() == b"a" * 300 + b"b" * 700
    assert stat.S_IMODE(aside.stat().st_mode) == 0o640
    os.write(file, b"c" * 10)
    assert path.read_bytes() == b"c" * 10
    assert files.bound("llama") == 0
    os.write(file, b"d" * 1000)
    assert files.bound("llama") == 1
    assert aside.read_bytes() == b"d" * 1000
    assert names(files) == [path.name, aside.name]
    os.close(file)


def test_a_large_log_is_copied_whole(files, monkeypatch):
    """The kernel copies as much at a time as it likes."""
    monkeypatch.setattr(launch_files, "MAX_LOG_BYTES", 2**20)
    content = os.urandom(2**20)
    path = begin(files, b"x" + content)
    send = os.sendfile
    monkeypatch.setattr(
        os, "sendfile", lambda out, file, at, size: send(out, file, at, min(size, 99_999))
    )
    assert files.bound("llama") == 1
    assert path.with_name(f"{path.name}.1").read_bytes() == content
    assert path.read_bytes() == b""


def test_a_log_that_grows_as_fast_as_it_is_copied_is_not_copied_for_ever(files, monkeypatch):
    monkeypatch.setattr(launch_files, "MAX_LOG_BYTES", 1000)
    file, path = files.open("llama", ID)
    os.write(file, b"a" * 1001)
    send = os.sendfile

    def grow(out: int, source: int, at: int, size: int) -> int:
        os.write(file, b"b" * 100)
        return send(out, source, at, min(size, 100))

    monkeypatch.setattr(os, "sendfile", grow)
    assert files.bound("llama") == 1
    assert path.with_name(f"{path.name}.1").stat().st_size == 2000
    os.close(file)


def test_a_full_disk_costs_what_was_cut_and_not_the_bound(files, monkeypatch, caplog):
    monkeypatch.setattr(launch_files, "MAX_LOG_BYTES", 10)
    path = begin(files, b"a" * 11)

    def refuse(*_args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "sendfile", refuse)
    with caplog.at_level(logging.WARNING):
        assert files.bound("llama") == 1
    assert "what it held is lost" in caplog.text
    assert names(files) == [path.name]
    assert path.read_bytes() == b""


def test_what_is_no_log_of_ours_is_neither_cut_nor_followed(files, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(launch_files, "MAX_LOG_BYTES", 10)
    path = begin(files, b"a" * 11)
    stranger = tmp_path / "stranger"
    stranger.write_bytes(b"s" * 100)
    (path.parent / "notes").write_bytes(b"n" * 100)
    # Its copy is put in the place of a link, not through it.
    path.with_name(f"{path.name}.1").symlink_to(stranger)
    assert files.bound("llama") == 1
    assert not path.with_name(f"{path.name}.1").is_symlink()
    path.unlink()
    path.symlink_to(stranger)
    with caplog.at_level(logging.WARNING):
        assert files.bound("llama") == 0
    assert "is not cut" in caplog.text
    path.unlink()
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert files.bound("llama") == 0
    os.close(reader)
    assert stranger.read_bytes() == b"s" * 100
    assert (path.parent / "notes").read_bytes() == b"n" * 100


def test_an_old_log_that_stays_is_told_of_and_stops_nothing(files, monkeypatch, caplog):
    monkeypatch.setattr(launch_files, "KEPT_LOGS", 1)
    path = begin(files)
    path.unlink()
    path.mkdir()
    with caplog.at_level(logging.WARNING):
        newer = begin(files)
    assert "cannot be removed" in caplog.text
    assert newer.exists()


@pytest.mark.parametrize("place", ["logs", "logs/llama"])
def test_no_link_is_followed_below_the_state_directory(files, place, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = tmp_path / "state" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    with pytest.raises(LogFileError, match="without links") as caught:
        files.open("llama", ID)
    assert caught.value.reason is Reason.SPAWN_FAILED
    assert list(elsewhere.iterdir()) == []


def test_the_state_directory_may_be_a_link(tmp_path, clock):
    (tmp_path / "disk").mkdir()
    (tmp_path / "state").symlink_to(tmp_path / "disk")
    path = begin(LaunchFiles(tmp_path / "state", clock))
    assert path.exists()


@pytest.mark.parametrize("place", ["state", "state/logs", "state/logs/llama"])
def test_a_file_in_the_way_is_a_failed_start(files, place, tmp_path):
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    with pytest.raises(LogFileError, match=r"set another --state\.dir") as caught:
        files.open("llama", ID)
    assert caught.value.reason is Reason.SPAWN_FAILED
    assert str(tmp_path / "state/logs/llama") in caught.value.detail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_without_room_for_a_file_is_full(files, number, monkeypatch):
    def refuse(*_args: object, **_keys: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "mkdir", refuse)
    files._state_dir.parent.mkdir(exist_ok=True)
    with pytest.raises(LogFileError, match="there is no room for the log") as caught:
        files.open("llama", ID)
    assert caught.value.reason is Reason.DISK_FULL


def test_a_disk_without_room_for_the_lines_is_full_and_no_file_stays(files, monkeypatch):
    begin(files)
    monkeypatch.setattr(launch_files, "MIN_FREE_BYTES", 2**62)
    with pytest.raises(LogFileError) as caught:
        files.open("llama", ID)
    assert caught.value.reason is Reason.DISK_FULL
    assert len(names(files)) == 1


def test_a_disk_that_counts_no_blocks_is_not_full(files, monkeypatch):
    """As some network file systems are."""
    found = os.statvfs("/proc")
    assert found.f_blocks == 0
    monkeypatch.setattr(os, "fstatvfs", lambda _: found)
    assert begin(files).exists()
