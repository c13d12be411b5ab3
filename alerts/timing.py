"""Every length of time in the rules, in one place."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Final

_UNITS_MILLISECONDS: Final = (
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
)


class Severity(StrEnum):
    """Who is told: critical pages somebody now, warning is a ticket."""

    CRITICAL = "critical"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class BurnWindows:
    """A long and a short window, and how fast the error budget may burn in both.

    `factor` is a multiple of the rate that just uses up the budget. The short window makes the
    alert end soon after the trouble has.
    """

    long_seconds: float
    short_seconds: float
    factor: float
    active_for_seconds: float
    severity: Severity

    def scaled(self, factor: float) -> BurnWindows:
        """The same windows, `factor` times as long."""
        return replace(
            self,
            long_seconds=self.long_seconds * factor,
            short_seconds=self.short_seconds * factor,
            active_for_seconds=self.active_for_seconds * factor,
        )


BURN_WINDOWS: Final = (
    BurnWindows(3600, 300, 14.4, 120, Severity.CRITICAL),
    BurnWindows(6 * 3600, 1800, 6, 900, Severity.CRITICAL),
    BurnWindows(86_400, 2 * 3600, 3, 3600, Severity.WARNING),
    BurnWindows(3 * 86_400, 6 * 3600, 1, 3 * 3600, Severity.WARNING),
)
"""Multiwindow, multi-burn-rate alerts: Google's SRE workbook, chapter 5, as kubernetes-mixin."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The lengths of time in the rules, all in seconds, and a count that belongs to one of them.

    `crash_window_seconds` is how long after it a crash or an XID is news. `xid_window_seconds` is
    that of a fault of the hardware; an agent ascribes a crash to one for a minute, and the page of
    the fault, which silences that of the crash, must not end first. The `…_for_seconds` are
    how long something lasts before it is an alert: `down_for_seconds` because a failed state stands
    for three failed checks already and a restart of the agent or of the server takes less;
    `unreachable_for_seconds` because a name server or a network often recovers by itself, and the
    agent calls a refused port a crash long before; `load_for_seconds` because the agent has waited
    long before it calls a load stalled; `leftover_for_seconds` because the driver frees memory a
    moment after a process ended; `fault_for_seconds` because a source that failed is asked again
    within a minute.

    `keep_firing_seconds` is longer than `down_for_seconds`: when an agent dies its pages go over
    into VllmAgentDown and do not resolve before, because losing sight of a crash is no recovery.

    `restart_window_seconds` is how long a restart by an agent is news, and
    `restart_loop_window_seconds` the time in which several of them are a loop.

    An agent that restarts more than `agent_restart_count` times in `agent_restart_window_seconds`
    does not stay up: an upgrade takes one, and a bad one that is taken back takes another.

    `slow_start_seconds` is how much longer than usual a load takes at least before it is slow.
    `long_interval_seconds` is between evaluations of the windows of hours and days, which read
    thousands of samples per server.
    """

    crash_window_seconds: float = 300
    xid_window_seconds: float = 900
    keep_firing_seconds: float = 180
    down_for_seconds: float = 120
    unreachable_for_seconds: float = 120
    load_for_seconds: float = 60
    leftover_for_seconds: float = 300
    fault_for_seconds: float = 300
    slow_start_seconds: float = 60
    restart_window_seconds: float = 600
    restart_loop_window_seconds: float = 3600
    agent_restart_window_seconds: float = 1800
    agent_restart_count: int = 3
    long_interval_seconds: float = 60
    burn_windows: tuple[BurnWindows, ...] = BURN_WINDOWS

    def scaled(self, factor: float) -> Timing:
        """The same rules, `factor` times as slow."""
        lengths = {
            field.name: getattr(self, field.name) * factor
            for field in fields(self)
            if field.name.endswith("_seconds")
        }
        windows = tuple(one.scaled(factor) for one in self.burn_windows)
        return replace(self, **lengths, burn_windows=windows)


def duration(seconds: float) -> str:
    """The length of time as Prometheus writes it, to the millisecond: `1h30m`.

    Raises:
        ValueError: shorter than a millisecond, which Prometheus would take for none.
    """
    rest = round(seconds * 1000)
    if rest < 1:
        raise ValueError(f"{seconds} s is too short for Prometheus")
    text = ""
    for unit, milliseconds in _UNITS_MILLISECONDS:
        count, rest = divmod(rest, milliseconds)
        text += f"{count}{unit}" if count else ""
    return text
