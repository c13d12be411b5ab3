from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.store.values import Clock
from vllm_agent.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
async def open_store(state_dir: Path, clock: Clock) -> AsyncIterator[Callable[..., Awaitable]]:
    """Opens stores in the state directory and closes them in the end."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_one(directory: Path = state_dir) -> Store:
            store = await Store.open(directory, clock=clock)
            stack.push_async_callback(store.close)
            return store

        yield open_one


@pytest.fixture
def quick_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is down tries again at once, not in half a minute."""
    monkeypatch.setattr("vllm_agent.store.store.RETRY_SECONDS", 0.02)


@pytest.fixture
def quick_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk counts as hung after a moment, not after two seconds."""
    monkeypatch.setattr("vllm_agent.store.store.CALL_DEADLINE_SECONDS", 0.1)
