"""Reports on the terminal, for a person.

Owns how cells, tones and tables (``cli.reports.table``) look; knows nothing of the mesh. What is not a terminal gets
plain text at full width, so that nothing is cut off in a pipe or a file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import IO

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from cli.reports.table import Cell, Table, Tone

PIPE_WIDTH = 240


STYLES = {
    Tone.PLAIN: "",
    Tone.GOOD: "green",
    Tone.BAD: "bold red",
    Tone.WARN: "yellow",
    Tone.DIM: "dim",
    Tone.STRONG: "bold",
}


def console(file: IO[str] | None = None) -> Console:
    """The terminal, or a wide plain page where there is none (as wide as COLUMNS where that is set)."""
    file = file or sys.stdout
    told = file.isatty() or "COLUMNS" in os.environ
    return Console(file=file, highlight=False, width=None if told else PIPE_WIDTH)


def text(cell: str | Cell) -> Text:
    """A cell as rich has it."""
    return Text(cell) if isinstance(cell, str) else Text(cell.text, style=STYLES[cell.tone])


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
