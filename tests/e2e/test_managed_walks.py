"""Random walks: start, stop, restart, crash, and agents that die and come back, in any order.

The agent is the real one, but for the delay before a restart; the servers are stand-ins, real
processes. A step does not wait for what the one before it set off, unless it says so.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final, NoReturn

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.e2e.agent_process import wait_until
from tests.e2e.managed_scene import PATIENCE_SECONDS, Managed, ManagedAgent, is_serving
from vllm_agent.demo.launch import free_port, write_checkpoint

NAME: Final = "walks"
MAX_RESTARTS: Final = 3
LOOK_SECONDS: Final = 0.02
STEPS: Final = 40
LONG_WALKS: Final = 16
"""Of `STEPS` steps each: more than 500 together."""

MAX_PAUSE_SECONDS: Final = 0.4
"""A launch of a stand-in takes about that long: a walk is at any moment of one."""

_STEPS_MADE: list[str] = []
_WRONG: list[str] = []


class OneLaunchAtATime:
    """Looks at the host all the time: never do processes of two launches live at once."""

    def __init__(self, agent: ManagedAgent) -> None:
        self.wrong = ""
        self.is_wanted_down = False
        self._agent = agent
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            launches = self._agent.launches_of(NAME)
            if len(launches) > 1 and self._live_together(launches):
                self.wrong = f"two launches at once: {launches}"
            # Twice: a start may have been asked for while it looked.
            if self._is_left_unwanted() and self._is_left_unwanted():
                self.wrong = f"left alive though it is wanted down: {launches}"

    def _is_left_unwanted(self) -> bool:
        return self.is_wanted_down and bool(self._agent.launches_of(NAME)) and self.is_wanted_down

    def _live_together(self, launches: dict[str, list[int]]) -> bool:
        """One look takes a while, in which one launch may end and the next begin."""
        first, *others = launches
        return all(_is_any_alive(launches[one]) for one in (first, *others, first))


class Walk(RuleBasedStateMachine):
    """An agent with one server, and what is known of both from what was done."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="walk-", ignore_cleanup_errors=True)
        path = Path(self.folder.name)
        model = write_checkpoint(path / "model", shards=1)
        server = Managed(
            name=NAME,
            model=model,
            port=free_port(),
            stop_timeout="5s",
            # A day: the budget is full again only when an operator starts it.
            restart={"max_restarts": MAX_RESTARTS, "window": "1d"},
        )
        self.agent = ManagedAgent(path, server, program="tests.e2e.hasty_agent")
        self.agent.start()
        self.watch = OneLaunchAtATime(self.agent)
        self.is_wanted = True
        self.restarts_before = 0
        self.is_agent_there = True

    def teardown(self) -> None:
        self.watch.close()
        if self.agent.process is not None and self.agent.process.poll() is None:
            self.agent.stop(signal.SIGKILL)
        self.agent.kill_what_is_left()
        self.folder.cleanup()

    def _step(self, name: str) -> None:
        _STEPS_MADE.append(name)

    def _ask(self, wish: str) -> None:
        self._step(wish)
        self.watch.is_wanted_down = False
        view = self.agent.done(NAME, wish)
        self.is_wanted = wish != "stop"
        if self.is_wanted:
            self.restarts_before = view["restarts"]["agent"]
        else:
            self._check(self.agent.pids(NAME) == [], "left alive after a stop")
            self._check(view["state"] == "stopped", "not stopped after a stop")
            self.watch.is_wanted_down = True

    @initialize()
    def begin(self) -> None:
        self.agent.wait_running(NAME, launches=1)

    @precondition(lambda self: self.is_agent_there)
    @rule(wish=st.sampled_from(["start", "stop", "restart", "restart"]))
    def ask(self, wish: str) -> None:
        self._ask(wish)

    @rule(part=st.sampled_from(["main", "engine", "worker", "all"]))
    def crash(self, part: str) -> None:
        self._step(f"crash {part}")
        prefixes = {"engine": "VLLM::EngineCore", "worker": "VLLM::Worker"}
        pids = self.agent.pids(NAME, prefixes.get(part, ""))
        if part == "main":
            pids = [pid for pid in pids if _leads_session(pid)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @precondition(lambda self: self.is_agent_there)
    @rule(number=st.sampled_from([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
    def end_agent(self, number: signal.Signals) -> None:
        self._step(f"agent {number.name}")
        self.agent.stop(number)
        self.is_agent_there = False

    @precondition(lambda self: not self.is_agent_there)
    @rule()
    def start_agent(self) -> None:
        self._step("agent starts")
        self.agent.start()
        self.is_agent_there = True

    @rule(seconds=st.floats(0, MAX_PAUSE_SECONDS))
    def pause(self, seconds: float) -> None:
        self._step("pause")
        time.sleep(seconds)

    @precondition(lambda self: self.is_agent_there)
    @rule()
    def settle(self) -> None:
        """Whatever was done, it comes to rest as it should."""
        self._step("settle")
        try:
            wait_until(self._is_at_rest, "it is at rest", PATIENCE_SECONDS)
        except AssertionError as error:
            self._fail(str(error))

    def _is_at_rest(self) -> bool:
        view = self.agent.server(NAME)
        phase: str = view["managed"]["phase"]
        if not self.is_wanted:
            return phase == "absent" and not self.agent.pids(NAME)
        if phase == "gave_up":
            self._check(view["restart_budget"]["limit_reached"], "given up before the limit")
            return not self.agent.pids(NAME)
        # It may have been killed a moment ago, which nobody has seen yet.
        port = self.agent.entries[NAME].port
        return phase == "ready" and is_serving(port) and bool(self.agent.pids(NAME))

    def _check(self, is_so: bool, what: str) -> None:  # noqa: FBT001 - as assert
        if not is_so:
            self._fail(what)

    def _fail(self, what: str) -> NoReturn:
        keys = ("state", "reason", "detail", "managed", "launches", "restarts", "restart_budget")
        view = {key: value for key, value in self._view().items() if key in keys}
        log = self.agent.log()[-3000:]
        _WRONG.append(f"{what}\nwanted up: {self.is_wanted}\n{view}\n{_STEPS_MADE[-STEPS:]}\n{log}")
        raise AssertionError(what)

    def _view(self) -> dict[str, Any]:
        return self.agent.server(NAME) if self.is_agent_there else {}

    @invariant()
    def never_two_launches_and_none_that_is_unwanted(self) -> None:
        self._check(not self.watch.wrong, self.watch.wrong)

    @invariant()
    def the_budget_holds(self) -> None:
        if not self.is_agent_there:
            return
        view = self.agent.server(NAME)
        budget = view["restart_budget"]
        is_bounded = 0 <= budget["remaining"] <= budget["limit"] == MAX_RESTARTS
        self._check(is_bounded, "what is left of the budget")
        by_agent = view["restarts"]["agent"] - self.restarts_before
        self._check(by_agent <= MAX_RESTARTS, "more restarts than the budget has")
        is_counted = view["launches"] >= sum(view["restarts"].values())
        self._check(is_counted, "more restarts than launches")


def _leads_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False


def _is_any_alive(pids: list[int]) -> bool:
    for pid in pids:
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
            if stat.rpartition(")")[2].split()[0] != "Z":
                return True
    return False


def walk(times: int) -> None:
    """So many walks; none is made shorter when it fails, which would take hours."""
    _STEPS_MADE.clear()
    _WRONG.clear()
    plan = settings(
        max_examples=times,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(Walk, settings=plan)
    except Exception:
        # Hypothesis walks the same way again, and real processes may not go wrong twice.
        if _WRONG:
            pytest.fail(_WRONG[0])
        raise
    print(f"\n{len(_STEPS_MADE)} steps in {times} walks: {Counter(_STEPS_MADE)}")


def test_a_walk() -> None:
    # The first that hypothesis tries is the plainest, one rule again and again; others lack rules.
    walk(4)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_many_walks() -> None:
    walk(LONG_WALKS)
    assert len(_STEPS_MADE) >= 500
