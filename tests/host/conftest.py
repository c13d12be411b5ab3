"""Runs what touches the host on the agent's event loop and on the standard one."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from tests.host.certificates import Authority, make_authority


def pytest_asyncio_loop_factories():
    """Name the loops; uvloop differs in errors, close and cancellation."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def authority(tmp_path_factory) -> Authority:
    """Certificates for TLS; a test that asks for them needs the openssl program."""
    return make_authority(tmp_path_factory.mktemp("certificates"))
