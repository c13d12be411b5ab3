"""What the table of servers says, as plain text; where it is drawn is no concern of this. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from vllm_agent.cli.load_bar import table_cells
from vllm_agent.cli.managed_lines import managed_cells, managed_remarks
from vllm_agent.cli.text import UNKNOWN, age_of, plain, shown
from vllm_agent.expose.severity import BY_SEVERITY, worst_first

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm_agent.expose.json_view import CollectorView, ServersView, ServerView

HEADINGS: Final = (
    *("SERVER", "STATE", "SINCE", "MODEL", "VERSION"),
    *("REASON", "RESTARTS", "CRASHES", "CHECKED", "PID", "URL"),
    *("STAGE", "DONE", "LEFT"),
    *("MODE", "WANTED", "NEXT"),
)
"""One word each, and no value has a space in it but a name that has: columns stay columns.

New ones come last: scripts count from the left.
"""

_ASK_DOCTOR: Final = "'vllm-agent doctor' says why"


def rows_in_order(view: ServersView) -> list[ServerView]:
    """The servers as the table lists them: what is wrong first, then as configured."""
    return worst_first(view["servers"], lambda server: server["state"])


def table_row(server: ServerView, now_unix_seconds: float) -> tuple[str, ...]:
    """One server, a cell for each of `HEADINGS`."""
    return (
        plain(server["name"]),
        server["state"],
        age_of(server["state_entered_timestamp_seconds"], now_unix_seconds),
        shown(server["model_name"]),
        shown(server["version"]),
        server["reason"] or UNKNOWN,
        str(sum(server["restarts"].values())),
        str(sum(server["crashes"].values())),
        age_of(server["last_check_timestamp_seconds"], now_unix_seconds),
        UNKNOWN if server["pid"] is None else str(server["pid"]),
        shown(server["url"]),
        *table_cells(server),
        server["mode"],
        *managed_cells(server, now_unix_seconds),
    )


def remarks(server: ServerView, now_unix_seconds: float) -> tuple[str, ...]:
    """What is special about a server beyond its state and reason."""
    told = {
        "sleeping": bool(server["sleeping"]),
        "maintenance": server["in_maintenance"],
        "restart limit": server["restart_budget"]["limit_reached"],
        f"{server['orphans']} orphaned": bool(server["orphans"]),
    }
    words = (word for word, holds in told.items() if holds)
    return (*words, *managed_remarks(server, now_unix_seconds))


def notices(view: ServersView) -> list[str]:
    """Sentences on what the table cannot show: an agent that does not see everything."""
    told = []
    if not view["agent"]["ready"]:
        told.append("the agent is still taking its first look at every server")
    told += [collector_trouble(s) for s in view["agent"]["collectors"] if not s["up"]]
    if any(not sight["visible"] for sight in view["agent"]["sights"]):
        told.append(f"the agent does not see all of this host: {_ASK_DOCTOR}")
    if not view["servers"]:
        told.append(_no_server(view["agent"]["discovered"]))
    return told


def collector_trouble(source: CollectorView) -> str:
    """A sentence on a collector that is not up."""
    detail = f": {plain(source['detail'])}" if source["detail"] else ""
    return f"the agent's collector {plain(source['name'])} does not work{detail}"


def _no_server(discovered: int | None) -> str:
    if discovered is None:
        found = f"servers on this host are not found by themselves ({_ASK_DOCTOR})"
    else:
        found = "no vLLM server was found on this host"
    return (
        f"{found}, and no server is configured: write those that are elsewhere to a file and start "
        "the agent with --config.file=FILE"
    )


def summary(view: ServersView) -> str:
    """The whole table in one line."""
    number = len(view["servers"])
    servers = f"{number} server{'' if number == 1 else 's'}"
    told = ", ".join(filter(None, (servers, state_counts(view["servers"]))))
    return f"vllm-agent {view['agent']['version']}: {told}"


def state_counts(servers: Iterable[ServerView]) -> str:
    """How many there are of each state, the worst first: `2 failed, 1 running`."""
    counts = Counter(server["state"] for server in servers)
    return ", ".join(f"{counts[state]} {state}" for state in BY_SEVERITY if counts[state])
