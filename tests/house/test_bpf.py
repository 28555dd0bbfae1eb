"""The eBPF sources' order: hooks over one header a concern, each including what it names and nothing above it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.house.tree import ROOT

FOLDER = ROOT / "services" / "dataplane" / "bpf"
HOOKS = ("pod.c", "uplink.c", "tunnel.c", "sock.c", "gc.c")
WHOLE, GENERATED, BASE = "airmesh.c", "generated.h", "types.h"
INCLUDE = re.compile(r'^#include "([a-z_]+\.[hc])"$', re.MULTILINE)
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
NAME = re.compile(r"\b(?:(?:struct|union) )?(?:am|AM)_\w+")
DEFINED = (
    re.compile(r"^(?:AM_INLINE|static) [^\n;={]*?\b(am_\w+)\)?\(", re.MULTILINE),
    re.compile(r"^#define (AM_\w+)", re.MULTILINE),
    re.compile(r"^((?:struct|union) am_\w+) \{", re.MULTILINE),
    re.compile(r"^BPF_F_TABLE\([^)]*?(am_\w+), \d+, \d+\);", re.MULTILINE),
    re.compile(r"^BPF_RINGBUF_OUTPUT\((am_\w+),", re.MULTILINE),
)
ANY = "any"


def sources() -> dict[str, str]:
    """File → its text without comments."""
    return {path.name: COMMENT.sub(" ", path.read_text()) for path in FOLDER.glob("*.[ch]")}


def included(text: str) -> list[str]:
    return INCLUDE.findall(text)


def defined(text: str) -> set[str]:
    return {name for pattern in DEFINED for name in pattern.findall(text)}


def needed(name: str, texts: dict[str, str]) -> set[str]:
    """Files that define what a file names. What is generated comes by way of the lowest file."""
    named = set(NAME.findall(texts[name])) - defined(texts[name])
    found = {other for other, text in texts.items() if named & defined(text)}
    return {BASE if other == GENERATED and name != BASE else other for other in found} - {name}


def order() -> list[str]:
    """Files from the lowest up, as the table of the README has them."""
    table = (FOLDER / "README.md").read_text().partition("## Files")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([a-z_]+\.[ch])` \|", table, re.MULTILINE)


def opening(path: Path) -> str:
    """A file's first sentence, on one line."""
    comment = re.match(r"/\*(.*?)\*/", path.read_text(), re.DOTALL)
    assert comment, f"{path.name} does not begin with what it is"
    lines = [line.strip(" *") for line in comment.group(1).strip(" *\n").splitlines()]
    return re.split(r"\.(?: |$)", " ".join(lines).partition("  ")[0], maxsplit=1)[0]


def allowed(path: Path) -> str | set[str]:
    """Who may include a header, by its first sentence."""
    heading = re.search(r"; included by (.+)$", opening(path))
    assert heading, f"{path.name}: its first sentence ends with '; included by …'"
    return ANY if heading.group(1) == ANY else set(re.split(r", | and ", heading.group(1)))


def test_the_readme_lists_every_file_once_in_order() -> None:
    assert sorted(order()) == sorted(sources())
    assert order()[:2] == [GENERATED, BASE]
    assert order()[-6:] == [*HOOKS, WHOLE]


def test_a_file_includes_only_what_stands_below_it() -> None:
    position = {name: index for index, name in enumerate(order())}
    texts = sources()
    upward = {name: [one for one in included(text) if position[one] >= position[name]] for name, text in texts.items()}
    assert {name: wrong for name, wrong in upward.items() if wrong} == {}
    assert included(texts[WHOLE]) == list(HOOKS)
    assert [name for name in texts if name != WHOLE and set(included(texts[name])) & {*HOOKS, WHOLE}] == []
    unsorted = {
        name: found
        for name, text in texts.items()
        if (found := included(text)) != sorted(found, key=position.__getitem__)
    }
    assert unsorted == {}, "includes stand in the order of the README"


@pytest.mark.parametrize("name", [name for name in sources() if name not in (WHOLE, BASE, GENERATED)])
def test_a_file_includes_exactly_those_whose_names_it_uses(name: str) -> None:
    texts = sources()
    assert set(included(texts[name])) == needed(name, texts)


@pytest.mark.parametrize("name", [name for name in sources() if name.endswith(".h") and name != GENERATED])
def test_a_header_says_first_who_includes_it(name: str) -> None:
    may = allowed(FOLDER / name)
    does = {other for other, text in sources().items() if name in included(text)}
    assert may in (ANY, does)
    assert len(does) > 0


def test_nothing_is_defined_twice_or_for_nobody() -> None:
    texts = sources()
    everything = [name for text in texts.values() for name in defined(text)]
    assert len(everything) == len(set(everything))
    uses = "\n".join(texts.values())
    own = {name for other, text in texts.items() if other != GENERATED for name in defined(text)}
    alone = {name for name in own if not name.endswith("_H") and len(re.findall(rf"\b{name}\b", uses)) < 2}
    assert alone == set()
