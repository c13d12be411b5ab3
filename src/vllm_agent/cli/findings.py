"""What `doctor` finds in the answers of a running agent. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vllm_agent.cli.finding import Finding, Level
from vllm_agent.cli.gpu_findings import gpu_findings, orphans_by_server, tells_all_holders
from vllm_agent.cli.load_findings import LOST_FOR_LOADS, load_findings
from vllm_agent.cli.process_rows import PAGE_ALL, SHOW_ORPHANS
from vllm_agent.lifecycle.states import LifecycleMode
from vllm_agent.observations import SightKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vllm_agent.expose.gpu_view import GpusView
    from vllm_agent.expose.json_view import AgentView, ServersView, ServerView
    from vllm_agent.expose.process_view import SightView

MAX_NAMES: Final = 8
"""Names of servers in one line: a host has as many GPUs, and somebody may start hundreds."""


def agent_findings(
    view: ServersView, gpus: GpusView | None, socket_path: str, now_unix_seconds: float
) -> list[Finding]:
    """What a running agent says of itself, of the host, of its GPUs and of every server."""
    agent, servers = view["agent"], view["servers"]
    return [
        _agent(agent, socket_path),
        *_collectors(agent),
        _discovery(agent, len(servers)),
        *_sights(agent["sights"], servers),
        *load_findings(servers),
        *_unmatched(servers),
        *_unpaged(servers),
        *_gpus(gpus, servers, now_unix_seconds),
        *_orphans(servers, gpus),
    ]


def _agent(agent: AgentView, socket_path: str) -> Finding:
    file = agent["config_file"]
    source = "no configuration file" if file is None else f"configuration {file}"
    version = f"vllm-agent {agent['version']} runs, {source}, control socket {socket_path}"
    if agent["ready"]:
        return Finding(Level.OK, "agent", version)
    return Finding(Level.NOTE, "agent", f"{version}; its first look at every server is under way")


def _collectors(agent: AgentView) -> Iterator[Finding]:
    hidden = {sight["kind"] for sight in agent["sights"] if not sight["visible"]}
    for source in agent["collectors"]:
        # The sight of the same name tells the same, and what would help.
        if not source["up"] and not (source["name"] == SightKind.GPU and SightKind.GPU in hidden):
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
        lost = f"; {LOST_FOR_LOADS[kind]}" if kind in LOST_FOR_LOADS else ""
        yield Finding(Level.PROBLEM, kind, f"not visible of {_listed(of)}: {why_not}{lost}", fix)


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
        text = f"no process of this host ever matched {_listed(names)}"
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


def _gpus(gpus: GpusView | None, servers: Sequence[ServerView], now: float) -> Iterator[Finding]:
    if gpus is not None:
        has_local = any(server["pid"] is not None for server in servers)
        yield from gpu_findings(gpus, now, has_local_server=has_local)


def _orphans(servers: Sequence[ServerView], gpus: GpusView | None) -> Iterator[Finding]:
    """Those of which it is not known that they hold memory of a device."""
    devices = [] if gpus is None else gpus["gpus"]
    on_gpus = orphans_by_server(devices)
    counts = {s["name"]: (s["orphans"] or 0) - on_gpus[s["name"]] for s in servers}
    told = [
        f"{count} {'more ' if on_gpus[name] else ''}of {name}"
        for name, count in counts.items()
        if count > 0
    ]
    if told:
        can_tell = tells_all_holders(devices)
        held = ", without GPU memory" if can_tell else " and may hold memory and GPUs"
        text = f"{_listed(told)} outlived their main process{held}"
        yield Finding(Level.NOTE, "orphans", text, SHOW_ORPHANS)
