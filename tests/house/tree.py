"""The repository as the house tests see it: its files, its Python modules and what each imports.

Files are those that git tracks or would track; without git (an image, a tarball) all that lie here, build products
aside.
"""

from __future__ import annotations

import ast
import gc
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOPS = ("proto", "kit", "linux", "chassis", "services", "cli", "lab", "deploy")
SERVICES = ("cluster", "ipam", "routing", "policy", "dataplane", "dns")
_PRODUCTS = {".git", ".venv", ".mypy_cache", ".ruff_cache", ".hypothesis", "__pycache__", ".import_linter_cache"}


@cache
def files() -> tuple[Path, ...]:
    """Every file of the repository, relative to its root."""
    try:
        said = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            capture_output=True,
            check=True,
            timeout=30,
        ).stdout.decode()
        listed = [Path(name) for name in said.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        listed = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]
    return tuple(sorted(path for path in listed if (ROOT / path).is_file() and not _PRODUCTS.intersection(path.parts)))


def parsed(text: str, file: str = "<unknown>") -> ast.Module:
    """The syntax tree of a Python text; raises SyntaxError.

    Nothing is collected meanwhile. What else died in this process may say its last words with a traceback, as a task
    whose exception nobody asked for does, and a traceback is formatted by the parser. Python before 3.11.5 counts the
    depth of both together and raises SystemError (https://github.com/python/cpython/issues/106905).
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(text, file)
    finally:
        if collects:
            gc.enable()


@dataclass(frozen=True, slots=True)
class Module:
    """One Python file below the top-level folders."""

    path: Path
    name: str
    tree: ast.Module
    lines: int

    @property
    def is_core(self) -> bool:
        """Part of a service's core: decides, never acts."""
        parts = self.name.split(".")
        return len(parts) > 2 and parts[0] == "services" and parts[2] == "core"


@cache
def modules() -> tuple[Module, ...]:
    """All modules of the product (tests and benchmarks are not part of it)."""
    found = []
    for path in files():
        if path.suffix == ".py" and path.parts[0] in TOPS:
            text = (ROOT / path).read_text()
            name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
            found.append(Module(path, name, parsed(text, str(path)), text.count("\n")))
    return tuple(found)


def imports(module: Module) -> Iterator[str]:
    """Dotted names of what a module imports, wherever in it; `from a import b` gives `a` and `a.b`."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            own = module.name.split(".")
            above = ".".join(own[: len(own) - node.level + (module.path.name == "__init__.py")])
            yield f"{above}.{node.module}" if node.module else above


def within(name: str, folder: str) -> bool:
    """Whether a dotted name is `folder` or below it."""
    return name == folder or name.startswith(folder + ".")
