"""What one look at the GPUs costs, in a process that does nothing else.

`python -m benchmarks.gpu_pass --passes N --held PID… --others PID…` prints the CPU time of each
pass in seconds as JSON. `--held` are processes of servers that the agent knows. It sees the driver
that its environment names.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import time
from typing import TYPE_CHECKING, Final

import uvloop

from benchmarks.gpus import DEVICES
from vllm_agent.config.choices import GpuUse
from vllm_agent.host.clock import now
from vllm_agent.host.gpu.collector import GpuCollector
from vllm_agent.host.gpu.nvml import NvmlReader
from vllm_agent.host.proc import Proc
from vllm_agent.lifecycle.server_life import Policy, ServerLife
from vllm_agent.lifecycle.states import LifecycleMode
from vllm_agent.observations import ProcessId, ProcessTree
from vllm_agent.snapshot import ServerSnapshot

if TYPE_CHECKING:
    from collections.abc import Sequence

WARM_UP_PASSES: Final = 3
"""The first one loads the library, which happens once in the life of an agent."""

NEVER_SECONDS: Final = 300.0
"""Between the passes that the collector makes by itself: more than all that are asked for take."""

TIMEOUT_SECONDS: Final = 30.0


async def measure(passes: int, held: Sequence[int], others: Sequence[int]) -> list[float]:
    """CPU seconds of each pass: reading, who is there, and who holds what."""
    servers = [_server(index, held[index::DEVICES]) for index in range(DEVICES)]
    collector = GpuCollector(
        [(NvmlReader(now), GpuUse.REQUIRED)],
        proc=Proc(),
        clock=now,
        servers=lambda: servers,
        interval_seconds=NEVER_SECONDS,
        timeout_seconds=TIMEOUT_SECONDS,
    )
    looking = asyncio.create_task(collector.run())
    try:
        samples = []
        for _ in range(WARM_UP_PASSES + passes):
            began = time.process_time()
            await collector.look_now()
            gpus = collector.snapshots(servers)
            samples.append(time.process_time() - began)
            listed = {process.pid for one in gpus for process in one.gpu.processes or ()}
            if listed != {*held, *others}:
                raise SystemExit(f"{len(gpus)} devices with {len(listed)} processes were read")
        return samples[WARM_UP_PASSES:]
    finally:
        looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await looking


def _server(index: int, pids: Sequence[int]) -> ServerSnapshot:
    tree = ProcessTree(process=ProcessId("", pids[0], 0), is_main_alive=True, pids=tuple(pids))
    life = ServerLife.begun(Policy(), None, now())
    return ServerSnapshot(
        f"s{index}",
        LifecycleMode.MONITORED,
        "",
        is_discovered=False,
        policy=Policy(),
        life=life,
        tree=tree,
    )


def main() -> None:
    """Prints the samples."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_pass")
    parser.add_argument("--passes", type=int, required=True)
    parser.add_argument("--held", type=int, nargs="+", required=True)
    parser.add_argument("--others", type=int, nargs="+", required=True)
    options = parser.parse_args()
    print(json.dumps(uvloop.run(measure(options.passes, options.held, options.others))))


if __name__ == "__main__":
    main()
