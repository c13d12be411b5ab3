"""`vllm-agent export-assets`: writes the dashboards and alert rules of this version to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from vllm_agent.cli.outcome import CommandError, ExitCode

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

_INSTALLED: Final = Path(__file__).parents[1] / "assets"
_CHECKOUT: Final = Path(__file__).parents[3]
ASSETS: Final[tuple[tuple[str, str], ...]] = (
    ("dashboards/grafana", "*.json"),
    ("alerts", "*.yml"),
)
"""Folders of the project, which a wheel has below `assets`, and what in them is for users."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the folder."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="Made if it is not there.")
    parser.add_argument(
        "--force", action="store_true", help="Replace files in it that are not the same."
    )
    parser.epilog = (
        "Writes dashboards/grafana/*.json, and alerts/ with the rules for Prometheus, the same "
        "rules as a PrometheusRule, and an example for Alertmanager. Needs no agent."
    )


def execute(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:  # noqa: ARG001 - the signature of every command
    """Writes every file, or none where one would be lost."""
    folder: Path = arguments.folder
    files = _files()
    try:
        lost = [] if arguments.force else [name for name in files if _is_other(folder, files, name)]
        if lost:
            raise CommandError(
                f"not written, since they are there and differ: {', '.join(lost)}",
                "use another folder, or --force to replace them",
            )
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except OSError as error:
        raise CommandError(f"cannot write to {folder}: {error.strerror}") from error
    for name in files:
        print(folder / name)
    return ExitCode.DONE


def _files() -> dict[str, bytes]:
    """Relative path and content of everything that is exported."""
    root = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
    found = {
        f"{folder}/{path.name}": path.read_bytes()
        for folder, pattern in ASSETS
        for path in sorted((root / folder).glob(pattern))
    }
    if not found:
        raise CommandError("this installation has no dashboards and rules: install it from a wheel")
    return found


def _is_other(folder: Path, files: Mapping[str, bytes], name: str) -> bool:
    path = folder / name
    return path.exists() and path.read_bytes() != files[name]
