"""The door between the runners, who publish, and the readers, who take one immutable value."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from vllm_agent.snapshot import AgentSnapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from vllm_agent.observations import Instant, Sight
    from vllm_agent.snapshot import CollectorSnapshot, GpuSnapshot, ServerSnapshot


def _unknown() -> int | None:
    return None


def _nothing() -> tuple[Sight, ...]:
    return ()


def _no_gpus(servers: Iterable[ServerSnapshot]) -> tuple[GpuSnapshot, ...]:
    del servers
    return ()


class Publication:
    """The newest value of every server, put together when somebody reads."""

    def __init__(
        self,
        started: Instant,
        collectors: Callable[[], tuple[CollectorSnapshot, ...]],
        dropped: Callable[[], Mapping[str, int]],
        *,
        discovered: Callable[[], int | None] = _unknown,
        sights: Callable[[], tuple[Sight, ...]] = _nothing,
        gpus: Callable[[Iterable[ServerSnapshot]], tuple[GpuSnapshot, ...]] = _no_gpus,
        config_file: str | None = None,
    ) -> None:
        self._started = started
        self._collectors = collectors
        self._dropped = dropped
        self._discovered = discovered
        self._sights = sights
        self._gpus = gpus
        self._config_file = config_file
        self._servers: dict[str, ServerSnapshot] = {}
        self._generation = 0
        self._is_ready = False
        self._config_loaded = started
        self._is_config_load_successful = True

    def publish(self, server: ServerSnapshot) -> None:
        """Replaces what is known of one server."""
        self._servers[server.name] = server
        self._generation += 1

    def remove(self, server: str) -> None:
        """Forgets one server."""
        self._servers.pop(server, None)
        self._generation += 1

    def become_ready(self) -> None:
        """Says that every server had its first look."""
        self._is_ready = True
        self._generation += 1

    def config_was_loaded(self, at: Instant) -> None:
        """Says that a new configuration holds."""
        self._config_loaded, self._is_config_load_successful = at, True
        self._generation += 1

    def config_was_refused(self) -> None:
        """Says that the configuration that holds is not the one of its file."""
        self._is_config_load_successful = False
        self._generation += 1

    @property
    def servers(self) -> Iterable[ServerSnapshot]:
        """The newest value of every server."""
        return self._servers.values()

    def current(self) -> AgentSnapshot:
        """The agent and its servers as of now."""
        return AgentSnapshot(
            started=self._started,
            generation=self._generation,
            is_ready=self._is_ready,
            servers=tuple(self._servers.values()),
            collectors=self._collectors(),
            dropped=MappingProxyType(dict(self._dropped())),
            config_load_unix_seconds=self._config_loaded.unix_seconds,
            is_config_load_successful=self._is_config_load_successful,
            discovered=self._discovered(),
            sights=self._sights(),
            config_file=self._config_file,
            gpus=self._gpus(self._servers.values()),
        )
