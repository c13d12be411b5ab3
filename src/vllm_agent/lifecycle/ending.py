"""Judges how the launch of a local server ended, from everything that was seen of it. Pure.

The rules are tried in order and the first match wins. Neither exit status 0 nor the order of close
and engine exit is evidence by itself: vLLM exits 0 when its engine dies, and a stop kills the
engine before the listener closes.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.states import ServerState
from vllm_agent.observations import ComponentRole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_agent.observations import ComponentAtClose, ComponentExit

EARLY_KILL_SECONDS: Final = 0.5
"""A component KILLed this long before the close was not killed by vLLM's own stop: a stop kills
the engine at most 0.2 s before it closes the listener (measured on vLLM 0.32)."""

MAX_EXITS_TOLD: Final = 8
"""Ends of components that are told one by one: a server of eight GPUs has nine, and the first few
tell what happened."""

_BY_MAIN: Final = 5
_BAD_ARGUMENTS_EXIT_CODE: Final = 2  # argparse; nothing else in a vLLM ends with it
_STOP_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT})
_OUTSIDE_SIGNALS: Final = _STOP_SIGNALS | {signal.SIGKILL, signal.SIGHUP}
_STOP_EXIT_CODES: Final = frozenset({128 + s for s in _STOP_SIGNALS})
_HARMLESS_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGKILL})


@dataclass(frozen=True, slots=True, kw_only=True)
class EndingEvidence:
    """All that is known of the end of one launch; times are on the monotonic clock.

    `asked` is a sentence on the agent's own stop, empty where it did not stop it.
    `oom_kills` is by how much oom_kill rose in its cgroup, `gpu_fault` a sentence about a fault of
    a GPU that it held, empty where there was none. `logged_cause` is what a line of its log says
    that it is, by the pattern of that name. `has_served` is whether the launch did. `gpu_holder` is
    who held GPU memory when it ended, `port_holder` who listened on its port while it loaded; both
    are empty where nobody is known to. `load_stall` is a sentence where its load had stalled, `log`
    are lines for people.
    `stop_sign_seconds` is when systemd or a log line first said that it is being stopped;
    `engine_death_logged_seconds` when its log first told of an engine's death. `at_close` is None
    where nobody looked at the close, empty where the main process was alone. `stop_sign` and
    `engine_death` are sentences on who told of them.
    """

    asked: str = ""
    is_in_maintenance: bool = False
    main_wait_status: int | None = None
    main_exit_seconds: float | None = None
    main_was_exiting_at_close: bool | None = None
    close_seconds: float | None = None
    at_close: tuple[ComponentAtClose, ...] | None = None
    exits: tuple[ComponentExit, ...] = ()
    oom_kills: int | None = None
    gpu_fault: str = ""
    logged_cause: Reason | None = None
    logged_cause_seconds: float | None = None
    logged_pattern: str = ""
    has_served: bool = True
    gpu_holder: str = ""
    port_holder: str = ""
    load_stall: str = ""
    log: tuple[str, ...] = ()
    stop_sign_seconds: float | None = None
    engine_death_logged_seconds: float | None = None
    stop_sign: str = "systemd or its log says that it was told to stop"
    engine_death: str = "its log tells of an engine's death"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an ending was: stopped or crashed, why, and the rule and facts that decided."""

    state: ServerState
    reason: Reason | None
    rule: int
    evidence: tuple[str, ...]


def exit_code(wait_status: int | None) -> int | None:
    """The exit code in a wait status; None if it ended by a signal or is unknown."""
    if wait_status is None or not os.WIFEXITED(wait_status):
        return None
    return os.WEXITSTATUS(wait_status)


def exit_signal(wait_status: int | None) -> int | None:
    """The signal in a wait status; None if it exited or is unknown."""
    if wait_status is None or not os.WIFSIGNALED(wait_status):
        return None
    return os.WTERMSIG(wait_status)


def judge(seen: EndingEvidence) -> Verdict:
    """The verdict on one ending: what decided, then what else was seen."""
    verdict = (
        _asked(seen)
        or _cause(seen)
        or _stop_or_trouble(seen)
        or _main_process(seen)
        or _orderly(seen)
        or Verdict(ServerState.CRASHED, Reason.UNKNOWN, 7, ("nothing that was seen tells why",))
    )
    return replace(verdict, evidence=(*verdict.evidence, *_also_seen(seen, verdict)))


def _also_seen(seen: EndingEvidence, verdict: Verdict) -> Iterator[str]:
    """The facts of an end in the order of what people ask first, whatever they decided."""
    if seen.gpu_fault and verdict.reason is not Reason.GPU_FAULT:
        yield seen.gpu_fault
    if seen.gpu_holder and verdict.reason is Reason.GPU_MEMORY_TAKEN:
        yield f"GPU memory is held by {seen.gpu_holder}"
    if seen.port_holder and verdict.reason is Reason.PORT_IN_USE and verdict.rule != _BY_MAIN:
        yield f"its port is held by {seen.port_holder}"
    if seen.logged_pattern and verdict.reason is not seen.logged_cause:
        yield f"its log also says: {seen.logged_pattern}"
    if seen.load_stall:
        yield seen.load_stall
    if seen.main_wait_status is not None:
        yield f"main process: {_how(seen.main_wait_status)}{_when(seen.main_exit_seconds, seen)}"
    ended = sorted(seen.exits, key=lambda e: e.at_seconds)
    for end in ended[:MAX_EXITS_TOLD]:
        yield f"{end.role}: {_how(end.wait_status)}{_when(end.at_seconds, seen)}"
    if len(ended) > MAX_EXITS_TOLD:
        yield f"{len(ended) - MAX_EXITS_TOLD} more ended"
    if seen.at_close:
        alive = Counter(c.role for c in seen.at_close if c.is_alive)
        leaving = Counter(c.role for c in seen.at_close if not c.is_alive)
        told = [f"{role} alive ({count})" for role, count in alive.items()]
        told += [f"{role} gone or going ({count})" for role, count in leaving.items()]
        yield f"when the listener closed: {', '.join(told)}"


def _how(wait_status: int | None) -> str:
    number, code = exit_signal(wait_status), exit_code(wait_status)
    if number is not None:
        return f"ended by signal {number}"
    return "ended, its status is unknown" if code is None else f"exited with {code}"


def _when(at_seconds: float | None, seen: EndingEvidence) -> str:
    if at_seconds is None or seen.close_seconds is None:
        return ""
    after = at_seconds - seen.close_seconds
    return f", {abs(after):.1f} s {'after' if after >= 0 else 'before'} the listener closed"


def _asked(seen: EndingEvidence) -> Verdict | None:
    if seen.asked:
        return Verdict(ServerState.STOPPED, None, 1, (seen.asked,))
    if seen.is_in_maintenance:
        return Verdict(ServerState.STOPPED, None, 1, ("it was in maintenance",))
    return None


def _cause(seen: EndingEvidence) -> Verdict | None:
    statuses = (seen.main_wait_status, *(e.wait_status for e in seen.exits))
    if seen.oom_kills and any(exit_signal(s) == signal.SIGKILL for s in statuses):
        text = f"the kernel's OOM killer ended {seen.oom_kills} process(es) of its cgroup"
        return Verdict(ServerState.CRASHED, Reason.HOST_OOM, 2, (text,))
    if seen.gpu_fault and not _is_told_to_stop(seen):
        return Verdict(ServerState.CRASHED, Reason.GPU_FAULT, 2, (seen.gpu_fault,))
    if (
        seen.logged_cause is not None
        and not _is_before(seen.stop_sign_seconds, seen.logged_cause_seconds)
        and not _is_ended_from_outside(seen)
    ):
        text = f"its log says: {seen.logged_pattern or seen.logged_cause}"
        return Verdict(ServerState.CRASHED, seen.logged_cause, 2, (text,))
    return None


def _is_ended_from_outside(seen: EndingEvidence) -> bool:
    """Whether a signal ended the main process while nothing of it had failed.

    A process that an error ends exits. What its log said before, it had survived.
    """
    by_signal = exit_signal(seen.main_wait_status) in _OUTSIDE_SIGNALS
    if not by_signal and exit_code(seen.main_wait_status) not in _STOP_EXIT_CODES:
        return False
    return not any(_has_failed(ended) for ended in seen.exits)


def _has_failed(ended: ComponentExit) -> bool:
    number = exit_signal(ended.wait_status)
    return bool(exit_code(ended.wait_status)) or (
        number is not None and number not in _HARMLESS_SIGNALS
    )


def _stop_or_trouble(seen: EndingEvidence) -> Verdict | None:
    stop = min(_stop_signs(seen), default=None)
    trouble = min(_troubles(seen), default=None)
    if stop is not None and (trouble is None or stop[0] <= trouble[0]):
        return Verdict(ServerState.STOPPED, None, 3, (stop[1],))
    if trouble is not None:
        return Verdict(ServerState.CRASHED, _who_died(seen), 4, (trouble[1],))
    return None


def _is_told_to_stop(seen: EndingEvidence) -> bool:
    """Whether it was told to stop before anything went wrong with it.

    A GPU fault explains a crash. It makes none of a stop that somebody asked for: servers share a
    GPU, and the fault may have been another's.
    """
    verdict = _stop_or_trouble(seen)
    return verdict is not None and verdict.state is ServerState.STOPPED


def _stop_signs(seen: EndingEvidence) -> list[tuple[float, str]]:
    signs = []
    if seen.stop_sign_seconds is not None:
        signs.append((seen.stop_sign_seconds, seen.stop_sign))
    number = exit_signal(seen.main_wait_status)
    if number in _STOP_SIGNALS or exit_code(seen.main_wait_status) in _STOP_EXIT_CODES:
        ended = seen.main_exit_seconds
        text = "the main process ended by SIGTERM or SIGINT"
        signs.append((float("inf") if ended is None else ended, text))
    return signs


def _troubles(seen: EndingEvidence) -> list[tuple[float, str]]:
    troubles = []
    for ended in seen.exits:
        number, code = exit_signal(ended.wait_status), exit_code(ended.wait_status)
        if _has_failed(ended):
            how = f"code {code}" if code else f"signal {number}"
            troubles.append((ended.at_seconds, f"{ended.role} ended with {how}"))
        elif (
            number == signal.SIGKILL
            and seen.close_seconds is not None
            and seen.close_seconds - ended.at_seconds >= EARLY_KILL_SECONDS
        ):
            early = seen.close_seconds - ended.at_seconds
            text = f"{ended.role} was killed {early:.1f} s before the listener closed"
            troubles.append((ended.at_seconds, text))
    if seen.close_seconds is not None and seen.main_was_exiting_at_close is False:
        alive = sorted(c.role for c in seen.at_close or () if c.is_alive)
        if alive:
            text = f"{', '.join(alive)} still alive when the listener closed"
            troubles.append((seen.close_seconds, text))
    if seen.engine_death_logged_seconds is not None:
        troubles.append((seen.engine_death_logged_seconds, seen.engine_death))
    return troubles


def _who_died(seen: EndingEvidence) -> Reason:
    first = min(seen.exits, key=lambda e: e.at_seconds, default=None)
    if first is not None and first.role is ComponentRole.API_SERVER:
        return Reason.API_SERVER_DIED
    return Reason.ENGINE_DIED


def _main_process(seen: EndingEvidence) -> Verdict | None:
    number = exit_signal(seen.main_wait_status)
    if number is not None:
        text = f"the main process ended by signal {number}"
        return Verdict(ServerState.CRASHED, Reason.SIGNAL, 5, (text,))
    if seen.main_was_exiting_at_close and seen.main_wait_status is None:
        text = "the main process was itself exiting when the listener closed"
        return Verdict(ServerState.CRASHED, Reason.SIGNAL, 5, (text,))
    code = exit_code(seen.main_wait_status)
    if code:
        text = f"the main process ended with code {code}"
        if not seen.has_served and code == _BAD_ARGUMENTS_EXIT_CODE:
            return Verdict(ServerState.CRASHED, Reason.BAD_ARGUMENTS, 5, (text,))
        if not seen.has_served and seen.port_holder:
            text = f"{text}, and its port was held by {seen.port_holder}"
            return Verdict(ServerState.CRASHED, Reason.PORT_IN_USE, 5, (text,))
        return Verdict(ServerState.CRASHED, Reason.EXIT_NONZERO, 5, (text,))
    return None


def _orderly(seen: EndingEvidence) -> Verdict | None:
    if seen.close_seconds is None or seen.at_close is None:
        return None
    if any(c.is_alive for c in seen.at_close):
        return None
    text = "every other process was gone or on its way out when the listener closed"
    return Verdict(ServerState.STOPPED, None, 6, (text,))


def _is_before(earlier: float | None, later: float | None) -> bool:
    return earlier is not None and later is not None and earlier < later
