"""Whether the program of a launch is there and may be executed by the user that is to run it."""

from __future__ import annotations

import os
import stat
from functools import partial
from typing import TYPE_CHECKING, Final

from vllm_agent.host.launching.asking import ask
from vllm_agent.host.launching.plan import WORKING_FOLDER
from vllm_agent.host.launching.refusal import Refusal
from vllm_agent.lifecycle.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_agent.host.launching.plan import LaunchPlan
    from vllm_agent.host.launching.user import User
    from vllm_agent.host.patience import Patience

MAX_FOLDERS: Final = 128
"""Of a PATH that are looked through: what is in a later one, nobody would find either."""

MAX_PATH_CHARACTERS: Final = 200
"""Of a PATH that a sentence shows."""

_ACL: Final = "system.posix_acl_access"


async def lacks_program(plan: LaunchPlan, user: User | None, patience: Patience) -> Refusal | None:
    """Whether the command of a launch cannot be executed; `user` is None for the agent's own."""
    program = plan.arguments[0]
    forbidden = ""
    for path in _places(plan):
        usable = await ask(patience, partial(may_execute, user=user), path)
        if usable:
            return None
        if usable is not None:
            forbidden = forbidden or path
    if forbidden:
        whose = "the agent's user" if user is None else f"user {user.name!r}"
        return _refusal(
            f"{whose} may not execute {forbidden}: "
            "look at its mode, at every folder above it, and at noexec mounts"
        )
    if "/" in program:
        return _refusal(f"there is no program {program}: correct managed.command")
    searched = plan.environ.get("PATH", os.defpath)[:MAX_PATH_CHARACTERS]
    return _refusal(
        f"there is no program {program!r} in the PATH of the server ({searched}): "
        "give its whole path in managed.command"
    )


def may_execute(path: str, user: User | None) -> bool | None:
    """Whether a user may execute a program; None where there is none. This blocks as disks do."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last: a path with a NUL
        return None
    except OSError:
        return False
    if not stat.S_ISREG(status.st_mode):
        return None
    if user is None:
        return os.access(path, os.X_OK)
    real = os.path.realpath(path)
    try:
        return all(_has_right(place, user) for place in (real, *_folders(path), *_folders(real)))
    except OSError:
        return False


def _places(plan: LaunchPlan) -> Iterator[str]:
    """Where the program is looked for, as subprocess does: in the PATH that the server is given."""
    program = plan.arguments[0]
    folders = [""] if "/" in program else os.get_exec_path(plan.environ)[:MAX_FOLDERS]
    for folder in folders:
        yield os.path.join(WORKING_FOLDER, folder, program)


def _folders(path: str) -> Iterator[str]:
    while (folder := os.path.dirname(path)) != path:
        yield folder
        path = folder


def _has_right(path: str, user: User) -> bool:
    """Whether a user may execute a file, or pass a folder.

    The kernel cannot be asked for somebody else without becoming them, all groups included. Where
    an access list has a say, the start itself will tell.
    """
    status = os.stat(path)
    if status.st_uid == user.uid:
        bit = stat.S_IXUSR
    elif status.st_gid in {user.gid, *user.groups}:
        bit = stat.S_IXGRP
    else:
        bit = stat.S_IXOTH
    return bool(status.st_mode & bit) or _has_access_list(path)


def _has_access_list(path: str) -> bool:
    try:
        return bool(os.getxattr(path, _ACL))
    except OSError:
        return False


def _refusal(detail: str) -> Refusal:
    return Refusal(Reason.SPAWN_FAILED, detail)
