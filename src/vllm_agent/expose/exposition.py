"""The metrics page: every family of the snapshot, rendered for a scraper.

A scrape shares the event loop with the probes, so it works in slices and lets others in between.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from itertools import repeat
from typing import TYPE_CHECKING, Final, Generic, TypeAlias

from aiohttp import hdrs, web
from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from vllm_agent.expose.family import ServerMoment, Subject, label_value
from vllm_agent.expose.metric_families import (
    AGENT_FAMILIES,
    GPU_FAMILIES,
    MOMENT_FAMILIES,
    SERVER_FAMILIES,
)
from vllm_agent.expose.negotiation import accepts_gzip, choose_format
from vllm_agent.expose.text_format import OPENMETRICS_END, FamilyText, TextFormat, header

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from prometheus_client.registry import Collector

    from vllm_agent.expose.family import Family
    from vllm_agent.observations import Instant
    from vllm_agent.snapshot import AgentSnapshot, GpuSnapshot, ServerSnapshot

    _GpuLabels: TypeAlias = tuple[str, str]

MAX_CONCURRENT_SCRAPES: Final = 40
"""The default of node_exporter's --web.max-requests."""
SERVERS_PER_SLICE: Final = 16
"""About 1 ms of work, at 50 µs for a server that changed: nothing waits longer for a scrape."""
GPUS_PER_SLICE: Final = 32
"""Less than 1 ms of work, at 20 µs for a device that changed; a host with MIG may have 56."""
GZIP_LEVEL: Final = 1
"""The pages of 200 servers: 734 kB become 41 kB in 1.1 ms; level 6 makes it 34 kB in 3.0 ms."""
INLINE_GZIP_BYTES: Final = 128 * 1024
"""Compressed in 0.3 ms. A page of 8 servers and 8 GPUs has 73 kB, and a thread, which has to wait
for its turn, made it later by 0.1 ms."""
_GZIP_WINDOW_BITS: Final = zlib.MAX_WBITS + 16
"""zlib.h: 16 more asks for a gzip header and trailer."""
DROPPED_FAMILY: Final = "metric_family"
DROPPED_GPU: Final = "gpu"

_LOG = logging.getLogger(__name__)


class _SteadyText(Generic[Subject]):
    """The lines of one subject, a block per family; kept while its snapshot is the same object."""

    __slots__ = ("_blocks", "_subject", "_texts")

    def __init__(self, families: Iterable[Family[Subject]], *subject_values: str) -> None:
        self._texts = tuple(FamilyText(family, *subject_values) for family in families)
        self._subject: Subject | None = None
        self._blocks: tuple[str, ...] = ()

    def blocks(self, subject: Subject, isolated: _Isolation) -> tuple[str, ...]:
        if subject is not self._subject:
            self._blocks = tuple(isolated.render(text, subject) for text in self._texts)
            self._subject = subject
        return self._blocks


class _ServerText:
    """The lines of one server: those that change with its snapshot, and with the clock."""

    __slots__ = ("_moment_texts", "_steady")

    def __init__(self, name: str) -> None:
        label = label_value(name)
        self._steady = _SteadyText(SERVER_FAMILIES, label)
        self._moment_texts = tuple(FamilyText(family, label) for family in MOMENT_FAMILIES)

    def blocks(self, server: ServerSnapshot, now: Instant, isolated: _Isolation) -> Sequence[str]:
        moment = ServerMoment(server, now)
        return (
            *self._steady.blocks(server, isolated),
            *(isolated.render(text, moment) for text in self._moment_texts),
        )


class _Isolation:
    """Keeps an error in one family away from the rest of the page: counted, and logged once."""

    def __init__(self, count_dropped: Callable[[str], None]) -> None:
        self._count_dropped = count_dropped
        self._logged: set[str] = set()

    def render(self, text: FamilyText[Subject], subject: Subject) -> str:
        """The lines of the family, or none if it raises."""
        try:
            return text.render(subject)
        except Exception:  # noqa: BLE001 - whatever a family raises, the others are still wanted
            self.drop(text.family.name)
            return ""

    def drop(self, family_name: str) -> None:
        """Counts what was left out; called while its error is handled."""
        self._count_dropped(DROPPED_FAMILY)
        if family_name not in self._logged:
            self._logged.add(family_name)
            _LOG.exception("left %s out of the metrics page, which is otherwise sent", family_name)


class Exposition:
    """Renders and serves the metrics page.

    `current` gives the snapshot to show and `clock` the time up to which counters of time run.
    `count_dropped` is told the kind of whatever had to be left out.
    """

    def __init__(
        self,
        current: Callable[[], AgentSnapshot],
        clock: Callable[[], Instant],
        count_dropped: Callable[[str], None],
        *,
        own_process: Collector | None = None,
        max_concurrent: int = MAX_CONCURRENT_SCRAPES,
    ) -> None:
        self._current = current
        self._clock = clock
        self._own_process = own_process or ProcessCollector(registry=None)
        self._max_concurrent = max_concurrent
        self._in_flight = 0
        self._count_dropped = count_dropped
        self._isolated = _Isolation(count_dropped)
        self._server_texts: dict[str, _ServerText] = {}
        self._gpu_texts: dict[_GpuLabels, _SteadyText[GpuSnapshot]] = {}
        self._agent_texts = tuple(FamilyText(family) for family in AGENT_FAMILIES)
        self._server_headers = {
            text_format: (
                *(header(family, text_format) for family in SERVER_FAMILIES),
                *(header(family, text_format) for family in MOMENT_FAMILIES),
            )
            for text_format in TextFormat
        }
        self._gpu_headers = {
            text_format: tuple(header(family, text_format) for family in GPU_FAMILIES)
            for text_format in TextFormat
        }

    def render(self, text_format: TextFormat, snapshot: AgentSnapshot, now: Instant) -> bytes:
        """The whole page at once."""
        servers = [self._server_row(server, now) for server in snapshot.servers]
        devices = self._distinct(snapshot.gpus)
        gpus = {labels: self._gpu_row(labels, device) for labels, device in devices}
        return self._page(text_format, snapshot, servers, gpus)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answers GET and HEAD; 503 where too many scrapes are already under way."""
        if self._in_flight >= self._max_concurrent:
            return web.Response(
                status=503, text=f"{self._max_concurrent} scrapes are under way; try again later.\n"
            )
        self._in_flight += 1
        try:
            return await self._respond(request)
        finally:
            self._in_flight -= 1

    async def _respond(self, request: web.Request) -> web.Response:
        text_format = choose_format(",".join(request.headers.getall(hdrs.ACCEPT, ())))
        headers = {hdrs.CONTENT_TYPE: text_format.value}
        body = await self._render_in_slices(text_format)
        if accepts_gzip(",".join(request.headers.getall(hdrs.ACCEPT_ENCODING, ()))):
            headers[hdrs.CONTENT_ENCODING] = "gzip"
            body = await _gzipped(body)
        return web.Response(body=body, headers=headers)

    async def _render_in_slices(self, text_format: TextFormat) -> bytes:
        snapshot, now = self._current(), self._clock()
        servers: list[Sequence[str]] = []
        for start in range(0, len(snapshot.servers), SERVERS_PER_SLICE):
            if start:
                await asyncio.sleep(0)
            part = snapshot.servers[start : start + SERVERS_PER_SLICE]
            servers += [self._server_row(server, now) for server in part]
        gpus: dict[_GpuLabels, Sequence[str]] = {}
        devices = self._distinct(snapshot.gpus)
        for start in range(0, len(devices), GPUS_PER_SLICE):
            await asyncio.sleep(0)
            for labels, device in devices[start : start + GPUS_PER_SLICE]:
                gpus[labels] = self._gpu_row(labels, device)
        return self._page(text_format, snapshot, servers, gpus)

    def _server_row(self, server: ServerSnapshot, now: Instant) -> Sequence[str]:
        text = self._server_texts.get(server.name)
        if text is None:
            text = self._server_texts[server.name] = _ServerText(server.name)
        return text.blocks(server, now, self._isolated)

    def _gpu_row(self, labels: _GpuLabels, device: GpuSnapshot) -> Sequence[str]:
        text = self._gpu_texts.get(labels)
        if text is None:
            text = self._gpu_texts[labels] = _SteadyText(GPU_FAMILIES, *labels)
        return text.blocks(device, self._isolated)

    def _distinct(self, devices: Iterable[GpuSnapshot]) -> Sequence[tuple[_GpuLabels, GpuSnapshot]]:
        """The devices by their labels; of equal ones the first, for two would spoil the scrape."""
        found: dict[_GpuLabels, GpuSnapshot] = {}
        for device in devices:
            labels = (label_value(device.gpu.index), label_value(device.gpu.uuid))
            if labels in found:
                self._count_dropped(DROPPED_GPU)
            else:
                found[labels] = device
        return tuple(found.items())

    def _page(
        self,
        text_format: TextFormat,
        snapshot: AgentSnapshot,
        servers: Sequence[Sequence[str]],
        gpus: Mapping[_GpuLabels, Sequence[str]],
    ) -> bytes:
        self._forget_gone(snapshot, gpus)
        parts = [
            *_by_family(self._server_headers[text_format], servers),
            *_by_family(self._gpu_headers[text_format], tuple(gpus.values())),
        ]
        for text in self._agent_texts:
            parts.append(header(text.family, text_format))
            parts.append(self._isolated.render(text, snapshot))
        parts.append(self._own_process_text(text_format))
        if text_format is TextFormat.OPENMETRICS:
            parts.append(OPENMETRICS_END)
        # A name from outside may hold what UTF-8 cannot express; it must not cost the page.
        return "".join(parts).encode("utf-8", "replace")

    def _own_process_text(self, text_format: TextFormat) -> str:
        write = (
            generate_latest if text_format is TextFormat.PROMETHEUS else openmetrics.generate_latest
        )
        try:
            return write(self._own_process).decode().removesuffix(OPENMETRICS_END)
        except Exception:  # noqa: BLE001 - /proc may be unreadable; the servers are still wanted
            self._isolated.drop("process_*")
            return ""

    def _forget_gone(self, snapshot: AgentSnapshot, gpus: Collection[_GpuLabels]) -> None:
        if len(self._server_texts) > len(snapshot.servers):
            names = {server.name for server in snapshot.servers}
            self._server_texts = {
                name: text for name, text in self._server_texts.items() if name in names
            }
        if len(self._gpu_texts) > len(gpus):
            self._gpu_texts = {
                labels: text for labels, text in self._gpu_texts.items() if labels in gpus
            }


def _by_family(headers: Iterable[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The blocks of each family after its header, where every row has a block per family."""
    columns: Iterable[Sequence[str]] = zip(*rows, strict=True) if rows else repeat(())
    parts: list[str] = []
    for family_header, column in zip(headers, columns, strict=False):
        parts.append(family_header)
        parts += column
    return parts


async def _gzipped(body: bytes) -> bytes:
    if len(body) <= INLINE_GZIP_BYTES:
        return zlib.compress(body, GZIP_LEVEL, _GZIP_WINDOW_BITS)
    return await asyncio.to_thread(zlib.compress, body, GZIP_LEVEL, _GZIP_WINDOW_BITS)
