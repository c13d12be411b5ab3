"""The status page: plain HTML for people, without scripts and without anything from elsewhere."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from hashlib import sha256
from html import escape
from importlib.resources import files
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import vllm_agent
from vllm_agent.expose.severity import BY_SEVERITY, worst_first
from vllm_agent.expose.status_page import gpus
from vllm_agent.expose.status_page.rows import COLUMNS, server_row
from vllm_agent.expose.status_page.words import moment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_agent.observations import Instant
    from vllm_agent.snapshot import AgentSnapshot

REFRESH_SECONDS: Final = 5
"""Half the usual interval between looks at a server."""

DOCS_URL: Final = "https://github.com/vllm-agent/vllm-agent/blob/main/docs"

_DESCRIPTION: Final = (
    "Watches vLLM servers and tells Prometheus whether they are up, and if not, why not."
)
_STYLE: Final = files(__package__).joinpath("style.css").read_text(encoding="utf-8")
_STYLE_HASH: Final = b64encode(sha256(_STYLE.encode()).digest()).decode()

HEADERS: Final = MappingProxyType(
    {
        "Content-Security-Policy": (
            f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; "
            "form-action 'none'; frame-ancestors 'none'"
        ),
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
)
"""What a browser must be told about the page: it may load and run nothing."""

_NO_SERVER: Final = """\
<p>To watch a server elsewhere, write where it listens to a file, for example
<code>vllm-agent.yml</code>:</p>
<pre>servers:
  - name: llama
    mode: external
    url: http://127.0.0.1:8000</pre>
<p>Then start the agent again: <code>vllm-agent --config.file=vllm-agent.yml</code></p>
"""


def render(snapshot: AgentSnapshot, now: Instant, telemetry_path: str = "/metrics") -> str:
    """The page as HTML; links are relative, so that it works below a prefix of a proxy."""
    return "".join(parts(snapshot, now, telemetry_path))


def parts(snapshot: AgentSnapshot, now: Instant, telemetry_path: str) -> Iterator[str]:
    """The page piece by piece, a server or a GPU at a time, for who has other work in between."""
    yield (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_title(snapshot)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
    )
    yield (
        f'<header>\n<h1>vllm-agent <span class="quiet">{escape(vllm_agent.__version__)}</span>'
        f"</h1>\n<p>{_DESCRIPTION}</p>\n"
        f'<p class="quiet">Running since {moment(snapshot.started.unix_seconds, now)}. '
        f"This page reloads every {REFRESH_SECONDS} seconds.</p>\n</header>\n"
    )
    yield _navigation(telemetry_path)
    yield "<main>\n"
    yield from _notices(snapshot)
    yield "<h2>Servers</h2>\n"
    yield from _servers(snapshot, now)
    yield from gpus.section(snapshot, now)
    yield "</main>\n</body>\n</html>\n"


def _title(snapshot: AgentSnapshot) -> str:
    counts = Counter(server.life.state for server in snapshot.servers)
    told = [f"{counts[state]} {state}" for state in BY_SEVERITY if counts[state]]
    return f"{', '.join(told) or 'no servers'} - vllm-agent"


def _navigation(telemetry_path: str) -> str:
    links = (
        (telemetry_path.removeprefix("/"), "Metrics"),
        ("api/v1/servers", "API"),
        ("api/v1/http_sd", "Scrape targets"),
        ("-/healthy", "Healthy"),
        ("-/ready", "Ready"),
        (f"{DOCS_URL}/lifecycle.md", "What the states and reasons mean"),
        (f"{DOCS_URL}/metrics.md", "What the metrics mean"),
    )
    items = "".join(f'<li><a href="{escape(url)}">{text}</a></li>\n' for url, text in links)
    return f'<nav aria-label="Agent">\n<ul>\n{items}</ul>\n</nav>\n'


def _notices(snapshot: AgentSnapshot) -> Iterator[str]:
    if not snapshot.is_ready:
        text = "Not ready: the first look at every server is still under way."
        yield f'<p class="notice" role="status">{text}</p>\n'
    for source in snapshot.collectors:
        if not source.is_up:
            detail = f": {source.detail}" if source.detail else ""
            text = f"The agent's own collector {source.name!r} does not work{detail}"
            yield f'<p class="notice" role="status">{escape(text)}</p>\n'
    for sight in snapshot.sights:
        if not sight.is_visible:
            text = f"The agent does not see everything of this host: {sight.why_not}"
            fix = f"; {sight.fix}" if sight.fix else ""
            yield f'<p class="notice" role="status">{escape(text + fix)}</p>\n'


def _found(discovered: int | None) -> str:
    if discovered is None:
        return "Servers on this host are not found by themselves: discovery is off, or is blind."
    number = {0: "No vLLM server runs", 1: "1 vLLM server runs"}.get(
        discovered, f"{discovered} vLLM servers run"
    )
    return f"{number} on this host, as its processes show."


def _servers(snapshot: AgentSnapshot, now: Instant) -> Iterator[str]:
    yield f'<p class="quiet">{_found(snapshot.discovered)}</p>\n'
    if not snapshot.servers:
        yield _NO_SERVER
        return
    head = "".join(f'<th scope="col">{column}</th>' for column in COLUMNS)
    yield (
        '<div class="scroll" role="region" aria-label="Servers" tabindex="0">\n<table>\n'
        f"<thead>\n<tr>{head}</tr>\n</thead>\n<tbody>\n"
    )
    servers = worst_first(snapshot.servers, lambda server: server.life.state)
    yield from (server_row(server, now) for server in servers)
    yield "</tbody>\n</table>\n</div>\n"
