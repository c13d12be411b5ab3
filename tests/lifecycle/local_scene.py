"""The life of a server whose processes are seen, under test: `Scene` with processes in it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from tests.lifecycle.looks import REFUSED, failing, serving
from tests.lifecycle.scene import Scene
from tests.lifecycle.sightings import BOOT, KILLED, process, sighting, tree
from vllm_agent.lifecycle.events import (
    ComponentEnded,
    EndBegan,
    EndSettled,
    Knocked,
    LoadLooked,
    Looked,
    ProcessAppeared,
    ProcessMissing,
    TreeSeen,
)
from vllm_agent.lifecycle.server_life import Policy
from vllm_agent.observations import ComponentRole, Knock, Listener, LoadLook, ProbeCause

if TYPE_CHECKING:
    from vllm_agent.lifecycle.ending import EndingEvidence
    from vllm_agent.lifecycle.step import Step
    from vllm_agent.observations import Instant, ProbeRound, ProcessId, Sighting

LOCAL = Policy(is_local=True)
HEADLESS = Policy(is_local=True, has_http=False)


@dataclass
class LocalScene(Scene):
    """`newest` is the process that a move is about where it names none."""

    policy: Policy = LOCAL
    newest: Sighting = field(default_factory=sighting)

    def appear(self, number: int = 1, *, age_seconds: float = 1.0, boot_id: str = BOOT) -> Step:
        """A process is seen for the first time, that many seconds after its start."""
        start = self.now.unix_seconds - age_seconds
        is_headless = not self.policy.has_http
        return self.sight(
            sighting(number, start_seconds=start, boot_id=boot_id, is_headless=is_headless)
        )

    def sight(self, seen: Sighting) -> Step:
        self.newest = seen
        return self.send(ProcessAppeared(seen))

    def sight_again(self) -> Step:
        """The newest process once more, as an agent that has just started sees it."""
        return self.send(ProcessAppeared(self.newest))

    def miss(self) -> Step:
        return self.send(ProcessMissing())

    def answer(self, look: ProbeRound | None = None, *, by: Listener | None = Listener.OWN) -> Step:
        """A look comes back, by default that of a healthy server; `by` is whose socket answered."""
        if look is None:
            look = serving(self.newest.start_seconds)
        return self.look(replace(look, listener=by))

    def look_begun(self, at: Instant, look: ProbeRound) -> Step:
        """A look comes back that was begun earlier."""
        return self.send(
            Looked(replace(look, started=at, finished=self.now, listener=Listener.OWN))
        )

    def answer_wrongly(self, times: int = 1, cause: ProbeCause = ProbeCause.HTTP_5XX) -> Step:
        for _ in range(times):
            done = self.answer(failing(cause))
        return done

    def close_port(self) -> Step:
        """A look finds nobody listening."""
        return self.look(REFUSED)

    def knock(self, number: int | None = None, *, out_of_reach: str | None = None) -> Step:
        """A knock that the server did not answer."""
        return self.send(Knocked(self._of(number), Knock(False, out_of_reach)))  # noqa: FBT003

    def witness(self, number: int | None = None, **seen: Any) -> Step:
        """A look at its load; `seen` are fields of LoadLook, `io_bytes` is 0 unless given."""
        look = LoadLook(**{"process": self._of(number), "at": self.now, "io_bytes": 0, **seen})
        return self.send(LoadLooked(look))

    def stall(self) -> Step:
        """Its load goes on for load_timeout without a sign."""
        self.witness(has_engine=True)
        self.wait(self.policy.load_timeout_seconds)
        return self.witness(has_engine=True)

    def see_tree(self, number: int | None = None, *, engines: int = 1, gone: int = 0) -> Step:
        return self.send(TreeSeen(tree(self._of(number), engines=engines, gone=gone)))

    def component_ends(self, number: int | None = None) -> Step:
        return self.send(ComponentEnded(self._of(number), ComponentRole.ENGINE_CORE))

    def engine_dies(self) -> Step:
        """Its only EngineCore ends; the agent is told twice, as the host does."""
        self.component_ends()
        return self.see_tree(engines=0, gone=1)

    def end(self, number: int | None = None) -> Step:
        """Its main process is gone."""
        return self.send(EndBegan(self._of(number)))

    def settle(self, evidence: EndingEvidence = KILLED, number: int | None = None) -> Step:
        return self.send(EndSettled(self._of(number), evidence))

    def crash(self) -> Step:
        self.end()
        return self.settle(KILLED)

    def load(self, number: int = 1) -> Self:
        """A new process appears and is loading."""
        self.appear(number)
        return self

    def run(self, number: int = 1, load_seconds: float = 50.0) -> Self:
        """A new process appears, loads and serves."""
        self.appear(number)
        self.wait(load_seconds).answer()
        return self

    def come_back(self) -> Self:
        """The agent restarts; nothing was seen since."""
        self.restart_agent()
        return self

    def _of(self, number: int | None) -> ProcessId:
        return self.newest.process if number is None else process(number)
