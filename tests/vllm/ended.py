"""One server that is ended while an agent watches it: what the agent said, and when."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tests.vllm.streaming_clients import SERVED_NAME, StreamingClients
from tests.vllm.ways import VllmProcesses

if TYPE_CHECKING:
    from tests.e2e.agent_process import AgentProcess
    from tests.e2e.state_watch import StateWatch
    from tests.vllm.ways import Verdict, Way

END_SECONDS = 60.0
"""The slowest recorded end takes 12 s."""

SETTLE_SECONDS = 10.0
"""Five times what a verdict may take: a late one is measured, not lost."""


class EndableVllm(VllmProcesses, Protocol):
    """A server that tells when its main process is gone."""

    def wait(self, timeout: float, /) -> int: ...


@dataclass(frozen=True)
class Ended:
    """How one way of ending looked; seconds are counted from what the name says.

    `noticed_seconds` is when the agent no longer said `running`, `gone_seconds` when the main
    process was reaped, `settled_seconds` when the agent said `stopped` or `crashed`.
    """

    way: Way
    name: str
    first_state: str
    states: tuple[str, ...]
    exec_to_seen_seconds: float
    exec_to_serving_seconds: float
    serving_to_running_seconds: float
    noticed_seconds: float
    gone_seconds: float
    settled_seconds: float


def end(
    server: EndableVllm,
    way: Way,
    watch: StateWatch,
    *,
    started_seconds: float,
    served_seconds: float,
    patience_seconds: float,
) -> Ended:
    """Ends a server that serves, and waits for the agent's verdict."""
    name = f"{SERVED_NAME}@{server.port}"
    first = watch.wait(name)
    running = watch.wait(name, "running")
    with ExitStack() as stack:
        if way.has_streams:
            stack.enter_context(StreamingClients(server.port, patience_seconds))
        acted = time.monotonic()
        way.act_on(server)
        server.wait(END_SECONDS)
        gone = time.monotonic()
        settled = watch.wait(
            name, "stopped", "crashed", after_seconds=acted, timeout_seconds=SETTLE_SECONDS
        )
        left = watch.wait_left(name, "running", acted)
    return Ended(
        way=way,
        name=name,
        first_state=first.state,
        states=tuple(one.state for one in watch.seen(name)),
        exec_to_seen_seconds=first.at_seconds - started_seconds,
        exec_to_serving_seconds=served_seconds - started_seconds,
        serving_to_running_seconds=running.at_seconds - served_seconds,
        noticed_seconds=left.at_seconds - acted,
        gone_seconds=gone - acted,
        settled_seconds=settled.at_seconds - acted,
    )


def check_verdict(agent: AgentProcess, name: str, expected: Verdict) -> None:
    """The end state, its reason, what decided it, and that it was counted once or not at all."""
    view = agent.server(name)
    ending: dict[str, Any] = view["last_ending"]
    told = (view["state"], view["reason"], ending)
    assert view["state"] == expected.state, told
    assert ending["reason"] == expected.reason, told
    assert ending["rule"] in expected.rules, told
    assert ending["evidence"], told
    # What nobody could read is null; what was read must be right.
    assert ending["exit_code"] in {None, *expected.exit_codes}, told
    assert ending["signal"] in {None, expected.signal}, told
    crashes = {why: count for why, count in view["crashes"].items() if count}
    assert crashes == ({} if expected.reason is None else {expected.reason: 1})
    assert view["launches"] == 1
    assert not any(view["restarts"].values()), view["restarts"]
    assert view["restart_budget"]["limit_reached"] is False
