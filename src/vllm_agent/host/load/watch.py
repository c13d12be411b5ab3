"""Asks every witness of one load again and again, while the server loads."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from vllm_agent.host.load.compile_cache import CompileCache
from vllm_agent.host.load.download import DownloadWitness
from vllm_agent.host.load.mapped_shards import MappedShards
from vllm_agent.host.load.tree_io import TreeIo
from vllm_agent.host.model_environment import ModelEnvironment
from vllm_agent.host.patience import Patience, TooManyHung
from vllm_agent.lifecycle.events import LoadLooked
from vllm_agent.observations import ComponentRole, LoadLook

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_agent.host.launch_log import LaunchLog
    from vllm_agent.host.local_host import LocalHost
    from vllm_agent.host.process_tree import TreeWatch
    from vllm_agent.observations import Download, LogProgress, Shard, Sighting

INTERVAL_SECONDS: Final = 1.0
"""From one look to the next: as often as the port of a loading server is knocked at."""

COST_SHARE: Final = 0.005
"""Of a core, that the witnesses of one load may use: looks that cost more come less often. With
what a look costs otherwise a load stays below a hundredth of a core."""

MAX_INTERVAL_SECONDS: Final = 10.0
"""The longest time between two looks, whatever they cost."""

HUNG_SECONDS: Final = 2.0
"""A witness that takes longer hangs, with its disk or the memory of a process."""

HUNG_PAUSE_SECONDS: Final = 60.0
"""A witness that hung is not asked for so long: each time may cost a thread."""

_Result = TypeVar("_Result")
_LOGGER: Final = logging.getLogger(__name__)


class LoadWatch:
    """The witnesses of one launch. `tell` gets a `LoadLooked` for each look."""

    def __init__(
        self,
        sighting: Sighting,
        host: LocalHost,
        tree: TreeWatch,
        log: LaunchLog,
        tell: Callable[[LoadLooked], None],
    ) -> None:
        self._sighting = sighting
        self._host = host
        self._tree = tree
        self._log = log
        self._tell = tell
        self._processes = _OffLoop[_OfProcesses]("processes of a load", host)
        self._files = _OffLoop[_OfFiles]("files of a load", host)
        self._shards = MappedShards(host.proc)
        self._io = TreeIo(host.proc)
        self._environment: ModelEnvironment | None = None
        self._download: DownloadWitness | None = None
        self._compile_cache: CompileCache | None = None
        self._is_cache_counted = False
        self._task: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[int | None] | None = None

    def start(self) -> None:
        """Begins to ask, unless it is under way."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="watch load")

    def stop(self) -> None:
        """Asks no more."""
        for task in (self._task, self._asking):
            if task is not None:
                task.cancel()
        self._task = self._asking = None

    async def _run(self) -> None:
        try:
            while True:
                try:
                    look = await self._look()
                except Exception:
                    # A fault of ours: the load is judged by what else is known.
                    _LOGGER.exception("could not look at a load")
                else:
                    self._tell(LoadLooked(look))
                await asyncio.sleep(self._pause_seconds())
        finally:
            self._processes.close()
            self._files.close()

    def _pause_seconds(self) -> float:
        cost_seconds = self._processes.cost_seconds + self._files.cost_seconds
        return min(max(INTERVAL_SECONDS, cost_seconds / COST_SHARE), MAX_INTERVAL_SECONDS)

    async def _look(self) -> LoadLook:
        pids = self._tree.pids
        of_processes, of_files, log = await asyncio.gather(
            self._processes.ask(lambda: self._ask_processes(pids)),
            self._files.ask(self._ask_files),
            self._log.progress(self._tree.all_pids),
        )
        self._ask_hub()
        self._count_left_out()
        return self._as_look(of_processes or _OfProcesses(), of_files or _OfFiles(), log)

    def _count_left_out(self) -> None:
        is_left_out = self._download is not None and self._download.has_left_out
        if is_left_out and not self._is_cache_counted:
            self._is_cache_counted = True
            self._host.count_dropped("hub_cache")

    def _ask_hub(self) -> None:
        """Asks the Hub for what only it can tell; the answer is there for a later look."""
        hub, download = self._host.hub, self._download
        question = None if download is None else download.question
        if hub is None or question is None or not (self._asking is None or self._asking.done()):
            return
        self._asking = asyncio.create_task(hub.ask(*question), name="ask the Hub")

    def _as_look(
        self, of_processes: _OfProcesses, of_files: _OfFiles, log: LogProgress | None
    ) -> LoadLook:
        gpus, cause = self._host.gpus, self._log.cause()
        return LoadLook(
            process=self._sighting.process,
            at=self._host.clock(),
            has_engine=self._tree.has_had(ComponentRole.ENGINE_CORE),
            has_worker=self._tree.has_had(ComponentRole.WORKER),
            is_eager=self._sighting.command.is_eager,
            download=of_files.download,
            shards=of_processes.shards,
            io_bytes=of_processes.io_bytes,
            gpu_bytes=None if gpus is None else gpus.used_bytes(self._tree.pids),
            cpu_seconds=self._tree.cpu_seconds,
            compile_changes=of_files.compile_changes,
            log=log,
            trouble="" if cause is None else cause.name,
        )

    # Off the event loop.

    def _ask_processes(self, pids: tuple[int, ...]) -> _OfProcesses:
        return _OfProcesses(self._shards.look(pids), self._io.total(pids))

    def _ask_files(self) -> _OfFiles:
        if self._download is None or self._environment is None:
            self._find_files()
        return _OfFiles(
            None if self._download is None else self._download.look(),
            None if self._compile_cache is None else self._compile_cache.changes(),
        )

    def _find_files(self) -> None:
        """Looks where the files are. Just after exec(2) a process has no environment yet."""
        proc, pid = self._host.proc, self._sighting.process.pid
        environment = ModelEnvironment.read(proc, pid) if self._host.may_read_environ else None
        if self._download is not None and environment is None:
            return
        self._environment = environment
        self._download = DownloadWitness(
            proc,
            pid,
            self._sighting.command,
            environment,
            self._sighting.start_seconds,
            self._host.hub,
        )
        folder = None if environment is None else environment.compile_cache
        if folder is not None:
            self._compile_cache = CompileCache(proc, pid, folder, self._sighting.start_seconds)


@dataclass(frozen=True, slots=True)
class _OfProcesses:
    shards: tuple[Shard, ...] | None = None
    io_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class _OfFiles:
    download: Download | None = None
    compile_changes: int | None = None


class _OffLoop(Generic[_Result]):
    """Asks something that may hang, in a thread of its own."""

    def __init__(self, what: str, host: LocalHost) -> None:
        self._what = what
        self._host = host
        self._patience = Patience(HUNG_SECONDS)
        self._not_before_seconds = -math.inf
        self.cost_seconds = 0.0

    async def ask(self, question: Callable[[], _Result]) -> _Result | None:
        """The answer; None where it hangs, or did lately."""
        now_seconds = self._host.clock().monotonic_seconds
        if now_seconds < self._not_before_seconds:
            return None
        try:
            answers, _ = await self._patience.map(_timed, [question])
        except TooManyHung:
            answers = []
        if answers:
            answer, self.cost_seconds = answers[0]
            return answer
        self._not_before_seconds = now_seconds + HUNG_PAUSE_SECONDS
        self._host.count_dropped("load_witness")
        _LOGGER.warning("a witness of a load hangs", extra={"witness": self._what})
        return None

    def close(self) -> None:
        """Lets the thread end."""
        self._patience.close()


def _timed(question: Callable[[], _Result]) -> tuple[_Result, float]:
    """The answer, and what it cost in seconds of CPU."""
    before = time.thread_time()
    return question(), time.thread_time() - before
