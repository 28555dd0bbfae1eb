"""Handing accounts to the servers that run: a node is let in, or put out, without a change of any file of theirs.

Each server stores what it is handed and gives it to the others, those that come back later too (NATS' full resolver).
An account that is signed again replaces the one before, and users whom it revokes are disconnected at once.

The connection is one of the user :data:`chassis.bus.nats_jwt.RESOLVER_USER`, who may do this alone. Servers use what
their operator signed: who has that user's key without the operator's seed lets nobody in, but can put nodes out.
"""

from __future__ import annotations

import msgspec

from chassis.bus.connection import Connection
from chassis.faults import Refused, Unavailable

DEADLINE = 5.0
"""Seconds for one account."""


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
