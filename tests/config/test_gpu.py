"""The section `gpu`: what it gives, its bounds, and how its words are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vllm_agent.config.choices import GpuUse
from vllm_agent.config.gpu import GpuConfig
from vllm_agent.config.load import load
from vllm_agent.config.problem import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def gpu_of(section: str, folder: Path) -> GpuConfig:
    path = folder / "config.yml"
    path.write_text(f"gpu: {section}\n", encoding="utf-8")
    return load(path, {}).gpu


def problem_of(section: str, folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        gpu_of(section, folder)
    (problem,) = caught.value.problems
    return f"{problem.line}: {problem.key_path}: {problem.message}"


@pytest.mark.parametrize("section", ["", "{}", "{nvml: , timeout: }"])
def test_what_is_not_written_has_its_default(section: str, tmp_path: Path):
    expected = GpuConfig(
        nvml=GpuUse.AUTO,
        amdgpu=GpuUse.AUTO,
        demo=False,
        interval_seconds=5.0,
        timeout_seconds=2.0,
    )

    assert gpu_of(section, tmp_path) == load(None, {}).gpu == expected


def test_every_key_is_read(tmp_path: Path):
    section = "{nvml: required, amdgpu: auto, demo: false, interval: 1m, timeout: 500ms}"

    expected = GpuConfig(
        nvml=GpuUse.REQUIRED,
        amdgpu=GpuUse.AUTO,
        demo=False,
        interval_seconds=60.0,
        timeout_seconds=0.5,
    )
    assert gpu_of(section, tmp_path) == expected


@pytest.mark.parametrize("word", ["off", "'off'", "false", "False"])
def test_off_is_off_however_a_template_wrote_it(word: str, tmp_path: Path):
    gpu = gpu_of(f"{{nvml: {word}, amdgpu: {word}}}", tmp_path)

    assert (gpu.nvml, gpu.amdgpu) == (GpuUse.OFF, GpuUse.OFF)


@pytest.mark.parametrize(("word", "shown"), [("off", "'off'"), ("false", "false")])
def test_off_for_all_drivers_gets_told_how_to_write_it(word: str, shown: str, tmp_path: Path):
    expected = (
        f"1: gpu: must be a mapping of keys, got {shown}: to ask no driver, write "
        "gpu: {nvml: off, amdgpu: off}"
    )
    assert problem_of(word, tmp_path) == expected
    assert "nvml: off" not in problem_of("required", tmp_path)


@pytest.mark.parametrize(
    ("word", "shown"),
    [("on", "'on'"), ("true", "true"), ("0", "0"), ("[auto]", "a list"), ("OFF", "'OFF'")],
)
def test_another_word_gets_told_the_three(word: str, shown: str, tmp_path: Path):
    expected = f"1: gpu.nvml: must be auto, off or required, got {shown}: "

    assert problem_of(f"{{nvml: {word}}}", tmp_path).startswith(expected)


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ("{interval: 999ms}", "interval: must be at least 1s, got 999ms"),
        ("{interval: 301s}", "interval: must be at most 5m, got 5m1s"),
        ("{timeout: 99ms}", "timeout: must be at least 100ms, got 99ms"),
        ("{interval: 1m, timeout: 31s}", "timeout: must be at most 30s, got 31s"),
        (
            "{timeout: 6s}",
            (
                "timeout: must be at most the interval (5s), got 6s: a look has to end before the "
                "next one begins"
            ),
        ),
    ],
)
def test_beyond_a_bound_is_refused(section: str, problem: str, tmp_path: Path):
    assert f"1: gpu.{problem}" == problem_of(section, tmp_path)


@pytest.mark.parametrize(
    "section", ["{interval: 1s, timeout: 100ms}", "{interval: 5m, timeout: 30s}"]
)
def test_the_bounds_themselves_are_fine(section: str, tmp_path: Path):
    assert isinstance(gpu_of(section, tmp_path), GpuConfig)


def test_the_default_timeout_never_exceeds_the_interval(tmp_path: Path):
    assert gpu_of("{interval: 1s}", tmp_path).timeout_seconds == 1.0


def test_a_demonstration_needs_no_driver(tmp_path: Path):
    gpu = gpu_of("{nvml: off, amdgpu: off, demo: true}", tmp_path)

    assert (gpu.demo, gpu.nvml, gpu.amdgpu) == (True, GpuUse.OFF, GpuUse.OFF)


@pytest.mark.parametrize("driver", ["nvml", "amdgpu"])
def test_a_demonstration_cannot_require_a_driver(driver: str, tmp_path: Path):
    problem = problem_of(f"{{{driver}: required, demo: true}}", tmp_path)

    assert problem.startswith("1: gpu.demo: goes without a required driver: ")
