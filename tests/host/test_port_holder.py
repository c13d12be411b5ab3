"""Who listens where a server wants to: real sockets of real processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

from vllm_agent.host.port_holder import port_holder
from vllm_agent.host.proc import Proc
from vllm_agent.observations import VllmCommand

if TYPE_CHECKING:
    from pathlib import Path

LISTENER = """
import socket, sys
sock = socket.create_server(("127.0.0.1", 0))
print(sock.getsockname()[1], flush=True)
sys.stdin.read()
"""


def test_the_process_that_listens_on_the_port_is_named():
    with subprocess.Popen(
        [sys.executable, "-c", LISTENER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        told = port_holder(Proc(), os.getpid(), VllmCommand(port=port))
        other.communicate()
    assert told.endswith(f"(PID {other.pid})")
    assert told.startswith("python")


def test_the_process_that_listens_on_a_unix_socket_is_named(tmp_path: Path):
    path = str(tmp_path / "vllm.sock")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        assert port_holder(Proc(), os.getpid(), VllmCommand(uds=path)) == ""
        sock.listen()
        assert f"(PID {os.getpid()})" in port_holder(Proc(), os.getpid(), VllmCommand(uds=path))


def test_of_a_process_that_has_ended_nothing_is_known():
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = VllmCommand(port=listener.getsockname()[1])
        assert port_holder(Proc(), ended.pid, command) == ""


def test_a_free_port_is_held_by_nobody():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        assert port_holder(Proc(), os.getpid(), VllmCommand(port=port)) == ""
    assert port_holder(Proc(), os.getpid(), VllmCommand(is_headless=True)) == ""
