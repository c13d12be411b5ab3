"""A /proc of our own, and exit watches that tell when a test says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.host.tree_scene import Watched, everybody
from vllm_agent.host.proc import Proc, ProcessStat, parse_stat

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vllm_agent.observations import VllmCommand

PF_EXITING = 0x4


class FakeWatch:
    """An exit watch that the test lets tell."""

    def __init__(self, process: Any, proc: Any, **callbacks: Any) -> None:
        del proc
        self.process = process
        self.on_exit: Callable[[float, int | None], None] = callbacks["on_exit"]
        self.on_status: Callable[[int | None], None] = callbacks["on_status"]
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


class FakeHost:
    """Processes that are files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "sys/kernel/random").mkdir(parents=True)
        (root / "sys/kernel/random/boot_id").write_text("boot\n", encoding="ascii")
        self.proc = Proc(root)
        self.watches: dict[int, FakeWatch] = {}
        self.failing: OSError | None = None

    def watch(self, process: Any, proc: Any, **callbacks: Any) -> FakeWatch:
        if self.failing is not None:
            raise self.failing
        self.watches[process.pid] = FakeWatch(process, proc, **callbacks)
        return self.watches[process.pid]

    def add(
        self,
        pid: int,
        parent: int,
        title: str = "sh -c x",
        *,
        session: int = 10,
        start: int | None = None,
        state: str = "S",
        flags: int = 0,
        ticks: int = 0,
        status: int = 0,
    ) -> ProcessStat:
        place = self.root / str(pid)
        place.mkdir(exist_ok=True)
        began = 1000 + pid if start is None else start
        fields = ["0"] * 50
        fields[0], fields[1], fields[3], fields[6] = state, str(parent), str(session), str(flags)
        fields[11], fields[17], fields[19], fields[49] = str(ticks), "1", str(began), str(status)
        (place / "stat").write_text(f"{pid} (x) {' '.join(fields)}\n", encoding="ascii")
        (place / "cmdline").write_bytes(title.replace(" ", "\0").encode() + b"\0")
        self.set_pending(pid, 0)
        stat = parse_stat((place / "stat").read_bytes())
        assert stat is not None
        return stat

    def set_pending(self, pid: int, signals: int) -> None:
        text = f"SigPnd:\t0000000000000000\nShdPnd:\t{signals:016x}\n"
        (self.root / str(pid) / "status").write_text(text, encoding="ascii")

    def remove(self, pid: int) -> None:
        for name in ("stat", "cmdline", "status"):
            (self.root / str(pid) / name).unlink()

    def everybody(self) -> list[ProcessStat]:
        return everybody(self.proc)

    def end(self, pid: int, at_seconds: float = 1.0, wait_status: int | None = 0) -> None:
        self.watches[pid].on_exit(at_seconds, wait_status)


def follow(host: FakeHost, command: VllmCommand | None = None) -> Watched:
    """Follows process 10 and what belongs to it."""
    return Watched(10, proc=host.proc, command=command).start(host.everybody())
