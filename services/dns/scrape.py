"""Fetches CoreDNS' metrics pages: all servers at once, each with its own deadline, none waiting for another.

A server that does not answer, or answers nonsense, is missing from the result and named in the log; it never holds up
the report about the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import aiohttp

from chassis.telemetry.log import Log
from proto.net import Address, host_port
from services.dns.core.samples import MAX_PAGE, Counts, Unreadable, parse

DEADLINE = 2.0
TOGETHER = 32


class Scraper:
    """One HTTP session for all servers; ``close`` after use."""

    def __init__(self, port: int, log: Log) -> None:
        self._port = port
        self._log = log
        self._session: aiohttp.ClientSession | None = None
        self._limit = asyncio.Semaphore(TOGETHER)

    async def close(self) -> None:
        """End every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def counts(self, servers: Mapping[str, Address]) -> dict[str, Counts]:
        """Counters by server, of those that answered."""
        if self._session is None:
            # A new connection each time: CoreDNS closes idle ones long before the next report.
            connector = aiohttp.TCPConnector(force_close=True)
            self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=DEADLINE))
        results = await asyncio.gather(*(self._one(address) for address in servers.values()))
        return {key: counts for key, counts in zip(servers, results, strict=True) if counts is not None}

    async def _one(self, address: Address) -> Counts | None:
        assert self._session is not None
        url = f"http://{host_port(address, self._port)}/metrics"
        try:
            async with self._limit, self._session.get(url, allow_redirects=False) as response:
                response.raise_for_status()
                page = await _text(response)
            return parse(page)
        except (aiohttp.ClientError, TimeoutError, OSError, Unreadable) as error:
            self._log.warning("scrape-failed", server=str(address), error=error)
            return None


async def _text(response: aiohttp.ClientResponse) -> str:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > MAX_PAGE:
            raise Unreadable(f"page of more than {MAX_PAGE} bytes")
        parts.append(part)
    return b"".join(parts).decode(errors="replace")
