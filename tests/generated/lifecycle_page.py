"""Renders docs/lifecycle.md from the tables and constants that the agent decides by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.generated.markdown import code, table
from vllm_agent.lifecycle.by_url import CRASH_AFTER_SECONDS
from vllm_agent.lifecycle.ending import EARLY_KILL_SECONDS
from vllm_agent.lifecycle.launches import CONFIRMING_LOOKS, SAME_START_SECONDS
from vllm_agent.lifecycle.pace import DOWN_SHARE, KNOCK_SECONDS, REFUSED_LOOK_SECONDS
from vllm_agent.lifecycle.reasons import REASON_TEXT
from vllm_agent.lifecycle.server_life import Policy
from vllm_agent.lifecycle.states import PHASE_MEANING, PHASE_STATE, Phase, ServerState
from vllm_agent.lifecycle.supervision import (
    ENDING_SECONDS,
    HOPELESS_REASONS,
    MAX_DELAY_SECONDS,
    QUIET_ENGINE_SECONDS,
    REPEAT_SECONDS,
    SAME_ENDINGS,
)
from vllm_agent.lifecycle.transitions import TRANSITIONS, TRIGGER_MEANING, Trigger

if TYPE_CHECKING:
    from collections.abc import Iterable

STATE_MEANING: Final = {
    ServerState.UNKNOWN: "Not looked at often enough to say, or it listens where the agent cannot "
    "connect to (reason `unreachable`).",
    ServerState.STARTING: "Its process is alive and has not served in this launch. Loading for a "
    "long time is normal; loading without progress is not.",
    ServerState.RUNNING: "It serves: /health answers 200 and the expected model is listed. "
    "A sleeping server runs.",
    ServerState.STOPPING: "Its end has begun and is not judged yet.",
    ServerState.STOPPED: "It is not there, and that is no fault: never seen up, asked for, in "
    "maintenance, or it ended while no agent watched.",
    ServerState.FAILED: "It should serve and does not, and is not known to be gone. The reason "
    "says why.",
    ServerState.CRASHED: "It is gone and nobody asked. The reason is that of its ending.",
}

_ONLY_BY_URL: Final = frozenset({Trigger.REFUSED, Trigger.LOST, Trigger.GONE, Trigger.QUIET})
_ONLY_MANAGED: Final = frozenset(
    {
        Trigger.START,
        Trigger.START_REFUSED,
        Trigger.CALLED_OFF,
        Trigger.STOP,
        Trigger.KILL,
        Trigger.BACKING_OFF,
        Trigger.GIVE_UP,
    }
)
_BY_URL: Final = _ONLY_BY_URL | {Trigger.PASSED, Trigger.FAILING, Trigger.FAILED}
_BY_PROCESS: Final = frozenset(Trigger) - _ONLY_BY_URL - _ONLY_MANAGED


def _codes(words: Iterable[str]) -> str:
    """Words of the agent as a list for people."""
    *others, last = sorted(words)
    return f"{', '.join(map(code, others))} and {code(last)}"


_INTRODUCTION: Final = """\
# The life of a server

What the agent calls each server, why, and what moves it. Written by `make docs` from the tables
that the agent decides by: this page cannot disagree with the program.

A server is in exactly one **state**. Metrics, API, log and command line spell states as here.
Inside, the agent works on finer **phases**; each phase belongs to one state.

A server may be known *by URL* only (mode `external`: HTTP and nothing else), or the agent may
also see *its processes* (mode `monitored`: it runs on this host), or start and stop them, too
(mode `managed`). States and phases of all are parts of one table."""

_BY_URL_TEXT: Final = f"""\
A server known by URL proves itself once: /health, /v1/models and /metrics have to answer as a
vLLM's do. After that /health and /v1/models decide, since a busy server may be slow with its
metrics. When its port has refused in between, whatever is there has to prove itself again.

Failed checks are damped by `probe.failure_threshold` and one success recovers at once. A port
that refuses after it served is not damped: it is `failed` (`unreachable`) at the first refusal,
and `crashed` when it still refuses {CRASH_AFTER_SECONDS:.0f} s later. In maintenance a refusal
is `stopped`. A server that is back sooner was restarted and did not crash: by URL nobody can tell
a crash that is mended at once from a planned restart."""

_BY_PROCESS_TEXT: Final = f"""\
While a server loads its port refuses. The agent connects every {KNOCK_SECONDS} s and sends
nothing, so that no access log fills up; once a connection is accepted by a socket of the server's
own processes it is looked at. A socket of another process, or a `process_start_time_seconds` that
is not the main process's, is a stranger's and says nothing about the server. Where neither can be
read, the answers have to do.

When its main process is gone or its listener has closed, its end has begun (`stopping`). It is
judged by the rules below within 2 s after the main process is gone. The next launch may load by
then: the verdict is counted for the launch that it is about, and does not change the state of
the newer one.

A process that ran before the agent came is looked at before it is called `starting`. One that the
agent before this one knew (same boot, PID and start time) is the same launch. One that ended while
no agent watched is `stopped`. A headless node (`--headless`) has no HTTP: it is `running` while
its EngineCores live."""

_BY_AGENT_TEXT: Final = f"""\
All of the section before holds, and the agent acts besides. What it does next follows from the
phase and from what is wanted of the server; [managed.md](managed.md) is the operator's side.

An operator wants it *up* or *down*. Wanted up and not there, it is prepared: the agent looks
whether all is there that a start needs, and starts it, or it is `refused` with the reason. Wanted
down, or to be followed by another launch, it gets SIGTERM, which is repeated every
{REPEAT_SECONDS:.0f} s while it loads, and SIGKILL after `managed.stop_timeout`. It is `stopped`
once nothing of the launch is left. After any other end what is left is killed, too, before
anything is started again.

An end that nobody asked for is `crashed`, as is the phase `backoff` in which the agent waits to
start it again. One that lives and does not work is stopped and started again
(`restart.on_unhealthy`): when it answers with errors or the engine is dead, when its load has
stalled, once when it lacks its model, and when checks time out only after
{QUIET_ENGINE_SECONDS:.0f} s without any progress of the engine. After the SIGTERM or SIGINT of
somebody else it is wanted down. `gave_up` lasts until an operator starts it.

These moves come on top of those of the section before."""

_RESTARTS_TEXT: Final = f"""\
By URL a restart is a `process_start_time_seconds` more than {SAME_START_SECONDS:.0f} s newer
than every value seen before. Where nothing failed in between, {CONFIRMING_LOOKS} looks in a row
have to see it. When an older value comes back, a load balancer answers, and start times are no
longer compared. A vLLM with several API servers does not tell a start time: there
a restart is told by having seen it down.

Each launch that follows a crash, or follows a launch that never served, uses one unit of the
**restart budget** (`restart.max_restarts`). Loading refills nothing. The budget is full again
after `restart.window` of uninterrupted running. The limit is reached when a launch needs a unit
that is not there.

The agent restarts a managed server `restart.delay` after its end, and twice as late for each unit
in use, {MAX_DELAY_SECONDS / 60:.0f} minutes at most. A start that follows a refused one uses a
unit, too, and so does one that follows a stop because it was unhealthy. It gives up where the
limit is reached, and after {SAME_ENDINGS} endings in a row for one of
{_codes(HOPELESS_REASONS)}
without having served. Who starts it by hand fills the budget."""

_ENDING_TEXT: Final = f"""\
How the launch of a server whose processes are seen ended is judged once, from everything that
was seen of it. The first rule that matches decides. Neither exit code 0 nor the order of events
is evidence by itself: vLLM exits 0 when its engine dies, and its own stop kills the engine
first.

1. The agent stopped it, or it was in maintenance: `stopped`.
2. A cause was seen: `crashed`. The OOM killer struck its cgroup and a process of it was killed
   (`host_oom`); an XID on one of its GPUs (`gpu_fault`); a line of its log that names a cause,
   unless a stop came first.
3. A sign of a stop before any trouble: `stopped`. systemd or its log says so, or its main process
   ended by SIGTERM or SIGINT (or with 143 or 130).
4. Trouble: `crashed` (`engine_died`, or `api_server_died` when one of several API servers went
   first). A part ended with an error or a signal other than TERM and KILL; a part was killed
   {EARLY_KILL_SECONDS} s or more before the listener closed; a part was still alive when it
   closed; or the log tells of an engine's death.
5. The main process ended by another signal (`signal`) or with an error (`exit_nonzero`):
   `crashed`. Where its exit status is unknown, one that was itself exiting when the listener
   closed was ended by a signal.
6. Everything else was gone or on its way out when the listener closed: `stopped`.
7. Nothing tells: `crashed` (`unknown`)."""


def render() -> str:
    """The whole page; it ends with one line end."""
    sections = (
        _INTRODUCTION,
        "## States",
        table(("state", "meaning"), [(code(s), STATE_MEANING[s]) for s in ServerState]),
        "## Phases",
        table(
            ("phase", "state", "meaning"),
            [(code(p), code(PHASE_STATE[p]), PHASE_MEANING[p]) for p in Phase],
        ),
        "## A server known by URL",
        _BY_URL_TEXT,
        _diagram(_BY_URL),
        "## A server whose processes are seen",
        _BY_PROCESS_TEXT,
        _diagram(_BY_PROCESS),
        "## A server that the agent starts",
        _BY_AGENT_TEXT,
        _diagram(_BY_PROCESS | _ONLY_MANAGED, known=_BY_PROCESS),
        "## Restarts",
        _RESTARTS_TEXT,
        "## How an end is judged",
        _ENDING_TEXT,
        "## Times",
        _times(),
        "## Triggers",
        table(("trigger", "meaning"), [(code(t), TRIGGER_MEANING[t]) for t in Trigger]),
        "## What leads where",
        "A row is the trigger, a column the phase it meets; empty: nothing changes.",
        _matrix(),
        "## Reasons",
        table(
            ("reason", "meaning", "what to do"),
            [(code(r), text.meaning, text.advice) for r, text in REASON_TEXT.items()],
        ),
    )
    return "\n\n".join(sections) + "\n"


def _diagram(triggers: frozenset[Trigger], known: frozenset[Trigger] = frozenset()) -> str:
    """The cells of the table that move a server which only ever meets `triggers`.

    Those of one that only ever meets `known` are left out.
    """
    moves = _moves(triggers)
    for move in _moves(known) if known else ():
        moves.pop(move, None)
    labels: dict[tuple[Phase, Phase], list[Trigger]] = {}
    for (phase, trigger), target in moves.items():
        labels.setdefault((phase, target), []).append(trigger)
    drawn = {phase for move in labels for phase in move}
    lines = ["stateDiagram-v2"]
    lines += [f'    state "{p} ({PHASE_STATE[p]})" as {p}' for p in Phase if p in drawn]
    lines.append(f"    [*] --> {Phase.UNOBSERVED}")
    lines += [
        f"    {phase} --> {target}: {', '.join(names)}" for (phase, target), names in labels.items()
    ]
    return "\n".join(("```mermaid", *lines, "```"))


def _moves(triggers: frozenset[Trigger]) -> dict[tuple[Phase, Trigger], Phase]:
    phases = _reachable(triggers)
    return {
        (phase, trigger): target
        for (phase, trigger), target in TRANSITIONS.items()
        if target is not phase and phase in phases and trigger in triggers
    }


def _reachable(triggers: Iterable[Trigger]) -> set[Phase]:
    reached = {Phase.UNOBSERVED}
    while following := {TRANSITIONS[p, t] for p in reached for t in triggers} - reached:
        reached |= following
    return reached


def _matrix() -> str:
    rows = []
    for trigger in Trigger:
        targets = [(phase, TRANSITIONS[phase, trigger]) for phase in Phase]
        rows.append((code(trigger), *(code(to) if to is not at else "" for at, to in targets)))
    return table(("", *map(code, Phase)), rows)


def _times() -> str:
    policy = Policy()
    rows = [
        (
            code("probe.failure_threshold"),
            f"{policy.failure_threshold} looks",
            "failed checks in a row until it is `failed`",
        ),
        (
            code("restart.max_restarts"),
            f"{policy.max_restarts}",
            "units of the restart budget",
        ),
        (
            code("restart.window"),
            f"{policy.restart_window_seconds:.0f} s",
            "of uninterrupted running fill the budget again",
        ),
        (
            code("restart.delay"),
            f"{policy.restart_delay_seconds:.0f} s",
            "managed: from an end to the restart, twice as long for each unit in use",
        ),
        (
            code("managed.stop_timeout"),
            f"{policy.stop_timeout_seconds:.0f} s",
            "managed: from SIGTERM to SIGKILL",
        ),
        (
            "fixed",
            f"{CRASH_AFTER_SECONDS:.0f} s",
            "by URL: refusing this long after it served is a crash, dated by the first refusal",
        ),
        (
            "fixed",
            f"{ENDING_SECONDS:.0f} s",
            "the longest that an end may take; then `failed` (`unresponsive`)",
        ),
        (
            "fixed",
            f"{REFUSED_LOOK_SECONDS:.0f} s",
            "between looks at a port that has just begun to refuse",
        ),
        (
            "fixed",
            f"{DOWN_SHARE:.0%}",
            "of the time it has been down passes until the next look, at most `probe.interval`",
        ),
    ]
    return table(("setting", "default", "meaning"), rows)
