"""Packs what is installed here as wheels again, so that pip can install it without any index."""

from __future__ import annotations

import importlib.metadata
import zipfile
from typing import TYPE_CHECKING, Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Iterable
    from importlib.metadata import Distribution
    from pathlib import Path

NOT_IN_A_WHEEL: Final = frozenset({"INSTALLER", "REQUESTED", "RECORD", "direct_url.json"})
"""pip writes these itself."""


def pack(requirements: Iterable[str], folder: Path) -> None:
    """Makes a wheel of each thing that the requirements need.

    Raises:
        importlib.metadata.PackageNotFoundError: one of them is not installed; names it.
    """
    waiting = [Requirement(one) for one in requirements]
    done: set[str] = set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in done or (
            wanted.marker is not None and not wanted.marker.evaluate({"extra": ""})
        ):
            continue
        done.add(name)
        installed = importlib.metadata.distribution(name)
        _write(installed, folder)
        waiting += [Requirement(one) for one in installed.requires or ()]


def _write(installed: Distribution, folder: Path) -> None:
    inside = [
        file
        for file in installed.files or ()
        # Scripts lie outside of the packages; pip makes them anew.
        if file.parts[0] != ".." and file.suffix != ".pyc" and file.name not in NOT_IN_A_WHEEL
    ]
    info = next(file.parent for file in inside if file.parent.suffix == ".dist-info")
    with zipfile.ZipFile(folder / _file_name(installed), "w") as wheel:
        for file in inside:
            wheel.write(str(installed.locate_file(file)), str(file))
        record = f"{info}/RECORD"
        lines = [*(f"{file},," for file in inside), f"{record},,"]
        wheel.writestr(record, "\n".join(lines) + "\n")


def _file_name(installed: Distribution) -> str:
    lines = (installed.read_text("WHEEL") or "").splitlines()
    tags = [line.removeprefix("Tag: ").split("-") for line in lines if line.startswith("Tag: ")]
    compressed = [".".join(dict.fromkeys(parts)) for parts in zip(*tags, strict=True)]
    name = canonicalize_name(installed.metadata["Name"]).replace("-", "_")
    return "-".join([name, installed.version, *compressed]) + ".whl"
