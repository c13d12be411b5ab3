"""What `doctor` can find, and how that is told. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from vllm_agent.cli.text import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Level(StrEnum):
    """How much a finding matters: a problem is something that the agent does not see."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `fix` is a command or a setting, empty where none is needed."""

    level: Level
    about: str
    text: str
    fix: str = ""


def report_lines(findings: Sequence[Finding]) -> list[str]:
    """The findings as lines, and what they come to."""
    about = max((len(finding.about) for finding in findings), default=0)
    level = max(map(len, Level))
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:{level}}  {finding.about:{about}}  {finding.text}")
        if finding.fix:
            lines.append(f"{'':{level}}  {'':{about}}  try: {finding.fix}")
    return [*(plain(line).rstrip() for line in lines), _conclusion(findings)]


def has_problem(findings: Iterable[Finding]) -> bool:
    """Whether something is not visible or does not work."""
    return any(finding.level is Level.PROBLEM for finding in findings)


def _conclusion(findings: Sequence[Finding]) -> str:
    counts = Counter(finding.level for finding in findings)
    told = [
        f"{counts[level]} {level}{'' if counts[level] == 1 else 's'}"
        for level in (Level.PROBLEM, Level.NOTE)
        if counts[level]
    ]
    return ", ".join(told) or "everything can be seen"
