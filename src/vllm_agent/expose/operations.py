"""What an operator may ask of servers over the control socket, as the web application sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from vllm_agent.lifecycle.management import Wish
    from vllm_agent.lifecycle.operations import Answer
    from vllm_agent.lifecycle.reasons import Reason


class NotManagedError(Exception):
    """The agent does not start or stop this server; the message says who does."""


class CannotServeError(Exception):
    """A model was asked for that the server would not serve; nothing was done to it.

    The message says why, `reason` is why a launch with it would have failed.
    """

    def __init__(self, model: str, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.model = model
        self.reason = reason


class CannotReloadError(Exception):
    """The new configuration cannot be used, and the old one stays; the message says why."""


class Operations(Protocol):
    """Whoever owns the servers.

    Every method raises KeyError for a server that is not there.
    """

    async def ask(self, server: str, wish: Wish, model: str | None) -> Answer:
        """Starts, stops or restarts a managed server and waits for what comes of it.

        A start is done once its process is there, a stop once nothing of it is left. With `model`
        the server serves that one from now on; it is valid as a model id.

        Raises:
            NotManagedError: the server is only watched.
            CannotServeError: it would not serve that model.
        """

    async def ensure_healthy(self, server: str, timeout_seconds: float) -> Answer:
        """Waits until the server runs, and starts it before if the agent may.

        The answer is `UNDER_WAY` when the time is over first, `FAILED` once it cannot come up by
        itself. A server that is only watched is not waited for.
        """

    async def reload(self) -> None:
        """Reads the configuration again and applies what changed.

        Raises:
            CannotReloadError: it cannot be used.
        """
