"""What an operator is told when something happens to vLLM servers, and what not.

Real agents, Prometheus, Alertmanager and processes of servers; the rules as shipped at a quicker
pace. All of it happens at the same time, beside each other, as it may in a fleet, and beside an
ordinary minute of other servers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

from alerts.timing import BurnWindows, Severity, Timing
from tests.pipeline import incidents
from tests.pipeline.outcomes import NOTHING, Scenario, Seen, play, table, told
from tests.pipeline.quiet_life import QUIET, SHELL, quiet_hosts
from tests.pipeline.stage import Host, Stage

if TYPE_CHECKING:
    from pathlib import Path

LONGEST_SECONDS: Final = 400
"""For hangs only: all scenarios run in the fixture of the first test, in a minute and a half."""

pytestmark = [
    pytest.mark.needs("prometheus"),
    pytest.mark.needs("prometheus-alertmanager"),
    pytest.mark.timeout(LONGEST_SECONDS),
]

SOAK_SECONDS: Final = 30 * 60

SELDOM: Final = "10s"
"""Between scrapes of the host where a crash is over before the next one. Each takes a second."""

NEVER_SECONDS: Final = 30 * 86_400.0

QUICK: Final = Timing(
    crash_window_seconds=20,
    xid_window_seconds=32,
    keep_firing_seconds=24,
    down_for_seconds=16,
    unreachable_for_seconds=40,
    load_for_seconds=4,
    leftover_for_seconds=12,
    fault_for_seconds=12,
    slow_start_seconds=4,
    restart_window_seconds=20,
    restart_loop_window_seconds=60,
    burn_windows=(
        BurnWindows(480, 36, 14.4, 12, Severity.CRITICAL),
        BurnWindows(NEVER_SECONDS, NEVER_SECONDS / 12, 1, 4, Severity.WARNING),
    ),
)
"""Ten times as quick as shipped, and still slower than a busy machine makes Prometheus. An agent
calls an external server crashed after 10 s: `unreachable_for_seconds` is much longer, as it is in
reality. So is what makes a page of the availability (a seventh of the longest window) beside
`down_for_seconds`: a scrape that a busy machine misses must not turn their order round."""

ENGINE_DIED: Final = "VllmServerCrashed (engine_died)"
KILLED: Final = "VllmServerCrashed (signal)"

SCENARIOS: Final = (
    Scenario(
        name="crash",
        host="local",
        server="crashing",
        happening=incidents.crash,
        expected=told(pages=[ENGINE_DIED]),
    ),
    Scenario(
        name="crash and recovery between two scrapes",
        host="seldom-scraped",
        server="recovering",
        happening=incidents.crash_between_scrapes,
        expected=told(pages=[ENGINE_DIED]),
    ),
    Scenario(
        name="crash loop to the limit",
        host="managed",
        server="looping",
        happening=incidents.crash_loop,
        expected=told(
            pages=[ENGINE_DIED, "VllmServerRestartLimitReached"], kept_back=["VllmServerFailed"]
        ),
    ),
    Scenario(
        name="load without progress",
        host="local",
        server="stuck",
        happening=incidents.load_without_progress,
        expected=told(pages=["VllmServerLoadStalled"], kept_back=["VllmServerFailed"]),
    ),
    Scenario(
        name="load without progress, mended by the agent",
        host="managed",
        server="hanging",
        happening=incidents.hang_mended_by_the_agent,
        expected=told(tickets=["VllmServerRestarted"]),
    ),
    Scenario(
        name="slow start",
        host="local",
        server="slow",
        happening=incidents.slow_start,
        expected=told(tickets=["VllmServerStartSlow"]),
    ),
    Scenario(
        name="never started",
        host="local",
        server="absent",
        happening=incidents.never_started,
        expected=told(pages=["VllmServerDown"]),
    ),
    Scenario(
        name="unresponsive",
        host="local",
        server="unresponsive",
        happening=incidents.unresponsive,
        expected=told(pages=["VllmServerFailed"]),
    ),
    Scenario(
        name="external server gone",
        host="local",
        server="external",
        happening=incidents.external_gone,
        expected=told(
            pages=["VllmServerCrashed (unreachable)"], kept_back=["VllmServerUnreachable"]
        ),
    ),
    Scenario(
        name="orphans without a GPU",
        host="local",
        server="orphaned",
        happening=incidents.orphans,
        expected=told(pages=[KILLED], tickets=["VllmServerOrphans"]),
    ),
    Scenario(
        name="orphans on a GPU",
        host="gpu-orphaned",
        server="orphaned",
        alerts=frozenset({"VllmGpuOrphanMemory"}),
        happening=incidents.orphans_on_gpu,
        expected=told(pages=[KILLED], tickets=["VllmGpuOrphanMemory"]),
    ),
    Scenario(
        name="faults of a GPU, then a crash",
        host="gpu-faulty",
        server="on-gpu",
        alerts=frozenset({"VllmGpuXid"}),
        happening=incidents.faults_of_gpu,
        expected=told(
            pages=["VllmGpuXid (79)"],
            tickets=["VllmGpuXid (31)"],
            kept_back=["VllmServerCrashed (gpu_fault)"],
        ),
    ),
    Scenario(
        name="agent killed while a server is down",
        host="agent-killed",
        server="behind",
        alerts=frozenset({"VllmAgentDown"}),
        happening=incidents.agent_killed,
        expected=told(pages=[ENGINE_DIED, "VllmAgentDown"], kept_back=[ENGINE_DIED]),
    ),
    Scenario(
        name="agent in trouble: disk, driver, configuration",
        host="agent-troubled",
        alerts=frozenset(
            {"VllmAgentStoreFailing", "VllmAgentCollectorDown", "VllmAgentConfigReloadFailed"}
        ),
        happening=incidents.agent_in_trouble,
        expected=told(
            tickets=[
                "VllmAgentStoreFailing (store)",
                "VllmAgentCollectorDown (gpu)",
                "VllmAgentConfigReloadFailed",
            ]
        ),
    ),
    Scenario(
        name="crash of a server in a shell",
        host=SHELL.name,
        server="of-nobody",
        happening=incidents.crash,
        expected=told(tickets=[ENGINE_DIED]),
    ),
    Scenario(
        name="stop by its owner",
        host="local",
        server="stopped",
        happening=incidents.stop_by_owner,
        expected=NOTHING,
    ),
    Scenario(
        name="stop by an operator",
        host="managed",
        server="switched-off",
        happening=incidents.stop_by_operator,
        expected=NOTHING,
    ),
    Scenario(
        name="crash in maintenance",
        host="managed",
        server="maintained",
        happening=incidents.crash_in_maintenance,
        expected=NOTHING,
    ),
    *QUIET,
)


def all_hosts(folder: Path) -> tuple[Host, ...]:
    managed, local, shell = quiet_hosts()
    failures = folder / incidents.FAILURES_LEFT
    failures.write_text("0")
    ends = ("--ending", "kill_engine", "--ending-after", "0.5", "--failures-left", str(failures))
    looping = {"arguments": ends, "restart": {"max_restarts": 1}}
    hangs = folder / incidents.HANGS_LEFT
    hangs.write_text("0")
    hang = ("--hang-load", "load_weights", "--failures-left", str(hangs))
    hanging = {"arguments": hang, "start": {"start_timeout": "3s", "load_timeout": "3s"}}
    stuck = {"start": {"start_timeout": "3s", "load_timeout": "3s"}}
    untouched: dict[str, dict[str, str]] = {"switched-off": {}, "maintained": {}}
    plain = ("crashing", "slow", "absent", "unresponsive", "orphaned", "stopped")
    return (
        replace(
            managed,
            managed={**managed.managed, "looping": looping, "hanging": hanging, **untouched},
        ),
        replace(
            local,
            monitored={**local.monitored, **{name: {} for name in plain}, "stuck": stuck},
            external=("external",),
        ),
        shell,
        Host(name="seldom-scraped", monitored={"recovering": {}}, scrape_interval=SELDOM),
        Host(name="gpu-orphaned", monitored={"orphaned": {}}, has_gpu=True),
        Host(name="gpu-faulty", monitored={"on-gpu": {}}, has_gpu=True),
        Host(name="agent-killed", monitored={"behind": {}, "beside": {}}),
        Host(name="agent-troubled", has_gpu=True, has_state_folder=False),
    )


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, nvml_folder: Path) -> Seen:
    """Everything happens here."""
    folder = tmp_path_factory.mktemp("scenarios")
    with Stage(folder, all_hosts(folder), QUICK, nvml_folder=nvml_folder) as stage:
        return play(stage, SCENARIOS)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_is_told_as_expected_and_over_once_it_is_mended(seen: Seen, scenario: Scenario) -> None:
    outcome = seen.outcomes[scenario.name]
    assert not outcome.problem
    assert outcome.told == scenario.expected
    assert not outcome.resolved_early
    assert not outcome.entry.again


def test_no_other_alert_came(seen: Seen) -> None:
    print(table(SCENARIOS, seen.outcomes))
    assert not seen.others


@pytest.mark.soak
@pytest.mark.timeout(SOAK_SECONDS + LONGEST_SECONDS)
def test_half_an_hour_of_ordinary_life_is_quiet(tmp_path: Path) -> None:
    with Stage(tmp_path, quiet_hosts(), Timing()) as stage:
        seen = play(stage, QUIET, SOAK_SECONDS)
    print(table(QUIET, seen.outcomes))
    for outcome in seen.outcomes.values():
        assert not outcome.problem
        assert outcome.told == NOTHING
    assert not seen.others
