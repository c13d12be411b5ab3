"""The user that a managed server runs as."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_agent.host.launching.start_error import StartError
from vllm_agent.lifecycle.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class User:
    """A user of this host, with its groups, the first of them its own."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str

    @property
    def environ(self) -> Mapping[str, str]:
        """What su(1) sets for it."""
        return {
            "HOME": self.home,
            "LOGNAME": self.name,
            "SHELL": self.shell or "/bin/sh",
            "USER": self.name,
        }


def find_user(name: str) -> User | None:
    """The user of that name, or of that number; None where this host has none.

    A name server may be asked, and hang: call it in a thread.
    """
    try:
        entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, OverflowError, ValueError):
        return None
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return User(
        name=entry.pw_name,
        uid=entry.pw_uid,
        gid=entry.pw_gid,
        groups=tuple(groups),
        home=entry.pw_dir or "/",
        shell=entry.pw_shell,
    )


def user_to_become(name: str | None) -> User | None:
    """The user that a server has to be started as; None where that is the agent's own.

    A name server may be asked, and hang: call it in a thread.

    Raises:
        StartError: there is no such user, the agent may not become it, or it is root and nobody
            asked for that.
    """
    own_uid = os.geteuid()
    if name is None:
        if own_uid == 0:
            raise _refusal(
                "the agent is root, and vLLM runs code of models: "
                "set managed.user to the user that it is to run as (root, if it must)"
            )
        return None
    user = find_user(name)
    if user is None:
        raise _refusal(f"there is no user {name!r} on this host: correct managed.user")
    if user.uid == own_uid:
        return None
    if own_uid != 0:
        raise _refusal(
            f"only root may start a server as user {user.name!r}: "
            "run the agent as root or as that user, or remove managed.user"
        )
    return user


def _refusal(detail: str) -> StartError:
    return StartError(Reason.SPAWN_FAILED, detail)
