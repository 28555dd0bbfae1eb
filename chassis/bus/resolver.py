"""Handing accounts to the servers that run: a node is let in, or put out, without a change of any file of theirs.

Each server stores what it is handed and gives it to the others, those that come back later too (NATS' full resolver).
An account that is signed again replaces the one before, and users whom it revokes are disconnected at once.

The connection is one of the user :data:`chassis.bus.nats_jwt.RESOLVER_USER`, who may do this, and ask who is connected
to an account, alone. Servers use what their operator signed: who has that user's key without the operator's seed lets
nobody in, but can put nodes out. :func:`distrusting` and :func:`reload` are for a key that is signed for them alone.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Collection, Iterable

import msgspec
from nats.aio.msg import Msg

from chassis.bus.connection import Connection
from chassis.bus.nats_internals import trusted_by
from chassis.faults import Refused, Unavailable
from proto.subjects import INBOX

DEADLINE = 5.0
"""Seconds for one account."""
ANSWERS = 4.0
"""Seconds in which each server has said who is connected to it; one that has not is taken to be down."""

PAGE = 1000
"""Connections of a server in one answer."""


class _Done(msgspec.Struct):
    code: int = 0
    message: str = ""
    description: str = ""


class _Answer(msgspec.Struct):
    data: _Done | None = None
    error: _Done | None = None


_answer = msgspec.json.Decoder(_Answer)


async def hand_over(connection: Connection, account_jwt: str) -> None:
    """Have the servers take an account, new or signed again; returns when one has stored it.

    Raises Unavailable, or Refused with a server's words.
    """
    message = await connection.call("$SYS.REQ.CLAIMS.UPDATE", account_jwt.encode(), timeout=DEADLINE)
    try:
        answer = _answer.decode(message.data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unavailable(f"a server's answer about an account cannot be read: {error}") from error
    if answer.data is None or answer.data.code != 200:
        why = answer.error or _Done()
        raise Refused("account", f"a server does not take an account: {why.description or why.message}")


async def look_up(connection: Connection, account: str) -> str:
    """The JWT that servers have of an account (its public key); empty when they have none. Raises Unavailable."""
    message = await connection.call(f"$SYS.REQ.ACCOUNT.{account}.CLAIMS.LOOKUP", b"", timeout=DEADLINE)
    return bytes(message.data).decode("ascii", "replace")


class _Client(msgspec.Struct):
    account: str = ""
    authorized_user: str = ""
    name: str = ""


class _Clients(msgspec.Struct):
    connections: list[_Client] | None = None
    total: int = 0


class _Server(msgspec.Struct):
    id: str = ""
    name: str = ""


class _Connected(msgspec.Struct):
    data: _Clients = msgspec.field(default_factory=_Clients)
    error: _Done | None = None
    server: _Server = msgspec.field(default_factory=_Server)


_connected = msgspec.json.Decoder(_Connected)


async def connected(connection: Connection, account: str, servers: int) -> set[str]:
    """Public keys of the users who are connected to an account (its public key), on any of so many servers.

    Raises Unavailable when no server answers.
    """
    answers = await _ask(connection, f"$SYS.REQ.ACCOUNT.{account}.CONNZ", b'{"auth":true}', servers)
    return {one.authorized_user for each in answers for one in each.data.connections or ()}


async def distrusting(connection: Connection, authority: str, servers: int, *, besides: Collection[str]) -> list[str]:
    """Connections, by their names on the servers, that do not trust an authority (its fingerprint), of all accounts but
    some (their public keys). Raises Unavailable unless so many servers answer.
    """
    found, seen, more = list[str](), 0, True
    while more:
        asked = json.dumps({"auth": True, "limit": PAGE, "offset": seen}).encode()
        answers = await _ask(connection, "$SYS.REQ.SERVER.PING.CONNZ", asked, servers, all_of_them=True)
        clients = [one for each in answers for one in each.data.connections or ()]
        found += [one.name for one in clients if one.account not in besides and authority not in trusted_by(one.name)]
        seen += PAGE
        more = any(each.data.total > seen for each in answers)
    return found


async def reload(connection: Connection, servers: int) -> None:
    """Have so many servers read their files again, one after another. Raises Unavailable, or Refused with the words of
    one that keeps what it has.
    """
    answers = await _ask(connection, "$SYS.REQ.SERVER.PING", b"", servers, all_of_them=True)
    for name, number in sorted((one.server.name, one.server.id) for one in answers):
        said = await connection.call(f"$SYS.REQ.SERVER.{number}.RELOAD", b"", timeout=DEADLINE)
        (answer,) = _read([said.data])
        if answer.error is not None:
            raise Refused("reload", f"server {name} keeps its configuration: {answer.error.description}")


async def _ask(
    connection: Connection, subject: str, body: bytes, servers: int, *, all_of_them: bool = False
) -> list[_Connected]:
    """What so many servers answer, or those that do in time. Raises Unavailable when it is none, or not all."""
    answers: list[bytes] = []
    complete = asyncio.Event()

    async def hear(message: Msg) -> None:
        answers.append(message.data)
        if len(answers) >= servers:
            complete.set()

    inbox = f"{INBOX}.{connection.user}.{secrets.token_hex(8)}"
    subscription = await connection.listen(inbox, hear, complete.set)
    try:
        await connection.send(subject, body, reply=inbox)
        async with asyncio.timeout(ANSWERS):
            await complete.wait()
    except TimeoutError:
        if not answers or all_of_them:
            missing = f"{servers - len(answers)} of {servers} servers" if answers else "no server"
            raise Unavailable(
                f"{missing} {'do not say' if answers else 'says'} within {ANSWERS:.0f} s who is connected"
            ) from None
    finally:
        await connection.unlisten(subscription)
    return _read(answers)


def _read(answers: Iterable[bytes]) -> list[_Connected]:
    try:
        return [_connected.decode(answer) for answer in answers]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unavailable(f"a server's answer cannot be read: {error}") from error
