"""Addresses of vLLM servers, and the host names in them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

# RFC 3986 names no limit; this is beyond any server's address and short enough for a label value.
MAX_URL_LENGTH = 512
# sun_path of struct sockaddr_un (unix(7)) holds 108 bytes with the final NUL.
MAX_SOCKET_PATH_BYTES = 107
# RFC 1035 section 2.3.4.
MAX_HOST_LENGTH = 253
MAX_PORT = 65_535

_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_PATH = re.compile(r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)*")
# What people copy from a client's settings. The agent adds these to the root path itself.
_ENDPOINTS = ("/v1", "/health", "/metrics")


@dataclass(frozen=True, slots=True)
class ServerUrl:
    """Where a vLLM server listens, in one normal form, so that equal addresses compare equal.

    `host` and `port` are None exactly where `socket_path` is not. `root_path` is vLLM's
    `--root-path`: empty, or `/` and more without a final `/`.
    """

    scheme: str
    host: str | None = None
    port: int | None = None
    root_path: str = ""
    socket_path: Path | None = None

    def __str__(self) -> str:
        if self.socket_path is not None:
            return f"unix://{self.socket_path}"
        return self.origin + self.root_path

    @property
    def origin(self) -> str:
        """Scheme, host and port as HTTP requests name them; `http://localhost` over a socket."""
        if self.host is None:
            return "http://localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.port == _DEFAULT_PORTS[self.scheme]:
            return f"{self.scheme}://{host}"
        return f"{self.scheme}://{host}:{self.port}"

    def endpoint(self, path: str) -> str:
        """Give the URL to request for a path of vLLM's API, such as `/health`."""
        return self.origin + self.root_path + path


def parse_server_url(text: str) -> ServerUrl:
    """Read a server's address.

    Raises:
        ValueError: the message says what to write; it repeats nothing that may be a secret.
    """
    if len(text) > MAX_URL_LENGTH:
        raise ValueError(f"must be at most {MAX_URL_LENGTH} characters long")
    if any(not "!" <= character <= "~" for character in text):
        raise ValueError("must be visible ASCII without spaces")
    try:
        parts = urlsplit(text)
    except ValueError:
        raise ValueError("must have an IPv6 address in brackets: http://[::1]:8000") from None
    if "@" in (parts.netloc or (text if parts.scheme != "unix" else "")):
        raise ValueError("must not contain a user or password: use api_key_file")
    if "?" in text or "#" in text:
        raise ValueError("must not contain '?' or '#': use api_key_file for a key")
    if parts.scheme == "unix":
        return _unix_url(parts)
    if parts.scheme in _DEFAULT_PORTS and parts.netloc:
        return _http_url(parts)
    raise ValueError("must begin with http://, https:// or unix://, such as http://127.0.0.1:8000")


def _unix_url(parts: SplitResult) -> ServerUrl:
    if parts.netloc or not parts.path.startswith("/"):
        raise ValueError("must give a socket by its absolute path: unix:///run/vllm.sock")
    if len(parts.path) > MAX_SOCKET_PATH_BYTES:
        raise ValueError(f"must name a socket in at most {MAX_SOCKET_PATH_BYTES} bytes")
    # Path keeps two leading slashes (POSIX allows them a meaning); Linux gives them none.
    path = Path("/" + parts.path.lstrip("/"))
    if path == Path("/"):
        raise ValueError("must give a socket by its absolute path: unix:///run/vllm.sock")
    return ServerUrl("unix", socket_path=path)


def _http_url(parts: SplitResult) -> ServerUrl:
    host = parse_host(parts.hostname or "")
    if ("[" in parts.netloc) != (":" in host):
        raise ValueError("must have an IPv6 address in brackets: http://[::1]:8000")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0 or parts.netloc.endswith(":"):
        raise ValueError(f"must have a port from 1 to {MAX_PORT}, or none")
    root_path = parts.path.rstrip("/")
    if not _PATH.fullmatch(root_path):
        raise ValueError("has a path that is not one: percent-encode special characters")
    for endpoint in _ENDPOINTS:
        if root_path.endswith(endpoint):
            raise ValueError(f"must end before {endpoint}: the agent adds the paths of vLLM's API")
    return ServerUrl(parts.scheme, host, port or _DEFAULT_PORTS[parts.scheme], root_path)


def parse_host(text: str) -> str:
    """Read a host name or IP address (IPv6 without brackets) in lower case.

    Raises:
        ValueError: it is neither.
    """
    host = text.lower()
    labels = host.removesuffix(".").split(".")
    # A zone (`fe80::1%eth0`) is refused: HTTP clients disagree on how to send it.
    is_address = ":" in host or labels[-1].isdigit()
    if is_address and "%" not in host:
        try:
            return str(ipaddress.ip_address(host))
        except ValueError:
            raise ValueError("must name a valid IP address (IPv6 in brackets)") from None
    if len(host) > MAX_HOST_LENGTH or not all(_HOST_LABEL.fullmatch(label) for label in labels):
        raise ValueError("must name a host by its name or IP address (no zone)")
    return host
