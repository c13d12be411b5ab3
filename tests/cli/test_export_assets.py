"""`vllm-agent export-assets`: what an operator loads into Prometheus, Alertmanager and Grafana."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_agent.cli import export_assets, main
from vllm_agent.cli.outcome import ExitCode

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).parents[2]
EXPECTED = sorted(
    [
        *(path.relative_to(ROOT) for path in (ROOT / "dashboards" / "grafana").glob("*.json")),
        *(path.relative_to(ROOT) for path in (ROOT / "alerts").glob("*.yml")),
    ]
)


def exported(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def test_it_writes_what_the_project_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "folder"
    assert main(["export-assets", str(folder)]) == ExitCode.DONE
    assert exported(folder) == EXPECTED
    for name in EXPECTED:
        assert (folder / name).read_bytes() == (ROOT / name).read_bytes()
    told = capsys.readouterr().out.splitlines()
    assert sorted(told) == sorted(str(folder / name) for name in EXPECTED)


def test_a_file_that_was_changed_is_not_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["export-assets", str(tmp_path)])
    assert main(["export-assets", str(tmp_path)]) == ExitCode.DONE
    changed = tmp_path / "alerts" / "alertmanager.yml"
    changed.write_text("mine")
    missing = tmp_path / "alerts" / "vllm-agent.rules.yml"
    missing.unlink()
    capsys.readouterr()
    assert main(["export-assets", str(tmp_path)]) == ExitCode.FAILED
    assert "alerts/alertmanager.yml" in capsys.readouterr().err
    assert changed.read_text() == "mine"
    assert not missing.exists()
    assert main(["export-assets", "--force", str(tmp_path)]) == ExitCode.DONE
    assert exported(tmp_path) == EXPECTED
    assert changed.read_text() != "mine"


def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["export-assets", str(tmp_path / "file")]) == ExitCode.FAILED
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_a_wheel_has_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation has no project around it: the build takes them along, file by file."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    taken = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    site = tmp_path / "site"
    for source, target in taken.items():
        (site / target).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, site / target)
    monkeypatch.setattr(export_assets, "_INSTALLED", site / "vllm_agent" / "assets")
    monkeypatch.setattr(export_assets, "_CHECKOUT", tmp_path / "nothing")
    assert main(["export-assets", str(tmp_path / "exported")]) == ExitCode.DONE
    assert exported(tmp_path / "exported") == EXPECTED


def test_an_installation_without_them_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export_assets, "_CHECKOUT", tmp_path / "nothing")
    assert main(["export-assets", str(tmp_path / "exported")]) == ExitCode.FAILED
    assert "wheel" in capsys.readouterr().err
