"""A program on a terminal of a given width, and what it shows there."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import signal
    from collections.abc import Mapping, Sequence

ROWS = 24
DEADLINE_SECONDS = 30.0
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Shown:
    """What a terminal was sent."""

    raw: str

    @property
    def text(self) -> str:
        """Without escape sequences."""
        return _ESCAPE.sub("", self.raw)

    @property
    def lines(self) -> list[str]:
        """The text line by line."""
        return [line.rstrip() for line in self.text.splitlines()]


class PseudoTerminal:
    """`vllm-agent` with these arguments on a terminal of its own."""

    def __init__(
        self, argv: Sequence[str], columns: int, environ: Mapping[str, str] | None = None
    ) -> None:
        self._command = [sys.executable, "-m", "vllm_agent", *argv]
        self._columns = columns
        plain = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
        self._environ = {**plain, "TERM": "xterm-256color", **(environ or {})}
        self._raw = ""

    def __enter__(self) -> Self:
        self._master, terminal = pty.openpty()
        size = struct.pack("HHHH", ROWS, self._columns, 0, 0)
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)
        self._process = subprocess.Popen(
            self._command, stdin=terminal, stdout=terminal, stderr=terminal, env=self._environ
        )
        os.close(terminal)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    @property
    def returncode(self) -> int:
        """The exit status, once it has ended."""
        return self._process.wait(DEADLINE_SECONDS)

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def shown(self) -> Shown:
        """What it has shown so far."""
        return Shown(self._raw)

    def signal(self, number: signal.Signals) -> None:
        """Sends the program a signal."""
        self._process.send_signal(number)

    def read_until(self, text: str) -> Shown:
        """What it shows up to the moment at which `text` is there."""
        self._read(lambda: text in Shown(self._raw).text)
        assert text in Shown(self._raw).text, self._raw
        return Shown(self._raw)

    def read_all(self) -> Shown:
        """What it shows until it ends."""
        self._read(lambda: False)
        return Shown(self._raw)

    def _read(self, is_enough) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not is_enough() and time.monotonic() < deadline:
            if not select.select([self._master], [], [], 1.0)[0]:
                continue
            try:
                piece = os.read(self._master, 65_536)
            except OSError:
                return  # The other side is closed.
            self._raw += piece.decode(errors="replace")
