"""What was measured of a row, and its verdict."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Self

from benchmarks.rows import Judged
from benchmarks.statistic import median, p99

if TYPE_CHECKING:
    from benchmarks.rows import Row

NOT_INSTALLED: Final = "peer not installed: make deps"


@dataclass(frozen=True, slots=True)
class Peer:
    """What a peer needed for the same, in the unit of the row; `problem` says why it is unknown."""

    name: str
    samples: tuple[float, ...] = ()
    problem: str = ""

    @classmethod
    def missing(cls, name: str) -> Self:
        """A peer whose program is not on this machine."""
        return cls(name, problem=NOT_INSTALLED)


@dataclass(frozen=True, slots=True)
class Result:
    """The samples of a row beside those of its peer.

    `ratio` is ours over the peer's; where it is not given it is that of the medians. `problem` says
    why there is nothing to judge.
    """

    row: Row
    samples: tuple[float, ...] = ()
    peer: Peer | None = None
    paired_ratio: float | None = None
    notes: tuple[str, ...] = ()
    problem: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours over the peer's; None where one of them is unknown."""
        if self.paired_ratio is not None:
            return self.paired_ratio
        if self.peer is None or not self.peer.samples or not self.samples:
            return None
        of_peer = median(self.peer.samples)
        return median(self.samples) / of_peer if of_peer > 0 else None

    @property
    def judged(self) -> float | None:
        """The number that is held against the bar; None where it could not be measured."""
        if not self.samples or self.row.bar is None:
            return None
        match self.row.bar.judged:
            case Judged.MEDIAN:
                return median(self.samples)
            case Judged.P99:
                return p99(self.samples)
            case Judged.RATIO:
                return self.ratio

    @property
    def is_measured(self) -> bool:
        """Whether there is a number, and one to judge where there is a bar."""
        return bool(self.samples) and (self.row.bar is None or self.judged is not None)

    @property
    def is_met(self) -> bool | None:
        """Whether the bar is met; None without a bar or a number."""
        if self.row.bar is None or self.judged is None:
            return None
        return self.judged <= self.row.bar.limit

    def with_notes(self, *notes: str) -> Result:
        """The same with further notes."""
        return replace(self, notes=(*self.notes, *notes))

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        bar = self.row.bar
        return {
            "row": self.row.name,
            "what": self.row.what,
            "unit": self.row.unit,
            "median": median(self.samples) if self.samples else None,
            "p99": p99(self.samples) if self.samples else None,
            "samples": list(self.samples),
            "bar": None
            if bar is None
            else {"judged": bar.judged, "limit": bar.limit, "text": bar.text},
            "judged": self.judged,
            "is_met": self.is_met,
            "peer": _peer_json(self.peer),
            "ratio": self.ratio,
            "notes": list(self.notes),
            "problem": self.problem,
        }


def _peer_json(peer: Peer | None) -> dict[str, Any] | None:
    if peer is None:
        return None
    return {
        "name": peer.name,
        "median": median(peer.samples) if peer.samples else None,
        "p99": p99(peer.samples) if peer.samples else None,
        "samples": list(peer.samples),
        "problem": peer.problem,
    }
