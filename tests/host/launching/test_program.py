"""Whether the program of a launch is there, with real files."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from tests.host.launching.plans import a_plan, some_patience, somebody
from vllm_agent.host.launching.program import MAX_FOLDERS, MAX_PATH_CHARACTERS, lacks_program
from vllm_agent.host.launching.program import may_execute as may
from vllm_agent.lifecycle.reasons import Reason

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_agent.host.launching.refusal import Refusal
    from vllm_agent.host.launching.user import User


def a_program(folder: Path, mode: int = 0o755) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / "vllm"
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return path


async def said_of(command: str, path: str = "", user: User | None = None) -> Refusal | None:
    with some_patience() as patience:
        return await lacks_program(a_plan(command=command, env={"PATH": path}), user, patience)


async def detail_of(command: str, path: str = "", user: User | None = None) -> str:
    refusal = await said_of(command, path, user)
    assert refusal is not None
    assert (refusal.reason, refusal.holder) == (Reason.SPAWN_FAILED, "")
    return refusal.detail


async def test_it_is_found_in_the_path_of_the_server_and_not_in_that_of_the_agent(tmp_path):
    a_program(tmp_path / "bin")
    assert await said_of("vllm", f"/nonexistent:{tmp_path}/bin") is None
    # A sh is in the PATH of the agent.
    detail = await detail_of("sh", f"{tmp_path}/bin")
    assert detail == (
        f"there is no program 'sh' in the PATH of the server ({tmp_path}/bin): "
        "give its whole path in managed.command"
    )


async def test_a_path_is_taken_as_it_is(tmp_path):
    path = a_program(tmp_path)
    assert await said_of(str(path)) is None
    missing = f"{tmp_path}/none/vllm"
    assert await detail_of(missing) == (f"there is no program {missing}: correct managed.command")
    # A folder is no program, nor is what is below a file.
    assert "there is no program" in await detail_of(str(tmp_path))
    assert "there is no program" in await detail_of(f"{path}/vllm")
    assert "there is no program" in await detail_of("a\0b", str(tmp_path))


async def test_one_that_nobody_may_execute_is_told_of_if_no_other_is_found(tmp_path):
    first, second = a_program(tmp_path / "a", 0o644), tmp_path / "b"
    searched = f"{tmp_path}/a:{second}"
    assert await detail_of("vllm", searched) == (
        f"the agent's user may not execute {first}: "
        "look at its mode, at every folder above it, and at noexec mounts"
    )
    a_program(second, 0o600)
    assert f"execute {first}: " in await detail_of("vllm", searched)
    (second / "vllm").chmod(0o755)
    assert await said_of("vllm", searched) is None


async def test_another_user_is_named(tmp_path):
    path = a_program(tmp_path, 0o600)
    told = await detail_of(str(path), user=somebody())
    assert told.startswith(f"user 'somebody' may not execute {path}: ")


def test_the_bits_of_a_file_are_those_of_the_user_or_else_a_group_or_else_of_all(tmp_path):
    path = a_program(tmp_path)
    for parent in path.parents:
        if not stat.S_IMODE(parent.stat().st_mode) & stat.S_IXOTH:
            parent.chmod(0o711)
    status = path.stat()
    owner, member, other = somebody(status.st_uid), somebody(7, status.st_gid), somebody(7)
    for mode, expected in (
        (0o700, (True, False, False)),
        (0o070, (False, True, False)),
        (0o007, (False, False, True)),
        (0o666, (False, False, False)),
    ):
        path.chmod(mode)
        assert tuple(may(str(path), user) for user in (owner, member, other)) == expected


@pytest.mark.parametrize("closed", ["bin", "venv"])
def test_every_folder_above_counts_on_both_ends_of_a_link(tmp_path, closed):
    (tmp_path / "bin").mkdir()
    link = tmp_path / "bin/vllm"
    link.symlink_to(a_program(tmp_path / "venv"))
    for parent in tmp_path.parents:
        if not stat.S_IMODE(parent.stat().st_mode) & stat.S_IXOTH:
            parent.chmod(0o711)
    tmp_path.chmod(0o755)
    assert may(str(link), somebody()) is True
    (tmp_path / closed).chmod(0o700)
    assert may(str(link), somebody()) is False


def test_where_an_access_list_has_a_say_the_start_itself_will_tell(tmp_path, monkeypatch):
    path = a_program(tmp_path, 0o600)
    assert may(str(path), somebody()) is False
    monkeypatch.setattr(os, "getxattr", lambda place, name: b"list")
    assert may(str(path), somebody()) is True


async def test_a_path_is_looked_through_and_shown_within_bounds(tmp_path):
    a_program(tmp_path)
    many = ":".join(["/nonexistent"] * MAX_FOLDERS)
    told = await detail_of("vllm", f"{many}:{tmp_path}")
    assert f"({many[:MAX_PATH_CHARACTERS]})" in told
    assert await said_of("vllm", f"{many[:-13]}:{tmp_path}") is None
