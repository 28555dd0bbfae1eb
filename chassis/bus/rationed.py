"""Requests of strangers, so many at a time that the server keeps the number: the others never reach this process.

A subscription ends at the server after :func:`serve_some`'s ``most`` messages; there is none until the next turn, so
whoever asks meanwhile is told at once that nobody answers, and asks again. A flood of requests is so dropped before it
costs who answers anything. Requests are answered and refused as those of ``chassis.bus.micro`` are.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
import nats.errors
from nats.aio.msg import Msg

from chassis.bus.accounts import SERVICE_REPLY
from chassis.bus.connection import Connection
from chassis.bus.micro import reply_of, steered, unknown_version
from chassis.faults import Unavailable
from chassis.telemetry.log import Log
from proto import codec

Q = TypeVar("Q", bound=msgspec.Struct)
LOOK_EVERY = 0.5
"""Seconds between two looks whether the turn goes on."""
DEADLINE = 20.0
"""Seconds that an answer may take."""


async def serve_some(
    connection: Connection,
    subject: str,
    kind: type[Q],
    answer: Callable[[Q], Awaitable[msgspec.Struct]],
    *,
    most: int,
    goes_on: Callable[[], bool],
    log: Log,
) -> int:
    """Answer requests on ``subject`` until there were ``most`` of them, or ``goes_on`` is no more; how many there were.

    One copy of a service may do so at a time. Returns when all are answered. Raises Unavailable.
    """
    answering: list[asyncio.Task[None]] = []
    full = asyncio.Event()

    async def hear(message: Msg) -> None:
        answering.append(asyncio.create_task(_answer(message, kind, answer, subject, log)))
        if len(answering) >= most:
            full.set()

    try:
        subscription = await connection.client().subscribe(subject, cb=hear)
        await subscription.unsubscribe(limit=most)
    except (nats.errors.Error, OSError) as error:
        raise Unavailable(f"{subject}: {error!r}") from error
    try:
        while goes_on() and not full.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY):
                    await full.wait()
    finally:
        with contextlib.suppress(nats.errors.Error, OSError):
            await subscription.unsubscribe()
        await asyncio.gather(*answering)
    return len(answering)


async def _answer(
    message: Msg, kind: type[Q], answer: Callable[[Q], Awaitable[msgspec.Struct]], heard: str, log: Log
) -> None:
    if why := steered(message, (f"{SERVICE_REPLY}.",), heard):
        log.warning("request-steered", subject=message.subject, why=why)
        return

    async def answered() -> msgspec.Struct:
        return await answer(codec.decode(kind, message.data))

    reply = unknown_version(message.headers or {})
    if reply is None:
        reply = await reply_of(answered, message.subject, log, deadline=DEADLINE)
    with contextlib.suppress(nats.errors.Error, OSError):
        await message.respond(codec.encode(reply))
