"""What the agent's witnesses see of a stand-in that downloads, loads and compiles: as of a vLLM."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vllm_agent.host.load.compile_cache import CompileCache
from vllm_agent.host.load.download import DownloadWitness
from vllm_agent.host.load.mapped_shards import MappedShards
from vllm_agent.host.model_environment import ModelEnvironment
from vllm_agent.host.proc import Proc
from vllm_agent.host.vllm_argv import parse_command

if TYPE_CHECKING:
    from vllm_agent.demo.launch import StandIn
    from vllm_agent.observations import Download

BYTES = 4 * 2**20
MODEL = "org/tiny"


@dataclass
class Seen:
    """What each witness told, look by look."""

    downloads: list[Download] = field(default_factory=list)
    shards: list[tuple[int, int]] = field(default_factory=list)
    compile_changes: int = 0


@pytest.fixture
def seen(start, tmp_path) -> Seen:
    began = time.time()
    server = start(
        *("--load-seconds", "3", "--download-seconds", "1", "--shards", "4"),
        *("--download-bytes", str(BYTES)),
        model=MODEL,
        environment={"HF_HOME": str(tmp_path / "hf"), "VLLM_CACHE_ROOT": str(tmp_path / "vllm")},
    )
    return _watch(server, began)


def _watch(server: StandIn, began: float) -> Seen:
    proc, seen = Proc(), Seen()
    while (environment := ModelEnvironment.read(proc, server.pid)) is None:
        assert server.process.poll() is None
    assert environment.compile_cache is not None
    line = Path(f"/proc/{server.pid}/cmdline").read_bytes().rstrip(b"\0").decode()
    command = parse_command(line.split("\0"), lambda _: {})
    download = DownloadWitness(proc, server.pid, command, environment, began, None)
    compiled = CompileCache(proc, server.pid, environment.compile_cache, began)
    mapped = MappedShards(proc)
    deadline = time.monotonic() + 20
    while "startup complete" not in server.log_text():
        assert time.monotonic() < deadline, server.log_text()
        if (found := download.look()) is not None:
            seen.downloads.append(found)
        seen.shards += [(one.number, one.count) for one in mapped.look(server.pids()) or ()]
        seen.compile_changes = max(seen.compile_changes, compiled.changes() or 0)
        time.sleep(0.02)
    return seen


def test_each_sees_its_stage(seen: Seen):
    under_way = [one for one in seen.downloads if one.is_under_way]
    done = [one.done_bytes for one in under_way]

    assert done == sorted(done)
    assert len(set(done)) > 5
    assert {one.size_bytes is not None and one.size_bytes // 2**20 for one in under_way} == {4}
    assert seen.downloads[-1].done_bytes == seen.downloads[-1].size_bytes
    assert not seen.downloads[-1].is_under_way
    assert list(dict.fromkeys(seen.shards)) == [(number, 4) for number in range(1, 5)]
    assert seen.compile_changes > 5
