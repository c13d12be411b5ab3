"""The compose files and what they mount agree with each other and open nothing to the network."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from alerts.site import Site
from dashboards.output import generated_files
from tests.pipeline import compose, quiet_receivers
from tests.pipeline.compose import COMPOSE_FILE, ROOT, ROOT_FILE, flag
from tests.pipeline.processes import wait_until
from vllm_agent import __version__
from vllm_agent.config.duration import parse_duration
from vllm_agent.config.flags import DEFAULT_PORT
from vllm_agent.config.load import load
from vllm_agent.demo import launch

PROJECT = compose.read(COMPOSE_FILE)
SERVICES: dict[str, dict[str, Any]] = PROJECT["services"]
AGENTS = {"agent": "vllm-agent", "nvidia": "vllm-agent-nvidia", "amd": "vllm-agent-amd"}
PORTS = {"demo": DEFAULT_PORT, "prometheus": 9090, "alertmanager": 9093, "grafana": 3000} | (
    dict.fromkeys(AGENTS.values(), DEFAULT_PORT)
)
HOST_FOLDERS = {"/sys/fs/cgroup", "/var/lib/docker/containers", "/var/log"}
"""What is mounted of the host that is no part of the project."""

CHECK_COMPOSE = (
    sys.executable,
    "-m",
    "check_jsonschema",
    "--builtin-schema",
    "vendor.compose-spec",
)
CHECK_PROMETHEUS = ("promtool", "check", "config", "--lint=all", "--lint-fatal")

READY_SECONDS = 30.0
"""Both programs need less than one; this ends a hang."""

each_service = pytest.mark.parametrize("name", SERVICES)
each_agent = pytest.mark.parametrize("name", AGENTS.values())


def read_yaml(relative: str) -> Any:
    return yaml.safe_load((ROOT / relative).read_text(encoding="utf-8"))


def mounted_tree(service: str, folder: Path) -> None:
    """Copies what a service sees of the project to where it sees it, below `folder`."""
    for mount in compose.mounts(PROJECT):
        if mount.service == service:
            copy = folder / str(mount.target).lstrip("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(mount.source, copy)


@pytest.mark.parametrize("path", [COMPOSE_FILE, ROOT_FILE], ids=lambda path: path.name)
def test_file_follows_the_compose_specification(path):
    done = subprocess.run(
        [*CHECK_COMPOSE, path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_profile_adds_one_agent_to_the_others():
    profiles = {name: service.get("profiles") for name, service in SERVICES.items()}
    assert profiles == {name: [profile] for profile, name in AGENTS.items()} | {
        "demo": ["demo"],
        "prometheus": None,
        "alertmanager": None,
        "grafana": None,
    }


def test_an_agent_is_started_where_nobody_names_a_profile():
    assert compose.project_variables() == {"COMPOSE_PROFILES": "agent"}


def test_profiles_and_files_that_can_be_chosen_exist():
    text = (ROOT / ".env").read_text(encoding="utf-8")
    told = re.findall(r"^#   (\w+)   ", text, flags=re.MULTILINE)
    assert told == [*AGENTS, "nothing"]
    [files] = re.findall(r"^# COMPOSE_FILE=(.+)$", text, flags=re.MULTILINE)
    assert [ROOT / path for path in files.split(":")] == [COMPOSE_FILE, ROOT_FILE]


@each_service
def test_image_is_pinned(name):
    image, _, tag = SERVICES[name]["image"].rpartition(":")
    assert image
    assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag)
    if "build" in SERVICES[name]:
        assert tag == __version__


@each_service
def test_service_listens_on_the_loopback_only(name):
    service = SERVICES[name]
    assert service["network_mode"] == "host"
    assert "ports" not in service
    if name == "grafana":
        settings = service["environment"]
        said = f"{settings['GF_SERVER_HTTP_ADDR']}:{settings['GF_SERVER_HTTP_PORT']}"
    elif name == "demo":
        # It has no such flag: it listens there where the port is free.
        assert service["command"][0] == "demo"
        said = f"127.0.0.1:{DEFAULT_PORT}"
    else:
        said = str(flag(service, "--web.listen-address"))
    assert said == f"127.0.0.1:{PORTS[name]}"
    assert "0.0.0.0" not in COMPOSE_FILE.read_text(encoding="utf-8")


def test_alertmanager_opens_no_port_for_peers():
    assert flag(SERVICES["alertmanager"], "--cluster.listen-address") == ""


@each_service
def test_container_is_confined(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert "user" not in service


@each_service
def test_health_check_asks_the_port_where_the_service_listens(name):
    check = SERVICES[name]["healthcheck"]
    asked = re.findall(r"127\.0\.0\.1[:/](\d+)", " ".join(check["test"]))
    assert asked == [str(PORTS[name])]
    assert parse_duration(check["timeout"]) < parse_duration(check["interval"])


@each_service
def test_what_is_waited_for_is_always_there_and_tells_its_health(name):
    for other, how in SERVICES[name].get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"}
        assert "profiles" not in SERVICES[other]
        assert "healthcheck" in SERVICES[other]
        assert name not in SERVICES[other].get("depends_on", {})


def test_agents_are_called_by_one_name_so_that_there_is_one():
    named = {name: service.get("container_name") for name, service in SERVICES.items()}
    assert named == {name: "vllm-agent" if name in AGENTS.values() else None for name in SERVICES}


@each_agent
def test_agent_shares_what_the_host_has_of_its_servers(name):
    assert (SERVICES[name]["pid"], SERVICES[name]["cgroup"]) == ("host", "host")
    # It would say at each start that it is not PID 1.
    assert "init" not in SERVICES[name]


def test_nvidia_agent_is_given_the_gpus_to_look_at():
    service = SERVICES["vllm-agent-nvidia"]
    [device] = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert service["environment"] == {"NVIDIA_DRIVER_CAPABILITIES": "utility"}


@pytest.mark.parametrize(
    "mount",
    compose.mounts(compose.read(COMPOSE_FILE, ROOT_FILE)),
    ids=lambda mount: f"{mount.service}:{mount.target}",
)
def test_mounted_path_is_there_and_cannot_be_written(mount):
    assert mount.mode == "ro"
    if str(mount.source) in HOST_FOLDERS:
        # The agent looks where the host has them.
        assert mount.target == PurePosixPath(mount.source)
    else:
        assert mount.source.is_relative_to(ROOT)
        assert mount.source.exists()


def test_named_volumes_are_declared_and_used():
    used = {
        volume.split(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", ())
        if not volume.startswith((".", "/"))
    }
    assert used == set(PROJECT["volumes"])


def test_files_that_commands_name_are_mounted():
    for name, service in SERVICES.items():
        seen = {str(mount.target) for mount in compose.mounts(PROJECT) if mount.service == name}
        if "command" in service and (path := flag(service, "--config.file")) is not None:
            assert path in seen


def test_there_is_no_secret_and_none_to_choose():
    text = COMPOSE_FILE.read_text(encoding="utf-8") + ROOT_FILE.read_text(encoding="utf-8")
    assert not re.search(r"(?i)(PASSWORD|TOKEN|SECRET|API_KEY)\w*['\"]?\s*[:=]", text)
    settings = SERVICES["grafana"]["environment"]
    assert settings["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert settings["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_root_is_given_what_it_needs_and_no_more():
    over = compose.read(ROOT_FILE)["services"]
    assert set(over) == set(AGENTS.values())
    for name, service in compose.read(COMPOSE_FILE, ROOT_FILE)["services"].items():
        if name in over:
            assert service["user"] == "0:0"
            assert service["cap_drop"] == ["ALL"]
            assert service["cap_add"] == ["SYS_PTRACE", "DAC_OVERRIDE"]
            assert service["security_opt"] == ["no-new-privileges:true", "apparmor:unconfined"]


def test_prometheus_and_grafana_ask_where_the_others_listen():
    prometheus = read_yaml("deploy/prometheus/prometheus.yml")
    [peers] = prometheus["alerting"]["alertmanagers"]
    assert peers["static_configs"] == [{"targets": [f"localhost:{PORTS['alertmanager']}"]}]
    agent, vllm = prometheus["scrape_configs"]
    assert agent["job_name"] == Site().job
    [target] = agent["static_configs"]
    assert target["targets"] == [f"localhost:{DEFAULT_PORT}"]
    # Each host is localhost to itself: alerts of two would share groups and inhibitions.
    assert target["labels"] == {"instance": f"this-host:{DEFAULT_PORT}"}
    [discovery] = vllm["http_sd_configs"]
    assert discovery["url"] == f"http://localhost:{DEFAULT_PORT}/api/v1/http_sd"
    sources = read_yaml("deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert {source["type"]: source["url"] for source in sources} == {
        kind: f"http://localhost:{PORTS[kind]}" for kind in ("prometheus", "alertmanager")
    }
    assert len({source["uid"] for source in sources}) == len(sources)
    assert sources[0]["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]


@pytest.mark.parametrize("name", ["prometheus", "alertmanager"])
def test_links_lead_to_where_the_service_listens(name):
    url = f"http://localhost:{PORTS[name]}"
    assert flag(SERVICES[name], "--web.external-url") == url


def test_links_of_alerts_lead_to_grafana():
    url = f"http://localhost:{PORTS['grafana']}"
    assert Site().grafana_url == url
    assert SERVICES["grafana"]["environment"]["GF_SERVER_ROOT_URL"] == f"{url}/"


def test_grafana_loads_the_dashboards_from_where_they_are_mounted():
    [provider] = read_yaml("deploy/grafana/provisioning/dashboards/vllm-agent.yml")["providers"]
    seen = [mount for mount in compose.mounts(PROJECT) if mount.service == "grafana"]
    [mount] = [one for one in seen if str(one.target) == provider["options"]["path"]]
    made = set(generated_files())
    assert {path.parent for path in made} == {mount.source}
    assert set(mount.source.glob("*.json")) == made
    assert provider["allowUiUpdates"] is False
    home = PurePosixPath(
        SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    )
    assert home.parent == mount.target
    assert home.name == "vllm-agent-fleet.json"
    assert mount.source / home.name in made


def test_grafana_is_provisioned_from_where_it_looks():
    targets = {
        str(mount.target): mount.source.relative_to(ROOT / "deploy" / "grafana").as_posix()
        for mount in compose.mounts(PROJECT)
        if mount.service == "grafana" and mount.source.is_relative_to(ROOT / "deploy")
    }
    assert targets == {
        f"/etc/grafana/provisioning/{kind}": f"provisioning/{kind}"
        for kind in ("datasources", "dashboards")
    }


def test_prometheus_loads_the_rules_from_where_they_are_mounted():
    [pattern] = read_yaml("deploy/prometheus/prometheus.yml")["rule_files"]
    seen = [str(mount.target) for mount in compose.mounts(PROJECT) if mount.service == "prometheus"]
    assert [path for path in seen if fnmatch.fnmatch(path, f"/etc/prometheus/{pattern}")] == [
        "/etc/prometheus/rules/vllm-agent.rules.yml"
    ]


@pytest.mark.needs("promtool")
def test_prometheus_accepts_its_configuration_as_mounted(tmp_path):
    mounted_tree("prometheus", tmp_path)
    done = subprocess.run(
        [*CHECK_PROMETHEUS, tmp_path / "etc" / "prometheus" / "prometheus.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # Without a rule file the check is as content.
    rules = read_yaml("alerts/vllm-agent.rules.yml")["groups"]
    assert f"{sum(len(group['rules']) for group in rules)} rules found" in done.stdout


@pytest.mark.needs("amtool")
def test_alertmanager_accepts_its_configuration():
    done = subprocess.run(
        ["amtool", "check-config", str(quiet_receivers.QUIET)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_alertmanager_routes_as_shipped_and_tells_nobody():
    quiet = quiet_receivers.QUIET.read_text(encoding="utf-8")
    assert quiet == quiet_receivers.render(), "run 'make docs'"
    ours, shipped = yaml.safe_load(quiet), read_yaml("alerts/alertmanager.yml")
    assert ours.pop("receivers") == [{"name": one["name"]} for one in shipped.pop("receivers")]
    assert ours == shipped


@pytest.mark.needs("prometheus", "prometheus-alertmanager")
@pytest.mark.parametrize(
    ("name", "program"),
    [("prometheus", "prometheus"), ("alertmanager", "prometheus-alertmanager")],
)
def test_command_starts_the_program(name, program, tmp_path):
    mounted_tree(name, tmp_path)
    (tmp_path / name).mkdir()
    port = launch.free_port()
    command = [
        re.sub(r"=/(?=\w)", f"={tmp_path}/", word).replace(f":{PORTS[name]}", f":{port}")
        for word in SERVICES[name]["command"]
    ]
    log = tmp_path / "log"

    def is_ready() -> bool:
        assert process.poll() is None, log.read_text(encoding="utf-8")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=1):
                return True
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    with log.open("wb") as output:
        process = subprocess.Popen([program, *command], stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until(is_ready, f"{program} is ready", READY_SECONDS)
    finally:
        process.terminate()
        process.wait()


def test_agent_finds_all_servers_of_its_host_by_default():
    config = load(ROOT / "deploy" / "vllm-agent" / "config.yml", {})
    assert config.discovery.enabled
    assert not config.servers


def test_demo_begins_again_before_a_stand_in_ends_by_its_age():
    command, option, length = SERVICES["demo"]["command"]
    assert (command, option) == ("demo", "--for")
    assert parse_duration(length) < launch._LIFETIME_SECONDS
    # With its exit code 0 it would stay away otherwise.
    assert SERVICES["demo"]["restart"] == "unless-stopped"
