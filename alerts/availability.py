"""How much of the time in which a server was wanted it served, and how fast that is used up.

Only seconds in which a server was wanted count: a planned stop burns nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from alerts.rule import AlertRule, RecordingRule, RuleGroup
from alerts.texts import SAME_SERVER, SERVER, SERVER_NAME, wanted
from alerts.timing import Severity, duration
from dashboards.links import SERVER_AVAILABILITY

if TYPE_CHECKING:
    from alerts.site import Site
    from alerts.timing import BurnWindows, Timing

LEAST_WANTED_RATIO: Final = 0.25
"""How much of the long window a server was wanted at least: otherwise the first load of a new
server would be most of its life, and page."""

_TOLD: Final = (
    "VllmServer(Crashed|RestartLimitReached|Restarted|Failed|Down|LoadStalled|Unreachable"
    "|AvailabilityBurn)"
)
"""Pages that say that a server is away. They end before the windows forget what they told."""

_LONG_WINDOW_FACTOR: Final = 24
"""A window of this many of the shortest or more is read less often: two hours, of five minutes."""


def availability_groups(site: Site, timing: Timing) -> tuple[RuleGroup, ...]:
    """The shares of time in each window, and the alerts on them; the long windows apart.

    An alert stands in the group of its long window, after what it reads of that.
    """
    windows = sorted(
        {one.long_seconds for one in timing.burn_windows}
        | {one.short_seconds for one in timing.burn_windows}
    )
    limit = windows[0] * _LONG_WINDOW_FACTOR

    def rules(*, is_long: bool) -> tuple[RecordingRule | AlertRule, ...]:
        guarded = {one.long_seconds for one in timing.burn_windows}
        here = [one for one in windows if (one >= limit) is is_long]
        return (
            *(_unavailability(window) for window in here),
            *(_wanted_ratio(window) for window in here if window in guarded),
            *(
                _burn(site, timing, one)
                for one in timing.burn_windows
                if (one.long_seconds >= limit) is is_long
            ),
        )

    return (
        RuleGroup("vllm-agent-availability", rules(is_long=False)),
        RuleGroup(
            "vllm-agent-availability-long", rules(is_long=True), timing.long_interval_seconds
        ),
    )


def _unavailability_name(window: float) -> str:
    return f"instance_server:vllm_agent_server_unavailability:ratio_rate{duration(window)}"


def _wanted_name(window: float) -> str:
    return f"instance_server:vllm_agent_server_desired:ratio_rate{duration(window)}"


def _unavailability(window: float) -> RecordingRule:
    span = duration(window)
    return RecordingRule(
        _unavailability_name(window),
        "1 -\n"
        f"  rate(vllm_agent_server_available_seconds_total[{span}])\n"
        "/\n"
        f"  (rate(vllm_agent_server_desired_seconds_total[{span}]) > 0)",
    )


def _wanted_ratio(window: float) -> RecordingRule:
    return RecordingRule(
        _wanted_name(window),
        f"rate(vllm_agent_server_desired_seconds_total[{duration(window)}])",
    )


def _untold(expr: str, windows: BurnWindows, timing: Timing) -> str:
    """`expr` where no other page, nor a page of a faster burn, told of the server a while ago.

    Otherwise each outage that was paged would be paged again after its end.
    """
    faster = [
        duration(one.long_seconds) for one in timing.burn_windows if one.factor > windows.factor
    ]
    matchers = (
        f'alertname=~"{_TOLD}"',
        'alertstate="firing"',
        f'severity="{Severity.CRITICAL}"',
        # Only burns have this label. Never its own: it would end itself.
        f'long=~"|{"|".join(faster)}"' if faster else 'long=""',
    )
    return (
        f"{expr}\nunless {SAME_SERVER}\n"
        f"  max_over_time(ALERTS{{{', '.join(matchers)}}}[{duration(windows.short_seconds)}]) == 1"
    )


def _unexplained(expr: str, windows: BurnWindows) -> str:
    """`expr` where the server was not starting, and where it is known how it is.

    A page would ask somebody to do what is under way: a load is judged by its progress, and a slow
    one has a ticket. Unknown is not down.
    """
    if windows.severity is Severity.CRITICAL:
        states, short = "starting|unknown", duration(windows.short_seconds)
        held_back = f'max_over_time(vllm_agent_server_state{{state=~"{states}"}}[{short}])'
    else:
        held_back = 'vllm_agent_server_state{state="unknown"}'
    return f"{expr}\nunless {SAME_SERVER}\n  {held_back} == 1"


def _burn(site: Site, timing: Timing, windows: BurnWindows) -> AlertRule:
    limit = f"{windows.factor * (1 - site.availability_target):.6g}"
    long, short = duration(windows.long_seconds), duration(windows.short_seconds)
    expr = wanted(
        f"{_unavailability_name(windows.long_seconds)} > {limit}\n"
        "and\n"
        f"  {_unavailability_name(windows.short_seconds)} > {limit}\n"
        "and\n"
        f"  {_wanted_name(windows.long_seconds)} >= {LEAST_WANTED_RATIO}"
    )
    is_page = windows.severity is Severity.CRITICAL
    return AlertRule(
        "VllmServerAvailabilityBurn",
        windows.severity,
        _unexplained(_untold(expr, windows, timing) if is_page else expr, windows),
        "A vLLM server is away so much that it misses its availability.",
        f"{SERVER_NAME} was away for {{{{ $value | humanizePercentage }}}} of the last {long} in "
        f"which it was wanted; it should serve {100 * site.availability_target:.6g}% of that. "
        "'vllm-agent history {{ $labels.server }}' on its host shows when and why.",
        SERVER_AVAILABILITY,
        SERVER,
        windows.active_for_seconds,
        # Between two short failures the short window is clean for a moment.
        timing.keep_firing_seconds,
        labels={"long": long, "short": short},
    )
