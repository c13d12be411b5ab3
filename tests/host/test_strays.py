"""Which components have lost whoever started them, told by kernel names and parents alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import pytest

from vllm_agent.host.proc import ProcessStat
from vllm_agent.host.strays import MAX_ANCESTORS, is_stray
from vllm_agent.host.vllm_argv import role_of_name

if TYPE_CHECKING:
    from vllm_agent.host.proc import Proc

PLAIN = ProcessStat(
    pid=1,
    name="systemd",
    state="S",
    parent=0,
    session=1,
    is_exiting=False,
    cpu_seconds=0.0,
    threads=1,
    start_ticks=1,
    resident_bytes=1,
    exit_status=0,
)
HOST_INIT = PLAIN
ENGINE, WORKER, PARENT = 500, 600, 400


@dataclass
class ToyProc:
    """What /proc tells of the parent beyond its stat."""

    exe: str | None
    firsts: set[int]

    def inner_pid(self, pid: int) -> int:
        return 1 if pid in self.firsts else pid

    def program(self, pid: int) -> str | None:
        del pid
        return self.exe


def stray(
    parent: str | None,
    *,
    parent_pid: int = PARENT,
    program: str | None = "python3.12",
    is_pid_1: bool = False,
    session: int = 1,
    mains: tuple[int, ...] = (),
    leaf: int = WORKER,
) -> bool:
    stats = {
        1: HOST_INIT,
        ENGINE: replace(
            PLAIN, pid=ENGINE, name="VLLM::EngineCor", parent=parent_pid, session=session
        ),
        WORKER: replace(PLAIN, pid=WORKER, name="VLLM::Worker_TP", parent=ENGINE),
    }
    if parent is not None:
        stats[parent_pid] = replace(PLAIN, pid=parent_pid, name=parent, parent=1)
    return is_stray(
        stats[leaf],
        stat_of=stats.get,
        is_component=lambda stat: role_of_name(stat.name) is not None,
        is_main=lambda stat: stat.pid in mains,
        proc=cast("Proc", ToyProc(program, {1, parent_pid} if is_pid_1 else {1})),
    )


@pytest.mark.parametrize("leaf", [ENGINE, WORKER])
@pytest.mark.parametrize(
    ("parent", "pid"),
    [("systemd", 1), ("systemd", PARENT), ("bash", PARENT), ("tini", PARENT), ("pause", PARENT)],
)
def test_below_an_init_a_subreaper_or_a_shell_it_is_a_stray(parent, pid, leaf):
    assert stray(parent, parent_pid=pid, leaf=leaf)


def test_without_a_parent_it_is_a_stray():
    # Between the end of its parent and the look, or where the parent may not be seen.
    assert stray(None)


@pytest.mark.parametrize("parent", ["python3", "pt_main_thread", "vllm", "serve.py", "ray::Serve"])
@pytest.mark.parametrize("is_pid_1", [False, True])
def test_below_a_program_that_starts_components_it_is_none(parent, is_pid_1):
    # A script with LLM(), a Ray worker or a KServe wrapper; also as PID 1 of its container.
    assert not stray(parent, is_pid_1=is_pid_1)


def test_pid_1_of_a_container_that_is_no_python_is_a_reaper():
    assert stray("entrypoint", program="entrypoint", is_pid_1=True)
    assert not stray("entrypoint", program="entrypoint")


def test_what_pid_1_got_from_another_session_it_did_not_start():
    assert stray("supervise.py", is_pid_1=True, session=77)
    assert not stray("supervise.py", session=77)


def test_what_pid_1_executes_is_unknown_so_nothing_below_it_is_called_a_stray():
    assert not stray("entrypoint", program=None, is_pid_1=True)


def test_below_a_main_process_it_is_none_whatever_its_name():
    assert not stray("bash", mains=(PARENT,))


def test_a_loop_of_parents_ends():
    loop = {
        pid: replace(PLAIN, pid=pid, name="VLLM::Worker", parent=1 + pid % MAX_ANCESTORS)
        for pid in range(1, MAX_ANCESTORS + 1)
    }
    assert not is_stray(
        loop[1],
        stat_of=loop.get,
        is_component=lambda _: True,
        is_main=lambda _: False,
        proc=cast("Proc", ToyProc(None, set())),
    )
