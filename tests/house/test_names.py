"""Names: no retired word is part of one; and the two pages that lead a newcomer name only what is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.drills.mutations import MUTANTS
from tests.house.tree import ROOT, files
from tests.house.words import EXEMPT, RETIRED

STRINGS = r"""[rbfuRBFU]{0,2}(?:\"{3}[\s\S]*?\"{3}|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')"""
PYTHON = re.compile(rf"#[^\n]*|{STRINGS}|([A-Za-z_]\w*)")
"""Comments and strings, or a name (the group)."""
C = re.compile(rf"/\*[\s\S]*?\*/|//[^\n]*|{STRINGS}|([A-Za-z_]\w*)")
EVENT = re.compile(r"\.(?:debug|info|warning|error|say)\(\s*\"([a-z-]+)\"")
HEADING = re.compile(r"^#+ .*", re.M)
PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
NAMED = re.compile(r"`([\w./-]+/[\w./-]*)`")


def retired(path: str, name: str) -> str | None:
    """What is wrong with a name, in a sentence; None where nothing is."""
    snake = f"_{'_'.join(PART.findall(name)).lower()}_"
    for entry in RETIRED:
        if not path.startswith(entry.rooms) or (name.startswith("test_") and not entry.sentences):
            continue
        for word in entry.words:
            if f"_{word}_" in snake and name not in EXEMPT.get(path, {}):
                return f"{path}: {name}: not {word!r}, say: {entry.say}"
    return None


def names(path: Path) -> Iterator[str]:
    """Names that a file makes or uses: its own, those in its code, events of logs, headings."""
    text = (ROOT / path).read_text()
    yield path.stem
    if path.suffix == ".md":
        yield from HEADING.findall(text)
        return
    yield from {found for found in (PYTHON if path.suffix == ".py" else C).findall(text) if found}
    if path.suffix == ".py":
        yield from EVENT.findall(text)


def test_names_are_the_fields_words() -> None:
    wrong = {
        fault
        for path in files()
        if path.suffix in (".py", ".c", ".h", ".md")
        for name in names(path)
        if (fault := retired(str(path), name))
    }
    wrong |= {fault for one in MUTANTS if (fault := retired("tests/drills/mutations.py", one.name))}
    assert sorted(wrong) == []


def test_an_exemption_names_what_is_there() -> None:
    for path, exempt in EXEMPT.items():
        assert exempt.keys() <= set(names(Path(path))), path


def test_pages_for_newcomers_name_what_is_there() -> None:
    for page in ("house.md", "glossary.md"):
        named = set(NAMED.findall((ROOT / "docs" / page).read_text()))
        assert named, page
        assert sorted(path for path in named if not (ROOT / path).exists()) == [], page


def test_the_newcomers_page_answers_ten_questions() -> None:
    questions = [one for one in HEADING.findall((ROOT / "docs" / "house.md").read_text()) if one.endswith("?")]
    assert len(questions) == 10


def test_the_glossary_is_sorted() -> None:
    page = (ROOT / "docs" / "glossary.md").read_text()
    for table in re.findall(r"\|---.*\n((?:\|.*\n)+)", page):
        terms = [row.split("|")[1].strip().strip("`").lower() for row in table.splitlines()]
        assert terms == sorted(terms)
