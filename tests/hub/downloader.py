"""A server that does nothing but download, as vLLM does, with the real huggingface_hub."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Self

from vllm_agent.host.load.download import DownloadWitness
from vllm_agent.host.model_environment import ModelEnvironment
from vllm_agent.host.proc import Proc
from vllm_agent.observations import VllmCommand

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.hub.standin import Hub
    from vllm_agent.host.hf_hub.sizes import HubSizes
    from vllm_agent.observations import Download

# Pieces are written as they come and not 10 MB at a time; each line is one more attempt.
_CODE = """
import sys, time
time.sleep = lambda seconds: None
from huggingface_hub import constants, snapshot_download
constants.DOWNLOAD_CHUNK_SIZE = 64 * 1024
for line in sys.stdin:
    try:
        snapshot_download(sys.argv[1], max_workers=1, allow_patterns=sys.argv[2:])
        print("done", flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
"""


def wait_until(is_so: Callable[[], bool], timeout_seconds: float = 10.0) -> None:
    """Waits for what another process does."""
    end = time.monotonic() + timeout_seconds
    while not is_so():
        assert time.monotonic() < end, "it never came to be so"
        time.sleep(0.002)


class Downloader:
    """A process that downloads `patterns` of the model of `hub`, each time that it is told to."""

    def __init__(self, hub: Hub, home: Path, *patterns: str) -> None:
        self.hub = hub
        self.started_seconds = time.time()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CODE, hub.repo, *patterns],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(home),
                "HF_ENDPOINT": hub.url,
                "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            },
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def pid(self) -> int:
        return self._process.pid

    def begin(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def outcome(self) -> str:
        """How the attempt ended; waits for it."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def witness(self, sizes: HubSizes | None = None, **said: Any) -> DownloadWitness:
        """One that looks at this process."""
        proc = Proc()
        # It has none until it has become the program.
        wait_until(lambda: ModelEnvironment.read(proc, self.pid) is not None)
        environment = ModelEnvironment.read(proc, self.pid)
        command = VllmCommand(model=self.hub.repo, **said)
        return DownloadWitness(proc, self.pid, command, environment, self.started_seconds, sizes)


def looked(witness: DownloadWitness) -> Download:
    """A look that saw something."""
    look = witness.look()
    assert look is not None
    return look


def seen(witness: DownloadWitness, is_so: Callable[[Download], bool]) -> Download:
    """The first look of which that is so."""
    looks: list[Download] = []

    def is_seen() -> bool:
        look = witness.look()
        looks[:] = [look] if look is not None else []
        return look is not None and is_so(look)

    wait_until(is_seen)
    return looks[0]
