"""What keeps a process up, by cgroup files as they look on real hosts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_agent.host.proc import Proc
from vllm_agent.host.supervision import Supervision, parse_supervision

ID = "3f5b1c0e" * 8
OTHER_ID = "a" * 64
POD = "kubepods-burstable-pod1b2c.slice"
USER = "/user.slice/user-1000.slice/user@1000.service"


def v2(path: str) -> str:
    return f"0::{path}\n"


@pytest.mark.parametrize(
    ("path", "unit", "is_user_unit"),
    [
        ("/system.slice/vllm.service", "vllm.service", False),
        ("/system.slice/system-vllm.slice/vllm@llama.service", "vllm@llama.service", False),
        (r"/system.slice/vllm\x2dllama.service", r"vllm\x2dllama.service", False),
        ("/vllm.slice/vllm-70b.service/engine", "vllm-70b.service", False),
        (f"{USER}/app.slice/vllm.service", "vllm.service", True),
        # seen by an agent that has a cgroup namespace of its own, on the host's PIDs
        ("/../../system.slice/vllm.service", "vllm.service", False),
    ],
)
def test_services(path, unit, is_user_unit):
    assert parse_supervision(v2(path)) == Supervision(unit, is_user_unit)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/../..",
        "/init.scope",
        "/system.slice",
        "/user.slice/user-1000.slice/session-3.scope",
        f"{USER}/init.scope",
        f"{USER}/app.slice/app-org.gnome.Terminal.slice/vte-spawn-1f.scope",
        f"{USER}/tmux-spawn-1b.scope",
        "/system.slice/ssh.service",
        "/system.slice/system-sshd.slice/sshd@7-10.0.0.1:22-10.0.0.2:5.service",
        "/system.slice/cron.service",
        "/system.slice/slurmstepd.scope/job_7/step_0/user/task_0",
        "/system.slice/docker.service",
        "/system.slice/run-p4711-i99.service",
        "/system.slice/run-u12.service",
        "/machine.slice/systemd-nspawn@box.service/payload/system.slice/vllm.service",
        "/lxc.payload.box/system.slice/vllm.service",
        "/slurm/uid_1000/job_7",
    ],
)
def test_nothing_that_keeps_a_vllm_up(path):
    assert parse_supervision(v2(path)) == Supervision()


@pytest.mark.parametrize(
    "path",
    [
        f"/docker/{ID}",
        f"/system.slice/docker-{ID}.scope",
        f"/../docker-{ID}.scope",
        f"/kubepods.slice/kubepods-burstable.slice/{POD}/cri-containerd-{ID}.scope",
        f"/kubepods.slice/{POD}/crio-{ID}.scope/container",
        f"/kubepods/burstable/pod1b2c/{ID}",
        f"/system.slice/containerd.service/{POD}:cri-containerd:{ID}",
        f"/machine.slice/libpod-{ID}.scope/container",
        f"{USER}/user.slice/libpod-{ID}.scope/container",
        f"/ecs/task-1/{ID}",
        # a systemd inside the container is not the host's
        f"/docker/{ID}/system.slice/vllm.service",
        # a container within one: the innermost runs the vLLM
        f"/docker/{OTHER_ID}/docker/{ID}",
    ],
)
def test_containers(path):
    assert parse_supervision(v2(path)) == Supervision(container_id=ID)


def test_a_unit_around_a_container_is_told_with_it():
    quadlet = parse_supervision(v2(f"/system.slice/vllm.service/libpod-payload-{ID}"))
    assert quadlet == Supervision("vllm.service", is_user_unit=False, container_id=ID)


@pytest.mark.parametrize("name", [f"libpod-conmon-{ID}.scope", f"crio-conmon-{ID}.scope", ID[1:]])
def test_what_only_looks_like_a_container(name):
    assert parse_supervision(v2(f"/machine.slice/{name}")) == Supervision()


def test_v1_names_the_unit_in_the_hierarchy_of_systemd():
    text = (
        "12:memory:/system.slice/other.service\n"
        "2:cpu,cpuacct:/\n"
        "1:name=systemd:/system.slice/vllm.service\n"
    )
    assert parse_supervision(text) == Supervision("vllm.service")


def test_hybrid():
    text = f"5:devices:/docker/{ID}\n1:name=systemd:/docker/{ID}\n0::/system.slice/docker.service\n"
    assert parse_supervision(text) == Supervision(container_id=ID)


def test_v1_without_systemd():
    assert parse_supervision(f"4:memory:/docker/{ID}\n3:cpu:/\n").container_id == ID


def test_this_process():
    proc = Proc()
    assert isinstance(parse_supervision(proc.cgroup(1) or ""), Supervision)


@given(
    st.text()
    | st.lists(
        st.sampled_from(["0:", ":", "/", "a.service", ".scope", "user@1.service", ID, "\n"])
    ).map("".join)
)
def test_never_raises(text):
    found = parse_supervision(text)
    assert found.unit is None or found.unit.endswith(".service")
    assert found.container_id is None or len(found.container_id) == 64
