"""The ends of a real vLLM that were recorded, as evidence for the judge."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vllm_agent.lifecycle.ending import EndingEvidence
from vllm_agent.observations import ComponentAtClose, ComponentExit, ComponentRole

RECORDING: Final = Path(__file__).parent.parent / "testdata" / "endings.jsonl"


@dataclass(frozen=True)
class RecordedEnding:
    """One recorded end: `name` says what was done to the server."""

    name: str
    raw: dict[str, Any]

    @property
    def was_asked_for(self) -> bool:
        """A stop was asked for by a signal; everything else killed a part of the server."""
        return "kill" not in self.name and "segv" not in self.name

    def evidence(self, *, with_statuses: bool) -> EndingEvidence:
        close = next(e for e in self.raw["events"] if e["ev"] == "listener_closed")
        exits = [e for e in self.raw["events"] if e["ev"] == "exit"]
        main = next((e for e in exits if e["who"] == "main"), None)
        parts = close["components"].items()
        return EndingEvidence(
            main_wait_status=self._status(main) if main and with_statuses else None,
            main_exit_seconds=main["t"] if main else None,
            main_was_exiting_at_close=next(c["exiting"] for n, c in parts if n.startswith("main")),
            close_seconds=close["t"],
            at_close=tuple(
                ComponentAtClose(_role(name), c["gone"], c["exiting"], c["killed_pending"])
                for name, c in parts
                if not name.startswith("main")
            ),
            exits=tuple(
                ComponentExit(_role(e["who"]), e["t"], self._status(e) if with_statuses else None)
                for e in exits
                if e is not main
            ),
        )

    def _status(self, event: dict[str, Any]) -> int | None:
        reaped: int | None = self.raw["wait_status"].get(f"{event['who']}#{event['pid']}")
        as_zombie: int | None = event["zombie_code"]
        return as_zombie if reaped is None else reaped


def _role(name: str) -> ComponentRole:
    for title, role in (
        ("VLLM::EngineCore", ComponentRole.ENGINE_CORE),
        ("VLLM::Worker", ComponentRole.WORKER),
        ("VLLM::APIServer", ComponentRole.API_SERVER),
    ):
        if name.startswith(title):
            return role
    raise ValueError(name)


def recorded_endings() -> list[RecordedEnding]:
    rows = map(json.loads, RECORDING.read_text().splitlines())
    return [RecordedEnding(row["name"], row) for row in rows]
