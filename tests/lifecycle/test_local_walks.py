"""Random walks of a local server: whatever it, its host and the agent do, the laws hold."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tests.lifecycle.local_scene import LocalScene
from tests.lifecycle.sightings import (
    EXITED_1,
    KILLED,
    ORDERLY,
    TOLD_TO_STOP,
    UNEXPLAINED,
    process,
    tree,
)
from tests.lifecycle.toy_processes import ToyAnswer, ToyHost, ToyLaunch
from vllm_agent.lifecycle.events import (
    ComponentEnded,
    ConnectionClosed,
    EndBegan,
    EndSettled,
    Event,
    Follow,
    Knocked,
    LoadLooked,
    Looked,
    MaintenanceSet,
    ProcessAppeared,
    ProcessMissing,
    Ticked,
    TreeSeen,
)
from vllm_agent.lifecycle.pace import is_knocked_at, next_deadline_seconds, next_look_seconds
from vllm_agent.lifecycle.server_life import Policy
from vllm_agent.lifecycle.states import Phase, ServerState
from vllm_agent.lifecycle.supervision import ENDING_SECONDS
from vllm_agent.lifecycle.transitions import TRANSITIONS, Trigger
from vllm_agent.observations import ComponentRole, Instant, Knock, LoadLook, Shard

if TYPE_CHECKING:
    from vllm_agent.lifecycle.server_life import Ending
    from vllm_agent.lifecycle.step import Step

POLICY = Policy(expected_model="tiny", is_local=True)
INTERVAL = 10.0
ENDS = {
    "killed": KILLED,
    "exit 1": EXITED_1,
    "unexplained": UNEXPLAINED,
    "told to stop": TOLD_TO_STOP,
    "orderly": ORDERLY,
}
ASKED_RULES = {3, 6}
MEANWHILE = ["time", "end", "start", "replaced", "serves", "closes"]
MOSTLY = [True, True, True, False]


class LocalWalk(RuleBasedStateMachine):
    """An agent that follows the launches of a toy host, and restarts whenever it likes."""

    @initialize(shows_sockets=st.booleans(), tells_start=st.booleans(), has_http=st.booleans())
    def begin(self, *, shows_sockets: bool, tells_start: bool, has_http: bool) -> None:
        self.scene = LocalScene(replace(POLICY, has_http=has_http))
        self.host = ToyHost(shows_sockets=shows_sockets, tells_start=tells_start)
        self.seen: list[ToyLaunch] = []
        self.followed: list[ToyLaunch] = []
        self.endings: dict[int, Ending] = {}
        self.served: set[int] = set()
        self.is_refilled = False
        self.looking: tuple[Instant, ToyAnswer] | None = None
        self.is_watching = False
        self.began_in: Counter[ServerState] = Counter([ServerState.UNKNOWN])
        self.left_by_restart: Counter[ServerState] = Counter()
        self.agent_looks_for_processes()

    def tell(self, event: Event) -> Step:
        """Gives the agent an event, and holds its step against what is true."""
        before = self.scene.life
        since = before.running_since
        if since is not None and self.scene.now.since(since) >= POLICY.restart_window_seconds:
            self.is_refilled = True
        done = self.scene.send(event)
        if self.scene.life.has_served_now:
            self.served.add(self.scene.launches)
        if done.ending is not None:
            number = done.ending.launch_number
            assert 1 <= number <= len(self.seen)
            assert number not in self.endings, "an ending was settled twice"
            self.endings[number] = done.ending
            if self.scene.life.is_in_maintenance:
                assert done.ending.state is ServerState.STOPPED
        for effect in done.effects:
            if isinstance(effect, Follow):
                assert isinstance(event, ProcessAppeared)
                assert effect.sighting == event.sighting
        if done.transition is not None and not done.transition.is_note:
            targets = {TRANSITIONS[before.phase, trigger] for trigger in Trigger}
            assert done.transition.to_phase in targets
            if done.transition.to_phase is Phase.OVERDUE:
                assert self.scene.now.since(before.phase_entered) >= ENDING_SECONDS
        return done

    @property
    def newest_seen(self) -> ToyLaunch:
        return self.seen[-1]

    def appears(self, launch: ToyLaunch) -> None:
        if launch not in self.seen:
            self.seen.append(launch)
        if launch not in self.followed:
            self.followed.append(launch)
        self.tell(ProcessAppeared(launch.sighting))

    # What the world does.

    @precondition(lambda self: self.host.newest is None or not self.host.newest.is_listening)
    @rule()
    def server_starts(self) -> None:
        launch = self.host.start(self.scene.now.unix_seconds)
        if self.is_watching:
            self.appears(launch)

    @precondition(lambda self: self.host.living is not None)
    @rule(is_other_model=st.sampled_from([False, False, True]))
    def server_serves(self, *, is_other_model: bool) -> None:
        assert self.host.newest is not None
        self.host.newest.is_other_model = is_other_model
        self.host.newest.is_engine_alive = not self.host.newest.is_engine_gone
        if self.host.is_port_free:
            self.host.newest.is_listening = True

    @precondition(lambda self: self.host.living is not None)
    @rule()
    def server_closes_its_port(self) -> None:
        assert self.host.newest is not None
        self.host.newest.is_listening = False

    @precondition(lambda self: self.host.living is not None)
    @rule(is_hung=st.booleans())
    def server_hangs_or_recovers(self, *, is_hung: bool) -> None:
        assert self.host.newest is not None
        self.host.newest.is_hung = is_hung

    @precondition(lambda self: self.host.living is not None and self.host.living.is_engine_alive)
    @rule()
    def engine_dies(self) -> None:
        launch = self.host.newest
        assert launch is not None
        launch.is_engine_alive, launch.is_engine_gone = False, True
        if self.is_watching and launch in self.followed:
            state = self.scene.life.state
            self.tell(ComponentEnded(launch.process, ComponentRole.ENGINE_CORE))
            assert self.scene.life.state is state
            self.tell(TreeSeen(launch.tree))

    @precondition(lambda self: any(launch.is_alive for launch in self.host.launches))
    @rule(leaves_orphans=st.booleans(), is_newest=st.booleans())
    def main_process_dies(self, *, leaves_orphans: bool, is_newest: bool) -> None:
        living = [launch for launch in self.host.launches if launch.is_alive]
        launch = living[-1 if is_newest else 0]
        self.host.kill_main(launch, leaves_orphans=leaves_orphans)
        if self.is_watching and launch in self.followed:
            self.tell(EndBegan(launch.process))

    @rule(is_cut_off=st.booleans())
    def network_goes_or_comes(self, *, is_cut_off: bool) -> None:
        self.host.is_cut_off = is_cut_off

    @rule()
    def orphans_end(self) -> None:
        for launch in self.host.launches:
            launch.has_orphans = False

    @precondition(lambda self: self.host.is_port_free or self.host.is_stranger_there)
    @rule(is_there=st.booleans())
    def stranger_comes_or_goes(self, *, is_there: bool) -> None:
        self.host.is_stranger_there = is_there

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 5.0, 10.0, 60.0, 120.0, 3600.0]))
    def time_passes(self, seconds: float) -> None:
        self.scene.wait(seconds)

    @rule(seconds=st.sampled_from([-1e9, -3600.0, -0.5, 0.5, 3600.0, 1e9]))
    def wall_clock_is_set(self, seconds: float) -> None:
        self.scene.set_wall_clock(seconds)

    # What the agent hears.

    @precondition(lambda self: any(not launch.is_alive for launch in self.followed))
    @rule(how=st.sampled_from(sorted(ENDS)), which=st.integers(0, 9))
    def verdict_falls(self, how: str, which: int) -> None:
        """Of the newest launch or of one before it, in any order."""
        dead = [launch for launch in self.followed if not launch.is_alive]
        self.verdict_of(dead[which % len(dead)], how)

    def verdict_of(self, launch: ToyLaunch, how: str) -> None:
        if launch in self.followed:
            self.followed.remove(launch)
            self.tell(EndSettled(launch.process, ENDS[how]))

    @precondition(lambda self: self.is_watching and self.scene.life.unsettled)
    @rule(which=st.integers(0, 9))
    def older_process_is_seen_again(self, which: int) -> None:
        alive = [launch for launch in self.followed[:-1] if launch.is_alive]
        older = [la for la in alive if la.process in self.unsettled]
        if older:
            self.tell(ProcessAppeared(older[which % len(older)].sighting))

    @precondition(lambda self: self.is_watching)
    @rule(which=st.integers(0, 9), how=st.sampled_from(sorted(ENDS)))
    def something_is_told_of_a_process_that_is_not_awaited(self, which: int, how: str) -> None:
        of = (
            self.newest_seen.process
            if which == 0 and self.seen
            else process(which + 900 * (which == 9))
        )
        launch = self.scene.life.launch
        is_newest = launch is not None and launch.process == of
        if of in self.unsettled or (is_newest and not self.scene.life.is_launch_over):
            return
        # Time is booked by whatever is told.
        self.tell(Ticked())
        before = self.scene.life
        for event in (
            Knocked(of, Knock(is_accepted=False)),
            Knocked(of, Knock(is_accepted=False, out_of_reach="firewall")),
            TreeSeen(tree(of, engines=0, gone=1, is_main_alive=not is_newest)),
            ComponentEnded(of, ComponentRole.ENGINE_CORE),
            EndBegan(of),
            EndSettled(of, ENDS[how]),
        ):
            self.tell(event)
        assert self.scene.life == before

    @property
    def unsettled(self) -> set:
        return {launch.process for launch in self.scene.life.unsettled}

    @precondition(lambda self: self.is_watching)
    @rule(mebibytes=st.integers(0, 3), is_mapped=st.booleans())
    def load_is_looked_at(self, *, mebibytes: int, is_mapped: bool) -> None:
        """Be it of the newest launch or of another; only one that loads is moved by it."""
        before = self.scene.life
        shards = (Shard(1, 1 + mebibytes, 4),) if is_mapped else ()
        for launch in self.followed[-2:]:
            look = LoadLook(
                process=launch.process,
                at=self.scene.now,
                shards=shards,
                io_bytes=mebibytes << 20,
            )
            self.tell(LoadLooked(look))
        if before.phase not in {Phase.LOADING, Phase.STALLED}:
            assert self.scene.life.phase is before.phase

    @precondition(lambda self: self.is_watching)
    @rule()
    def connection_closes(self) -> None:
        state = self.scene.life.state
        self.tell(ConnectionClosed())
        assert self.scene.life.state is state

    @rule(seconds=st.sampled_from([None, 0.0, 30.0, math.inf]))
    def maintenance_is_set(self, seconds: float | None) -> None:
        until = None if seconds is None else self.scene.now.unix_seconds + seconds
        self.tell(MaintenanceSet(until))

    # What the agent does.

    @precondition(lambda self: self.is_watching and self.seen and self.looking is None)
    @rule()
    def agent_begins_a_look(self) -> None:
        self.looking = (self.scene.now, self.host.answer(self.newest_seen))

    @precondition(lambda self: self.is_watching and self.looking is not None)
    @rule()
    def look_comes_back(self) -> None:
        assert self.looking is not None
        (started, answer), self.looking = self.looking, None
        look = replace(answer.look, started=started, finished=self.scene.now)
        self.tell(TreeSeen(self.newest_seen.tree))
        was_running = self.scene.life.state is ServerState.RUNNING
        self.tell(Looked(look))
        is_running = self.scene.life.state is ServerState.RUNNING
        if is_running and not was_running:
            assert self.newest_seen.is_alive
            assert answer.by is self.newest_seen or not answer.is_teller_known

    @precondition(lambda self: self.is_watching and self.seen)
    @rule()
    def agent_looks(self) -> None:
        self.looking = None
        life, launch = self.scene.life, self.newest_seen
        if is_knocked_at(life, self.scene.policy) and not (
            self.scene.policy.has_http and self.host.is_knock_accepted(launch)
        ):
            self.tell(TreeSeen(launch.tree))
            is_listening = self.scene.policy.has_http and self.host.holder is launch
            out_of_reach = "firewall" if is_listening and self.host.is_cut_off else None
            self.tell(Knocked(launch.process, Knock(False, out_of_reach)))  # noqa: FBT003
            return
        self.agent_begins_a_look()
        self.look_comes_back()

    @precondition(lambda self: self.is_watching and self.seen)
    @rule(looks=st.integers(1, 4))
    def agent_looks_when_its_pace_says(self, looks: int) -> None:
        for _ in range(looks):
            wait = next_look_seconds(self.scene.life, self.scene.policy, INTERVAL, self.scene.now)
            assert wait >= 0.0
            if wait == math.inf:
                assert self.scene.life.launch is None or self.scene.life.is_launch_over
                return
            assert wait <= INTERVAL
            self.scene.wait(wait)
            self.agent_looks()

    @precondition(lambda self: self.is_watching)
    @rule(seconds=st.sampled_from([0.0, 1.0, 119.0, 120.0]), is_looked_at=st.booleans())
    def port_closes_for_a_while(self, seconds: float, *, is_looked_at: bool) -> None:
        self.agent_sees_it_serve()
        launch = self.host.living
        if launch is None or self.scene.life.state is not ServerState.RUNNING:
            return
        launch.is_listening = False
        self.agent_looks()
        self.scene.wait(seconds)
        self.tell(Ticked())
        if is_looked_at:
            self.agent_looks()
        self.agent_sees_it_serve()

    @precondition(lambda self: self.is_watching)
    @rule(is_loading=st.booleans())
    def stranger_takes_its_port(self, *, is_loading: bool) -> None:
        if is_loading and self.host.living is None:
            self.server_starts()
        elif not is_loading:
            self.agent_sees_it_serve()
        if self.host.living is None:
            return
        self.host.living.is_listening = False
        self.host.is_stranger_there, self.host.is_cut_off = self.host.holder is None, False
        self.agent_begins_a_look()
        self.look_comes_back()

    @precondition(lambda self: self.is_watching)
    @rule(has_next=st.booleans(), leaves_orphans=st.booleans())
    def main_process_dies_while_it_is_looked_at(
        self, *, has_next: bool, leaves_orphans: bool
    ) -> None:
        self.agent_sees_it_serve()
        if self.host.living is None:
            return
        self.agent_begins_a_look()
        self.main_process_dies(leaves_orphans=leaves_orphans, is_newest=True)
        if has_next:
            self.scene.wait(0.1)
            self.server_starts()
        self.look_comes_back()

    @precondition(lambda self: self.is_watching)
    @rule(
        times=st.integers(1, 4),
        is_late=st.booleans(),
        returns=st.sampled_from(MOSTLY),
        how=st.sampled_from(sorted(ENDS)),
    )
    def server_ends_and_returns(
        self, times: int, how: str, *, is_late: bool, returns: bool
    ) -> None:
        for _ in range(times):
            self.agent_sees_it_serve()
            ended = self.host.living
            if ended is None:
                return
            self.main_process_dies(leaves_orphans=False, is_newest=True)
            if is_late:
                self.server_starts()
            self.verdict_of(ended, how)
            if not is_late and returns:
                self.server_starts()
        if not returns and not is_late:
            self.agent_restarts([], finds=True)

    @precondition(lambda self: self.is_watching)
    @rule()
    def agent_sees_it_serve(self) -> None:
        """The usual way of things, so that a walk gets somewhere."""
        if self.host.living is None:
            self.server_starts()
        assert self.host.newest is not None
        self.host.is_stranger_there = self.host.newest.is_hung = self.host.is_cut_off = False
        self.orphans_end()
        if self.host.newest.is_engine_gone:
            return
        self.server_serves(is_other_model=False)
        self.agent_looks()
        if not self.scene.life.is_launch_over and self.scene.policy.has_http:
            assert self.scene.life.state is ServerState.RUNNING

    @rule()
    def deadline_passes(self) -> None:
        due = next_deadline_seconds(self.scene.life, self.scene.policy, self.scene.now)
        if due is None:
            return
        assert 0.0 <= due < math.inf
        self.scene.wait(due)
        self.tell(Ticked())
        again = next_deadline_seconds(self.scene.life, self.scene.policy, self.scene.now)
        assert again is None or again > 0.0

    @rule(meanwhile=st.lists(st.sampled_from(MEANWHILE), max_size=2), finds=st.sampled_from(MOSTLY))
    def agent_restarts(self, meanwhile: list[str], *, finds: bool) -> None:
        """`meanwhile` is what nobody watches; `finds` whether it looks for processes at once."""
        self.is_watching, self.looking = False, None
        self.followed.clear()
        for what in meanwhile:
            self.happens_unwatched(what)
        tally, budget = self.scene.life.tally, self.scene.life.budget
        self.left_by_restart[self.scene.life.state] += 1
        self.began_in[ServerState.UNKNOWN] += 1
        self.scene.restart_agent()
        assert self.scene.life.tally == tally
        assert self.scene.life.budget == budget
        if finds:
            self.agent_looks_for_processes()

    def happens_unwatched(self, what: str) -> None:
        living = self.host.living
        match what:
            case "time":
                self.scene.wait(300.0)
            case "end" if living is not None:
                self.host.kill_main(living, leaves_orphans=False)
            case "start" if living is None:
                self.server_starts()
            case "replaced":
                self.happens_unwatched("end")
                self.happens_unwatched("start")
            case "serves" if living is not None:
                self.server_serves(is_other_model=False)
            case "closes" if living is not None:
                living.is_listening = False

    @precondition(lambda self: not self.is_watching)
    @rule()
    def agent_looks_for_processes(self) -> None:
        self.is_watching = True
        self.host.end_older()
        launch = self.host.living
        if launch is not None:
            self.appears(launch)
            return
        was_crashed = self.scene.life.remembered_phase is Phase.CRASHED
        self.tell(ProcessMissing())
        expected = ServerState.CRASHED if was_crashed else ServerState.STOPPED
        assert self.scene.life.state is expected

    # What always holds, beside the laws that every step is checked for.

    @invariant()
    def every_state_is_left_as_often_as_it_is_entered(self) -> None:
        moves = self.scene.life.tally.transitions
        for state in ServerState:
            came = sum(n for (_, to), n in moves.items() if to is state) + self.began_in[state]
            went = sum(n for (origin, _), n in moves.items() if origin is state)
            went += self.left_by_restart[state]
            assert came - went == (state is self.scene.life.state)

    @invariant()
    def every_process_seen_is_one_launch(self) -> None:
        assert self.scene.launches == len(self.seen)
        launch = self.scene.life.launch
        assert (launch is None) == (not self.seen)
        if launch is not None:
            assert launch.process == self.newest_seen.process
            assert launch.number == len(self.seen)

    @invariant()
    def every_crash_is_an_ending_that_was_settled(self) -> None:
        crashed = [e for e in self.endings.values() if e.state is ServerState.CRASHED]
        assert self.scene.crashes == len(crashed) <= self.scene.launches

    @invariant()
    def every_unit_used_is_a_launch_after_a_crash_or_after_one_that_never_ran(self) -> None:
        crashed = {n for n, e in self.endings.items() if e.state is ServerState.CRASHED}
        followed = set(range(1, self.scene.launches))
        needed = len(followed & crashed | followed - self.served)
        budget = self.scene.life.budget
        used = budget.limit - budget.remaining
        assert used <= needed
        assert budget.is_limit_reached <= (needed > budget.limit)
        if not self.is_refilled:
            assert used == min(budget.limit, needed)
            assert budget.is_limit_reached == (needed > budget.limit)

    @invariant()
    def the_state_is_what_is_true_of_the_newest_launch(self) -> None:
        life = self.scene.life
        if not self.is_watching:
            return
        match life.state:
            case ServerState.RUNNING:
                assert self.newest_seen.is_alive
            case ServerState.STARTING:
                assert self.newest_seen.is_alive
                assert not life.has_served_now, "it has served in this launch"
            case ServerState.STOPPED:
                assert not self.seen or not self.newest_seen.is_alive
                assert not self.seen or life.launch_end is ServerState.STOPPED
            case ServerState.CRASHED:
                assert not self.newest_seen.is_alive
                assert life.launch_end is ServerState.CRASHED
        assert life.phase is not Phase.LOST

    @invariant()
    def it_is_unwanted_only_in_maintenance_or_when_somebody_stopped_it(self) -> None:
        life = self.scene.life
        if not life.is_desired and not life.is_in_maintenance:
            assert life.last_ending is not None
            assert life.last_ending.rule in ASKED_RULES
            assert life.last_ending.launch_number == len(self.seen)


TestLocalWalk = LocalWalk.TestCase
TestLocalWalk.settings = settings(
    max_examples=200,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
