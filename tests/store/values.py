"""Values to store: short ones for examples, and hypothesis strategies for any."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from hypothesis import strategies as st

from vllm_agent.lifecycle.load_history import LOAD_BUCKETS_SECONDS, LOADING_STAGES, LoadHistory
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.restart_budget import RestartBudget
from vllm_agent.lifecycle.server_life import Ending, Launch, Memory, Tally, Transition
from vllm_agent.lifecycle.states import Initiator, Phase, ServerState
from vllm_agent.observations import Instant, ProcessId, Stage

NOW = 1_700_000_000.0
PROCESS = ProcessId("a0e1d2c3-0000-4000-8000-000000000000", 4242, 1_234_567)


class Clock:
    """A clock that tests move; both parts advance together."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> Instant:
        return Instant(self.seconds, NOW + self.seconds)


def remembered(unix_seconds: float) -> Instant:
    """An instant as the store gives it back."""
    return Instant(0.0, unix_seconds)


def tally(launches: int) -> Tally:
    return Tally(
        launches=launches,
        restarts=MappingProxyType({Initiator.OUTSIDE: launches}),
        crashes=MappingProxyType({Reason.GPU_OOM: launches}),
        transitions=MappingProxyType({(ServerState.RUNNING, ServerState.CRASHED): launches}),
        last_crash_unix_seconds=MappingProxyType({Reason.GPU_OOM: NOW + launches}),
    )


def loads(count: int = 1) -> LoadHistory:
    """Loads of 45 s, but for a first one of two hours."""
    return LoadHistory(
        counts=(0, count - 1, 0, 0, 0, 1),
        sum_seconds=45.0 * (count - 1) + 7200.0,
        last_seconds=45.0,
        last_stage_seconds=MappingProxyType({Stage.INIT: 40.0, Stage.LOAD_WEIGHTS: 5.0}),
        longest_stage_seconds=MappingProxyType({Stage.INIT: 40.0, Stage.COMPILE: 7000.0}),
    )


def memory(launches: int = 1, phase: Phase = Phase.READY) -> Memory:
    return Memory(
        phase=phase,
        reason=Reason.ENGINE_DIED,
        has_served=True,
        newest_start_seconds=NOW - 5.5,
        is_load_balanced=False,
        budget=RestartBudget(limit=3, remaining=1),
        tally=tally(launches),
        entered_unix_seconds=NOW - 2.5,
        model_name="tiny",
        version="0.32.0",
        process=PROCESS,
        launch_has_served=True,
    )


def discovered(launches: int = 1, *, is_forgotten: bool = False) -> Memory:
    return replace(
        memory(launches),
        url="http://127.0.0.1:8000",
        is_discovered=True,
        is_wanted=False,
        is_forgotten=is_forgotten,
    )


def launch(number: int = 1, *, has_served: bool = False, at: float = NOW) -> Launch:
    return Launch(number, at - 1.25, remembered(at), has_served, PROCESS)


def ending(number: int = 1, *, at: float = NOW, evidence: tuple[str, ...] = ("it died",)) -> Ending:
    return Ending(
        launch_number=number,
        at=remembered(at),
        state=ServerState.CRASHED,
        reason=Reason.SIGNAL,
        rule=5,
        evidence=evidence,
        signal=9,
    )


def transition(
    number: int | None = 1, *, at: float = NOW, detail: str = "killed by KILL"
) -> Transition:
    return Transition(
        at=remembered(at),
        from_phase=Phase.READY,
        to_phase=Phase.CRASHED,
        reason=Reason.SIGNAL,
        detail=detail,
        launch_number=number,
    )


counts = st.integers(0, 2**53)
seconds = st.floats(0, 2e10)
numbers = st.integers(1, 10**6)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
instants = st.builds(remembered, seconds)
processes = st.builds(ProcessId, texts, st.integers(1, 2**22), st.integers(0, 2**63 - 1))


def _mappings(keys: st.SearchStrategy, values: st.SearchStrategy) -> st.SearchStrategy:
    return st.dictionaries(keys, values, max_size=4).map(MappingProxyType)


_stage_seconds = _mappings(st.sampled_from(LOADING_STAGES), seconds)
_bucket_counts = st.lists(
    st.integers(0, 10**6),
    min_size=len(LOAD_BUCKETS_SECONDS) + 1,
    max_size=len(LOAD_BUCKETS_SECONDS) + 1,
).map(tuple)
load_histories = st.just(LoadHistory()) | st.builds(
    LoadHistory,
    counts=_bucket_counts.filter(any),
    sum_seconds=seconds,
    last_seconds=st.none() | seconds,
    last_stage_seconds=_stage_seconds,
    longest_stage_seconds=_stage_seconds,
)

memories = st.builds(
    Memory,
    phase=st.sampled_from(Phase),
    reason=st.none() | st.sampled_from(Reason),
    has_served=st.booleans(),
    newest_start_seconds=st.none() | seconds,
    is_load_balanced=st.booleans(),
    budget=st.builds(
        RestartBudget,
        limit=st.integers(1, 99),
        remaining=st.integers(0, 99),
        is_limit_reached=st.booleans(),
    ),
    tally=st.builds(
        Tally,
        launches=counts,
        restarts=_mappings(st.sampled_from(Initiator), counts),
        crashes=_mappings(st.sampled_from(Reason), counts),
        transitions=_mappings(
            st.tuples(st.sampled_from(ServerState), st.sampled_from(ServerState)), counts
        ),
        last_crash_unix_seconds=_mappings(st.sampled_from(Reason), seconds),
    ),
    maintenance_until_unix_seconds=st.none() | seconds | st.just(float("inf")),
    entered_unix_seconds=st.none() | seconds,
    model_name=st.none() | texts,
    version=st.none() | texts,
    process=st.none() | processes,
    launch_has_served=st.booleans(),
    url=st.none() | texts,
    is_discovered=st.booleans(),
    is_wanted=st.booleans(),
    is_forgotten=st.booleans(),
    load_history=load_histories,
    is_goal_up=st.none() | st.booleans(),
    chosen_model=st.none() | texts,
)
launches = st.builds(
    Launch,
    number=numbers,
    start_seconds=st.none() | seconds,
    first_seen=instants,
    has_served=st.booleans(),
    process=st.none() | processes,
)
endings = st.builds(
    Ending,
    launch_number=numbers,
    at=instants,
    state=st.sampled_from([ServerState.STOPPED, ServerState.CRASHED]),
    reason=st.none() | st.sampled_from(Reason),
    rule=st.integers(1, 7),
    evidence=st.lists(texts, max_size=4).map(tuple),
    exit_code=st.none() | st.integers(0, 255),
    signal=st.none() | st.integers(1, 64),
    holder=texts,
    log=st.lists(texts, max_size=4).map(tuple),
    bundle=texts,
)
transitions = st.builds(
    Transition,
    at=instants,
    from_phase=st.sampled_from(Phase),
    to_phase=st.sampled_from(Phase),
    reason=st.none() | st.sampled_from(Reason),
    detail=texts,
    launch_number=st.none() | numbers,
)
