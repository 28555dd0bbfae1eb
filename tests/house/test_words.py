"""Words and papers: nothing of the machine it was made on, every YAML reads, generated pages are fresh."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.house.tree import ROOT, files

# Spelled in two pieces, so that this page does not accuse itself.
FORBIDDEN = (
    "pypi" + ".org",
    "python" + "hosted.org",
    "--index" + "-url",
    "--extra-index" + "-url",
    "proxy.golang" + ".org",
)
MACHINE = re.compile(r"(?<![\w.*-])/(wo" + r"rk|ro" + r"ot|ho" + r"me)/")
"""Folders of the machine it was made on, where a path begins with them."""
BINARY = {".png", ".tar", ".gz", ".o", ".hex"}
APPLIED_ALONE = {
    "coredns.yaml": "applied by the lab; a real cluster has a CoreDNS of its own",
    "ndots.yaml": "applied by `airmesh dns apply ndots/NAMESPACE`, where the API server serves its kinds",
}
YAML_FOLDERS = ("deploy", "examples", "compose", "lab")


def texts() -> list[tuple[Path, str]]:
    found = []
    for path in files():
        if path.suffix not in BINARY:
            try:
                found.append((path, (ROOT / path).read_text()))
            except UnicodeDecodeError:
                continue
    return found


def test_no_index_host_and_no_path_of_a_machine() -> None:
    wrong = [
        f"{path}:{number}: {line.strip()[:100]}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if any(word in line for word in FORBIDDEN) or MACHINE.search(line)
    ]
    assert wrong == []


def yaml_files() -> list[Path]:
    return [path for path in files() if path.suffix in (".yaml", ".yml") and path.parts[0] in YAML_FOLDERS]


@pytest.mark.parametrize("path", yaml_files(), ids=str)
def test_every_yaml_reads(path: Path) -> None:
    documents = [one for one in yaml.safe_load_all((ROOT / path).read_text()) if one is not None]
    assert documents
    applied = path.parts[0] in ("deploy", "examples") and path.parts[1] != "observability"
    if applied or "manifests" in path.parts:
        for one in documents:
            assert one.get("apiVersion"), one
            assert one.get("kind"), one


@pytest.mark.parametrize("path", [path for path in yaml_files() if path.name == "kustomization.yaml"], ids=str)
def test_a_kustomization_names_what_is_there(path: Path) -> None:
    folder = ROOT / path.parent
    named = yaml.safe_load((ROOT / path).read_text()).get("resources", [])
    assert named
    assert [name for name in named if not (folder / name).exists()] == []
    beside = {one.name for one in folder.glob("*.yaml")} - {"kustomization.yaml", *APPLIED_ALONE}
    assert beside <= {Path(name).name for name in named}, "a YAML beside it that is never applied"
    patches = {one["path"] for one in yaml.safe_load((ROOT / path).read_text()).get("patches", [])}
    assert {str(one.relative_to(folder)) for one in folder.glob("patches/*.yaml")} == patches


def test_every_kind_of_ours_has_a_schema() -> None:
    kinds = [
        one
        for path in yaml_files()
        if path.parts[:3] == ("deploy", "kubernetes", "crds") and path.name != "kustomization.yaml"
        for one in yaml.safe_load_all((ROOT / path).read_text())
        if one
    ]
    assert kinds
    for kind in kinds:
        assert kind["kind"] == "CustomResourceDefinition"
        for version in kind["spec"]["versions"]:
            properties = version["schema"]["openAPIV3Schema"]["properties"]
            assert properties["spec"]["properties"], kind["metadata"]["name"]


def test_the_shop_has_what_the_tour_shows() -> None:
    objects = [
        one
        for path in sorted((ROOT / "examples" / "shop").glob("*.yaml"))
        for one in yaml.safe_load_all(path.read_text())
        if one
    ]
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for one in objects:
        by_kind.setdefault(one["kind"], []).append(one)
    assert len(by_kind["Namespace"]) == 2
    assert sum(one["spec"]["replicas"] for one in by_kind["Deployment"]) >= 9
    assert len(by_kind["StatefulSet"]) == 1
    assert by_kind["IPPool"]
    protocols = {port["protocol"] for one in by_kind["Service"] for port in one["spec"]["ports"]}
    assert protocols == {"TCP", "UDP"}
    assert any(one["spec"].get("sessionAffinity") == "ClientIP" for one in by_kind["Service"])
    names = {one["metadata"]["name"] for one in by_kind["NetworkPolicy"]}
    assert {"db-from-api", "default-deny"} <= names
    blocks = [
        peer
        for one in by_kind["NetworkPolicy"]
        for rule in one["spec"].get("ingress", [])
        for peer in rule.get("from", [])
        if "ipBlock" in peer
    ]
    assert blocks
    assert any("Egress" in one["spec"].get("policyTypes", []) for one in by_kind["NetworkPolicy"])


def test_the_manual_says_what_the_commands_say() -> None:
    reported = subprocess.run(
        [sys.executable, "-m", "cli.manual"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert (ROOT / "docs" / "cli.md").read_text() == reported, "run python -m cli.manual > docs/cli.md"
