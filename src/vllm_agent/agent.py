"""The composition root: builds everything, runs it, and takes it down in order."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from collections import Counter
from typing import TYPE_CHECKING, Final

from vllm_agent import __version__, log
from vllm_agent.expose.exposition import Exposition
from vllm_agent.expose.http_api import control_app, read_app
from vllm_agent.host.clock import now
from vllm_agent.host.vllm_eyes import HttpEyes
from vllm_agent.lifecycle.server_life import Policy
from vllm_agent.publication import Publication
from vllm_agent.server_runner import ServerRunner, Watched
from vllm_agent.snapshot import CollectorSnapshot
from vllm_agent.store import StateDirectoryInUse, Store
from vllm_agent.web_server import CannotListen, WebServer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import web

    from vllm_agent.config import Config, ServerConfig
    from vllm_agent.config.flags import Settings

FIRST_LOOKS_AT_ONCE: Final = 64
"""First looks under way at a time: a thousand at once would time out by their own weight."""

GC_ALLOCATIONS: Final = 10_000
"""Allocations before the youngest generation is looked through, instead of Python's 700: a scrape
and a look make thousands of short-lived values, and none in a cycle."""

CONTROL_RETRY_SECONDS: Final = 30.0
"""How often a control socket that could not be made is tried again, as the store does."""

FAULT_PAUSE_SECONDS: Final = 5.0
"""Pause before a runner that ended by a fault of ours begins again."""

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
        self._runners: dict[str, ServerRunner] = {}
        self._left_out: Counter[str] = Counter()
        self._control_retry: asyncio.Task[None] | None = None
        self._store: Store
        self._exposition: Exposition

    async def run(self) -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, _say_reload_is_missing)
        self._store = await Store.open(self._settings.state_dir, clock=now)
        publication = Publication(now(), self._collectors, self._dropped)
        self._exposition = Exposition(publication.current, now, self._count_dropped)
        web_server = WebServer()
        try:
            await self._listen(web_server, publication)
            self._build_runners(publication)
            await self._watch(publication, stop)
        finally:
            await web_server.close()
            await self._store.close()
        _LOGGER.info("stopped")

    async def _listen(self, web_server: WebServer, publication: Publication) -> None:
        current, history = publication.current, self._store.history
        telemetry_path = self._settings.telemetry_path
        metrics = self._exposition.handle
        control = control_app(current, now, history, metrics, telemetry_path, self._set_maintenance)
        if not await self._serve_control(web_server, control):
            again = self._serve_control_later(web_server, control)
            self._control_retry = asyncio.create_task(again, name="control socket")
        readers: web.Application = read_app(current, now, history, metrics, telemetry_path)
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

    def _build_runners(self, publication: Publication) -> None:
        first_looks = asyncio.Semaphore(FIRST_LOOKS_AT_ONCE)
        for server in self._config.servers:
            self._runners[server.name] = ServerRunner(
                _watched(server),
                eyes=HttpEyes.of(server, now),
                recorder=self._store,
                publish=publication.publish,
                clock=now,
                first_looks=first_looks,
            )
        if not self._runners:
            _LOGGER.warning("no server is configured: write servers to --config.file")

    async def _watch(self, publication: Publication, stop: asyncio.Event) -> None:
        tasks = [
            asyncio.create_task(_supervised(name, runner), name=f"server {name}")
            for name, runner in self._runners.items()
        ]
        ready = asyncio.create_task(self._become_ready(publication))
        try:
            await stop.wait()
        finally:
            _LOGGER.info("stopping")
            tasks.append(ready)
            if self._control_retry is not None:
                tasks.append(self._control_retry)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _become_ready(self, publication: Publication) -> None:
        for runner in self._runners.values():
            await runner.first_look_done.wait()
        _settle_garbage_collection()
        publication.become_ready()
        _LOGGER.info("ready", extra={"servers": len(self._runners)})

    async def _set_maintenance(self, server: str, until_unix_seconds: float | None) -> None:
        await self._runners[server].set_maintenance(until_unix_seconds)

    def _collectors(self) -> tuple[CollectorSnapshot, ...]:
        status = self._store.status
        store = CollectorSnapshot(
            name="store",
            is_up=status.is_up,
            duration_seconds=status.duration_seconds,
            last_success_unix_seconds=status.last_success_unix_seconds,
            detail=status.detail,
        )
        return (self._probes(), store)

    def _probes(self) -> CollectorSnapshot:
        looks = [r.last_look for r in self._runners.values() if r.last_look is not None]
        newest = max(looks, key=lambda look: look.finished.monotonic_seconds, default=None)
        faulty = sum(runner.is_faulty for runner in self._runners.values())
        return CollectorSnapshot(
            name="probes",
            is_up=not faulty,
            duration_seconds=newest.finished.since(newest.started) if newest else None,
            last_success_unix_seconds=newest.finished.unix_seconds if newest else None,
            detail=f"{faulty} server(s) cannot be looked at: see the log" if faulty else "",
        )

    def _count_dropped(self, kind: str) -> None:
        self._left_out[kind] += 1

    def _dropped(self) -> Mapping[str, int]:
        return self._left_out + Counter(self._store.dropped)


def _watched(server: ServerConfig) -> Watched:
    return Watched(
        name=server.name,
        mode=server.mode,
        url=str(server.url),
        policy=Policy(
            failure_threshold=server.probe.failure_threshold,
            max_restarts=server.restart.max_restarts,
            restart_window_seconds=server.restart.window_seconds,
            expected_model=server.model,
        ),
        interval_seconds=server.probe.interval_seconds,
    )


async def _supervised(name: str, runner: ServerRunner) -> None:
    """A fault in one server's runner must not end the others, nor the watching of this one."""
    while True:
        try:
            await runner.run()
        except Exception:
            _LOGGER.exception("a runner ended by a fault of the agent", extra={"server": name})
        runner.is_faulty = True
        await asyncio.sleep(FAULT_PAUSE_SECONDS)


def _settle_garbage_collection() -> None:
    """What is built by now stays: to walk it again and again is a tenth of the CPU."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 50)


def _say_reload_is_missing() -> None:
    _LOGGER.warning("SIGHUP does not reload the configuration yet: restart the agent")
