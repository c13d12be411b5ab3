"""A Hugging Face cache as its library lays it out, with one model."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from vllm_agent.host.hf_hub.checkpoint import INDEXES

if TYPE_CHECKING:
    from pathlib import Path

COMMIT = "c" * 40
INDEX = INDEXES[0]


class Cache:
    """The folder `cache` below a root of its own, with `org/name` in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.repo = root / "cache/models--org--name"
        self.snapshot = self.repo / "snapshots" / COMMIT
        self.snapshot.mkdir(parents=True)
        (self.repo / "blobs").mkdir()
        (self.repo / "refs").mkdir()
        self.refer("main", COMMIT)
        self.add("config.json", b"{}")

    def refer(self, revision: str, content: str) -> None:
        (self.repo / "refs" / revision).write_text(content)

    def add(self, name: str, content: bytes = b"x") -> None:
        blob = self.repo / "blobs" / name.replace("/", "_")
        blob.write_bytes(content)
        link = self.snapshot / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))

    def index(self, *names: str, **metadata: object) -> None:
        content = {"metadata": metadata, "weight_map": {str(at): n for at, n in enumerate(names)}}
        self.add(INDEX, json.dumps(content).encode())

    def list(self, files: object) -> None:
        (self.repo / "trees").mkdir(exist_ok=True)
        (self.repo / f"trees/{COMMIT}.json").write_text(json.dumps(files))
