"""Stories of local servers, each replayed with a restart of the agent at every point in between."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import pytest

from tests.lifecycle.local_scene import LocalScene
from tests.lifecycle.sightings import EXITED_1, KILLED, TOLD_TO_STOP
from vllm_agent.lifecycle.states import ServerState

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_agent.lifecycle.ending import EndingEvidence


@dataclass
class HostScene(LocalScene):
    """A scene that knows what there is to be found, and what the agent that runs follows."""

    alive: set[int] = field(default_factory=set)
    followed: set[int] = field(default_factory=set)
    number: int = 0

    def starts(self) -> None:
        self.number += 1
        self.alive.add(self.number)
        self.followed.add(self.number)
        self.wait(2.0).appear(self.number)

    def ends(self) -> None:
        self.alive.discard(self.number)
        self.wait(5.0).end()

    def is_judged(self, evidence: EndingEvidence, launches_ago: int = 0) -> None:
        number = self.number - launches_ago
        if number in self.followed:
            self.wait(1.5).settle(evidence, number)

    def restarts_agent(self) -> None:
        self.restart_agent()
        self.followed.clear()
        if self.number in self.alive:
            self.followed.add(self.number)
            self.sight_again()
        else:
            self.miss()


Move = tuple[str, "Callable[[HostScene], object]"]

START: Final[Move] = ("start", HostScene.starts)
KNOCK: Final[Move] = ("knock", lambda s: s.wait(1.0).knock())
SERVE: Final[Move] = ("serve", lambda s: s.wait(5.0).answer())
RUN_LONG: Final[Move] = ("run a minute", lambda s: s.wait(60.0).answer())
BREAK: Final[Move] = ("answer 500", lambda s: s.wait(5.0).answer_wrongly(3))
CLOSE: Final[Move] = ("close the port", lambda s: s.wait(5.0).close_port())
ENGINE_DIES: Final[Move] = ("engine dies", lambda s: s.engine_dies())
END: Final[Move] = ("end", HostScene.ends)
CRASHED: Final[Move] = ("judged a crash", lambda s: s.is_judged(KILLED))
FAILED_LOAD: Final[Move] = ("judged a failed load", lambda s: s.is_judged(EXITED_1))
STOPPED: Final[Move] = ("judged a stop", lambda s: s.is_judged(TOLD_TO_STOP))
CRASHED_LATE: Final[Move] = ("the launch before judged a crash", lambda s: s.is_judged(KILLED, 1))
MAINTAIN: Final[Move] = ("maintain", lambda s: s.maintain(math.inf))
DEMAND: Final[Move] = ("end maintenance", lambda s: s.maintain(None))
OUT_OF_REACH: Final[Move] = ("out of reach", lambda s: s.knock(out_of_reach="firewall"))


@dataclass(frozen=True)
class Outcome:
    """What a story must come to."""

    state: str
    launches: int
    crashes: int
    remaining: int


@dataclass(frozen=True)
class Story:
    """`outcome` is what it comes to, `interrupted` that by how many moves the old agent saw."""

    name: str
    moves: tuple[Move, ...]
    outcome: Outcome
    interrupted: dict[int, Outcome] = field(default_factory=dict)


STORIES: Final = (
    Story("a load and a run", (START, KNOCK, SERVE, SERVE), Outcome("running", 1, 0, 3)),
    Story(
        "a server that fails and recovers",
        (START, SERVE, BREAK, SERVE),
        Outcome("running", 1, 0, 3),
    ),
    Story(
        "a port that closes and opens again",
        (START, SERVE, CLOSE, SERVE),
        Outcome("running", 1, 0, 3),
    ),
    Story(
        "a port out of reach",
        (START, KNOCK, OUT_OF_REACH, KNOCK, OUT_OF_REACH),
        Outcome("unknown", 1, 0, 3),
    ),
    Story(
        "a crash and nothing after it",
        (START, SERVE, END, CRASHED),
        Outcome("crashed", 1, 1, 3),
        {3: Outcome("stopped", 1, 0, 3)},  # nobody watched the end
    ),
    Story(
        "a crash and a comeback that costs a unit",
        (START, SERVE, END, CRASHED, START, SERVE),
        Outcome("running", 2, 1, 2),
        {3: Outcome("running", 2, 0, 3)},
    ),
    Story(
        "a unit that comes back by running",
        (START, SERVE, END, CRASHED, START, SERVE, RUN_LONG),
        Outcome("running", 2, 1, 3),
        # A new agent has to see the whole window itself.
        {3: Outcome("running", 2, 0, 3), 6: Outcome("running", 2, 1, 2)},
    ),
    Story(
        "a stop and a start",
        (START, SERVE, CLOSE, END, STOPPED, START, SERVE),
        Outcome("running", 2, 0, 3),
    ),
    Story(
        "a crash that is judged when the next launch is there",
        (START, SERVE, END, START, CRASHED_LATE, SERVE),
        Outcome("running", 2, 1, 2),
        # The agent that followed the launch did not live to judge it.
        {3: Outcome("running", 2, 0, 3), 4: Outcome("running", 2, 0, 3)},
    ),
    Story(
        "loads that fail",
        (START, END, FAILED_LOAD, START, END, FAILED_LOAD, START),
        Outcome("starting", 3, 2, 1),
        {2: Outcome("starting", 3, 1, 1), 5: Outcome("starting", 3, 1, 1)},
    ),
    Story(
        "a load that fails unseen when the next one begins",
        (START, END, START, SERVE),
        Outcome("running", 2, 0, 2),
    ),
    Story(
        "maintenance",
        (START, SERVE, MAINTAIN, END, CRASHED, DEMAND, START, SERVE),
        Outcome("running", 2, 0, 3),
    ),
    Story(
        "a crash, and maintenance to repair it",
        (START, SERVE, END, CRASHED, MAINTAIN, DEMAND, START, SERVE),
        Outcome("running", 2, 1, 2),
        {3: Outcome("running", 2, 0, 3)},
    ),
    Story(
        "an engine death",
        (START, SERVE, ENGINE_DIES, BREAK, CLOSE, END, CRASHED),
        Outcome("crashed", 1, 1, 3),
        {6: Outcome("stopped", 1, 0, 3)},
    ),
)


def outcome(scene: HostScene) -> Outcome:
    return Outcome(
        scene.life.state.value, scene.launches, scene.crashes, scene.life.budget.remaining
    )


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_story_without_a_restart_of_the_agent(story: Story) -> None:
    scene = HostScene()
    for _, move in story.moves:
        move(scene)
    assert outcome(scene) == story.outcome


@pytest.mark.parametrize(
    ("story", "moves_before"),
    [(story, count) for story in STORIES for count in range(len(story.moves))],
    ids=lambda value: value.name if isinstance(value, Story) else f"after {value}",
)
@pytest.mark.parametrize("times", [1, 2])
def test_story_with_a_restart_of_the_agent(story: Story, moves_before: int, times: int) -> None:
    scene = HostScene()
    for count, (_, move) in enumerate(story.moves):
        if count == moves_before:
            before = scene.life.tally
            for _ in range(times):
                scene.restarts_agent()
            assert scene.launches == before.launches
            assert scene.life.tally.crashes == before.crashes
        move(scene)
    assert outcome(scene) == story.interrupted.get(moves_before, story.outcome)


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_story_with_a_restart_of_the_agent_after_every_move_never_counts_more(
    story: Story,
) -> None:
    scene = HostScene()
    for _, move in story.moves:
        move(scene)
        scene.restarts_agent()
    assert scene.launches == story.outcome.launches
    assert scene.crashes <= story.outcome.crashes


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_no_launch_is_starting_once_it_has_served(story: Story) -> None:
    """Whenever the agent restarts: what has served in this launch is not starting any more."""
    scene = HostScene()
    for _, move in story.moves:
        move(scene)
        scene.restarts_agent()
        assert not (scene.life.state is ServerState.STARTING and scene.life.has_served_now)
