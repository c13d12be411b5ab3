"""The compose file and what it mounts agree with each other and open nothing to the network."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pytest
import yaml

from alerts.rules import Site
from dashboards.fleet import PATH as DASHBOARD_PATH
from vllm_agent.config.flags import DEFAULT_PORT
from vllm_agent.config.load import load

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")

each_service = pytest.mark.parametrize("name", SERVICES)


class Mount(NamedTuple):
    """One bind mount: a path of the project, and where a container sees it."""

    service: str
    source: Path
    target: PurePosixPath
    mode: str


def _mounts() -> list[Mount]:
    return [
        Mount(name, ROOT / source, PurePosixPath(target), mode)
        for name, service in SERVICES.items()
        for source, target, mode in (
            volume.split(":") for volume in service["volumes"] if volume.startswith("./")
        )
    ]


def _read_yaml(relative: str) -> Any:
    return yaml.safe_load((ROOT / relative).read_text(encoding="utf-8"))


def test_services_are_the_pipeline():
    assert list(SERVICES) == ["vllm-agent", "prometheus", "alertmanager", "grafana"]


@each_service
def test_image_is_pinned(name):
    image, _, tag = SERVICES[name]["image"].partition(":")
    assert image
    assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag)


def test_base_images_are_pinned():
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, flags=re.MULTILINE)
    assert len(set(bases)) == 1
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", bases[0])


@each_service
def test_port_is_open_on_loopback_only(name):
    [port] = SERVICES[name]["ports"]
    address, outside, inside = port.split(":")
    assert address == "127.0.0.1"
    assert outside == inside


@each_service
def test_container_is_confined(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@each_service
def test_health_check_asks_the_port_that_is_open(name):
    [port] = SERVICES[name]["ports"]
    check = SERVICES[name]["healthcheck"]
    assert f"http://127.0.0.1:{port.split(':')[2]}" in " ".join(check["test"])
    assert int(check["timeout"].removesuffix("s")) < int(check["interval"].removesuffix("s"))


@pytest.mark.parametrize("mount", _mounts(), ids=lambda mount: str(mount.target))
def test_mounted_path_exists_and_cannot_be_written(mount):
    assert mount.source.exists()
    assert mount.mode == "ro"


def test_named_volumes_are_declared_and_used():
    used = {
        volume.split(":")[0]
        for service in SERVICES.values()
        for volume in service["volumes"]
        if not volume.startswith(".")
    }
    assert used == set(COMPOSE["volumes"])


def test_agent_port_is_the_same_everywhere():
    [job] = [
        job
        for job in _read_yaml("deploy/prometheus/prometheus.yml")["scrape_configs"]
        if job["job_name"] == Site().job
    ]
    assert job["static_configs"] == [{"targets": [f"vllm-agent:{DEFAULT_PORT}"]}]
    assert SERVICES["vllm-agent"]["ports"] == [f"127.0.0.1:{DEFAULT_PORT}:{DEFAULT_PORT}"]
    assert f"EXPOSE {DEFAULT_PORT}\n" in DOCKERFILE


def test_prometheus_and_grafana_find_the_other_services():
    ports = {name: service["ports"][0].split(":")[2] for name, service in SERVICES.items()}
    prometheus = _read_yaml("deploy/prometheus/prometheus.yml")
    [peers] = prometheus["alerting"]["alertmanagers"]
    assert peers["static_configs"] == [{"targets": [f"alertmanager:{ports['alertmanager']}"]}]
    sources = _read_yaml("deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    urls = {source["type"]: source["url"] for source in sources}
    assert urls == {
        "prometheus": f"http://prometheus:{ports['prometheus']}",
        "alertmanager": f"http://alertmanager:{ports['alertmanager']}",
    }
    assert len({source["uid"] for source in sources}) == len(sources)
    interval = prometheus["global"]["scrape_interval"]
    assert sources[0]["jsonData"]["timeInterval"] == interval
    assert Site().grafana_url == f"http://localhost:{ports['grafana']}"


def test_grafana_loads_the_dashboards_from_where_they_are_mounted():
    [provider] = _read_yaml("deploy/grafana/provisioning/dashboards/vllm-agent.yml")["providers"]
    [mount] = [one for one in _mounts() if str(one.target) == provider["options"]["path"]]
    assert mount.service == "grafana"
    assert DASHBOARD_PATH.parent == mount.source
    assert provider["allowUiUpdates"] is False


def test_prometheus_loads_the_rules_from_where_they_are_mounted():
    [pattern] = _read_yaml("deploy/prometheus/prometheus.yml")["rule_files"]
    targets = [str(mount.target) for mount in _mounts() if mount.service == "prometheus"]
    assert [target for target in targets if fnmatch.fnmatch(target, pattern)] == [
        "/etc/prometheus/rules/vllm-agent.rules.yml"
    ]


@pytest.mark.needs("promtool")
def test_prometheus_accepts_its_configuration_as_mounted(tmp_path):
    for mount in _mounts():
        if mount.service == "prometheus":
            copy = tmp_path / mount.target.relative_to("/etc/prometheus")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(mount.source, copy)
    config = tmp_path / "prometheus.yml"
    config.write_text(config.read_text().replace("/etc/prometheus", str(tmp_path)))
    done = subprocess.run(
        ["promtool", "check", "config", config], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 rules found" in done.stdout


def test_agent_accepts_its_configuration():
    [server] = load(ROOT / "deploy" / "vllm-agent" / "config.yml", {}).servers
    [alias] = SERVICES["vllm-agent"]["extra_hosts"]
    assert alias.split(":")[0] in str(server.url)


def test_configuration_flags_name_mounted_files():
    for name, service in SERVICES.items():
        for argument in service.get("command", []):
            flag, _, path = argument.partition("=")
            if flag == "--config.file":
                assert path in [str(one.target) for one in _mounts() if one.service == name]


def test_password_comes_from_the_environment_and_has_no_default():
    password = SERVICES["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"]
    assert re.fullmatch(r"\$\{GRAFANA_ADMIN_PASSWORD:\?[^}]+\}", password)


def test_agent_runs_without_root():
    *_, final = DOCKERFILE.split("\nFROM ")
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", final, flags=re.MULTILINE)
    assert 'ENTRYPOINT ["vllm-agent"]' in final


def test_image_is_built_from_files_that_exist_and_are_not_ignored():
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, flags=re.MULTILINE)
        for source in line.split()[:-1]
    }
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert "*" in ignored
    assert all((ROOT / source).exists() for source in copied)
