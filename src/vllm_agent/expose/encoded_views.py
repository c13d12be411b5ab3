"""Answers of the API as bytes, kept while what they show is the same."""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from vllm_agent.expose.gpu_view import gpus_view
from vllm_agent.expose.json_text import encode
from vllm_agent.expose.json_view import agent_view, server_view

if TYPE_CHECKING:
    from vllm_agent.snapshot import AgentSnapshot, ServerSnapshot

SERVERS_PER_SLICE: Final = 10
"""About 1 ms of work, at 110 µs for a server that changed: nothing waits longer for an answer."""

_ETAG_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class EncodedView:
    """A body and the entity tag that changes with it."""

    body: bytes
    etag: str


class EncodedViews:
    """The newest encoded answers. Snapshots are immutable: the same object has the same answer."""

    def __init__(self) -> None:
        self._servers: dict[str, tuple[ServerSnapshot, bytes]] = {}
        self._list = EncodedView(b"", "")

    def server(self, server: ServerSnapshot, agent: AgentSnapshot) -> EncodedView:
        """The answer on one server of `agent`."""
        self._forget_gone(agent)
        return _tagged(self._encoded(server))

    def gpus(self, agent: AgentSnapshot) -> EncodedView:
        """The answer that lists every GPU. It changes with nearly every look: nothing is kept."""
        return _tagged(encode(gpus_view(agent)))

    async def servers(self, agent: AgentSnapshot) -> EncodedView:
        """The answer that lists every server."""
        head = encode(agent_view(agent))
        # Collectors change without a new generation; `head` has the agent's start in it too, and
        # so tells this agent's generations from those of the agent before.
        etag = f"{agent.generation:x}-{zlib.crc32(head):08x}"
        if etag == self._list.etag:
            return self._list
        parts = []
        for index, server in enumerate(agent.servers):
            if index % SERVERS_PER_SLICE == SERVERS_PER_SLICE - 1:
                await asyncio.sleep(0)
            parts.append(self._encoded(server))
        self._forget_gone(agent)
        body = b'{"agent":' + head + b',"servers":[' + b",".join(parts) + b"]}\n"
        self._list = EncodedView(body, etag)
        return self._list

    def _encoded(self, server: ServerSnapshot) -> bytes:
        kept = self._servers.get(server.name)
        if kept is not None and kept[0] is server:
            return kept[1]
        body = encode(server_view(server))
        self._servers[server.name] = (server, body)
        return body

    def _forget_gone(self, agent: AgentSnapshot) -> None:
        if len(self._servers) > len(agent.servers):
            names = {server.name for server in agent.servers}
            self._servers = {n: kept for n, kept in self._servers.items() if n in names}


def _tagged(body: bytes) -> EncodedView:
    return EncodedView(body + b"\n", blake2b(body, digest_size=_ETAG_BYTES).hexdigest())
