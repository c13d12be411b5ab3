"""A small model of several files, as a repository of the Hub has it."""

from __future__ import annotations

import json
import random

REPO = "org/tiny-model"
SHARDS = tuple(f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3))
SHARD_BYTES = 1024 * 1024
HEADER_BYTES = 1000
INDEX = "model.safetensors.index.json"


def sharded() -> dict[str, bytes]:
    """Three shards with their index, and what else vLLM does and does not fetch."""
    dice = random.Random(5)
    index = {
        "metadata": {"total_size": 3 * (SHARD_BYTES - HEADER_BYTES)},
        "weight_map": {f"layer.{at}": name for at, name in enumerate(SHARDS)},
    }
    return {
        "config.json": b"{}",
        INDEX: json.dumps(index, indent=2).encode(),
        "tokenizer.json": dice.randbytes(30_000),
        **{name: dice.randbytes(SHARD_BYTES) for name in SHARDS},
        "original/consolidated.00.pth": dice.randbytes(5000),
        "README.md": b"about",
    }


def single() -> dict[str, bytes]:
    """One file of weights, beside the same in an older format."""
    dice = random.Random(6)
    return {
        "config.json": b"{}",
        "model.safetensors": dice.randbytes(SHARD_BYTES),
        "pytorch_model.bin": dice.randbytes(SHARD_BYTES + 7),
    }
