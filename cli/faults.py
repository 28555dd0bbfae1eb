"""What can go wrong for a person at the terminal: one clear sentence each, with the remedy, and an exit code.

Codes are part of the published contract: 0 done and well · 1 done, and the answer is no (something is not well, the
connection is denied, a node lags) · 2 wrong usage (as click has it) · 3 the bus does not answer · 4 nobody serves the
question, or it was refused · 70 a fault of this program.
"""

from __future__ import annotations

from enum import IntEnum

from cli.reports.text import printable


class Exit(IntEnum):
    """Exit codes of `airmesh`."""

    WELL = 0
    NOT_WELL = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    BUG = 70


class Complaint(Exception):
    """Something a person should read: what is wrong and what to do about it."""

    code = Exit.BUG

    def __init__(self, wrong: str, remedy: str) -> None:
        super().__init__(f"{printable(wrong)}\n  remedy: {printable(remedy)}")
        self.wrong = wrong
        self.remedy = remedy


class Usage(Complaint):
    """An argument or setting that does not say what it should."""

    code = Exit.USAGE


class Unreachable(Complaint):
    """The bus cannot be spoken to."""

    code = Exit.UNREACHABLE


class Declined(Complaint):
    """The bus is there, but the question has no answer: nobody serves it, or it was refused."""

    code = Exit.REFUSED
