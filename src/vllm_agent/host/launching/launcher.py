"""Starts, signals and clears the launches of one managed server, as its runner asks for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from vllm_agent.host.evidence_bundle import EvidenceBundles
from vllm_agent.host.launching.adoption import find_main, sighting_of
from vllm_agent.host.launching.asking import HangsError
from vllm_agent.host.launching.killing import kill_all, send_signal
from vllm_agent.host.launching.launch_cgroup import LaunchCgroup
from vllm_agent.host.launching.launch_files import LaunchFiles
from vllm_agent.host.launching.one_thread import in_thread
from vllm_agent.host.launching.remains import Remains
from vllm_agent.host.launching.start_error import StartError
from vllm_agent.host.launching.starting import Attempt, Starter
from vllm_agent.host.patience import TooManyHung
from vllm_agent.lifecycle.events import Cleared, EvidenceKept
from vllm_agent.observations import VllmCommand

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from pathlib import Path

    from vllm_agent.config.model import ServerConfig
    from vllm_agent.host.launching.refusal import Refusal
    from vllm_agent.host.local_host import LocalHost
    from vllm_agent.lifecycle.events import Event
    from vllm_agent.lifecycle.server_life import Ending
    from vllm_agent.observations import ProcessId, Sighting
    from vllm_agent.snapshot import ServerSnapshot

BOUND_SECONDS: Final = 60.0
"""How often the size of the logs is looked at: a server that writes 1 MB a second is 60 MB beyond
the bound by then."""

RETRY_SECONDS: Final = 5.0
"""How soon killing begins again after a fault of ours: a server that is not cleared never starts
again, and a fault that stays must not fill the log."""

EVIDENCE_DROPPED: Final = "evidence"
LOG_DROPPED: Final = "server_log"

_LOGGER: Final = logging.getLogger(__name__)


class ManagedLauncher:
    """Does to one managed server what its runner decides; made and used in one running loop.

    `launched` is called in the loop with the main process of each launch that was started.
    `agent_environ` is what servers inherit. Nothing here raises: what goes wrong is told as an
    event, or logged and tried again.
    """

    def __init__(
        self,
        server: ServerConfig,
        *,
        host: LocalHost,
        state_dir: Path,
        launched: Callable[[Sighting], None],
        agent_environ: Mapping[str, str],
    ) -> None:
        self._server = server
        self._host = host
        self._proc = host.proc
        self._state_dir = state_dir
        self._launched = launched
        self._files = LaunchFiles(state_dir, host.clock)
        self._starter = Starter(
            server,
            host=host,
            state_dir=state_dir,
            files=self._files,
            agent_environ=agent_environ,
            started=self._started,
            clear=partial(self._clear, None),
        )
        self._newest: Attempt | None = None
        self._bundles = EvidenceBundles(state_dir)
        self._one_bundle = asyncio.Lock()
        self._is_bundling_broken = False
        # By their main processes: launches that this agent saw live.
        self._seen: set[ProcessId] = set()
        self._clearing: dict[ProcessId, Callable[[Event], None]] = {}
        self._log_file = ""
        self._bounding: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def find(self, remembered: ProcessId | None) -> Sighting | None:
        """The launch of an agent before: what is remembered if it lives, else what has the mark.

        It waits until the host can be looked at.
        """
        plan = None
        with contextlib.suppress(StartError, HangsError, TooManyHung):
            plan = await self._starter.plan(None)
        process = await find_main(
            self._proc,
            self._starter.mark(),
            remembered,
            arguments=() if plan is None else plan.arguments[1:],
            count_dropped=self._host.count_dropped,
        )
        if process is None:
            return None
        sighting = await sighting_of(
            self._proc,
            process,
            command=VllmCommand() if plan is None else plan.command,
            url=None if plan is None else plan.url,
        )
        if sighting is None:
            return None
        self._seen.add(process)
        log_file = self._log_of(process)
        self._keep_log(log_file)
        return replace(sighting, log_file=log_file or None)

    async def adopt(self, remembered: ProcessId | None) -> bool:
        """Takes over the launch of an agent before, if it lives, and tells `launched` of it."""
        sighting = await self.find(remembered)
        if sighting is not None:
            self._launched(sighting)
        return sighting is not None

    async def why_not(self, model: str) -> Refusal | None:
        """Why the server would not serve `model`, told before anything is stopped for it."""
        return await self._starter.why_not(model)

    def has_marked(self, environ: bytes) -> bool:
        """Whether an environment block of /proc is of a launch of this server."""
        mark = self._starter.mark()
        return mark is not None and mark.is_in(environ)

    def start(self, attempt: int, model: str | None, tell: Callable[[Event], None]) -> None:
        """Checks what a start needs and starts the server.

        It ends in a call of `launched`, or in one of `tell` with `StartRefused`.
        """
        self._newest = Attempt(attempt, model)
        self._run(self._start(self._newest, tell), "start server")

    def cancel(self) -> None:
        """Gives up a start that has not come to a process yet."""
        if self._newest is not None:
            self._newest.give_up()

    def terminate(self, process: ProcessId) -> None:
        """Sends SIGTERM to a main process, if it is still that process."""
        try:
            send_signal(process, signal.SIGTERM, self._proc)
        except OSError as error:
            _LOGGER.warning(
                "SIGTERM could not be sent to a server",
                extra={"server": self._server.name, "pid": process.pid, "detail": str(error)},
            )

    def kill_all(self, process: ProcessId, tell: Callable[[Event], None]) -> None:
        """Kills what is left of a launch, however often that takes, and then tells `Cleared`."""
        is_under_way = process in self._clearing
        self._clearing[process] = tell
        if not is_under_way:
            self._run(self._kill_all(process), "kill server")

    def keep_evidence(
        self, ending: Ending, server: ServerSnapshot, tell: Callable[[Event], None]
    ) -> None:
        """Keeps what is known of an end in a file, and tells `EvidenceKept`; never raises."""
        self._run(self._keep_evidence(ending, server, self._log_file, tell), "keep evidence")

    def close(self) -> None:
        """Ends its own tasks. No server is touched.

        One that is being started this moment has the mark, by which the next agent finds it.
        """
        for task in self._tasks:
            task.cancel()
        # Whoever uses it again, after a fault, has to be able to clear again.
        self._clearing.clear()
        self._starter.close()

    async def settled(self) -> None:
        """Waits, not for ever, until no process is being started any more."""
        await self._starter.settled()

    async def _start(self, attempt: Attempt, tell: Callable[[Event], None]) -> None:
        refused = await self._starter.start(attempt)
        if refused is not None:
            tell(refused)

    def _started(self, sighting: Sighting, log_file: str) -> None:
        self._seen.add(sighting.process)
        self._keep_log(log_file)
        self._launched(replace(sighting, log_file=log_file))

    # Ending.

    async def _kill_all(self, process: ProcessId) -> None:
        is_told = False
        while True:
            try:
                await self._clear(process)
                break
            except Exception:
                if not is_told:
                    _LOGGER.exception(
                        "what is left of a server is not ended by a fault of the agent",
                        extra={"server": self._server.name},
                    )
                is_told = True
                await asyncio.sleep(RETRY_SECONDS)
        self._seen.discard(process)
        tell = self._clearing.pop(process, None)
        if tell is not None:
            tell(Cleared(process))

    async def _clear(self, process: ProcessId | None) -> None:
        """Ends all of that launch, or of any launch of this server."""
        remains = Remains(
            self._proc,
            process,
            self._starter.mark(),
            count_dropped=self._host.count_dropped,
            cgroup=None if process is None else LaunchCgroup.found(self._proc, process),
            was_seen_alive=process in self._seen,
        )
        name = self._server.name
        try:
            killed = await kill_all(
                remains, self._proc, server=name, count_dropped=self._host.count_dropped
            )
        finally:
            remains.close()
        if killed:
            text = "processes that were left of a server were killed"
            _LOGGER.info(text, extra={"server": name, "processes": killed})

    # What is kept.

    async def _keep_evidence(
        self, ending: Ending, server: ServerSnapshot, log_file: str, tell: Callable[[Event], None]
    ) -> None:
        gpus = self._host.gpus
        try:
            keep = partial(
                self._bundles.keep,
                server,
                ending,
                gpu_holders="" if gpus is None else gpus.holders(()),
                log_file=log_file,
                metrics_first=server.metrics_first,
                metrics_last=server.metrics_last,
            )
            async with self._one_bundle:
                path = await in_thread(keep, "evidence")
        except Exception as fault:
            self._host.count_dropped(EVIDENCE_DROPPED)
            if not self._is_bundling_broken:
                _LOGGER.warning(
                    "the evidence of an end could not be kept",
                    exc_info=None if isinstance(fault, OSError) else fault,
                    extra={"server": server.name, "detail": str(fault)},
                )
            self._is_bundling_broken = True
        else:
            self._is_bundling_broken = False
            tell(EvidenceKept(ending.launch_number, path))

    def _log_of(self, process: ProcessId) -> str:
        """The log of a launch that an agent before this one started."""
        with contextlib.suppress(OSError):
            path = os.readlink(self._proc.path(process.pid, "fd/1"))
            return path if path.startswith(f"{os.path.realpath(self._state_dir)}/") else ""
        return ""

    def _keep_log(self, path: str) -> None:
        self._log_file = path
        if self._bounding is None or self._bounding.done():
            self._bounding = self._run(self._bound_logs(), "bound logs")

    async def _bound_logs(self) -> None:
        while True:
            await asyncio.sleep(BOUND_SECONDS)
            cut = await in_thread(partial(self._files.bound, self._server.name), "bound logs")
            for _ in range(cut):
                self._host.count_dropped(LOG_DROPPED)

    # Its tasks.

    def _run(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            _LOGGER.error(
                "a task of a managed server ended by a fault of the agent",
                exc_info=fault,
                extra={"server": self._server.name, "task": task.get_name()},
            )
