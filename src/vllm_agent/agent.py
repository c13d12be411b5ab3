"""The composition root: builds everything, runs it, and takes it down in order."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import sys
from collections import Counter
from typing import TYPE_CHECKING, Final

from aiohttp import connector

from vllm_agent import __version__, log
from vllm_agent.config.choices import GpuUse
from vllm_agent.expose.exposition import Exposition
from vllm_agent.expose.http_api import control_app, read_app
from vllm_agent.expose.operations import CannotReloadError
from vllm_agent.host.clock import now
from vllm_agent.host.discovery import Discovery
from vllm_agent.host.gpu.amdgpu import AmdgpuReader
from vllm_agent.host.gpu.collector import GpuCollector
from vllm_agent.host.gpu.demo import DemoReader
from vllm_agent.host.gpu.nvml import NvmlReader
from vllm_agent.host.hf_hub.sizes import HubSizes
from vllm_agent.host.local_host import LocalHost
from vllm_agent.host.open_files import raise_open_files
from vllm_agent.host.proc import Proc
from vllm_agent.host.process_table import ProcessTable
from vllm_agent.lifecycle.states import LifecycleMode
from vllm_agent.operations import Reload, RosterOperations
from vllm_agent.publication import Publication
from vllm_agent.roster import Roster
from vllm_agent.snapshot import CollectorSnapshot
from vllm_agent.store import StateDirectoryInUse, Store
from vllm_agent.web_server import CannotListen, WebServer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from aiohttp import web

    from vllm_agent.config.flags import Settings
    from vllm_agent.config.gpu import GpuConfig
    from vllm_agent.config.model import Config
    from vllm_agent.host.gpu.reader import GpuReader
    from vllm_agent.host.proc import ProcessStat
    from vllm_agent.observations import Sight
    from vllm_agent.snapshot import GpuSnapshot, ServerSnapshot

GC_ALLOCATIONS: Final = 10_000
"""Allocations before the youngest generation is looked through, instead of Python's 700: a scrape
and a look make thousands of short-lived values, and none in a cycle."""

GC_OLD_ROUNDS: Final = 5
"""Rounds of the middle generation before everything is looked through: a server that comes and goes
leaves a hundred kB in cycles. What was there at the start is frozen, so a round is short."""

GPU_SECONDS: Final = 2.0
"""Longest wait for the first look at the GPUs before the agent is ready without them: to wake some
takes seconds each, and servers are watched meanwhile."""

CONTROL_RETRY_SECONDS: Final = 30.0
"""How often a control socket that could not be made is tried again, as the store does."""

_CLIENT_TLS_CONTEXTS: Final = frozenset({"_SSL_CONTEXT_VERIFIED", "_SSL_CONTEXT_UNVERIFIED"})
_LOGGER: Final = logging.getLogger(__name__)


def run(settings: Settings, config: Config) -> int:
    """Runs the agent until SIGTERM or SIGINT; returns the exit code."""
    log.set_up(settings.log_level, settings.log_format)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_Agent(settings, config).run())
    except (CannotListen, StateDirectoryInUse) as problem:
        sys.stderr.write(f"vllm-agent: {problem}\n")
        return 1
    return 0


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - only Linux has it
    except ImportError:
        return None
    return uvloop.Loop


class _Agent:
    def __init__(self, settings: Settings, config: Config) -> None:
        self._settings = settings
        self._config = config
        self._left_out: Counter[str] = Counter()
        self._control_retry: asyncio.Task[None] | None = None
        self._discovery: Discovery | None = None
        self._gpus: GpuCollector
        self._store: Store
        self._roster: Roster
        self._exposition: Exposition
        self._reload: Reload
        self._operations: RosterOperations
        self._reloading: set[asyncio.Task[None]] = set()
        self._environ = dict(os.environ)

    async def run(self) -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload_soon)
        raise_open_files()
        for warning in self._config.warnings:
            _LOGGER.warning("configuration", extra={"detail": warning})
        self._store = await Store.open(self._settings.state_dir, clock=now)
        source = self._config.source
        publication = Publication(
            now(),
            self._collectors,
            self._dropped,
            discovered=self._discovered,
            sights=self._sights,
            gpus=self._gpu_snapshots,
            config_file=None if source is None else str(source),
        )
        self._exposition = Exposition(publication.current, now, self._count_dropped)
        self._build(publication)
        web_server = WebServer()
        try:
            await self._listen(web_server, publication)
            await self._watch(publication, stop)
        finally:
            await web_server.close()
            await self._store.close()
        _LOGGER.info("stopped")

    def _build(self, publication: Publication) -> None:
        proc = Proc()
        table = ProcessTable(proc, now)
        self._gpus = GpuCollector(
            _readers(self._config.gpu, proc),
            proc=proc,
            clock=now,
            servers=lambda: publication.servers,
            interval_seconds=self._config.gpu.interval_seconds,
            timeout_seconds=self._config.gpu.timeout_seconds,
        )
        self._roster = roster = Roster(
            self._config,
            store=self._store,
            publication=publication,
            host=self._local_host(proc, table),
            clock=now,
            state_dir=self._settings.state_dir,
            environ=self._environ,
            count_dropped=self._count_dropped,
        )
        self._reload = Reload(
            self._config,
            self._config.source,
            self._environ,
            roster=roster,
            publication=publication,
            clock=now,
            told_again=self._tell_again,
        )
        self._operations = RosterOperations(roster, self._reload)
        is_local = any(s.mode is not LifecycleMode.EXTERNAL for s in self._config.servers)
        if not is_local and not self._config.discovery.enabled:
            if not self._config.servers:
                text = "no server is configured and discovery is off: there is nothing to watch"
                _LOGGER.warning(text)
            return

        def arrived(stats: Sequence[ProcessStat]) -> None:
            table.arrived(stats)
            roster.arrived(stats)

        self._discovery = Discovery(
            proc,
            found=roster.found,
            arrived=arrived,
            clock=now,
            count_dropped=self._count_dropped,
            max_servers=self._config.discovery.max_servers,
            is_wanted=roster.is_configured,
        )

    def _local_host(self, proc: Proc, table: ProcessTable) -> LocalHost:
        discovery = self._config.discovery
        return LocalHost(
            proc,
            table.now,
            now,
            self._count_dropped,
            gpus=self._gpus,
            hub=HubSizes() if discovery.ask_hub else None,
            may_read_environ=discovery.read_environ,
        )

    async def _listen(self, web_server: WebServer, publication: Publication) -> None:
        current, history = publication.current, self._store.history
        telemetry_path = self._settings.telemetry_path
        metrics = self._exposition.handle
        control = control_app(
            current,
            now,
            history,
            metrics,
            telemetry_path,
            self._operations.set_maintenance,
            self._roster.forget,
            self._operations,
        )
        if not await self._serve_control(web_server, control):
            again = self._serve_control_later(web_server, control)
            self._control_retry = asyncio.create_task(again, name="control socket")
        readers: web.Application = read_app(
            current,
            now,
            history,
            metrics,
            telemetry_path,
            self._operations,
            may_reload=self._settings.enable_lifecycle,
        )
        for address in await web_server.serve(self._settings.listen_addresses, readers):
            _LOGGER.info("listening", extra={"address": address, "version": __version__})

    async def _serve_control(self, web_server: WebServer, control: web.Application) -> bool:
        """Watching goes on without the socket: a read-only disk must not blind Prometheus."""
        try:
            await web_server.serve_socket(self._settings.state_dir / "control.sock", control)
        except CannotListen as problem:
            if self._control_retry is None:
                text = "no control socket: status, history, wait and maintenance do not work"
                _LOGGER.warning(text, extra={"detail": str(problem)})
            return False
        return True

    async def _serve_control_later(self, web_server: WebServer, control: web.Application) -> None:
        while True:
            await asyncio.sleep(CONTROL_RETRY_SECONDS)
            if await self._serve_control(web_server, control):
                _LOGGER.info("the control socket is there again")
                return

    async def _watch(self, publication: Publication, stop: asyncio.Event) -> None:
        await self._roster.begin()
        tasks = [
            asyncio.create_task(self._roster.leave_when_due(), name="leave"),
            asyncio.create_task(self._become_ready(publication), name="become ready"),
            asyncio.create_task(self._gpus.run(), name="gpus"),
        ]
        if self._discovery is not None:
            tasks.append(asyncio.create_task(self._discovery.run(), name="discovery"))
        try:
            await stop.wait()
        finally:
            _LOGGER.info("stopping")
            tasks += self._reloading
            if self._control_retry is not None:
                tasks.append(self._control_retry)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._roster.end()

    async def _become_ready(self, publication: Publication) -> None:
        if self._discovery is not None:
            await self._discovery.first_look_done.wait()
            self._roster.first_look_over(self._discovery.strays, is_blind=self._discovery.is_blind)
        await self._roster.wait_first_looks()
        try:
            async with asyncio.timeout(GPU_SECONDS):
                await self._gpus.first_look_done.wait()
        except TimeoutError:
            _LOGGER.debug("ready without the GPUs")
        _settle_memory()
        publication.become_ready()
        _LOGGER.info("ready", extra={"servers": len(list(self._roster.runners))})

    def _tell_again(self) -> None:
        if self._discovery is not None:
            self._discovery.tell_again()

    def _reload_soon(self) -> None:
        task = asyncio.create_task(self._reload_now(), name="reload")
        self._reloading.add(task)
        task.add_done_callback(self._reloading.discard)

    async def _reload_now(self) -> None:
        # It is logged, and shown by a metric.
        with contextlib.suppress(CannotReloadError):
            await self._reload.now()

    def _collectors(self) -> tuple[CollectorSnapshot, ...]:
        status = self._store.status
        store = CollectorSnapshot(
            name="store",
            is_up=status.is_up,
            duration_seconds=status.duration_seconds,
            last_success_unix_seconds=status.last_success_unix_seconds,
            detail=status.detail,
        )
        discovery = None if self._discovery is None else self._discovery.status
        sources = (discovery, self._probes(), self._gpus.status, store)
        return tuple(source for source in sources if source is not None)

    def _probes(self) -> CollectorSnapshot:
        runners = list(self._roster.runners)
        looks = [r.last_look for r in runners if r.last_look is not None]
        newest = max(looks, key=lambda look: look.finished.monotonic_seconds, default=None)
        faulty = sum(runner.is_faulty for runner in runners)
        return CollectorSnapshot(
            name="probes",
            is_up=not faulty,
            duration_seconds=newest.finished.since(newest.started) if newest else None,
            last_success_unix_seconds=newest.finished.unix_seconds if newest else None,
            detail=f"{faulty} server(s) cannot be looked at: see the log" if faulty else "",
        )

    def _discovered(self) -> int | None:
        return None if self._discovery is None else self._discovery.servers

    def _gpu_snapshots(self, servers: Iterable[ServerSnapshot]) -> tuple[GpuSnapshot, ...]:
        return self._gpus.snapshots(servers)

    def _sights(self) -> tuple[Sight, ...]:
        sights = () if self._discovery is None else self._discovery.sights
        return (*sights, *self._gpus.sights)

    def _count_dropped(self, kind: str) -> None:
        self._left_out[kind] += 1

    def _dropped(self) -> Mapping[str, int]:
        return self._left_out + Counter(self._store.dropped)


def _readers(config: GpuConfig, proc: Proc) -> list[tuple[GpuReader, GpuUse]]:
    if config.demo:
        return [(DemoReader(proc, now), GpuUse.REQUIRED)]
    readers = ((NvmlReader(now), config.nvml), (AmdgpuReader(), config.amdgpu))
    return [(reader, use) for reader, use in readers if use is not GpuUse.OFF]


def _settle_memory() -> None:
    """What is built by now stays: to walk it again and again is a tenth of the CPU."""
    # aiohttp loads the system's CAs for its HTTP client when it is imported: 2 MiB for nothing.
    connector.__dict__.update(dict.fromkeys(_CLIENT_TLS_CONTEXTS & connector.__dict__.keys()))
    gc.collect()
    # Only glibc has it, and gives back what the imports needed for a moment.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, GC_OLD_ROUNDS)
