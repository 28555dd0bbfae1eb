"""Who judges the product shares no code with it: a mistake made once would otherwise be made twice and agree."""

from __future__ import annotations

import pytest

from tests.house.tree import ROOT, TOPS, Module, imports, parsed, within

JUDGES = ("tests/drills/ledger.py", "tests/core/routing/bgp/judge.py")


@pytest.mark.parametrize("path", JUDGES)
def test_a_judge_imports_nothing_of_ours(path: str) -> None:
    file = ROOT / path
    text = file.read_text()
    module = Module(file.relative_to(ROOT), path.removesuffix(".py").replace("/", "."), parsed(text), 0)
    assert [name for name in imports(module) if any(within(name, top) for top in (*TOPS, "tests"))] == []
