"""A cgroup for each launch: what is in it cannot hide, and the kernel ends it at once."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.host.fake_host import FakeHost
from tests.host.launching.end_scene import (
    WAIT_SECONDS,
    Scene,
    is_writable,
    told_pid,
    until,
    wait_ended,
)
from vllm_agent.host.launching.killing import kill_all
from vllm_agent.host.launching.launch_cgroup import LaunchCgroup
from vllm_agent.host.launching.remains import Remains
from vllm_agent.observations import ProcessId

if TYPE_CHECKING:
    from collections.abc import Iterator

# It waits to be put into the group, and then leaves all else that tells whose it is.
HIDING = """
read go
(env -i PATH="$PATH" "$TOKEN" setsid sh -c "$SAY" &)
echo $$
"""
PROCESS = ProcessId("boot", 77, 5000)


@pytest.fixture
def scene() -> Iterator[Scene]:
    with Scene() as made:
        yield made


# The kernel's.


@pytest.mark.parametrize("is_killed_by_group", [False, True], ids=["one by one", "at once"])
async def test_a_daemon_that_nothing_else_tells_is_ended_with_its_group(
    scene, monkeypatch, is_killed_by_group
):
    main = scene.start(HIDING)
    process = scene.identify(main.pid)
    assert LaunchCgroup.found(scene.proc, process) is None
    group = LaunchCgroup.made(scene.proc, process)
    if group is None:
        assert not is_writable(scene.proc)
        return
    main.stdin.write("go\n")
    main.stdin.flush()
    daemon = ({told_pid(main), told_pid(main)} - {main.pid}).pop()
    main.wait(WAIT_SECONDS)
    assert daemon in group.pids()
    if is_killed_by_group:
        monkeypatch.setattr(signal, "pidfd_send_signal", lambda *_: None)
    else:
        monkeypatch.setattr(LaunchCgroup, "kill", lambda _: None)
    found = LaunchCgroup.found(scene.proc, process)
    remains = Remains(
        scene.proc, process, scene.mark, count_dropped=scene.dropped.append, cgroup=found
    )
    await kill_all(remains, scene.proc, server="llama", count_dropped=scene.dropped.append)
    remains.close()
    assert not scene.alive()
    assert LaunchCgroup.found(scene.proc, process) is None


def test_the_kernel_ends_a_group_at_once_and_one_in_use_stays(scene):
    main = scene.start('read go; sh -c "$SAY" & wait')
    process = scene.identify(main.pid)
    group = LaunchCgroup.made(scene.proc, process)
    if group is None:
        assert not is_writable(scene.proc)
        return
    main.stdin.write("go\n")
    main.stdin.flush()
    child = told_pid(main)
    assert group.pids() == {main.pid, child}
    group.remove()
    assert group.pids() == {main.pid, child}
    # A server may make groups below its own.
    (Path(group._path) / "of a server").mkdir()
    group.kill()
    wait_ended(main.pid)
    main.wait(WAIT_SECONDS)
    until(lambda: not scene.alive())
    group.remove()
    assert LaunchCgroup.found(scene.proc, process) is None


# Made-up ones.


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    (tmp_path / "proc").mkdir()
    made = FakeHost(tmp_path / "proc")
    made.add(os.getpid(), 1)
    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


def set_cgroup(host: FakeHost, text: str) -> None:
    (host.root / str(os.getpid()) / "cgroup").write_text(text, encoding="ascii")


@pytest.mark.parametrize(
    ("mount", "text", "place"),
    [
        (".", "0::/system.slice/vllm-agent.service\n", "system.slice/vllm-agent.service"),
        (".", "0::/\n", "."),
        ("unified", "4:memory:/a\n1:name=systemd:/b\n0::/c\n", "unified/c"),
    ],
)
def test_the_group_is_below_that_of_the_agent(host, root, mount, text, place):
    set_cgroup(host, text)
    (root / mount).mkdir(parents=True)
    (root / mount / "cgroup.controllers").touch()
    folder = root / place / "vllm-agent-launch-77-5000"
    assert LaunchCgroup.found(host.proc, PROCESS, root) is None
    folder.mkdir(parents=True)
    (folder / "cgroup.procs").write_text("77\n0\n78\n", encoding="ascii")
    (folder / "of a server").mkdir()
    (folder / "of a server" / "cgroup.procs").write_text("79\n", encoding="ascii")
    group = LaunchCgroup.found(host.proc, PROCESS, root)
    assert group is not None
    assert group.pids() == {77, 78, 79}
    # An older Linux has no such file.
    group.kill()
    (folder / "cgroup.kill").touch()
    group.kill()
    assert (folder / "cgroup.kill").read_text(encoding="ascii") == "1"
    group.remove()
    assert folder.exists()


@pytest.mark.parametrize(
    "text", ["", "4:memory:/a\n", "0::/../elsewhere\n"], ids=["unreadable", "version 1", "outside"]
)
def test_without_a_place_there_is_no_group(host, root, text):
    root.mkdir()
    (root / "cgroup.controllers").touch()
    (root.parent / "elsewhere" / "vllm-agent-launch-77-5000").mkdir(parents=True)
    set_cgroup(host, text)
    assert LaunchCgroup.found(host.proc, PROCESS, root) is None
    assert LaunchCgroup.made(host.proc, PROCESS, root) is None


def test_without_version_2_there_is_no_group(host, root):
    root.mkdir()
    set_cgroup(host, "0::/\n")
    assert LaunchCgroup.made(host.proc, PROCESS, root) is None


def test_a_group_that_takes_nobody_is_removed_again(host, root):
    root.mkdir()
    (root / "cgroup.controllers").touch()
    set_cgroup(host, "0::/\n")
    # In a folder that is no cgroup there is nothing to write to.
    assert LaunchCgroup.made(host.proc, PROCESS, root) is None
    assert {path.name for path in root.iterdir()} == {"cgroup.controllers"}
