"""What it costs to watch GPUs, by itself and beside nvitop-exporter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from benchmarks import nvitop
from benchmarks.gpus import DEVICES, PROCESSES, fake_driver, in_turn
from benchmarks.local_servers import crowd
from benchmarks.process import memory
from benchmarks.programs import ROOT, NotMeasurableError, config_of, started_agent
from benchmarks.rest import rest_percent
from benchmarks.result import Peer, Result
from benchmarks.rows import GPU_CPU, GPU_MEMORY, GPU_PASS
from benchmarks.scraper import Scraper
from benchmarks.session import SCRAPE_SECONDS
from benchmarks.statistic import median
from vllm_agent.config.gpu import GpuConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from benchmarks.process import Memory
    from benchmarks.programs import Program
    from benchmarks.session import Session

PASS_SECONDS: Final = 1.0
"""Longest that one pass and the pause after it may take before the measurement is given up."""

INTERVAL_SECONDS: Final = GpuConfig().interval_seconds
"""The agent's own, given to the peer as well."""

NO_GPUS: Final = "gpu: {nvml: off, amdgpu: off}\n"


def measure_pass(session: Session) -> list[Result]:
    """Passes in a process of their own; half of the processes belong to servers."""
    passes = session.scale.gpu_passes
    with crowd(PROCESSES) as pids:
        driver = fake_driver(session.folder / "gpu-pass", in_turn(pids))
        held, others = pids[::2], pids[1::2]
        command = [sys.executable, "-m", "benchmarks.gpu_pass", f"--passes={passes}"]
        command += ["--held", *map(str, held), "--others", *map(str, others)]
        samples = _passes(command, driver.environment(), passes)
    note = (
        f"{passes} passes of the driver's library, of who is there and of who holds what, CPU of "
        f"the whole process; {len(held)} processes are of {DEVICES} servers, {len(others)} of "
        "nobody that is known. The fake driver reads a file; a real one asks the kernel"
    )
    return [Result(GPU_PASS, tuple(1000 * seconds for seconds in samples), notes=(note,))]


def _passes(
    command: Sequence[str], environment: Mapping[str, str], passes: int
) -> tuple[float, ...]:
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=max(10, passes) * PASS_SECONDS,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        raise NotMeasurableError(f"the passes failed: {error.stderr.strip()}") from error
    except subprocess.TimeoutExpired as error:
        raise NotMeasurableError(f"{passes} passes took too long") from error
    return tuple(json.loads(done.stdout))


def measure_rest(session: Session) -> list[Result]:
    """An agent without servers, with GPUs and without, and nvitop-exporter at two intervals.

    Discovery is off: the peer has none, and it would find the servers of other measurements.
    """
    folder = session.folder / "gpu-rest"
    with ExitStack() as stack:
        pids = stack.enter_context(crowd(PROCESSES))
        environment = fake_driver(folder, in_turn(pids)).environment()
        programs = {
            name: stack.enter_context(started_agent(folder / name, config, environment))
            for name, config in (("own", config_of(())), ("without", config_of(()) + NO_GPUS))
        }
        try:
            programs |= _peers(stack, folder, environment)
        except (NotMeasurableError, OSError) as error:
            problem = str(error)
        else:
            problem = ""
        _check(programs["own"])
        windows = rest_percent(list(programs.values()), session.scale.rest_windows)
        cpu = dict(zip(programs, windows, strict=True))
        memories = {name: memory(program.pid) for name, program in programs.items()}
    return [_cpu(cpu, problem), _memory(memories, problem)]


def _peers(stack: ExitStack, folder: Path, environment: Mapping[str, str]) -> dict[str, Program]:
    program = nvitop.install()
    return {
        name: stack.enter_context(
            nvitop.nvitop_exporter(program, folder / f"{name}.log", seconds, environment)
        )
        for name, seconds in (
            ("peer", INTERVAL_SECONDS),
            ("peer by default", nvitop.DEFAULT_INTERVAL_SECONDS),
        )
    }


def _check(agent: Program) -> None:
    with Scraper(agent.port) as scraper:
        seen = scraper.get().body.count(b"\nvllm_agent_gpu_memory_used_bytes{")
    if seen != DEVICES:
        raise NotMeasurableError(f"the agent shows {seen} of {DEVICES} devices")


def _cpu(cpu: Mapping[str, tuple[float, ...]], problem: str) -> Result:
    own = median(cpu["own"])
    note = (
        f"{len(cpu['own'])} windows of {SCRAPE_SECONDS:g} s, each with one scrape, all programs at "
        f"the same time, a look every {INTERVAL_SECONDS:g} s; {0.6 * own:.2f} s a minute, "
        f"{median(cpu['without']):.2f} % with {NO_GPUS.strip()!r}"
    )
    if problem:
        return Result(GPU_CPU, cpu["own"], Peer(nvitop.NAME, problem=problem), notes=(note,))
    default = median(cpu["peer by default"])
    note += (
        f". {nvitop.NAME} at the same interval; {default:.2f} % at its default of "
        f"{nvitop.DEFAULT_INTERVAL_SECONDS:g} s"
    )
    return Result(GPU_CPU, cpu["own"], Peer(nvitop.NAME, cpu["peer"]), notes=(note,))


def _memory(memories: Mapping[str, Memory], problem: str) -> Result:
    own, without = memories["own"], memories["without"]
    note = (
        f"{without.resident_mib:.1f} MiB with {NO_GPUS.strip()!r}, so the GPUs add "
        f"{own.resident_mib - without.resident_mib:.1f} MiB"
    )
    samples = (own.resident_mib,)
    if problem:
        return Result(GPU_MEMORY, samples, Peer(nvitop.NAME, problem=problem), notes=(note,))
    default = memories["peer by default"].resident_mib
    note += f"; {nvitop.NAME} at its default interval {default:.1f} MiB"
    return Result(
        GPU_MEMORY, samples, Peer(nvitop.NAME, (memories["peer"].resident_mib,)), notes=(note,)
    )
