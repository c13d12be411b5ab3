"""Everything that is decided about one server, as one frozen value. Pure.

`ServerLife` is what `step` maps to its successor; `Memory` is the part that outlives the agent.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeVar

from vllm_agent.lifecycle.load_history import LoadHistory
from vllm_agent.lifecycle.management import Management
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.restart_budget import RestartBudget
from vllm_agent.lifecycle.state_time import StateTime
from vllm_agent.lifecycle.states import PHASE_STATE, Initiator, Phase, ServerState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_agent.lifecycle.load_progress import LoadProgress
    from vllm_agent.observations import EngineFacts, Instant, ProcessId

_Key = TypeVar("_Key")

ASKED_RULES: Final = frozenset({3, 6})
"""The ending rules that find a stop somebody outside asked for. A stop in maintenance is not one:
when maintenance is over, the server should be back."""

_END_OF_PHASE: Final = MappingProxyType(
    {Phase.ABSENT: ServerState.STOPPED, Phase.CRASHED: ServerState.CRASHED}
)


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator asked for, as far as decisions need it. Durations in seconds.

    `is_local` is whether its processes are seen, `has_http` whether it answers HTTP at all
    (a headless node does not). `is_wanted` is whether anybody wants it up: an ad-hoc `vllm serve`
    in a shell nobody is paged for. `start_timeout_seconds` is the longest time that a load may go
    without progress before its first EngineCore, `load_timeout_seconds` after that. The others are
    of a managed server, which `is_managed` is: the model that is configured, how long to wait
    before the first restart, whether one that is unhealthy is restarted too, whether restarts are
    only told of, and how long a stop may take before SIGKILL.
    """

    failure_threshold: int = 3
    max_restarts: int = 3
    restart_window_seconds: float = 60.0
    expected_model: str | None = None
    is_local: bool = False
    has_http: bool = True
    is_wanted: bool = True
    start_timeout_seconds: float = 120.0
    load_timeout_seconds: float = 300.0
    is_managed: bool = False
    model: str | None = None
    restart_delay_seconds: float = 2.0
    restarts_unhealthy: bool = True
    is_dry_run: bool = False
    stop_timeout_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Launch:
    """One life of a server's process.

    `start_seconds` is its start in unix time; None where the server does not say (several API
    servers, a load balancer). `number` counts the launches seen of this server, from 1. `process`
    is its main process, None where processes are not seen.
    """

    number: int
    start_seconds: float | None
    first_seen: Instant
    has_served: bool = False
    process: ProcessId | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """How a launch ended, settled once. `state` is stopped or crashed.

    `rule` is the number of the ending rule that decided; `evidence` are sentences for people.
    `holder` is who held what the launch needed, its port or GPU memory; empty where nobody is known
    to. `log` are the last lines of its log that matter, secrets taken out; they may hold what users
    asked the server, so only the control socket shows them. `bundle` is the file in which the
    evidence is kept, empty where it is not.
    """

    launch_number: int
    at: Instant
    state: ServerState
    reason: Reason | None
    rule: int
    evidence: tuple[str, ...] = ()
    exit_code: int | None = None
    signal: int | None = None
    holder: str = ""
    log: tuple[str, ...] = ()
    bundle: str = ""


@dataclass(frozen=True, slots=True)
class Tally:
    """Event counters of one server: they continue after a restart of the agent."""

    launches: int = 0
    restarts: Mapping[Initiator, int] = field(default_factory=lambda: MappingProxyType({}))
    crashes: Mapping[Reason, int] = field(default_factory=lambda: MappingProxyType({}))
    transitions: Mapping[tuple[ServerState, ServerState], int] = field(
        default_factory=lambda: MappingProxyType({})
    )
    last_crash_unix_seconds: Mapping[Reason, float] = field(
        default_factory=lambda: MappingProxyType({})
    )

    def with_launch(self, initiator: Initiator | None) -> Tally:
        """One launch more; a restart by `initiator` unless it is the first that was seen."""
        restarts = self.restarts if initiator is None else _plus_one(self.restarts, initiator)
        return replace(self, launches=self.launches + 1, restarts=restarts)

    def with_crash(self, reason: Reason, at: Instant) -> Tally:
        """One settled crash more, and when it happened."""
        newest = {**self.last_crash_unix_seconds, reason: at.unix_seconds}
        return replace(
            self,
            crashes=_plus_one(self.crashes, reason),
            last_crash_unix_seconds=MappingProxyType(newest),
        )

    def with_transition(self, old: ServerState, new: ServerState) -> Tally:
        """One change of state more."""
        return replace(self, transitions=_plus_one(self.transitions, (old, new)))


def _plus_one(counts: Mapping[_Key, int], key: _Key) -> Mapping[_Key, int]:
    return MappingProxyType(dict(Counter(counts) + Counter([key])))


@dataclass(frozen=True, slots=True)
class Memory:
    """What of a server outlives the agent.

    `entered_unix_seconds` is when the state of `phase` was entered; None where that state was never
    shown. `model_name` and `version` are the last ones known, by whoever looks at the server.
    `process` is the main process of the newest launch, `launch_has_served` whether that launch
    served. `url` is where a discovered server was, None for a configured one; `is_wanted` and
    `is_forgotten` are of a discovered one too: whether it was supervised, and whether it left.
    `is_goal_up` and `chosen_model` are of a managed one, as in `Management`; `is_goal_up` is None
    where it was not managed.
    """

    phase: Phase
    reason: Reason | None
    has_served: bool
    newest_start_seconds: float | None
    is_load_balanced: bool
    budget: RestartBudget
    tally: Tally
    maintenance_until_unix_seconds: float | None = None
    entered_unix_seconds: float | None = None
    last_ending: Ending | None = None
    model_name: str | None = None
    version: str | None = None
    process: ProcessId | None = None
    launch_has_served: bool = False
    url: str | None = None
    is_discovered: bool = False
    is_wanted: bool = True
    is_forgotten: bool = False
    load_history: LoadHistory = field(default_factory=LoadHistory)
    is_goal_up: bool | None = None
    chosen_model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLife:
    """One server as far as it is decided.

    `entered` is when the state was entered, `phase_entered` when the finer phase was. `reason`
    explains a failed or crashed state, `detail` is its sentence. `running_since` is when the
    launch that runs began to, without interruption. `consecutive_failures` counts the looks since
    the last that passed, `failing_looks` those of them since the last refusal. `is_proven` is
    whether a look passed in full since its port last refused. `newest_start_seconds` is the newest
    process start ever seen here; `unconfirmed_start` is a newer one that does not count yet, and
    the looks that saw it. `maintenance_until_unix_seconds` is infinite for a maintenance without
    an end. `remembered_phase` is where the agent before this one left it,
    `remembered_entered_unix_seconds` when its state began. `unsettled` are local launches that
    another one followed before their ending was settled. `engine_gone_since` is when an EngineCore
    of a launch that goes on was first missed, `is_main_gone` whether the main process of
    the newest one has ended. `load` is how the newest launch loads or loaded, None where this agent
    did not see it load; `load_history` what all loads took. `management` is what is asked of a
    managed server, None for others; `engine` is what its engine had done by the newest look,
    `engine_progress` when a look saw that it had worked.
    """

    phase: Phase
    phase_entered: Instant
    entered: Instant
    budget: RestartBudget
    state_time: StateTime
    reason: Reason | None = None
    detail: str = ""
    consecutive_failures: int = 0
    failing_looks: int = 0
    is_proven: bool = False
    has_served: bool = False
    is_sleeping: bool | None = None
    launch: Launch | None = None
    running_since: Instant | None = None
    newest_start_seconds: float | None = None
    unconfirmed_start: tuple[float, int] | None = None
    is_load_balanced: bool = False
    last_ending: Ending | None = None
    tally: Tally = field(default_factory=Tally)
    maintenance_until_unix_seconds: float | None = None
    remembered_phase: Phase | None = None
    remembered_entered_unix_seconds: float | None = None
    unsettled: tuple[Launch, ...] = ()
    engine_gone_since: Instant | None = None
    is_main_gone: bool = False
    load: LoadProgress | None = None
    load_history: LoadHistory = field(default_factory=LoadHistory)
    management: Management | None = None
    engine: EngineFacts | None = None
    engine_progress: Instant | None = None

    @classmethod
    def begun(cls, policy: Policy, memory: Memory | None, now: Instant) -> ServerLife:
        """A server the agent has not looked at yet, with what the agent before it remembered."""
        budget = RestartBudget.full(policy.max_restarts)
        life = cls(
            phase=Phase.UNOBSERVED,
            phase_entered=now,
            entered=now,
            budget=budget,
            state_time=StateTime(until=now),
            management=Management.begun(memory) if policy.is_managed else None,
        )
        if memory is None:
            return life
        return replace(
            life,
            budget=memory.budget.with_limit(policy.max_restarts),
            reason=memory.reason,
            has_served=memory.has_served,
            newest_start_seconds=memory.newest_start_seconds,
            is_load_balanced=memory.is_load_balanced,
            tally=memory.tally,
            maintenance_until_unix_seconds=memory.maintenance_until_unix_seconds,
            last_ending=memory.last_ending,
            launch=_remembered_launch(memory, now),
            remembered_phase=memory.phase,
            remembered_entered_unix_seconds=memory.entered_unix_seconds,
            load_history=memory.load_history,
        )

    @property
    def state(self) -> ServerState:
        """The state that users see."""
        return PHASE_STATE[self.phase]

    @property
    def launch_end(self) -> ServerState | None:
        """How the newest launch ended; None while it has not, or where nobody saw it."""
        number = self.tally.launches if self.launch is None else self.launch.number
        if self.last_ending is not None and self.last_ending.launch_number == number:
            return self.last_ending.state
        if self.launch is not None or self.remembered_phase is None:
            return None
        return _END_OF_PHASE.get(self.remembered_phase)

    @property
    def has_served_now(self) -> bool:
        """Whether the newest launch has served."""
        return self.launch is not None and self.launch.has_served

    @property
    def is_launch_over(self) -> bool:
        """Whether the newest launch has a settled ending."""
        return self.launch_end is not None

    @property
    def phase_last_known(self) -> Phase:
        """The phase, or the one that the agent before this one left it in, until a look tells."""
        is_unobserved = self.phase is Phase.UNOBSERVED
        return (self.remembered_phase or self.phase) if is_unobserved else self.phase

    @property
    def is_in_maintenance(self) -> bool:
        """Whether an operator said that it may be down."""
        return self.maintenance_until_unix_seconds is not None

    @property
    def is_desired(self) -> bool:
        """Whether it should be up: not in maintenance, and not when it was stopped on request."""
        if self.is_in_maintenance:
            return False
        if self.management is not None:
            return self.management.is_goal_up
        ending = self.last_ending
        is_down = self.phase_last_known is Phase.ABSENT and ending is not None
        return not (is_down and self.is_launch_over and ending.rule in ASKED_RULES)  # type: ignore[union-attr]

    @property
    def _to_remember(self) -> tuple[Phase, Reason | None]:
        # What has not served since the last launch ended must not be taken for that launch again.
        if self.phase in {Phase.UNREADY, Phase.LOST} and self.launch_end is not None:
            is_crash = self.launch_end is ServerState.CRASHED
            return (Phase.CRASHED, Reason.UNREACHABLE) if is_crash else (Phase.ABSENT, None)
        return self.phase_last_known, self.reason

    def _entered_unix_seconds(self, phase: Phase) -> float | None:
        """When the state of `phase`, which is to be remembered, was entered."""
        if self.phase is Phase.UNOBSERVED:
            return self.remembered_entered_unix_seconds
        return self.entered.unix_seconds if PHASE_STATE[phase] is self.state else None

    @property
    def memory(self) -> Memory:
        """The part that outlives the agent."""
        phase, reason = self._to_remember
        return Memory(
            phase=phase,
            reason=reason,
            has_served=self.has_served,
            newest_start_seconds=self.newest_start_seconds,
            is_load_balanced=self.is_load_balanced,
            budget=self.budget,
            tally=self.tally,
            maintenance_until_unix_seconds=self.maintenance_until_unix_seconds,
            entered_unix_seconds=self._entered_unix_seconds(phase),
            last_ending=self.last_ending,
            process=self.launch.process if self.launch is not None else None,
            launch_has_served=self.launch is not None
            and self.launch.process is not None
            and self.launch.has_served,
            load_history=self.load_history,
            is_goal_up=None if self.management is None else self.management.is_goal_up,
            chosen_model=None if self.management is None else self.management.model,
        )


def _remembered_launch(memory: Memory, now: Instant) -> Launch | None:
    """The newest launch of a local server; of one watched by URL nothing tells it again."""
    if memory.process is None:
        return None
    return Launch(
        number=memory.tally.launches,
        start_seconds=memory.newest_start_seconds,
        first_seen=now,
        has_served=memory.launch_has_served,
        process=memory.process,
    )


@dataclass(frozen=True, slots=True)
class Transition:
    """A change of phase, as committed, logged and kept in the history."""

    at: Instant
    from_phase: Phase
    to_phase: Phase
    reason: Reason | None
    detail: str
    launch_number: int | None = None

    @property
    def from_state(self) -> ServerState:
        """The state before."""
        return PHASE_STATE[self.from_phase]

    @property
    def to_state(self) -> ServerState:
        """The state after."""
        return PHASE_STATE[self.to_phase]

    @property
    def is_note(self) -> bool:
        """Whether nothing moved: an entry of the history that only says something."""
        return self.from_phase is self.to_phase

    @property
    def is_change_of_state(self) -> bool:
        """Whether users see it: phases may change within one state."""
        return self.from_state is not self.to_state
