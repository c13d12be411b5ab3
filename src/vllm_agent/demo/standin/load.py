"""The load in the main process: bind, configure, start the engines, wait for them."""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from functools import partial
from typing import TYPE_CHECKING

from vllm_agent.demo.standin import process
from vllm_agent.demo.standin.engine import failed_wrapper
from vllm_agent.demo.standin.failures import FAILURES, Moment
from vllm_agent.demo.standin.hub_cache import Repo, named_cache
from vllm_agent.demo.standin.reactor import Reactor
from vllm_agent.demo.standin.stages import stage_seconds
from vllm_agent.demo.standin.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_agent.demo.standin.log import Log
    from vllm_agent.demo.standin.options import Options
    from vllm_agent.demo.standin.tree import Engine

_FAILED = 1


class LoadFailed(Exception):  # noqa: N818  an outcome, not an error of this program
    """The server ends before it served; a negative status is a signal to die by."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Load:
    """Everything before the port listens, with vLLM's reactions to signals meanwhile."""

    def __init__(self, options: Options, log: Log) -> None:
        self._options = options
        self._log = log
        self._failure = FAILURES.get(options.fail_load or "")
        self._terms = 0
        self._ready: set[int] = set()
        self.reactor = Reactor()
        self.tree = Tree(options)

    def begin(self) -> socket.socket:
        """Imports, banner, bind and configuration; returns the bound socket.

        Raises:
            LoadFailed: the load ended here.
        """
        # vLLM installs its handlers seconds after its start; until then SIGTERM just kills. It does
        # not read its arguments before, either.
        time.sleep(stage_seconds(self._options, "imports"))
        if self._fails_at(Moment.ARGUMENTS):
            self._fail()
        self.reactor.on_signal([signal.SIGTERM], self._on_term)
        self.reactor.on_signal([signal.SIGINT], self._on_int)
        self._log.section("load", "banner", model=self._options.model)
        self._log.record(
            "INFO", "api_utils.py:286", f"non-default args: {self._options.non_default_args}"
        )
        sock = self._bind()
        self._log.section("load", "limits")
        if self._options.daemonise:
            process.leave_daemon(self._options.orphan_lifetime)
        self._fetch_config()
        self._configure()
        return sock

    def start_engines(self) -> None:
        """Forks the engines, which load while this process goes on."""
        self.tree.fork_engines()
        for index, engine in enumerate(self.tree.engines):
            self.reactor.on_readable(engine.ready, partial(self._on_ready, index, engine))

    def wait(self) -> None:
        """Waits for every engine.

        Raises:
            LoadFailed: an engine failed, or a signal ended the load.
        """
        everyone = len(self.tree.engines)
        self._checked(lambda: self.reactor.run_until(lambda: len(self._ready) == everyone))

    def _bind(self) -> socket.socket:
        if self._fails_at(Moment.BIND):
            self._fail()
        try:
            return _bound(self._options)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            report_port_in_use(self._log)
            raise LoadFailed(_FAILED) from error

    def _fetch_config(self) -> None:
        if self._fails_at(Moment.FETCH_CONFIG):
            self._checked(lambda: self.reactor.sleep(stage_seconds(self._options, "configure")))
            self._fail()
        cache = named_cache(os.environ, self._options.download_dir)
        if self._options.download_seconds is not None and cache is not None:
            Repo(cache, self._options).fetch_config()

    def _configure(self) -> None:
        options = self._options
        self._log.section("load", "configure", max_model_len=options.max_model_len)
        if options.enforce_eager:
            self._log.section("load", "configure_eager")
        self._checked(lambda: self.reactor.sleep(stage_seconds(options, "configure")))
        if options.hang_load == "configure":
            self.reactor.hang(is_spinning=options.hang_spin)
            self._checked(lambda: False)
        if self._fails_at(Moment.CONFIGURE):
            self._fail()

    def _checked(self, serve: Callable[[], bool]) -> None:
        if not serve():
            if not self._options.orphan_while_loading:
                self.tree.kill_engines()
            raise LoadFailed(self.reactor.status or 0)

    def _fails_at(self, moment: Moment) -> bool:
        return self._failure is not None and self._failure.moment is moment

    def _fail(self) -> None:
        """Prints the failure of this moment.

        Raises:
            LoadFailed: always.
        """
        failure, reason = self._failure, self._options.fail_load
        if failure is None:
            raise AssertionError
        if failure.error is None:
            self._log.section(f"fail-{reason}", "api", model=self._options.model)
        else:
            if failure.moment is not Moment.ARGUMENTS:
                self._log.bare("Traceback (most recent call last):\n")
            self._log.bare(failure.error.replace("<model>", self._options.model) + "\n")
        raise LoadFailed(failure.exit_status)

    def _on_ready(self, index: int, engine: Engine) -> None:
        self.reactor.forget(engine.ready)
        if engine.read_ready(self._options, index):
            self._ready.add(index)
            return
        for line in failed_wrapper({engine.name: engine.reap()}):
            self._log.bare(line + "\n")
        self.reactor.stop(_FAILED)

    def _on_term(self, _signum: int) -> None:
        self._terms += 1
        if self._options.ignore_sigterm:
            return
        if not self._options.swallow_sigterm_while_loading:
            self.reactor.stop(-signal.SIGTERM)
        elif self._terms > 1:
            self.reactor.stop(-signal.SIGINT if self._options.orphan_while_loading else 0)

    def _on_int(self, _signum: int) -> None:
        if not self._options.ignore_sigterm:
            self.reactor.call_later(
                self._options.timing.interrupt_load, lambda: self.reactor.stop(_FAILED)
            )


def report_port_in_use(log: Log) -> None:
    """Prints vLLM's traceback for a port that another server has."""
    log.section("fail-port_in_use", "api")


def _bound(options: Options) -> socket.socket:
    if options.uds is not None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(options.uds)
        return sock
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if options.several_processes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((options.host, options.port))
    return sock
