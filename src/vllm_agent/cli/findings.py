"""What `doctor` finds in the answer of a running agent, and how that is told. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from vllm_agent.cli.process_rows import PAGE_ALL, SHOW_ORPHANS
from vllm_agent.cli.text import plain
from vllm_agent.lifecycle.states import LifecycleMode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vllm_agent.expose.json_view import AgentView, ServersView, ServerView
    from vllm_agent.expose.process_view import SightView


MAX_NAMES: Final = 8
"""Names of servers in one line: a host has as many GPUs, and somebody may start hundreds."""


class Level(StrEnum):
    """How much a finding matters: a problem is something that the agent does not see."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `fix` is a command or a setting, empty where none is needed."""

    level: Level
    about: str
    text: str
    fix: str = ""


def agent_findings(view: ServersView, socket_path: str) -> list[Finding]:
    """What a running agent says of itself, of the host and of every server."""
    agent, servers = view["agent"], view["servers"]
    return [
        _agent(agent, socket_path),
        *_collectors(agent),
        _discovery(agent, len(servers)),
        *_sights(agent["sights"], servers),
        *_unmatched(servers),
        *_unpaged(servers),
        *_orphans(servers),
    ]


def report_lines(findings: Sequence[Finding]) -> list[str]:
    """The findings as lines, and what they come to."""
    about = max((len(finding.about) for finding in findings), default=0)
    level = max(map(len, Level))
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:{level}}  {finding.about:{about}}  {finding.text}")
        if finding.fix:
            lines.append(f"{'':{level}}  {'':{about}}  try: {finding.fix}")
    return [*(plain(line).rstrip() for line in lines), _conclusion(findings)]


def has_problem(findings: Iterable[Finding]) -> bool:
    """Whether something is not visible or does not work."""
    return any(finding.level is Level.PROBLEM for finding in findings)


def _conclusion(findings: Sequence[Finding]) -> str:
    counts = Counter(finding.level for finding in findings)
    told = [
        f"{counts[level]} {level}{'' if counts[level] == 1 else 's'}"
        for level in (Level.PROBLEM, Level.NOTE)
        if counts[level]
    ]
    return ", ".join(told) or "everything can be seen"


def _agent(agent: AgentView, socket_path: str) -> Finding:
    file = agent["config_file"]
    source = "no configuration file" if file is None else f"configuration {file}"
    version = f"vllm-agent {agent['version']} runs, {source}, control socket {socket_path}"
    if agent["ready"]:
        return Finding(Level.OK, "agent", version)
    return Finding(Level.NOTE, "agent", f"{version}; its first look at every server is under way")


def _collectors(agent: AgentView) -> Iterator[Finding]:
    for source in agent["collectors"]:
        if not source["up"]:
            text = f"does not work: {source['detail'] or 'see the log of the agent'}"
            yield Finding(Level.PROBLEM, f"collector {source['name']}", text)


def _discovery(agent: AgentView, watched: int) -> Finding:
    if agent["discovered"] is None:
        text = f"servers of this host are not found by themselves; {watched} watched"
        is_broken = any(s["name"] == "discovery" and not s["up"] for s in agent["collectors"])
        fix = "" if is_broken else "discovery.enabled: true, then restart the agent"
        return Finding(Level.NOTE, "discovery", text, fix)
    found = f"{agent['discovered']} vLLM server(s) found on this host, {watched} watched"
    return Finding(Level.OK, "discovery", found)


def _sights(host: Iterable[SightView], servers: Sequence[ServerView]) -> Iterator[Finding]:
    """What is hidden, once for all servers of which that is so for the same cause."""
    owners: dict[tuple[str, str, str], list[str]] = {}
    visible: list[str] = []
    every = [("this host", sight) for sight in host]
    # Of one that ended nothing can be seen any more, and that is no fault.
    living = [server for server in servers if server["pid"] is not None]
    every += [(server["name"], sight) for server in living for sight in server["sights"]]
    for owner, sight in every:
        if sight["visible"]:
            visible.append(sight["kind"])
        else:
            key = (sight["kind"], sight["why_not"], sight["fix"])
            owners.setdefault(key, []).append(owner)
    if seen := sorted(set(visible) - {kind for kind, _, _ in owners}):
        yield Finding(Level.OK, "visible", ", ".join(seen))
    for (kind, why_not, fix), of in owners.items():
        yield Finding(Level.PROBLEM, kind, f"not visible of {_listed(of)}: {why_not}", fix)


def _listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def _unmatched(servers: Sequence[ServerView]) -> Iterator[Finding]:
    """Configured servers of this host whose process was never there."""
    names = [
        server["name"]
        for server in servers
        if server["mode"] == LifecycleMode.MONITORED
        and not server["discovered"]
        and server["pid"] is None
        and not server["launches"]
    ]
    if names:
        text = f"no process of this host was ever {_listed(names)}"
        fix = "compare `match` and `url` in the configuration with the command line of the server"
        yield Finding(Level.NOTE, "match", text, fix)


def _unpaged(servers: Sequence[ServerView]) -> Iterator[Finding]:
    names = [
        server["name"]
        for server in servers
        if server["desired_up"] is None and server["pid"] is not None
    ]
    if names:
        why = "no systemd service or container keeps it up"
        text = f"nobody is paged for {_listed(names)}: {why}"
        yield Finding(Level.NOTE, "pages", text, f"{PAGE_ALL}, or run it as a service")


def _orphans(servers: Sequence[ServerView]) -> Iterator[Finding]:
    told = [f"{server['orphans']} of {server['name']}" for server in servers if server["orphans"]]
    if told:
        text = f"{_listed(told)} outlived their main process and may hold memory and GPUs"
        yield Finding(Level.NOTE, "orphans", text, SHOW_ORPHANS)
