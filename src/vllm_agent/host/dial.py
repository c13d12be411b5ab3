"""Opens connections to vLLM servers, over TCP, TLS or a unix socket, and says why it could not."""

from __future__ import annotations

import asyncio
import errno
import functools
import ipaddress
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from vllm_agent.host.name_lookup import NameLookup
from vllm_agent.observations import ProbeCause

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vllm_agent.config.url import ServerUrl

MAX_DETAIL_LENGTH: Final = 200
"""Details are one line of a log or a table."""

NAME_LOOKUP_SHARE: Final = 0.8
"""The part of a timeout that a name lookup may take, so that its failure is told as what it is."""

MAX_TLS_CONTEXTS: Final = 64
"""Contexts kept: one holds the CAs of the system, about 1 MB, and servers share settings."""

P = TypeVar("P", bound=asyncio.BaseProtocol)

_UNREACHED: Final = frozenset(
    {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.ETIMEDOUT}
)
_NO_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE})
_NAMES: Final = NameLookup()


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """How to speak TLS, with the meaning of Prometheus' `tls_config`."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str | None = None
    insecure_skip_verify: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """Where a vLLM server is, and how long it may take to answer one look."""

    url: ServerUrl
    timeout_seconds: float
    api_key_file: Path | None = None
    tls: TlsOptions = TlsOptions()


class ProbeError(Exception):
    """No usable answer came; `detail` is a sentence for people, on one line and bounded."""

    def __init__(self, cause: ProbeCause, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause
        self.detail = one_line(detail)


def one_line(text: str) -> str:
    """`text` without control characters, cut to `MAX_DETAIL_LENGTH`."""
    visible = "".join(c if c.isprintable() else "?" for c in text[: MAX_DETAIL_LENGTH + 1])
    if len(visible) <= MAX_DETAIL_LENGTH:
        return visible
    return visible[: MAX_DETAIL_LENGTH - 1] + "…"


async def dial(target: Target, protocol_factory: Callable[[], P]) -> P:
    """Connect, with the TLS handshake done, and give the protocol, which then has its transport.

    It takes as long as the caller lets it, except that a name lookup ends at its share.

    Raises:
        ProbeError: there is no connection.
    """
    try:
        if target.url.socket_path is not None:
            return await _dial_socket(target.url.socket_path, protocol_factory)
        return await _dial_host(target, protocol_factory)
    except OSError as error:
        raise connection_error(error, str(target.url)) from None


async def _dial_socket(path: Path, protocol_factory: Callable[[], P]) -> P:
    loop = asyncio.get_running_loop()
    _, protocol = await loop.create_unix_connection(protocol_factory, str(path))
    return protocol


async def _dial_host(target: Target, protocol_factory: Callable[[], P]) -> P:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + target.timeout_seconds
    host, port = target.url.host or "", target.url.port or 0
    options = _tls_arguments(target) if target.url.scheme == "https" else {}
    addresses = (host,) if is_address(host) else await _look_up(host, target.timeout_seconds)
    refusal = None
    for position, address in enumerate(addresses, start=1):
        share = (deadline - loop.time()) / (len(addresses) - position + 1)
        is_last = position == len(addresses)
        try:
            async with asyncio.timeout(None if is_last else share):
                _, protocol = await loop.create_connection(
                    protocol_factory, address, port, **options
                )
                return protocol
        except OSError as error:
            # Refused is what every address says, or it is not what the server says.
            if refusal is None or isinstance(refusal, ConnectionRefusedError):
                refusal = error
    raise refusal or OSError("the name has no address")


async def _look_up(host: str, timeout_seconds: float) -> tuple[str, ...]:
    seconds = timeout_seconds * NAME_LOOKUP_SHARE
    try:
        async with asyncio.timeout(seconds):
            return await _NAMES.addresses(host)
    except TimeoutError:
        reason = f"no answer within {seconds:g} s"
    except OSError as error:
        reason = error.strerror or str(error)
    raise ProbeError(ProbeCause.DNS, f"The name {host} cannot be resolved: {reason}.")


def is_address(host: str) -> bool:
    """Whether `host` is an IP address, which needs no lookup."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def connection_error(error: OSError, where: str) -> ProbeError:
    """What the failure of a connection to `where` means to an operator."""
    cause = ProbeCause.RESET
    match error:
        case ssl.SSLError():
            cause, detail = ProbeCause.TLS, f"TLS with {where} failed: {_tls_reason(error)}."
        case ConnectionRefusedError():
            cause, detail = ProbeCause.REFUSED, f"Connection refused: nothing listens at {where}."
        case FileNotFoundError() | NotADirectoryError():
            cause, detail = ProbeCause.REFUSED, f"There is no socket at {where}."
        case PermissionError():
            detail = f"No permission to connect to {where}: let the user of the agent write to it."
        case _ if isinstance(error, TimeoutError) or error.errno in _UNREACHED:
            cause, detail = ProbeCause.TIMEOUT, f"{where} cannot be reached: {_reason(error)}."
        case _ if error.errno in _NO_DESCRIPTORS:
            detail = "The agent has no free file descriptor: raise its limit (LimitNOFILE=)."
        case _:
            detail = f"The connection to {where} broke: {_reason(error)}."
    return ProbeError(cause, detail)


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


def _tls_reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{error.verify_message.rstrip('.')} (see tls_config: ca_file, server_name)"
    return (error.reason or _reason(error)).replace("_", " ").lower()


def _tls_arguments(target: Target) -> dict[str, Any]:
    return {
        "ssl": _tls_context(target.tls),
        "server_hostname": target.tls.server_name or target.url.host,
        # The caller's deadline ends a handshake; this is only to be longer than it.
        "ssl_handshake_timeout": 2 * target.timeout_seconds,
    }


def _tls_context(tls: TlsOptions) -> ssl.SSLContext:
    files = (tls.ca_file, tls.cert_file, tls.key_file)
    try:
        stamps = tuple(_stamp(file) for file in files)
        return _loaded_context(*files, stamps, is_verifying=not tls.insecure_skip_verify)
    except OSError as error:
        # A broken PEM file is an SSLError, which is an OSError too.
        detail = f"A file of tls_config cannot be used: {_reason(error)}."
        raise ProbeError(ProbeCause.TLS, detail) from None


def _stamp(file: Path | None) -> tuple[int, int, int] | None:
    if file is None:
        return None
    status = file.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=MAX_TLS_CONTEXTS)
def _loaded_context(
    ca_file: Path | None,
    cert_file: Path | None,
    key_file: Path | None,
    stamps: tuple[tuple[int, int, int] | None, ...],  # noqa: ARG001  # a rotated file is another key
    *,
    is_verifying: bool,
) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_file)
    # A front-end that prefers HTTP/2 must know that this client does not speak it.
    context.set_alpn_protocols(["http/1.1"])
    if cert_file is not None:
        # Without a password an encrypted key would ask for one on the agent's terminal.
        context.load_cert_chain(cert_file, key_file, password="")
    if not is_verifying:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
