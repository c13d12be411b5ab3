"""What deploy/README.md tells to do can be done: what it names exists."""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
import subprocess

import pytest
import yaml

from alerts.__main__ import main as alerts_main
from tests.pipeline import compose
from tests.pipeline.compose import COMPOSE_FILE, ROOT
from vllm_agent.demo.scenarios import SCENARIOS

COMMAND_SECONDS = 60.0
"""They need far less; this ends a hang."""

PAGE = ROOT / "deploy" / "README.md"
TEXT = PAGE.read_text(encoding="utf-8")
FIRST_PAGE = (ROOT / "README.md").read_text(encoding="utf-8")
GRAFANA_URL = "https://grafana.example.org"


def commands_of(text: str) -> list[str]:
    """The commands of a page, those of several lines joined."""
    joined = re.sub(r" \\\n +", " ", text)
    return [line.split("  # ")[0].strip() for line in joined.splitlines() if line[:4] == "    "]


COMMANDS = commands_of(TEXT)
PROJECT = compose.read(COMPOSE_FILE)
SERVICES = PROJECT["services"]


def words(program: str) -> list[list[str]]:
    """The words of each command of the page that runs `program`, to where its output goes."""
    found = [shlex.split(line) for line in COMMANDS if program in line]
    return [list(itertools.takewhile(lambda word: word not in {"|", ">"}, call)) for call in found]


def in_shell(command: str) -> None:
    """Runs a command of the page as somebody does who has pasted it."""
    subprocess.run(["bash", "-e", "-c", command], check=True, timeout=COMMAND_SECONDS)


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


def test_agent_is_called_by_the_name_that_all_of_them_have():
    told = re.findall(r"docker (?:exec|restart) ([\w-]+)", TEXT)
    assert len(told) >= 2
    named = {one["container_name"] for one in SERVICES.values() if "container_name" in one}
    assert set(told) == named
    # Services have other names in other profiles.
    assert not re.search(r"docker compose (?:exec|restart|logs|stop) ", TEXT)


@pytest.mark.parametrize("text", [TEXT, FIRST_PAGE, COMPOSE_FILE.read_text(encoding="utf-8")])
def test_demo_is_a_project_of_its_own_and_nothing_else_loses_its_data(text):
    calls = re.findall(r"docker compose .*", text)
    plays = [call for call in calls if "--profile demo" in call]
    assert plays
    for call in plays:
        assert f" -p {PROJECT['name']}-demo " in call
    assert not [call for call in calls if "--volumes" in call and call not in plays]


def test_version_of_compose_that_is_asked_for_is_the_same_everywhere():
    asked = re.compile(r"Docker Compose (\d+\.\d+) or newer")
    [told] = asked.findall(TEXT)
    assert asked.findall(COMPOSE_FILE.read_text(encoding="utf-8")) == [told]
    # Two bugs are older: compose#9895 was mended in 2.13.0, compose#11856 in 2.27.2.
    assert tuple(map(int, told.split("."))) > (2, 27)


@pytest.mark.parametrize("text", [TEXT, FIRST_PAGE], ids=["deploy", "first"])
def test_agent_is_installed_into_an_environment_of_its_own(text):
    calls = [one for one in commands_of(text) if "pip install" in one]
    assert calls
    for call in calls:
        assert "/opt/vllm-agent/bin/pip install --constraint constraints.txt ." in call
    assert "python3 -m venv /opt/vllm-agent && " in calls[0]


def test_configuration_that_is_there_is_kept(tmp_path):
    [command] = [one for one in COMMANDS if "/dev/null" in one]
    config = tmp_path / "vllm-agent" / "config.yml"
    command = command.replace("/etc/vllm-agent", str(config.parent))
    in_shell(command)
    assert config.read_text(encoding="utf-8") == ""
    config.write_text("servers: []\n", encoding="utf-8")
    in_shell(command)
    assert config.read_text(encoding="utf-8") == "servers: []\n"


def test_another_port_is_taken_by_all_who_name_it(tmp_path):
    [command] = [one for one in COMMANDS if one.startswith("sed ")]
    changed = [word for word in shlex.split(command) if (ROOT / word).is_file()]
    read = [COMPOSE_FILE, *(mount.source for mount in compose.mounts(PROJECT))]
    files = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for start in read
        for path in (start.rglob("*.yml") if start.is_dir() else [start])
        if path.is_relative_to(ROOT)
    }
    assert sorted(changed) == sorted(
        name for name, text in files.items() if re.search(r"\b9090\b", text)
    )
    for path in changed:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    in_shell(f"cd {shlex.quote(str(tmp_path))} && {command}")
    for path in changed:
        text = (tmp_path / path).read_text(encoding="utf-8")
        assert not re.search(r"\b9090\b", text)
        assert re.search(r"\b9095\b", text)


def test_rules_are_printed_by_the_flags_that_are_told(capsys):
    plain, custom = words("python -m alerts --stdout")
    assert alerts_main(plain[3:]) == 0
    groups = yaml.safe_load(capsys.readouterr().out)["groups"]
    assert alerts_main(custom[3:]) == 0
    rule = yaml.safe_load(capsys.readouterr().out)
    assert rule["metadata"]["labels"]["release"] == "kube-prometheus-stack"
    assert rule["spec"]["groups"] == groups
    links = [
        one["annotations"]["dashboard_url"]
        for group in groups
        for one in group["rules"]
        if "alert" in one
    ]
    assert len(links) > 5
    assert all(link.startswith(f"{GRAFANA_URL}/d/") for link in links)


def test_commands_of_the_checkout_are_run_where_it_has_been_set_up():
    for section in re.split(r"^## ", TEXT, flags=re.MULTILINE):
        for call in re.findall(r"^.*python -m alerts --stdout", section, flags=re.MULTILINE):
            assert call.strip().startswith(".venv/bin/python ")
            assert section.index("make setup") < section.index(call)


def test_servers_of_the_demo_are_named_as_they_are():
    told = TEXT.split("## The demo")[1].split("\n## ")[0]
    named = set(re.findall(r"`([a-z]+(?:-[a-z]+)?)`", told))
    assert len(named) > 5
    assert named <= {scenario.name for scenario in SCENARIOS}
    assert "Twelve" in told
    assert len(SCENARIOS) == 12
