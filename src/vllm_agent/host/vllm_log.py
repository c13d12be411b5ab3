"""Finds the log of a vLLM without configuration, or takes the one that is configured.

All of this reads files that somebody else chose and may hang with their disk: call it in a thread
with a deadline, and leave a tail alone whose read did not return.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from vllm_agent.host.log_file import LogFile
from vllm_agent.host.log_findings import CANDIDATES
from vllm_agent.host.log_line import lines_of, read_line, unwrap
from vllm_agent.host.proc import read_small
from vllm_agent.host.vllm_markers import LAUNCH_BEGINS
from vllm_agent.observations import Sight, SightKind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from vllm_agent.host.log_file import Piece
    from vllm_agent.host.log_findings import LogFindings
    from vllm_agent.host.log_line import LogLine
    from vllm_agent.host.proc import Proc
    from vllm_agent.observations import Sighting

_CLOCK_STEP_SECONDS: Final = 2.0  # stamps have whole seconds, and the start is derived from ticks
_STDOUT, _STDERR = 1, 2
_OPEN_FLAGS: Final = re.compile(rb"^flags:\s+([0-7]+)$", re.MULTILINE)
_OPEN_PLACE: Final = re.compile(rb"^(?:mnt_id|ino):.*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Source:
    """A log file and what its lines say of a launch.

    `is_rotated` means that the file at `path` may be replaced by a new one. `is_wrapped`: each line
    is in an envelope of Docker, CRI or Podman; None where it may be. `has_host_pids`: the PIDs in
    its lines are this host's. `is_new`: the launch began just now, so that what is there is older
    if its PID does not tell otherwise. `was_missing`: there was no file when the launch began.
    """

    path: str
    started_unix_seconds: float
    is_new: bool
    is_rotated: bool = False
    is_wrapped: bool | None = False
    has_host_pids: bool = True
    was_missing: bool = False


class LogTail:
    """The lines of one launch in a file that grows, may be truncated, rotated and unreadable."""

    def __init__(self, source: Source, count_dropped: Callable[[str], None]) -> None:
        """Opens the file.

        Raises:
            NotAFileError: it is a FIFO, a device, a folder or a socket; it was not opened.
            OSError: it cannot be opened.
        """
        self.source = source
        self._count_dropped = count_dropped
        self._file = LogFile(
            source.path,
            count_dropped,
            is_rotated=source.is_rotated,
            is_wrapped=source.is_wrapped is not False,
            is_all_new=source.was_missing,
        )
        self._is_of_launch = False
        self._unfinished: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        """Whether it was not closed."""
        return self._file.is_open

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode of the file that is read."""
        return self._file.identity

    def fileno(self) -> int:
        """Descriptor of the file that is read."""
        return self._file.fileno()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def read(
        self, findings: LogFindings, *, max_bytes: int, pids: Collection[int] = (), number: int = 0
    ) -> Iterator[None]:
        """Reads what came since the last time, at most `max_bytes`; stops after each piece.

        `pids` are those that the launch has or had: where they are known, they tell which lines
        are its own of those that were there before. Of what came later, `findings` keep the PID.
        `number` tells the logs of the launch apart. Counts `log_bytes` if more came than is read,
        `log_read` if reading failed.
        """
        try:
            for piece in self._file.pieces(max_bytes):
                self._read_piece(piece, findings, pids, number)
                yield
        except OSError:
            self._count_dropped("log_read")

    def _read_piece(
        self, piece: Piece, findings: LogFindings, pids: Collection[int], number: int
    ) -> None:
        def wants_all(place: int) -> bool:
            # What is in an envelope may be escaped, or the rest of a line.
            return is_wrapped or place < piece.old_end or findings.wants_all

        is_wrapped = self.source.is_wrapped is not False
        for place, raw in lines_of(
            piece.content, piece.end, CANDIDATES, wants_all, piece.max_line_bytes
        ):
            is_old = place < piece.old_end
            unwrapped = self._unwrap(raw) if is_wrapped else (raw, None)
            if unwrapped is None:
                continue
            text, written = unwrapped
            line = read_line(text)
            if line.pid is not None and not self.source.has_host_pids:
                line = replace(line, pid=None, inner_pid=line.pid)
            if is_old and line.message.startswith(LAUNCH_BEGINS):
                findings.restart()
            if self._is_ours(line, written, pids, is_old=is_old):
                is_bare = written is None and line.pid is None and line.written_seconds is None
                findings.take(
                    line,
                    source=number,
                    written_seconds=written,
                    may_mark=not (is_old and is_bare),
                )

    def _unwrap(self, raw: bytes) -> tuple[bytes, float | None] | None:
        """A line and when the container's runtime got it; None for the rest of a line."""
        wrapped = unwrap(raw)
        if wrapped is None:
            return None if self.source.is_wrapped else (raw, None)
        is_rest = wrapped.stream in self._unfinished
        if wrapped.is_whole:
            self._unfinished.discard(wrapped.stream)
        else:
            self._unfinished.add(wrapped.stream)
        return None if is_rest else (wrapped.raw, wrapped.at_seconds)

    def _is_ours(
        self, line: LogLine, wrapped: float | None, pids: Collection[int], *, is_old: bool
    ) -> bool:
        """Whether a line was written by this launch, or may have been where its PID tells that."""
        since = self.source.started_unix_seconds - _CLOCK_STEP_SECONDS
        if not is_old:
            return wrapped is None or wrapped >= since
        written = line.written_seconds if wrapped is None else wrapped
        if line.pid is not None and pids:
            self._is_of_launch = line.pid in pids
        elif line.pid is not None or written is not None:
            # The last words of the launch before are as old as this one may be.
            is_late = written is not None and written >= since
            self._is_of_launch = is_late and not self.source.is_new
        return self._is_of_launch


@dataclass(frozen=True, slots=True)
class Logs:
    """Where the log of a launch is: files, and whether the journal has it; and whether that is any.

    `is_missing`: the file that is configured is not there yet. Close the tails when the launch has
    ended.
    """

    tails: tuple[LogTail, ...]
    sight: Sight
    is_in_journal: bool = False
    is_missing: bool = False

    def read(
        self, findings: LogFindings, *, max_bytes: int, pids: Collection[int] = ()
    ) -> Iterator[None]:
        """Reads what is new in all files, in order where one file has all; see LogTail."""
        for number, tail in enumerate(self.tails):
            yield from tail.read(findings, max_bytes=max_bytes, pids=pids, number=number)

    def close(self) -> None:
        """Closes the files."""
        for tail in self.tails:
            tail.close()


def configured_logs(
    proc: Proc,
    sighting: Sighting,
    log_file: str,
    count_dropped: Callable[[str], None],
    *,
    is_new: bool,
    was_missing: bool = False,
) -> Logs:
    """Opens the log of a launch that the configuration names; no tail where that cannot be done.

    `was_missing`: it was not there when that was tried before.
    """
    pid = sighting.process.pid
    source = Source(
        path=log_file,
        started_unix_seconds=sighting.start_seconds,
        is_new=is_new,
        is_rotated=True,
        is_wrapped=None,
        has_host_pids=proc.inner_pid(pid) == pid,
        was_missing=was_missing,
    )
    try:
        tail = LogTail(source, count_dropped)
    except OSError as error:
        why_not = f"{log_file}, its log_file, cannot be read: {error.strerror or 'no regular file'}"
        fix = "set log_file to a file that the agent may read, or remove it from the configuration"
        sight = Sight(SightKind.LOG, is_visible=False, why_not=why_not, fix=fix)
        return Logs((), sight, is_missing=isinstance(error, FileNotFoundError))
    return Logs((tail,), Sight(SightKind.LOG, is_visible=True))


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
    infos: dict[str, str] = {}
    for output in outputs:
        if output.is_file:
            infos[output.path] = output.info_path
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
            tail = LogTail(source, count_dropped)
        except OSError:
            count_dropped("log_open")
            continue
        if source.path in infos and not _is_open_at(infos[source.path], tail):
            # By the time that it was opened, the process had put another in its place.
            tail.close()
            count_dropped("log_open")
            continue
        tails.append(tail)
    is_in_journal = sighting.unit is not None and any(
        output.is_socket or output.is_denied for output in outputs
    )
    is_denied = any(output.is_denied for output in outputs)
    sight = _sight(sighting, has_files=bool(tails), in_journal=is_in_journal, is_denied=is_denied)
    return Logs(tuple(tails), sight, is_in_journal=is_in_journal)


@dataclass(frozen=True, slots=True)
class _Output:
    """What the standard output or error of a process is; nothing where it is closed or gone."""

    path: str
    info_path: str
    identity: tuple[int, int] = (0, 0)
    is_file: bool = False
    is_socket: bool = False
    is_denied: bool = False

    @classmethod
    def of(cls, proc: Proc, pid: int, number: int) -> Self:
        path, info_path = (proc.path(pid, f"{folder}/{number}") for folder in ("fd", "fdinfo"))
        try:
            # Asked before it is opened: the opening of a FIFO or a device is felt on its other end.
            found = os.stat(path)
        except PermissionError:
            return cls(path, info_path, is_denied=True)
        except OSError:
            return cls(path, info_path)
        identity = found.st_dev, found.st_ino
        if not stat.S_ISREG(found.st_mode):
            return cls(path, info_path, identity, is_socket=stat.S_ISSOCK(found.st_mode))
        info = read_small(info_path)
        return cls(
            path,
            info_path,
            identity,
            is_file=info is not None and _is_written(info),
            is_denied=info is None,
        )


def _is_written(info: bytes) -> bool:
    """Whether an open file can be written to, by its fdinfo: proc_pid_fdinfo(5).

    With O_PATH any user can have a file open that it may not read: it is not read for them.
    """
    found = _OPEN_FLAGS.search(info)
    flags = os.O_PATH if found is None else int(found[1], 8)
    return not flags & os.O_PATH and flags & os.O_ACCMODE in {os.O_WRONLY, os.O_RDWR}


def _is_open_at(info_path: str, tail: LogTail) -> bool:
    """Whether what was opened is what a process has open there, to write to it.

    One look tells both, so that nothing can be put in its place in between.
    """
    theirs, ours = read_small(info_path), read_small(f"/proc/self/fdinfo/{tail.fileno()}")
    if theirs is None or ours is None:
        return False
    return _is_written(theirs) and _OPEN_PLACE.findall(theirs) == _OPEN_PLACE.findall(ours)


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
