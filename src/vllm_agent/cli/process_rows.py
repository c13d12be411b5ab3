"""The processes of a local server as labelled lines: who keeps it up, its parts, its orphans. Pure.

The order is that of `systemctl status`: what keeps it up, the main process, the tree, the sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vllm_agent.cli.managed_lines import managed_of
from vllm_agent.cli.text import age, plain
from vllm_agent.expose.size_text import size_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_agent.expose.json_view import ServerView
    from vllm_agent.expose.process_view import ComponentView

SHOW_ORPHANS: Final = "ps -eo pid,ppid,user,rss,etime,args | grep '[V]LLM::'"
"""Lists every process with a title of vLLM; the orphans are those whose parent is no vLLM."""

PAGE_ALL: Final = "discovery.page: all"
"""The setting by which a server that nothing keeps up is paged for too."""


def process_rows(server: ServerView) -> Iterator[tuple[str, str]]:
    """Label and text of each line; none for a server of which only a URL is known."""
    yield from _keepers(server)
    if server["pid"] is not None:
        yield "main process", f"PID {server['pid']}"
    yield from _components(server["components"])
    if server["processes"] is not None:
        yield "processes", _sums(server, server["processes"])
    if server["orphans"]:
        outlived = f"{server['orphans']} outlived their main process and may hold memory and GPUs"
        yield "orphans", f"{outlived}; to see them: {SHOW_ORPHANS}"
    for sight in server["sights"]:
        if not sight["visible"]:
            yield "not visible", plain(f"{sight['kind']}: {sight['why_not']}")
            if sight["fix"]:
                yield "to see it", plain(sight["fix"])


def component_name(component: ComponentView) -> str:
    """Role and rank, as in `worker tp0`."""
    return plain(f"{component['role']} {component['rank']}").rstrip()


def _keepers(server: ServerView) -> Iterator[tuple[str, str]]:
    if managed_of(server) is not None:
        yield "supervised", "by this agent"
        return
    if server["unit"]:
        yield "unit", plain(server["unit"])
    if server["container_id"]:
        yield "container", plain(server["container_id"])
    if server["supervised"] is False:
        yield "supervised", "no: no systemd service or container keeps it up"
    if server["desired_up"] is None:
        yield "paged for", f"no: nobody said that it should be up; {PAGE_ALL} changes that"


def _components(components: list[ComponentView]) -> Iterator[tuple[str, str]]:
    names = [component_name(component) for component in components]
    width = max(map(len, names), default=0)
    for index, (name, component) in enumerate(zip(names, components, strict=True)):
        gone = "" if component["up"] else ", ended"
        yield "components" if not index else "", f"{name:{width}}  PID {component['pid']}{gone}"


def _sums(server: ServerView, processes: int) -> str:
    parts = [f"{processes}"]
    if server["threads"] is not None:
        parts.append(f"{server['threads']} threads")
    if server["resident_memory_bytes"] is not None:
        resident = size_text(server["resident_memory_bytes"])
        parts.append(f"{resident} resident (shared pages count several times)")
    if server["open_fds"] is not None:
        parts.append(f"{server['open_fds']} open files")
    if server["cpu_seconds"] is not None:
        parts.append(f"{age(server['cpu_seconds'])} of CPU time")
    return ", ".join(parts)
