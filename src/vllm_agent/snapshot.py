"""All that exposition may see: immutable values, swapped as a whole.

The agent publishes a new `ServerSnapshot` per committed change; readers take `AgentSnapshot` and
never look anywhere else.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vllm_agent.lifecycle.events import Looked, ProcessAppeared, TreeSeen
from vllm_agent.observations import Listener

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_agent.lifecycle.events import Event
    from vllm_agent.lifecycle.server_life import Policy, ServerLife
    from vllm_agent.lifecycle.states import LifecycleMode
    from vllm_agent.observations import (
        ComponentRole,
        Gpu,
        Instant,
        MetricsFacts,
        Probe,
        ProbeCause,
        ProbeResult,
        ProbeRound,
        ProcessTree,
        Sight,
        Sighting,
    )

DURATION_BUCKETS_SECONDS: Final = (0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 5.0)
"""Upper bounds of probe durations: a healthy vLLM answers in 2 to 70 ms, a timeout is 5 s."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Observations by bucket; `counts` has one place more than the bounds, for +Inf.

    Counts are per bucket, not cumulative.
    """

    counts: tuple[int, ...] = (0,) * (len(DURATION_BUCKETS_SECONDS) + 1)
    sum_seconds: float = 0.0

    def with_observation(self, seconds: float) -> Histogram:
        """The same with one observation more."""
        place = bisect_left(DURATION_BUCKETS_SECONDS, seconds)
        counts = (*self.counts[:place], self.counts[place] + 1, *self.counts[place + 1 :])
        return Histogram(counts, self.sum_seconds + seconds)


@dataclass(frozen=True, slots=True)
class ProbeStats:
    """What one kind of probe of one server has seen since the agent started."""

    requests: int = 0
    failures: Mapping[ProbeCause, int] = field(default_factory=lambda: MappingProxyType({}))
    last_result: ProbeResult | None = None
    last_success_unix_seconds: float | None = None
    durations: Histogram = field(default_factory=Histogram)

    def with_result(self, result: ProbeResult, at: Instant) -> ProbeStats:
        """The same after one more request, which was answered or given up `at`."""
        failures, success = self.failures, self.last_success_unix_seconds
        if result.cause is None:
            success = at.unix_seconds
        else:
            count = failures.get(result.cause, 0) + 1
            failures = MappingProxyType({**failures, result.cause: count})
        return ProbeStats(
            requests=self.requests + 1,
            failures=failures,
            last_result=result,
            last_success_unix_seconds=success,
            durations=self.durations.with_observation(result.duration_seconds),
        )


@dataclass(frozen=True, slots=True)
class ServerSnapshot:
    """One server, complete: who it is, what is decided about it, and what its probes say.

    `url` is fit for display (no credentials). `model_name` and `version` are the last ones known.
    `probes` has an entry for each kind of probe that this mode sends. `sighting`, `tree` and
    `sights` are of local servers: who its newest main process is, what runs for it now, and what
    the agent may see of it; None and empty where no process was seen. `metrics_first` and
    `metrics_last` are what its newest launch told of itself first and last.
    """

    name: str
    mode: LifecycleMode
    url: str
    is_discovered: bool
    policy: Policy
    life: ServerLife
    model_name: str | None = None
    model_names: tuple[str, ...] = ()
    version: str | None = None
    probes: Mapping[Probe, ProbeStats] = field(default_factory=lambda: MappingProxyType({}))
    last_check: Instant | None = None
    sighting: Sighting | None = None
    tree: ProcessTree | None = None
    sights: tuple[Sight, ...] = ()
    metrics_first: MetricsFacts | None = None
    metrics_last: MetricsFacts | None = None

    @property
    def desired_up(self) -> bool | None:
        """Whether somebody wants it up; None where nobody said so (an ad-hoc server).

        False in maintenance, also of an ad-hoc server: its tickets are to end like pages do.
        """
        is_told = self.policy.is_wanted or self.life.is_in_maintenance
        return self.life.is_desired if is_told else None

    def after(self, event: Event, now: Instant) -> ServerSnapshot:
        """The same with what `event` tells, beside what it decides."""
        match event:
            case Looked(look):
                return self._after_look(look, now)
            case TreeSeen(tree):
                return replace(self, tree=tree)
            case ProcessAppeared(sighting):
                is_new = self.sighting is None or self.sighting.process != sighting.process
                return replace(
                    self,
                    metrics_first=None if is_new else self.metrics_first,
                    metrics_last=None if is_new else self.metrics_last,
                    sighting=sighting,
                    url=sighting.url or self.url,
                    model_name=sighting.command.served_name or self.model_name,
                )
            case _:
                return self

    def _after_look(self, look: ProbeRound, now: Instant) -> ServerSnapshot:
        probes = dict(self.probes)
        for result in look.results:
            if result.probe in probes:
                probes[result.probe] = probes[result.probe].with_result(result, now)
        seen = replace(self, probes=MappingProxyType(probes), last_check=now)
        if look.listener is Listener.STRANGER:
            # What another process serves, in whatever version, is not this server's.
            return seen
        names = look.model_names
        if not names and look.metrics is not None:
            names = look.metrics.model_names
        return replace(
            seen,
            metrics_first=self.metrics_first or look.metrics,
            metrics_last=look.metrics or self.metrics_last,
            model_names=names or self.model_names,
            model_name=names[0] if names else self.model_name,
            version=look.version or self.version,
        )


@dataclass(frozen=True, slots=True)
class CollectorSnapshot:
    """Whether one of the agent's own sources works; None where it has not finished once."""

    name: str
    is_up: bool
    duration_seconds: float | None = None
    last_success_unix_seconds: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class GpuOrphan:
    """A component of a vLLM that outlived its main process and holds memory of a device.

    `server` is None where the agent never saw the server that it belonged to. `start_seconds` is
    when it was started, in unix time.
    """

    pid: int
    role: ComponentRole
    server: str | None
    used_bytes: int | None
    start_seconds: float


@dataclass(frozen=True, slots=True)
class GpuStranger:
    """A process that holds memory of a device and is of no vLLM that the agent knows.

    `name` is the kernel's name of it, None where the process is gone by now.
    """

    pid: int
    name: str | None
    used_bytes: int | None


@dataclass(frozen=True, slots=True)
class FaultCount:
    """How often one kind of fault was told of since the agent started, and when last."""

    count: int
    last_unix_seconds: float


@dataclass(frozen=True, slots=True)
class GpuSnapshot:
    """One device, or MIG instance, and who holds its memory.

    `servers` are those that hold some, with how much: None where the driver does not tell.
    `orphans` is None where the agent cannot tell who holds it at all. `other_bytes` is what is
    used beyond the servers and the orphans; `strangers` are processes that hold some of that, the
    largest first, and not all of them where there are many. `xids` are the faults told of, by
    number.
    """

    gpu: Gpu
    servers: Mapping[str, int | None] = field(default_factory=lambda: MappingProxyType({}))
    orphans: tuple[GpuOrphan, ...] | None = None
    orphan_bytes: int | None = None
    other_bytes: int | None = None
    strangers: tuple[GpuStranger, ...] = ()
    xids: Mapping[int, FaultCount] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class AgentSnapshot:
    """The agent and everything it watches at one moment.

    `is_ready` is true once the configuration is loaded and every server had its first look.
    `dropped` counts, by kind, whatever a bound made the agent leave out.
    `generation` changes with every published change: it makes a cheap ETag. `discovered` is how
    many vLLM servers the last look at the host's processes found, None where it is blind or off.
    `sights` is what the agent may see of the host, whatever server it is about. `config_file` is
    the file of its configuration, None where there is none. `gpus` are the devices in the order of
    their drivers; none where there is no driver, or it does not answer.
    """

    started: Instant
    generation: int
    is_ready: bool
    servers: tuple[ServerSnapshot, ...] = ()
    collectors: tuple[CollectorSnapshot, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    config_load_unix_seconds: float | None = None
    is_config_load_successful: bool = True
    discovered: int | None = None
    sights: tuple[Sight, ...] = ()
    config_file: str | None = None
    gpus: tuple[GpuSnapshot, ...] = ()

    def server(self, name: str) -> ServerSnapshot | None:
        """The server of that name, or None."""
        return next((s for s in self.servers if s.name == name), None)
