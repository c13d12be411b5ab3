"""Runs one server: inbox → step → commit → publish → effects.

One task owns a server's life. Whoever else wants it changed puts an event into its inbox; nothing
here decides, and nothing else executes effects.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vllm_agent.lifecycle.events import (
    ConnectionClosed,
    DropConnection,
    Follow,
    KeepConnection,
    Knocked,
    LeaveLoad,
    Looked,
    LookNow,
    MaintenanceSet,
    ProcessAppeared,
    ProcessMissing,
    Ticked,
    TreeSeen,
    WatchLoad,
)
from vllm_agent.lifecycle.load_summary import SUMMARY_SECONDS, summary
from vllm_agent.lifecycle.pace import is_knocked_at, next_deadline_seconds, next_look_seconds
from vllm_agent.lifecycle.server_life import Memory, ServerLife
from vllm_agent.lifecycle.states import Phase, ServerState
from vllm_agent.lifecycle.step import step
from vllm_agent.observations import Probe
from vllm_agent.snapshot import ProbeStats, ServerSnapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_agent.lifecycle.events import Effect, Event
    from vllm_agent.lifecycle.server_life import Policy
    from vllm_agent.lifecycle.states import LifecycleMode
    from vllm_agent.lifecycle.step import Step
    from vllm_agent.observations import Instant, ProbeRound, Sighting
    from vllm_agent.runner_interfaces import Eyes, Processes, Recorder

MODELS_INTERVAL_SECONDS: Final = 60.0
"""Models are listed again after this long: the list of a launch rarely changes."""

SLOTS_PER_INTERVAL: Final = 50
"""Steady looks begin in slots of this part of the interval, so that those of several servers share
a wake-up and warm caches: 1,000 servers at 10 s cost half the CPU of looks that are all alone."""

CONNECTION_PAUSE_SECONDS: Final = 10.0
"""An idle connection that lived shorter than this is opened again only an interval later: where
something between closes idle connections, reopening at once would be a loop."""

_LOGGER: Final = logging.getLogger(__name__)
_LEVEL_OF_STATE: Final = MappingProxyType(
    {ServerState.FAILED: logging.WARNING, ServerState.CRASHED: logging.ERROR}
)


@dataclass(frozen=True, slots=True)
class Watched:
    """What a runner needs to know of a server; `url` is empty where only a process will tell."""

    name: str
    mode: LifecycleMode
    url: str
    policy: Policy
    interval_seconds: float
    is_discovered: bool = False


class ServerRunner:
    """The owner of one server's life."""

    def __init__(
        self,
        watched: Watched,
        *,
        eyes: Eyes,
        recorder: Recorder,
        publish: Callable[[ServerSnapshot], None],
        clock: Callable[[], Instant],
        first_looks: asyncio.Semaphore,
        processes: Processes | None = None,
    ) -> None:
        self._watched = watched
        self._eyes = eyes
        self._processes = processes
        self._recorder = recorder
        self._publish = publish
        self._clock = clock
        self._first_looks = first_looks
        self._inbox: asyncio.Queue[tuple[Event, asyncio.Future[None] | None]] = asyncio.Queue()
        self._snapshot = ServerSnapshot(
            name=watched.name,
            mode=watched.mode,
            url=watched.url,
            is_discovered=watched.is_discovered,
            policy=watched.policy,
            life=ServerLife.begun(watched.policy, None, clock()),
            probes=MappingProxyType({probe: ProbeStats() for probe in Probe}),
        )
        self._memory: Memory | None = None
        self._is_forgotten = False
        self._looking: asyncio.Task[None] | None = None
        self._look_again = False
        self._load_told_seconds = 0.0
        # A local server is looked at once there is a process to look at.
        self._look_due_seconds = math.inf if watched.policy.is_local else 0.0
        self._models_due_seconds = 0.0
        self._version_launch: int | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._connect_not_before_seconds = 0.0
        self.first_look_done = asyncio.Event()
        self.is_faulty = False
        self.last_look: ProbeRound | None = None

    @property
    def snapshot(self) -> ServerSnapshot:
        """The newest published value."""
        return self._snapshot

    @property
    def _policy(self) -> Policy:
        return self._snapshot.policy

    def tell(self, event: Event) -> None:
        """Puts an event into the inbox."""
        self._inbox.put_nowait((event, None))

    def appear(self, sighting: Sighting, policy: Policy) -> None:
        """Gives it a main process, and the policy that fits this launch."""
        self._snapshot = replace(self._snapshot, policy=policy)
        self.tell(ProcessAppeared(sighting))

    async def forget(self) -> None:
        """Makes its memory say that it left. Its task has to be cancelled after this."""
        self._is_forgotten = True
        await self._recorder.commit(self._watched.name, self._to_remember(self._snapshot))

    async def set_maintenance(self, until_unix_seconds: float | None) -> None:
        """Begins (infinity: without an end) or ends (None) maintenance; returns once committed."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._inbox.put_nowait((MaintenanceSet(until_unix_seconds), done))
        await done

    async def run(self) -> None:
        """Watches the server until cancelled. Cancelling never touches the server."""
        now = self._clock()
        memory = await self._recorder.recall(self._watched.name)
        self._memory = memory
        life = ServerLife.begun(self._policy, memory, now)
        self._snapshot = replace(self._snapshot, life=life)
        if memory is not None:
            self._snapshot = replace(
                self._snapshot, model_name=memory.model_name, version=memory.version
            )
        if self._inbox.empty():
            # Else it is known in a moment what there is to see.
            self._publish(self._snapshot)
        if self._snapshot.sighting is not None:
            # Begun again after a fault: what was followed then is followed no more.
            self.tell(ProcessAppeared(self._snapshot.sighting))
        try:
            if not self._policy.is_local:
                await self._look_first()
            while True:
                await self._turn()
        finally:
            await self._let_go()

    async def _look_first(self) -> None:
        async with self._first_looks:
            self._start_look()
            while not self.first_look_done.is_set():
                await self._turn()
        # Spread over the interval, so that a thousand servers are not asked in one burst.
        due = self._look_due_seconds - random.random() * self._spread_seconds()  # noqa: S311 - no secret
        self._look_due_seconds = _in_slot(due, self._watched.interval_seconds)

    async def _turn(self) -> None:
        """Handles one event, or starts the look that is due."""
        try:
            async with asyncio.timeout(self._wait_seconds()):
                event, done = await self._inbox.get()
        except TimeoutError:
            if self._looking is None and self._clock().monotonic_seconds >= self._look_due_seconds:
                self._start_look()
            else:
                await self._handle(Ticked())
            return
        await self._handle(event)
        if done is not None and not done.done():
            done.set_result(None)

    def _wait_seconds(self) -> float | None:
        now = self._clock()
        deadline = next_deadline_seconds(self._snapshot.life, self._policy, now)
        due = [] if deadline is None else [deadline]
        if self._looking is None and self._look_due_seconds != math.inf:
            due.append(self._look_due_seconds - now.monotonic_seconds)
        return max(0.0, min(due)) if due else None

    def _spread_seconds(self) -> float:
        steady = self._snapshot.life.phase is not Phase.LOST
        return self._watched.interval_seconds if steady else 0.0

    async def _handle(self, event: Event) -> None:
        now = self._clock()
        result = step(self._snapshot.life, event, self._policy, now)
        snapshot = replace(self._snapshot, life=result.life).after(event, now)
        if isinstance(event, TreeSeen) and self._processes is not None:
            snapshot = replace(snapshot, sights=self._processes.sights())
        before = self._snapshot.life
        await self._commit(snapshot, result)
        if isinstance(event, Looked):
            self._plan_look_after(event.look, now)
        elif self._policy.is_local and _changes_pace(event, before, result.life):
            self._plan_look(now)
        for effect in result.effects:
            self._execute(effect)
        if isinstance(event, Looked | Knocked | ProcessMissing):
            self.first_look_done.set()

    async def _commit(self, snapshot: ServerSnapshot, result: Step) -> None:
        """Keeps, logs and publishes a change, in this order and only here."""
        memory = self._to_remember(snapshot)
        is_history = result.transition or result.ending or result.launch
        if memory != self._memory or is_history is not None:
            first_served = result.life.has_served_now and not self._snapshot.life.has_served_now
            launch = result.life.launch if first_served else result.launch
            await self._recorder.commit(
                self._watched.name, memory, result.transition, result.ending, launch
            )
            self._memory = memory
        self._log(result)
        self._snapshot = snapshot
        self._publish(snapshot)

    def _to_remember(self, snapshot: ServerSnapshot) -> Memory:
        return replace(
            snapshot.life.memory,
            model_name=snapshot.model_name,
            version=snapshot.version,
            url=snapshot.url if self._watched.is_discovered else None,
            is_discovered=self._watched.is_discovered,
            is_wanted=snapshot.policy.is_wanted,
            is_forgotten=self._is_forgotten,
        )

    def _log(self, result: Step) -> None:
        name, before = self._watched.name, self._snapshot.life
        transition = result.transition
        if transition is not None and transition.is_change_of_state:
            _LOGGER.log(
                _LEVEL_OF_STATE.get(transition.to_state, logging.INFO),
                "state changed",
                extra={
                    "server": name,
                    "from": transition.from_state,
                    "to": transition.to_state,
                    "reason": transition.reason,
                    "detail": transition.detail,
                },
            )
        self._log_load(result)
        if result.launch is not None and result.launch.number > 1:
            _LOGGER.warning("restarted", extra={"server": name, "launch": result.launch.number})
        if result.life.budget.is_limit_reached and not before.budget.is_limit_reached:
            _LOGGER.error("restart limit reached", extra={"server": name})
        if result.life.is_load_balanced and not before.is_load_balanced:
            text = "a load balancer answers here: restarts are no longer compared by start time"
            _LOGGER.warning(text, extra={"server": name})
        if result.life.is_in_maintenance != before.is_in_maintenance:
            text = "maintenance began" if result.life.is_in_maintenance else "maintenance ended"
            _LOGGER.info(text, extra={"server": name})

    def _log_load(self, result: Step) -> None:
        """A line each SUMMARY_SECONDS on a load that goes on."""
        load = result.life.load
        if load is None or load is self._snapshot.life.load or load.ended is not None:
            return
        now = load.look.at
        is_due = now.monotonic_seconds >= self._load_told_seconds + SUMMARY_SECONDS
        if load.watched is now:
            # Before there is something to tell.
            self._load_told_seconds = now.monotonic_seconds
        elif is_due:
            self._load_told_seconds = now.monotonic_seconds
            told = summary(load, result.life.load_history, now)
            _LOGGER.info("loading", extra={"server": self._watched.name, **told})

    def _execute(self, effect: Effect) -> None:
        match effect:
            case LookNow():
                if self._looking is None:
                    self._start_look()
                else:
                    self._look_again = True
            case KeepConnection():
                self._keep_connection()
            case DropConnection():
                self._drop_connection()
            case Follow(sighting):
                # What was held on to was another launch's.
                self._drop_connection()
                if self._processes is not None:
                    self._processes.follow(sighting, self.tell)
            case WatchLoad():
                if self._processes is not None:
                    self._processes.watch_load()
            case LeaveLoad():
                if self._processes is not None:
                    self._processes.leave_load()

    def _start_look(self) -> None:
        self._look_again = False
        self._looking = asyncio.create_task(self._look(), name=f"look {self._watched.name}")

    async def _look(self) -> None:
        now = self._clock()
        try:
            event = await self._knock_or_look(now)
        except Exception:
            # A fault of ours, not of the server: say so, and keep looking.
            _LOGGER.exception("could not look", extra={"server": self._watched.name})
            self.is_faulty = True
            self._look_due_seconds = now.monotonic_seconds + self._watched.interval_seconds
            self._inbox.put_nowait((Ticked(), None))
            self.first_look_done.set()
        else:
            self.is_faulty = False
            if isinstance(event, Looked):
                self.last_look = event.look
            self.tell(event)
        finally:
            self._looking = None

    async def _knock_or_look(self, now: Instant) -> Looked | Knocked:
        life = self._snapshot.life
        launch = life.launch
        if (
            is_knocked_at(life, self._policy)
            and self._processes is not None
            and launch is not None
            and launch.process is not None
        ):
            knock = await self._processes.knock()
            if not knock.is_accepted:
                return Knocked(launch.process, knock)
        is_due = now.monotonic_seconds >= self._models_due_seconds
        look = await self._eyes.look(
            # Every look asks while checks fail, so that a missing model reaches the threshold.
            ask_models=is_due or life.phase is not Phase.READY or life.consecutive_failures > 0,
            ask_version=self._version_launch is None,
        )
        return Looked(look)

    def _plan_look_after(self, look: ProbeRound, now: Instant) -> None:
        life = self._snapshot.life
        models = look.result(Probe.MODELS)
        if models is not None and models.is_success:
            self._models_due_seconds = now.monotonic_seconds + MODELS_INTERVAL_SECONDS
        launch = life.launch.number if life.launch is not None else None
        if launch != self._version_launch:
            # What a launch serves and which vLLM it is are asked once, by the next look.
            was_asked = self._version_launch is None
            self._version_launch = launch if was_asked else None
            self._models_due_seconds = self._models_due_seconds if was_asked else 0.0
        interval = self._watched.interval_seconds
        wait = next_look_seconds(life, self._policy, interval, now)
        # A steady rhythm counts from the beginning of a look, a shorter pause from its end.
        since = look.started if wait >= interval else now
        due = since.monotonic_seconds + wait
        is_steady = interval <= wait < math.inf
        self._look_due_seconds = _in_slot(due, interval) if is_steady else due
        if self._look_again:
            self._start_look()

    def _plan_look(self, now: Instant) -> None:
        wait = next_look_seconds(
            self._snapshot.life, self._policy, self._watched.interval_seconds, now
        )
        self._look_due_seconds = now.monotonic_seconds + wait
        if self._look_again and self._looking is None:
            self._start_look()

    def _keep_connection(self) -> None:
        if self._eyes.is_holding:
            return
        is_allowed = self._clock().monotonic_seconds >= self._connect_not_before_seconds
        if self._connecting is None and is_allowed:
            self._connecting = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            await self._eyes.hold(self._on_close)
        finally:
            self._connecting = None

    def _on_close(self, lived_seconds: float) -> None:
        if lived_seconds < CONNECTION_PAUSE_SECONDS:
            pause = self._watched.interval_seconds
            self._connect_not_before_seconds = self._clock().monotonic_seconds + pause
        self._inbox.put_nowait((ConnectionClosed(), None))

    def _drop_connection(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
        self._eyes.release()

    async def _let_go(self) -> None:
        self._drop_connection()
        tasks = [task for task in (self._looking, self._connecting) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._processes is not None:
            self._processes.close()


def _changes_pace(event: Event, before: ServerLife, after: ServerLife) -> bool:
    """Whether a local server is to be looked at another time than was planned."""
    return (
        isinstance(event, Knocked | ProcessAppeared)
        or after.phase is not before.phase
        or after.engine_gone_since != before.engine_gone_since
    )


def _in_slot(due_seconds: float, interval_seconds: float) -> float:
    """The nearest beginning of a slot, so that a rhythm neither drifts nor loses a slot."""
    slot_seconds = interval_seconds / SLOTS_PER_INTERVAL
    return round(due_seconds / slot_seconds) * slot_seconds
