"""Looks at one path at a time in a thread, and says which one hangs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from vllm_agent.host.patience import Patience

if TYPE_CHECKING:
    from collections.abc import Callable

HUNG_SECONDS: Final = 20.0
"""A path that says nothing for that long hangs. A disk that is busy, or a file server that comes
back, answers within seconds; the start is tried again, so that nothing is lost."""

USERS: Final = "the user database"
"""Asked like a path: a name server may be behind it."""

Result = TypeVar("Result")


class HangsError(Exception):
    """Nothing comes of a path: its file system, or a server behind it, hangs."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"{path} gave no answer within {HUNG_SECONDS:g} s: the disk, or the server behind it, "
            "hangs"
        )
        self.path = path


def patience() -> Patience:
    """For all questions of one launcher: it bounds the threads that hang."""
    return Patience(HUNG_SECONDS)


async def ask(patience: Patience, function: Callable[[str], Result], path: str) -> Result:
    """What the function says of a path.

    Raises:
        HangsError: it does not come back.
        TooManyHung: as many hang as threads may be left behind; nothing was done.
        Exception: what the function raised.
    """
    results, hung = await patience.map(function, [path])
    if hung:
        raise HangsError(path)
    return results[0]
