"""``python -m services.cluster.accounts FOLDER``: waits until agents use their new keys, hands accounts to the bus, and
sees to its servers' new certificates.

``FOLDER`` is a Secret as the kubelet mounts it: ``resolver.creds`` (who we are on the bus), ``accounts.json.gz`` (JWTs
that an operator signed) and ``expected.json`` (by name of a user: the account, the public key that alone may be
connected to it, and whether somebody has to be); perhaps ``servers.json`` (which certificate servers are to show, whom
everybody is to trust). AIRMESH_NATS_URL and AIRMESH_NATS_CA_FILE say where the bus is.

A Job runs it, where nodes can reach the bus, with a key that lets nobody in. It tries until it is done; what it waits
for is a line, whose last one the installer shows. Servers are given only what says another thing than what they have.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from chassis.bus import tls
from chassis.bus.connection import Connection
from chassis.bus.credentials import Credentials
from chassis.bus.nats_jwt import RESOLVER_USER, claims_of, says_the_same
from chassis.bus.resolver import connected, distrusting, hand_over, look_up, reload
from chassis.faults import Refused, Unavailable
from chassis.telemetry.log import Log

PAUSE = 1.0
"""Seconds between two looks."""
MAX_UNPACKED = 64 << 20


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be seen of a user."""

    account: str
    """Public key of its account."""
    public: str
    """The one key by which anybody may be connected to it."""
    runs: bool = True
    """Somebody has to be."""


class Servers(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be seen of the servers, and of whoever is connected to them: fingerprints, empty for anything."""

    shown: str = ""
    """Of the certificate that each of them shows; one that does not reads its files again."""
    trusted: str = ""
    """Of an authority that every connection trusts."""
    besides: tuple[str, ...] = ()
    """Public keys of accounts of which that is not asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be done."""

    accounts: tuple[str, ...]
    expected: dict[str, Expected]
    servers: Servers


def read(folder: Path) -> Work:
    """Raises OSError or ValueError."""
    with gzip.open(folder / "accounts.json.gz") as packed:
        accounts = msgspec.json.decode(packed.read(MAX_UNPACKED), type=tuple[str, ...])
    expected = msgspec.json.decode((folder / "expected.json").read_bytes(), type=dict[str, Expected])
    said = folder / "servers.json"
    servers = msgspec.json.decode(said.read_bytes(), type=Servers) if said.exists() else Servers()
    return Work(accounts=accounts, expected=expected, servers=servers)


def missing(expected: Expected, keys: set[str]) -> str:
    """Why a user has not taken its key, by the keys that are connected to its account; empty when it has."""
    if keys - {expected.public}:
        return "an agent is connected by another key than the new one"
    if expected.runs and not keys:
        return "no agent is connected"
    return ""


def say(line: str) -> None:
    """A line for whoever waits."""
    print(line, flush=True)  # noqa: T201 - a command


async def insist(connection: Connection, work: Work, servers: Sequence[str]) -> None:
    """Do it all, as often as it takes. Raises Refused when a server does not take an account."""
    said = ""
    while True:
        try:
            why = await _attempt(connection, work, servers)
        except Unavailable as fault:
            why = str(fault) if connection.connected else connection.problem
        if not why:
            return
        if why != said:
            said = why
            say(why)
        await asyncio.sleep(PAUSE)


async def _attempt(connection: Connection, work: Work, servers: Sequence[str]) -> str:
    if work.servers.shown and (why := await _other_certificates(work.servers.shown, servers)):
        await reload(connection, len(servers))
        if why := await _other_certificates(work.servers.shown, servers):
            return why
    if work.servers.trusted:
        who = await distrusting(connection, work.servers.trusted, len(servers), besides=work.servers.besides)
        if who:
            others = f" and {len(who) - 1} others" if who[1:] else ""
            return f"{who[0]}{others}: the new authority is not known yet"
    for user, expected in work.expected.items():
        why = missing(expected, await connected(connection, expected.account, len(servers)))
        if why:
            return f"{user}: {why}"
    given = 0
    for jwt in work.accounts:
        if not says_the_same(jwt, await look_up(connection, str(claims_of(jwt)["sub"]))):
            await hand_over(connection, jwt)
            given += 1
    say(f"{given} of {len(work.accounts)} accounts handed over, {len(work.expected)} users have their new keys")
    return ""


async def _other_certificates(wanted: str, servers: Sequence[str]) -> str:
    """Why servers do not show a certificate (its fingerprint); empty when all do."""
    for url in servers:
        at = urlsplit(url)
        try:
            if await tls.shown(at.hostname or "", at.port or 4222) != wanted:
                return f"the server at {at.netloc} shows another certificate than the new one"
        except (OSError, TimeoutError) as error:
            return f"the server at {at.netloc} shows no certificate: {str(error) or 'no answer'}"
    return ""


async def run(folder: Path, url: str, authority: Path | None) -> None:
    """Connect, and do what the folder says. Raises OSError, ValueError or Refused."""
    work = read(folder)
    log = Log("accounts", "warning", stream=sys.stderr)
    connection = Connection(url, RESOLVER_USER, Credentials(folder / "resolver.creds", authority), "accounts", log)
    staying = asyncio.create_task(connection.run())
    try:
        await insist(connection, work, url.split(","))
    finally:
        await connection.close()
        staying.cancel()
        with suppress(asyncio.CancelledError):
            await staying


def main(arguments: list[str]) -> int:
    """The exit code."""
    try:
        (folder,) = map(Path, arguments)
        authority = os.environ.get("AIRMESH_NATS_CA_FILE", "")
        asyncio.run(run(folder, os.environ["AIRMESH_NATS_URL"], Path(authority) if authority else None))
    except (OSError, EOFError, ValueError, KeyError, Refused) as error:
        say(f"cluster.accounts: {error}: give the mounted Secret, and AIRMESH_NATS_URL")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
