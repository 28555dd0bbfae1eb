"""What a report looks like before anybody shows it: tables of cells with a meaning, and the report itself as JSON.

Pure, and without a terminal: the command line prints it (``cli.show``), a page could as well. JSON is the report field
by field, addresses as text.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import msgspec

from proto.net import to_wire


class Tone(Enum):
    """How a cell is meant; whoever shows it says how that looks."""

    PLAIN = "plain"
    GOOD = "good"
    BAD = "bad"
    WARN = "warn"
    DIM = "dim"
    STRONG = "strong"


@dataclass(frozen=True, slots=True)
class Cell:
    """Text and how it is meant."""

    text: str
    tone: Tone = Tone.PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of a report. ``note`` stands below it, ``empty`` in place of no rows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | Cell, ...], ...]
    note: str = ""
    empty: str = "none"


def good(text: str) -> Cell:
    """A cell that pleases."""
    return Cell(text, Tone.GOOD)


def bad(text: str) -> Cell:
    """A cell that asks for attention."""
    return Cell(text, Tone.BAD)


def dim(text: str) -> Cell:
    """A cell of lesser weight."""
    return Cell(text, Tone.DIM)


def json_text(report: msgspec.Struct, *, indent: int = 2) -> str:
    """A report as JSON; ``indent`` 0 puts it on one line."""
    encoded = msgspec.json.encode(report, enc_hook=_wire)
    return (msgspec.json.format(encoded, indent=indent) if indent else encoded).decode()


def _wire(value: object) -> object:
    return value.hex(":") if isinstance(value, bytes) else to_wire(value)
