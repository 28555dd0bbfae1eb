"""Asks CoreDNS servers a question as a pod does, over UDP: all at once, each with its own deadline, once more each.

Whoever does not answer, or not to the question, is told apart and holds up nobody. Bounded: one socket a server while
it is asked, and so many together.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import cast

from proto.net import Address
from services.dns.core.question import is_answered, question

DEADLINE = 1.0
TRIES = 2
TOGETHER = 32


class _Answer(asyncio.DatagramProtocol):
    def __init__(self, asked: bytes) -> None:
        self._asked = asked
        self.answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.DatagramTransport", transport).sendto(self._asked)

    def datagram_received(self, message: bytes, _address: object) -> None:
        self._end(is_answered(self._asked, message))

    def error_received(self, _error: Exception) -> None:
        self._end(False)

    def _end(self, answered: bool) -> None:
        if not self.answered.done():
            self.answered.set_result(answered)


class Asker:
    """``ask`` returns by server whether it answered. ``port``: where the servers listen."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._limit = asyncio.Semaphore(TOGETHER)

    async def ask(self, servers: Mapping[str, Address], name: str) -> dict[str, bool]:
        """Whether each server says NOERROR of a name; never raises for the network."""
        answers = await asyncio.gather(*(self._one(address, name) for address in servers.values()))
        return dict(zip(servers, answers, strict=True))

    async def _one(self, address: Address, name: str) -> bool:
        async with self._limit:
            for _ in range(TRIES):
                try:
                    async with asyncio.timeout(DEADLINE):
                        if await self._try(address, name):
                            return True
                except (TimeoutError, OSError):
                    continue
            return False

    async def _try(self, address: Address, name: str) -> bool:
        asked = question(name, secrets.randbelow(1 << 16))
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_datagram_endpoint(
            lambda: _Answer(asked), remote_addr=(str(address), self._port)
        )
        try:
            return await protocol.answered
        finally:
            transport.close()
