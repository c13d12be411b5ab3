"""The web applications: one that only reads, for TCP, and one that also writes, for the socket.

Everything is answered from snapshots. Nothing here changes a server; what an operator asks for
goes to the server's owner.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs, web

from vllm_agent.expose import api_operations
from vllm_agent.expose.api_errors import ALLOW_HINT, ErrorAnswers
from vllm_agent.expose.api_operations import Operating
from vllm_agent.expose.api_reads import Reads
from vllm_agent.expose.api_writes import Writes, refusal
from vllm_agent.expose.managed_request import parse_model, parse_start, parse_stop
from vllm_agent.lifecycle.management import Wish

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_agent.expose.api_errors import Endpoint
    from vllm_agent.expose.api_reads import ReadHistory
    from vllm_agent.expose.api_writes import Forget, SetMaintenance
    from vllm_agent.expose.operations import Operations
    from vllm_agent.observations import Instant
    from vllm_agent.snapshot import AgentSnapshot

MAX_BODY_BYTES: Final = 16 * 1024
"""Hundreds of times what any request needs."""

_SERVER: Final = "/api/v1/servers/{server:[^/]+}"
_RELOAD: Final = "/-/reload"
_COMMANDS: Final = MappingProxyType(
    {
        "maintenance": "vllm-agent maintenance {name} on|off",
        "forget": "vllm-agent forget {name}",
        "start": "vllm-agent start {name}",
        "stop": "vllm-agent stop {name}",
        "restart": "vllm-agent restart {name}",
        "model": "vllm-agent set-model {name} MODEL",
        "ensure-healthy": "vllm-agent ensure-healthy {name}",
    }
)
"""Every write by its place below a server, and the command that asks for it."""

_READ_ONLY_HINT: Final = (
    "This address only reads: use GET or HEAD. Writes exist only on the control socket, "
    "which the vllm-agent command uses."
)
_READ_NAMES_HINT: Final = "GET /api/v1/servers lists the names that there are."
_CONTROL_NAMES_HINT: Final = "'vllm-agent status' lists the names that there are."
"""The control socket is read by the command: its users know no paths."""


def read_app(  # noqa: PLR0917 - what control_app takes
    current: Callable[[], AgentSnapshot],
    clock: Callable[[], Instant],
    history: ReadHistory,
    metrics: Endpoint,
    telemetry_path: str,
    operations: Operations,
    *,
    may_reload: bool,
) -> web.Application:
    """The application for TCP: GET and HEAD only, and nothing that a server's users wrote.

    `may_reload` is whether the operator allows everybody who gets here to reload the configuration.
    """
    reads = Reads(current, clock, history, telemetry_path, _READ_NAMES_HINT, shows_logs=False)
    app = _app(reads, metrics, _READ_ONLY_HINT)
    for write, command in _COMMANDS.items():
        app.router.add_route(hdrs.METH_ANY, f"{_SERVER}/{write}", refusal(command))
    if may_reload:
        app.router.add_post(_RELOAD, api_operations.reload(operations))
    else:
        app.router.add_route(hdrs.METH_ANY, _RELOAD, api_operations.refuse_reload)
    return app


def control_app(  # noqa: PLR0917 - what read_app takes, and what an operator may ask for
    current: Callable[[], AgentSnapshot],
    clock: Callable[[], Instant],
    history: ReadHistory,
    metrics: Endpoint,
    telemetry_path: str,
    maintenance: SetMaintenance,
    forget: Forget,
    operations: Operations,
) -> web.Application:
    """The application for the control socket: everything that is read, and the writes.

    `maintenance` gets the server's name and the end of its maintenance in unix time: infinity for
    one without an end, None to end it. `forget` gets the name of a discovered server that ended,
    and returns once no snapshot has it; it raises `CannotForgetError` for one that came back.
    """
    reads = Reads(current, clock, history, telemetry_path, _CONTROL_NAMES_HINT, shows_logs=True)
    app = _app(reads, metrics, ALLOW_HINT)
    writes, operating = Writes(reads, clock), Operating(reads, operations)
    endpoints = {
        "maintenance": writes.maintenance(maintenance),
        "forget": writes.forget(forget),
        "start": operating.ask(Wish.START, parse_start),
        "stop": operating.ask(Wish.STOP, parse_stop),
        "restart": operating.ask(Wish.RESTART, parse_start),
        "model": operating.ask(Wish.RESTART, parse_model),
        "ensure-healthy": operating.ensure_healthy,
    }
    for write, endpoint in endpoints.items():
        app.router.add_post(f"{_SERVER}/{write}", endpoint)
    app.router.add_post(_RELOAD, api_operations.reload(operations))
    return app


def _app(reads: Reads, metrics: Endpoint, method_hint: str) -> web.Application:
    app = web.Application(
        middlewares=[ErrorAnswers(method_hint).middleware()], client_max_size=MAX_BODY_BYTES
    )
    app.on_response_prepare.append(_add_headers)
    app.router.add_get("/", reads.page)
    app.router.add_get(reads.telemetry_path, metrics)
    app.router.add_get("/-/healthy", reads.healthy)
    app.router.add_get("/-/ready", reads.ready)
    app.router.add_get("/api/v1/servers", reads.servers)
    app.router.add_get(_SERVER, reads.server)
    app.router.add_get(f"{_SERVER}/history", reads.history)
    app.router.add_get("/api/v1/gpus", reads.gpus)
    app.router.add_get("/api/v1/http_sd", reads.http_sd)
    return app


async def _add_headers(_: web.Request, response: web.StreamResponse) -> None:
    # The default names the versions of Python and of the library to whoever asks.
    response.headers[hdrs.SERVER] = "vllm-agent"
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault(hdrs.CACHE_CONTROL, "no-cache")
