"""A thread for one function that may hang."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from vllm_agent.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

_Result = TypeVar("_Result")


async def in_thread(function: Callable[[], _Result], name: str) -> _Result:
    """What a function returns or raises; its thread does not keep the agent from ending."""
    worker = Worker(name)
    try:
        return await worker.submit(function)
    finally:
        worker.stop()
