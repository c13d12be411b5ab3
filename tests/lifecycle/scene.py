"""One server's life under test: events in, time passes, every step checked against all laws."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

from tests.lifecycle.invariants import check_state_time, check_step
from tests.lifecycle.looks import REFUSED, STARTED, failing, serving
from vllm_agent.lifecycle.events import Event, Looked, MaintenanceSet, Ticked
from vllm_agent.lifecycle.server_life import Policy, ServerLife
from vllm_agent.lifecycle.states import Phase, ServerState
from vllm_agent.lifecycle.step import Step, step
from vllm_agent.observations import Instant, ProbeCause

if TYPE_CHECKING:
    from vllm_agent.observations import ProbeRound

EXPECTED_REASON = {
    ProbeCause.RESET: "unreachable",
    ProbeCause.DNS: "unreachable",
    ProbeCause.TLS: "unreachable",
    ProbeCause.TIMEOUT: "unresponsive",
    ProbeCause.HTTP_4XX: "unhealthy",
    ProbeCause.HTTP_5XX: "unhealthy",
    ProbeCause.BAD_BODY: "unhealthy",
    ProbeCause.TOO_LARGE: "unhealthy",
}
"""What a failed state is called when looks fail for that cause."""

BEGIN = Instant(1000.0, STARTED + 500.0)


@dataclass
class Scene:
    """`life` is where the story stands; `steps` is how it came there."""

    policy: Policy = field(default_factory=Policy)
    now: Instant = BEGIN
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.begun = self.now
        self.life = ServerLife.begun(self.policy, None, self.now)

    def send(self, event: Event) -> Step:
        before, text = self.life, repr(self.life)
        done = step(before, event, self.policy, self.now)
        assert repr(before) == text, "an old life was changed"
        check_step(before, done, self.policy, self.now)
        self.life = done.life
        self.steps.append(done)
        check_state_time(self.life, self.now.since(self.begun))
        return done

    def wait(self, seconds: float) -> Self:
        self.now = Instant(self.now.monotonic_seconds + seconds, self.now.unix_seconds + seconds)
        return self

    def set_wall_clock(self, seconds: float) -> None:
        self.now = Instant(self.now.monotonic_seconds, self.now.unix_seconds + seconds)

    def look(self, look: ProbeRound) -> Step:
        return self.send(Looked(replace(look, started=self.now, finished=self.now)))

    def serve(self, start_seconds: float | None = STARTED) -> Step:
        return self.look(serving(start_seconds))

    def refuse(self) -> Step:
        return self.look(REFUSED)

    def fail(self, times: int = 1, cause: ProbeCause = ProbeCause.TIMEOUT) -> Step:
        for _ in range(times):
            done = self.look(failing(cause))
        return done

    def crash(self) -> Step:
        """Refuses for as long as it takes to be called a crash."""
        self.refuse()
        return self.wait(10.0).refuse()

    def maintain(self, seconds: float | None) -> Step:
        until = None if seconds is None else self.now.unix_seconds + seconds
        return self.send(MaintenanceSet(until))

    def tick(self) -> Step:
        return self.send(Ticked())

    def restart_agent(self) -> None:
        """A new agent that knows only what the old one remembered."""
        self.life = ServerLife.begun(self.policy, self.life.memory, self.now)
        self.begun = self.now

    def seen(self) -> tuple[ServerState, str | None]:
        return self.life.state, self.life.reason

    def state_is_failed_for(self, cause: ProbeCause) -> bool:
        return self.seen() == (ServerState.FAILED, EXPECTED_REASON[cause])

    @property
    def phase(self) -> Phase:
        return self.life.phase

    @property
    def crashes(self) -> int:
        return sum(self.life.tally.crashes.values())

    @property
    def restarts(self) -> int:
        return sum(self.life.tally.restarts.values())

    @property
    def launches(self) -> int:
        return self.life.tally.launches
