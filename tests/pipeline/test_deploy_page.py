"""What deploy/README.md tells to do can be done: what it names exists."""

from __future__ import annotations

import itertools
import re
import shlex

import pytest

from alerts.__main__ import main as alerts_main
from tests.pipeline import compose
from tests.pipeline.compose import COMPOSE_FILE, ROOT
from vllm_agent.demo.scenarios import SCENARIOS

PAGE = ROOT / "deploy" / "README.md"
TEXT = PAGE.read_text(encoding="utf-8")
COMMANDS = [
    line.split("  # ")[0].strip(" \\") for line in TEXT.splitlines() if line.startswith("    ")
]
SERVICES = compose.read(COMPOSE_FILE)["services"]


def words(program: str) -> list[list[str]]:
    """The words of each command of the page that runs `program`."""
    return [shlex.split(line) for line in COMMANDS if program in line]


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", TEXT))
def test_link_leads_to_a_file(link):
    assert (PAGE.parent / link).exists()


@pytest.mark.parametrize("anchor", re.findall(r"\]\(#([^)]+)\)", TEXT))
def test_link_leads_to_a_section(anchor):
    titles = re.findall(r"^## (.+)$", TEXT, flags=re.MULTILINE)
    assert anchor in [title.lower().replace(" ", "-") for title in titles]


def test_files_that_commands_read_exist():
    named = re.findall(r"(?<![\w/])(?:alerts|dashboards|deploy)/[\w./*-]+", "\n".join(COMMANDS))
    assert len(named) > 5
    assert [path for path in named if not list(ROOT.glob(path))] == []


def test_compose_is_called_with_profiles_files_and_services_that_exist():
    profiles = {profile for service in SERVICES.values() for profile in service.get("profiles", ())}
    calls = words("docker compose")
    assert len(calls) >= 5
    for call in calls:
        for option, value in itertools.pairwise(call):
            assert option != "--profile" or value in profiles
            assert option != "-f" or (ROOT / value).exists()
    for service in re.findall(r"docker compose (?:exec|restart) (\S+?)`?[ .;]", TEXT):
        assert service in SERVICES


def test_rules_are_printed_by_the_flags_that_are_told(capsys):
    [call] = words("python -m alerts --stdout")
    assert alerts_main(call[3:]) == 0
    assert "release: kube-prometheus-stack" in capsys.readouterr().out


def test_servers_of_the_demo_are_named_as_they_are():
    told = TEXT.split("## The demo")[1].split("\n## ")[0]
    named = set(re.findall(r"`([a-z]+(?:-[a-z]+)?)`", told))
    assert len(named) > 5
    assert named <= {scenario.name for scenario in SCENARIOS}
    assert "Twelve" in told
    assert len(SCENARIOS) == 12
