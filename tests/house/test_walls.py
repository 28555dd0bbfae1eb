"""The walls: who may import whom.

Checked through every chain of imports where import-linter can say it, else directly.
"""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.tree import ROOT, SERVICES, TOPS, imports, modules, parsed, within

LINT = Path(sys.executable).parent / "lint-imports"
PYROUTE2_ROOMS = ("linux",)
KERNEL_WORDS = {"AF_NETLINK", "setns", "unshare", "syscall"}
LIBC_CALLS = {
    "chassis.runtime.garbage": "malloc_trim(3), mallopt(3)",
    "services.dataplane.datapath.programs": "statfs(2)",
    "lab.cluster.down": "umount2(2)",
}
"""Module → the call of libc that Python lacks."""
ADAPTERS = ("chassis.asyncio_internals", "chassis.bus.nats_internals")
"""Where private parts of a library are reached."""
PUBLIC_ALL_THE_SAME = {"_exit", "_replace", "_asdict", "_fields", "_make"}
BCC_ROOMS = ("services.dataplane.datapath.compile", "services.dataplane.datapath.bytecode")


@pytest.mark.parametrize("contracts", ["pyproject.toml", "tests/house/contracts.toml"])
def test_import_contracts_hold(contracts: str) -> None:
    command = [str(LINT), contracts, "--no-cache", "--no-logo"]
    output = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert output.returncode == 0, output.stdout[-6000:] + output.stderr[-2000:]


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


def test_private_parts_of_libraries_are_reached_by_one_adapter_each() -> None:
    """A private name is used where its module gives it; a class of nats-py is derived from by the adapter alone."""
    given = {module.path: private_names_given(module.tree) for module in modules()}
    anywhere = set().union(*given.values())
    wrong = [
        f"{module.path}:{line} {what}"
        for module in modules()
        if module.name not in ADAPTERS
        for line, what in private_names_used(module.tree, given[module.path], anywhere)
    ]
    assert wrong == []
    assert all(any(module.name == name for module in modules()) for name in ADAPTERS)


@pytest.mark.parametrize(
    "source",
    [
        "def f(client): return client._transport",
        "def f(client): client._pending.clear()",
        "def f(self): return self._client._nuid",
        "def f(lock): return getattr(lock, '_waiters', None)",
        "from asyncio import _get_running_loop",
        "import _asyncio",
        "from nats.micro.service import Endpoint\nclass E(Endpoint): ...",
        "class E:\n  def f(self): return self._handle_request()",
    ],
)
def test_a_private_part_of_a_library_is_seen(source: str) -> None:
    tree = parsed(source)
    assert list(private_names_used(tree, private_names_given(tree), set()))


def private_names_given(tree: ast.Module) -> set[str]:
    """Names with one underscore that this module makes: variables, functions, classes, attributes of its own."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            names.add(node.attr)
    return {name for name in names if is_private(name)}


def private_names_used(tree: ast.Module, given: set[str], anywhere: set[str]) -> Iterator[tuple[int, str]]:
    """Line and text of each use of a private name that is not one of ours."""
    of_nats: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and within(node.module or "", "nats"):
            of_nats |= {alias.asname or alias.name for alias in node.names}
        match node:
            case ast.Attribute(value=value, attr=attr) if is_private(attr):
                if attr not in (anywhere | given if ast.unparse(value) in ("self", "cls") else given):
                    yield node.lineno, ast.unparse(node)
            case ast.Call(
                func=ast.Name(id="getattr" | "setattr" | "hasattr"), args=[_, ast.Constant(value=str(attr)), *_]
            ):
                if is_private(attr) and attr not in given:
                    yield node.lineno, ast.unparse(node)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                words = [word for alias in names for word in alias.name.split(".")]
                words += (node.module or "").split(".") if isinstance(node, ast.ImportFrom) else []
                if any(is_private(word) for word in words):
                    yield node.lineno, ast.unparse(node)
            case ast.ClassDef(bases=bases):
                if of_nats.intersection(ast.unparse(base) for base in bases):
                    yield node.lineno, f"class {node.name}({', '.join(map(ast.unparse, bases))})"
            case _:
                pass


def is_private(name: str) -> bool:
    """One underscore, and not public all the same (os._exit(3), the methods of named tuples)."""
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC_ALL_THE_SAME


def test_kinds_of_policy_are_known_to_their_dialect_alone() -> None:
    """What a policy says is read once, by its dialect; everything after that sees the model. The doctor's checks alone
    speak of the text that a person wrote, with paths in it that the model does not have.
    """
    doctor = ("services.policy.core.doctor", "services.policy.doctor")
    kinds = {f"proto.objects.{name}" for name in ("NetworkPolicy", "PolicyRule", "Peer")}
    wrong = [
        f"{module.path} imports {name}"
        for module in modules()
        if within(module.name, "services.policy") and not within(module.name, "services.policy.core.dialects")
        if not any(within(module.name, one) for one in doctor)
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
