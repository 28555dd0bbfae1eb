"""Keeps the table of ``core.egress.masquerade`` in the kernel: written only when it differs, repaired when touched.

Owns the table ``inet airmesh`` of this network namespace and speaks to it by ``nft -f -`` (one transaction). Promises:
an unchanged table is not written again; what somebody did to it by hand is undone at the next :meth:`Masquerade.keep`.
How a difference is seen: the kernel's own listing after our write is remembered and compared.
"""

from __future__ import annotations

import asyncio
import subprocess

from services.dataplane.core.egress.masquerade import TABLE

DEADLINE = 10.0


class NftRefused(OSError):
    """nft(8) failed; the message is its own."""


class Masquerade:
    """The table as it was last written by us."""

    def __init__(self) -> None:
        self._wanted = ""
        self._listing = ""

    async def keep(self, ruleset: str, *, verify: bool) -> bool:
        """Makes the table what ``ruleset`` says; True when it had to be written. Raises NftRefused.

        With ``verify`` the kernel is asked whether the table is still as it was written.
        """
        if ruleset == self._wanted and (not verify or (self._listing and await _list() == self._listing)):
            return False
        await _nft("-f", "-", given=ruleset)
        self._wanted = ruleset
        self._listing = await _list()
        return True


def delete_table() -> None:
    """Takes the table away; that it is gone already is no error. Blocking; raises NftRefused."""
    _run(("-f", "-"), f"add table inet {TABLE}\ndelete table inet {TABLE}\n")


def listed_table() -> str:
    """The table as nft(8) lists it, empty when there is none. Blocking."""
    try:
        return _run(("-s", "list", "table", "inet", TABLE), "")
    except NftRefused:
        return ""


async def _list() -> str:
    try:
        return await _nft("-s", "list", "table", "inet", TABLE)
    except NftRefused:
        return ""  # no such table


async def _nft(*arguments: str, given: str = "") -> str:
    """Runs nft in a thread: a child that never reads its stdin upsets the event loop's own subprocess transports."""
    return await asyncio.to_thread(_run, arguments, given)


def _run(arguments: tuple[str, ...], given: str) -> str:
    try:
        done = subprocess.run(
            ["nft", *arguments], input=given, capture_output=True, text=True, timeout=DEADLINE, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise NftRefused(f"nft {' '.join(arguments)}: no answer within {DEADLINE:.0f} s") from error
    if done.returncode:
        raise NftRefused(f"nft {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
