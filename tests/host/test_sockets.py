"""Listening sockets, their holders and their addresses, of real processes."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time

import pytest

from tests.host.fake_proc import FakeProc
from vllm_agent.config.url import parse_server_url
from vllm_agent.host import sockets
from vllm_agent.host.proc import Proc
from vllm_agent.host.sockets import (
    MAX_ADDRESSES,
    MAX_SOCKETS_PER_PROCESS,
    Ownership,
    PortUses,
    addresses,
    is_same_network,
    is_unix_bound,
    listening,
    listening_tcp,
    listening_unix,
    port_uses,
    server_url,
)
from vllm_agent.observations import Listener, VllmCommand

PROC = Proc()
ME = os.getpid()
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes namespaces")

FIB_TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
Local:
  +-- 0.0.0.0/0 3 0 5
     +-- 10.9.0.0/16 2 0 2
        |-- 10.9.0.0
           /16 link UNICAST
        |-- 10.9.0.7
           /32 host LOCAL
        |-- 10.9.255.255
           /32 link BROADCAST
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.1
           /32 host LOCAL
     |-- 169.254.3.4
        /32 host LOCAL
     |-- 172.17.0.2
        /32 host LOCAL
"""
ROUTE = """\
Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth1	00000000	010011AC	0003	0	0	0	00000000	0	0	0
eth1	000011AC	00000000	0001	0	0	0	0000FFFF	0	0	0
eth0	0000090A	00000000	0001	0	0	0	0000FFFF	0	0	0
"""
IF_INET6 = """\
fe8000000000000000fc00fffe000001 04 40 20 80     eth0
fd000000000000000000000000000002 04 40 00 82     eth0
fd000000000000000000000000000003 04 40 00 c2     eth0
00000000000000000000000000000001 01 80 10 80       lo
not a line
"""


@contextlib.contextmanager
def program(*words: str, **options):
    """A process that is there once it has printed a line."""
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, **options) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline()
        finally:
            process.kill()


def as_nobody(pid: int, expression: str) -> str:
    """What a user without any right says of a process."""
    script = f"""
import os
from vllm_agent.host.proc import Proc
from vllm_agent.host.sockets import *
os.setgroups([]); os.setgid(65534); os.setuid(65534)
pid = {pid}
print({expression})
"""
    words = [sys.executable, "-c", script]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


LISTENING = """
import socket, sys, time
listener = socket.create_server((sys.argv[1], 0))
print(listener.getsockname()[1], flush=True)
time.sleep(60)
"""


@pytest.fixture
def elsewhere(tmp_path) -> FakeProc:
    """PID 7 in another network namespace, with addresses."""
    fake = FakeProc(tmp_path)
    for pid in (7, ME):
        (tmp_path / f"{pid}/net").mkdir(parents=True)
        (tmp_path / f"{pid}/net/tcp").write_text("")
    net = tmp_path / "7/net"
    (net / "fib_trie").write_text(FIB_TRIE)
    (net / "if_inet6").write_text(IF_INET6)
    (net / "route").write_text(ROUTE)
    return fake


def test_only_a_socket_that_listens_is_found():
    with socket.socket() as own, socket.create_server(("127.0.0.1", 0)) as other:
        own.bind(("127.0.0.1", 0))
        port = own.getsockname()[1]
        assert listening_tcp(PROC, ME, port) == frozenset()
        own.listen()
        inode = os.fstat(own.fileno()).st_ino
        assert listening_tcp(PROC, ME, port) == {inode}
        with socket.create_connection(own.getsockname()):
            assert listening_tcp(PROC, ME, port) == {inode}
        assert listening_tcp(PROC, ME, other.getsockname()[1]) == {os.fstat(other.fileno()).st_ino}


def test_both_families_are_looked_through():
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        inode = os.fstat(listener.fileno()).st_ino
        assert listening_tcp(PROC, ME, listener.getsockname()[1]) == {inode}


def test_a_unix_socket_that_listens(tmp_path):
    path = tmp_path / "with space.sock"
    command = VllmCommand(uds=str(path))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert listening(PROC, ME, command) == frozenset()
        listener.listen()
        assert listening(PROC, ME, command) == {os.fstat(listener.fileno()).st_ino}
        assert listening_unix(PROC, ME, str(path)[1:]) == frozenset()


def test_a_headless_server_listens_nowhere():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert listening(PROC, ME, VllmCommand(port=port))
        assert not listening(PROC, ME, VllmCommand(port=port, is_headless=True))


def test_a_table_is_read_up_to_the_first_connection(tmp_path, monkeypatch):
    row = "   0: 0100007F:1F90 00000000:0000 {} 0:0 0:0 0 0 0 {} 1 0 100 0 0 10 0\n"
    fake = FakeProc(tmp_path)
    (tmp_path / "1/net").mkdir()
    table = tmp_path / "1/net/tcp"
    table.write_text("head\n" + row.format("0A", 5) + row.format("01", 6) + row.format("0A", 7))
    assert listening_tcp(fake.proc, 1, 8080) == {5}
    table.write_text("head\n" + "".join(row.format("0A", inode) for inode in range(100)))
    monkeypatch.setattr(sockets, "MAX_TABLE_BYTES", 5 + 10 * len(row.format("0A", 1)))
    assert len(listening_tcp(fake.proc, 1, 8080)) == 10
    table.write_text("head\nnonsense\n")
    assert listening_tcp(fake.proc, 1, 8080) == frozenset()


def test_whose_a_socket_is():
    with program(sys.executable, "-c", LISTENING, "127.0.0.1") as (process, port):
        inodes = listening_tcp(PROC, ME, int(port))
        ownership = Ownership(PROC)
        assert ownership.whose([ME, process.pid], inodes) is Listener.OWN
        assert ownership.whose([ME], inodes) is Listener.STRANGER
        assert ownership.whose([process.pid], frozenset()) is None


def test_an_owner_is_checked_again_without_a_search(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        inodes = {os.fstat(listener.fileno()).st_ino}
        ownership = Ownership(PROC)
        assert not ownership.is_as_before([ME])
        assert ownership.whose([ME], inodes) is Listener.OWN
        with monkeypatch.context() as searching:
            searching.setattr(PROC, "open_sockets", lambda pid: pytest.fail("searched again"))
            assert ownership.is_as_before([ME])
            assert not ownership.is_as_before([1])
    assert not ownership.is_as_before([ME])
    assert ownership.whose([ME], inodes) is Listener.STRANGER
    assert not ownership.is_as_before([ME])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert ownership.whose([ME], {os.fstat(listener.fileno()).st_ino}) is Listener.OWN


def test_a_process_that_is_gone_holds_nothing():
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert Ownership(PROC).whose([process.pid, ME], {1}) is Listener.STRANGER


@as_root
def test_whose_is_unknown_where_fds_may_not_be_read():
    assert as_nobody(ME, "Ownership(Proc()).whose([pid], {1})") == "None"


def test_sockets_looked_through_are_bounded(monkeypatch):
    endless = ((number, number) for number in range(10**9))
    monkeypatch.setattr(PROC, "open_sockets", lambda pid: endless)
    assert Ownership(PROC).whose([ME], {10**9}) is Listener.STRANGER
    assert next(endless)[0] == MAX_SOCKETS_PER_PROCESS


def test_own_network():
    assert is_same_network(PROC, ME) is True
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert is_same_network(PROC, process.pid) is None


@as_root
@pytest.mark.needs("unshare")
def test_another_network_is_told_by_any_user_and_read():
    words = ("unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh")
    script = (sys.executable, "-c", LISTENING, "0.0.0.0")
    with program(*words, *script) as (process, port):
        assert is_same_network(PROC, process.pid) is False
        assert as_nobody(process.pid, "is_same_network(Proc(), pid)") == "False"
        inodes = listening_tcp(PROC, process.pid, int(port))
        assert len(inodes) == 1
        assert listening_tcp(PROC, ME, int(port)) == frozenset()
        assert Ownership(PROC).whose([process.pid], inodes) is Listener.OWN
        assert addresses(PROC, process.pid) == ()
        assert server_url(PROC, process.pid, VllmCommand(port=int(port))) is None


@as_root
@pytest.mark.needs("unshare")
@pytest.mark.needs("ip")
def test_the_address_of_another_network_reaches_the_server():
    """A namespace with a cable to ours, as a container has one."""
    name = f"vt{ME % 100000}"
    words = ("unshare", "--net", "sh", "-c", 'read -r _; exec "$@"', "sh")
    script = (sys.executable, "-c", LISTENING, "0.0.0.0")
    with subprocess.Popen(
        [*words, *script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            while is_same_network(PROC, process.pid):
                time.sleep(0.01)
            inside = ["nsenter", "--net", "-t", str(process.pid)]
            for line in (
                f"ip link add {name} type veth peer eth0 netns {process.pid}".split(),
                ["ip", "addr", "add", "198.51.100.1/30", "dev", name],
                ["ip", "link", "set", name, "up"],
                [*inside, "ip", "addr", "add", "198.51.100.2/30", "dev", "eth0"],
                [*inside, "ip", "link", "set", "eth0", "up"],
            ):
                made = subprocess.run(line, capture_output=True, text=True, check=False)
                if made.returncode:
                    pytest.skip(f"{' '.join(line)}: {made.stderr.strip()}")
            process.stdin.write("\n")
            process.stdin.flush()
            port = int(process.stdout.readline())
            url = server_url(PROC, process.pid, VllmCommand(port=port))
            assert url == f"http://198.51.100.2:{port}"
            socket.create_connection(("198.51.100.2", port), timeout=5).close()
        finally:
            process.kill()


def test_addresses_best_first(elsewhere):
    assert addresses(elsewhere.proc, 7) == (
        "172.17.0.2",  # in the network of the default route
        "10.9.0.7",
        "fd00::2",
        "169.254.3.4",
    )
    assert addresses(elsewhere.proc, 8) == ()


def test_addresses_are_bounded(elsewhere):
    leaves = "".join(f"|-- 10.0.0.{n}\n/32 host LOCAL\n" for n in range(1, 100))
    (elsewhere.root / "7/net/fib_trie").write_text(leaves)
    assert len(addresses(elsewhere.proc, 7)) == MAX_ADDRESSES


@pytest.mark.parametrize(
    ("command", "url"),
    [
        (VllmCommand(), "http://127.0.0.1:8000"),
        (VllmCommand(host="0.0.0.0"), "http://127.0.0.1:8000"),
        (VllmCommand(host="::"), "http://[::1]:8000"),
        (VllmCommand(host="::1", port=9), "http://[::1]:9"),
        (VllmCommand(host="localhost"), "http://localhost:8000"),
        (VllmCommand(host="127.0.0.9", is_https=True), "https://127.0.0.9:8000"),
        (VllmCommand(host=os.uname().nodename), f"http://{os.uname().nodename.lower()}:8000"),
        # Addresses of others, which a command line may name as well.
        (VllmCommand(host="203.0.113.7"), None),
        (VllmCommand(host="169.254.169.254"), None),
        (VllmCommand(host="metadata.internal"), None),
        (VllmCommand(root_path="/llm/"), "http://127.0.0.1:8000/llm"),
        (VllmCommand(root_path="llm"), "http://127.0.0.1:8000/llm"),
        # what vLLM answers without, where it makes no URL
        (VllmCommand(root_path="/a b"), "http://127.0.0.1:8000"),
        (VllmCommand(root_path="/x/v1"), "http://127.0.0.1:8000"),
        (VllmCommand(is_headless=True), None),
        (VllmCommand(host="fe80::1%eth0"), None),
        (VllmCommand(host="a\nb"), None),
    ],
)
def test_where_to_connect_in_this_network(command, url):
    assert server_url(PROC, ME, command) == url
    if url is not None:
        assert str(parse_server_url(url)) == url


@pytest.mark.parametrize(
    ("command", "url"),
    [
        (VllmCommand(), "http://172.17.0.2:8000"),
        (VllmCommand(host="0.0.0.0", is_https=True), "https://172.17.0.2:8000"),
        (VllmCommand(host="::"), "http://172.17.0.2:8000"),
        (VllmCommand(host="10.9.0.7"), "http://10.9.0.7:8000"),
        (VllmCommand(host="fd00::2"), "http://[fd00::2]:8000"),
        (VllmCommand(host="pod-7"), "http://172.17.0.2:8000"),
        (VllmCommand(host="127.0.0.1"), None),
        (VllmCommand(host="::1"), None),
        (VllmCommand(host="localhost"), None),
    ],
)
def test_where_to_connect_in_another_network(elsewhere, command, url):
    assert server_url(elsewhere.proc, 7, command) == url


def test_a_unix_socket_of_this_file_system(tmp_path):
    assert server_url(PROC, ME, VllmCommand(uds="/run/vllm.sock")) == "unix:///run/vllm.sock"
    with program("sh", "-c", "echo; exec sleep 60", cwd=tmp_path) as (process, _):
        url = server_url(PROC, process.pid, VllmCommand(uds="vllm.sock"))
    assert url == f"unix://{tmp_path}/vllm.sock"


@as_root
@pytest.mark.needs("unshare")
def test_a_unix_socket_of_another_file_system(tmp_path):
    script = f"mount -t tmpfs none {tmp_path} && echo && exec sleep 60"
    with program("unshare", "--mount", "sh", "-c", script) as (process, _):
        url = server_url(PROC, process.pid, VllmCommand(uds=f"{tmp_path}/vllm.sock"))
        assert url == f"unix:///proc/{process.pid}/root{tmp_path}/vllm.sock"
        assert server_url(PROC, process.pid, VllmCommand(uds="/run/v.sock")) == "unix:///run/v.sock"


def test_a_socket_path_that_is_too_long_or_odd_is_nowhere():
    assert server_url(PROC, ME, VllmCommand(uds="/" + "x" * 200)) is None
    assert server_url(PROC, ME, VllmCommand(uds="/run/a b.sock")) is None


def test_this_host_has_the_addresses_that_it_says():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.254", 9))
        except OSError:
            pytest.skip("no route")
        assert probe.getsockname()[0] in addresses(PROC, ME)


def test_a_unix_socket_that_is_bound_is_known_before_it_listens(tmp_path):
    path = f"{tmp_path}/vllm.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        assert not is_unix_bound(PROC, ME, path)
        sock.bind(path)
        assert is_unix_bound(PROC, ME, path)
        assert not listening_unix(PROC, ME, path)
    assert not is_unix_bound(PROC, ME, path)


def test_what_the_tables_say_of_a_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        # A socket that is bound only is in no table.
        assert port_uses(PROC, ME, port) == PortUses(frozenset(), is_told=False)
        sock.listen()
        assert port_uses(PROC, ME, port) == PortUses(frozenset({os.geteuid()}), is_told=True)
        with socket.create_connection(("127.0.0.1", port)) as client:
            connected = port_uses(PROC, ME, client.getsockname()[1])
            assert connected == PortUses(frozenset(), is_told=True)


def test_in_a_table_that_is_not_read_to_its_end_there_may_be_anything(monkeypatch):
    monkeypatch.setattr(sockets, "MAX_TABLE_BYTES", 100)
    assert port_uses(PROC, ME, 1) == PortUses(frozenset(), is_told=True)
