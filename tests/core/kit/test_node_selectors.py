"""Calico's selectors of nodes: what each form selects, what is refused, and a second reading by another way."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.node_selectors import MAX_DEPTH, MAX_SELECTOR, parse_selector

# selector | labels that it selects | labels that it does not (pairs joined by blanks, `-` for none at all)
TABLE = """
all()                                | - a=1                 |
                                     | - a=1                 |
zone == 'east'                       | zone=east             | zone=west -
zone == "east"                       | zone=east             | zone=west
zone != 'east'                       | zone=west -           | zone=east
has(gpu)                             | gpu=                  | -
!has(gpu)                            | -                     | gpu=
! ! has( gpu )                       | gpu=                  | -
example.org/z in {'a', 'b'}          | example.org/z=b       | example.org/z=c -
zone in {'a',}                       | zone=a                | zone=b
zone in{}                            |                       | zone=a -
zone not in {'a'}                    | zone=c -              | zone=a
zone  not   in {"a"}                 | zone=c                | zone=a
name contains 'ck'                   | name=rack name=ck     | name=k -
name starts with 'ra'                | name=rack             | name=track -
name ends with 'ck'                  | name=rack             | name=racks -
!(name ends with 'ck')               | name=racks -          | name=rack
a == '1' || a == '2'                 | a=1 a=2               | a=3 -
a == '1' && has(b) || a == '2'       | a=1,b= a=2            | a=1 b=
(a == '1' || a == '2') && has(b)     | a=2,b=                | a=2 b=
!a == '1'                            | a=2 -                 | a=1
all == 'x'                           | all=x                 | -
in in {'in'}                         | in=in                 | in=out
"""


def labels_of(text: str) -> dict[str, str]:
    return {} if text == "-" else dict(pair.split("=") for pair in text.split(","))


@pytest.mark.parametrize("row", [row for row in TABLE.splitlines() if row.strip()])
def test_what_a_selector_selects(row: str) -> None:
    text, *sides = (cell.strip() for cell in row.replace(" || ", "\0").split("|"))
    matches = parse_selector(text.replace("\0", " || "))
    assert not isinstance(matches, str), matches
    found = [{case: matches(labels_of(case)) for case in side.split()} for side in sides]
    assert found == [dict.fromkeys(sides[0].split(), True), dict.fromkeys(sides[1].split(), False)]


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("global()", "()"),
        ("zone = 'a'", "= 'a'"),
        ("zone == a", "a"),
        ("zone == 'a", "'a"),
        ("zone in (a)", "(a)"),
        ("zone in {'a' 'b'}", "'b'}"),
        ("zone like 'a'", "like 'a'"),
        ("zone starts 'a'", "starts 'a'"),
        ("has()", ")"),
        ("has(a", ""),
        ("(all()", ""),
        ("all())", ")"),
        ("all() all()", "all()"),
        ("all() &&", ""),
        ("all() & all()", "& all()"),
        ("rack|| has(a)", "|| has(a)"),
        ("zoné == 'a'", "é == 'a'"),
    ],
)
def test_what_is_not_understood_is_shown(text: str, position: str) -> None:
    wrong = parse_selector(text)
    assert isinstance(wrong, str)
    assert f"is not understood at {position!r}; use all()" in wrong


def test_what_is_too_long_or_too_deep_is_refused() -> None:
    assert "4097 characters" in str(parse_selector("a" * (MAX_SELECTOR + 1)))
    for text in ("(" * 2000 + "all()" + ")" * 2000, "!" * 4000 + "all()"):
        assert "not understood" in str(parse_selector(text))
    deep = parse_selector("(" * MAX_DEPTH + "has(a)" + ")" * MAX_DEPTH + " && " + "!" * MAX_DEPTH + "has(a)")
    assert not isinstance(deep, str)
    assert deep({"a": ""}) is True


Meaning = tuple[str, str]
"""The text of a selector, and the same in Python, over ``labels``."""
KEYS, VALUES = st.sampled_from("ab"), st.sampled_from(("", "x", "xy"))
LEAVES = st.one_of(
    st.builds(lambda key, value: (f"{key} == '{value}'", f"(labels.get({key!r}) == {value!r})"), KEYS, VALUES),
    st.builds(lambda key, value: (f"{key} != '{value}'", f"(labels.get({key!r}) != {value!r})"), KEYS, VALUES),
    st.builds(lambda key: (f"has({key})", f"({key!r} in labels)"), KEYS),
    st.builds(
        lambda key, value: (f"{key} not in {{'{value}'}}", f"(labels.get({key!r}) not in ({value!r},))"), KEYS, VALUES
    ),
    st.builds(
        lambda key, value: (f"{key} contains '{value}'", f"({key!r} in labels and {value!r} in labels[{key!r}])"),
        KEYS,
        VALUES,
    ),
)


def _joined(inner: st.SearchStrategy[Meaning]) -> st.SearchStrategy[Meaning]:
    return st.one_of(
        st.builds(lambda a, b: (f"{a[0]} && {b[0]}", f"{a[1]} and {b[1]}"), inner, inner),
        st.builds(lambda a, b: (f"{a[0]} || {b[0]}", f"{a[1]} or {b[1]}"), inner, inner),
        st.builds(lambda a: (f"!({a[0]})", f"(not ({a[1]}))"), inner),
    )


@given(st.recursive(LEAVES, _joined, max_leaves=8), st.dictionaries(KEYS, VALUES))
def test_it_reads_as_python_reads_the_same_formula(meaning: Meaning, labels: Mapping[str, str]) -> None:
    text, formula = meaning
    matches = parse_selector(text)
    assert not isinstance(matches, str), matches
    assert matches(labels) is bool(eval(formula, {"labels": labels}))


@given(st.text(max_size=60))
def test_no_text_breaks_the_selector_reader(text: str) -> None:
    matches = parse_selector(text)
    assert isinstance(matches, str) or matches({}) in (True, False)
