"""How often the OOM killer struck in the cgroup of a server: versions 1, 2, both, and for real."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_agent.host.oom_kills import LAUNCH_PREFIX, MAX_LEVELS_BETWEEN, OomKills
from vllm_agent.host.proc import Proc
from vllm_agent.observations import SightKind

if TYPE_CHECKING:
    from collections.abc import Iterator

MOUNT = Path("/sys/fs/cgroup")
LIMIT_BYTES = 32 << 20
V1 = "memory.oom_control"
V2 = "memory.events"
V1_TEXT = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"
V2_TEXT = "low 0\nhigh 0\nmax 12\noom 3\noom_kill {}\noom_group_kill 7\n"


def put(place: Path, name: str, count: int | str) -> None:
    place.mkdir(parents=True, exist_ok=True)
    (place / name).write_text((V1_TEXT if name == V1 else V2_TEXT).format(count), encoding="ascii")


# Where the count is.


@pytest.mark.parametrize(
    ("text", "place", "name"),
    [
        ("0::/system.slice/vllm.service\n", "system.slice/vllm.service", V2),
        ("0::/\n", "", V2),
        ("5:memory:/docker/abc\n0::/docker/abc\n", "memory/docker/abc", V1),
        ("9:cpu,memory:/x\n1:name=systemd:/y\n", "memory/x", V1),
        ("1:name=systemd:/y\n0::/y\n", "unified/y", V2),
        ("0::/a[b]*?/c\n", "a[b]*?/c", V2),
        ("0::/weird:name/c\n", "weird:name/c", V2),
    ],
    ids=["v2", "v2 in a container", "v1", "v1 shared", "both", "glob signs", "colon"],
)
def test_count_is_that_of_the_memory_cgroup(tmp_path, text, place, name):
    put(tmp_path / place, name, 4)
    kills = OomKills(text, tmp_path)
    assert (kills.read(), kills.risen()) == (4, 0)
    put(tmp_path / place, name, 6)
    assert (kills.read(), kills.risen()) == (6, 2)
    assert kills.sight().is_visible


@pytest.mark.parametrize(
    ("above", "place"),
    [
        ("/system.slice/agent.service", "system.slice/agent.service"),
        ("", ""),
        ("/../agent.scope", "pod/agent.scope"),
    ],
    ids=["unit", "root of a container", "beside the agent's own"],
)
@pytest.mark.parametrize("mount", ["", "unified"])
def test_kills_of_a_launch_of_the_agent_are_counted_by_the_group_around_its_own(
    tmp_path, above, place, mount
):
    name = f"{LAUNCH_PREFIX}-12-345"
    (tmp_path / mount / place / name).mkdir(parents=True)
    put(tmp_path / mount / place, V2, 1)
    kills = OomKills(f"0::{above}/{name}\n", tmp_path)
    put(tmp_path / mount / place, V2, 3)
    assert (kills.read(), kills.risen()) == (3, 2)
    assert kills.sight().is_visible


def test_a_unit_of_the_agent_itself_counts_for_itself(tmp_path):
    put(tmp_path / "system.slice" / "vllm-agent.service", V2, 1)
    put(tmp_path / "system.slice", V2, 9)
    assert OomKills("0::/system.slice/vllm-agent.service\n", tmp_path).read() == 1


def test_the_group_of_a_launch_hides_no_controller_of_version_1(tmp_path):
    put(tmp_path / "memory" / "docker", V1, 2)
    text = f"5:memory:/docker\n0::/docker/{LAUNCH_PREFIX}-12-345\n"
    assert OomKills(text, tmp_path).read() == 2


@pytest.mark.parametrize("levels", range(MAX_LEVELS_BETWEEN + 1))
def test_relative_path_is_found_below_what_it_shares_with_the_agent(tmp_path, levels):
    """As /proc/PID/cgroup reads inside of a cgroup namespace."""
    shared = tmp_path.joinpath(*[f"level{number}" for number in range(levels)])
    put(shared / "pod" / "vllm.scope", V2, 2)
    put(tmp_path / "other" / "else.scope", V2, 9)
    assert OomKills("0::/../../pod/vllm.scope\n", tmp_path).read() == 2


def test_relative_path_is_searched_no_deeper(tmp_path):
    put(tmp_path / "a" / "b" / "c" / "d" / "vllm.scope", V2, 2)
    assert OomKills("0::/../vllm.scope\n", tmp_path).read() is None


def test_relative_path_that_fits_twice_is_unknown(tmp_path):
    put(tmp_path / "a" / "vllm.scope", V2, 2)
    put(tmp_path / "b" / "vllm.scope", V2, 3)
    assert OomKills("0::/../vllm.scope\n", tmp_path).read() is None


def test_absolute_path_is_not_searched_for(tmp_path):
    put(tmp_path / "a" / "vllm.scope", V2, 2)
    assert OomKills("0::/vllm.scope\n", tmp_path).read() is None


@pytest.mark.parametrize("path", ["/a/../../secret", "/../a/../../secret"])
def test_path_never_leaves_the_mount(tmp_path, path):
    put(tmp_path / "secret", V2, 5)
    put(tmp_path / "root" / "a", V2, 1)
    assert OomKills(f"0::{path}\n", tmp_path / "root").read() is None


@pytest.mark.parametrize("text", ["", "nonsense", "0::", "0::/gone (deleted)\n", "3:cpu:/x\n"])
def test_unknown_cgroup_is_none_and_says_what_to_do(tmp_path, text):
    kills = OomKills(text, tmp_path)
    assert (kills.read(), kills.risen()) == (None, None)
    sight = kills.sight()
    assert (sight.kind, sight.is_visible) == (SightKind.CGROUP, False)
    assert "not mounted" in sight.why_not
    assert "--cgroupns=host" in sight.fix


@pytest.mark.parametrize("count", ["", "x", "-"])
def test_count_that_is_no_number_is_unknown(tmp_path, count):
    put(tmp_path / "a", V2, count)
    assert OomKills("0::/a\n", tmp_path).read() is None


def test_kernel_without_the_count_is_unknown(tmp_path):
    (tmp_path / V2).write_text("low 0\nhigh 0\n", encoding="ascii")
    kills = OomKills("0::/\n", tmp_path)
    assert kills.read() is None
    assert "counts no OOM kills" in kills.sight().why_not


@given(st.text())
def test_any_text_is_read(text):
    OomKills(text, Path("/nonexistent")).read()


# What becomes of it.


def test_last_value_outlives_the_cgroup(tmp_path):
    put(tmp_path / "a", V2, 1)
    kills = OomKills("0::/a\n", tmp_path)
    put(tmp_path / "a", V2, 2)
    assert kills.read() == 2
    (tmp_path / "a" / V2).unlink()
    assert (kills.read(), kills.risen()) == (2, 1)


def test_next_cgroup_of_the_same_name_takes_nothing_back(tmp_path):
    put(tmp_path / "a", V2, 3)
    kills = OomKills("0::/a\n", tmp_path)
    put(tmp_path / "a", V2, 0)
    assert (kills.read(), kills.risen()) == (3, 0)


def test_own_cgroup_of_this_process_is_read_or_unknown():
    text = Proc().cgroup(os.getpid())
    assert text is not None
    assert OomKills(text).risen() in {0, None}


# The kernel itself.


def real_memory_cgroup() -> Path | None:
    """A folder where this user may make memory cgroups."""
    is_v2 = MOUNT / "cgroup.subtree_control"
    if (MOUNT / "memory" / V1).exists():
        place = MOUNT / "memory"
    elif is_v2.exists() and "memory" in is_v2.read_text(encoding="ascii").split():
        place = MOUNT
    else:
        return None
    return place if os.access(place, os.W_OK) and os.geteuid() == 0 else None


@contextlib.contextmanager
def small_cgroup(parent: Path) -> Iterator[Path]:
    place = parent / f"vllm-agent-test-{os.getpid()}"
    place.mkdir()
    try:
        for name, value in (
            ("memory.swappiness", 0),
            ("memory.limit_in_bytes", LIMIT_BYTES),
            ("memory.swap.max", 0),
            ("memory.max", LIMIT_BYTES),
        ):
            if (place / name).exists():
                (place / name).write_text(f"{value}\n", encoding="ascii")
        yield place
    finally:
        with contextlib.suppress(FileNotFoundError):
            place.rmdir()


REAL = real_memory_cgroup()

if REAL is not None:  # only root can make one, and a skipped test would look like a missing one

    def test_real_kill_is_counted_and_kept(tmp_path):
        assert REAL is not None
        hungry = f"input(); b'x' * {4 * LIMIT_BYTES}"
        with small_cgroup(REAL) as place:
            victim = subprocess.Popen([sys.executable, "-c", hungry], stdin=subprocess.PIPE)
            (place / "cgroup.procs").write_text(f"{victim.pid}\n", encoding="ascii")
            text = Proc().cgroup(victim.pid)
            assert text is not None
            kills = OomKills(text)
            assert (kills.read(), kills.risen()) == (0, 0)
            victim.communicate(b"\n")
            assert victim.returncode == -signal.SIGKILL
            # Counted before the kill is sent, so whoever sees the exit reads it.
            assert (kills.read(), kills.risen()) == (1, 1)
            place.rmdir()
            assert (kills.read(), kills.risen()) == (1, 1)
