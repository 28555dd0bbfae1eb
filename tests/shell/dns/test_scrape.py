"""Metrics pages of many servers at once: each with its own deadline, and one that misbehaves is missing alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any, cast

import pytest
from aiohttp import web

from chassis.telemetry.log import Log
from services.dns import scrape
from services.dns.core.samples import MAX_PAGE
from services.dns.scrape import TOGETHER, Scraper
from tests.natsd import Lines, free_port

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
GOOD = b"coredns_dns_requests_total 7\n"


async def good(_request: web.Request) -> web.StreamResponse:
    return web.Response(body=GOOD)


async def silent(_request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.Response()


async def slow_drip(request: web.Request) -> web.StreamResponse:
    """One byte at a time, for ever: only a deadline on the whole ends it."""
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(1000):
        await response.write(b"#")
        await asyncio.sleep(0.02)
    return response


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(1000):
        await response.write(b"# " + b"x" * 65_534)
    return response


async def elsewhere(_request: web.Request) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": "/other"})


async def absent(_request: web.Request) -> web.StreamResponse:
    return web.Response(status=404)


async def broken(_request: web.Request) -> web.StreamResponse:
    return web.Response(status=500, body=GOOD)


async def nonsense(_request: web.Request) -> web.StreamResponse:
    return web.Response(body=b"coredns_dns_requests_total <html>\n")


async def no_text(_request: web.Request) -> web.StreamResponse:
    return web.Response(body=b"\xff\xfe" + GOOD)


async def hangs_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


@asynccontextmanager
async def servers(port: int, **answers: Answer) -> AsyncIterator[None]:
    """A page on each address, as 127.0.0.2 or [::1] are spelled for a keyword: ``a127_0_0_2``."""
    runners = []
    for spelled, answer in answers.items():
        app = web.Application()
        app.router.add_get("/metrics", answer)
        app.router.add_get("/other", good)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
        await runner.setup()
        address = "::1" if spelled == "ipv6" else spelled.removeprefix("a").replace("_", ".")
        await web.TCPSite(runner, address, port).start()
        runners.append(runner)
    try:
        yield
    finally:
        await asyncio.gather(*(runner.cleanup() for runner in runners))


@asynccontextmanager
async def scraper(port: int) -> AsyncIterator[tuple[Scraper, Lines]]:
    lines = Lines()
    made = Scraper(port, Log("dns", stream=cast("Any", lines)))
    try:
        yield made, lines
    finally:
        await made.close()


async def test_both_families_are_asked() -> None:
    port = free_port()
    async with servers(port, a127_0_0_2=good, ipv6=good), scraper(port) as (made, lines):
        found = await made.counts({"one": ip_address("127.0.0.2"), "two": ip_address("::1")})
        assert {key: counts.queries for key, counts in found.items()} == {"one": 7, "two": 7}
        assert lines.text == ""


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (silent, "Timeout"),
        (slow_drip, "Timeout"),
        (endless, f"page of more than {MAX_PAGE} bytes"),
        (elsewhere, "is no sample|Counts|302|"),
        (absent, "404"),
        (broken, "500"),
        (nonsense, "is no sample"),
        (hangs_up, "Disconnected"),
    ],
)
async def test_one_that_misbehaves_is_missing_and_named_and_holds_up_nobody(
    answer: Answer, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrape, "DEADLINE", 0.4)
    port = free_port()
    async with servers(port, a127_0_0_2=good, a127_0_0_3=answer), scraper(port) as (made, lines):
        began = time.monotonic()
        found = await made.counts({"good": ip_address("127.0.0.2"), "bad": ip_address("127.0.0.3")})
        assert time.monotonic() - began < 15
        assert found["good"].queries == 7
        if answer is elsewhere:  # where it points is not asked, and its own page counts nothing
            assert found.get("bad") is None or found["bad"].queries == 0
            return
        assert "bad" not in found
        (line,) = lines.named("scrape-failed")
        assert line["server"] == "127.0.0.3"
        assert why in line["error"]


async def test_bytes_that_are_no_text_are_passed_over() -> None:
    port = free_port()
    async with servers(port, a127_0_0_2=no_text), scraper(port) as (made, _):
        found = await made.counts({"one": ip_address("127.0.0.2")})
        assert found["one"].queries in (0, 7)


async def test_where_nobody_listens_is_missing() -> None:
    async with scraper(free_port()) as (made, lines):
        assert await made.counts({"one": ip_address("127.0.0.2"), "two": ip_address("::1")}) == {}
        assert {line["server"] for line in lines.named("scrape-failed")} == {"127.0.0.2", "::1"}


async def test_no_server_is_no_work() -> None:
    async with scraper(free_port()) as (made, lines):
        assert await made.counts({}) == {}
        assert lines.text == ""


async def test_not_more_than_so_many_are_asked_at_once() -> None:
    port, now, most = free_port(), 0, 0

    async def counted(_request: web.Request) -> web.StreamResponse:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return web.Response(body=GOOD)

    async with servers(port, a127_0_0_2=counted), scraper(port) as (made, _):
        found = await made.counts({str(number): ip_address("127.0.0.2") for number in range(3 * TOGETHER)})
        assert len(found) == 3 * TOGETHER
        assert 1 < most <= TOGETHER


async def test_a_closed_one_begins_again() -> None:
    port = free_port()
    async with servers(port, a127_0_0_2=good), scraper(port) as (made, _):
        for _ in range(2):
            assert len(await made.counts({"one": ip_address("127.0.0.2")})) == 1
            await made.close()
