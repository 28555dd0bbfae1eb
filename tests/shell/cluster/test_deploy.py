"""The manifests: they render, name only settings that exist, and grant what `cluster` asks for."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from chassis.runtime.settings import PREFIX
from proto.objects import KINDS, ConfigMap, Deployment
from services.cluster.core.workloads import COREDNS

FOLDER = Path(__file__).parents[3] / "deploy" / "kubernetes"
KUBECTL = Path(sys.executable).parent / "kubectl"


@pytest.fixture(scope="module")
def rendered() -> list[dict[str, Any]]:
    reported = subprocess.run([KUBECTL, "kustomize", FOLDER], capture_output=True, text=True, check=True, timeout=60)
    return list(yaml.safe_load_all(reported.stdout))


def workloads(rendered: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in rendered if one["kind"] in ("Deployment", "DaemonSet")}


def test_every_service_runs(rendered: list[dict[str, Any]]) -> None:
    folder = FOLDER.parents[1] / "services"
    services = {one.name for one in folder.iterdir() if (one / "pyproject.toml").is_file()}
    assert set(workloads(rendered)) == services


def test_every_variable_is_a_setting(rendered: list[dict[str, Any]]) -> None:
    common = next(one for one in rendered if one["kind"] == "ConfigMap")["data"]
    for name, workload in workloads(rendered).items():
        settings = importlib.import_module(f"services.{name}.settings").Settings
        known = {PREFIX + field.name.upper() for field in fields(settings)}
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        assert {variable["name"] for variable in container["env"]} <= known, name
        assert container["envFrom"][0]["configMapRef"]["name"].startswith("airmesh-")
    assert set(common) == {"AIRMESH_NATS_URL", "AIRMESH_UPLINKS"}


def test_only_cluster_has_a_token(rendered: list[dict[str, Any]]) -> None:
    accounts = {one["metadata"]["name"]: one for one in rendered if one["kind"] == "ServiceAccount"}
    for name, workload in workloads(rendered).items():
        account = workload["spec"]["template"]["spec"]["serviceAccountName"]
        assert account == ("cluster" if name == "cluster" else "airmesh")
    assert accounts["airmesh"]["automountServiceAccountToken"] is False


def test_what_cluster_mirrors_it_may_watch_and_nothing_is_open(rendered: list[dict[str, Any]]) -> None:
    rules = [rule for one in rendered if one["kind"] in ("ClusterRole", "Role") for rule in one["rules"]]
    allowed = {
        (group, resource): rule
        for rule in rules
        if "watch" in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    for kind in KINDS:
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
