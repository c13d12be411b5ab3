"""Runs what touches the host on the agent's event loop and on the standard one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import uvloop

from tests.host.certificates import Authority, make_authority

if TYPE_CHECKING:
    from collections.abc import Callable

# What they test reads files and threads, or puts together what is tested on both loops itself
# (pidfds, connections, probes): the loop only runs it.
ON_ONE_LOOP = (
    "host/gpu/",
    "host/load/",
    "host/test_discovery.py",
    "host/test_journal.py",
    "host/test_launch_log.py",
    "host/test_local_launch.py",
    "host/test_local_server.py",
)


def pytest_asyncio_loop_factories(item: pytest.Item):
    """Name the loops; uvloop differs in errors, close and cancellation."""
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
        "uvloop": uvloop.new_event_loop
    }
    if not any(part in item.nodeid for part in ON_ONE_LOOP):
        factories["asyncio"] = asyncio.new_event_loop
    return factories


@pytest.fixture(scope="session")
def authority(tmp_path_factory) -> Authority:
    """Certificates for TLS; a test that asks for them needs the openssl program."""
    return make_authority(tmp_path_factory.mktemp("certificates"))
