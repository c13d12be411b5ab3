"""What `doctor` finds about loads: what shows them, and what is missing where a sight is. Pure."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vllm_agent.cli.finding import Finding, Level
from vllm_agent.cli.load_bar import load_of
from vllm_agent.observations import SightKind, Witness

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from vllm_agent.config.model import Config
    from vllm_agent.expose.json_view import ServerView

LOST_FOR_LOADS: Final[Mapping[str, str]] = MappingProxyType(
    {
        SightKind.LOG: "a failure has a less exact reason, and a load shows fewer stages",
        SightKind.FDS: "the files that it maps and reads and its model cache are not visible "
        "either: load progress comes from its log, its components and its GPU memory",
    }
)
"""What a load and its failure are missing, by the sight that is."""

READ_ENVIRON: Final = "discovery.read_environ: true, then restart the agent"

NOT_TOLD_FROM_A_HANG: Final = "it is not told from one that hangs, and never called stalled"

_MOVING: Final = frozenset({Witness.SHARDS, Witness.IO, Witness.LOG})
"""Without one of these nobody would see a load move, and it is never called stalled."""

_ABOUT: Final = "load"


def load_findings(servers: Iterable[ServerView]) -> Iterator[Finding]:
    """What shows the load of each server that loads now."""
    for server in servers:
        load = load_of(server)
        if load is None:
            continue
        telling = [one["witness"] for one in load["witnesses"] if one["told"] is not None]
        shown = f"the load of {server['name']} shows in {', '.join(telling) or 'nothing'}"
        if _MOVING.isdisjoint(telling):
            yield Finding(Level.NOTE, _ABOUT, f"{shown}: {NOT_TOLD_FROM_A_HANG}")
        else:
            yield Finding(Level.OK, _ABOUT, shown)


def configured_findings(config: Config) -> Iterator[Finding]:
    """What the configuration keeps from being seen of a load."""
    if not config.discovery.read_environ:
        text = (
            "discovery.read_environ is false: where a server keeps its model and its compiled code "
            "is known only from its command line, so most downloads and compilations are not seen"
        )
        yield Finding(Level.NOTE, _ABOUT, text, READ_ENVIRON)
