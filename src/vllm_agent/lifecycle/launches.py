"""Tells one launch of a server from the next: by its process, or by what its /metrics say. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from vllm_agent.lifecycle.server_life import Ending, Launch
from vllm_agent.lifecycle.states import Initiator, Phase, ServerState

if TYPE_CHECKING:
    from vllm_agent.lifecycle.server_life import ServerLife
    from vllm_agent.observations import Instant, ProcessId

SAME_START_SECONDS: Final = 1.0
"""Two start times this close are one: exporters round them, and no vLLM restarts that fast."""

CONFIRMING_LOOKS: Final = 3
"""Looks in a row that have to see a newer start time where nothing was seen to fail: a restart
takes a vLLM longer than a look, so that is rather a load balancer with servers of several ages."""

MAX_UNSETTLED: Final = 4
"""Local launches that may wait for their verdict while newer ones run: an ending is settled within
2 s, and no supervisor starts a vLLM more often."""

_DOWN_PHASES: Final = frozenset({Phase.LOST, Phase.ABSENT, Phase.CRASHED})


@dataclass(frozen=True, slots=True)
class LaunchAccount:
    """The life after a launch served; `launch` and `ending` are set where they are new."""

    life: ServerLife
    launch: Launch | None = None
    ending: Ending | None = None


def account_served(
    life: ServerLife, start_seconds: float | None, now: Instant, *, was_failing: bool
) -> LaunchAccount:
    """Books that the server serves, by a process started at `start_seconds` in unix time.

    `was_failing` is whether the look before failed.
    """
    life = _compare_starts(life, start_seconds)
    start = None if life.is_load_balanced else start_seconds
    if _is_same_launch(life, start):
        life = _continued(life, start, now)
        is_confirming = life.unconfirmed_start is not None
        return LaunchAccount(replace(life, unconfirmed_start=None) if is_confirming else life)
    if start is not None and life.phase is Phase.READY and not was_failing:
        known, looks = life.unconfirmed_start or (start, 0)
        looks = looks + 1 if abs(start - known) <= SAME_START_SECONDS else 1
        if looks < CONFIRMING_LOOKS:
            life = replace(_continued(life, None, now), unconfirmed_start=(start, looks))
            return LaunchAccount(life)
    life = replace(life, unconfirmed_start=None)
    return account_launch(life, start, now, has_served=True)


def account_launch(
    life: ServerLife,
    start: float | None,
    now: Instant,
    *,
    has_served: bool,
    process: ProcessId | None = None,
) -> LaunchAccount:
    """Books a launch that was not there before, and its use of the restart budget.

    A managed server's was taken from the budget before it was started.
    """
    is_first = life.tally.launches == 0
    launch = Launch(life.tally.launches + 1, start, now, has_served, process)
    is_ours = life.management is not None
    takes_unit = not is_first and not is_ours and needs_unit(life)
    initiator = Initiator.OUTSIDE
    if life.management is not None:
        initiator = life.management.initiator or Initiator.AGENT
    life, ending = _superseded(life, now)
    life = replace(
        life,
        launch=launch,
        running_since=now if has_served else None,
        has_served=life.has_served or has_served,
        is_sleeping=life.is_sleeping if has_served else None,
        newest_start_seconds=_newest(life.newest_start_seconds, start),
        budget=life.budget.after_launch(needs_unit=takes_unit),
        tally=life.tally.with_launch(None if is_first else initiator),
    )
    return LaunchAccount(life, launch, ending)


def account_process(
    life: ServerLife, process: ProcessId, start_seconds: float, now: Instant
) -> LaunchAccount:
    """Books a launch of a local server by its main process."""
    return account_launch(life, start_seconds, now, has_served=False, process=process)


def account_local_served(life: ServerLife, now: Instant) -> ServerLife:
    """Books that the newest launch of a local server serves."""
    if life.launch is None or (life.launch.has_served and life.running_since is not None):
        return life
    return replace(
        life,
        launch=replace(life.launch, has_served=True),
        running_since=life.running_since or now,
        has_served=True,
    )


def _superseded(life: ServerLife, now: Instant) -> tuple[ServerLife, Ending | None]:
    """What becomes of the launch before: its ending is still to be settled, or nobody saw it."""
    launch = life.launch
    is_unseen = life.phase is Phase.UNOBSERVED
    if launch is None or launch.process is None or life.is_launch_over or is_unseen:
        return life, unjudged_ending(life, now)
    unsettled = (*life.unsettled, launch)
    if len(unsettled) <= MAX_UNSETTLED:
        return replace(life, unsettled=unsettled), None
    oldest, *others = unsettled
    evidence = ("newer launches ran before its end was settled",)
    ending = Ending(oldest.number, now, ServerState.STOPPED, None, 0, evidence)
    return replace(life, unsettled=tuple(others)), ending


def _compare_starts(life: ServerLife, start: float | None) -> ServerLife:
    unconfirmed = life.unconfirmed_start[0] if life.unconfirmed_start is not None else None
    newest = _newest(life.newest_start_seconds, unconfirmed)
    if start is None or newest is None or start >= newest - SAME_START_SECONDS:
        return life
    return replace(life, is_load_balanced=True)


def _is_same_launch(life: ServerLife, start: float | None) -> bool:
    newest = life.newest_start_seconds
    if start is not None and newest is not None:
        return start <= newest + SAME_START_SECONDS
    is_known = life.tally.launches > 0
    return is_known and life.phase_last_known not in _DOWN_PHASES and not life.is_launch_over


def _continued(life: ServerLife, start: float | None, now: Instant) -> ServerLife:
    if life.running_since is not None and _is_as_known(life, start):
        return life
    launch = life.launch or Launch(life.tally.launches, start, now)
    if launch.start_seconds is None and start is not None:
        launch = replace(launch, start_seconds=start)
    if life.is_load_balanced:
        launch = replace(launch, start_seconds=None)
    return replace(
        life,
        launch=replace(launch, has_served=True),
        running_since=life.running_since or now,
        has_served=True,
        newest_start_seconds=_newest(life.newest_start_seconds, start),
        # It is back, so what was settled about this launch was only an outage of the way to it.
        last_ending=None if life.is_launch_over else life.last_ending,
    )


def _is_as_known(life: ServerLife, start: float | None) -> bool:
    """Whether a look of a launch that runs on tells nothing new, as nearly all of them do."""
    launch = life.launch
    return (
        launch is not None
        and launch.has_served
        and launch.start_seconds == (None if life.is_load_balanced else start)
        and life.newest_start_seconds == start
        and not life.is_launch_over
    )


def unjudged_ending(life: ServerLife, now: Instant) -> Ending | None:
    """The ending of a launch that nobody saw end; None where there is none to tell of."""
    number = life.tally.launches if life.launch is None else life.launch.number
    if number == 0 or life.is_launch_over:
        return None
    if life.phase is Phase.LOST:
        evidence = "it was back too soon to tell a crash from a planned restart"
    elif life.launch is None or life.phase is Phase.UNOBSERVED:
        evidence = "it ended while no agent watched"
    else:
        evidence = "a newer launch serves, and nobody saw how this one ended"
    return Ending(number, now, ServerState.STOPPED, None, 0, (evidence,))


def needs_unit(life: ServerLife) -> bool:
    """Whether a launch that follows the newest one takes a unit of the restart budget."""
    if life.launch is not None and not life.launch.has_served:
        return True
    return life.launch_end is ServerState.CRASHED


def _newest(one: float | None, other: float | None) -> float | None:
    return max((t for t in (one, other) if t is not None), default=None)
