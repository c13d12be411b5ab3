"""Whether the disks of a launch have room: real ones, and some that are made smaller."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.host.launching.plans import DEADLINE_SECONDS, some_patience
from vllm_agent.host.hf_hub.completeness import Completeness, Presence
from vllm_agent.host.hf_hub.hub_variables import PUBLIC_HUB
from vllm_agent.host.hf_hub.identity import HubRepo
from vllm_agent.host.launching import disk_room as module
from vllm_agent.host.launching.disk_room import (
    HUB_SECONDS,
    MIN_FREE_BYTES,
    free_bytes_at,
    lacks_disk,
)
from vllm_agent.host.launching.model_at_hand import CachedModel
from vllm_agent.host.launching.refusal import Refusal
from vllm_agent.host.model_environment import ModelEnvironment
from vllm_agent.lifecycle.reasons import Reason

GIB = 2**30
CACHE = "/cache"
LOGS = Path("/logs")
INCOMPLETE = Completeness(Presence.INCOMPLETE, (), "it lacks a.safetensors")


@dataclass
class FakeHub:
    """A Hub that tells a size, or hangs if it is None."""

    size_bytes: int | None
    endpoint: str = PUBLIC_HUB
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    async def ask(self, repo: str, revision: str | None = None) -> int | None:
        self.asked.append((repo, revision))
        if self.size_bytes is None:
            await asyncio.Event().wait()
        return self.size_bytes


@pytest.fixture
def free(monkeypatch) -> dict[str, int | None]:
    """The free bytes at each path."""
    disks: dict[str, int | None] = {str(LOGS): GIB, CACHE: GIB}
    monkeypatch.setattr(module, "free_bytes_at", disks.__getitem__)
    return disks


def a_model(completeness: Completeness = INCOMPLETE, **changes: object) -> CachedModel:
    values = {
        "repo": HubRepo("org/name"),
        "revision": "main",
        "folder": CACHE,
        "environment": ModelEnvironment(),
        "can_ask": True,
    }
    return CachedModel(completeness=completeness, **(values | changes))  # type: ignore[arg-type]


async def said_of(model: CachedModel | None, hub: FakeHub | None = None) -> Refusal | None:
    with some_patience() as patience:
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await lacks_disk(LOGS, model, hub, patience)  # type: ignore[arg-type]


async def test_the_log_needs_a_little_room(free):
    free[str(LOGS)] = MIN_FREE_BYTES
    assert await said_of(None) is None
    free[str(LOGS)] = MIN_FREE_BYTES - 1
    text = f"the disk of the server's log has 0.0 GiB free ({LOGS})"
    assert await said_of(None) == Refusal(Reason.DISK_FULL, text)
    free[str(LOGS)] = None
    assert await said_of(None) is None


async def test_what_is_missing_must_fit(free):
    model = a_model(total_bytes=3 * GIB, done_bytes=2 * GIB)
    assert await said_of(model) is None
    free[CACHE] = GIB - 1
    text = "the disk of the model cache has 1.0 GiB free, and org/name still needs 1.0 GiB (/cache)"
    assert await said_of(model) == Refusal(Reason.DISK_FULL, text)
    free[CACHE] = None
    assert await said_of(model) is None


@pytest.mark.parametrize(
    "model", [None, a_model(Completeness(Presence.COMPLETE)), a_model(is_offline=True)]
)
async def test_a_full_cache_is_enough_for_what_needs_no_download(free, model):
    free[CACHE] = 0
    assert await said_of(model, FakeHub(9 * GIB)) is None


async def test_the_hub_tells_what_the_cache_does_not(free):
    hub = FakeHub(2 * GIB)
    assert await said_of(a_model(done_bytes=GIB), hub) is None
    refusal = await said_of(a_model(revision="v2"), hub)
    assert refusal is not None
    assert "org/name still needs 2.0 GiB" in refusal.detail
    assert hub.asked == [("org/name", "main"), ("org/name", "v2")]


@pytest.mark.parametrize(
    "model",
    [
        a_model(total_bytes=1),
        a_model(can_ask=False),
        a_model(Completeness(Presence.UNKNOWN)),
        a_model(environment=ModelEnvironment(hf_endpoint="https://hub.example")),
    ],
)
async def test_the_hub_is_asked_only_where_it_must_and_may_be(free, model):
    hub = FakeHub(9 * GIB)
    assert await said_of(model, hub) is None
    assert not hub.asked


async def test_a_hub_that_is_silent_holds_nothing_up(free, monkeypatch):
    monkeypatch.setattr(module, "HUB_SECONDS", 0.01)
    assert await said_of(a_model(), FakeHub(None)) is None
    free[CACHE] = MIN_FREE_BYTES - 1
    text = "the disk of the model cache has 0.0 GiB free (/cache)"
    for hub in (FakeHub(None), None):
        assert await said_of(a_model(), hub) == Refusal(Reason.DISK_FULL, text)


def test_the_room_at_a_path_is_that_of_the_nearest_folder_above(tmp_path):
    disk = os.statvfs(tmp_path)
    for path in (str(tmp_path), f"{tmp_path}/a/b/c"):
        free_bytes = free_bytes_at(path)
        assert free_bytes is not None
        # Others write meanwhile.
        assert abs(free_bytes - disk.f_bavail * disk.f_frsize) < GIB


def test_what_tells_no_size_is_unknown(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    assert free_bytes_at("/proc") is None
    assert free_bytes_at(f"{tmp_path}/file/below") is None
    assert free_bytes_at("none") is None
    full = SimpleNamespace(f_bavail=0, f_frsize=4096, f_blocks=10)
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    assert free_bytes_at(str(tmp_path)) == 0


def test_bounds():
    assert HUB_SECONDS <= 5.0
    assert MIN_FREE_BYTES >= 2**20
