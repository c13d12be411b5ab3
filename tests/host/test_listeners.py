"""Who holds a port, read from the real /proc."""

from __future__ import annotations

import os
import socket

from vllm_agent.host.listeners import find_listener


def test_the_process_that_listens_is_found():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = find_listener(listener.getsockname()[1])
    assert found is not None
    assert found.pid == os.getpid()
    assert str(found) == f"{found.command} (PID {found.pid})"


def test_a_port_that_is_bound_and_does_not_listen_has_no_listener():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert find_listener(bound.getsockname()[1]) is None


def test_an_ipv6_listener_is_found():
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        assert find_listener(listener.getsockname()[1]) is not None


def test_a_proc_that_cannot_be_read_has_no_listeners(tmp_path):
    assert find_listener(80, proc=tmp_path) is None
