"""Commands, run in this process or as programs, beside an agent that they can talk to."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.cli.served_agent import ServedAgent
from vllm_agent.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str


def said(outcome: Outcome) -> list[str]:
    """The lines of standard output, with single spaces."""
    return [" ".join(line.split()) for line in outcome.out.splitlines()]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [n for n in os.environ if n.startswith("VLLM_AGENT_") or n == "STATE_DIRECTORY"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "nobody-wrote-here"))
    # It would hide what is lost, or told too late, when output waits in a buffer.
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServedAgent]:
    """An agent with two servers: llama runs, qwen crashed."""
    with ServedAgent(tmp_path) as agent:
        yield agent


@pytest.fixture
def cli(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a command line in this process, against the agent of the `served` fixture."""

    def run(*argv: str) -> Outcome:
        code = main([*argv, f"--state.dir={tmp_path}"])
        written = capfd.readouterr()
        return Outcome(code, written.out, written.err)

    return run


class Program(subprocess.Popen[str]):
    """A program that does not outlive a test which fails."""

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, *rest)  # type: ignore[arg-type]


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., Program]:
    """Starts a command line as a program of its own, against the agent of `served`."""

    def start(*argv: str, environ: Mapping[str, str] | None = None, **options: object) -> Program:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return Program(  # type: ignore[call-overload, no-any-return]
            [sys.executable, "-m", "vllm_agent", *argv, f"--state.dir={tmp_path}"],
            text=True,
            env={**os.environ, **(environ or {})},
            **streams,
        )

    return start
