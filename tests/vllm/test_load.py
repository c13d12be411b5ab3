"""The load of a real vLLM that nobody configured, with its log and without."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests.e2e.agent_process import AgentProcess, wait_until
from tests.vllm.prepare import default_cache
from tests.vllm.real_vllm import LOAD_SECONDS, RealVllm

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(600)

# Enough for one short request: what it warms up with is as large as it may be asked.
SMALL = ("--max-model-len", "64", "--max-num-batched-tokens", "64", "--max-num-seqs", "4")

STOPS = (3, 6, 9)
"""Files of the eleven after which a load is stopped for a comparison."""

SAMPLE_SECONDS = 0.1
LOG_LINE_SECONDS = 15.0
"""How often the agent's log tells of a load."""

BAR = re.compile(r"checkpoint shards:.*?\| (\d+)/11 \[")
MAPPED = re.compile(r"model-(\d{5})-of-00011\.safetensors")


@dataclass(frozen=True)
class Sample:
    """A load as /metrics shows it."""

    stages: frozenset[str]
    ratio: float | None
    size_bytes: float | None
    is_stalled: float | None


class LoadSamples:
    """Reads the load of one server from /metrics until it is left."""

    def __init__(self, agent: AgentProcess, name: str) -> None:
        self._agent = agent
        self._name = name
        self._samples: list[Sample] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def stages(self) -> list[str]:
        """The stages in their order; exactly one at a time, or none before the first look."""
        stages: list[str] = []
        for sample in self._samples:
            assert len(sample.stages) <= 1, sample
            stages += [stage for stage in sample.stages if stages[-1:] != [stage]]
        return stages

    @property
    def ratios(self) -> list[float]:
        """How much of the weights was loaded, each time that there was a value."""
        return [sample.ratio for sample in self._samples if sample.ratio is not None]

    @property
    def sizes(self) -> set[float]:
        """What all files were said to come to, each time that there was a value."""
        return {one.size_bytes for one in self._samples if one.size_bytes is not None}

    @property
    def was_stalled(self) -> bool:
        """Whether it was ever said to be stalled."""
        return any(sample.is_stalled for sample in self._samples)

    def _read(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            page = self._agent.samples()
            label = ("server", self._name)
            stages = [
                dict(labels)["stage"]
                for (name, labels), value in page.items()
                if name == "vllm_agent_load_stage" and label in labels and value == 1
            ]
            self._samples.append(
                Sample(
                    frozenset(stages),
                    page.get(_key("load_progress_ratio", label, ("stage", "load_weights"))),
                    page.get(_key("load_weights_size_bytes", label)),
                    page.get(_key("load_stalled", label)),
                )
            )


def _key(name: str, *labels: tuple[str, str]) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"vllm_agent_{name}", frozenset(labels)


@dataclass(frozen=True)
class Comparison:
    """One moment of a load that stands still.

    `bar` is how many files vLLM says are loaded, None where it says nothing; `mapped` the number of
    the one that its worker has mapped; `told` what the agent says of the weights.
    """

    bar: int | None
    mapped: int
    told: dict[str, Any]
    ratio: float


def sharded_model() -> Path:
    """The model of eleven files, none of them in the page cache any more."""
    folder = default_cache() / "sharded"
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return folder


def weights_bytes(folder: Path) -> int:
    """What the files of its weights come to."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def logged_shards(server: RealVllm) -> int:
    """How many files vLLM's own progress bar calls loaded."""
    return max((int(done) for done in BAR.findall(server.log())), default=0)


def mapped_shard(server: RealVllm) -> int:
    """The number of the file that a worker has mapped, 0 where it has none."""
    numbers = [0]
    for pid in server.worker_pids:
        with contextlib.suppress(OSError):
            numbers += map(int, MAPPED.findall(Path(f"/proc/{pid}/maps").read_text()))
    return max(numbers)


@contextlib.contextmanager
def standing_still(server: RealVllm) -> Iterator[None]:
    """Stops the workers, so that vLLM, the agent and this test look at the same moment."""
    pids = server.worker_pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def compare(agent: AgentProcess, server: RealVllm, *, has_log: bool) -> list[Comparison]:
    """What vLLM, its process and the agent say at some moments of the load."""

    def weights() -> dict[str, Any]:
        load = agent.server(server.name)["load"] or {}
        return load.get("weights") or {}

    def is_loaded(count: int) -> bool:
        # Where its log is hidden, the next file is the only sign that one is loaded.
        return (logged_shards(server) if has_log else mapped_shard(server) - 1) >= count

    def is_told(number: int) -> bool:
        return weights().get("shard") == number

    compared = []
    for stop in STOPS:
        wait_until(partial(is_loaded, stop), f"{stop} files are loaded", LOAD_SECONDS)
        with standing_still(server):
            mapped = mapped_shard(server)
            wait_until(partial(is_told, mapped), f"the agent sees file {mapped}: {weights()}")
            ratio = agent.sample("load_progress_ratio", server=server.name, stage="load_weights")
            assert ratio is not None
            bar = logged_shards(server) if has_log else None
            compared.append(Comparison(bar, mapped, weights(), ratio))
            if stop == STOPS[-1]:
                wait_until(
                    lambda: any("stage=load_weights" in line for line in log_lines(agent, server)),
                    "the agent's log tells of it",
                    2 * LOG_LINE_SECONDS,
                )
    return compared


def log_lines(agent: AgentProcess, server: RealVllm) -> list[str]:
    """What the agent's log has told of the load."""
    begin = f"msg=loading server={server.name} "
    return [line for line in agent.log().splitlines() if begin in line]


def check(agent: AgentProcess, server: RealVllm, samples: LoadSamples, served: float) -> None:
    """What was said of a load while it was under way, and what is left of it once it serves."""
    wait_until(lambda: samples.stages[-1:] == ["none"], "the load is over")
    assert samples.stages == ["init", "load_weights", "warmup", "none"]
    assert samples.ratios == sorted(samples.ratios)
    assert len(set(samples.ratios)) >= len(STOPS)
    assert samples.sizes == {weights_bytes(default_cache() / "sharded")}
    assert not samples.was_stalled

    seconds = served - server.started_seconds
    stage_seconds = {
        dict(labels)["stage"]: value
        for (name, labels), value in agent.samples().items()
        if name == "vllm_agent_load_stage_seconds" and ("server", server.name) in labels
    }
    told = agent.sample("load_duration_seconds_sum", server=server.name)
    print(f"{seconds:.1f} s, told: {told} s, {stage_seconds}")
    assert agent.sample("load_duration_seconds_count", server=server.name) == 1
    assert told == pytest.approx(seconds, abs=2)
    assert sum(stage_seconds.values()) == pytest.approx(told, abs=1)
    load = agent.server(server.name)["load"]
    assert load["stage"] == "none"
    assert load["weights"]["ratio"] == 1


def test_a_load_is_seen_as_vllm_tells_it(tmp_path: Path) -> None:
    """Stage by stage, with the same file as in vLLM's own bar at the same moment."""
    server = RealVllm(tmp_path, model=str(sharded_model()), arguments=SMALL)
    with AgentProcess(tmp_path) as agent, server, LoadSamples(agent, server.name) as samples:
        wait_until(lambda: agent.get(f"/api/v1/servers/{server.name}")[0] == 200, "it is found")
        with _waiting_cli(agent, server.name) as waiting:
            compared = compare(agent, server, has_log=True)
            served = server.wait_serving()
            told, lines = waiting.communicate(timeout=60)
        assert (waiting.returncode, told) == (0, f"{server.name} is running\n"), lines
        check(agent, server, samples, served)
    print(lines)
    for moment in compared:
        print(moment)
        assert moment.bar is not None
        assert abs(moment.ratio * 11 - moment.bar) <= 1
        assert (moment.told["shards"], moment.told["source"]) == (11, "shards")
    logged = log_lines(agent, server)
    print("\n".join(logged))
    assert len(logged) == pytest.approx((served - server.started_seconds) / LOG_LINE_SECONDS, abs=1)
    assert all("/11" in line for line in logged if "stage=load_weights" in line)


def test_a_load_without_a_log_is_seen_by_what_is_mapped(tmp_path: Path) -> None:
    """Nothing tells of the files but the memory map of the worker, and that is enough."""
    server = RealVllm(tmp_path, model=str(sharded_model()), arguments=SMALL, has_log=False)
    with AgentProcess(tmp_path) as agent, server, LoadSamples(agent, server.name) as samples:
        compared = compare(agent, server, has_log=False)
        check(agent, server, samples, server.wait_serving())
        witnesses = agent.server(server.name)["load"]["witnesses"]
    for moment in compared:
        print(moment)
        assert moment.ratio == pytest.approx((moment.mapped - 1) / 11, abs=0.01)
    print(witnesses)
    told = {one["witness"] for one in witnesses if one["last_progress_timestamp_seconds"]}
    assert {"shards", "components"} <= told
    assert "log" not in told


@contextlib.contextmanager
def _waiting_cli(agent: AgentProcess, name: str) -> Iterator[subprocess.Popen[str]]:
    """`vllm-agent wait` for a server, from now on."""
    command = [sys.executable, "-m", "vllm_agent", "wait", name, "--for", "running"]
    with subprocess.Popen(
        [*command, f"--state.dir={agent.state_dir}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
