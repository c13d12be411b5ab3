"""Scrape targets for vLLM's own metrics, in the form of Prometheus HTTP service discovery. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_agent.config.url import parse_server_url
from vllm_agent.expose.family import label_value
from vllm_agent.lifecycle.states import ServerState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_agent.snapshot import AgentSnapshot, ServerSnapshot


def target_groups(agent: AgentSnapshot) -> list[Mapping[str, object]]:
    """One element per server that Prometheus can reach by TCP and that is there or should be.

    A server that is wanted up stays in while it is not, so that its `up` is 0 and not absent.
    """
    groups = (_group(server) for server in agent.servers if not _is_at_rest(server))
    return [group for group in groups if group is not None]


def _is_at_rest(server: ServerSnapshot) -> bool:
    return server.life.state is ServerState.STOPPED and not server.desired_up


def _group(server: ServerSnapshot) -> Mapping[str, object] | None:
    try:
        url = parse_server_url(server.url)
    except ValueError:
        return None
    if url.host is None:
        return None
    host = f"[{url.host}]" if ":" in url.host else url.host
    return {
        "targets": [f"{host}:{url.port}"],
        "labels": {
            # As on the metrics page: people join by it.
            "server": label_value(server.name),
            "__scheme__": url.scheme,
            "__metrics_path__": f"{url.root_path}/metrics",
        },
    }
