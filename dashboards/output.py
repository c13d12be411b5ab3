"""Writes generated files, or tells which of them are not what their generator makes."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from dashboards import fleet, gpu, server
from dashboards.board import file_text, path_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def generated_files() -> dict[Path, str]:
    """Every dashboard's file, and the text that belongs into it."""
    boards = (fleet.dashboard(), server.dashboard(), gpu.dashboard())
    return {path_of(board["uid"]): file_text(board) for board in boards}


def stale_files(files: Mapping[Path, str]) -> list[Path]:
    """The files that are missing or differ from their generated text."""
    return [
        path
        for path, text in files.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]


def write_files(files: Mapping[Path, str]) -> None:
    """Write every file that is not up to date; the others keep their modification time."""
    for path in stale_files(files):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path], encoding="utf-8")


def add_check_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag that every generator has."""
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")


def write_or_check(files: Mapping[Path, str], *, check: bool) -> int:
    """Write the files, or with `check` name the stale ones; returns the exit status."""
    if not check:
        write_files(files)
        return 0
    stale = stale_files(files)
    for path in stale:
        print(f"{path}: not what its generator writes", file=sys.stderr)
    return 1 if stale else 0


def main(files: Mapping[Path, str], arguments: Sequence[str] | None, prog: str) -> int:
    """The command line of a generator without flags of its own."""
    parser = argparse.ArgumentParser(prog=prog, description="Writes generated files.")
    add_check_flag(parser)
    return write_or_check(files, check=parser.parse_args(arguments).check)
