"""The usual layout: the main process is the API server and owns the engines."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING

from vllm_agent.demo.standin.actions import act
from vllm_agent.demo.standin.api_server import ApiServer

if TYPE_CHECKING:
    from vllm_agent.demo.standin.log import Log
    from vllm_agent.demo.standin.metrics_page import MetricsPage
    from vllm_agent.demo.standin.options import Options
    from vllm_agent.demo.standin.tree import Engine, Tree


class SingleServer(ApiServer):
    """The API server of a single-process front end; exits 0 however its engine ends."""

    def __init__(self, options: Options, log: Log, metrics: MetricsPage, tree: Tree) -> None:
        super().__init__(options, log, metrics)
        self._tree = tree
        self._living = set(range(len(tree.engines)))
        self._all_gone = asyncio.Event()
        self._engines_killed = False

    def watch_engines(self) -> None:
        """Reaps engines as they exit, toggles hangs, and performs the requested ending."""
        loop = asyncio.get_running_loop()
        for index, engine in enumerate(self._tree.engines):
            loop.add_reader(engine.pidfd, self._reap, index, engine)
        loop.add_signal_handler(signal.SIGUSR1, self._toggle_hang)
        if self.options.ends_by_itself:
            loop.call_later(self.options.ending_after, self._perform_ending)

    def _reap(self, index: int, engine: Engine) -> None:
        asyncio.get_running_loop().remove_reader(engine.pidfd)
        engine.reap()
        self._living.discard(index)
        if not self._living:
            self._all_gone.set()
        self._on_engine_lost()

    def _toggle_hang(self) -> None:
        for engine in self._tree.engines:
            engine.send(signal.SIGUSR1)

    def _perform_ending(self) -> None:
        if not act(self.options, self._tree):
            self._tree.kill_engines()
            self.end(0)

    async def _stop(self, signum: signal.Signals) -> None:  # noqa: ARG002  both do the same
        timing, timeout = self.options.timing, self.options.shutdown_timeout
        mode = "drain" if timeout else "abort"
        self.log.section("endings", "stop", mode=mode, timeout=f"{timeout:g}")
        await asyncio.sleep(timing.notice)
        self._tell_engines(signal.SIGTERM)
        if timeout:
            await self._drain()
        self.engine_dead = True
        await asyncio.sleep(timing.close_after_notice)
        await self._kill_engines()
        self.log.section("endings", "stopped_engines")
        if timeout and self.inference_requests:
            self.log.section("endings", "output_ended")
        self.log.section("endings", "close")
        await self._leave()

    async def _drain(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.options.shutdown_timeout):
                await self._all_gone.wait()

    def _on_engine_death(self) -> None:
        if not any(client.executor_failed for client in self.engines):
            name = self._tree.engines[0].name
            self.log.section("endings", "engine_vanished", engine=name)
        super()._on_engine_death()
        for client in self.engines:
            client.fail_waiting()
        if self.inference_requests:
            self.close_after_error()

    async def _leave(self) -> None:
        await self.close()
        timing = self.options.timing
        await asyncio.sleep(timing.stop_engine)
        if not self._engines_killed:
            self._tell_engines(signal.SIGTERM)
            await self._kill_engines()
        await asyncio.sleep(timing.api_server_exit - timing.stop_engine)
        for one in self._tree.bystanders:
            one.send(signal.SIGKILL)
        self.log.unterminated("endings", "leaks")
        self.log.section("endings", "tracker")
        self.end(0)

    def _tell_engines(self, signum: signal.Signals) -> None:
        values = {"timeout": f"{self.options.shutdown_timeout:g}"}
        for index in self._living:
            engine = self._tree.engines[index]
            self.log.section("endings", "stop_engines", engine=engine.name, **values)
            engine.send(signum)

    async def _kill_engines(self) -> None:
        engines = [self._tree.engines[index] for index in sorted(self._living)]
        self._engines_killed = True
        if not engines:
            return
        for engine in engines:
            values = {"engine": engine.name, "engine_pid": engine.pid}
            self.log.section("endings", "kill_engine", **values)
            engine.send(signal.SIGKILL)
        # The workers follow so soon that the engines are still exiting.
        await asyncio.sleep(self.options.timing.kill_workers)
        for engine in engines:
            for worker in engine.workers:
                if worker.send(signal.SIGKILL):
                    self.log.section(
                        "endings", "kill_worker", worker=worker.title, worker_pid=worker.pid
                    )
