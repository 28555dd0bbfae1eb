"""The walls: who may import whom.

Checked through every chain of imports where import-linter can say it, else directly.
"""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.tree import ROOT, SERVICES, TOPS, imports, modules, within

LINT = Path(sys.executable).parent / "lint-imports"
PYROUTE2_ROOMS = ("linux",)
KERNEL_WORDS = {"AF_NETLINK", "setns", "unshare", "syscall"}
LIBC_CALLS = {"services.dataplane.datapath.programs": "statfs(2)", "lab.cluster.down": "umount2(2)"}
"""Module → the call of libc that Python lacks."""
BCC_ROOMS = ("services.dataplane.datapath.compile", "services.dataplane.datapath.bytecode")


@pytest.mark.parametrize("contracts", ["pyproject.toml", "tests/house/contracts.toml"])
def test_import_contracts_hold(contracts: str) -> None:
    command = [str(LINT), contracts, "--no-cache", "--no-logo"]
    told = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stdout[-6000:] + told.stderr[-2000:]


def test_a_core_imports_of_its_own_service_the_core_alone() -> None:
    wrong = [
        f"{module.path} imports {name}"
        for module in modules()
        if module.is_core
        for name in imports(module)
        if within(name, "services") and not within(name, ".".join([*module.name.split(".")[:2], "core"]))
    ]
    assert wrong == []


def test_pyroute2_only_where_netlink_is_spoken() -> None:
    wrong = [
        f"{module.path} imports {name}"
        for module in modules()
        for name in imports(module)
        if within(name, "pyroute2") and not any(module.name.startswith(room) for room in PYROUTE2_ROOMS)
    ]
    assert wrong == []


def test_the_kernel_is_spoken_to_in_one_place() -> None:
    """One netlink transport, one way into a namespace, one bpf(2)."""
    wrong = [
        f"{module.path}:{node.lineno} {node.attr}"
        for module in modules()
        if not within(module.name, "linux")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute)
        and (node.attr in KERNEL_WORDS or (node.attr == "CDLL" and module.name not in LIBC_CALLS))
    ]
    assert wrong == []


def test_bcc_only_where_programs_are_compiled() -> None:
    wrong = [
        f"{module.path} imports {name}"
        for module in modules()
        for name in imports(module)
        if within(name, "bcc") and not any(module.name.startswith(room) for room in BCC_ROOMS)
    ]
    assert wrong == []


def test_kinds_of_policy_are_known_to_their_dialect_alone() -> None:
    """What a policy says is read once, by its dialect; everything after that sees the model."""
    kinds = {f"proto.objects.{name}" for name in ("NetworkPolicy", "PolicyRule", "Peer")}
    wrong = [
        f"{module.path} imports {name}"
        for module in modules()
        if within(module.name, "services.policy") and not within(module.name, "services.policy.core.dialects")
        for name in imports(module)
        if name in kinds
    ]
    assert wrong == []


def test_every_folder_of_modules_is_a_package() -> None:
    """A folder without __init__.py is invisible to import-linter: its walls would be of paper."""
    folders = {module.path.parent for module in modules()}
    assert [str(folder) for folder in sorted(folders) if not (ROOT / folder / "__init__.py").exists()] == []


def test_every_service_is_seen() -> None:
    seen = {module.name.split(".")[1] for module in modules() if within(module.name, "services") and "." in module.name}
    assert seen == set(SERVICES)


def test_no_installed_distribution_owns_a_top_level_name() -> None:
    """`proto` is also proto-plus' name: with it installed, which of the two is imported would be chance."""
    owners = importlib.metadata.packages_distributions()
    assert {top: owners[top] for top in TOPS if top in owners} == {}
