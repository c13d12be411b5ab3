"""The manifests of deploy/kubernetes agree with each other, with the image and with the alerts."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import pytest
import yaml

from alerts.site import Site
from tests.pipeline import compose
from tests.pipeline.compose import COMPOSE_FILE, ROOT
from tests.pipeline.dockerfile import parse
from vllm_agent import __version__
from vllm_agent.config.flags import DEFAULT_PORT
from vllm_agent.config.load import load

FOLDER = ROOT / "deploy" / "kubernetes"
OBJECTS: dict[str, dict[str, Any]] = {
    one["kind"]: one
    for path in sorted(FOLDER.glob("*.yml"))
    for one in yaml.safe_load_all(path.read_text(encoding="utf-8"))
}
TEMPLATE: dict[str, Any] = OBJECTS["DaemonSet"]["spec"]["template"]
POD: dict[str, Any] = TEMPLATE["spec"]
[CONTAINER] = POD["containers"]
[ENDPOINT] = OBJECTS["PodMonitor"]["spec"]["podMetricsEndpoints"]
IMAGE = parse((ROOT / "Dockerfile").read_text(encoding="utf-8"))[-1]
COMPOSED: dict[str, Any] = compose.read(COMPOSE_FILE)["services"]["vllm-agent"]

NODE = "gpu-node-1"
FOUND_POD = {
    "__meta_kubernetes_pod_node_name": NODE,
    "__meta_kubernetes_pod_container_port_number": str(DEFAULT_PORT),
    # What the operator makes of a pod before the relabelings of a monitor.
    "job": "vllm-agent/vllm-agent",
    "namespace": "vllm-agent",
    "pod": "vllm-agent-x7k2p",
    "container": "vllm-agent",
    "endpoint": "metrics",
}


def test_what_is_made_is_known():
    assert set(OBJECTS) == {"Namespace", "ServiceAccount", "ConfigMap", "DaemonSet", "PodMonitor"}


def test_all_are_in_one_namespace():
    name = OBJECTS["Namespace"]["metadata"]["name"]
    others = [one for kind, one in OBJECTS.items() if kind != "Namespace"]
    assert {one["metadata"]["namespace"] for one in others} == {name}


def test_image_is_that_of_this_version():
    image, _, tag = CONTAINER["image"].rpartition(":")
    assert image.endswith("/" + COMPOSED["image"].rpartition(":")[0])
    assert tag == __version__


def test_agent_sees_processes_and_nothing_it_does_not_need():
    assert POD["hostPID"] is True
    assert POD["hostNetwork"] is False
    assert "hostIPC" not in POD
    # A service named vllm would set VLLM_PORT, which is a setting of the agent.
    assert POD["enableServiceLinks"] is False
    assert POD["automountServiceAccountToken"] is False
    assert OBJECTS["ServiceAccount"]["automountServiceAccountToken"] is False
    assert POD["serviceAccountName"] == OBJECTS["ServiceAccount"]["metadata"]["name"]


def test_agent_is_confined_as_in_compose():
    [user] = IMAGE.values("USER")
    inside = POD["securityContext"]
    assert f"{inside['runAsUser']}:{inside['runAsGroup']}" == user
    assert inside["fsGroup"] == inside["runAsGroup"]
    assert inside["runAsNonRoot"] is True
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": "no-new-privileges:true" not in COMPOSED["security_opt"],
        "readOnlyRootFilesystem": COMPOSED["read_only"],
        "capabilities": {"drop": COMPOSED["cap_drop"]},
    }


def test_no_gpu_is_taken_away():
    resources = CONTAINER["resources"]
    assert {*resources["requests"], *resources["limits"]} == {"cpu", "memory"}
    said = {one["name"]: one["value"] for one in CONTAINER["env"]}
    assert said == {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "utility"}


def test_probes_and_monitor_ask_the_port_of_the_agent():
    [port] = CONTAINER["ports"]
    assert port["containerPort"] == DEFAULT_PORT
    probes = [CONTAINER["livenessProbe"]["httpGet"], CONTAINER["readinessProbe"]["httpGet"]]
    assert [probe["path"] for probe in probes] == ["/-/healthy", "/-/ready"]
    assert {one["port"] for one in [*probes, ENDPOINT]} == {port["name"]}
    assert not [word for word in CONTAINER["args"] if "listen-address" in word]


def test_volumes_are_declared_and_used():
    declared = [volume["name"] for volume in POD["volumes"]]
    assert declared == [mount["name"] for mount in CONTAINER["volumeMounts"]]
    assert len(set(declared)) == len(declared)


def test_what_is_mounted_is_where_the_agent_looks():
    mounts = {mount["name"]: mount for mount in CONTAINER["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    [state] = IMAGE.values("VOLUME")
    writable = {mount["mountPath"] for mount in mounts.values() if not mount.get("readOnly")}
    assert writable == {state, *COMPOSED["tmpfs"]}
    assert volumes["cgroup"]["hostPath"]["path"] == mounts["cgroup"]["mountPath"]
    assert volumes["config"]["configMap"]["name"] == OBJECTS["ConfigMap"]["metadata"]["name"]
    [file] = OBJECTS["ConfigMap"]["data"]
    assert f"--config.file={mounts['config']['mountPath']}/{file}" in CONTAINER["args"]


def test_configuration_is_accepted(tmp_path):
    [(name, text)] = OBJECTS["ConfigMap"]["data"].items()
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert load(tmp_path / name, {}).discovery.enabled


def test_pods_are_selected_by_what_they_are_labelled_with():
    labels = TEMPLATE["metadata"]["labels"]
    assert OBJECTS["DaemonSet"]["spec"]["selector"]["matchLabels"] == labels
    assert OBJECTS["PodMonitor"]["spec"]["selector"]["matchLabels"] == labels


@pytest.mark.needs("promtool")
def test_job_is_that_of_the_alerts_and_a_host_is_a_node(tmp_path):
    name = "pod-monitor"
    job = {
        "job_name": name,
        "static_configs": [{"targets": ["10.0.0.7:10060"], "labels": FOUND_POD}],
        # The operator writes them with underscores.
        "relabel_configs": [
            {re.sub("([A-Z])", r"_\1", key).lower(): value for key, value in one.items()}
            for one in ENDPOINT["relabelings"]
        ],
    }
    config = tmp_path / "prometheus.yml"
    config.write_text(json.dumps({"scrape_configs": [job]}), encoding="utf-8")
    done = subprocess.run(
        ["promtool", "check", "service-discovery", "--timeout=1s", config, name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [target] = json.loads(done.stdout)
    labels = {key: value for key, value in target["labels"].items() if key[:2] != "__"}
    assert labels == {
        "job": Site().job,
        "instance": f"{NODE}:{DEFAULT_PORT}",
        "namespace": "vllm-agent",
    }


def test_monitor_asks_as_often_as_the_rules_expect():
    shipped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text("utf-8"))
    assert ENDPOINT["interval"] == shipped["global"]["scrape_interval"]
