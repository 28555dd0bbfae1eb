"""Does a bus that is somebody else's know our users: one sign-in, as the observer, before anything is begun."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from cli.faults import Complaint, Declined
from cli.link import Link
from cli.settings import BusSettings

_SECONDS = 5.0
_STRANGERS = ("does not know the user",)
"""What `cli.link` says of a server that answers and does not let this user in."""


def sign_in(url: str, seed: str) -> str:
    """Empty when the server lets the user `cli` in; else why it could not be asked from here.

    Raises `Declined` when it answers and does not know the user.
    """
    with tempfile.TemporaryDirectory(prefix="airmesh-") as folder:
        path = Path(folder) / "cli.seed"
        path.touch(mode=0o600)
        path.write_text(seed)
        try:
            asyncio.run(_try(BusSettings(url=url, seed_file=path)))
        except TimeoutError:
            return f"the NATS server at {url} does not answer within {_SECONDS:.0f} s"
        except Complaint as complaint:
            if any(word in complaint.wrong for word in _STRANGERS):
                raise Declined(
                    f"the NATS server at {url} does not know airmesh's users",
                    "include what `airmesh keys accounts` prints in its configuration, and reload it",
                ) from complaint
            return complaint.wrong
    return ""


async def _try(settings: BusSettings) -> None:
    async with asyncio.timeout(_SECONDS), Link(settings):
        return
