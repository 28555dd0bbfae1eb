"""What commands have in common: options, a question to the bus within the deadline, and a report that is shown."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import click
import msgspec

from cli import faults, show
from cli.link import Link
from cli.reports.table import Table, json_text
from cli.settings import load

R = TypeVar("R")

output_option = click.option(
    "--output",
    "-o",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Tables for people, JSON for programs.",
)

span_option = click.option(
    "--for",
    "seconds",
    type=click.FloatRange(0.1, 86_400),
    default=1.0,
    show_default=True,
    help="Seconds to listen without --follow.",
)


def ask(asked: Callable[[Link], Coroutine[Any, Any, R]], seconds: float = 0.0) -> R:
    """Open the bus, gather, close; all within the deadline, or ``seconds`` where that is longer. Raises Unreachable."""
    settings = load(os.environ)
    settings = replace(settings, deadline=max(seconds, settings.deadline))

    async def within() -> R:
        async with asyncio.timeout(settings.deadline), Link(settings) as link:
            return await asked(link)

    try:
        return asyncio.run(within())
    except TimeoutError as error:
        raise faults.Unreachable(
            f"no whole answer within {settings.deadline:.0f} s", "see that the mesh is up: airmesh lab status"
        ) from error


def show_report(report: msgspec.Struct, tables: tuple[Table, ...], output: str) -> None:
    """Print the report as one JSON object, or its tables."""
    if output == "json":
        click.echo(json_text(report))
    else:
        show.tables(show.console(), tables)
