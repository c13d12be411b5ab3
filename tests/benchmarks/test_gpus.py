"""The GPUs of the benchmarks are held by whom they should be, and skipped by name where need be."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from benchmarks import gpu_cost
from benchmarks.gpus import COMPILER, DEVICES, USED_BYTES, fake_driver, in_turn
from benchmarks.local_servers import crowd
from benchmarks.programs import ROOT, NotMeasurableError, config_of, running
from vllm_agent.config.choices import GpuUse
from vllm_agent.config.load import load


def test_without_a_compiler_its_name_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotMeasurableError, match=f"{COMPILER} is not installed.*make deps"):
        fake_driver(tmp_path, [[1]])


@pytest.mark.needs(COMPILER)
def test_each_device_is_held_by_its_processes_in_equal_parts(tmp_path):
    devices = fake_driver(tmp_path, [[1, 2], [3], []]).state.devices
    held = [[(one.pid, one.used_bytes) for one in device.processes or ()] for device in devices]
    assert held == [[(1, USED_BYTES // 2), (2, USED_BYTES // 2)], [(3, USED_BYTES)], []]
    assert len({device.uuid for device in devices}) == len(devices)


def test_processes_are_given_to_the_devices_in_turn():
    holders = in_turn(range(2 * DEVICES))
    assert [list(pids) for pids in holders] == [[n, n + DEVICES] for n in range(DEVICES)]


def test_the_agent_without_gpus_asks_no_driver(tmp_path):
    path = tmp_path / "config.yml"
    path.write_text(config_of(()) + gpu_cost.NO_GPUS, encoding="utf-8")
    config = load(path, {})
    assert (config.gpu.nvml, config.gpu.amdgpu) == (GpuUse.OFF, GpuUse.OFF)
    assert config.servers == ()


@pytest.mark.needs(COMPILER)
def test_a_pass_costs_cpu_time(tmp_path):
    with crowd(2 * DEVICES) as pids:
        driver = fake_driver(tmp_path, in_turn(pids))
        words = [f"{pid}" for pid in pids]
        command = [sys.executable, "-m", "benchmarks.gpu_pass", "--passes=2"]
        command += ["--held", *words[:DEVICES], "--others", *words[DEVICES:]]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **driver.environment()},
            stdout=subprocess.PIPE,
            check=True,
        )
    samples = json.loads(done.stdout)
    assert len(samples) == 2
    assert min(samples) > 0.0


def test_a_program_has_what_it_is_given_and_no_settings_of_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_AGENT_LOG_LEVEL", "debug")
    log = tmp_path / "log"
    with running(["env"], log, 0, {"FAKE": "1"}) as program:
        program.process.wait()
    lines = log.read_text(encoding="utf-8").splitlines()
    assert "FAKE=1" in lines
    assert not any(line.startswith("VLLM_AGENT") for line in lines)
