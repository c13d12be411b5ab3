"""Fixed stories, each replayed with a restart of the agent at every point in between."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest

from tests.lifecycle.looks import STARTED
from tests.lifecycle.scene import Scene
from vllm_agent.lifecycle.states import ServerState
from vllm_agent.observations import ProbeCause

if TYPE_CHECKING:
    from collections.abc import Callable

NEWER: Final = STARTED + 1000.0

Move = tuple[str, "Callable[[Scene], object]"]

SERVE: Final[Move] = ("serve", lambda s: s.wait(5.0).serve())
SERVE_NEWER: Final[Move] = ("serve newer", lambda s: s.wait(5.0).serve(NEWER))
SERVE_UNDATED: Final[Move] = ("serve undated", lambda s: s.wait(5.0).serve(None))
RUN_LONG: Final[Move] = ("run a minute", lambda s: s.wait(60.0).serve(NEWER))
REFUSE: Final[Move] = ("refuse", lambda s: s.wait(5.0).refuse())
STILL_REFUSE: Final[Move] = ("still refuse", lambda s: s.wait(10.0).refuse())
BREAK: Final[Move] = ("answer 500", lambda s: s.wait(5.0).fail(3, ProbeCause.HTTP_5XX))
MAINTAIN: Final[Move] = ("maintain", lambda s: s.maintain(math.inf))
DEMAND: Final[Move] = ("end maintenance", lambda s: s.maintain(None))


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
    interrupted: dict[int, Outcome]


STORIES: Final = (
    Story(
        "a server that runs on",
        (SERVE, SERVE, BREAK, SERVE),
        Outcome("running", 1, 0, 3),
        {},
    ),
    Story(
        "a restart nobody saw",
        (SERVE, SERVE_NEWER, SERVE_NEWER, SERVE_NEWER),
        Outcome("running", 2, 0, 3),
        {},
    ),
    Story(
        "several API servers: gone and back too fast for a crash",
        (SERVE_UNDATED, REFUSE, SERVE_UNDATED, SERVE_UNDATED),
        Outcome("running", 2, 0, 3),
        {},
    ),
    Story(
        "an outage of the network",
        (SERVE, REFUSE, SERVE),
        Outcome("running", 1, 0, 3),
        {},
    ),
    Story(
        "a crash and nothing after it",
        (SERVE, REFUSE, STILL_REFUSE, STILL_REFUSE),
        Outcome("crashed", 1, 1, 3),
        {1: Outcome("stopped", 1, 0, 3)},  # nobody watched the end
    ),
    Story(
        "a crash and a comeback that costs a unit",
        (SERVE, REFUSE, STILL_REFUSE, STILL_REFUSE, SERVE_NEWER, SERVE_NEWER),
        Outcome("running", 2, 1, 2),
        {1: Outcome("running", 2, 0, 3)},
    ),
    Story(
        "a unit that comes back by running",
        (SERVE, REFUSE, STILL_REFUSE, SERVE_NEWER, RUN_LONG),
        Outcome("running", 2, 1, 3),
        # A new agent has to see the whole window itself.
        {1: Outcome("running", 2, 0, 3), 4: Outcome("running", 2, 1, 2)},
    ),
    Story(
        "a crash, then something broken on its port, then nothing",
        (SERVE, REFUSE, STILL_REFUSE, BREAK, REFUSE, STILL_REFUSE),
        Outcome("crashed", 1, 1, 3),
        # The outage that an agent sees after an end nobody watched is the one it counts.
        {},
    ),
    Story(
        "a crash, then something broken on its port, then a comeback",
        (SERVE, REFUSE, STILL_REFUSE, BREAK, SERVE_NEWER),
        Outcome("running", 2, 1, 2),
        {1: Outcome("running", 2, 0, 3)},
    ),
    Story(
        "maintenance",
        (SERVE, MAINTAIN, REFUSE, STILL_REFUSE, DEMAND, SERVE_NEWER),
        Outcome("running", 2, 0, 3),
        {},
    ),
    Story(
        "a crash, and maintenance to repair it",
        (SERVE, REFUSE, STILL_REFUSE, MAINTAIN, STILL_REFUSE, DEMAND, SERVE_NEWER),
        Outcome("running", 2, 1, 2),
        {1: Outcome("running", 2, 0, 3)},
    ),
    Story(
        "several API servers: a crash and a comeback",
        (SERVE_UNDATED, REFUSE, STILL_REFUSE, STILL_REFUSE, SERVE_UNDATED, SERVE_UNDATED),
        Outcome("running", 2, 1, 2),
        {1: Outcome("running", 2, 0, 3)},
    ),
)


def outcome(scene: Scene) -> Outcome:
    return Outcome(
        scene.life.state.value, scene.launches, scene.crashes, scene.life.budget.remaining
    )


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_story_without_a_restart_of_the_agent(story: Story) -> None:
    scene = Scene()
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
    scene = Scene()
    for count, (_, move) in enumerate(story.moves):
        if count == moves_before:
            before = scene.life.tally
            for _ in range(times):
                scene.restart_agent()
            assert scene.life.tally == before
            assert scene.life.state is ServerState.UNKNOWN
        move(scene)
    assert outcome(scene) == story.interrupted.get(moves_before, story.outcome)


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_story_with_a_restart_of_the_agent_after_every_move_never_counts_more(
    story: Story,
) -> None:
    scene = Scene()
    for _, move in story.moves:
        move(scene)
        scene.restart_agent()
    assert scene.launches == story.outcome.launches
    assert scene.crashes <= story.outcome.crashes
