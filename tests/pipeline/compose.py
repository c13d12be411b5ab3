"""Reads docker-compose.yml, the files laid over it and `.env`, as far as the tests of them need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]
COMPOSE_FILE: Final = ROOT / "docker-compose.yml"
ROOT_FILE: Final = ROOT / "deploy" / "compose.root.yml"


@dataclass(frozen=True, slots=True)
class Mount:
    """One folder or file of the host, and where a container sees it."""

    service: str
    source: Path
    target: PurePosixPath
    mode: str


def read(*paths: Path) -> dict[str, Any]:
    """The project of one compose file, or of several laid over each other."""
    project: dict[str, Any] = {}
    for path in paths:
        project = _laid_over(project, yaml.safe_load(path.read_text(encoding="utf-8")))
    return project


def mounts(project: dict[str, Any]) -> list[Mount]:
    """What the services see of the host; relative paths start at the first file."""
    return [
        Mount(name, ROOT / source, PurePosixPath(target), mode)
        for name, service in project["services"].items()
        for source, target, mode in (
            (volume + ":rw").split(":")[:3] for volume in service.get("volumes", ())
        )
        if source.startswith(("./", "/"))
    ]


def flag(service: dict[str, Any], name: str) -> str | None:
    """What a flag of the service's command says; None if it is not there."""
    found = [word.partition("=")[2] for word in service["command"] if word.startswith(f"{name}=")]
    return found[0] if found else None


def project_variables() -> dict[str, str]:
    """What `.env` sets."""
    lines = (ROOT / ".env").read_text(encoding="utf-8").splitlines()
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    return {name: value for name, _, value in pairs}


def _laid_over(below: Any, above: Any) -> Any:
    """Mappings are merged and lists joined; anything else is replaced."""
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: _laid_over(below.get(key), value) for key, value in above.items()}
    if isinstance(below, list) and isinstance(above, list):
        return below + above
    return above
