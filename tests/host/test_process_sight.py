"""What the agent says when it does not see the processes of its host."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.host.fake_proc import FakeProc
from vllm_agent.host.proc import Proc
from vllm_agent.host.process_sight import process_sight

SCRIPT = """
from vllm_agent.host.proc import Proc
from vllm_agent.host.process_sight import process_sight
import os, sys
if "nobody" in sys.argv:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
sight = process_sight(Proc())
print(sight.is_visible, sight.why_not, sight.fix, sep="|")
"""
pytestmark = [
    pytest.mark.needs("unshare"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes namespaces"),
]


def seen(*prefix: str, who: str = "root") -> list[str]:
    words = [*prefix, sys.executable, "-c", SCRIPT, who]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    return result.stdout.strip().split("|")


def mounted(options: str) -> tuple[str, ...]:
    mount = f'mount -t proc -o {options} proc /proc && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", mount, "sh")


def test_all_is_seen():
    assert process_sight(Proc()).is_visible
    assert seen(who="nobody")[0] == "True"


def test_a_container_with_pids_of_its_own():
    visible, why, fix = seen("unshare", "--fork", "--pid", "--mount-proc")
    assert visible == "False"
    assert why == "the agent runs in a container without the host's PIDs"
    assert "--pid=host" in fix
    assert "hostPID: true" in fix


def test_a_container_whose_init_started_the_agent():
    words = ("unshare", "--fork", "--pid", "--mount-proc", "sh", "-c", '"$@"; exit $?', "sh")
    assert seen(*words)[0] == "False"


def test_a_system_container_is_a_host(tmp_path):
    init = tmp_path / "systemd"
    init.write_text('#!/bin/sh\n"$@"\nexit $?\n')
    init.chmod(0o755)
    assert seen("unshare", "--fork", "--pid", "--mount-proc", str(init))[0] == "True"


def test_the_processes_of_a_pod_are_seen():
    """The agent is beside a first process that is none of its ancestors."""
    with subprocess.Popen(
        ["unshare", "--fork", "--pid", "--mount-proc", "sh", "-c", "echo; exec sleep 60"],
        stdout=subprocess.PIPE,
    ) as pod:
        assert pod.stdout is not None
        pod.stdout.readline()
        children = subprocess.run(
            ["pgrep", "-P", str(pod.pid)], capture_output=True, text=True, check=True
        )
        first = children.stdout.strip()
        try:
            assert seen("nsenter", "--pid", "--mount", "-t", first)[0] == "True"
        finally:
            subprocess.run(["kill", "-9", first], check=True)


def test_the_proc_of_the_host_in_a_container():
    assert seen("unshare", "--fork", "--pid")[0] == "True"


@pytest.mark.parametrize("value", ["1", "2", "noaccess", "invisible", "ptraceable"])
def test_hidepid(value):
    visible, why, fix = seen(*mounted(f"hidepid={value}"), who="nobody")
    assert visible == "False"
    assert "hidepid=" in why
    assert "CAP_SYS_PTRACE" in fix


def test_hidepid_hides_nothing_from_root():
    assert seen(*mounted("hidepid=2"))[0] == "True"


def test_a_proc_that_shows_nothing(tmp_path):
    fake = FakeProc(tmp_path)
    fake.end(1)
    assert process_sight(fake.proc).why_not == "/proc does not show the processes of other users"
