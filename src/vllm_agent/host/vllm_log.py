"""Follows the log files of a vLLM, which is found without configuration.

All of this reads files that somebody else chose and may hang with their disk: call it in a thread
with a deadline, and leave a tail alone whose read did not return.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import stat
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from vllm_agent.host.vllm_markers import (
    LAUNCH_BEGINS,
    MAX_LINE_BYTES,
    LogLine,
    Marked,
    candidates,
    read_line,
)
from vllm_agent.observations import Sight, SightKind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from vllm_agent.host.proc import Proc
    from vllm_agent.observations import Sighting

MAX_TAIL_BYTES: Final = 256 * 1024
"""Read of what was there before the agent: the last minutes of a busy server's access log."""

MAX_READ_BYTES: Final = 4 * 1024 * 1024
"""Read at a time. When an engine dies, each open request logs 5 to 10 kB of traceback after the
marker: that of 400 requests."""

_CLOCK_STEP_SECONDS: Final = 2.0  # stamps have whole seconds, and the start is derived from ticks
_SEAM_BYTES: Final = 64  # what was read last is compared to see whether a file was written anew
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_STDOUT, _STDERR = 1, 2


class NotAFileError(OSError):
    """What was to be followed is no regular file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A log file and what its lines say of a launch.

    `is_rotated` means that the file at `path` may be replaced by a new one. `is_wrapped`: each line
    is in an envelope of Docker, CRI or Podman. `has_host_pids`: the PIDs in its lines are this
    host's. `is_new`: the launch began just now, so that all that is there is older.
    """

    path: str
    started_unix_seconds: float
    is_new: bool
    is_rotated: bool = False
    is_wrapped: bool = False
    has_host_pids: bool = True


class LogTail:
    """The markers of one launch in a file that grows, may be truncated, rotated and unreadable."""

    def __init__(self, source: Source, count_dropped: Callable[[str], None]) -> None:
        """Opens the file.

        Raises:
            NotAFileError: it is a FIFO, a device, a folder or a socket; it was not opened.
            OSError: it cannot be opened.
        """
        self.source = source
        self._count_dropped = count_dropped
        self._file, size = _open(source.path)
        self._is_looking_back = not source.is_new
        # The byte before tells whether a whole line begins at the position.
        back = 0 if source.is_new else MAX_TAIL_BYTES + 1
        self._position = max(0, size - back)
        self._is_inside_line = self._position > 0
        self._seam = b""
        self._rest = b""
        if source.is_new and size:
            try:
                self._rejoin(size)
            except OSError:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def read(self, pids: Collection[int] = ()) -> tuple[Marked, ...]:
        """The markers that came since the last read, in their order.

        `pids` are those that the launch has or had, as far as known: a line of another process,
        of an earlier launch that left some behind, is not one of this launch. Counts
        `log_bytes` if more came than is read at a time, `log_read` if reading failed.
        """
        marks: list[Marked] = []
        try:
            for content in self._contents():
                self._mark(content, pids, marks)
        except OSError:
            self._count_dropped("log_read")
        return tuple(marks)

    def _contents(self) -> Iterator[bytes]:
        yield self._whole_lines()
        if self.source.is_rotated and self._is_replaced():
            file, _ = _open(self.source.path)
            os.close(self._file)
            self._file = file
            self._begin_anew()
            yield self._whole_lines()

    def _is_replaced(self) -> bool:
        try:
            now = os.stat(self.source.path)
        except FileNotFoundError:
            # Between the two steps of a rotation there is no file.
            return False
        return not os.path.samestat(now, os.fstat(self._file))

    def _begin_anew(self) -> None:
        self._position, self._is_inside_line, self._seam, self._rest = 0, False, b"", b""

    def _rejoin(self, size: int) -> None:
        """Continues at the end of a file, be that in the middle of a line."""
        self._seam = os.pread(self._file, _SEAM_BYTES, max(0, size - _SEAM_BYTES))
        self._is_inside_line = not self._seam.endswith(b"\n")

    def _whole_lines(self) -> bytes:
        """What was appended and not yet read, up to the last end of a line."""
        size = os.fstat(self._file).st_size
        if size < self._position or not self._is_seam_there():
            self._begin_anew()
        if size - self._position > MAX_READ_BYTES:
            self._count_dropped("log_bytes")
            self._position = size - MAX_READ_BYTES - 1
            self._is_inside_line, self._rest = True, b""
        content = _read(self._file, self._position, size - self._position)
        self._position += len(content)
        self._seam = (self._seam + content)[-_SEAM_BYTES:]
        if self._is_inside_line:
            _, end, content = content.partition(b"\n")
            if not end:
                return b""
            self._is_inside_line = False
        content = self._rest + content
        whole, end, self._rest = content.rpartition(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            # Its beginning is all that counts of a line without an end.
            whole, self._rest, self._is_inside_line = whole + end + self._rest, b"", True
        return whole

    def _is_seam_there(self) -> bool:
        """Whether the end of what was read is still where it was: truncated files grow again."""
        place = self._position - len(self._seam)
        return place >= 0 and os.pread(self._file, len(self._seam), place) == self._seam

    def _mark(self, content: bytes, pids: Collection[int], marks: list[Marked]) -> None:
        for raw in candidates(content):
            unwrapped = _unwrap(raw) if self.source.is_wrapped else (raw, None)
            if unwrapped is None:
                continue
            line = read_line(unwrapped[0])
            if self._is_looking_back and line.message.startswith(LAUNCH_BEGINS):
                marks.clear()
            mark = line.mark(written_seconds=unwrapped[1])
            if mark is not None and self._is_ours(line, unwrapped[1], pids):
                marks.append(mark)
        if content:
            self._is_looking_back = False

    def _is_ours(self, line: LogLine, wrapped: float | None, pids: Collection[int]) -> bool:
        """Whether a line was written by this launch."""
        since = self.source.started_unix_seconds - _CLOCK_STEP_SECONDS
        if wrapped is not None:
            return wrapped >= since
        if self.source.has_host_pids and line.pid is not None and pids:
            return line.pid in pids
        if not self._is_looking_back:
            return True
        return line.written_seconds is not None and line.written_seconds >= since


@dataclass(frozen=True, slots=True)
class Logs:
    """Where the log of a launch is: files, and whether the journal has it; and whether that is any.

    Close the tails when the launch has ended.
    """

    tails: tuple[LogTail, ...]
    is_in_journal: bool
    sight: Sight

    def read(self, pids: Collection[int] = ()) -> tuple[Marked, ...]:
        """The new markers of all files, in order where one file has them all."""
        return tuple(mark for tail in self.tails for mark in tail.read(pids))

    def close(self) -> None:
        """Closes the files."""
        for tail in self.tails:
            tail.close()


def find_logs(
    proc: Proc,
    sighting: Sighting,
    count_dropped: Callable[[str], None],
    *,
    is_new: bool,
    root: Path = Path("/"),
) -> Logs:
    """Opens the logs of a launch.

    `is_new`: the agent saw it begin. `root` is where the folders of Docker, Podman and Kubernetes
    are looked for.
    """
    outputs = [_Output.of(proc, sighting.process.pid, number) for number in (_STDOUT, _STDERR)]
    has_host_pids = proc.inner_pid(sighting.process.pid) == sighting.process.pid
    sources: dict[object, Source] = {}
    for output in outputs:
        if output.is_file:
            sources[output.identity] = Source(
                path=output.path,
                started_unix_seconds=sighting.start_seconds,
                is_new=is_new,
                has_host_pids=has_host_pids,
            )
    if sighting.container_id is not None:
        for path in _container_files(root, sighting.container_id):
            sources[path] = Source(
                path=path,
                started_unix_seconds=sighting.start_seconds,
                is_new=is_new,
                is_rotated=True,
                is_wrapped=True,
                has_host_pids=False,
            )
    tails = []
    for source in sources.values():
        try:
            tails.append(LogTail(source, count_dropped))
        except OSError:
            count_dropped("log_open")
    is_in_journal = sighting.unit is not None and any(
        output.is_socket or output.is_denied for output in outputs
    )
    is_denied = any(output.is_denied for output in outputs)
    sight = _sight(sighting, has_files=bool(tails), in_journal=is_in_journal, is_denied=is_denied)
    return Logs(tuple(tails), is_in_journal, sight)


@dataclass(frozen=True, slots=True)
class _Output:
    """What the standard output or error of a process is; nothing where it is closed or gone."""

    path: str
    identity: tuple[int, int] = (0, 0)
    is_file: bool = False
    is_socket: bool = False
    is_denied: bool = False

    @classmethod
    def of(cls, proc: Proc, pid: int, number: int) -> Self:
        path = proc.path(pid, f"fd/{number}")
        try:
            # Asked before it is opened: the opening of a FIFO or a device is felt on its other end.
            found = os.stat(path)
        except PermissionError:
            return cls(path, is_denied=True)
        except OSError:
            return cls(path)
        return cls(
            path,
            (found.st_dev, found.st_ino),
            is_file=stat.S_ISREG(found.st_mode),
            is_socket=stat.S_ISSOCK(found.st_mode),
        )


def _container_files(root: Path, container: str) -> list[str]:
    """The file that a container's runtime writes its output to, by the runtime's habits."""
    container = glob.escape(container)
    patterns = (
        f"var/lib/docker/containers/{container}/{container}-json.log",
        f"var/log/containers/*-{container}.log",
        f"var/lib/containers/storage/overlay-containers/{container}/userdata/ctr.log",
    )
    for pattern in patterns:
        found = glob.glob(f"{glob.escape(str(root))}/{pattern}")
        if found:
            return found[:1]
    return []


def _sight(sighting: Sighting, *, has_files: bool, in_journal: bool, is_denied: bool) -> Sight:
    if has_files:
        return Sight(SightKind.LOG, is_visible=True)
    if in_journal:
        if shutil.which("journalctl"):
            return Sight(SightKind.LOG, is_visible=True)
        why_not = "its log is in the journal, and journalctl is not installed"
        fix = "apt-get install systemd, or run the agent on the host instead of in a container"
    elif sighting.container_id is not None:
        why_not = "the log of its container is not where Docker, Podman and Kubernetes have it"
        fix = "run the agent as root; in a container, mount /var/log and /var/lib/docker read-only"
    elif is_denied:
        why_not = "the agent may not look at its open files"
        fix = f"run the agent as root or as uid {sighting.uid}, or give it CAP_SYS_PTRACE"
    else:
        why_not = "its output goes to a terminal, a pipe or nowhere"
        fix = "send it to a file (vllm serve ... >>vllm.log 2>&1), or run it as a systemd service"
    return Sight(SightKind.LOG, is_visible=False, why_not=why_not, fix=fix)


def _open(path: str) -> tuple[int, int]:
    """A regular file and its size; nothing else is opened, or kept open."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise NotAFileError(f"{path} is no regular file")
    file = os.open(path, _FLAGS)
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode):
        os.close(file)
        raise NotAFileError(f"{path} is no regular file any more")
    return file, found.st_size


def _read(file: int, position: int, count: int) -> bytes:
    content = b""
    while count > len(content):
        more = os.pread(file, count - len(content), position + len(content))
        if not more:
            break
        content += more
    return content


def _unwrap(raw: bytes) -> tuple[bytes, float | None] | None:
    r"""A line without its envelope, and when the container's runtime got it; None if it has none.

    Docker's is `{"log": "…\n", "stream": "stdout", "time": "…Z"}`, that of CRI and Podman
    `2026-11-23T09:06:16.123456789+00:00 stdout F …`.
    """
    if raw.startswith(b"{"):
        try:
            record = json.loads(raw)
        except (ValueError, RecursionError):
            return None
        if not isinstance(record, dict) or not isinstance(record.get("log"), str):
            return None
        return record["log"].encode("utf-8", "surrogatepass"), _unix_seconds(record.get("time"))
    moment, _, rest = raw.partition(b" ")
    stream, _, rest = rest.partition(b" ")
    _, _, rest = rest.partition(b" ")
    if stream not in {b"stdout", b"stderr"}:
        return None
    return rest, _unix_seconds(moment.decode("ascii", "replace"))


def _unix_seconds(moment: object) -> float | None:
    """Unix time of an RFC 3339 moment with up to nine digits of a second's fraction."""
    if not isinstance(moment, str):
        return None
    try:
        return datetime.fromisoformat(moment).timestamp()
    except (OverflowError, ValueError):
        return None
