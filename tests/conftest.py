"""What every test may ask for."""

from __future__ import annotations

import os
import shutil
import signal
from typing import TYPE_CHECKING

import pytest

from tests.fake_nvml import FakeDriver, build

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def nvml_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a stand-in for NVIDIA's driver library."""
    if shutil.which("cc") is None:
        pytest.skip("cc is not installed: run 'make deps'")
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def fake_driver(nvml_folder: Path, tmp_path: Path) -> FakeDriver:
    """A driver without devices, for programs started with its environment."""
    return FakeDriver(nvml_folder, tmp_path / "nvml_state")


def pytest_configure() -> None:
    """Takes SIGINT, which a shell ignores for all that it runs in the background.

    What tests start inherits that, and would not end when they send it.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out long runs nobody asked for, and skips what needs a program that is not there."""
    if "soak" not in config.option.markexpr:
        long_runs = [item for item in items if item.get_closest_marker("soak") is not None]
        config.hook.pytest_deselected(items=long_runs)
        items[:] = [item for item in items if item not in long_runs]
    for item in items:
        for marker in item.iter_markers("needs"):
            for program in marker.args:
                if shutil.which(program) is None:
                    reason = f"{program} is not installed: run 'make deps'"
                    item.add_marker(pytest.mark.skip(reason=reason))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fails a run of CI that skipped anything: what is not run there is run nowhere."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = len(reporter.stats.get("skipped", ())) if reporter is not None else 0
    if skipped and os.environ.get("CI") and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print(f"\nCI may skip nothing, and skipped {skipped}")
