"""Managed servers for an agent that starts them itself, and the end of every one of them."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import vllm_agent.demo
from benchmarks.local_servers import ORPHAN_SECONDS
from vllm_agent.demo.launch import kill_all, write_checkpoint
from vllm_agent.demo.server import LIFETIME_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

LIFETIME_SECONDS: Final = 900
"""A server ends by itself after this time, should its benchmark be killed."""

_VLLM: Final = Path(vllm_agent.demo.__file__).parent / "standin" / "bin" / "vllm"
_OUTPUTS: Final = ("1", "2")


def managed_config(
    folder: Path, ports: Sequence[int], interval: str, restart: Mapping[str, object] | None = None
) -> str:
    """A configuration with managed servers `s0`, `s1` … on these ports, and no others of the host.

    They serve a model that is made in `folder`.
    """
    model = write_checkpoint(folder / "model", shards=1)
    servers = "".join(
        f"  - {json.dumps(_server(number, port, model, interval, restart or {}))}\n"
        for number, port in enumerate(ports)
    )
    return f"discovery: {{enabled: false}}\nservers:\n{servers}"


def _server(
    number: int, port: int, model: Path, interval: str, restart: Mapping[str, object]
) -> Mapping[str, object]:
    managed = {
        "command": [sys.executable, str(_VLLM), "serve"],
        "args": ["--orphan-lifetime", str(ORPHAN_SECONDS)],
        "env": {LIFETIME_VARIABLE: str(LIFETIME_SECONDS)},
    }
    # Root must be asked for.
    user = {"user": "root"} if os.geteuid() == 0 else {}
    return {
        "name": f"s{number}",
        "mode": "managed",
        "model": str(model),
        "url": f"http://127.0.0.1:{port}",
        "probe": {"interval": interval},
        "restart": restart,
        "managed": {**managed, **user},
    }


@contextmanager
def none_left(folder: Path) -> Iterator[None]:
    """Kills, at the end, whatever agents with a state directory in `folder` have started.

    An agent that is still there would start them again: enter this before the agent.
    """
    try:
        yield
    finally:
        while pids := launched_pids(folder):
            kill_all(pids)


def launched_pids(folder: Path) -> list[int]:
    """PIDs of the processes that write to a log of a launch in the state directory of `folder`.

    Every process of a launch has that log for its output, orphans too.
    """
    logs = f"{folder / 'state' / 'logs'}/"
    return [
        int(entry)
        for entry in os.listdir("/proc")  # noqa: PTH208  names are all that is needed
        if entry.isdigit() and any(output.startswith(logs) for output in _outputs(entry))
    ]


def _outputs(pid: str) -> Iterator[str]:
    for output in _OUTPUTS:
        with contextlib.suppress(OSError):
            yield os.readlink(f"/proc/{pid}/fd/{output}")  # noqa: PTH115  may be no path
