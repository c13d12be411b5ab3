"""How long it takes from the death of a server until somebody is paged."""

from __future__ import annotations

import signal
import time
from datetime import datetime
from typing import TYPE_CHECKING, Final

from alerts.output import RULES_PATH
from benchmarks.deaths import gap_seconds
from benchmarks.local_servers import ORPHAN_SECONDS, servers
from benchmarks.programs import PROMETHEUS, NotMeasurableError, agent, is_installed, local_server
from benchmarks.result import NOT_INSTALLED, Result
from benchmarks.rows import ALERT_PAGE
from benchmarks.statistic import median
from tests.pipeline.processes import (
    Alertmanager,
    ProgramError,
    Prometheus,
    Webhook,
    shipped_config_for,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.session import Session
    from tests.pipeline.processes import Delivery
    from vllm_agent.demo.launch import StandIn

JOB: Final = "vllm-agent"
INTERVAL_SECONDS: Final = 1
"""Between two scrapes, and between two evaluations of the rules."""

UNTOLD_SECONDS: Final = 30.0
"""A page that has not come by then never does."""

SIGHT_SECONDS: Final = 60.0
"""For Prometheus to see every server running; it needs 5 s and a scrape."""


def measure(session: Session) -> list[Result]:
    """Kills the main processes of local servers one after another, each once."""
    if not (is_installed(PROMETHEUS) and is_installed(Alertmanager.name)):
        raise NotMeasurableError(NOT_INSTALLED)
    folder = session.folder / "alert-page"
    with (
        servers(folder, session.scale.pages) as alive,
        agent(folder, [server.port for server in alive], server=local_server) as watcher,
        Webhook() as webhook,
    ):
        config = shipped_config_for(webhook, folder, group_wait="0s")
        try:
            with (
                Alertmanager(folder / "alertmanager", config) as alertmanager,
                Prometheus(
                    folder / "prometheus",
                    scrape_interval=f"{INTERVAL_SECONDS}s",
                    evaluation_interval=f"{INTERVAL_SECONDS}s",
                    jobs={JOB: [f"127.0.0.1:{watcher.port}"]},
                    rule_files=[RULES_PATH],
                    alertmanagers=[alertmanager.address],
                ) as prometheus,
            ):
                running = 'count(vllm_agent_server_state{state="running"} == 1)'
                prometheus.wait_for(f"{running} == {len(alive)}", SIGHT_SECONDS)
                killed = _kill_one_by_one(alive)
                pages = {name: _page_of(webhook, name) for name in killed}
        except (ProgramError, TimeoutError) as problem:
            raise NotMeasurableError(str(problem)) from problem
    return [_result(killed, pages)]


def _kill_one_by_one(alive: list[StandIn]) -> dict[str, float]:
    """When each server was killed, by its name; each at another moment between two scrapes.

    Nobody waits for the page of the one before: each has a page of its own.
    """
    killed = {}
    for number, server in enumerate(alive):
        time.sleep(gap_seconds(number))
        killed[f"s{number}"] = time.time()
        server.signal(signal.SIGKILL)
    return killed


def _page_of(webhook: Webhook, name: str) -> Delivery:
    return webhook.wait_for(lambda delivery: _fired_at(delivery, name) is not None, UNTOLD_SECONDS)


def _fired_at(delivery: Delivery, name: str) -> float | None:
    """When Prometheus found the crash of this server, in unix time; None if it is no such page."""
    for alert in delivery.payload["alerts"] if delivery.path == "/page" else ():
        labels = alert["labels"]
        if (labels["alertname"], labels.get("server")) == ("VllmServerCrashed", name):
            return datetime.fromisoformat(alert["startsAt"]).timestamp()
    return None


def _result(killed: Mapping[str, float], pages: Mapping[str, Delivery]) -> Result:
    seconds = [pages[name].arrived_at - at for name, at in killed.items()]
    found = [(_fired_at(pages[name], name) or 0.0) - at for name, at in killed.items()]
    note = (
        f"{len(seconds)} deaths by SIGKILL of a main process, each of another of {len(seconds)} "
        f"servers of one agent, whose engines outlive it by {ORPHAN_SECONDS:g} s; from the signal "
        "to VllmServerCrashed at the webhook. Rules and Alertmanager's configuration as shipped, "
        f"but for group_wait: 0s; scrapes and evaluations every {INTERVAL_SECONDS} s. The "
        f"evaluation that found it began {median(found):.2f} s after the signal (median)"
    )
    return Result(ALERT_PAGE, tuple(seconds), notes=(note,))
