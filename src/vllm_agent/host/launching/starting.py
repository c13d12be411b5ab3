"""One start of a managed server after the other: its plan, the preflight, its process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from vllm_agent.host.launching.asking import HUNG_SECONDS, HangsError, ask, patience
from vllm_agent.host.launching.free_port import remove_left_socket
from vllm_agent.host.launching.launch_cgroup import LaunchCgroup
from vllm_agent.host.launching.launch_files import FOLDER
from vllm_agent.host.launching.one_thread import in_thread
from vllm_agent.host.launching.plan import MARKER, plan_launch
from vllm_agent.host.launching.preflight import lacks_model, preflight
from vllm_agent.host.launching.refusal import Refusal
from vllm_agent.host.launching.remains import Mark
from vllm_agent.host.launching.spawn import spawn
from vllm_agent.host.launching.start_error import StartError
from vllm_agent.host.patience import TooManyHung
from vllm_agent.lifecycle.events import StartRefused
from vllm_agent.lifecycle.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from pathlib import Path

    from vllm_agent.config.model import ServerConfig
    from vllm_agent.host.launching.launch_files import LaunchFiles
    from vllm_agent.host.launching.plan import LaunchPlan
    from vllm_agent.host.launching.spawn import Child
    from vllm_agent.host.local_host import LocalHost
    from vllm_agent.observations import Sighting

SWEEP_SECONDS: Final = 30.0
"""Longest wait for the end of what an agent before this one left: SIGKILL takes milliseconds, and
what it has not ended by then it will not end soon."""

SPAWN_SECONDS: Final = 10.0
"""How long another owner of the server waits for a process that is being started: it takes
milliseconds, and what takes longer hangs with its disk."""

_CONFIGURED_FILE: Final = "a file that the configuration of the server names"
_LOGGER: Final = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Attempt:
    """One start, which can be given up as long as `preparing` is there, and before."""

    number: int
    model: str | None
    is_given_up: bool = False
    preparing: asyncio.Task[LaunchPlan] | None = None

    def give_up(self) -> None:
        """Makes it come to nothing, unless a process is being made already."""
        self.is_given_up = True
        if self.preparing is not None:
            self.preparing.cancel()


class _Gate:
    """Lets a thread make a process, until its deadline closes it. Neither waits for the other."""

    def __init__(self) -> None:
        self._first = threading.Lock()
        self._is_closed = False

    def enter(self) -> None:
        """Passes it. Raises TimeoutError: it is closed."""
        if not self._first.acquire(blocking=False):
            raise TimeoutError

    def close(self) -> bool:
        """Lets nobody pass from now on; whether nobody has."""
        self._is_closed = self._is_closed or self._first.acquire(blocking=False)
        return self._is_closed


class _GivenUp(Exception):  # noqa: N818 - it is no error
    pass


class _RefusedError(Exception):
    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.detail)
        self.refusal = refusal


class Starter:
    """Starts one server, once at a time.

    `started` gets each main process and its log, in the event loop. `clear` ends every process that
    has the mark of the server.
    """

    def __init__(
        self,
        server: ServerConfig,
        *,
        host: LocalHost,
        state_dir: Path,
        files: LaunchFiles,
        agent_environ: Mapping[str, str],
        started: Callable[[Sighting, str], None],
        clear: Callable[[], Coroutine[None, None, None]],
    ) -> None:
        self._server = server
        self._host = host
        self._state_dir = state_dir
        self._files = files
        self._agent_environ = agent_environ
        self._started = started
        self._clear = clear
        self._patience = patience()
        self._known_mark: Mark | None = None
        self._one_at_a_time = asyncio.Lock()
        self._spawning: asyncio.Future[tuple[Child, str]] | None = None
        self._gate = _Gate()
        self._is_swept = False

    def mark(self) -> Mark | None:
        """What all processes of this server have; None while the state directory is not there."""
        if self._known_mark is None:
            try:
                self._known_mark = Mark.of(self._server.name, self._state_dir)
            except OSError:
                return None
        return self._known_mark

    async def plan(self, model: str | None) -> LaunchPlan:
        """What a launch would be started with.

        Raises:
            StartError: it cannot be.
            HangsError: a file or a name server hangs.
            TooManyHung: too much hangs already.
        """
        return await ask(
            self._patience,
            lambda _: plan_launch(self._server, model, self._agent_environ),
            _CONFIGURED_FILE,
        )

    async def start(self, attempt: Attempt) -> StartRefused | None:
        """Starts the server; why it is not started, if `started` was not called.

        If this is cancelled while the process is being made, that goes on: it will have the mark.
        """
        try:
            async with self._one_at_a_time:
                await self._start(attempt)
        except _GivenUp:
            return StartRefused(attempt.number, None)
        except _RefusedError as error:
            refusal = error.refusal
        except StartError as error:
            refusal = Refusal(error.reason, error.detail)
        except (HangsError, TooManyHung) as error:
            refusal = Refusal(Reason.SPAWN_FAILED, str(error))
        except Exception as fault:  # noqa: BLE001 - it is logged, and the start is answered
            refusal = await self._after_fault(fault)
        else:
            return None
        return StartRefused(attempt.number, refusal.reason, refusal.detail, refusal.holder)

    def close(self) -> None:
        """Lets its thread end."""
        self._patience.close()

    async def _start(self, attempt: Attempt) -> None:
        if not await self.settled():
            # One thread that hangs is enough.
            raise HangsError(self._log_place)
        if attempt.is_given_up:
            raise _GivenUp
        attempt.preparing = asyncio.create_task(self._prepare(attempt.model), name="prepare start")
        try:
            plan = await attempt.preparing
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise _GivenUp from None
        finally:
            attempt.preparing = None
            self._patience.close()
        if attempt.is_given_up:
            raise _GivenUp
        # Until it is told of it is known to nobody.
        self._is_swept = False
        child, log_file = await self._spawned(plan)
        self._is_swept = True
        self._started(child.sighting, log_file)

    async def _spawned(self, plan: LaunchPlan) -> tuple[Child, str]:
        """Its process, and its log.

        Raises:
            HangsError: the log could not be opened in time; no process will be made.
        """
        self._gate = gate = _Gate()
        spawning = asyncio.ensure_future(in_thread(partial(self._spawn, plan, gate), "spawn"))
        self._spawning = spawning
        # It reaps itself, also when this is closed: another may follow for the same server.
        spawning.add_done_callback(_watch)
        await asyncio.wait({spawning}, timeout=HUNG_SECONDS)
        if not spawning.done() and gate.close():
            raise HangsError(self._log_place)
        return await asyncio.shield(spawning)

    async def settled(self) -> bool:
        """Waits, at most SPAWN_SECONDS, until nothing is being started; whether that is so.

        What has no log by then makes no process any more.
        """
        if self._spawning is None or self._spawning.done():
            return True
        done, _ = await asyncio.wait({self._spawning}, timeout=SPAWN_SECONDS)
        if not done:
            self._gate.close()
        return bool(done)

    @property
    def _log_place(self) -> str:
        return f"the log of the server in {self._state_dir / FOLDER / self._server.name}"

    async def _prepare(self, model: str | None) -> LaunchPlan:
        plan = await self.plan(model)
        mark = self.mark()
        if mark is None:
            text = f"the state directory {self._state_dir} cannot be read: set another --state.dir"
            raise StartError(Reason.SPAWN_FAILED, text)
        await self._sweep()
        await self._remove_left_socket(plan)
        folder = self._state_dir / FOLDER / self._server.name
        refusal = await preflight(plan, self._host, folder, self._patience)
        if refusal is not None:
            raise _RefusedError(refusal)
        return replace(plan, environ={**plan.environ, MARKER: mark.value(plan.launch_id)})

    async def why_not(self, model: str) -> Refusal | None:
        """Why a launch with `model` would come to nothing, told before anything is stopped."""
        asking = patience()
        try:
            return await lacks_model(await self.plan(model), asking)
        except StartError as error:
            return Refusal(error.reason, error.detail)
        except (HangsError, TooManyHung) as error:
            return Refusal(Reason.LOAD_STALLED, str(error))
        finally:
            asking.close()

    async def _remove_left_socket(self, plan: LaunchPlan) -> None:
        """VLLM leaves its unix socket behind at every end, and fails where it finds one."""
        path = plan.command.uds
        if path is not None:
            with contextlib.suppress(OSError):
                # Where it may not be removed the preflight says what is in the way.
                await ask(self._patience, partial(remove_left_socket, proc=self._host.proc), path)

    async def _sweep(self) -> None:
        """Ends what was started by an agent before and nobody remembers: two must never run."""
        if self._is_swept:
            return
        try:
            async with asyncio.timeout(SWEEP_SECONDS):
                await self._clear()
        except TimeoutError:
            text = "processes of an earlier launch do not end: is a driver or a disk hung?"
            raise StartError(Reason.SPAWN_FAILED, text) from None
        self._is_swept = True

    def _spawn(self, plan: LaunchPlan, gate: _Gate) -> tuple[Child, str]:
        """Starts it, with a log and a cgroup of its own. In a thread."""
        output, path = self._files.open(plan.server, plan.launch_id)
        try:
            gate.enter()
            child = spawn(plan, output, self._host.proc)
        except BaseException:
            # Attempts that come to nothing must not push out the logs of launches.
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(output)
        LaunchCgroup.made(self._host.proc, child.sighting.process)
        return child, str(path)

    async def _after_fault(self, fault: Exception) -> Refusal:
        """What may have been started is known to nobody: it must not stay."""
        extra = {"server": self._server.name}
        _LOGGER.error("a start failed by a fault of the agent", exc_info=fault, extra=extra)
        self._is_swept = False
        try:
            await self._sweep()
        except Exception:
            _LOGGER.exception("what a start left behind is not ended", extra=extra)
        text = f"a fault of the agent ({type(fault).__name__}): see its log, and report it"
        return Refusal(Reason.SPAWN_FAILED, text)


def _watch(spawning: asyncio.Future[tuple[Child, str]]) -> None:
    if not spawning.cancelled() and spawning.exception() is None:
        spawning.result()[0].watch()
