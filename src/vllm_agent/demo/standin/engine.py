"""`VLLM::EngineCore`: loads its workers, answers API servers, and outlives a killed one."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from vllm_agent.demo.standin import process, worker
from vllm_agent.demo.standin.compile_cache import compile_model
from vllm_agent.demo.standin.failures import (
    ENGINE_FAILURE_RECORDING,
    FAILURES,
    Moment,
    engine_traceback,
)
from vllm_agent.demo.standin.log import Log, sections
from vllm_agent.demo.standin.reactor import Reactor
from vllm_agent.demo.standin.serving_failures import (
    SERVING_FAILURES,
    engine_traceback_of,
    log_of_engine,
)
from vllm_agent.demo.standin.stages import stage_seconds

if TYPE_CHECKING:
    from vllm_agent.demo.standin.options import Options

# What an API server says to EngineCore, one byte each; a step is answered with itself.
BEGIN, END, STEP = b"+", b"-", b"s"
# What it says before it closes the socket because its executor failed.
EXECUTOR_FAILED = b"x"

_READ_BYTES = 1 << 12


@dataclass(frozen=True, slots=True)
class EngineChannels:
    """The descriptors of one EngineCore."""

    parent: int  # end of file when the main process is gone
    ready: int  # written once: the PIDs of the workers
    clients: tuple[int, ...]  # one socket for each API server


def title(options: Options, index: int) -> str:
    """The process title of an EngineCore: a rank only with data parallelism."""
    return f"VLLM::EngineCore_DP{index}" if options.engines > 1 else "VLLM::EngineCore"


def run(options: Options, index: int, channels: EngineChannels) -> int:
    """The life of an EngineCore process; returns its exit status."""
    process.die_slowly()
    return _EngineCore(options, index, channels).run()


@dataclass(slots=True)
class _WorkerProcess:
    rank: int
    pid: int
    pidfd: int
    control: int


class _EngineCore:
    def __init__(self, options: Options, index: int, channels: EngineChannels) -> None:
        self._options = options
        self._index = index
        self._channels = channels
        self._name = title(options, index).removeprefix("VLLM::")
        self._log = Log(self._name)
        self._reactor = Reactor()
        self._workers: dict[int, _WorkerProcess] = {}
        self._loaded = 0
        self._running = dict.fromkeys(channels.clients, 0)
        self._stepping: deque[int] = deque()
        self._held: list[int] = []
        self._is_loading = True
        self._last_words: tuple[str, ...] = ()
        self._hung = False
        self._stopping = False
        self._tearing_down = False

    def run(self) -> int:
        reactor = self._reactor
        reactor.on_readable(self._channels.parent, self._on_parent_gone)
        reactor.on_signal([signal.SIGSEGV], self._on_segv)
        if not reactor.sleep(stage_seconds(self._options, "engine_spawn")):
            return reactor.status or 0
        process.set_title(title(self._options, self._index))
        failure = self._load()
        if failure is not None:
            return failure
        pids = " ".join(str(one.pid) for one in self._workers.values())
        os.write(self._channels.ready, f"{pids}\n".encode())
        os.close(self._channels.ready)
        reactor.on_signal([signal.SIGTERM, signal.SIGINT], self._on_stop_signal)
        reactor.on_signal([signal.SIGUSR2], lambda _signum: self._break_down())
        reactor.on_signal([signal.SIGUSR1], lambda _signum: self._set_hung(hung=not self._hung))
        for client in self._channels.clients:
            reactor.on_readable(client, partial(self._on_client, client))
        if self._options.hang_after is not None:
            reactor.call_later(self._options.hang_after, partial(self._set_hung, hung=True))
        return reactor.run()

    # Loading.

    def _load(self) -> int | None:
        options, log = self._options, self._log
        log.section(
            "load",
            "engine_init",
            model=options.model,
            max_model_len=options.max_model_len,
            served_model_name=options.served_model_names[0],
            enforce_eager=options.enforce_eager,
        )
        if not self._reactor.sleep(stage_seconds(options, "engine_init")):
            return self._reactor.status
        if self._fails_at(Moment.ENGINE_INIT):
            return self._fail_load()
        self._hang_at("init")
        for rank in range(options.workers):
            self._fork_worker(rank)
        if not self._load_weights():
            return self._fail_load() if self._reactor.status is None else self._reactor.status
        log.section("load", "engine_weights_loaded")
        if not options.enforce_eager:
            self._compile()
        if self._fails_at(Moment.KV_CACHE):
            return self._fail_load()
        self._hang_at("warmup")
        self._reactor.sleep(stage_seconds(options, "kv_cache"))
        self._is_loading = False
        log.section("load", "engine_ready")
        return self._reactor.status

    def _compile(self) -> None:
        log = self._log_of_worker(0)
        log.section("load", "compile")
        self._hang_at("compile")
        path = compile_model(self._options, stage_seconds(self._options, "compile"), self._reactor)
        log.section("load", "compiled", path=path)

    def _hang_at(self, stage: str) -> None:
        if self._options.hang_load == stage:
            self._reactor.hang(is_spinning=self._options.hang_spin)

    def _log_of_worker(self, rank: int) -> Log:
        """The log of a worker; where there is none EngineCore does its work."""
        if rank not in self._workers:
            return self._log
        name = worker.title(self._options, self._index, rank)
        return Log(name.removeprefix("VLLM::"), self._workers[rank].pid)

    def _tell_of_silence(self) -> None:
        """EngineCore says again and again that it hears nothing from its workers."""

        def tell() -> None:
            if self._is_loading:
                self._log.section("load", "silent_worker")
                self._tell_of_silence()

        self._reactor.call_later(self._options.timing.silent_worker, tell)

    def _fork_worker(self, rank: int) -> None:
        ours, theirs = (end.detach() for end in socket.socketpair())
        pid = process.fork(
            lambda: worker.run(self._options, self._index, rank, theirs), keep=[theirs]
        )
        os.close(theirs)
        one = _WorkerProcess(rank, pid, os.pidfd_open(pid), ours)
        self._workers[rank] = one
        self._reactor.on_readable(one.pidfd, partial(self._on_worker_exit, one))
        self._reactor.on_readable(ours, partial(self._on_worker, one))

    def _load_weights(self) -> bool:
        if self._options.workers == 0:
            return not worker.load_weights(self._options, 0, self._log, self._reactor)
        for one in self._workers.values():
            os.write(one.control, worker.LOAD)
        self._tell_of_silence()
        everyone = self._options.workers
        self._reactor.run_until(lambda: self._loaded == everyone or self._tearing_down)
        return self._loaded == everyone and not self._tearing_down

    def _fails_at(self, moment: Moment) -> bool:
        failure = FAILURES.get(self._options.fail_load or "")
        return failure is not None and failure.moment is moment

    def _fail_load(self) -> int:
        reason = self._options.fail_load or ""
        failure = FAILURES.get(reason)
        if failure is not None and failure.error is None:
            for rank in self._workers:
                self._log_of_worker(rank).section(f"fail-{reason}", "worker")
            self._log.section(f"fail-{reason}", "engine", engine=self._name)
        else:
            error = "RuntimeError: Executor failed." if failure is None else failure.error
            for line in engine_traceback(error or ""):
                self._log.record("ERROR", "core.py:1510", line)
        return 1

    # Serving.

    def _on_client(self, client: int) -> None:
        for byte in _read(client) or b"\0":
            if byte == STEP[0]:
                self._step(client)
            elif byte == BEGIN[0]:
                self._running[client] += 1
            elif byte == END[0]:
                self._running[client] -= 1
            else:
                self._reactor.forget(client)
                self._running.pop(client)
        if self._stopping and not any(self._running.values()):
            self._tear_down()

    def _step(self, client: int) -> None:
        if self._hung:
            self._held.append(client)
        elif not self._workers:
            _write(client, STEP)
        else:
            self._stepping.append(client)
            _write(next(iter(self._workers.values())).control, STEP)

    def _on_worker(self, one: _WorkerProcess) -> None:
        answer = _read(one.control)
        if not answer:
            self._reactor.forget(one.control)
        for byte in answer:
            if byte == worker.LOADED[0]:
                self._loaded += 1
            elif byte == worker.FAILED[0]:
                self._tearing_down = True
            elif byte == worker.BREAK[0]:
                self._on_broken_step()
            elif self._stepping:
                _write(self._stepping.popleft(), STEP)

    def _set_hung(self, *, hung: bool) -> None:
        self._hung = hung
        if not hung:
            held, self._held = self._held, []
            for client in held:
                self._step(client)

    # Ending.

    def _on_stop_signal(self, _signum: int) -> None:
        if self._stopping:
            return
        self._stopping = True
        timeout = self._options.shutdown_timeout
        self._log.section(
            "endings",
            "engine_stop",
            signal="SIGTERM",
            mode="drain" if timeout else "abort",
            timeout=f"{timeout:g}",
            workers=len(self._workers),
        )
        idle = not any(self._running.values())
        if idle:
            # As recorded: a second SIGTERM kills an idle engine; a busy one is killed by SIGKILL.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if idle or not timeout:
            self._tear_down()

    def _tear_down(self) -> None:
        if self._tearing_down:
            return
        self._tearing_down = True
        for one in self._workers.values():
            _write(one.control, worker.SHUT_DOWN)
        if not self._workers:
            self._exit_later(0)

    def _on_worker_exit(self, one: _WorkerProcess) -> None:
        self._reactor.forget(one.pidfd)
        self._reactor.forget(one.control)
        _pid, wait_status = os.waitpid(one.pid, 0)
        del self._workers[one.rank]
        if self._tearing_down:
            if not self._workers:
                self._exit_later(0)
            return
        self._tearing_down = True
        status = process.exit_status(wait_status)
        self._log.section("endings", "worker_died", rank=one.rank, status=status)
        self._fail()

    def _break_down(self) -> None:
        """What was asked for breaks a step; the first worker knows why, and answers."""
        if self._workers:
            _write(next(iter(self._workers.values())).control, worker.BREAK)
        else:
            worker.break_down(self._options, self._log)
            self._on_broken_step()

    def _on_broken_step(self) -> None:
        self._tearing_down = True
        failure = SERVING_FAILURES[self._options.fail_serving or ""]
        self._last_words = engine_traceback_of(failure, has_workers=bool(self._workers))
        log_of_engine(self._last_words, self._log)
        self._fail()

    def _fail(self) -> None:
        """The executor is broken: the API servers learn it at once, the exit takes its time."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for client in self._running:
            self._reactor.forget(client)
            _write(client, EXECUTOR_FAILED)
            os.close(client)
        self._running.clear()
        for one in self._workers.values():
            _write(one.control, worker.SHUT_DOWN)
        self._exit_later(1)

    def _exit_later(self, status: int) -> None:
        self._reactor.call_later(self._options.timing.engine_teardown, lambda: self._exit(status))

    def _exit(self, status: int) -> None:
        if self._last_words:
            for line in (f"Process {self._name}:", *self._last_words):
                self._log.bare(line + "\n")
        elif status:
            self._log.section("endings", "engine_failed", engine=self._name)
        self._reactor.stop(status)

    def _on_parent_gone(self) -> None:
        """An orphan lives on, as vLLM's does, but not for ever."""
        self._reactor.forget(self._channels.parent)
        self._reactor.call_later(self._options.orphan_lifetime, lambda: self._reactor.stop(0))

    def _on_segv(self, _signum: int) -> None:
        process.freeze_and_die_by(signal.SIGSEGV, self._options.timing.core_dump)


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, _READ_BYTES)
    except ConnectionResetError:
        return b""


def _write(fd: int, message: bytes) -> None:
    # The other end may have just died; its pidfd or end of file tells.
    with contextlib.suppress(OSError):
        os.write(fd, message)


def failed_wrapper(failed: dict[str, int]) -> tuple[str, ...]:
    """The API server's last words when an engine did not come up."""
    lines = sections(ENGINE_FAILURE_RECORDING)["api"]
    names = ", ".join(f"{name!r}: {status}" for name, status in failed.items())
    return tuple(line.replace("<failed>", names) for line in lines)
