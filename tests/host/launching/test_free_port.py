"""Whether a server can listen where it is told to: real sockets of real processes."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.host.launching.plans import a_plan, some_patience
from vllm_agent.host.launching import free_port as module
from vllm_agent.host.launching.free_port import CONNECT_SECONDS, lacks_port, remove_left_socket
from vllm_agent.host.launching.refusal import Refusal
from vllm_agent.host.proc import Proc
from vllm_agent.lifecycle.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

BINDING = """
import socket, sys
sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.bind(("127.0.0.1", int(sys.argv[-1])))
print(flush=True)
sys.stdin.read()
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def said_of(*flags: str) -> Refusal | None:
    with some_patience() as patience:
        return await lacks_port(a_plan(*flags), Proc(), patience)


async def said_of_port(port: int, host: str = "127.0.0.1") -> Refusal | None:
    return await said_of("--host", host, "--port", str(port))


@contextlib.contextmanager
def loading(*arguments: str) -> Iterator[int]:
    """A process with these arguments that has bound the last of them, and does not listen."""
    with subprocess.Popen(
        arguments,
        executable=sys.executable,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.communicate()


async def test_a_free_port():
    assert await said_of_port(free_port()) is None
    assert await said_of("--port", str(free_port())) is None
    assert await said_of_port(free_port(), "::1") is None


async def test_one_that_somebody_listens_on_is_taken_by_that_process():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        refusal = await said_of_port(port)
        assert refusal is not None
        assert refusal.reason is Reason.PORT_IN_USE
        assert refusal.detail == f"port {port} of 127.0.0.1 is taken"
        assert refusal.holder.endswith(f"(PID {os.getpid()})")
        everywhere = await said_of("--port", str(port))
        assert everywhere is not None
        assert everywhere.detail == f"port {port} of all addresses is taken"


async def test_what_listens_at_another_address_is_in_nobodys_way():
    with socket.create_server(("127.0.0.2", 0)) as sock:
        assert await said_of_port(sock.getsockname()[1]) is None


async def test_an_address_of_ipv6():
    try:
        sock = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6")
    with sock:
        assert await said_of_port(sock.getsockname()[1], "::1") is not None


async def test_a_port_is_not_shared_with_a_stranger_who_would():
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as sock:
        assert await said_of_port(sock.getsockname()[1]) is not None


async def test_a_listener_that_may_not_be_looked_into_is_known_by_its_user(monkeypatch):
    monkeypatch.setattr(module, "port_holder", lambda *_: "")
    with socket.create_server(("127.0.0.1", 0)) as sock:
        refusal = await said_of_port(sock.getsockname()[1])
    assert refusal is not None
    assert refusal.holder == f"a process of user {pwd.getpwuid(os.geteuid()).pw_name}"


async def test_a_port_whose_connections_have_just_closed_is_free():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            served, _ = server.accept()
            served.close()  # the server's end is the one that waits
    with socket.socket() as strict, pytest.raises(OSError, match="in use"):
        strict.bind(("127.0.0.1", port))
    assert await said_of_port(port) is None


async def test_a_vllm_that_loads_has_bound_its_port_and_is_named():
    port = free_port()
    with loading("python3", "-c", BINDING, str(port)):
        refusal = await said_of_port(port)
        assert refusal is not None
        assert refusal.detail == (
            f"port {port} of 127.0.0.1 is taken by a process that does not listen yet, "
            "as a vLLM that loads"
        )
        assert refusal.holder == ""


async def test_a_vllm_that_loads_is_named(tmp_path):
    port = free_port()
    script = tmp_path / "vllm"
    script.write_text(BINDING)
    line = ("python3", str(script), "serve", "org/name", "--port")
    with loading(*line, str(free_port())), loading(*line, str(port)) as pid:
        refusal = await said_of_port(port)
        assert refusal is not None
        assert refusal.holder.endswith(f"(PID {pid})")


async def test_what_cannot_be_bound_for_another_reason_is_left_to_vllm():
    assert await said_of_port(free_port(), "192.0.2.1") is None  # an address of nobody
    assert await said_of_port(free_port(), "\u00fc" * 64) is None


async def test_a_server_without_http_needs_no_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert await said_of("--headless", "--port", str(sock.getsockname()[1])) is None


async def test_a_unix_socket_that_is_not_there_is_free(tmp_path):
    assert await said_of("--uds", f"{tmp_path}/vllm.sock") is None
    assert await said_of("--uds", f"{tmp_path}/none/vllm.sock") is None


async def test_a_unix_socket_that_somebody_listens_on_is_taken(tmp_path):
    path = f"{tmp_path}/vllm.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        refusal = await said_of("--uds", path)
    assert refusal is not None
    assert refusal.detail == f"the socket {path} is taken"
    assert refusal.holder.endswith(f"(PID {os.getpid()})")


async def test_a_unix_socket_that_was_made_by_another_name_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("vllm.sock")
        sock.listen()
        refusal = await said_of("--uds", f"{tmp_path}/vllm.sock")
    assert refusal == Refusal(Reason.PORT_IN_USE, f"the socket {tmp_path}/vllm.sock is taken")


async def test_a_unix_socket_whose_queue_is_full_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.05)
    path = f"{tmp_path}/vllm.sock"
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.bind(path)
        sock.listen(0)
        stack.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
        refusal = await said_of("--uds", path)
    assert refusal is not None
    assert refusal.detail == f"the socket {path} is taken"


async def test_a_unix_socket_that_is_left_over_would_make_vllm_fail(tmp_path):
    path = f"{tmp_path}/vllm.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        refusal = await said_of("--uds", path)
        assert refusal is not None
        # Bound by a vLLM that loads: it is not to be removed.
        assert refusal.detail == f"the socket {path} is taken"
    text = (
        f"the socket {path} was left by a process that is gone: remove it, "
        "or vLLM fails with 'Address already in use'"
    )
    assert await said_of("--uds", path) == Refusal(Reason.PORT_IN_USE, text)


async def test_another_file_in_place_of_the_socket_is_told_of(tmp_path):
    path = tmp_path / "vllm.sock"
    path.write_text("")
    refusal = await said_of("--uds", str(path))
    assert refusal is not None
    assert refusal.detail == f"{path} is there and is no socket: remove it, or choose another path"


def test_a_socket_that_was_left_over_can_be_removed_and_nothing_else(tmp_path):
    path, other = f"{tmp_path}/vllm.sock", tmp_path / "other"
    other.write_text("")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        assert not remove_left_socket(path, Proc())
        sock.listen()
        assert not remove_left_socket(path, Proc())
    assert remove_left_socket(path, Proc())
    assert not os.path.lexists(path)
    assert not remove_left_socket(path, Proc())
    assert not remove_left_socket(str(other), Proc())
    assert other.exists()


def test_a_socket_that_answers_does_so_at_once():
    assert CONNECT_SECONDS <= 1.0
