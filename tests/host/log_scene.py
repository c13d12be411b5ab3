"""Logs under test: lines of a vLLM, files that grow, and what was found in them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vllm_agent.host.log_findings import Caused, LogFindings, WentOn
from vllm_agent.host.vllm_markers import Marked

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from vllm_agent.host.log_findings import Told
    from vllm_agent.host.vllm_log import Logs, LogTail

LOST = "AsyncLLM output_handler failed."
FATAL = "EngineCore encountered a fatal error."
STOPPED = "[shutdown] API server: shutdown triggered"
NO_PORT = "OSError: [Errno 98] Address already in use"
NO_MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB."


def line(
    message: str = LOST, *, pid: int = 77, at: float | None = None, level: str = "ERROR"
) -> bytes:
    stamp = time.strftime("%m-%d %H:%M:%S", time.localtime(at))
    return f"(APIServer pid={pid}) {level} {stamp} [x.py:1] {message}\n".encode()


class Drops(list[str]):
    def __call__(self, kind: str) -> None:
        self.append(kind)


def append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


def keep(text: str) -> str:
    """Redacts nothing."""
    return text


class Reader:
    """Reads a log as `LaunchLog` does, and keeps all that was found."""

    def __init__(self, drops: Drops | None = None, redact: Callable[[str], str] = keep) -> None:
        self.drops = Drops() if drops is None else drops
        self.findings = LogFindings(redact, self.drops)
        self.told: Told = self.findings.told()
        self.found: list[Marked | Caused | WentOn] = []

    def read(
        self,
        log: LogTail | Logs,
        pids: Collection[int] = (),
        *,
        max_bytes: int = 4 * 1024 * 1024,
        is_loading: bool = False,
    ) -> list[Marked]:
        """The marks of this launch that are new."""
        self.findings.begin_look(is_loading=is_loading)
        found: list[Marked | Caused | WentOn] = []
        for _ in log.read(self.findings, max_bytes=max_bytes, pids=pids):
            self.told = self.findings.told()
            found += self.told.findings
        self.found += found
        return [
            one
            for one in found
            if isinstance(one, Marked) and (not pids or one.pid is None or one.pid in pids)
        ]

    @property
    def causes(self) -> list[str]:
        return [one.cause.name for one in self.found if isinstance(one, Caused)]

    @property
    def excerpt(self) -> list[str]:
        return [text for _, text in self.told.excerpt]
