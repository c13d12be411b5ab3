"""Reads a Dockerfile and a .dockerignore as far as this project uses them, and refuses the rest."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

KEYWORDS: Final = frozenset(
    {
        *("FROM", "ARG", "ENV", "LABEL", "WORKDIR", "USER", "COPY", "RUN"),
        *("VOLUME", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT"),
    }
)

_VARIABLE: Final = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_FROM: Final = re.compile(r"(\S+)(?:\s+AS\s+(\S+))?", re.IGNORECASE)


class DockerfileError(ValueError):
    """A line is not of the part of the language that is read here; says which line."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, its lines joined."""

    keyword: str
    value: str
    line: int

    @property
    def words(self) -> list[str]:
        """An exec form, or else the words of a shell."""
        if self.value.startswith("["):
            return [str(word) for word in json.loads(self.value)]
        return shlex.split(self.value)

    def pairs(self, variables: Mapping[str, str]) -> dict[str, str]:
        """`NAME=value …` of ENV and LABEL."""
        return dict(expand(word, variables).split("=", 1) for word in self.words)


@dataclass(frozen=True, slots=True)
class Stage:
    """What lies between one FROM and the next."""

    base: str
    name: str
    instructions: tuple[Instruction, ...]

    def values(self, keyword: str) -> list[str]:
        """What each instruction of that keyword says."""
        return [one.value for one in self.instructions if one.keyword == keyword]


def parse(text: str) -> tuple[Stage, ...]:
    """The stages of a Dockerfile.

    Raises:
        DockerfileError: it uses something that is not read here.
    """
    stages: list[Stage] = []
    for one in _instructions(text):
        if one.keyword == "FROM":
            found = _FROM.fullmatch(one.value)
            if found is None:
                raise DockerfileError(f"line {one.line}: FROM {one.value}")
            stages.append(Stage(found[1], found[2] or str(len(stages)), ()))
        elif not stages:
            raise DockerfileError(f"line {one.line}: {one.keyword} before the first FROM")
        else:
            last = stages[-1]
            stages[-1] = Stage(last.base, last.name, (*last.instructions, one))
    return tuple(stages)


def expand(text: str, variables: Mapping[str, str]) -> str:
    """The text with `$NAME` and `${NAME}` replaced; a name that nobody set is empty."""
    return _VARIABLE.sub(lambda found: variables.get(found[1] or found[2], ""), text)


def _instructions(text: str) -> Iterator[Instruction]:
    joined, first = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#"):
            if re.match(r"#\s*(escape|syntax|check)\s*=", line) and number == 1:
                raise DockerfileError(f"line {number}: {line}")
            continue
        if not line.strip():
            continue
        first = first or number
        if line.rstrip().endswith("\\"):
            joined += line.rstrip()[:-1]
            continue
        keyword, _, value = (joined + line).strip().partition(" ")
        if keyword.upper() not in KEYWORDS or "<<" in value:
            raise DockerfileError(f"line {first}: {keyword} {value}")
        yield Instruction(keyword.upper(), value.strip(), first)
        joined, first = "", 0
    if joined:
        raise DockerfileError(f"line {first}: goes on after the end of the file")


class Ignore:
    """What a .dockerignore leaves out: the last pattern that matches a path or a folder of it."""

    def __init__(self, text: str) -> None:
        lines = [line.strip() for line in text.splitlines()]
        self.patterns = [line for line in lines if line and not line.startswith("#")]
        self._rules = [
            (_regex(line.removeprefix("!")), line.startswith("!")) for line in self.patterns
        ]
        self._kept = [line[1:] for line in self.patterns if line.startswith("!")]

    def leaves_out(self, path: str) -> bool:
        """Whether a path below the root of the context is not sent."""
        is_out = False
        parts = path.split("/")
        prefixes = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        for regex, is_exception in self._rules:
            if any(regex.fullmatch(prefix) for prefix in prefixes):
                is_out = not is_exception
        return is_out

    def files(self, root: Path) -> Iterator[str]:
        """The paths below `root` that are sent."""
        folders = [root]
        while folders:
            for entry in sorted(folders.pop().iterdir()):
                path = entry.relative_to(root).as_posix()
                if entry.is_dir() and not entry.is_symlink():
                    if not self.leaves_out(path) or any(
                        kept.startswith(f"{path}/") for kept in self._kept
                    ):
                        folders.append(entry)
                elif not self.leaves_out(path):
                    yield path


def _regex(pattern: str) -> re.Pattern[str]:
    """As Docker reads it: `**` is any folders, `*` and `?` stay within one name."""
    parts: Iterable[str] = re.split(r"(\*\*/|\*\*|\*|\?)", pattern.strip("/"))
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(meaning.get(part, re.escape(part)) for part in parts))
