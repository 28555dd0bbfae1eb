"""The manifests: they render, name only settings that exist, and grant what `cluster` asks for."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from chassis.runtime.settings import PREFIX
from cli.install.names import ADMISSION, BOOTSTRAP, OPERATOR
from proto.admission import AUDIENCE
from proto.objects import KINDS, ConfigMap, Deployment
from services.cluster.core.spellings import AGAIN
from services.cluster.core.workloads import COREDNS

FOLDER = Path(__file__).parents[3] / "deploy" / "kubernetes"
KUBECTL = Path(sys.executable).parent / "kubectl"


@pytest.fixture(scope="module")
def rendered() -> list[dict[str, Any]]:
    reported = subprocess.run([KUBECTL, "kustomize", FOLDER], capture_output=True, text=True, check=True, timeout=60)
    return list(yaml.safe_load_all(reported.stdout))


def workloads(rendered: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in rendered if one["kind"] in ("Deployment", "DaemonSet")}


def pods(rendered: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Pod specs by name of the workload, the bus's too."""
    return {
        one["metadata"]["name"]: one["spec"]["template"]["spec"]
        for one in rendered
        if one["kind"] in ("Deployment", "DaemonSet", "StatefulSet")
    }


def test_every_service_runs(rendered: list[dict[str, Any]]) -> None:
    folder = FOLDER.parents[1] / "services"
    services = {one.name for one in folder.iterdir() if (one / "pyproject.toml").is_file()}
    assert set(workloads(rendered)) == services
    assert set(pods(rendered)) == {*services, "nats"}


def test_every_variable_is_a_setting(rendered: list[dict[str, Any]]) -> None:
    common = next(one for one in rendered if one["kind"] == "ConfigMap" and "AIRMESH_UPLINKS" in one["data"])["data"]
    anywhere: set[str] = set()
    for name, workload in workloads(rendered).items():
        settings = importlib.import_module(f"services.{name}.settings").Settings
        known = {PREFIX + field.name.upper() for field in fields(settings)}
        anywhere |= known
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        given = [variable["name"] for variable in container["env"]]
        assert set(given) <= known, name
        assert len(given) == len(set(given)), name
        for number, variable in enumerate(container["env"]):
            for named in re.findall(r"\$\((\w+)\)", variable.get("value", "")):
                assert named in given[:number], f"{name}: {named} is not known yet where it is used"
        assert container["envFrom"][0]["configMapRef"]["name"].startswith("airmesh-")
    assert {"AIRMESH_NATS_URL", "AIRMESH_UPLINKS"} <= set(common) <= anywhere


def test_one_tag_and_one_registry_are_those_of_all_images(rendered: list[dict[str, Any]]) -> None:
    images = {
        container["image"]
        for pod in pods(rendered).values()
        for container in [*pod["containers"], *pod.get("initContainers", [])]
    }
    assert {image.rpartition("/")[2].rpartition(":")[0] for image in images} == set(pods(rendered))
    assert len({(image.rpartition("/")[0], image.rpartition(":")[2]) for image in images}) == 1


def test_nothing_is_privileged_and_every_right_is_named(rendered: list[dict[str, Any]]) -> None:
    """Root's rights one by one, a root file system that cannot be written, and no way to more."""
    added: dict[str, list[str]] = {}
    for name, pod in pods(rendered).items():
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True, name
            assert not context.get("privileged"), name
            assert context["capabilities"]["drop"] == ["ALL"], name
            if context["capabilities"].get("add"):
                added[name] = sorted(context["capabilities"]["add"])
            assert name == "dataplane" or context["allowPrivilegeEscalation"] is False
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}, name
    assert added["routing"] == ["NET_ADMIN", "NET_BIND_SERVICE"]
    assert added.keys() == {"routing", "dataplane"}
    for name in ("cluster", "ipam", "policy", "dns"):
        assert pods(rendered)[name]["containers"][0]["securityContext"]["runAsNonRoot"] is True


def test_health_ports_of_one_host_differ(rendered: list[dict[str, Any]]) -> None:
    ports: list[int] = []
    for name, pod in pods(rendered).items():
        assert pod["hostNetwork"] is True, name
        for container in pod["containers"]:
            for port in container["ports"]:
                assert port["hostPort"] == port["containerPort"]
                ports.append(port["hostPort"])
            given = {one["name"]: one.get("value") for one in container.get("env", [])}
            if name != "nats":
                assert given["AIRMESH_HEALTH_PORT"] == str(container["ports"][0]["containerPort"])
            assert container["livenessProbe"]["httpGet"]["host"] == "127.0.0.1"
    assert len(ports) == len(set(ports))


def test_a_drain_takes_one_copy_at_a_time(rendered: list[dict[str, Any]]) -> None:
    budgets = {one["metadata"]["name"]: one["spec"] for one in rendered if one["kind"] == "PodDisruptionBudget"}
    replicated = {
        one["metadata"]["name"]: one["spec"]["selector"]
        for one in rendered
        if one["kind"] in ("Deployment", "StatefulSet")
    }
    assert {name: spec["selector"] for name, spec in budgets.items()} == replicated
    assert {spec["maxUnavailable"] for spec in budgets.values()} == {1}


def test_everything_is_marked_as_ours(rendered: list[dict[str, Any]]) -> None:
    assert {one["metadata"]["labels"].get("app.kubernetes.io/part-of") for one in rendered} == {"airmesh"}


def test_only_cluster_has_a_token(rendered: list[dict[str, Any]]) -> None:
    accounts = {one["metadata"]["name"]: one for one in rendered if one["kind"] == "ServiceAccount"}
    for name, pod in pods(rendered).items():
        assert pod["serviceAccountName"] == ("cluster" if name == "cluster" else "airmesh")
    assert accounts["airmesh"]["automountServiceAccountToken"] is False


def test_a_nodes_pod_has_a_token_for_its_admission_alone(rendered: list[dict[str, Any]]) -> None:
    """The API server takes it for nothing else. The container that has it has no rights, and no agent has it."""
    for name in ("routing", "dataplane"):
        pod = pods(rendered)[name]
        (volume,) = [one for one in pod["volumes"] if "projected" in one]
        (source,) = volume["projected"]["sources"]
        assert source["serviceAccountToken"]["audience"] == AUDIENCE
        containers = [*pod["initContainers"], *pod["containers"]]
        mounted = {one["name"] for one in containers for each in one["volumeMounts"] if each["name"] == volume["name"]}
        assert mounted == {"key"}
        (key,) = [one for one in pod["initContainers"] if one["name"] == "key"]
        assert key["args"] == [name]
        assert key["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        (agent,) = pod["containers"]
        seed = next(one["value"] for one in agent["env"] if one["name"] == "AIRMESH_NATS_SEED_FILE")
        assert {"name": "AIRMESH_NATS_SEED_FILE", "value": seed} in key["env"]


def test_what_signs_for_nodes_is_clusters_alone(rendered: list[dict[str, Any]]) -> None:
    having = {
        (name, volume["secret"]["secretName"])
        for name, pod in pods(rendered).items()
        for volume in pod["volumes"]
        if "secret" in volume and volume["secret"]["secretName"] in (ADMISSION, BOOTSTRAP, OPERATOR)
    }
    assert having == {("cluster", ADMISSION), ("routing", BOOTSTRAP), ("dataplane", BOOTSTRAP)}


def test_what_cluster_mirrors_it_may_watch_and_nothing_is_open(rendered: list[dict[str, Any]]) -> None:
    rules = [rule for one in rendered if one["kind"] in ("ClusterRole", "Role") for rule in one["rules"]]
    allowed = {
        (group, resource): rule
        for rule in rules
        if "watch" in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    for kind in (*KINDS, *AGAIN):
        rule = allowed.pop(("" if kind.group == "core" else kind.group, kind.plural))
        assert {"list", "watch"} <= set(rule["verbs"])
        if kind.type in (ConfigMap, Deployment):
            assert rule["resourceNames"] == [COREDNS[1]]
    assert allowed == {}
    assert not any("*" in part for rule in rules for part in (*rule["verbs"], *rule["resources"], *rule["apiGroups"]))
    assert "secrets" not in {resource for rule in rules for resource in rule["resources"]}


def test_coredns_is_reachable_in_both_families() -> None:
    documents = list(yaml.safe_load_all((FOLDER / "coredns.yaml").read_text()))
    service = next(one for one in documents if one["kind"] == "Service")
    assert service["spec"]["ipFamilyPolicy"] == "PreferDualStack"
    assert {(p["port"], p["protocol"]) for p in service["spec"]["ports"]} >= {(53, "UDP"), (53, "TCP"), (9153, "TCP")}
