"""What a check finds: one sentence each, with the remedy, and how it looks. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

import msgspec

from cli.reports.table import Cell, Table, bad, dim, good


class Weight(Enum):
    """How much a finding matters."""

    WELL = "well"
    NOTE = "note"
    """It works all the same, or soon."""
    WRONG = "wrong"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    what: str
    weight: Weight
    found: str
    remedy: str = ""


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """The report of `airmesh check`."""

    of: str
    """What was looked at: the cluster, or a node by its name."""
    findings: tuple[Finding, ...]
    well: bool


def well(what: str, found: str) -> Finding:
    """As it should be."""
    return Finding(what=what, weight=Weight.WELL, found=found)


def note(what: str, found: str, remedy: str = "") -> Finding:
    """Good to know."""
    return Finding(what=what, weight=Weight.NOTE, found=found, remedy=remedy)


def wrong(what: str, found: str, remedy: str) -> Finding:
    """It does not work like this."""
    return Finding(what=what, weight=Weight.WRONG, found=found, remedy=remedy)


def report(of: str, findings: Iterable[Finding]) -> Findings:
    """All of them, and whether none is wrong."""
    kept = tuple(findings)
    return Findings(of=of, findings=kept, well=all(one.weight is not Weight.WRONG for one in kept))


def tables(shown: Findings) -> tuple[Table, ...]:
    """One table: what is wrong stands out."""
    return (
        Table(
            title=f"check of {shown.of}",
            columns=("what", "", "found", "remedy"),
            rows=tuple((one.what, _mark(one.weight), one.found, one.remedy) for one in shown.findings),
            note="everything is as it should be" if shown.well else "mend what is wrong, then run this again",
        ),
    )


def _mark(weight: Weight) -> Cell:
    return {Weight.WELL: good("ok"), Weight.NOTE: dim("note"), Weight.WRONG: bad("wrong")}[weight]
