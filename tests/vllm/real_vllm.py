"""A real vLLM on the CPU, started as users start it, in a session of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Self

from tests.vllm.prepare import default_cache

if TYPE_CHECKING:
    from pathlib import Path

STOP_SECONDS = 60.0


class RealVllm:
    """`vllm serve` of the tiny model; its output is in `log_path`."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self.log_path = folder / "vllm.log"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Starts a new launch; returns at once, long before it serves."""
        cache = default_cache()
        command = [cache / "venv/bin/vllm", "serve", cache / "model"]
        flags = ["--served-model-name", "tiny", "--max-model-len", "512", "--enforce-eager"]
        address = ["--host", "127.0.0.1", "--port", str(self.port)]
        settings = {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*map(str, command), *flags, *address],
                stdout=log,
                stderr=log,
                env={**os.environ, **settings},
                start_new_session=True,
            )

    def terminate(self) -> int:
        """Stops it as an operator does; returns its exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(STOP_SECONDS)

    def kill(self) -> None:
        """Ends every process of its session, as a power cut would."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_SECONDS)
