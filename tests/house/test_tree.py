"""The tree is read right whatever else this process has run before."""

from __future__ import annotations

import ast
import gc
import sys
import traceback

import pytest

from tests.house.tree import parsed


class LastWords:
    """Dies in a collection, with an exception."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        raise ValueError("nobody asked")


def test_what_dies_meanwhile_and_says_so_spoils_no_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join(f"def f{number}(a, b):\n    return [a, (b, {{a: b}})]" for number in range(500))
    expected = ast.dump(parsed(text))
    monkeypatch.setattr(sys, "unraisablehook", lambda one: traceback.format_exception(one.exc_value))
    before = gc.get_threshold()
    gc.collect()
    try:
        gc.set_threshold(100_000)
        for _ in range(50):
            LastWords()
        gc.set_threshold(100)
        tree = parsed(text)
    finally:
        gc.set_threshold(*before)
        gc.collect()
    assert ast.dump(tree) == expected
