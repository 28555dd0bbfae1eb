"""What an image is made of and may do is said once, and the manifests ask for just that."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.images import plan
from tests.house.tree import ROOT, imports, modules, within

MANIFEST = """
[project]
version = "1.2.3"
description = "what it is"
[tool.airmesh.image]
user = 65532
capabilities = ["NET_ADMIN"]
debian = []
folders = ["linux"]
health_port = 9400
"""


def test_a_manifest_is_read() -> None:
    image = plan.read_image("ipam", MANIFEST)
    assert (image.user, image.capabilities, image.folders, image.health_port) == (
        65532,
        ("NET_ADMIN",),
        ("linux",),
        9400,
    )
    assert image.name("7") == "localhost/airmesh/ipam:7"


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("user = 65532", "", "user"),
        ("user = 65532", "user = 'root'", "user"),
        ("user = 65532", "user = 65532\nprivileged = true", "exactly"),
        ('["NET_ADMIN"]', '["CAP_NET_ADMIN"]', "CAP_NET_ADMIN"),
        ('["NET_ADMIN"]', "[1]", "capabilities"),
        ("[tool.airmesh.image]", "[tool.other]", "tool.airmesh.image"),
    ],
)
def test_a_manifest_that_no_image_can_be_is_refused_by_name(before: str, after: str, named: str) -> None:
    with pytest.raises(plan.PlanError, match=named) as refused:
        plan.read_image("ipam", MANIFEST.replace(before, after))
    assert "services/ipam/pyproject.toml" in str(refused.value)


def test_every_service_has_an_image_and_a_port_of_its_own() -> None:
    images = plan.images()
    folders = {one.parent.name for one in (ROOT / "services").glob("*/pyproject.toml")}
    assert [image.service for image in images] == [*plan.SERVICES, plan.BUS]
    assert set(plan.SERVICES) == folders
    assert len({image.health_port for image in images}) == len(images)


def test_who_touches_no_kernel_has_no_right_and_is_not_root() -> None:
    for image in plan.images():
        kernel = image.service in ("routing", "dataplane")
        assert (image.user == 0, bool(image.capabilities), "linux" in image.folders) == (kernel, kernel, kernel)


def test_an_image_has_every_folder_that_its_code_imports() -> None:
    for image in services():
        inside = ("proto", "kit", "chassis", *image.folders, f"services.{image.service}", "services")
        wanted = {
            name.split(".")[0]
            for module in modules()
            if any(within(module.name, folder) for folder in inside if folder != "services")
            for name in imports(module)
            if name.split(".")[0] in ("proto", "kit", "chassis", "linux", "cli", "lab", "deploy", "services")
        }
        assert wanted <= {folder.split(".")[0] for folder in inside}, image.service


def services() -> list[plan.Image]:
    """Those of our own code."""
    return [image for image in plan.images() if image.service != plan.BUS]


def workloads() -> dict[str, dict[str, Any]]:
    kubectl = Path(sys.executable).parent / "kubectl"
    rendered = subprocess.run(
        [kubectl, "kustomize", ROOT / "deploy" / "kubernetes"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    return {
        one["metadata"]["name"]: one["spec"]["template"]["spec"]
        for one in yaml.safe_load_all(rendered)
        if one["kind"] in ("Deployment", "DaemonSet", "StatefulSet")
    }


def test_the_manifests_ask_for_these_images_and_just_their_rights() -> None:
    found = workloads()
    tag = plan.tag()
    for image in services():
        spec = found[image.service]
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            context = container["securityContext"]
            assert container["image"] == image.name(tag)
            assert "privileged" not in context
            assert context["readOnlyRootFilesystem"] is True
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}
            assert context["capabilities"]["drop"] == ["ALL"]
            assert context["runAsUser"] == image.user
        (container,) = spec["containers"]
        assert container["securityContext"]["capabilities"].get("add", []) == list(image.capabilities)
        assert not any(mount["mountPath"].startswith("/proc") for mount in container["volumeMounts"])


def test_the_bus_is_asked_for_by_its_image_and_has_no_right() -> None:
    image = next(one for one in plan.images() if one.service == plan.BUS)
    (container,) = workloads()[plan.BUS]["containers"]
    context = container["securityContext"]
    assert container["image"] == image.name(plan.tag())
    assert "command" not in container, "the image knows its program"
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert not image.capabilities
    assert context["readOnlyRootFilesystem"] is True
    assert {port["name"]: port["containerPort"] for port in container["ports"]}["monitor"] == image.health_port


def test_every_image_that_the_manifests_name_is_built_and_no_other() -> None:
    named = set()
    for manifest in (ROOT / "deploy/kubernetes").rglob("*.yaml"):
        for line in manifest.read_text().splitlines():
            if "image: airmesh/" in line:
                named.add(line.split("image: ")[1].split("/")[1])
    assert named == set(plan.NAMES), "a tag of its own is none of these either"


def test_the_tag_is_said_in_one_place() -> None:
    text = (ROOT / "deploy/kubernetes/kustomization.yaml").read_text()
    assert text.count(f'"{plan.tag()}"') == 1


def test_a_key_names_the_files_of_an_image_and_no_other(tmp_path: Path) -> None:
    image, bus = (next(one for one in plan.images() if one.service == name) for name in ("ipam", plan.BUS))
    for folder in ("proto", "kit", "chassis", "services", "deploy/images", "requirements", "linux"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "requirements.lock", tmp_path)
    before = plan.source_key(image, tmp_path)
    assert before == plan.source_key(image)
    (tmp_path / "services/policy/app.py").write_text("other")
    (tmp_path / "services/ipam/README.md").write_text("other")
    assert plan.source_key(image, tmp_path) == before
    (tmp_path / "services/ipam/app.py").write_text("other")
    assert plan.source_key(image, tmp_path) != before
    assert plan.source_key(bus, tmp_path) == plan.source_key(bus), "the bus has no file of ours"
    (tmp_path / "requirements.lock").write_text("other")
    assert plan.source_key(bus, tmp_path) != plan.source_key(bus)


def test_what_builds_is_locked_with_hashes() -> None:
    lines = (ROOT / "requirements/images.lock").read_text().splitlines()
    assert {line.split("==")[0] for line in lines if "==" in line} >= {"uv", "setuptools", "cyclonedx-python-lib"}
    assert all("==" in line or line.strip().startswith("--hash=sha256:") for line in lines if line.strip())
    shared = {line for line in lines if line.startswith("msgspec==")}
    assert shared <= set((ROOT / "requirements.lock").read_text().splitlines()), "the bytecode is written as it is read"


def test_a_manifest_names_no_version_of_its_own() -> None:
    assert {image.version for image in plan.images()} == {plan.tag()}
