"""The house style that no linter knows: names, budgets, docstrings, subjects in one place."""

from __future__ import annotations

import ast

from tests.house.tree import Module, modules

FORBIDDEN_NAMES = {
    "utils",
    "util",
    "manager",
    "helper",
    "helpers",
    "process",
    "data",
    "info",
    "common",
    "misc",
    "handler",
}
MODULE_LINES = 500
FUNCTION_LINES = 60
LONG_MODULES: dict[str, str] = {}
"""Module → why it may be longer."""
LONG_FUNCTIONS: dict[str, str] = {}
"""`module:function` → why it may be longer."""


def functions(module: Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(module.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_modules_are_named_for_what_they_own() -> None:
    wrong = [str(module.path) for module in modules() if FORBIDDEN_NAMES.intersection(module.name.split("."))]
    assert wrong == []


def test_modules_keep_their_budget() -> None:
    long = {module.name: module.lines for module in modules() if module.lines > MODULE_LINES}
    assert {name: lines for name, lines in long.items() if name not in LONG_MODULES} == {}
    assert set(LONG_MODULES) <= set(long), "an exemption that is no longer needed"


def test_functions_keep_their_budget() -> None:
    long = {
        f"{module.name}:{function.name}": size
        for module in modules()
        for function in functions(module)
        if (size := (function.end_lineno or 0) - function.lineno + 1) > FUNCTION_LINES
    }
    assert {name: size for name, size in long.items() if name not in LONG_FUNCTIONS} == {}
    assert set(LONG_FUNCTIONS) <= set(long), "an exemption that is no longer needed"


def test_each_module_opens_with_a_paragraph() -> None:
    wrong = []
    for module in modules():
        if module.path.stem == "__init__" and not module.tree.body:
            continue  # an empty one only marks the package
        words = len((ast.get_docstring(module.tree) or "").split())
        least = 3 if module.path.stem in ("__init__", "__main__") else 7
        if words < least:
            wrong.append(f"{module.path}: {words} words")
    assert wrong == []


def test_subjects_are_spelled_in_one_place() -> None:
    """Docstrings may name a subject; code takes it from proto.subjects."""
    wrong = []
    for module in modules():
        said = {id(node.value) for node in ast.walk(module.tree) if isinstance(node, ast.Expr)}
        constants = (node for node in ast.walk(module.tree) if isinstance(node, ast.Constant))
        wrong += [
            f"{module.path}:{node.lineno} {node.value!r}"
            for node in constants
            if isinstance(node.value, str) and "airmesh.v1" in node.value and id(node) not in said
        ]
    assert wrong == []


def test_nothing_is_left_for_later() -> None:
    """NotImplementedError is msgspec's own way of saying that a type has no wire form; nothing else raises it."""
    wrong = [
        f"{module.path}:{node.lineno}"
        for module in modules()
        if module.name not in ("proto.net", "proto.asyncapi")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Raise) and node.exc is not None and "NotImplementedError" in ast.dump(node.exc)
    ]
    assert wrong == []


def test_nothing_waits_deaf_to_its_end() -> None:
    """``asyncio.wait_for`` of Python 3.11 drops a cancellation that comes in the same turn as what it waits for: the
    task then goes on for ever. ``asyncio.timeout`` does not.
    """
    wrong = [
        f"{module.path}:{node.lineno}"
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and node.attr == "wait_for"
    ]
    assert wrong == []
