"""nvitop-exporter, the nearest peer in Python, in an environment of its own.

It is in no Debian package, so it is installed when it is first needed, into a cache outside of the
checkout: what it depends on is not what the agent does.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import venv
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.programs import NotMeasurableError, answers, free_port, running

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from benchmarks.programs import Program

NAME: Final = "nvitop-exporter"
REQUIREMENTS: Final = (
    "nvitop-exporter==1.7.2",
    "nvitop==1.7.2",
    "nvidia-ml-py==13.615.71",
    "prometheus_client==0.26.0",
    "psutil==7.2.2",
)
DEFAULT_INTERVAL_SECONDS: Final = 1.0
"""How often it asks the driver unless told otherwise (nvitop_exporter/cli.py)."""

INSTALL_SECONDS: Final = 300.0
_ERROR_CHARACTERS: Final = 100


def install() -> Path:
    """Its program, installed if it was not before.

    Raises:
        NotMeasurableError: it cannot be, as without a network.
    """
    named = os.environ.get("VLLM_AGENT_TEST_CACHE")
    root = Path(named) if named else Path.home() / ".cache" / "vllm-agent-tests"
    folder = root / NAME
    folder.mkdir(parents=True, exist_ok=True)
    program, stamp = folder / "venv" / "bin" / NAME, folder / "complete"
    recipe = "\n".join((*REQUIREMENTS, sys.version))
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != recipe:
            stamp.unlink(missing_ok=True)
            shutil.rmtree(folder / "venv", ignore_errors=True)
            _install(folder / "venv")
            stamp.write_text(recipe, encoding="utf-8")
    return program


def _install(folder: Path) -> None:
    venv.create(folder, with_pip=True)
    # The constraints of this project are not those of another one.
    environ = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    pip = (folder / "bin" / "python", "-m", "pip", "install", "--quiet", *REQUIREMENTS)
    try:
        subprocess.run(
            pip, check=True, capture_output=True, env=environ, timeout=INSTALL_SECONDS, text=True
        )
    except subprocess.CalledProcessError as error:
        last = " ".join(error.stderr.split())[-_ERROR_CHARACTERS:]
        raise NotMeasurableError(f"{NAME} cannot be installed: {last}") from error
    except subprocess.TimeoutExpired as error:
        raise NotMeasurableError(
            f"{NAME} was not installed within {INSTALL_SECONDS:g} s"
        ) from error


@contextmanager
def nvitop_exporter(
    program: Path, log_path: Path, interval_seconds: float, environment: Mapping[str, str]
) -> Iterator[Program]:
    """The exporter, which asks the driver of `environment` at this interval."""
    port = free_port()
    command = [
        str(program),
        "--bind-address=127.0.0.1",
        f"--port={port}",
        f"--interval={interval_seconds:g}",
    ]
    with running(command, log_path, port, environment) as it:
        it.wait_until(lambda: answers(port, "/metrics"), f"{NAME} answers")
        yield it
