"""Reports on the terminal: tables for a person, JSON for a program.

Owns how cells, tones and tables look; knows nothing of the mesh. What is not a terminal gets plain text at full width,
so that nothing is cut off in a pipe or a file. JSON is the report itself, field by field, addresses as text.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import IO

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from proto.net import to_wire

PIPE_WIDTH = 240


class Tone(Enum):
    """How a cell is meant; a colour on a terminal, nothing elsewhere."""

    PLAIN = ""
    GOOD = "green"
    BAD = "bold red"
    WARN = "yellow"
    DIM = "dim"
    STRONG = "bold"


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


def console(file: IO[str] | None = None) -> Console:
    """The terminal, or a wide plain page where there is none (as wide as COLUMNS where that is set)."""
    file = file or sys.stdout
    told = file.isatty() or "COLUMNS" in os.environ
    return Console(file=file, highlight=False, width=None if told else PIPE_WIDTH)


def text(cell: str | Cell) -> Text:
    """A cell as rich has it."""
    return Text(cell) if isinstance(cell, str) else Text(cell.text, style=cell.tone.value)


def tables(page: Console, shown: Sequence[Table]) -> None:
    """Print tables one below the other."""
    for table in shown:
        page.print()
        page.print(f"[bold]{escape(table.title)}[/]" + ("" if table.rows else f"  [dim]{escape(table.empty)}[/]"))
        if table.rows:
            drawn = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
            for column in table.columns:
                drawn.add_column(column, overflow="fold")
            for row in table.rows:
                drawn.add_row(*(text(cell) for cell in row))
            page.print(drawn)
        if table.note:
            page.print(f"[dim]{escape(table.note)}[/]")


def json_text(report: msgspec.Struct, *, indent: int = 2) -> str:
    """A report as JSON; ``indent`` 0 puts it on one line."""
    encoded = msgspec.json.encode(report, enc_hook=_wire)
    return (msgspec.json.format(encoded, indent=indent) if indent else encoded).decode()


def _wire(value: object) -> object:
    return value.hex(":") if isinstance(value, bytes) else to_wire(value)
