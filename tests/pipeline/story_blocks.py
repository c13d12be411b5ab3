"""The story of `story` as stored samples, so that a real Prometheus can draw each panel.

What is stored is what the pages of the agents say at each scrape: made by the agents' own code, so
the samples are consistent, and change with it.
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any, Final

from tests.pipeline.processes import Prometheus
from tests.pipeline.story import END, SCRAPES, START, STEP_SECONDS, hosts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.pipeline.story_host import Host

__all__ = ["END", "START", "STEP_SECONDS", "Storage", "samples", "write_blocks"]

JOB: Final = "vllm-agent"


class Storage(Prometheus):
    """A Prometheus on the blocks of the story; they never change, and nothing is asked twice.

    Nothing in blocks made from text says that a series has ended, as a scrape without it does. So
    a sample holds until the next scrape and no longer.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, storage=write_blocks(directory))
        self._answers: dict[str, Any] = {}

    def arguments(self) -> list[str]:
        return [*super().arguments(), f"--query.lookback-delta={STEP_SECONDS - 1}s"]

    def get(self, path: str, parameters: Mapping[str, Any] | None = None) -> Any:
        key = json.dumps([path, parameters])
        if key not in self._answers:
            self._answers[key] = super().get(path, parameters)
        return self._answers[key]


def write_blocks(directory: Path) -> Path:
    """Prometheus storage with the whole story."""
    source = directory / "story.om"
    with source.open("w", encoding="utf-8") as file:
        file.writelines(samples())
        file.write("# EOF\n")
    blocks = directory / "blocks"
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(source), str(blocks)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return blocks


def samples() -> Iterator[str]:
    """Every sample as a line of OpenMetrics, oldest first."""
    for host in hosts():
        yield from _samples(host)
    # A vLLM that is scraped itself, as the shipped configuration of Prometheus has it, and is down.
    for unix_seconds in SCRAPES:
        yield f'up{{instance="gpu1:8000",job="vllm"}} 0.0 {unix_seconds}\n'


def _samples(host: Host) -> Iterator[str]:
    target = f'instance="{host.instance}",job="{JOB}"'
    beginnings: dict[str, str] = {}
    for number, unix_seconds in enumerate(SCRAPES):
        page = host.page(number, unix_seconds)
        yield f"up{{{target}}} {float(page is not None)} {unix_seconds}\n"
        for line in (page or "").splitlines():
            if line.startswith("#"):
                continue
            series, _, value = line.rpartition(" ")
            if series not in beginnings:
                beginnings[series] = _of_target(series, target)
            yield f"{beginnings[series]} {value} {unix_seconds}\n"


def _of_target(series: str, target: str) -> str:
    """The series with the labels that Prometheus adds to it."""
    name, _, labels = series.removesuffix("}").partition("{")
    return f"{name}{{{target},{labels}}}" if labels else f"{name}{{{target}}}"
