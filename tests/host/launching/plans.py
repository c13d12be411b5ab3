"""Launches as they are planned, and a patience that ends with its test."""

from __future__ import annotations

import contextlib
import os
import pwd
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vllm_agent.host.launching.asking import patience
from vllm_agent.host.launching.plan import LaunchPlan
from vllm_agent.host.launching.user import User
from vllm_agent.host.vllm_argv import parse_command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_agent.host.patience import Patience

DEADLINE_SECONDS = 20.0
HOME = "/nonexistent/home"


def a_plan(
    *flags: str, model: str = "org/name", command: str = "vllm", **changes: Any
) -> LaunchPlan:
    """`env` is added to its environment, which is otherwise almost empty."""
    arguments = (command, "serve", model, *flags)
    environ = {"PATH": "/nonexistent", "HOME": HOME, **changes.pop("env", {})}
    values: dict[str, Any] = {
        "server": "llama",
        "launch_id": "1",
        "url": "http://127.0.0.1:8000",
        "gpu_memory_utilization": 0.9,
        "command": parse_command(("vllm", "serve", model, *flags), lambda _: {}),
    }
    return LaunchPlan(
        model=model,
        arguments=arguments,
        environ=MappingProxyType(environ),
        **(values | changes),
    )


def somebody(uid: int = 12_345, *groups: int) -> User:
    """A user of no files."""
    return User("somebody", uid, uid, (uid, *groups), "/nonexistent", "/bin/sh")


def own_name() -> str:
    """Who runs the tests: as root, a launch has to ask for it."""
    return pwd.getpwuid(os.geteuid()).pw_name


@contextlib.contextmanager
def some_patience() -> Iterator[Patience]:
    """Closed at the end."""
    made = patience()
    try:
        yield made
    finally:
        made.close()
