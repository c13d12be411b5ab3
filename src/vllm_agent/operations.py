"""What an operator asks of servers, done by their owners, and the reload of the configuration."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from vllm_agent.config.apart import NoConfigError
from vllm_agent.config.problem import ConfigError
from vllm_agent.config.reload import load_afresh
from vllm_agent.expose.operations import CannotReloadError, CannotServeError, NotManagedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from vllm_agent.config.model import Config
    from vllm_agent.lifecycle.management import Wish
    from vllm_agent.lifecycle.operations import Answer
    from vllm_agent.observations import Instant
    from vllm_agent.publication import Publication
    from vllm_agent.roster import Roster

_LOGGER: Final = logging.getLogger(__name__)


class RosterOperations:
    """What an operator asks, handed to the owner of the server."""

    def __init__(self, roster: Roster, reload: Reload) -> None:
        self._roster = roster
        self._reload = reload

    async def ask(self, server: str, wish: Wish, model: str | None) -> Answer:
        """Starts, stops or restarts a managed server; as `expose.operations` has it."""
        runner = self._roster.runner(server)
        if not runner.snapshot.policy.is_managed:
            mode = runner.snapshot.mode
            text = f"{server!r} is {mode}: whoever starts it also stops it, the agent only watches"
            raise NotManagedError(text)
        refusal = None if model is None else await self._roster.why_not(server, model)
        if model is not None and refusal is not None:
            raise CannotServeError(model, refusal.reason, refusal.detail)
        return await runner.ask(wish, model)

    async def ensure_healthy(self, server: str, timeout_seconds: float) -> Answer:
        """Waits until a server runs, and starts it if the agent may."""
        return await self._roster.runner(server).ensure_healthy(timeout_seconds)

    async def set_maintenance(self, server: str, until_unix_seconds: float | None) -> None:
        """Begins or ends the maintenance of a server. Raises KeyError if there is none."""
        await self._roster.runner(server).set_maintenance(until_unix_seconds)

    async def reload(self) -> None:
        """Reads the configuration again and applies it."""
        await self._reload.now()


class Reload:
    """Reads the configuration again; one at a time."""

    def __init__(
        self,
        config: Config,
        path: Path | None,
        environ: Mapping[str, str],
        *,
        roster: Roster,
        publication: Publication,
        clock: Callable[[], Instant],
        told_again: Callable[[], None],
    ) -> None:
        self._config = config
        self._path = path
        self._environ = environ
        self._roster = roster
        self._publication = publication
        self._clock = clock
        self._told_again = told_again
        self._lock = asyncio.Lock()

    async def now(self) -> None:
        """Reads and applies it.

        Raises:
            CannotReloadError: it cannot be used; nothing has changed.
        """
        async with self._lock:
            try:
                config = await load_afresh(self._path, self._environ)
            except (ConfigError, NoConfigError) as problem:
                self._publication.config_was_refused()
                _LOGGER.error("configuration not reloaded", extra={"detail": str(problem)})  # noqa: TRY400 - the text says it all
                raise CannotReloadError(str(problem)) from None
            for warning in config.warnings:
                _LOGGER.warning("configuration", extra={"detail": warning})
            self._tell_what_stays(config)
            await self._roster.apply(config)
            self._config = config
            # Whose a process is may have changed.
            self._told_again()
            self._publication.config_was_loaded(self._clock())
            _LOGGER.info("configuration reloaded", extra={"servers": len(config.servers)})

    def _tell_what_stays(self, config: Config) -> None:
        before = self._config
        for section in ("discovery", "gpu"):
            if getattr(before, section) != getattr(config, section):
                text = "a section is read at the start only: restart the agent to change it"
                _LOGGER.warning(text, extra={"section": section})
