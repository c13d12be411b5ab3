"""The runbooks: one for each alert, and nothing in them that the product does not have."""

from __future__ import annotations

import importlib
import itertools
import re
import shlex
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml

from alerts.gpus import CRITICAL_XIDS
from alerts.output import RULES_PATH
from tests.pipeline.catalogue import METRIC_LABELS
from tests.pipeline.promql import label_names, selectors
from vllm_agent.cli.arguments import Parser
from vllm_agent.cli.outcome import UsageError
from vllm_agent.cli.program import COMMANDS
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.states import LifecycleMode, ServerState
from vllm_agent.observations import Probe, ProbeCause, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROOT: Final = RULES_PATH.parents[1]
RUNBOOKS: Final = ROOT / "docs" / "runbooks"
README: Final = RUNBOOKS / "README.md"
ALL_PAGES: Final = sorted(RUNBOOKS.glob("*.md"))

MAX_LINES: Final = 70
"""Two screens: who was woken reads no more."""

_GROUPS: Final = yaml.safe_load(RULES_PATH.read_text(encoding="utf-8"))["groups"]
RULES: Final[list[dict[str, Any]]] = [rule for group in _GROUPS for rule in group["rules"]]
ALERTS: Final = MappingProxyType(
    {
        name: [rule for rule in RULES if rule.get("alert") == name]
        for name in dict.fromkeys(rule["alert"] for rule in RULES if "alert" in rule)
    }
)
"""Name → its rules, one for each severity and window, in the order of the rule file."""

RECORDED: Final = MappingProxyType(
    {
        rule["record"]: {"job", *rule["record"].split(":")[0].split("_")}
        for rule in RULES
        if "record" in rule
    }
)
"""Recorded series → their labels, which their name begins with."""

COLLECTORS: Final = frozenset({"discovery", "probes", "gpu", "store"})
OTHER_WORDS: Final = frozenset(
    {
        # Programs and users of the host.
        *("chown", "curl", "dmesg", "ps", "root", "vllm"),
        # Words of Prometheus and its like.
        *("alertname", "critical", "http", "static_configs", "warning"),
        # What the agent shows, and the server of the examples.
        *("history.sqlite", "llama", "lost", "progress", "try"),
    }
)
"""Words in backticks that are neither the agent's nor Prometheus'."""

_FENCE: Final = re.compile(r"^```(\w*)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
_INDENTED: Final = re.compile(r"^    .*\n", re.MULTILINE)
_SPAN: Final = re.compile(r"`([^`\n]+)`")
_LINK: Final = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING: Final = re.compile(r"^(#+) (.+)$", re.MULTILINE)
_METRIC: Final = re.compile(r"(?<![\w:])vllm_agent_\w+")
_ALERT: Final = re.compile(r"\bVllm[A-Z]\w+")
_HISTOGRAM_SUFFIX: Final = re.compile(r"_(?:sum|count|bucket)$")

each_alert = pytest.mark.parametrize("name", ALERTS)
each_page = pytest.mark.parametrize("path", ALL_PAGES, ids=lambda path: path.stem)


def text_of(name: str) -> str:
    return (RUNBOOKS / f"{name}.md").read_text(encoding="utf-8")


def prose(text: str) -> str:
    """The text without blocks of commands and queries."""
    return _INDENTED.sub("", _FENCE.sub("", text))


def blocks(text: str, language: str) -> Iterator[str]:
    return (body for tag, body in _FENCE.findall(text) if tag == language)


def spans(text: str) -> list[str]:
    """What stands in backticks."""
    return _SPAN.findall(prose(text))


# Alerts and pages are in step.


def test_every_alert_has_a_runbook_and_every_runbook_an_alert():
    assert {path.stem for path in RUNBOOKS.glob("Vllm*.md")} == set(ALERTS)


@each_alert
def test_a_runbook_has_its_four_parts(name):
    headings = _HEADING.findall(prose(text_of(name)))
    parts = ("Meaning", "Confirm", "Likely causes", "What to do")
    assert headings == [("#", name), *(("##", part) for part in parts)]


@each_alert
def test_a_runbook_is_short(name):
    assert len(text_of(name).splitlines()) <= MAX_LINES


@each_alert
def test_a_runbook_says_how_to_silence_and_when_to_escalate(name):
    steps = text_of(name).partition("## What to do")[2]
    assert "silence" in steps
    assert re.search("[Ee]scalate", steps)
    assert "vllm-agent maintenance" in steps or "README.md#how-to-silence" in steps


@each_alert
def test_a_runbook_that_names_reasons_leads_to_what_they_mean(name):
    text = text_of(name)
    assert "(reasons.md)" in text or not (set(Reason) - set(ServerState)) & set(spans(text))


# Nothing is named that is not there.


@each_page
def test_links_lead_somewhere(path):
    for link in _LINK.findall(prose(path.read_text(encoding="utf-8"))):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        page = path if not target else path.parent / target
        assert page.exists(), link
        assert not anchor or anchor in anchors(page), link


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    titles = (title for _, title in _HEADING.findall(prose(page.read_text(encoding="utf-8"))))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@each_page
def test_alerts_that_are_named_exist(path):
    assert set(_ALERT.findall(path.read_text(encoding="utf-8"))) <= set(ALERTS)


@each_page
def test_metrics_that_are_named_exist(path):
    for metric in _METRIC.findall(path.read_text(encoding="utf-8")):
        assert labels_of(metric) is not None, metric


@each_alert
def test_queries_use_metrics_labels_and_values_that_the_agent_declares(name):
    queries = "".join(blocks(text_of(name), "promql")).splitlines()
    assert queries
    for query in queries:
        used = selectors(query)
        known: set[str] = set()
        for selector in used:
            labels = labels_of(selector.metric)
            assert labels is not None, query
            assert set(selector.matchers) <= labels, query
            known |= labels
            reasons = selector.matchers.get("reason", Reason.UNKNOWN)
            assert set(reasons.split("|")) <= set(Reason), query
            assert selector.matchers.get("collector", "gpu") in COLLECTORS, query
        assert label_names(query) <= known, query


def labels_of(metric: str) -> set[str] | None:
    """The labels of a series, None where nobody makes one of that name."""
    base = metric if metric in METRIC_LABELS else _HISTOGRAM_SUFFIX.sub("", metric)
    labels = METRIC_LABELS.get(base) or RECORDED.get(metric)
    return None if labels is None else set(labels)


@each_page
def test_commands_are_understood_by_the_command_line(path):
    text = path.read_text(encoding="utf-8")
    lines = re.findall(r"^\s*\$ (vllm-agent .*)$", text, flags=re.MULTILINE)
    # A command may be spoken of without its arguments.
    spoken = {f"vllm-agent {command.name}" for command in COMMANDS}
    lines += [span for span in spans(text) if span.startswith("vllm-agent ") and span not in spoken]
    for line in lines:
        parse(shlex.split(line)[1:])


def parse(words: list[str]) -> None:
    """Reads a command line as `vllm-agent` does; raises UsageError where it would refuse it."""
    modules = {command.name: command.module for command in COMMANDS}
    if words[0] not in modules:
        raise UsageError(f"unknown command {words[0]!r}")
    parser = Parser(prog=f"vllm-agent {words[0]}")
    importlib.import_module(f"vllm_agent.cli.{modules[words[0]]}").configure(parser)
    parser.parse_all(words[1:])


def test_a_command_that_is_wrong_is_seen():
    with pytest.raises(UsageError):
        parse(["maintenance", "llama", "--for", "1h"])
    with pytest.raises(UsageError):
        parse(["repair", "llama"])


def test_the_container_is_that_of_the_compose_file():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    agents = {one.get("container_name") for name, one in services.items() if "vllm-agent" in name}
    commands = r"docker (?:exec|stop|start|restart|logs(?: --\w+(?: \d+)?)*) ([\w.-]+)"
    named = [
        container
        for path in ALL_PAGES
        for container in re.findall(commands, path.read_text(encoding="utf-8"))
    ]
    assert len(agents) == 1
    assert agents == set(named)


@each_alert
def test_what_hides_pages_of_others_says_when_those_are_told(name):
    """Of another group than what it silences, so that Alertmanager takes them for told too long."""
    hides = any(source == name for source, _ in silencing_pairs())
    is_of_a_host = not name.startswith("VllmServer")
    says = re.search(r"within\s30\sminutes", text_of(name)) is not None
    assert says is (hides and is_of_a_host)


@each_page
def test_words_in_backticks_are_reasons_states_labels_or_settings(path):
    """A closed set, so that a reason that was renamed or misspelt is no word any more."""
    words = {span for span in spans(path.read_text(encoding="utf-8")) if is_word(span)}
    assert words <= known_words()


def is_word(span: str) -> bool:
    return re.fullmatch(r"[a-z][a-z0-9_.\[\]]*", span) is not None and not span.endswith(".md")


def known_words() -> set[str]:
    closed = (Reason, ServerState, Stage, Probe, ProbeCause, LifecycleMode)
    labels = set().union(*METRIC_LABELS.values(), *(rule.get("labels", ()) for rule in RULES))
    metrics = {*METRIC_LABELS, *RECORDED}
    return {
        *itertools.chain.from_iterable(map(str, one) for one in closed),
        *labels,
        *metrics,
        *settings(),
        *(command.name for command in COMMANDS),
        *COLLECTORS,
        *OTHER_WORDS,
    }


def settings() -> set[str]:
    """The keys of the configuration, in full and without what is around them."""
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    keys = set(re.findall(r"^\| `([a-z_.\[\]]+)` \|", text, flags=re.MULTILINE))
    parts = [key.split(".") for key in keys]
    return {".".join(words[start:]) for words in parts for start in range(len(words))}


# What silences what is as Alertmanager does it.


@dataclass(frozen=True, slots=True)
class Matcher:
    """One matcher of Alertmanager."""

    label: str
    operator: str
    value: str

    @classmethod
    def of(cls, text: str) -> Matcher:
        """Reads `label op "value"`."""
        found = re.fullmatch(r'\s*(\w+)\s*(=~|!~|!=|=)\s*"(.*)"\s*', text)
        assert found, text
        return cls(*found.groups())

    def takes(self, value: str) -> bool:
        """Whether it matches this value of its label."""
        is_equal = (
            re.fullmatch(self.value, value) is not None
            if "~" in self.operator
            else value == self.value
        )
        return is_equal is not self.operator.startswith("!")


def silencing_pairs() -> set[tuple[str, str]]:
    """Names of two alerts of which one can silence the other; only names and severities tell."""
    text = (ROOT / "alerts" / "alertmanager.yml").read_text(encoding="utf-8")
    pairs = set()
    for rule in yaml.safe_load(text)["inhibit_rules"]:
        sources = set(matching(rule["source_matchers"]))
        targets = set(matching(rule["target_matchers"]))
        for (source, its_severity), (target, severity) in itertools.product(sources, targets):
            is_apart = "severity" in rule["equal"] and severity != its_severity
            if source != target and not is_apart and "alertname" not in rule["equal"]:
                pairs.add((source, target))
    return pairs


def matching(matchers: list[str]) -> Iterator[tuple[str, str]]:
    """Names and severities of the alerts that these take."""
    read = [Matcher.of(text) for text in matchers]
    for name, rules in ALERTS.items():
        for severity in {rule["labels"]["severity"] for rule in rules}:
            known = {"alertname": name, "severity": severity}
            if all(one.takes(known[one.label]) for one in read if one.label in known):
                yield name, severity


def test_a_matcher_takes_what_alertmanager_does():
    assert Matcher.of('alertname =~ "VllmServer.+"').takes("VllmServerDown")
    assert not Matcher.of('alertname =~ "VllmServer"').takes("VllmServerDown")
    assert not Matcher.of('alertname !~ "VllmAgentDown|VllmAgentAbsent"').takes("VllmAgentDown")
    assert Matcher.of('server != ""').takes("llama")


@each_alert
def test_a_runbook_says_what_silences_its_alert_and_what_that_silences(name):
    pairs = silencing_pairs()
    assert told(name, "Silenced by") == {source for source, target in pairs if target == name}
    assert told(name, "Silences") == {target for source, target in pairs if source == name}


def told(name: str, words: str) -> set[str]:
    """The alerts that the page names after these words."""
    found = re.search(rf"^- {words}[^:]*: (.*?)(?=^- |^$)", text_of(name), re.MULTILINE | re.DOTALL)
    assert found, words
    named = set(_ALERT.findall(found[1]))
    if found[1].startswith("all other alerts"):
        return set(ALERTS) - named - {name}
    assert bool(named) is not found[1].startswith("nothing")
    return named


# The overview.


def overview() -> dict[str, tuple[set[str], set[str]]]:
    """Alert → its severities, and what silences it."""
    rows = re.findall(
        r"^\| \[(Vllm\w+)\]\(\1\.md\) \| ([^|]+) \| [^|]+ \| ([^|]+) \|$",
        README.read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    return {name: (set(s.split(", ")), set(by.split(", "))) for name, s, by in rows}


def test_the_overview_lists_every_alert():
    assert set(overview()) == set(ALERTS)


@each_alert
def test_the_overview_agrees_with_the_rules(name):
    severities, silenced_by = overview()[name]
    assert severities == {rule["labels"]["severity"] for rule in ALERTS[name]}
    expected = {source for source, target in silencing_pairs() if target == name}
    if is_ended_by_maintenance(name):
        expected.add("maintenance")
    assert silenced_by == (expected or {"nothing"})


def is_ended_by_maintenance(name: str) -> bool:
    return all("vllm_agent_server_desired_up" in rule["expr"] for rule in ALERTS[name])


def test_the_table_of_xids_agrees_with_the_rules():
    rows = re.findall(r"^\| ([\d, ]+) \| (\w+) \|", text_of("VllmGpuXid"), flags=re.MULTILINE)
    shown = [number for numbers, _ in rows for number in numbers.split(", ")]
    assert set(map(str, CRITICAL_XIDS)) <= set(shown)
    assert {"13", "31", "43", "63", "92", "94"} <= set(shown)
    assert len(set(shown)) == len(shown)
    for numbers, severity in rows:
        for number in numbers.split(", "):
            assert xid_severities(number) == {severity}, number


def xid_severities(number: str) -> set[str]:
    """The severities of the rules that take this XID."""
    return {
        rule["labels"]["severity"]
        for rule in ALERTS["VllmGpuXid"]
        if all(takes_xid(rule["expr"], number))
    }


def takes_xid(expr: str, number: str) -> Iterator[bool]:
    for operator, value in re.findall(r'xid(=~|!~|!=|=)"([^"]+)"', expr):
        yield Matcher("xid", operator, value).takes(number)
