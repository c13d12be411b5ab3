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
from pathlib import Path
from typing import Any, Final

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
from tests.e2e.managed_scene import Managed, ManagedAgent
from vllm_agent.demo.launch import free_port, write_checkpoint

NAME: Final = "walks"
MAX_RESTARTS: Final = 3
LOOK_SECONDS: Final = 0.02
STEPS: Final = 40
LONG_WALKS: Final = 13
"""Of `STEPS` steps each: more than 500 together."""

MAX_PAUSE_SECONDS: Final = 0.4
"""A launch of a stand-in takes about that long: a walk is at any moment of one."""

_STEPS_MADE: list[str] = []


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
            assert self.agent.pids(NAME) == []
            assert view["state"] == "stopped"
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
        wait_until(self._is_at_rest, f"{NAME} is at rest: {self._told()}")
        view = self.agent.server(NAME)
        launches = self.agent.launches_alive(NAME)
        assert len(launches) == (view["state"] == "running"), self._told()

    def _is_at_rest(self) -> bool:
        view = self.agent.server(NAME)
        phase: str = view["managed"]["phase"]
        if not self.is_wanted:
            return phase == "absent" and not self.agent.pids(NAME)
        if phase == "gave_up":
            assert view["restart_budget"]["limit_reached"], self._told()
            return not self.agent.pids(NAME)
        return phase == "ready"

    def _told(self) -> tuple[Any, ...]:
        view = self.agent.server(NAME)
        keys = ("state", "reason", "detail", "managed", "launches", "restarts", "restart_budget")
        return (self.is_wanted, {key: view[key] for key in keys}, _STEPS_MADE[-STEPS:])

    @invariant()
    def never_two_launches_and_none_that_is_unwanted(self) -> None:
        assert not self.watch.wrong, (self.watch.wrong, _STEPS_MADE[-STEPS:])

    @invariant()
    def the_budget_holds(self) -> None:
        if not self.is_agent_there:
            return
        view = self.agent.server(NAME)
        budget = view["restart_budget"]
        assert 0 <= budget["remaining"] <= budget["limit"] == MAX_RESTARTS
        assert view["restarts"]["agent"] - self.restarts_before <= MAX_RESTARTS, self._told()
        assert view["launches"] >= sum(view["restarts"].values()), self._told()


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
    run_state_machine_as_test(
        Walk,
        settings=settings(
            max_examples=times,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(f"\n{len(_STEPS_MADE)} steps in {times} walks")


def test_a_walk() -> None:
    walk(1)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_many_walks() -> None:
    walk(LONG_WALKS)
    assert len(_STEPS_MADE) >= 500
