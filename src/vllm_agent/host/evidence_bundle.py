"""Keeps what is known of the end of a launch in a file, before the next launch covers it up.

One JSON file for each launch, `STATE_DIR/evidence/SERVER/launch-NUMBER-TIME.json`, to be read by
people. Command lines and environments are not in it.
"""

from __future__ import annotations

import json
import math
import os
import stat
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from vllm_agent.host.log_excerpt import cut
from vllm_agent.host.secret_shapes import without_shapes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from vllm_agent.lifecycle.load_progress import LoadProgress
    from vllm_agent.lifecycle.server_life import Ending, Launch
    from vllm_agent.observations import MetricsFacts, ProcessTree
    from vllm_agent.snapshot import ServerSnapshot

MAX_BUNDLES: Final = 10
"""Kept of a server: those of a crash loop beyond its restart limit, and of a few ends before."""

MAX_BUNDLE_BYTES: Final = 256 * 1024
"""Of one file, whatever its launch did; one of a usual end has 10 kB."""

MAX_ENTRIES: Final = 40
"""Of each list: a launch on eight GPUs has ten components, the excerpt of a log 40 lines."""

FILE_MODE: Final = 0o640
"""As the log of a launch: its lines may quote what users asked the server."""

_FOLDER_MODE: Final = 0o750
_SUFFIX: Final = ".json"
_PARTIAL: Final = ".partial"
_COUNTERS: Final = ("iterations", "prompt_tokens", "generation_tokens")


class EvidenceBundles:
    """The files of all servers. Its calls block; one at a time for each server."""

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / "evidence"

    def keep(
        self,
        server: ServerSnapshot,
        ending: Ending,
        *,
        gpu_holders: str = "",
        log_file: str = "",
        metrics_first: MetricsFacts | None = None,
        metrics_last: MetricsFacts | None = None,
    ) -> str:
        """The path of the file that now tells of this end; the oldest beyond MAX_BUNDLES are gone.

        `gpu_holders` says who holds the memory of the GPUs now, `log_file` where the whole log of
        the launch is. `metrics_first` and `metrics_last` are what the launch itself told. An end
        that is kept again, since more is known of it, replaces its file.

        Raises:
            OSError: it could not be written, as on a full disk; nothing is left of it then.
        """
        folder = self._folder / server.name
        folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        name = f"launch-{ending.launch_number}-{_file_time(ending.at.unix_seconds)}{_SUFFIX}"
        content = {
            "server": {
                "name": server.name,
                "mode": server.mode,
                "url": server.url,
                "model": server.model_name,
                "version": server.version,
            },
            "ending": _ending(ending),
            "launch": _launch(server, ending),
            "metrics": _metrics(metrics_first, metrics_last),
            "gpu_holders": gpu_holders,
            "log_file": log_file,
            "log": ending.log[-MAX_ENTRIES:],
        }
        text = json.dumps(_plain(content), ensure_ascii=False, allow_nan=False, indent=2)
        _prune(folder, name)
        _write(folder / name, text.encode() + b"\n")
        return os.fspath(folder / name)


def _ending(ending: Ending) -> Mapping[str, object]:
    return {
        "at": _time(ending.at.unix_seconds),
        "state": ending.state,
        "reason": ending.reason,
        "rule": ending.rule,
        "exit_code": ending.exit_code,
        "signal": ending.signal,
        "holder": ending.holder,
        "evidence": ending.evidence[:MAX_ENTRIES],
    }


def _launch(server: ServerSnapshot, ending: Ending) -> Mapping[str, object]:
    """What is known of the launch that ended; where another one has begun, that is its number."""
    launch = server.life.launch
    known: dict[str, object] = {"number": ending.launch_number}
    if launch is None or launch.number != ending.launch_number:
        return known
    process, tree, load = launch.process, server.tree, server.life.load
    return known | {
        "started": _time(launch.start_seconds),
        "has_served": launch.has_served,
        "pid": None if process is None else process.pid,
        "start_ticks": None if process is None else process.start_ticks,
        "boot_id": None if process is None else process.boot_id,
        "processes": None if tree is None else _processes(launch, tree),
        "load": None if load is None or load.process != process else _load(load),
    }


def _processes(launch: Launch, tree: ProcessTree) -> Mapping[str, object] | None:
    """As they were seen last."""
    if tree.process != launch.process:
        return None
    return {
        "is_main_alive": tree.is_main_alive,
        "components": [asdict(component) for component in tree.components[:MAX_ENTRIES]],
        "pids_alive": list(tree.pids[:MAX_ENTRIES]),
        "processes": tree.processes,
        "threads": tree.threads,
        "resident_bytes": tree.resident_bytes,
        "open_fds": tree.open_fds,
        "cpu_seconds": tree.cpu_seconds,
        "orphans": [
            {
                "pid": orphan.process.pid,
                "role": orphan.role,
                "rank": orphan.rank,
                "started": _time(orphan.start_seconds),
            }
            for orphan in tree.orphans[:MAX_ENTRIES]
        ],
    }


def _load(load: LoadProgress) -> Mapping[str, object]:
    return {
        "began": _time(load.began.unix_seconds),
        "ended": None if load.ended is None else _time(load.ended.unix_seconds),
        "last_progress": _time(load.last_progress.unix_seconds),
        "last_stage": load.look_stage,
        "stage_seconds": dict(load.stage_seconds),
        "is_stalled": True if load.has_ended_stalled else load.is_stalled,
        "download": None if load.download is None else asdict(load.download),
        "weights": None if load.weights is None else asdict(load.weights),
        "io_bytes": load.look.io_bytes,
        "gpu_bytes": load.look.gpu_bytes,
        "trouble": load.look.trouble,
    }


def _metrics(first: MetricsFacts | None, last: MetricsFacts | None) -> Mapping[str, object]:
    """What its engine told first and last, and how far its counters came in between."""
    engines = [None if facts is None else facts.engine for facts in (first, last)]
    before, after = ({} if engine is None else asdict(engine) for engine in engines)
    return {
        "first": before or None,
        "last": after or None,
        "difference": {
            counter: after[counter] - before[counter]
            for counter in _COUNTERS
            if before.get(counter) is not None and after.get(counter) is not None
        },
    }


def _plain(value: object) -> object:
    """A value that JSON can express, its texts without secrets and harmless to a terminal."""
    if isinstance(value, str):
        return cut(without_shapes(value))
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _moment(unix_seconds: float | None) -> datetime | None:
    try:
        return None if unix_seconds is None else datetime.fromtimestamp(unix_seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _time(unix_seconds: float | None) -> str | None:
    moment = _moment(unix_seconds)
    return None if moment is None else moment.isoformat(timespec="milliseconds")


def _file_time(unix_seconds: float) -> str:
    moment = _moment(unix_seconds)
    return "unknown" if moment is None else f"{moment:%Y%m%dT%H%M%SZ}"


def _prune(folder: Path, coming: str) -> None:
    """Makes room for one file: removes the oldest, and what a writer left that was killed.

    The age is by the time of the last write: the numbers of launches begin anew where the history
    was lost.
    """
    bundles: list[tuple[int, str]] = []
    for name, changed_ns in _files(folder):
        if name.endswith(_PARTIAL):
            (folder / name).unlink(missing_ok=True)
        elif name.endswith(_SUFFIX) and name != coming:
            bundles.append((changed_ns, name))
    bundles.sort(reverse=True)
    for _, name in bundles[MAX_BUNDLES - 1 :]:
        (folder / name).unlink(missing_ok=True)


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    """Names of regular files, and when they were written last."""
    for path in folder.iterdir():
        try:
            status = path.lstat()
        except FileNotFoundError:
            # An operator may tidy up at the same time.
            continue
        if stat.S_ISREG(status.st_mode):
            yield path.name, status.st_mtime_ns


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + _PARTIAL)
    try:
        with partial.open("xb") as file:
            os.fchmod(file.fileno(), FILE_MODE)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
