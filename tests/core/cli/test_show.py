"""What others tell is text on a person's terminal: it never moves the cursor, colours, or adds a line of its own."""

from __future__ import annotations

import io
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli import show
from cli.faults import Complaint, Declined, Exit, Unreachable, Usage
from cli.reports.table import Cell, Table, Tone, bad, dim, good
from cli.reports.text import printable

ESCAPES = [
    ("\x1b[2J", r"\x1b[2J"),
    ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
    ("\u009b31m", r"\x9b31m"),
    ("a\rb", r"a\rb"),
    ("a\nb", r"a\nb"),
    ("a\u2028b", r"a\u2028b"),
    ("a\x85b", r"a\x85b"),
    ("\x00", r"\x00"),
    ("\x7f", r"\x7f"),
    ("\x08\x08ok", r"\x08\x08ok"),
    ("\u202eevil", r"\u202eevil"),
    ("\u2066x\u2069", r"\u2066x\u2069"),
    ("\ud800", r"\ud800"),
]
HARMLESS = ["", "plain", "ü", "日本", "e\u0301", "a\tb", "👩\u200d👧", "[red]x[/]", "\\x1b", "–"]


@pytest.mark.parametrize(("answer", "shown"), ESCAPES)
def test_what_a_terminal_would_obey_is_spelled(answer: str, shown: str) -> None:
    assert printable(answer) == shown


@pytest.mark.parametrize("answer", HARMLESS)
def test_what_is_only_text_stays(answer: str) -> None:
    assert printable(answer) == answer


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(), max_size=60))
def test_nothing_that_a_terminal_obeys_is_left(answer: str) -> None:
    shown = printable(answer)
    assert all(unicodedata.category(one) not in ("Cc", "Cs", "Zl", "Zp") for one in shown.replace("\t", ""))
    shown.encode()
    assert printable(shown) == shown, "what has been made safe is left alone"


def page(*tables: Table) -> str:
    out = io.StringIO()
    show.tables(show.console(out), tables)
    return out.getvalue()


@pytest.mark.parametrize(("answer", "shown"), ESCAPES)
@pytest.mark.parametrize("where", ["cell", "toned", "title", "note", "empty"])
def test_wherever_a_table_has_it(answer: str, shown: str, where: str) -> None:
    table = {
        "cell": Table(title="t", columns=("c",), rows=((answer,),)),
        "toned": Table(title="t", columns=("c",), rows=((bad(answer),),)),
        "title": Table(title=answer, columns=("c",), rows=(("x",),)),
        "note": Table(title="t", columns=("c",), rows=(("x",),), note=answer),
        "empty": Table(title="t", columns=("c",), rows=(), empty=answer),
    }[where]
    lines = page(table).splitlines()
    assert any(shown in line for line in lines), lines
    innocent = Table(
        title="t", columns=("c",), rows=() if where == "empty" else (("x",),), note="n" if where == "note" else ""
    )
    assert len(lines) == len(page(innocent).splitlines()), "it is as many lines as any other text makes"


def test_a_row_has_one_line_however_long_its_names_are() -> None:
    """What is no terminal gets it whole: a name of the API has at most 253 characters."""
    name = "x" * 100
    rows = tuple((name, good(str(number)), dim("z" * 60)) for number in range(3000))
    lines = page(Table(title="Pods", columns=("pod", "number", "more"), rows=rows)).splitlines()
    assert len(lines) == 3 + len(rows)
    assert all(name in line and "z" * 60 in line for line in lines[3:])


def test_a_name_of_the_longest_kind_is_whole_even_where_it_is_folded() -> None:
    name = "".join(chr(ord("a") + number % 26) for number in range(253))
    shown = page(Table(title="t", columns=("a", "b"), rows=((name, name),)))
    (left,) = {"".join(line[:60].split()) for line in [shown.splitlines()[3]]}
    assert name.startswith(left)
    folded = [line.split() for line in shown.splitlines()[3:]]
    assert "".join(words[0] for words in folded) == name
    assert "".join(words[-1] for words in folded) == name


@pytest.mark.parametrize("tone", list(Tone))
def test_every_tone_has_a_look_and_none_without_a_terminal(tone: Tone) -> None:
    assert tone in show.STYLES
    assert "\x1b" not in page(Table(title="t", columns=("c",), rows=((Cell("x", tone),),)))


@pytest.mark.parametrize("kind", [Complaint, Usage, Unreachable, Declined])
def test_a_complaint_is_two_lines_whatever_it_repeats(kind: type[Complaint]) -> None:
    complaint = kind("policy says: no\n\x1b[2Jwell", "ask\r again")
    assert str(complaint).splitlines() == [r"policy says: no\n\x1b[2Jwell", r"  remedy: ask\r again"]
    assert complaint.code in set(Exit) - {Exit.WELL, Exit.NOT_WELL}
