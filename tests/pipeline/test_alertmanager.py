"""The shipped Alertmanager configuration: who is told, and what is silenced by what.

The tables below say it for every pair of alerts; a real Alertmanager is asked for all of them.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
import yaml

from tests.pipeline.processes import (
    SHIPPED_CONFIG,
    Alertmanager,
    Webhook,
    shipped_config_for,
    wait_until,
)
from vllm_agent.lifecycle.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from tests.pipeline.processes import Delivery

RULES = SHIPPED_CONFIG.with_name("vllm-agent.rules.yml")
CONFIG: dict[str, Any] = yaml.safe_load(SHIPPED_CONFIG.read_text(encoding="utf-8"))

# Alertmanager takes what it is sent in its own time; the machine may be busy.
SEEN_TIMEOUT_SECONDS: Final = 30.0

LONGEST_LOSS_MINUTES: Final = 30
"""How long a page may go untold that has ended silenced and fires again; the runbooks say so."""

HOST: Final = {"job": "vllm-agent", "instance": "gpu1:10060"}


class Kind(NamedTuple):
    """One alert name at one severity: what the inhibitions tell apart."""

    name: str
    severity: str

    def labels(self) -> dict[str, str]:
        """What an alert of this kind carries on one host, of one server, one GPU."""
        own = {
            "VllmServerCrashed": {"reason": "engine_died"},
            "VllmServerAvailabilityBurn": {"long": "1h", "short": "5m"},
            "VllmGpuXid": {"gpu": "0", "uuid": "GPU-0", "xid": "79"},
            "VllmGpuOrphanMemory": {"gpu": "0", "uuid": "GPU-0"},
            "VllmAgentCollectorDown": {"collector": "gpu"},
            "VllmAgentStoreFailing": {"collector": "store"},
        }
        labels = HOST | {"alertname": self.name, "severity": self.severity}
        if self.name == "VllmAgentAbsent":
            del labels["instance"]
        if self.name.startswith("VllmServer"):
            labels["server"] = "llama"
        return labels | own.get(self.name, {})


def critical(*names: str) -> set[Kind]:
    return {Kind(name, "critical") for name in names}


def warning(*names: str) -> set[Kind]:
    return {Kind(name, "warning") for name in names}


# Of a server that somebody wants up, and as a ticket of one that nobody said that of.
PAGE_OR_TICKET: Final = (
    "VllmServerCrashed",
    "VllmServerRestartLimitReached",
    "VllmServerFailed",
    "VllmServerLoadStalled",
    "VllmServerRestarted",
    "VllmServerAvailabilityBurn",
    "VllmGpuXid",
)
PAGES: Final = (
    "VllmServerDown",
    "VllmServerUnreachable",
    "VllmAgentDown",
    "VllmAgentAbsent",
)
TICKETS: Final = (
    "VllmServerStartSlow",
    "VllmServerOrphans",
    "VllmGpuOrphanMemory",
    "VllmAgentRestarting",
    "VllmAgentCollectorDown",
    "VllmAgentStoreFailing",
    "VllmAgentConfigReloadFailed",
)
KINDS: Final = critical(*PAGE_OR_TICKET, *PAGES) | warning(*PAGE_OR_TICKET, *TICKETS)

BURN: Final = critical("VllmServerAvailabilityBurn") | warning("VllmServerAvailabilityBurn")
FAILED: Final = critical("VllmServerFailed") | warning("VllmServerFailed")
STALLED: Final = critical("VllmServerLoadStalled") | warning("VllmServerLoadStalled")
RESTARTED: Final = critical("VllmServerRestarted") | warning("VllmServerRestarted")
CRASHED: Final = critical("VllmServerCrashed") | warning("VllmServerCrashed")
LIMIT: Final = critical("VllmServerRestartLimitReached") | warning("VllmServerRestartLimitReached")
DOWN: Final = critical("VllmServerDown")
UNREACHABLE: Final = critical("VllmServerUnreachable")
SLOW: Final = warning("VllmServerStartSlow")
AGENT_DOWN: Final = Kind("VllmAgentDown", "critical")
XID: Final = Kind("VllmGpuXid", "critical")

AFTER_A_CRASH: Final = FAILED | DOWN | UNREACHABLE | SLOW | BURN

# What each alert silences on its own host, and where it is of a server, of this server only.
# The other alerts silence nothing.
SILENCES: Final[Mapping[Kind, set[Kind]]] = {
    AGENT_DOWN: KINDS - critical("VllmAgentDown", "VllmAgentAbsent"),
    XID: CRASHED | LIMIT | FAILED | DOWN | STALLED | RESTARTED | SLOW | BURN,
    Kind("VllmServerCrashed", "critical"): AFTER_A_CRASH | warning("VllmServerCrashed"),
    Kind("VllmServerRestartLimitReached", "critical"): (
        AFTER_A_CRASH | warning("VllmServerRestartLimitReached")
    ),
    Kind("VllmServerLoadStalled", "critical"): (
        critical("VllmServerFailed") | BURN | warning("VllmServerLoadStalled")
    ),
    Kind("VllmServerLoadStalled", "warning"): warning("VllmServerFailed"),
    Kind("VllmServerUnreachable", "critical"): critical("VllmServerFailed") | BURN,
    Kind("VllmServerFailed", "critical"): BURN | warning("VllmServerFailed"),
    Kind("VllmServerDown", "critical"): BURN,
    Kind("VllmServerRestarted", "critical"): warning("VllmServerRestarted"),
    Kind("VllmServerAvailabilityBurn", "critical"): warning("VllmServerAvailabilityBurn"),
}
PAIRS: Final = frozenset(
    (source, target) for source, targets in SILENCES.items() for target in targets
)
# These speak for the whole host and are of no server.
OF_THE_HOST: Final = {AGENT_DOWN, XID}

EXPLAINED_BY_A_GPU_FAULT: Final = {
    "gpu_fault",
    "engine_died",
    "api_server_died",
    "nccl",
    "gpu_unavailable",
    "signal",
    "exit_nonzero",
    "unknown",
}


def without(*names: str) -> dict[str, str | None]:
    return dict.fromkeys(names)


def changed(labels: Mapping[str, str], change: Mapping[str, str | None]) -> dict[str, str]:
    """The labels, some with another value; None takes one away."""
    merged = {**labels, **change}
    return {name: value for name, value in merged.items() if value is not None}


@dataclass(frozen=True, slots=True)
class World:
    """Where source and target of the pairs are, relative to each other, and what is silenced."""

    name: str
    pairs: frozenset[tuple[Kind, Kind]]
    silenced: frozenset[tuple[Kind, Kind]]
    of_source: Mapping[str, str | None]
    of_target: Mapping[str, str | None]


def _of(sources: Iterable[Kind]) -> frozenset[tuple[Kind, Kind]]:
    chosen = set(sources)
    return frozenset(pair for pair in PAIRS if pair[0] in chosen)


NONE: Final[frozenset[tuple[Kind, Kind]]] = frozenset()
# The two ways to lose sight of agents are equals, even where somebody gives both an instance.
ALL_GONE: Final = frozenset({(AGENT_DOWN, Kind("VllmAgentAbsent", "critical"))})
OTHER_SERVER: Final = {"server": "qwen"}
OTHER_HOST: Final = {"instance": "gpu2:10060"}
OTHER_JOB: Final = {"job": "vllm-agent-canary"}
NOBODY: Final = without("instance", "server")

WORLDS: Final = (
    World("same server", frozenset(product(KINDS, KINDS)), PAIRS, {}, {}),
    World("another server of the host", PAIRS, _of(OF_THE_HOST), {}, OTHER_SERVER),
    World("another host", PAIRS, NONE, {}, OTHER_HOST),
    World("another job", PAIRS, _of({AGENT_DOWN}), {}, OTHER_JOB),
    World("another GPU", PAIRS, PAIRS, {}, {"gpu": "1"}),
    World("both without a server", PAIRS, _of(OF_THE_HOST), without("server"), without("server")),
    World("both without an instance", PAIRS, NONE, without("instance"), without("instance")),
    World("source without an instance", PAIRS, NONE, without("instance"), {}),
    World("target without an instance", PAIRS, NONE, {}, without("instance")),
    World("both without either", PAIRS, NONE, NOBODY, NOBODY),
    World("one agent down, all absent", ALL_GONE, NONE, {}, HOST),
)


def amtool(*arguments: str) -> str:
    done = subprocess.run(["amtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def alertmanager(tmp_path_factory) -> Iterator[Alertmanager]:
    directory = tmp_path_factory.mktemp("alertmanager")
    with (
        Webhook() as webhook,
        Alertmanager(directory / "run", shipped_config_for(webhook, directory)) as running,
    ):
        yield running


class Case(NamedTuple):
    """Two alerts that fire together."""

    source: Mapping[str, str]
    target: Mapping[str, str]


def silenced_cases(alertmanager: Alertmanager, cases: Mapping[str, Case]) -> set[str]:
    """The names of the cases whose target is silenced; each has a host of its own.

    Alertmanager takes alerts in order: once the last one is silenced, all before it were seen.
    """
    own = {name: Case(*(_of_case(name, alert) for alert in case)) for name, case in cases.items()}
    last = Case(AGENT_DOWN.labels(), Kind("VllmServerCrashed", "critical").labels())
    end = f"the end of {next(iter(cases))}"
    own[end] = Case(*(_of_case(end, alert) for alert in last))
    alertmanager.post_alerts(*(alert for case in own.values() for alert in case))
    wait_until(lambda: end in _silenced(alertmanager), end, SEEN_TIMEOUT_SECONDS)
    return _silenced(alertmanager) & cases.keys()


def _of_case(name: str, alert: Mapping[str, str]) -> dict[str, str]:
    """The alert on hosts of this case only; without an instance it is nobody's."""
    scope = {label: f"{name}: {alert[label]}" for label in ("instance",) if label in alert}
    # No inhibition looks at it: it tells apart alerts that are otherwise equal.
    return {**alert, **scope, "case": name}


def _silenced(alertmanager: Alertmanager) -> set[str]:
    return {
        alert["labels"]["case"] for alert in alertmanager.alerts() if alert["status"]["inhibitedBy"]
    }


@pytest.mark.needs("amtool")
def test_configuration_is_valid():
    amtool("check-config", str(SHIPPED_CONFIG))


@pytest.mark.needs("amtool")
@pytest.mark.parametrize(
    ("severity", "receiver"),
    [("critical", "page"), ("warning", "ticket"), ("info", "ticket"), ("", "ticket")],
)
def test_severity_decides_who_is_told(severity, receiver):
    route = ("config", "routes", "test", f"--config.file={SHIPPED_CONFIG}")
    assert amtool(*route, "alertname=VllmServerDown", f"severity={severity}") == receiver


def test_alerts_of_one_server_make_one_notification():
    """A child route has the grouping of its parent unless it names its own."""
    assert CONFIG["route"]["group_by"] == ["job", "instance", "server"]
    assert [route.get("group_by") for route in CONFIG["route"]["routes"]] == [None]


def test_the_shipped_rules_have_these_kinds_and_no_others():
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    assert {
        Kind(rule["alert"], rule["labels"]["severity"])
        for group in groups
        for rule in group["rules"]
        if "alert" in rule
    } == KINDS


def test_inhibitions_name_only_alerts_that_exist():
    names = {kind.name for kind in KINDS}
    for rule in CONFIG["inhibit_rules"]:
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            [(label, value)] = re.findall(r'^(\w+) (?:=|=~|!=|!~) "(.*)"$', matcher)
            if label == "alertname" and not value.endswith(".+"):
                assert set(value.split("|")) <= names, matcher


def test_no_two_alerts_silence_each_other():
    """Nor in a ring of more: nobody would be told anything."""
    remaining = {source: set(targets) for source, targets in SILENCES.items()}
    while remaining:
        leaves = [source for source, targets in remaining.items() if not targets & remaining.keys()]
        assert leaves, remaining
        for leaf in leaves:
            del remaining[leaf]


@pytest.mark.needs("prometheus-alertmanager")
def test_no_alert_silences_itself(alertmanager):
    alone = {f"{kind} alone": Case(kind.labels(), kind.labels()) for kind in KINDS}
    assert silenced_cases(alertmanager, alone) == set()


@pytest.mark.needs("prometheus-alertmanager")
@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_pairs_of_alerts(alertmanager, world):
    cases = {
        _name(world, pair): Case(
            changed(pair[0].labels(), world.of_source),
            # An alert of the same kind would be the very same one.
            changed(pair[1].labels(), world.of_target) | {"target": "yes"},
        )
        for pair in world.pairs
    }
    # In a ring-free table a silenced source is the target of a pair in the other direction.
    expected = {_name(world, pair) for pair in world.silenced}
    expected |= {_name(world, pair) for pair in world.pairs if pair[::-1] in world.silenced}
    assert silenced_cases(alertmanager, cases) == expected


def _name(world: World, pair: tuple[Kind, Kind]) -> str:
    return f"{world.name}: {' and '.join(f'{kind.name} {kind.severity}' for kind in pair)}"


@pytest.mark.needs("prometheus-alertmanager")
def test_a_gpu_fault_explains_these_crashes_only(alertmanager):
    """A crash for a full disk is no consequence of the XID beside it."""
    crash = Kind("VllmServerCrashed", "critical").labels()
    cases = {
        f"{XID.name} and {reason}": Case(XID.labels(), crash | {"reason": reason})
        for reason in Reason
    }
    expected = {f"{XID.name} and {reason}" for reason in EXPLAINED_BY_A_GPU_FAULT}
    assert silenced_cases(alertmanager, cases) == expected


def test_a_page_is_told_again_as_soon_as_the_runbooks_say():
    [page] = (route for route in CONFIG["route"]["routes"] if route["receiver"] == "page")
    [minutes] = re.findall(r"^(\d+)m$", page["repeat_interval"])
    assert int(minutes) <= LONGEST_LOSS_MINUTES


@pytest.mark.needs("prometheus-alertmanager")
def test_a_page_that_ended_silenced_and_fires_again_is_told(tmp_path):
    """Alertmanager takes it for told until it would repeat it: what silenced it is no server's."""
    page, agent_down = Kind("VllmServerFailed", "critical").labels(), AGENT_DOWN.labels()
    with (
        Webhook() as webhook,
        Alertmanager(tmp_path / "run", repeating_config_for(webhook, tmp_path)) as alertmanager,
    ):
        alertmanager.post_alerts(page)
        _wait_told(webhook, page, "firing")
        alertmanager.post_alerts(agent_down)
        wait_until(lambda: _is_silenced(alertmanager, page), "silenced", SEEN_TIMEOUT_SECONDS)
        end(alertmanager, page)
        # All groups are looked at equally often, so that of the page is between these two.
        _wait_told(webhook, agent_down, "firing", len(webhook.deliveries))
        _wait_told(webhook, agent_down, "firing", len(webhook.deliveries))
        end(alertmanager, agent_down)
        _wait_told(webhook, agent_down, "resolved")
        assert not any(_tells(one, page, "resolved") for one in webhook.deliveries)
        before = len(webhook.deliveries)
        alertmanager.post_alerts(page)
        _wait_told(webhook, page, "firing", before)


def repeating_config_for(webhook: Webhook, directory: Path) -> Path:
    """The shipped configuration, but a page repeats each time its group is looked at."""
    path = shipped_config_for(webhook, directory)
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    for route in config["route"]["routes"]:
        route["repeat_interval"] = "500ms"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def end(alertmanager: Alertmanager, labels: Mapping[str, str]) -> None:
    """Makes the alert end, as Prometheus would."""
    now = datetime.now(UTC).isoformat()
    alertmanager.post("/api/v2/alerts", [{"labels": labels, "annotations": {}, "endsAt": now}])


def _is_silenced(alertmanager: Alertmanager, labels: Mapping[str, str]) -> bool:
    return any(
        alert["labels"] == labels and alert["status"]["inhibitedBy"]
        for alert in alertmanager.alerts()
    )


def _wait_told(webhook: Webhook, labels: Mapping[str, str], status: str, before: int = 0) -> None:
    """Waits until the alert is told, not counting so many deliveries that came `before`."""
    wait_until(
        lambda: any(_tells(one, labels, status) for one in webhook.deliveries[before:]),
        f"{labels['alertname']} is told {status}",
        SEEN_TIMEOUT_SECONDS,
    )


def _tells(delivery: Delivery, labels: Mapping[str, str], status: str) -> bool:
    return any(
        alert["labels"] == labels and alert["status"] == status
        for alert in delivery.payload["alerts"]
    )
