"""A server as its runner uses it: rounds of probes, and one idle connection held open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_agent.host.idle_connection import IdleConnection
from vllm_agent.host.vllm_http import Target, TlsOptions, VllmHttp

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_agent.config.model import ServerConfig
    from vllm_agent.config.tls import TlsConfig
    from vllm_agent.config.url import ServerUrl
    from vllm_agent.observations import EngineFacts, Instant, ProbeRound


class HttpEyes:
    """Looks at one server over HTTP, and holds on to it."""

    def __init__(self, target: Target, clock: Callable[[], Instant]) -> None:
        self._target = target
        self._clock = clock
        self._http = VllmHttp(target, clock)
        self._connection: IdleConnection | None = None

    @classmethod
    def of(cls, server: ServerConfig, clock: Callable[[], Instant]) -> HttpEyes:
        """The eyes for a configured server that has an address."""
        if server.url is None:
            raise ValueError(f"{server.name} has no url")
        return cls(target_of(server.url, server), clock)

    async def look(
        self, *, ask_models: bool, ask_metrics: bool = True, ask_version: bool = False
    ) -> ProbeRound:
        """Sends one round of probes. Never raises for what a server does."""
        return await self._http.look(
            ask_models=ask_models, ask_metrics=ask_metrics, ask_version=ask_version
        )

    async def ask_engine(self) -> EngineFacts | None:
        """What its engine has done so far; None where it does not say, or not in time."""
        return await self._http.ask_engine()

    @property
    def is_holding(self) -> bool:
        """Whether the idle connection is there, or being opened."""
        return self._connection is not None

    async def hold(self, on_close: Callable[[float], None]) -> None:
        """Opens the idle connection if there is none.

        `on_close` is called once, with the seconds it lived, when it ends other than by `release`;
        a connection that cannot be opened lived 0 s.
        """
        if self._connection is not None:
            return
        connection = IdleConnection(self._target, self._clock, on_closed=self._closed(on_close))
        self._connection = connection
        try:
            cause = await connection.connect()
        except BaseException:
            self._connection = None
            raise
        if cause is not None and self._connection is connection:
            self._connection = None
            on_close(0.0)

    def release(self) -> None:
        """Closes the idle connection, if there is one, without a call of `on_close`."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _closed(self, on_close: Callable[[float], None]) -> Callable[[float], None]:
        def forget_and_tell(lived_seconds: float) -> None:
            # Only of the connection that is held; a released one does not call.
            self._connection = None
            on_close(lived_seconds)

        return forget_and_tell


def target_of(url: ServerUrl, server: ServerConfig) -> Target:
    """Where to look at `url`, in the way that is configured for `server`."""
    tls = server.tls_config
    return Target(
        url=url,
        timeout_seconds=server.probe.timeout_seconds,
        api_key_file=server.api_key_file,
        tls=TlsOptions() if tls is None else _tls_options(tls),
    )


def _tls_options(tls: TlsConfig) -> TlsOptions:
    return TlsOptions(
        ca_file=tls.ca_file,
        cert_file=tls.cert_file,
        key_file=tls.key_file,
        server_name=tls.server_name,
        insecure_skip_verify=tls.insecure_skip_verify,
    )
