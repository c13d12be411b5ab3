"""The page over HTTP: headers, compression, and what a scrape may cost the others."""

from __future__ import annotations

import asyncio
import gzip
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from tests.expose.reference import OwnProcess
from tests.expose.snapshots import NOW, agent, device, server
from vllm_agent.expose import exposition as exposition_module
from vllm_agent.expose.exposition import (
    GPUS_PER_SLICE,
    INLINE_GZIP_BYTES,
    SERVERS_PER_SLICE,
    Exposition,
)
from vllm_agent.expose.text_format import TextFormat

if TYPE_CHECKING:
    from aiohttp.test_utils import TestClient

    from vllm_agent.snapshot import AgentSnapshot

SMALL = agent(server())
LARGE = agent(*(server(f"server-{number}") for number in range(5 * SERVERS_PER_SLICE)))
MANY_GPUS = agent(server(), gpus=tuple(device(str(n)) for n in range(3 * GPUS_PER_SLICE)))
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}
PLAIN = {"Accept-Encoding": "identity"}


def served(snapshot: AgentSnapshot, max_concurrent: int = 40) -> tuple[web.Application, Exposition]:
    exposition = Exposition(
        lambda: snapshot,
        lambda: NOW,
        count_dropped=print,
        own_process=OwnProcess(),
        max_concurrent=max_concurrent,
    )
    app = web.Application()
    app.router.add_get("/metrics", exposition.handle)
    return app, exposition


@pytest.fixture
def scrape(aiohttp_client):
    """A client of an agent that shows the given snapshot, which decompresses nothing."""

    async def client(snapshot: AgentSnapshot, max_concurrent: int = 40) -> TestClient:
        app, _ = served(snapshot, max_concurrent)
        connected: TestClient = await aiohttp_client(app, auto_decompress=False)
        return connected

    return client


@pytest.mark.parametrize(
    ("headers", "content_type"),
    [
        ({}, "text/plain; version=0.0.4; charset=utf-8"),
        ({"Accept": "bogus"}, "text/plain; version=0.0.4; charset=utf-8"),
        (OPENMETRICS, "application/openmetrics-text; version=1.0.0; charset=utf-8"),
    ],
)
async def test_the_content_type_is_exact(scrape, headers, content_type):
    response = await (await scrape(SMALL)).get("/metrics", headers=headers | PLAIN)
    body = await response.read()
    assert response.status == 200
    assert response.headers.getall("Content-Type") == [content_type]
    assert "Content-Encoding" not in response.headers
    assert body.endswith(b"# EOF\n") == (headers is OPENMETRICS)


async def test_accept_headers_on_several_lines_are_one_list(scrape):
    headers = [("Accept", "text/plain;q=0.5"), ("Accept", OPENMETRICS["Accept"])]
    response = await (await scrape(SMALL)).get("/metrics", headers=headers)
    assert response.content_type == "application/openmetrics-text"


@pytest.mark.parametrize("snapshot", [SMALL, LARGE], ids=["inline", "in a thread"])
async def test_gzip_where_it_is_accepted(scrape, snapshot):
    client = await scrape(snapshot)
    plain = await (await client.get("/metrics", headers=PLAIN)).read()
    assert (len(plain) > INLINE_GZIP_BYTES) == (snapshot is LARGE)
    response = await client.get("/metrics", headers={"Accept-Encoding": "gzip"})
    assert response.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(await response.read()) == plain
    refused = await client.get("/metrics", headers={"Accept-Encoding": "gzip;q=0"})
    assert await refused.read() == plain


async def test_head_has_the_headers_and_no_body(scrape):
    client = await scrape(SMALL)
    size = len(await (await client.get("/metrics", headers=PLAIN)).read())
    response = await client.head("/metrics", headers=PLAIN)
    assert response.status == 200
    assert response.headers["Content-Length"] == str(size)
    assert await response.read() == b""


async def test_one_scrape_too_many_is_turned_away_and_the_next_is_served(scrape):
    client = await scrape(LARGE, max_concurrent=2)
    responses = await asyncio.gather(*(client.get("/metrics") for _ in range(3)))
    assert sorted(response.status for response in responses) == [200, 200, 503]
    assert (await client.get("/metrics")).status == 200


async def test_a_scrape_that_fails_gives_its_place_back(aiohttp_client):
    def missing() -> AgentSnapshot:
        raise LookupError

    exposition = Exposition(missing, lambda: NOW, print, max_concurrent=1)
    app = web.Application()
    app.router.add_get("/metrics", exposition.handle)
    client = await aiohttp_client(app)
    assert [(await client.get("/metrics")).status for _ in range(2)] == [500, 500]


@pytest.mark.parametrize(
    ("snapshot", "slices"), [(LARGE, 5), (MANY_GPUS, 3)], ids=["servers", "GPUs"]
)
async def test_others_get_their_turn_between_slices(snapshot, slices):
    """A state change waits for one slice of servers or GPUs, not for the whole page."""
    _, exposition = served(snapshot)
    rendering = asyncio.create_task(exposition._render_in_slices(TextFormat.PROMETHEUS))
    turns = 0
    while not rendering.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= slices
    assert await rendering == exposition.render(TextFormat.PROMETHEUS, snapshot, NOW)


async def test_scrapes_side_by_side_of_changing_snapshots_do_not_mix(monkeypatch):
    monkeypatch.setattr(exposition_module, "SERVERS_PER_SLICE", 1)
    monkeypatch.setattr(exposition_module, "GPUS_PER_SLICE", 1)
    names = [f"server-{number}" for number in range(20)]
    gpus = tuple(device(str(number)) for number in range(20))
    snapshots = [
        agent(*(server(name, version=str(count)) for name in names), gpus=gpus[:count])
        for count in (1, 20, 2)
    ]
    upcoming = iter(snapshots)
    exposition = Exposition(lambda: next(upcoming), lambda: NOW, print, own_process=OwnProcess())
    pages = await asyncio.gather(
        *(exposition._render_in_slices(TextFormat.PROMETHEUS) for _ in snapshots)
    )
    for snapshot, page in zip(snapshots, pages, strict=True):
        alone = Exposition(agent, lambda: NOW, print, own_process=OwnProcess())
        assert page == alone.render(TextFormat.PROMETHEUS, snapshot, NOW)
