"""What to do about a failure, with what is known of the server. Pure.

API and page ask here, and the command line reads the API: all say the same.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any, Final

from vllm_agent.config.model_id import divide_model
from vllm_agent.config.url import parse_server_url
from vllm_agent.expose.load_view import watched_load
from vllm_agent.expose.managed_view import shown_model, wanted_model
from vllm_agent.lifecycle.advice import Facts, advice_on
from vllm_agent.lifecycle.states import Phase
from vllm_agent.observations import VllmCommand

if TYPE_CHECKING:
    from vllm_agent.lifecycle.reasons import Reason
    from vllm_agent.lifecycle.server_life import Ending
    from vllm_agent.snapshot import ServerSnapshot

# One that people can copy into a shell.
_REVISION: Final = re.compile(r"[\w.][\w./-]{0,95}", re.ASCII)

# How a GPU's fault is told in the evidence of an ending.
_XID: Final = re.compile(r"XID (\d+) on ", re.ASCII)

_RETRIED: Final = frozenset({Phase.BACKOFF, Phase.REFUSED})


def advice_on_server(server: ServerSnapshot, reason: Reason) -> str:
    """What to do about the failure that a server is in."""
    known = _known(server, _ending_of_failure(server, reason), is_newest=True)
    return advice_on(reason, Facts(**known | _of_start(server, reason)))


def advice_on_model(server: ServerSnapshot, model: str, reason: Reason) -> str:
    """What to do about a model that a managed server would not serve, told before it is tried."""
    known: dict[str, Any] = {"server": shlex.quote(server.name)}
    return advice_on(reason, Facts(**known | _of_model(VllmCommand(model=model))))


def advice_on_ending(server: ServerSnapshot, ending: Ending) -> str | None:
    """What to do about how a launch of the server ended; None where nothing is to be done.

    What is known of the newest launch says nothing about an older one.
    """
    if ending.reason is None:
        return None
    is_newest = ending.launch_number == _newest_launch(server)
    return advice_on(ending.reason, Facts(**_known(server, ending, is_newest=is_newest)))


def _ending_of_failure(server: ServerSnapshot, reason: Reason) -> Ending | None:
    """The ending that a server's failure is, or came with; None where it is another's."""
    ending = server.life.last_ending
    if ending is None or ending.launch_number != _newest_launch(server):
        return None
    # A start that was refused came after the end of the newest launch.
    is_earlier = server.life.management is not None and ending.reason is not reason
    return None if is_earlier or server.life.phase is Phase.REFUSED else ending


def _of_start(server: ServerSnapshot, reason: Reason) -> dict[str, Any]:
    """What is known of a start of a managed server, whether or not it came to a launch."""
    asked, phase = server.life.management, server.life.phase
    if asked is None:
        return {}
    is_left = phase is Phase.GAVE_UP or (phase in _RETRIED and server.policy.is_dry_run)
    known: dict[str, Any] = {
        "is_left_down": is_left,
        "model_before": _as_argument(asked.model_before),
    }
    trouble = asked.trouble
    if trouble is not None and trouble.reason is reason and trouble.holder:
        known["holder"] = trouble.holder
    model, sighting = wanted_model(server), server.sighting
    if model is not None and (sighting is None or sighting.command.model != model):
        known |= {"hub_id": "", "revision": "", "folder": ""} | _of_model(VllmCommand(model=model))
    return known | _of_url(server.url)


def _of_url(text: str) -> dict[str, str]:
    try:
        url = parse_server_url(text)
    except ValueError:
        return {}
    return {} if url.host is None else {"port": str(url.port)}


def _as_argument(model: str | None) -> str:
    """A model that people can copy into a shell; empty for one that must not be shown in full."""
    return "" if model is None or shown_model(model) != model else shlex.quote(model)


def _newest_launch(server: ServerSnapshot) -> int | None:
    return None if server.life.launch is None else server.life.launch.number


def _known(server: ServerSnapshot, ending: Ending | None, *, is_newest: bool) -> dict[str, Any]:
    known: dict[str, Any] = {}
    if server.life.management is not None:
        known["server"] = shlex.quote(server.name)
    if ending is not None:
        known["holder"] = ending.holder
        known["logged"] = shlex.quote(server.name) if ending.log else ""
        xids = (match[1] for fact in ending.evidence if (match := _XID.match(fact)))
        known["xid"] = next(xids, "")
    if is_newest:
        known |= _of_command(server) | _of_load(server)
    return known


def _of_command(server: ServerSnapshot) -> dict[str, str]:
    sighting, launch = server.sighting, server.life.launch
    if sighting is None or launch is None or sighting.process != launch.process:
        return {}
    command = sighting.command
    port = "" if command.uds is not None or command.is_headless else str(command.port)
    return {"port": port} | _of_model(command)


def _of_model(command: VllmCommand) -> dict[str, str]:
    model = command.model or ""
    if "://" in model:
        return {}  # an object store, maybe with credentials
    found = divide_model(model)
    if found is None:
        return {"folder": model}
    revision = command.revision or ""
    return {"hub_id": found[0], "revision": revision if _REVISION.fullmatch(revision) else ""}


def _of_load(server: ServerSnapshot) -> dict[str, Any]:
    load, policy = watched_load(server.life), server.policy
    if load is None:
        return {}
    seen = load.seen_progress
    start, limit = policy.start_timeout_seconds, policy.load_timeout_seconds
    is_early = not load.has_engine and start <= limit
    return {
        "stage": load.stage,
        "quiet": "" if seen is None else f"{load.look.at.since(seen):.0f} s",
        "limit": f"{start if is_early else limit:g} s",
        "limit_key": f"servers[].start.{'start_timeout' if is_early else 'load_timeout'}",
    }
