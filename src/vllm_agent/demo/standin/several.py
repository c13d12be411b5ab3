"""Several API servers: the main process listens on nothing and watches its children."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from functools import partial
from typing import TYPE_CHECKING

from vllm_agent.demo.standin import process
from vllm_agent.demo.standin.actions import act
from vllm_agent.demo.standin.api_server import Frontend
from vllm_agent.demo.standin.log import Log
from vllm_agent.demo.standin.stages import stage_seconds
from vllm_agent.demo.standin.tree import Component

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from vllm_agent.demo.standin.load import Load
    from vllm_agent.demo.standin.metrics_page import MetricsPage
    from vllm_agent.demo.standin.options import Options

_GO, _LISTENING = b"g", b"l"


class Watcher:
    """The main process with several API servers."""

    def __init__(
        self, options: Options, log: Log, load: Load, sock: socket.socket, metrics: MetricsPage
    ) -> None:
        self._options = options
        self._log = log
        self._reactor = load.reactor
        self._load = load
        self._tree = load.tree
        self._sock = sock
        self._metrics = metrics
        self._living: dict[int, Component] = {}
        self._listening = 0
        self._ending = False
        self._go_read, self._go = os.pipe()
        self._heard, self._say = os.pipe()

    def run(self, on_listening: Callable[[], None]) -> int:
        """Starts the API servers, then watches until the end; returns the exit status.

        Raises:
            LoadFailed: an engine failed, or a signal ended the load.
        """
        for index in range(self._options.api_servers):
            self._fork_frontend(index)
        self._log.section("load", "frontends_started", count=self._options.api_servers)
        try:
            self._load.wait()
        except Exception:
            for one in self._tree.api_servers:
                one.send(signal.SIGKILL)
            raise
        self._watch_children()
        self._reactor.on_readable(self._heard, lambda: self._on_listening(on_listening))
        os.write(self._go, _GO * self._options.api_servers)
        self._reactor.on_signal([signal.SIGTERM, signal.SIGINT], self._on_stop_signal)
        self._reactor.on_signal([signal.SIGUSR1], self._toggle_hang)
        return self._reactor.run()

    def _fork_frontend(self, index: int) -> None:
        clients = tuple(engine.clients[index] for engine in self._tree.engines)
        keep = [self._sock.fileno(), self._go_read, self._say, self._tree.parent_alive, *clients]
        pid = process.fork(lambda: self._run_frontend(index, clients), keep)
        self._tree.api_servers.append(Component.of(f"VLLM::APIServer_{index}", pid))
        for client in clients:
            os.close(client)

    def _run_frontend(self, index: int, clients: tuple[int, ...]) -> int:
        process.die_slowly()
        time.sleep(stage_seconds(self._options, "engine_spawn"))
        process.set_title(f"VLLM::APIServer_{index}")
        if not os.read(self._go_read, len(_GO)):
            return 1
        self._metrics.use_region(index)

        async def serve() -> int:
            log = Log(f"ApiServer_{index}")
            frontend = Frontend(self._options, log, self._metrics, index)
            frontend.watch_parent(self._tree.parent_alive)
            return await frontend.serve(self._sock, clients, self._say_listening)

        return asyncio.run(serve())

    def _say_listening(self) -> None:
        os.write(self._say, _LISTENING)

    def _on_listening(self, on_listening: Callable[[], None]) -> None:
        self._listening += len(os.read(self._heard, self._options.api_servers))
        if self._listening < self._options.api_servers:
            return
        self._reactor.forget(self._heard)
        on_listening()
        if self._options.ends_by_itself:
            self._reactor.call_later(self._options.ending_after, self._perform_ending)

    def _perform_ending(self) -> None:
        if not act(self._options, self._tree):
            self._ending = True
            self._kill_everyone()
            self._reactor.stop(0)

    def _toggle_hang(self, _signum: int) -> None:
        for engine in self._tree.engines:
            engine.send(signal.SIGUSR1)

    # Ending.

    def _watch_children(self) -> None:
        for one in (*self._tree.engines, *self._tree.api_servers):
            self._living[one.pid] = one
            self._reactor.on_readable(one.pidfd, partial(self._on_exit, one))

    def _on_exit(self, one: Component) -> None:
        self._reactor.forget(one.pidfd)
        one.reap()
        del self._living[one.pid]
        if not self._ending:
            self._ending = True
            self._end_after_death(self._report_death(one))

    def _report_death(self, one: Component) -> dict[str, object]:
        if one in self._tree.engines:
            self._log.section("endings", "send_sigterm", process=one.name)
            line, error = 591, f"Engine core process {one.name} died unexpectedly."
        else:
            # As recorded: vLLM is told of the death before it can ask for the exit code.
            line = 586
            error = f"Process {_log_name(one)} (PID: {one.pid}) died with exit code None"
        values: dict[str, object] = {"error": error, "line": line}
        self._log.section("endings", "main_failed", **values)
        return values

    def _end_after_death(self, values: dict[str, object]) -> None:
        """Frontends first, by force after a grace period, then the engines, then this one."""
        timing = self._options.timing
        self._log_sigterm(self._tree.api_servers)
        self._signal_living(self._tree.api_servers, signal.SIGTERM)
        self._wait_gone(self._tree.api_servers, timing.api_server_grace)
        self._signal_living(self._tree.api_servers, signal.SIGKILL)
        self._wait_gone(self._tree.api_servers)
        self._log_sigterm([one for one in self._tree.engines if one.pid in self._living])
        self._signal_living(self._tree.engines, signal.SIGTERM)
        self._wait_gone(self._tree.engines)
        self._log.section("endings", "main_raised", **values)
        self._clean_up(status=1)

    def _on_stop_signal(self, _signum: int) -> None:
        if self._ending or self._options.ignore_sigterm:
            return
        self._ending = True
        timing, timeout = self._options.timing, self._options.shutdown_timeout
        self._log.section("endings", "main_stop", timeout=f"{timeout:g}")
        if timeout:
            self._signal_living(self._tree.engines, signal.SIGTERM)
            self._wait_gone(self._tree.engines, timeout)
        self._reactor.sleep(timing.frontend_stop)
        self._log_sigterm(self._tree.api_servers)
        self._signal_living(self._tree.api_servers, signal.SIGINT)
        self._reactor.sleep(timing.frontend_kill)
        self._log.section("endings", "kill_frontends", count=len(self._tree.api_servers))
        for one in self._tree.api_servers:
            values = {"process": _log_name(one), "process_pid": one.pid}
            self._log.section("endings", "kill_frontend", **values)
        self._log_sigterm(self._tree.engines)
        self._kill_everyone()
        self._clean_up(status=0)

    def _log_sigterm(self, group: Sequence[Component]) -> None:
        for one in group:
            self._log.section("endings", "send_sigterm", process=_log_name(one))

    def _kill_everyone(self) -> None:
        for one in reversed(self._tree.api_servers):
            one.send(signal.SIGKILL)
        for engine in self._tree.engines:
            values = {"engine": engine.name, "engine_pid": engine.pid}
            self._log.section("endings", "kill_engine", **values)
            engine.send(signal.SIGKILL)
        self._reactor.sleep(self._options.timing.kill_workers)
        for engine in self._tree.engines:
            for one in engine.workers:
                if one.send(signal.SIGKILL):
                    values = {"worker": one.title, "worker_pid": one.pid}
                    self._log.section("endings", "kill_worker", **values)

    def _clean_up(self, status: int) -> None:
        timing = self._options.timing
        self._reactor.sleep(timing.main_cleanup)
        self._sock.close()
        for one in self._tree.bystanders:
            one.send(signal.SIGKILL)
        self._log.section("endings", "tracker")
        self._reactor.sleep(timing.main_exit)
        self._reactor.stop(status)

    def _signal_living(self, group: Sequence[Component], signum: int) -> None:
        for one in group:
            if one.pid in self._living:
                one.send(signum)

    def _wait_gone(self, group: Sequence[Component], seconds: float | None = None) -> None:
        self._reactor.run_until(lambda: not any(one.pid in self._living for one in group), seconds)


def _log_name(one: Component) -> str:
    """Its name in vLLM's log, which spells that of an API server in its own way."""
    return one.name.replace("APIServer_", "ApiServer_")
