"""Snapshots to render: one of each kind by hand, and any at all for hypothesis."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from hypothesis import strategies as st

from vllm_agent.lifecycle.load_history import LOAD_BUCKETS_SECONDS, LoadHistory
from vllm_agent.lifecycle.load_progress import LoadProgress, Weights
from vllm_agent.lifecycle.management import (
    Management,
    Replacement,
    Stop,
    StopOutcome,
    Trouble,
)
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.restart_budget import RestartBudget
from vllm_agent.lifecycle.server_life import Ending, Launch, Policy, ServerLife, Tally
from vllm_agent.lifecycle.state_time import StateTime
from vllm_agent.lifecycle.states import Initiator, LifecycleMode, Phase, ServerState
from vllm_agent.observations import (
    Component,
    ComponentRole,
    Download,
    Gpu,
    GpuProcess,
    GpuVendor,
    Instant,
    LoadLook,
    LogProgress,
    Orphan,
    Probe,
    ProbeCause,
    ProbeResult,
    ProcessId,
    ProcessTree,
    Shard,
    Sight,
    Sighting,
    SightKind,
    Stage,
    VllmCommand,
    Witness,
)
from vllm_agent.snapshot import (
    DURATION_BUCKETS_SECONDS,
    AgentSnapshot,
    CollectorSnapshot,
    FaultCount,
    GpuOrphan,
    GpuSnapshot,
    GpuStranger,
    Histogram,
    ProbeStats,
    ServerSnapshot,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

STARTED: Final = Instant(1_000.0, 1_750_000_000.0)
NOW: Final = Instant(1_100.5, 1_750_000_100.5)


def result(probe: Probe, cause: ProbeCause | None = None) -> ProbeResult:
    return ProbeResult(probe, cause, duration_seconds=0.02)


def stats(probe: Probe, failures: Mapping[ProbeCause, int] | None = None) -> ProbeStats:
    return ProbeStats(
        requests=12,
        failures=MappingProxyType(dict(failures or {})),
        last_result=result(probe),
        last_success_unix_seconds=1_750_000_095.25,
        durations=Histogram(counts=(1, 2, 3, 4, 0, 0, 1, 0, 1), sum_seconds=6.125),
    )


def life(phase: Phase = Phase.READY, **changes: Any) -> ServerLife:
    first = replace(
        ServerLife.begun(Policy(), None, STARTED),
        phase=phase,
        has_served=True,
        is_sleeping=False,
        launch=Launch(1, 1_749_999_000.0, STARTED, has_served=True),
        tally=Tally(launches=1).with_transition(ServerState.UNKNOWN, ServerState.RUNNING),
    )
    return replace(first, **changes)


def server(name: str = "llama", **changes: Any) -> ServerSnapshot:
    """An external server that runs and always has."""
    running = ServerSnapshot(
        name=name,
        mode=LifecycleMode.EXTERNAL,
        url="http://127.0.0.1:8000",
        is_discovered=False,
        policy=Policy(),
        life=life(),
        model_name="meta-llama/Llama-3.1-8B-Instruct",
        version="0.27.1",
        probes=MappingProxyType({probe: stats(probe) for probe in Probe}),
    )
    return replace(running, **changes)


def fresh_server(name: str = "llama") -> ServerSnapshot:
    """An external server that nobody has looked at yet."""
    unobserved = ServerLife.begun(Policy(), None, STARTED)
    probes = MappingProxyType({probe: ProbeStats() for probe in Probe})
    return server(name, life=unobserved, model_name=None, version=None, probes=probes)


def crashed_server(name: str = "qwen") -> ServerSnapshot:
    """An external server that failed, recovered, crashed, came back and crashed again."""
    unknown, running = ServerState.UNKNOWN, ServerState.RUNNING
    failed, crashed = ServerState.FAILED, ServerState.CRASHED
    tally = Tally(launches=2).with_launch(Initiator.OUTSIDE)
    for pair in [
        (unknown, running),
        (running, failed),
        (failed, running),
        (running, failed),
        (failed, crashed),
        (crashed, running),
        (running, failed),
        (failed, crashed),
    ]:
        tally = tally.with_transition(*pair)
    at = Instant(1_090.0, 1_750_000_090.0)
    tally = tally.with_crash(Reason.UNREACHABLE, STARTED).with_crash(Reason.UNREACHABLE, at)
    spent = {unknown: 0.5, ServerState.STOPPED: 4.0, running: 80.25, failed: 9.0, crashed: 3.0}
    failures = {ProbeCause.REFUSED: 12, ProbeCause.TIMEOUT: 4, ProbeCause.HTTP_5XX: 1}
    probes = {probe: stats(probe) for probe in Probe} | {
        Probe.HEALTH: replace(
            stats(Probe.HEALTH, failures), last_result=result(Probe.HEALTH, ProbeCause.REFUSED)
        )
    }
    return server(
        name,
        life=life(
            Phase.CRASHED,
            entered=at,
            budget=RestartBudget(3, 0, is_limit_reached=True),
            state_time=StateTime(
                until=at,
                seconds=MappingProxyType(dict.fromkeys(ServerState, 0.0) | spent),
                desired_seconds=92.75,
                available_seconds=80.25,
            ),
            reason=Reason.UNREACHABLE,
            consecutive_failures=7,
            last_ending=Ending(2, at, crashed, Reason.UNREACHABLE, rule=7),
            tally=tally,
        ),
        probes=MappingProxyType(probes),
    )


MAIN: Final = ProcessId("b00d", 4021, 77)
CONTAINER: Final = "0123456789abcdef" * 4
ENGINE: Final = Component(ComponentRole.ENGINE_CORE, "", 4050, is_alive=True)
WORKERS: Final = tuple(
    Component(ComponentRole.WORKER, f"tp{rank}", 4100 + rank, is_alive=True) for rank in range(2)
)
HIDDEN: Final = (
    Sight(SightKind.NETWORK, is_visible=True),
    Sight(SightKind.LOG, False, "its journal may not be read", "usermod -aG systemd-journal x"),  # noqa: FBT003 - as in a page
)


def tree(**changes: Any) -> ProcessTree:
    """The tree of a running server with one engine and two workers."""
    api_server = Component(ComponentRole.API_SERVER, "", MAIN.pid, is_alive=True)
    whole = ProcessTree(
        process=MAIN,
        is_main_alive=True,
        components=(api_server, ENGINE, *WORKERS),
        processes=5,
        threads=245,
        resident_bytes=13_207_024_435,
        open_fds=311,
        cpu_seconds=8_000.25,
    )
    return replace(whole, **changes)


def sighting(**changes: Any) -> Sighting:
    """The main process of a server that a systemd service keeps up."""
    found = Sighting(
        process=MAIN,
        start_seconds=1_749_999_000.0,
        command=VllmCommand(model="secret/in-argv", host="10.9.9.9"),
        uid=1000,
        session=4021,
        unit="llama.service",
        url="http://127.0.0.1:8000",
    )
    return replace(found, **changes)


def local_server(name: str = "llama", **changes: Any) -> ServerSnapshot:
    """A discovered server that runs, with its processes seen."""
    seen = server(
        name,
        mode=LifecycleMode.MONITORED,
        is_discovered=True,
        policy=Policy(is_local=True),
        sighting=sighting(),
        tree=tree(),
    )
    return replace(seen, **changes)


def ad_hoc_server(name: str = "llama@8000", **changes: Any) -> ServerSnapshot:
    """A discovered server that somebody started in a shell: nobody said that it should be up."""
    unit = sighting(unit=None)
    return local_server(
        name, **{"policy": Policy(is_local=True, is_wanted=False), "sighting": unit, **changes}
    )


def orphans(count: int) -> tuple[Orphan, ...]:
    """Workers that outlived their main process."""
    return tuple(
        Orphan(ProcessId("b00d", 4_300 + n, 1_000), ComponentRole.WORKER, f"tp{n}", 1_750_000_000.0)
        for n in range(count)
    )


def ended_local_server(name: str = "qwen", **changes: Any) -> ServerSnapshot:
    """A discovered server whose engine died, and that left two orphans."""
    at = Instant(1_090.0, 1_750_000_090.0)
    gone = tuple(replace(part, is_alive=False) for part in tree().components)
    ending = Ending(
        1, at, ServerState.CRASHED, Reason.ENGINE_DIED, 4, ("worker ended with signal 11",), 0
    )
    crashed = life(
        Phase.CRASHED,
        entered=at,
        reason=Reason.ENGINE_DIED,
        last_ending=ending,
        tally=Tally(launches=1).with_crash(Reason.ENGINE_DIED, at),
    )
    left = tree(
        is_main_alive=False,
        components=gone,
        processes=2,
        threads=None,
        resident_bytes=None,
        open_fds=None,
        orphans=orphans(2),
    )
    return local_server(name, **{"life": crashed, "tree": left, **changes})


MANAGED: Final = Policy(is_local=True, is_managed=True, model="meta-llama/Llama-3.1-8B-Instruct")


def managed_server(name: str = "llama", **changes: Any) -> ServerSnapshot:
    """A server that the agent started, and that runs."""
    started = sighting(unit=None, command=VllmCommand(model=MANAGED.model, port=8000))
    running = local_server(
        name,
        mode=LifecycleMode.MANAGED,
        is_discovered=False,
        policy=MANAGED,
        sighting=started,
        life=life(management=Management(attempts=1, is_clear=False)),
    )
    return replace(running, **changes)


def managed_life(phase: Phase, asked: Management, **changes: Any) -> ServerLife:
    """A managed server with no launch left, of which this is asked."""
    return life(phase, **{"phase_entered": NOW, "management": asked, **changes})


def backing_off(name: str = "llama", **changes: Any) -> ServerSnapshot:
    """A managed server whose engine died half a second ago: the evidence is kept."""
    at = Instant(1_100.0, 1_750_000_100.0)
    ending = Ending(
        1, at, ServerState.CRASHED, Reason.ENGINE_DIED, 4, bundle="/var/lib/x/evidence/llama-1.json"
    )
    asked = Management(attempts=1, gone_since=at, trouble=Trouble(Reason.ENGINE_DIED, "it died"))
    crashed = managed_life(
        Phase.BACKOFF,
        asked,
        entered=at,
        reason=Reason.ENGINE_DIED,
        last_ending=ending,
        launch=Launch(1, None, STARTED, has_served=True, process=MAIN),
        tally=Tally(launches=1).with_crash(Reason.ENGINE_DIED, at),
    )
    gone = tree(is_main_alive=False, components=(), processes=0)
    return managed_server(name, **{"life": crashed, "tree": gone, **changes})


def given_up(name: str = "llama", **changes: Any) -> ServerSnapshot:
    """A managed server that was never started: its model is not in the cache."""
    detail = "2 times in a row: 3 files are missing"
    asked = Management(attempts=2, gone_since=NOW, trouble=Trouble(Reason.AIRGAPPED, detail, 2))
    failed = managed_life(
        Phase.GAVE_UP, asked, reason=Reason.AIRGAPPED, detail=detail, launch=None, tally=Tally()
    )
    return managed_server(name, **{"life": failed, "sighting": None, "tree": None, **changes})


GIB: Final = 2**30

LOOKED: Final = Instant(1_100.0, 1_750_000_100.0)
"""When the witnesses of a load were asked last."""


def look(**changes: Any) -> LoadLook:
    """What every witness saw of a load that has come to its weights."""
    whole = LoadLook(
        process=MAIN,
        at=LOOKED,
        has_engine=True,
        has_worker=True,
        download=Download(15 * GIB, 15 * GIB, Witness.HF_CACHE, is_under_way=False),
        shards=(Shard(4_100, 4, 11, 4 * GIB, 15 * GIB), Shard(4_101, 5, 11, 5 * GIB, 15 * GIB)),
        io_bytes=5 * GIB,
        gpu_bytes=4 * GIB,
        cpu_seconds=81.5,
        compile_changes=0,
        log=LogProgress(Stage.LOAD_WEIGHTS, 57, 3, 11, 15 * GIB),
    )
    return replace(whole, **changes)


def load(**changes: Any) -> LoadProgress:
    """A load in its weights: 10 s to begin, 30 s to download, the rest since."""
    seen = look()
    whole = LoadProgress(
        process=MAIN,
        began=Instant(1_030.0, 1_750_000_030.0),
        watched=Instant(1_030.5, 1_750_000_030.5),
        stage=Stage.LOAD_WEIGHTS,
        stage_entered=Instant(1_070.0, 1_750_000_070.0),
        last_progress=Instant(1_099.0, 1_750_000_099.0),
        look=seen,
        stage_seconds=MappingProxyType({Stage.INIT: 10.0, Stage.DOWNLOAD: 30.0}),
        last_busy=LOOKED,
        download=seen.download,
        weights=Weights(4, 11, 4 * GIB, 15 * GIB),
        signs=MappingProxyType({Witness.SHARDS: Instant(1_099.0, 1_750_000_099.0)}),
    )
    return replace(whole, **changes)


def late_load(**changes: Any) -> LoadProgress:
    """A load that the agent came to in the middle, and has not seen to move."""
    return load(**{"watched": LOOKED, "last_progress": LOOKED, "signs": {}, **changes})


LAST_STAGES: Final = MappingProxyType(
    {Stage.INIT: 12.0, Stage.LOAD_WEIGHTS: 55.0, Stage.COMPILE: 40.0, Stage.WARMUP: 8.0}
)
HISTORY: Final = LoadHistory(
    counts=(0, 0, 2, 0, 0, 1),
    sum_seconds=4_230.5,
    last_seconds=115.0,
    last_stage_seconds=LAST_STAGES,
    longest_stage_seconds=LAST_STAGES,
)


def loading_life(phase: Phase = Phase.LOADING, **changes: Any) -> ServerLife:
    """A launch that has not served, and is looked at."""
    begun = Launch(2, 1_750_000_030.0, Instant(1_030.5, 1_750_000_030.5), process=MAIN)
    return life(phase, **{"launch": begun, "load": load(), "load_history": HISTORY, **changes})


def loading_server(name: str = "llama", **changes: Any) -> ServerSnapshot:
    """A local server that has loaded before and loads its weights."""
    return local_server(name, **{"life": loading_life(), **changes})


def downloading(**changes: Any) -> LoadProgress:
    """A load that still downloads, 3 of 15 GiB."""
    under_way = Download(3 * GIB, 15 * GIB, Witness.HUB, is_under_way=True)
    return load(
        **{
            "stage": Stage.DOWNLOAD,
            "stage_entered": Instant(1_040.0, 1_750_000_040.0),
            "stage_seconds": MappingProxyType({Stage.INIT: 10.0}),
            "download": under_way,
            "weights": None,
            "look": look(download=under_way, shards=(), log=None),
            **changes,
        }
    )


def loaded(**changes: Any) -> LoadProgress:
    """A load that has come to serve, after every stage."""
    spent = MappingProxyType(dict(LAST_STAGES) | {Stage.DOWNLOAD: 30.0})
    return load(
        **{"stage": Stage.NONE, "stage_entered": LOOKED, "ended": LOOKED, "stage_seconds": spent}
        | changes
    )


def gpu(index: str = "0", **changes: Any) -> Gpu:
    """An NVIDIA device whose driver tells everything, 72.5 of 80 GiB in use."""
    whole = Gpu(
        index=index,
        uuid=f"GPU-{index}",
        vendor=GpuVendor.NVIDIA,
        name="NVIDIA H100 80GB HBM3",
        driver_version="580.95.05",
        pci_bus_id=f"00000000:1{index}:00.0",
        memory_total_bytes=80 * GIB,
        memory_used_bytes=72 * GIB + GIB // 2,
        memory_free_bytes=7 * GIB,
        utilization_ratio=0.87,
        temperature_celsius=61.0,
        power_watts=412.5,
        power_limit_watts=700.0,
        ecc_corrected_errors=3,
        ecc_uncorrected_errors=0,
        processes=(GpuProcess(4100, 60 * GIB), GpuProcess(4301, 12 * GIB)),
    )
    return replace(whole, **changes)


def device(index: str = "0", **changes: Any) -> GpuSnapshot:
    """A device that one server holds memory of, and nobody else but a display."""
    return replace(
        GpuSnapshot(
            gpu(index),
            servers=MappingProxyType({"llama": 72 * GIB}),
            orphans=(),
            orphan_bytes=0,
            other_bytes=GIB // 2,
        ),
        **changes,
    )


def orphaned_device(index: str = "1", **changes: Any) -> GpuSnapshot:
    """A device that a worker held on to after an XID ended its server; another came since."""
    orphan = GpuOrphan(4301, ComponentRole.WORKER, "phi", 12 * GIB, 1_749_992_000.0)
    return device(
        index,
        **{
            "servers": MappingProxyType({"llama": 60 * GIB, "mixtral": None}),
            "orphans": (orphan,),
            "orphan_bytes": 12 * GIB,
            "xids": MappingProxyType({31: FaultCount(2, 1_750_000_089.5)}),
            **changes,
        },
    )


def lost_device(index: str = "2", **changes: Any) -> GpuSnapshot:
    """A device that fell off the bus."""
    identity = Gpu(index=index, uuid=f"GPU-{index}", vendor=GpuVendor.NVIDIA, is_lost=True)
    xids = MappingProxyType({79: FaultCount(1, 1_750_000_040.0)})
    return replace(GpuSnapshot(identity, xids=xids), **changes)


def bare_device(index: str = "0", **changes: Any) -> GpuSnapshot:
    """An AMD device whose driver tells next to nothing."""
    told = Gpu(index=index, uuid=f"amd-{index}", vendor=GpuVendor.AMD, memory_total_bytes=GIB)
    return replace(GpuSnapshot(told), **changes)


EVERY_DEVICE: Final = (device(), orphaned_device(), lost_device(), bare_device())


def agent(*servers: ServerSnapshot, **changes: Any) -> AgentSnapshot:
    snapshot = AgentSnapshot(
        started=STARTED,
        generation=1,
        is_ready=True,
        servers=servers,
        collectors=(
            CollectorSnapshot("probes", True, 0.0125, 1_750_000_099.5),  # noqa: FBT003 - as in a page
            CollectorSnapshot("store", False),  # noqa: FBT003 - as in a page
        ),
        dropped=MappingProxyType({"history": 2}),
        config_load_unix_seconds=1_750_000_000.5,
    )
    return replace(snapshot, **changes)


_seconds = st.floats(min_value=0, max_value=1e12) | st.integers(0, 10**12)
_unix = st.none() | st.floats(min_value=0, max_value=1e10)
_counts = st.integers(0, 10**15)
_instants = st.builds(
    Instant, st.floats(min_value=0, max_value=1e9), st.floats(min_value=0, max_value=1e10)
)
# Whatever UTF-8 can express, with what must be escaped made frequent.
_texts = st.text(st.sampled_from('\\"\n{},= é漢\U0001f600\x00\r') | st.characters(codec="utf-8"))
_names = _texts | st.text("x", min_size=120, max_size=140)


def _mappings(keys: type, values: st.SearchStrategy) -> st.SearchStrategy:
    return st.dictionaries(st.sampled_from(keys), values).map(MappingProxyType)


_states = st.sampled_from(ServerState)
_tallies = st.builds(
    Tally,
    launches=_counts,
    restarts=_mappings(Initiator, _counts),
    crashes=_mappings(Reason, _counts),
    transitions=st.dictionaries(st.tuples(_states, _states), _counts, max_size=8),
    last_crash_unix_seconds=_mappings(Reason, st.floats(0, 1e10)),
)
_weights = st.builds(
    Weights,
    shard=st.integers(1, 99),
    shards=st.integers(99, 200),
    done_bytes=st.none() | _counts,
    size_bytes=st.none() | _counts,
    is_complete=st.booleans(),
    source=st.sampled_from([Witness.SHARDS, Witness.LOG]),
)
_downloads = st.builds(
    Download,
    _counts,
    st.none() | _counts,
    st.none() | st.sampled_from([Witness.HF_CACHE, Witness.HUB]),
    st.booleans(),
)
_shards = st.builds(
    Shard, st.integers(1, 2**22), st.integers(1, 99), st.integers(99, 200), st.none() | _counts
)
_looks = st.builds(
    LoadLook,
    process=st.just(MAIN),
    at=_instants,
    has_engine=st.booleans(),
    has_worker=st.booleans(),
    download=st.none() | _downloads,
    shards=st.none() | st.lists(_shards, max_size=3).map(tuple),
    io_bytes=st.none() | _counts,
    gpu_bytes=st.none() | _counts,
    cpu_seconds=st.none() | st.floats(0, 1e9),
    compile_changes=st.none() | st.integers(0, 1000),
    log=st.none() | st.builds(LogProgress, st.none() | st.sampled_from(Stage), st.integers(0, 99)),
    trouble=_texts,
)
_stage_seconds = _mappings(Stage, st.floats(0, 1e6))
_loads = st.builds(
    LoadProgress,
    process=st.just(MAIN),
    began=_instants,
    watched=_instants,
    stage=st.sampled_from(Stage),
    stage_entered=_instants,
    last_progress=_instants,
    look=_looks,
    stage_seconds=_stage_seconds,
    last_busy=st.none() | _instants,
    is_stalled=st.none() | st.booleans(),
    download=st.none() | _downloads,
    weights=st.none() | _weights,
    signs=_mappings(Witness, _instants),
    ended=st.none() | _instants,
)
_load_histories = st.builds(
    LoadHistory,
    counts=st.tuples(*[st.integers(0, 10**9)] * (len(LOAD_BUCKETS_SECONDS) + 1)),
    sum_seconds=st.floats(0, 1e12),
    last_seconds=st.none() | st.floats(0, 1e6),
    last_stage_seconds=_stage_seconds,
    longest_stage_seconds=_stage_seconds,
)
_lives = st.builds(
    ServerLife,
    phase=st.sampled_from(Phase),
    phase_entered=_instants,
    entered=_instants,
    budget=st.builds(RestartBudget, st.integers(0, 9), st.integers(0, 9), st.booleans()),
    state_time=st.builds(
        StateTime,
        until=_instants,
        seconds=st.fixed_dictionaries(dict.fromkeys(ServerState, _seconds)),
        desired_seconds=_seconds,
        available_seconds=_seconds,
    ),
    reason=st.none() | st.sampled_from(Reason),
    consecutive_failures=_counts,
    is_sleeping=st.none() | st.booleans(),
    launch=st.none() | st.builds(Launch, st.integers(1, 9), _unix, _instants),
    is_load_balanced=st.booleans(),
    last_ending=st.none()
    | st.builds(
        Ending,
        st.integers(1, 9),
        _instants,
        st.sampled_from([ServerState.STOPPED, ServerState.CRASHED]),
        st.none() | st.sampled_from(Reason),
        st.integers(1, 7),
        exit_code=st.none() | st.integers(0, 255),
        signal=st.none() | st.integers(1, 64),
        holder=_texts,
        log=st.lists(_texts, max_size=2).map(tuple),
        bundle=_texts,
    ),
    tally=_tallies,
    maintenance_until_unix_seconds=_unix,
)
_histograms = st.builds(
    Histogram,
    st.tuples(*[st.integers(0, 10**9)] * (len(DURATION_BUCKETS_SECONDS) + 1)),
    st.floats(0, 1e12),
)
_probe_stats = st.builds(
    ProbeStats,
    requests=_counts,
    failures=_mappings(ProbeCause, _counts),
    last_result=st.none()
    | st.builds(
        ProbeResult,
        st.sampled_from(Probe),
        st.none() | st.sampled_from(ProbeCause),
        st.floats(0, 10),
    ),
    last_success_unix_seconds=_unix,
    durations=_histograms,
)
_processes = st.builds(ProcessId, st.just("b00d"), st.integers(1, 2**22), _counts)
_components = st.builds(
    Component, st.sampled_from(ComponentRole), _names, st.integers(1, 2**22), st.booleans()
)
_trees = st.builds(
    ProcessTree,
    process=_processes,
    is_main_alive=st.booleans(),
    components=st.lists(_components, max_size=4).map(tuple),
    processes=_counts,
    threads=st.none() | _counts,
    resident_bytes=st.none() | _counts,
    open_fds=st.none() | _counts,
    cpu_seconds=st.none() | st.floats(0, 1e12),
    pids=st.lists(st.integers(1, 2**22), max_size=4).map(tuple),
    orphans=st.integers(0, 3).map(orphans),
)
_sightings = st.builds(
    Sighting,
    process=_processes | st.just(MAIN),
    start_seconds=st.floats(0, 1e10),
    command=st.builds(
        VllmCommand, model=st.none() | _names, port=st.integers(1, 65535), revision=_names
    ),
    uid=st.integers(0, 2**32 - 1),
    session=st.integers(0, 2**22),
    unit=st.none() | _names,
    container_id=st.none() | st.just(CONTAINER),
)
_sights = st.lists(
    st.builds(Sight, st.sampled_from(SightKind), st.booleans(), _texts, _texts), max_size=3
).map(tuple)
_url_servers = st.builds(
    ServerSnapshot,
    name=_names,
    mode=st.just(LifecycleMode.EXTERNAL),
    url=_names,
    is_discovered=st.booleans(),
    policy=st.builds(Policy, restart_window_seconds=st.floats(0, 1e6), is_wanted=st.booleans()),
    life=_lives,
    model_name=st.none() | _names,
    version=st.none() | _names,
    probes=_mappings(Probe, _probe_stats),
)
_local_lives = st.builds(
    replace,
    _lives,
    launch=st.none()
    | st.builds(Launch, st.integers(1, 9), _unix, _instants, st.booleans(), st.just(MAIN)),
    load=st.none() | _loads,
    load_history=_load_histories,
)
_local_servers = st.builds(
    replace,
    _url_servers,
    life=_lives | _local_lives,
    mode=st.sampled_from([LifecycleMode.MONITORED, LifecycleMode.MANAGED]),
    sighting=st.none() | _sightings,
    tree=st.none() | _trees,
    sights=_sights,
)
_models = st.none() | _names
_troubles = st.none() | st.builds(
    Trouble, st.sampled_from(Reason), _texts, st.integers(1, 9), st.booleans()
)


# Composite: hypothesis warns of strategies whose description has more than 30,000 characters.
@st.composite
def _managements(draw: st.DrawFn) -> Management:
    return Management(
        is_goal_up=draw(st.booleans()),
        model=draw(_models),
        model_before=draw(_models),
        attempts=draw(_counts),
        replacement=draw(st.none() | st.builds(Replacement, st.sampled_from(Initiator), _troubles)),
        stop=draw(st.none() | st.builds(Stop, _instants, _instants, st.booleans())),
        last_stop=draw(
            st.none() | st.builds(StopOutcome, st.integers(1, 9), st.floats(0, 1e6), st.booleans())
        ),
        is_clear=draw(st.booleans()),
        gone_since=draw(st.none() | _instants),
        trouble=draw(_troubles),
        is_dry_run_told=draw(st.booleans()),
    )


@st.composite
def _managed_servers(draw: st.DrawFn) -> ServerSnapshot:
    shown: ServerSnapshot = draw(_local_servers)
    policy = replace(
        MANAGED,
        model=draw(_models),
        restart_delay_seconds=draw(st.floats(2, 1e4)),
        is_dry_run=draw(st.booleans()),
    )
    return replace(
        shown,
        mode=LifecycleMode.MANAGED,
        policy=policy,
        life=replace(shown.life, management=draw(_managements())),
    )


servers = _url_servers | _local_servers | _managed_servers()
_xids = st.dictionaries(
    st.integers(1, 200), st.builds(FaultCount, _counts, st.floats(0, 1e10)), max_size=3
)
_readings = st.none() | st.floats(0, 1e4)
_gpus = st.builds(
    Gpu,
    index=st.sampled_from(["0", "1", "0:1"]) | _names,
    uuid=st.sampled_from(["GPU-a", "GPU-b"]) | _names,
    vendor=st.sampled_from(GpuVendor),
    name=st.none() | _names,
    driver_version=st.none() | _names,
    pci_bus_id=st.none() | _names,
    parent_uuid=st.none() | st.just("GPU-a"),
    is_lost=st.booleans(),
    memory_total_bytes=st.none() | _counts,
    memory_used_bytes=st.none() | _counts,
    memory_free_bytes=st.none() | _counts,
    utilization_ratio=_readings,
    temperature_celsius=_readings,
    power_watts=_readings,
    power_limit_watts=_readings,
    ecc_corrected_errors=st.none() | _counts,
    ecc_uncorrected_errors=st.none() | _counts,
)
_gpu_orphans = st.builds(
    GpuOrphan,
    st.integers(1, 2**22),
    st.sampled_from(ComponentRole),
    st.none() | _names,
    st.none() | _counts,
    st.floats(0, 1e10),
)
_gpu_strangers = st.builds(
    GpuStranger, st.integers(1, 2**22), st.none() | _names, st.none() | _counts
)
devices = st.builds(
    GpuSnapshot,
    _gpus,
    servers=st.dictionaries(_names, st.none() | _counts, max_size=3),
    orphans=st.none() | st.lists(_gpu_orphans, max_size=3).map(tuple),
    orphan_bytes=st.none() | _counts,
    other_bytes=st.none() | st.integers(-(10**12), 10**15),
    strangers=st.lists(_gpu_strangers, max_size=3).map(tuple),
    xids=_xids,
)
agents = st.builds(
    AgentSnapshot,
    started=_instants,
    generation=_counts,
    is_ready=st.booleans(),
    servers=st.lists(servers, max_size=3, unique_by=lambda item: item.name).map(tuple),
    collectors=st.lists(
        st.builds(CollectorSnapshot, _texts, st.booleans(), st.none() | _seconds, _unix),
        max_size=3,
    ).map(tuple),
    dropped=st.dictionaries(_texts, _counts, max_size=3),
    config_load_unix_seconds=_unix,
    is_config_load_successful=st.booleans(),
    discovered=st.none() | _counts,
    sights=_sights,
    gpus=st.lists(devices, max_size=3).map(tuple),
)
instants = _instants
