"""Handing accounts to the servers that run: a node is let in, or put out, without a change of any file of theirs.

Each server stores what it is handed and gives it to the others, those that come back later too (NATS' full resolver).
An account that is signed again replaces the one before, and users whom it revokes are disconnected at once.

The connection is one of the user :data:`chassis.bus.nats_jwt.RESOLVER_USER`, who may do this, and ask who is connected
to an account, alone. Servers use what their operator signed: who has that user's key without the operator's seed lets
nobody in, but can put nodes out.
"""

from __future__ import annotations

import asyncio
import secrets

import msgspec
from nats.aio.msg import Msg

from chassis.bus.connection import Connection
from chassis.faults import Refused, Unavailable
from proto.subjects import INBOX

DEADLINE = 5.0
"""Seconds for one account."""
ANSWERS = 4.0
"""Seconds in which each server has said who is connected to it; one that has not is taken to be down."""


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
    authorized_user: str = ""


class _Clients(msgspec.Struct):
    connections: list[_Client] | None = None


class _Connected(msgspec.Struct):
    data: _Clients = msgspec.field(default_factory=_Clients)


_connected = msgspec.json.Decoder(_Connected)


async def connected(connection: Connection, account: str, servers: int) -> set[str]:
    """Public keys of the users who are connected to an account (its public key), on any of so many servers.

    Raises Unavailable when no server answers.
    """
    answers: list[bytes] = []
    complete = asyncio.Event()

    async def hear(message: Msg) -> None:
        answers.append(message.data)
        if len(answers) >= servers:
            complete.set()

    inbox = f"{INBOX}.{connection.user}.{secrets.token_hex(8)}"
    subscription = await connection.listen(inbox, hear, complete.set)
    try:
        await connection.send(f"$SYS.REQ.ACCOUNT.{account}.CONNZ", b'{"auth":true}', reply=inbox)
        async with asyncio.timeout(ANSWERS):
            await complete.wait()
    except TimeoutError:
        if not answers:
            raise Unavailable(f"no server says within {ANSWERS:.0f} s who is connected") from None
    finally:
        await connection.unlisten(subscription)
    try:
        found = [_connected.decode(answer).data.connections or () for answer in answers]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unavailable(f"a server's answer about who is connected cannot be read: {error}") from error
    return {one.authorized_user for each in found for one in each}
