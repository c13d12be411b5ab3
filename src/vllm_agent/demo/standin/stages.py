"""How a load divides its time; about the shares of a real load of an 11-shard model.

A component is an untitled Python for its whole `…_spawn`, while it imports torch.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vllm_agent.demo.standin.options import Options

_SHARES: Final = MappingProxyType(
    {
        "imports": 0.1,
        "configure": 0.1,
        "engine_spawn": 0.1,
        "engine_init": 0.05,
        "worker_spawn": 0.1,
        "weights": 0.35,
        "compile": 0.1,
        "kv_cache": 0.1,
    }
)


def stage_seconds(options: Options, stage: str) -> float:
    """Seconds that this stage of the load takes."""
    return options.load_seconds * _SHARES[stage]
