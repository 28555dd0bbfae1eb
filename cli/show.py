"""Reports on the terminal, for a person.

Owns how cells, tones and tables (``cli.reports.table``) look; knows nothing of the mesh. What is not a terminal gets
plain text at full width, so that nothing is cut off in a pipe or a file. Whatever a cell says is text: it cannot move
the cursor, colour or end a line (``cli.reports.text.printable``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import IO

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from cli.reports.table import Cell, Table, Tone
from cli.reports.text import printable
from proto.findings import Finding, Fix

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
    known = file.isatty() or "COLUMNS" in os.environ
    return Console(file=file, highlight=False, width=None if known else PIPE_WIDTH)


def text(cell: str | Cell) -> Text:
    """A cell as rich has it."""
    if isinstance(cell, str):
        return Text(printable(cell))
    return Text(printable(cell.text), style=STYLES[cell.tone])


def tables(page: Console, shown: Sequence[Table]) -> None:
    """Print tables one below the other."""
    for table in shown:
        page.print()
        title, empty = escape(printable(table.title)), escape(printable(table.empty))
        page.print(f"[bold]{title}[/]" + ("" if table.rows else f"  [dim]{empty}[/]"))
        if table.rows:
            drawn = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
            for column in table.columns:
                drawn.add_column(column, overflow="fold")
            for row in table.rows:
                drawn.add_row(*(text(cell) for cell in row))
            page.print(drawn)
        if table.note:
            page.print(f"[dim]{escape(printable(table.note))}[/]")


def agreed(finding: Finding, fix: Fix) -> bool:
    """Whether the person at the terminal agrees to a command that would mend a finding."""
    command, risk = printable(fix.command), printable(fix.risk)
    return click.confirm(f"on {finding.node}: {command}\n  risk: {risk}\n  run it?", err=True)
