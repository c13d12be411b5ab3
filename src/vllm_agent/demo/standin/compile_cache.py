"""What a compilation leaves in vLLM's cache, where one is named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vllm_agent.demo.standin import process
from vllm_agent.demo.standin.hub_cache import digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_agent.demo.standin.options import Options
    from vllm_agent.demo.standin.reactor import Reactor

PARTS: Final = 8
"""Compiled graphs that come one after the other; a real model has one for each of its layers."""

_RECORDED_ROOT: Final = "/home/vllm/.cache/vllm"
_PART_BYTES: Final = 4_096


def model_path(environ: Mapping[str, str], options: Options) -> Path:
    """Where the compiled model is saved; below the recorded folder where no cache is named."""
    root = Path(environ.get("VLLM_CACHE_ROOT") or _RECORDED_ROOT)
    key = f"{options.model} {process.start_time_ticks()}"
    folder = root / "torch_compile_cache" / "torch_aot_compile"
    return folder / digest(key) / "rank_0_0" / "model"


def compile_model(options: Options, seconds: float, reactor: Reactor) -> Path:
    """Takes its time, and writes as it goes into the cache that VLLM_CACHE_ROOT names."""
    path = model_path(os.environ, options)
    is_written = bool(os.environ.get("VLLM_CACHE_ROOT"))
    inductor = path.parents[1] / "inductor_cache"
    for number in range(PARTS):
        if not reactor.sleep(seconds / PARTS):
            return path
        if is_written:
            folder = inductor / f"{number:02x}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"c{number}.py").write_bytes(b"#" * _PART_BYTES)
    if is_written:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"#" * _PART_BYTES)
    return path
