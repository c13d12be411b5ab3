"""Where a local server listens, who holds that socket, and how to connect to it from here.

All but who holds a socket is readable by any user, of any network namespace: the files below
/proc/PID/net show the namespace of that process.
"""

from __future__ import annotations

import ipaddress
import itertools
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vllm_agent.config.url import parse_server_url
from vllm_agent.host.proc import read_small
from vllm_agent.observations import Listener

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from vllm_agent.host.proc import Proc
    from vllm_agent.observations import VllmCommand

MAX_TABLE_BYTES: Final = 1024 * 1024
"""Read of a table of sockets: 7,000 listening TCP sockets, or 15,000 unix ones."""

MAX_NET_FILE_BYTES: Final = 256 * 1024
"""Read of fib_trie, if_inet6 and route: a host with 500 bridges has 100 kB of them."""

MAX_ADDRESSES: Final = 8
"""Addresses given of one namespace: pods have one to three."""

MAX_SOCKETS_PER_PROCESS: Final = 4096
"""Sockets of a process that are looked through. A listening one is opened before those of its
clients, so it comes early."""

_CHUNK_BYTES: Final = 16 * 1024
_LISTEN: Final = b"0A"  # TCP_LISTEN in include/net/tcp_states.h
_ACCEPTS: Final = 0x10000  # __SO_ACCEPTCON in include/uapi/linux/net.h
_NOWHERE: Final = "00000000"
_GLOBAL_SCOPE: Final = 0x00  # IPV6_ADDR_ANY in include/net/ipv6.h, as if_inet6 shows a scope
_UNUSABLE: Final = 0x48  # IFA_F_TENTATIVE and IFA_F_DADFAILED in include/uapi/linux/if_addr.h
_LOOPBACK_OF_ALL: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  named, not bound


@dataclass(frozen=True, slots=True)
class PortUses:
    """What is known of a port: `listeners` are the users whose sockets listen there.

    `is_told` is whether there are, or may be, sockets that listen, are connected or are closing.
    One that is bound and no more is in no table.
    """

    listeners: frozenset[int]
    is_told: bool


def is_same_network(proc: Proc, pid: int) -> bool | None:
    """Whether a process is in the agent's network namespace; None if it is gone.

    Each namespace has files of its own below /proc/PID/net, and so their inode numbers differ.
    """
    try:
        theirs = os.stat(proc.path(pid, "net/tcp")).st_ino
        return theirs == os.stat(f"{proc.root}/self/net/tcp").st_ino
    except OSError:
        return None


def listening(proc: Proc, pid: int, command: VllmCommand) -> frozenset[int]:
    """The inodes of the sockets that listen where `command` says, in the process's namespace.

    A process that has not called listen(2) yet has none, as a vLLM that loads.
    """
    if command.is_headless:
        return frozenset()
    if command.uds is not None:
        return listening_unix(proc, pid, command.uds)
    return listening_tcp(proc, pid, command.port)


def listening_tcp(proc: Proc, pid: int, port: int) -> frozenset[int]:
    """The inodes of the TCP sockets that listen on `port` of any address."""
    wanted = b":%04X" % port
    found = set()
    for table in ("net/tcp", "net/tcp6"):
        for fields in _listening_rows(proc.path(pid, table)):
            if fields[1].endswith(wanted):
                found.add(int(fields[9]))
    return frozenset(found)


def listening_unix(proc: Proc, pid: int, path: str) -> frozenset[int]:
    """The inodes of the unix sockets that listen at `path`, as it was given to bind(2)."""
    rows = _unix_rows(proc, pid, path)
    return frozenset(int(fields[6]) for fields in rows if int(fields[3], 16) & _ACCEPTS)


def is_unix_bound(proc: Proc, pid: int, path: str) -> bool:
    """Whether a unix socket is bound to `path`, listening or not."""
    return any(True for _ in _unix_rows(proc, pid, path))


def _unix_rows(proc: Proc, pid: int, path: str) -> Iterator[list[bytes]]:
    table = read_small(proc.path(pid, "net/unix"), MAX_TABLE_BYTES) or b""
    wanted = path.encode("utf-8", "surrogateescape")
    for line in table.split(b"\n"):
        if line.endswith(wanted):
            fields = line.split(None, 7)
            if len(fields) == 8 and fields[7] == wanted:  # noqa: PLR2004  columns of proc_pid_net(5)
                yield fields


def port_uses(proc: Proc, pid: int, port: int) -> PortUses:
    """What the tables of TCP sockets say of a port, at any address."""
    wanted = b":%04X" % port
    uids: set[int] = set()
    is_told, is_whole = False, True
    for table in ("net/tcp", "net/tcp6"):
        content = read_small(proc.path(pid, table), MAX_TABLE_BYTES + 1) or b""
        is_whole = is_whole and len(content) <= MAX_TABLE_BYTES
        for line in content.split(b"\n")[1:]:
            fields = line.split(None, 10)
            if len(fields) > 9 and fields[1].endswith(wanted):  # noqa: PLR2004  columns of proc_pid_net(5)
                is_told = True
                if fields[3] == _LISTEN:
                    uids.add(int(fields[7]))
    return PortUses(frozenset(uids), is_told=is_told or not is_whole)


def _listening_rows(path: str) -> Iterator[list[bytes]]:
    """The rows of a TCP table up to the first that does not listen: those that do come first."""
    for line in itertools.islice(_lines(path), 1, None):
        fields = line.split(None, 10)
        if len(fields) < 10 or fields[3] != _LISTEN:  # noqa: PLR2004  columns of proc_pid_net(5)
            return
        yield fields


def _lines(path: str) -> Iterator[bytes]:
    """The whole lines of a file, read as far as they are asked for."""
    try:
        with open(path, "rb", buffering=_CHUNK_BYTES) as file:
            left = MAX_TABLE_BYTES
            while left > 0 and (line := file.readline(left)).endswith(b"\n"):
                left -= len(line)
                yield line
    except OSError:
        return


class Ownership:
    """Whether the processes of one server hold the socket that listens on its port."""

    def __init__(self, proc: Proc) -> None:
        self._proc = proc
        self._holder: tuple[int, int] | None = None
        self._link = ""

    def is_as_before(self, pids: Collection[int]) -> bool:
        """Whether the process that held a listening socket still has that very socket open.

        It is one readlink(2). The tables of listening sockets, which `whose` needs, take 2 ms on a
        host with much memory, since the kernel walks the empty ones of all connections too.
        """
        if self._holder is None or self._holder[0] not in pids:
            return False
        return self._linked(*self._holder) == self._link

    def whose(self, pids: Collection[int], inodes: Collection[int]) -> Listener | None:
        """Whose the listening sockets `inodes` are, seen from the tree that `pids` are.

        None when nothing listens, and when a process of the tree may not be read while none of the
        others has one.
        """
        self._holder = None
        if not inodes:
            return None
        is_all_seen = True
        for pid in pids:
            number = self._find(pid, inodes)
            if number is not None:
                self._holder, self._link = (pid, number), self._linked(pid, number)
                return Listener.OWN
            # None is a process that is gone and holds nothing.
            is_all_seen &= self._proc.shows_exit_status(pid)
        return Listener.STRANGER if is_all_seen else None

    def _linked(self, pid: int, number: int) -> str:
        try:
            return os.readlink(self._proc.path(pid, f"fd/{number}"))
        except OSError:
            return ""

    def _find(self, pid: int, inodes: Collection[int]) -> int | None:
        sockets = itertools.islice(self._proc.open_sockets(pid), MAX_SOCKETS_PER_PROCESS)
        return next((number for number, inode in sockets if inode in inodes), None)


def addresses(proc: Proc, pid: int) -> tuple[str, ...]:
    """The addresses of a process's network namespace that others can reach, best first.

    IPv4 comes before IPv6, the network of the default route before others, link-local ones last.
    """
    found = [*_ipv4(proc, pid), *_ipv6(proc, pid)]
    default = _default_networks(proc, pid)
    found.sort(
        key=lambda a: (a.is_link_local, a.version, not any(_is_within(a, net) for net in default))
    )
    return tuple(str(address) for address in found[:MAX_ADDRESSES])


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _ipv4(proc: Proc, pid: int) -> list[_Address]:
    """The `host LOCAL` leaves of the routing trie, which lists them for every table again."""
    found: dict[_Address, None] = {}
    leaf = ""
    for line in _text(proc, pid, "fib_trie").splitlines():
        words = line.split()
        if words[:1] == ["|--"]:
            leaf = words[-1]
        elif words[-2:] == ["host", "LOCAL"] and words[0] == "/32":
            address = _parsed(leaf)
            if address is not None and not address.is_loopback:
                found[address] = None
    return list(found)


def _ipv6(proc: Proc, pid: int) -> list[_Address]:
    found: list[_Address] = []
    for line in _text(proc, pid, "if_inet6").splitlines():
        try:
            digits, _, _, scope, flags = line.split()[:5]
            is_usable = int(scope, 16) == _GLOBAL_SCOPE and not int(flags, 16) & _UNUSABLE
            if is_usable:
                found.append(ipaddress.IPv6Address(bytes.fromhex(digits)))
        except ValueError:
            continue
    return found


def _default_networks(proc: Proc, pid: int) -> list[tuple[int, int]]:
    """(address, mask) of the networks that the interfaces with a default route are part of."""
    rows = [line.split() for line in _text(proc, pid, "route").splitlines()[1:]]
    routes = [(row[0], row[1], row[2], row[7]) for row in rows if len(row) > 7]  # noqa: PLR2004  columns
    defaults = {
        interface for interface, to, _, mask in routes if to == _NOWHERE and mask == _NOWHERE
    }
    return [
        (int(to, 16), int(mask, 16))
        for interface, to, gateway, mask in routes
        if interface in defaults and gateway == _NOWHERE and mask != _NOWHERE
    ]


def _is_within(address: _Address, network: tuple[int, int]) -> bool:
    # The file shows addresses as the numbers that their bytes make on this machine.
    number = int.from_bytes(address.packed, sys.byteorder)
    return address.version == 4 and number & network[1] == network[0]  # noqa: PLR2004  IPv4


def _text(proc: Proc, pid: int, name: str) -> str:
    content = read_small(proc.path(pid, f"net/{name}"), MAX_NET_FILE_BYTES) or b""
    return content.decode("ascii", "replace")


def server_url(proc: Proc, pid: int, command: VllmCommand) -> str | None:
    """Where to connect to from the agent, as `config.url` reads it; None where that is nowhere.

    That is a headless server, one that listens on the loopback of another network namespace, and a
    line that makes no URL. A root path that makes none is left out: vLLM answers without it too.
    """
    if command.is_headless:
        return None
    if command.uds is not None:
        return _readable(f"unix://{_socket_path(proc, pid, command.uds)}")
    host = _reachable_host(proc, pid, command.host or "")
    if host is None:
        return None
    scheme = "https" if command.is_https else "http"
    origin = f"{scheme}://{f'[{host}]' if ':' in host else host}:{command.port}"
    return _readable(f"{origin}/{command.root_path.strip('/')}") or _readable(origin)


def _readable(url: str) -> str | None:
    try:
        return str(parse_server_url(url))
    except ValueError:
        # A command line may say anything.
        return None


def _reachable_host(proc: Proc, pid: int, host: str) -> str | None:
    """Where a server that was told to listen on `host` is found; None where it cannot be.

    A server listens on an address of its own network namespace. Any other is somebody else's, who
    must not be asked because a command line says so: everybody can write one.
    """
    is_here = is_same_network(proc, pid) is not False
    if host in _LOOPBACK_OF_ALL:
        return _LOOPBACK_OF_ALL[host] if is_here else next(iter(addresses(proc, pid)), None)
    address = _parsed(host)
    if address is None:
        return _named_host(proc, pid, host.lower(), is_here=is_here)
    if address.is_loopback:
        return host if is_here else None
    return host if address in {*_ipv4(proc, pid), *_ipv6(proc, pid)} else None


def _named_host(proc: Proc, pid: int, host: str, *, is_here: bool) -> str | None:
    """A name may lead anywhere: only the host's own is asked for its addresses."""
    if host == "localhost":
        return host if is_here else None
    if is_here:
        own = os.uname().nodename.lower()
        return host if host in {own, own.partition(".")[0]} else None
    # The names of another namespace are its own: what is not its loopback is its address.
    return next(iter(addresses(proc, pid)), None)


def _parsed(text: str) -> _Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _socket_path(proc: Proc, pid: int, path: str) -> str:
    """The path of a server's socket from here, the same one where its folder is the same here."""
    folder = proc.path(pid, "root" if path.startswith("/") else "cwd")
    there = f"{folder}/{path.lstrip('/')}"
    if not path.startswith("/"):
        path = _absolute(folder, path)
    try:
        theirs = os.stat(os.path.dirname(there))
    except OSError:
        # Out of reach by that way as well: the plain path is the best guess.
        return path
    try:
        return path if os.path.samestat(theirs, os.stat(os.path.dirname(path))) else there
    except OSError:
        return there


def _absolute(folder: str, path: str) -> str:
    try:
        return os.path.join(os.readlink(folder), path)
    except OSError:
        return path
