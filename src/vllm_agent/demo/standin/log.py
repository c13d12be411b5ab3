"""vLLM 0.32's log: its two formats, its two streams, and the recorded text of each moment."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import time
from pathlib import Path

_RECORDINGS = Path(__file__).parent / "recordings"
_RECORD = re.compile(r"(INFO|WARNING|ERROR) \[([^\]]+)\](?: (.*))?")
_STDOUT, _STDERR = 1, 2


class Log:
    """The log of one process; `role` is the name that vLLM puts before the PID."""

    def __init__(self, role: str, pid: int | None = None) -> None:
        self._role = role
        self._pid = os.getpid() if pid is None else pid

    def record(self, level: str, source: str, message: str) -> None:
        """One line of vLLM's own logger, which goes to stdout."""
        moment = time.strftime("%m-%d %H:%M:%S")
        prefix = f"({self._role} pid={self._pid}) {level} {moment} [{source}]"
        _write(_STDOUT, f"{prefix} {message}\n")

    def access(self, line: str) -> None:
        """One line of uvicorn's access log, which goes to stdout."""
        _write(_STDOUT, f"INFO:     {line}\n")

    def bare(self, text: str) -> None:
        """Progress bars, tracebacks and uvicorn's own lines, which go to stderr."""
        _write(_STDERR, text)

    def section(self, recording: str, name: str, **values: object) -> None:
        """The recorded lines of one moment, with `<key>` replaced by its value."""
        for line in sections(recording)[name]:
            text = line.replace("<pid>", str(self._pid))
            for key, value in values.items():
                text = text.replace(f"<{key}>", str(value))
            record = _RECORD.fullmatch(text)
            if record is None:
                self.bare(text + "\n")
            else:
                self.record(record[1], record[2], record[3] or "")

    def unterminated(self, recording: str, name: str) -> None:
        """Recorded lines of stderr of which the last has no end: the next one is glued to it."""
        self.bare("\n".join(sections(recording)[name]))


@functools.cache
def sections(recording: str) -> dict[str, list[str]]:
    """A file of recorded log lines, by the `@name` line above them."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in (_RECORDINGS / f"{recording}.log").read_text(encoding="utf-8").splitlines():
        if line.startswith("@"):
            lines = found.setdefault(line[1:], [])
        else:
            lines.append(line)
    return found


def _write(fd: int, text: str) -> None:
    # Whoever read the log may be gone; the server goes on, as vLLM does.
    with contextlib.suppress(OSError):
        os.write(fd, text.encode())
