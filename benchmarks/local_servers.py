"""Servers and other processes of this host, for an agent that finds them in /proc."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

from benchmarks.programs import READY_SECONDS, NotMeasurableError, free_port
from vllm_agent.demo.launch import NotServingError, StandIn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

ORPHAN_SECONDS: Final = 0.5
"""What is left of a server whose main process was killed ends by itself this soon."""

BYSTANDER_SECONDS: Final = 900
"""A process of a crowd ends by itself after this time, should its benchmark be killed."""


def start_server(folder: Path, port: int) -> StandIn:
    """A server with the processes and the log of a vLLM; it has begun to load."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{port}.log"
    return StandIn.start(f"--orphan-lifetime={ORPHAN_SECONDS}", port=port, log=log)


@contextmanager
def servers(folder: Path, count: int) -> Iterator[list[StandIn]]:
    """`count` servers that serve."""
    with ExitStack() as stack:
        started = [stack.enter_context(start_server(folder, free_port())) for _ in range(count)]
        await_serving(started)
        yield started


def holders(servers: Sequence[StandIn]) -> list[Sequence[int]]:
    """The processes of each server that a vLLM uses GPUs with."""
    return [server.engine_pids + server.worker_pids for server in servers]


def await_serving(started: Sequence[StandIn]) -> None:
    """Waits until all of them listen.

    Raises:
        NotMeasurableError: one does not.
    """
    for server in started:
        try:
            server.wait_serving(READY_SECONDS)
        except NotServingError as error:
            raise NotMeasurableError(str(error)) from error


@contextmanager
def crowd(count: int) -> Iterator[list[int]]:
    """The PIDs of `count` processes that do nothing, as a large host has."""
    command = ["sleep", str(BYSTANDER_SECONDS)]
    program = shutil.which(command[0]) or command[0]
    pids: list[int] = []
    try:
        for _ in range(count):
            pids.append(os.posix_spawn(program, command, os.environ))  # noqa: PERF401
        yield pids
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)
