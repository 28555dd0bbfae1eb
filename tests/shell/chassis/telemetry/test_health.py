"""The health pages as a probe and a scraper read them, on loopback alone."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from chassis.telemetry.health import Health


@asynccontextmanager
async def served() -> AsyncIterator[Health]:
    health = Health()
    await health.serve(0)
    try:
        yield health
    finally:
        await health.stop()


async def page(health: Health, path: str, method: str = "GET") -> tuple[int, str, str]:
    """Status, content type and body."""
    url = f"http://127.0.0.1:{health.port}{path}"
    async with aiohttp.ClientSession() as session, session.request(method, url) as answer:
        return answer.status, answer.content_type, await answer.text()


async def ready(health: Health) -> tuple[int, dict[str, object]]:
    status, kind, body = await page(health, "/readyz")
    assert kind == "application/json"
    reported: dict[str, object] = json.loads(body)
    return status, reported


async def test_a_service_without_conditions_is_ready() -> None:
    async with served() as health:
        assert await ready(health) == (200, {"ready": True, "missing": {}, "notes": {}})
        assert await page(health, "/livez") == (200, "text/plain", "ok\n")


async def test_each_condition_that_does_not_hold_is_named_with_its_reason() -> None:
    async with served() as health:
        bus, objects = health.require("bus"), health.require("objects")
        assert (await ready(health))[1]["missing"] == {"bus": "not yet known", "objects": "not yet known"}
        bus.set(True)
        objects.set(False, "listing: 3 of 7 kinds")
        assert await ready(health) == (
            503,
            {"ready": False, "missing": {"objects": "listing: 3 of 7 kinds"}, "notes": {}},
        )
        objects.set(True, "a reason that no longer holds")
        assert await ready(health) == (200, {"ready": True, "missing": {}, "notes": {}})
        bus.set(False)
        assert (await ready(health))[1]["missing"] == {"bus": ""}


async def test_a_condition_asked_for_twice_is_one() -> None:
    health = Health()
    first = health.require("bus")
    first.set(True)
    assert health.require("bus") is first
    assert health.ready


async def test_a_note_is_reported_and_is_no_lack() -> None:
    async with served() as health:
        health.note("addresses", "IPv6 is full")
        health.note("services", "4,096 left out")
        assert await ready(health) == (
            200,
            {"ready": True, "missing": {}, "notes": {"addresses": "IPv6 is full", "services": "4,096 left out"}},
        )
        health.note("services", "")
        health.note("never said", "")
        assert (await ready(health))[1]["notes"] == {"addresses": "IPv6 is full"}


@pytest.mark.parametrize("why", ['"quotes"', "line\nbreak", "\x1b[2J", "ü", "<b>", "x" * 10_000])
async def test_whatever_a_reason_says_the_page_is_json(why: str) -> None:
    async with served() as health:
        health.require("bus").set(False, why)
        health.note("n", why)
        status, reported = await ready(health)
        assert (status, reported["missing"], reported["notes"]) == (503, {"bus": why}, {"n": why})


async def test_metrics_say_what_the_pages_say() -> None:
    async with served() as health:
        condition = health.require('odd "name"\n')
        for holds in (False, True):
            condition.set(holds)
            status, kind, body = await page(health, "/metrics")
            assert (status, kind) == (200, "text/plain")
            samples = {
                (sample.name, sample.labels.get("condition", "")): sample.value
                for family in text_string_to_metric_families(body)
                for sample in family.samples
            }
            assert samples["airmesh_ready", ""] == holds
            assert samples["airmesh_condition", 'odd "name"\n'] == holds


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/livez/", 404),
        ("GET", "/../livez", 200),  # as any client, this one takes dots out before it asks
        ("POST", "/livez", 405),
        ("PUT", "/readyz", 405),
        ("DELETE", "/metrics", 405),
        ("HEAD", "/livez", 200),
    ],
)
async def test_there_is_nothing_else(method: str, path: str, status: int) -> None:
    async with served() as health:
        assert (await page(health, path, method))[0] == status


async def test_a_port_that_is_taken_is_an_error_of_the_start() -> None:
    async with served() as first:
        second = Health()
        with pytest.raises(OSError, match="address already in use"):
            await second.serve(first.port)
        await second.stop()
        assert (await page(first, "/livez"))[0] == 200


async def test_pages_are_on_loopback_and_end_with_the_service() -> None:
    async with served() as health:
        assert health._runner is not None
        assert [address[0] for address in health._runner.addresses] == ["127.0.0.1"]
        port = health.port
    await health.stop()
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(f"http://127.0.0.1:{port}/livez")


async def test_what_never_served_stops_all_the_same() -> None:
    health = Health()
    await health.stop()
    assert health.port == 0
