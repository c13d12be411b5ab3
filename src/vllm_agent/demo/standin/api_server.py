"""The API server process: serves HTTP, watches its engines, and stops as vLLM does."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from typing import TYPE_CHECKING

from aiohttp import web

from vllm_agent.demo.standin import process
from vllm_agent.demo.standin.engine_client import EngineClient
from vllm_agent.demo.standin.hostile import ResetProtocol
from vllm_agent.demo.standin.routes import Routes

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Any

    from vllm_agent.demo.standin.log import Log
    from vllm_agent.demo.standin.metrics_page import MetricsPage
    from vllm_agent.demo.standin.options import Options

# vLLM's and uvicorn's backlog.
_BACKLOG = 2048


class _Connection(web.RequestHandler):
    """A connection that may stay without any request for ever, as with uvicorn."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.keep_alive(val=True)  # drops aiohttp's timer for the first request


class ApiServer:
    """One listening process; `Frontend` and `SingleServer` say how it ends."""

    def __init__(self, options: Options, log: Log, metrics: MetricsPage) -> None:
        self.options = options
        self.log = log
        self.metrics = metrics
        self.engine_dead = False
        self.engines: list[EngineClient] = []
        self._stopping = False
        self._ends_by_itself = False
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(
        self, sock: socket.socket, clients: Sequence[int], on_listening: Callable[[], None]
    ) -> int:
        """Listens and serves until the end; returns the exit status.

        Raises:
            OSError: the port was taken between bind and listen.
        """
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._started = self._loop.time()
        self.engines = [EngineClient(fd, self._loop, self._on_engine_lost) for fd in clients]
        self._add_signals()
        self._routes = Routes(self)
        self._http = web.Server(self._routes.answer, handler_cancellation=True)
        self._listener = await self._loop.create_server(
            self._protocol, sock=sock, backlog=_BACKLOG, ssl=self._tls()
        )
        self.log.section("load", "serving", address=self.options.address)
        self.log.section("load", "started")
        self._schedule_watchdog()
        if self.options.sleeping and self.options.fault_after:
            self._loop.call_later(self.options.fault_after, self.metrics.fall_asleep)
        on_listening()
        return await self._ended

    @property
    def faulty(self) -> bool:
        """Whether the time of the requested faults has come."""
        return self._loop.time() - self._started >= self.options.fault_after

    @property
    def inference_requests(self) -> int:
        """Requests that are being answered now."""
        return self._active

    def begin_inference(self) -> EngineClient:
        """Counts a request that a stop must wait for, in the least busy engine."""
        self._active += 1
        self._idle.clear()
        engine = min(self.engines, key=lambda engine: engine.running)
        engine.begin()
        return engine

    def end_inference(self, engine: EngineClient) -> None:
        """Ends what `begin_inference` began."""
        engine.end()
        self._active -= 1
        if self._active == 0:
            self._idle.set()

    def close_after_error(self) -> None:
        """A request met the dead engine: vLLM closes without waiting for its watchdog."""
        if not self._stopping:
            self._loop.call_later(self.options.timing.stream_error, self._close_for_dead_engine)

    # Signals.

    def _add_signals(self) -> None:
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(signum, self._on_stop_signal, signum)
        self._loop.add_signal_handler(
            signal.SIGSEGV,
            lambda: process.freeze_and_die_by(signal.SIGSEGV, self.options.timing.core_dump),
        )

    def _on_stop_signal(self, signum: signal.Signals) -> None:
        if not (self._stopping or self.options.ignore_sigterm):
            self._stopping = True
            self.run_task(self._stop(signum))

    async def _stop(self, signum: signal.Signals) -> None:
        raise NotImplementedError

    def run_task(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs a step of the ending; an error in it ends the server with status 1."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and not self._ended.done():
            self._ended.set_exception(task.exception() or RuntimeError())

    # The engine's death.

    def _on_engine_lost(self) -> None:
        if self.engine_dead:
            return
        self.engine_dead = True
        if not self._stopping:
            self._on_engine_death()

    def _on_engine_death(self) -> None:
        self.log.section("endings", "output_ended")

    def _schedule_watchdog(self) -> None:
        self._loop.call_later(self.options.timing.watchdog, self._watch)

    def _watch(self) -> None:
        if self.engine_dead:
            self._close_for_dead_engine()
        else:
            self._schedule_watchdog()

    def _close_for_dead_engine(self) -> None:
        if not self._stopping:
            self._stopping = self._ends_by_itself = True
            self.run_task(self._leave())

    async def _leave(self) -> None:
        """Closes, waits for clients, and ends."""
        await self.close()
        await asyncio.sleep(self.options.timing.api_server_exit)
        self.log.unterminated("endings", "leaks")
        self.end(0)

    async def close(self) -> None:
        """Closes listener and idle connections, then waits for the others."""
        self.log.bare("INFO:     Shutting down\n")
        self._listener.close()
        for connection in self._http.connections:
            if connection in self._routes.busy:
                connection.close()
            else:
                connection.force_close()
        await self._idle.wait()
        for line in ("Waiting for application shutdown.", "Application shutdown complete."):
            self.log.bare(f"INFO:     {line}\n")
        if self._ends_by_itself:
            self.log.bare(f"INFO:     Finished server process [{os.getpid()}]\n")

    def end(self, status: int) -> None:
        """Lets `serve` return."""
        if not self._ended.done():
            self._ended.set_result(status)

    # Connections.

    def _protocol(self) -> asyncio.Protocol:
        if self.faulty and any(
            fault.mode == "reset" and fault.path is None for fault in self.options.faults
        ):
            return ResetProtocol()
        return _Connection(
            self._http,
            loop=self._loop,
            keepalive_timeout=self.options.timing.keep_alive,
        )

    def _tls(self) -> ssl.SSLContext | None:
        if self.options.ssl_certfile is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.options.ssl_certfile, self.options.ssl_keyfile)
        return context


class Frontend(ApiServer):
    """One of several API servers: the main process ends the engines and, in time, this one."""

    def __init__(self, options: Options, log: Log, metrics: MetricsPage, index: int) -> None:
        super().__init__(options, log, metrics)
        self._index = index

    def watch_parent(self, parent_alive: int) -> None:
        """Serves on without a main process, as vLLM's does, but not for ever."""
        loop = asyncio.get_running_loop()

        def orphaned() -> None:
            loop.remove_reader(parent_alive)
            loop.call_later(self.options.orphan_lifetime, self.end, 0)

        loop.add_reader(parent_alive, orphaned)

    def _on_engine_death(self) -> None:
        """Nothing is logged: the main process is quicker."""

    async def _stop(self, signum: signal.Signals) -> None:
        timing, timeout = self.options.timing, self.options.shutdown_timeout
        mode = "drain" if timeout else "abort"
        self.log.section("endings", "frontend_stop", mode=mode, timeout=f"{timeout:g}")
        if self.engine_dead:
            self.log.section("endings", "output_ended")
        self.log.section("endings", "frontend_stopped")
        # The main process sends SIGINT where it will kill this one before it can close.
        is_doomed = signum == signal.SIGINT
        await asyncio.sleep(timing.api_server_grace if is_doomed else timing.frontend_close)
        if self.engine_dead:
            # vLLM finds another of its own processes on the port.
            title = f"VLLM::APIServer_{(self._index + 1) % self.options.api_servers}"
            self.log.section("endings", "port_used", port=self.options.port, title=title)
        self.log.section("endings", "close")
        if self.engine_dead and self._index == 0:
            # Recorded: with a dead engine one idle API server did not end by itself.
            self._idle.clear()
        await self._leave()
