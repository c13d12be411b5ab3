"""Which log files the launches of one agent read, so that one that several write to is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class FollowedFiles:
    """The files that each reader follows, by device and inode. For one thread."""

    def __init__(self) -> None:
        self._held: dict[object, frozenset[tuple[int, int]]] = {}
        self._shared: set[object] = set()

    def hold(self, reader: object, files: Iterable[tuple[int, int]]) -> None:
        """A reader follows these files now, and no others."""
        self._held[reader] = frozenset(files)
        others = self._others(reader)
        if others:
            self._shared |= {reader, *others}

    def release(self, reader: object) -> None:
        """A reader follows none any more."""
        self._held.pop(reader, None)
        self._shared.discard(reader)

    def was_shared(self, reader: object) -> bool:
        """Whether another has followed a file of this reader since this was asked before."""
        was_shared = reader in self._shared
        if was_shared and not self._others(reader):
            self._shared.discard(reader)
        return was_shared

    def _others(self, reader: object) -> list[object]:
        mine = self._held.get(reader, frozenset())
        return [
            other
            for other, files in self._held.items()
            if other is not reader and not mine.isdisjoint(files)
        ]
