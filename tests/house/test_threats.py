"""docs/threats.md names tests that exist, and every reason to wait or drop that it names is one."""

from __future__ import annotations

import ast
import re

import pytest

from proto.flow import DropReason
from tests.house.tree import ROOT, parsed

PAGE = ROOT / "docs" / "threats.md"
NAMED = re.compile(r"`((?:bpf|core|drills|house|journeys|netns|shell)/[\w/]+\.py)((?:::\w+)*)`")


def named() -> list[tuple[str, str]]:
    """File and, within it, ``::`` and a name, as often as the page says so."""
    return sorted(set(NAMED.findall(PAGE.read_text())))


def names_in(path: str) -> set[str]:
    """Tests and classes of tests, as pytest would be given them."""
    found = set()
    for node in parsed((ROOT / "tests" / path).read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(f"::{node.name}")
        if isinstance(node, ast.ClassDef):
            found |= {f"::{node.name}::{one.name}" for one in node.body if hasattr(one, "name")}
    return found


@pytest.mark.parametrize(("path", "test"), named())
def test_every_test_that_the_page_names_exists(path: str, test: str) -> None:
    assert (ROOT / "tests" / path).is_file(), f"docs/threats.md names tests/{path}"
    found = names_in(path)
    assert test in found if test else any("::test_" in one for one in found)


def test_every_line_of_an_attack_names_a_test() -> None:
    attacks = [
        line for line in PAGE.read_text().split("## A key of each role")[0].splitlines() if line.startswith("| ")
    ]
    assert len(attacks) > 20
    without = [line for line in attacks if not NAMED.search(line) and not line.startswith("| attack |")]
    assert without == []


def test_reasons_are_spelled_as_they_are_reported() -> None:
    reasons = set(re.findall(r"\(([A-Z]+_[A-Z_]+)\)", PAGE.read_text()))
    assert reasons - {reason.name for reason in DropReason} == set()


def test_the_readme_leads_there() -> None:
    assert "docs/threats.md" in (ROOT / "README.md").read_text()
