"""Addresses to listen on, as exporters write them: `:10060`, `[::1]:10060`, `localhost:10060`."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_agent.config.url import MAX_PORT, parse_host

_MAX_PORT_DIGITS = len(str(MAX_PORT))


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where to accept connections. `host` None is every address; port 0 is any free port."""

    host: str | None
    port: int

    def __str__(self) -> str:
        if self.host is None:
            return f":{self.port}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_listen_address(text: str) -> ListenAddress:
    """Read an address to listen on.

    Raises:
        ValueError: the message says what to write.
    """
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError("must have a port behind ':', such as :10060 or 127.0.0.1:10060")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if bracketed != (":" in host):
        raise ValueError("must have an IPv6 address in brackets: [::1]:10060")
    if not (port.isascii() and port.isdigit() and len(port) <= _MAX_PORT_DIGITS):
        raise ValueError(f"must have a port from 0 to {MAX_PORT} behind ':', such as :10060")
    if int(port) > MAX_PORT:
        raise ValueError(f"must have a port from 0 to {MAX_PORT} behind ':', such as :10060")
    return ListenAddress(parse_host(host) if host else None, int(port))
