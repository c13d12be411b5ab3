"""Runs one server: inbox → step → commit → publish → effects.

One task owns a server's life. Whoever else wants it changed puts an event into its inbox; nothing
here decides, and nothing else executes effects.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vllm_agent.idle_hold import IdleHold
from vllm_agent.lifecycle.events import (
    AgentLeaving,
    Asked,
    AskEngine,
    CancelStart,
    ConnectionClosed,
    DropConnection,
    Follow,
    KeepConnection,
    KeepEvidence,
    KillAll,
    Knocked,
    LeaveLoad,
    Looked,
    LookNow,
    MaintenanceSet,
    NoteDryRun,
    ProcessAppeared,
    ProcessMissing,
    StartServer,
    Terminate,
    Ticked,
    TreeSeen,
    WatchLoad,
)
from vllm_agent.lifecycle.management import Wish
from vllm_agent.lifecycle.operations import (
    Outcome,
    Request,
    answer,
    answer_on_health,
    answer_on_leaving,
    needs_start,
    report_on_health,
    still_open,
)
from vllm_agent.lifecycle.pace import next_deadline_seconds
from vllm_agent.lifecycle.server_life import Memory, ServerLife
from vllm_agent.lifecycle.step import step
from vllm_agent.look_plan import LookPlan
from vllm_agent.looking import Looking
from vllm_agent.observations import Probe
from vllm_agent.open_requests import OpenRequests
from vllm_agent.runner_log import RunnerLog
from vllm_agent.snapshot import ProbeStats, ServerSnapshot

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Callable

    from vllm_agent.lifecycle.events import Effect, Event, LaunchEffect
    from vllm_agent.lifecycle.operations import Answer
    from vllm_agent.lifecycle.server_life import Policy
    from vllm_agent.lifecycle.step import Step
    from vllm_agent.observations import Instant, ProbeRound, Sighting
    from vllm_agent.runner_interfaces import Eyes, Launcher, Processes, Recorder, Watched

DROPPED_DRY_RUN: Final = "dry_run"
"""A restart that `restart.dry_run` kept the agent from."""


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
        launcher: Launcher | None = None,
        count_dropped: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._watched = watched
        self._eyes = eyes
        self._processes = processes
        self._launcher = launcher
        self._count_dropped = count_dropped
        self._requests = OpenRequests()
        self._recorder = recorder
        self._publish = publish
        self._clock = clock
        self._first_looks = first_looks
        self._inbox: asyncio.Queue[tuple[Event, Future[None] | None]] = asyncio.Queue()
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
        self._log = RunnerLog(watched.name)
        self._plan = LookPlan(watched.interval_seconds, is_local=watched.policy.is_local)
        self._looking = Looking(
            eyes,
            processes,
            self._plan,
            clock,
            current=lambda: self._snapshot,
            came=self._look_came,
            failed=self._look_failed,
            tell=self.tell,
        )
        self._hold = IdleHold(
            eyes, clock, watched.interval_seconds, lambda: self.tell(ConnectionClosed())
        )
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
        await self._noted(MaintenanceSet(until_unix_seconds))

    async def ask(self, wish: Wish, model: str | None = None) -> Answer:
        """Starts, stops or restarts a managed server, and waits for what comes of it."""
        await self._noted(Asked(wish, model))
        request = Request.made(wish, self._snapshot.life)
        return await self._answered(lambda life: answer(life, request))

    async def ensure_healthy(self, timeout_seconds: float) -> Answer:
        """Waits until the server serves; starts it before where it is managed."""
        life = self._snapshot.life
        if not self._policy.is_managed:
            return report_on_health(life)
        known = answer_on_health(life)
        if known is not None and known.outcome is Outcome.DONE:
            return known
        if needs_start(life):
            await self._noted(Asked(Wish.START))
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._answered(answer_on_health)
        except TimeoutError:
            return still_open(self._snapshot.life)

    async def leave(self) -> None:
        """Stops a managed server with the agent: returns once nothing of it is left."""
        self.tell(AgentLeaving())
        await self._answered(answer_on_leaving)

    def close(self) -> None:
        """Answers whoever waits for a server that is watched no more."""
        self._requests.end()
        while not self._inbox.empty():
            _, done = self._inbox.get_nowait()
            if done is not None and not done.done():
                done.set_result(None)

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
        try:
            await self._find_again(memory)
            if not self._policy.is_local:
                await self._look_first()
            while True:
                await self._turn()
        finally:
            await self._let_go()

    async def _find_again(self, memory: Memory | None) -> None:
        """Takes up what there was before this began, under another agent or before a fault."""
        if self._launcher is not None:
            is_ours = memory is not None and memory.is_goal_up is not None
            known = memory.process if memory is not None and is_ours else None
            if await self._launcher.adopt(known):
                self._log.adopted()
            else:
                self.tell(ProcessMissing())
        elif self._snapshot.sighting is not None:
            # Begun again after a fault: what was followed then is followed no more.
            self.tell(ProcessAppeared(self._snapshot.sighting))

    async def _noted(self, event: Event) -> None:
        """Waits until what `event` changed is committed."""
        if self._requests.is_ended:
            return
        done: Future[None] = asyncio.get_running_loop().create_future()
        self._inbox.put_nowait((event, done))
        await done

    async def _answered(self, of: Callable[[ServerLife], Answer | None]) -> Answer:
        return await self._requests.answered(of, self._snapshot.life)

    async def _look_first(self) -> None:
        async with self._first_looks:
            self._looking.start()
            while not self.first_look_done.is_set():
                await self._turn()
        self._plan.spread(self._snapshot.life)

    async def _turn(self) -> None:
        """Handles one event, or starts the look that is due."""
        try:
            async with asyncio.timeout(self._wait_seconds()):
                event, done = await self._inbox.get()
        except TimeoutError:
            if self._clock().monotonic_seconds >= self._looking.due_seconds:
                self._looking.start()
            else:
                await self._handle(Ticked())
            return
        try:
            await self._handle(event)
        finally:
            # Also when this ends in the middle: nobody else knows who waits.
            if done is not None and not done.done():
                done.set_result(None)

    def _wait_seconds(self) -> float | None:
        now = self._clock()
        deadline = next_deadline_seconds(self._snapshot.life, self._policy, now)
        look = self._looking.due_seconds - now.monotonic_seconds
        wait = look if deadline is None else min(look, deadline)
        return None if wait == math.inf else max(0.0, wait)

    async def _handle(self, event: Event) -> None:
        now = self._clock()
        result = step(self._snapshot.life, event, self._policy, now)
        snapshot = replace(self._snapshot, life=result.life).after(event, now)
        if isinstance(event, TreeSeen) and self._processes is not None:
            snapshot = replace(snapshot, sights=self._processes.sights())
        before = self._snapshot.life
        await self._commit(snapshot, result)
        if isinstance(event, Looked):
            self._plan.looked(result.life, self._policy, event.look, now)
        elif self._policy.is_local and _changes_pace(event, before, result.life):
            self._plan.paced(result.life, self._policy, now)
        self._looking.resume()
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
        self._log.committed(self._snapshot.life, result)
        self._snapshot = snapshot
        self._publish(snapshot)
        self._requests.committed(snapshot.life)

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

    def _execute(self, effect: Effect) -> None:
        match effect:
            case LookNow():
                self._looking.now()
            case AskEngine(process):
                self._looking.ask_engine(process)
            case KeepConnection():
                self._hold.keep()
            case DropConnection():
                self._hold.drop()
            case NoteDryRun(what):
                self._count_dropped(DROPPED_DRY_RUN)
                self._log.noted_dry_run(what)
            case Follow() | WatchLoad() | LeaveLoad():
                self._follow(effect)
            case _:
                self._act(effect)

    def _follow(self, effect: Follow | WatchLoad | LeaveLoad) -> None:
        if isinstance(effect, Follow):
            # What was held on to was another launch's.
            self._hold.drop()
        if self._processes is None:
            return
        match effect:
            case Follow(sighting):
                self._processes.follow(sighting, self.tell)
            case WatchLoad():
                self._processes.watch_load()
            case LeaveLoad():
                self._processes.leave_load()

    def _act(self, effect: LaunchEffect) -> None:
        launcher = self._launcher
        if launcher is None:
            raise RuntimeError("a server that is only watched was to be changed")
        match effect:
            case StartServer(attempt, model):
                launcher.start(attempt, model, self.tell)
            case CancelStart():
                launcher.cancel()
            case Terminate(process):
                launcher.terminate(process)
            case KillAll(process):
                launcher.kill_all(process, self.tell)
            case KeepEvidence(ending):
                launcher.keep_evidence(ending, self._snapshot, self.tell)

    def _look_came(self, event: Looked | Knocked) -> None:
        self.is_faulty = False
        if isinstance(event, Looked):
            self.last_look = event.look
        self.tell(event)

    def _look_failed(self, began: Instant) -> None:
        self.is_faulty = True
        self._plan.postpone(began)
        self.tell(Ticked())
        self.first_look_done.set()

    async def _let_go(self) -> None:
        connecting = self._hold.drop()
        tasks = self._looking.cancel() + ([] if connecting is None else [connecting])
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._processes is not None:
            self._processes.close()
        if self._launcher is not None:
            self._launcher.close()


def _changes_pace(event: Event, before: ServerLife, after: ServerLife) -> bool:
    """Whether a local server is to be looked at another time than was planned."""
    return (
        isinstance(event, Knocked | ProcessAppeared)
        or after.phase is not before.phase
        or after.engine_gone_since != before.engine_gone_since
    )
