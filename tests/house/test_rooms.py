"""Rooms and papers: each service's folder is whole, its manifest is honest, every dependency has its reason written."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from tests.house.tree import ROOT, SERVICES, TOPS, files, imports, modules, within

PAPERS = ("README.md", "pyproject.toml", "settings.py", "app.py", "__main__.py", "__init__.py")
SYSTEM = {"bcc"}
"""Imported names that no index has: Debian's python3-bpfcc."""
DISTRIBUTIONS = {
    "nats": "nats-py",
    "nkeys": "nats-py",
    "nacl": "pynacl",
    "google": "protobuf",
    "prometheus_client": "prometheus-client",
    "yaml": "pyyaml",
    "opentelemetry.sdk": "opentelemetry-sdk",
    "opentelemetry.exporter.otlp.proto.http": "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry.exporter.otlp.proto.common": "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry.proto": "opentelemetry-proto",
    "opentelemetry": "opentelemetry-sdk",
}
"""Imported name → the distribution that brings it, where they differ."""


def distribution(name: str) -> str:
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        if (found := DISTRIBUTIONS.get(".".join(parts[:count]))) is not None:
            return found
    return parts[0]


def needed(*folders: str) -> set[str]:
    """Distributions that the modules of some folders import."""
    return {
        distribution(name)
        for module in modules()
        if any(within(module.name, folder) for folder in folders)
        for name in imports(module)
        if (top := name.split(".")[0]) not in sys.stdlib_module_names and top not in (*TOPS, *SYSTEM)
    }


def bare(requirement: str) -> str:
    return re.split(r"[\[<>=~! ;]", requirement, maxsplit=1)[0].lower()


def declared(manifest: Path) -> set[str]:
    """Distributions of a manifest's `project.dependencies`, without versions and extras."""
    project = tomllib.loads((ROOT / manifest).read_text()).get("project", {})
    return {bare(requirement) for requirement in project.get("dependencies", [])}


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_all_its_papers(service: str) -> None:
    folder = ROOT / "services" / service
    assert [paper for paper in PAPERS if not (folder / paper).is_file()] == []
    assert (folder / "core" / "__init__.py").is_file()


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_readme_says_what_a_person_needs(service: str) -> None:
    text = (ROOT / "services" / service / "README.md").read_text().lower()
    assert [word for word in ("subject", "setting", "down") if word not in text] == []
    assert len(text) > 800


@pytest.mark.parametrize("folder", ["chassis", "cli", "kit", "linux", "proto"])
def test_a_readme_names_every_module_of_its_folder(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text()
    names = {path.name for path in files() if path.suffix == ".py" and path.parts[0] == folder}
    reports = {path.name for path in files() if path.parts[:2] == ("cli", "reports")}  # as many as commands
    assert sorted(name for name in names - reports if not name.startswith("__") and name not in text) == []


def test_the_dataplane_has_the_same_folders_in_shell_core_and_tests() -> None:
    def folders(of: str) -> set[str]:
        deep = len(Path(of).parts)
        below = [path.parts for path in files() if path.suffix == ".py" and path.parts[:deep] == Path(of).parts]
        return {parts[deep] for parts in below if len(parts) > deep + 1}

    own = folders("services/dataplane/core")
    assert folders("services/dataplane") == own | {"core"}
    assert {kind: folders(f"tests/{kind}/dataplane") - own for kind in ("core", "shell", "netns")} == {
        "core": set(),
        "shell": set(),
        "netns": set(),
    }


@pytest.mark.parametrize("folder", ["chassis", "cli", "linux", *(f"services/{service}" for service in SERVICES)])
def test_a_manifest_lists_exactly_what_its_folder_imports(folder: str) -> None:
    own = needed(folder.replace("/", "."))
    below = needed("chassis", "linux", "kit", "proto") if folder.startswith("services") else needed("proto")
    named = declared(Path(folder) / "pyproject.toml")
    assert own - named == set(), "imported, not declared"
    assert named - own - below == set(), "declared, imported neither here nor by a layer below"


def test_what_lab_and_tests_need_is_declared_somewhere() -> None:
    lines = (ROOT / "requirements" / "dev.in").read_text().splitlines()
    named = {bare(line) for line in lines if line and not line.startswith("#")}
    for manifest in files():
        if manifest.name == "pyproject.toml" and len(manifest.parts) > 1:
            named |= declared(manifest)
    assert needed("lab") - named == set()


def test_every_dependency_has_its_reason_written() -> None:
    reasons = "\n".join((ROOT / path).read_text().lower() for path in files() if path.parts[:2] == ("docs", "adr"))
    named: set[str] = set()
    for manifest in files():
        if manifest.name == "pyproject.toml" and len(manifest.parts) > 1:
            named |= declared(manifest)
    assert len(named) > 8
    assert sorted(name for name in named if name not in reasons) == []
