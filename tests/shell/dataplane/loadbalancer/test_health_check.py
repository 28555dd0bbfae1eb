"""The health-check ports on real sockets: they follow what is asked for, and bound what a client may do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

import pytest

from services.dataplane.core.loadbalancer.health_checks import Answer, Page
from services.dataplane.loadbalancer import health_check as module
from services.dataplane.loadbalancer.health_check import HealthCheckServer
from tests.natsd import free_port


class Diary:
    """A log that remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))

    error = warning = info

    def of(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.lines if name == event]


def page(body: bytes) -> Page:
    return lambda path: Answer(status=HTTPStatus.OK, body=body + path.encode())


async def ask(port: int, request: bytes = b"GET / HTTP/1.1\r\nHost: n\r\n\r\n", host: str = "127.0.0.1") -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(request)
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


@pytest.fixture
async def server() -> AsyncIterator[HealthCheckServer]:
    diary: Any = Diary()
    made = HealthCheckServer(diary)
    yield made
    await made.close()


def diary_of(server: HealthCheckServer) -> Diary:
    log: Any = server._log
    assert isinstance(log, Diary)
    return log


async def test_ports_follow_what_is_asked_for_and_answer_on_both_families(server: HealthCheckServer) -> None:
    one, two = free_port(), free_port()
    await server.apply({one: page(b"one"), two: page(b"two")})
    assert (await ask(one)).endswith(b"\r\n\r\none/")
    assert (await ask(two, host="::1")).endswith(b"\r\n\r\ntwo/")
    await server.apply({two: page(b"new")})
    assert (await ask(two)).endswith(b"new/")
    with pytest.raises(ConnectionRefusedError):
        await ask(one)
    assert server.ports == {two}


async def test_a_taken_port_stops_no_other_is_reported_once_and_had_when_it_is_free(server: HealthCheckServer) -> None:
    good = free_port()
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as holder:
        taken = holder.getsockname()[1]
        for _ in range(3):
            await server.apply({taken: page(b"mine"), good: page(b"good")})
        assert (await ask(good)).endswith(b"good/")
        assert server.ports == {good}
        (complaint,) = diary_of(server).of("health-check-not-open")
        assert complaint["port"] == taken
    await server.apply({taken: page(b"mine"), good: page(b"good")})
    assert (await ask(taken)).endswith(b"mine/")


async def test_a_client_that_sends_too_much_or_nothing_is_hung_up_on(
    server: HealthCheckServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "READ_SECONDS", 0.3)
    port = free_port()
    await server.apply({port: page(b"x")})
    with contextlib.suppress(ConnectionResetError):
        assert (await ask(port, b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.0 400 ")
    assert await ask(port, b"") == b""
    assert await ask(port, b"GET / HTTP/1.1\r\n") == b""
    assert (await ask(port)).endswith(b"x/")


async def test_more_requests_at_once_than_the_limit_are_hung_up_on(
    server: HealthCheckServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_REQUESTS", 4)
    port = free_port()
    await server.apply({port: page(b"x")})
    idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
    await asyncio.sleep(0.1)
    with contextlib.suppress(ConnectionResetError):
        assert await ask(port) == b""
    for _, writer in idle:
        writer.close()
    await asyncio.sleep(0.1)
    assert (await ask(port)).endswith(b"x/")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /?verbose HTTP/1.1", 200),
        (b"HEAD / HTTP/1.0", 200),
        (b"GET / HTTP/1.1\r\nConnection: keep-alive", 200),
        (b"POST / HTTP/1.1\r\nContent-Length: 100000000", 405),
        (b"GET / HTTP/2", 400),
        (b"\x16\x03\x01\x02", 400),
    ],
)
async def test_each_request_has_one_answer_and_is_the_last(server: HealthCheckServer, head: bytes, status: int) -> None:
    port = free_port()
    await server.apply({port: page(b"at ")})
    answer = await ask(port, head + b"\r\nHost: n1\r\n\r\n")
    first, _, rest = answer.partition(b"\r\n")
    headers, _, body = rest.partition(b"\r\n\r\n")
    assert first.split(b" ")[1] == str(status).encode()
    if status == 200:
        assert {b"Content-Type: application/json", b"Content-Length: 4"} <= set(headers.split(b"\r\n"))
        assert body == (b"" if head.startswith(b"HEAD") else b"at /")


async def test_what_strangers_send_is_no_line_in_the_log(
    server: HealthCheckServer, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    await server.apply({port: page(b"x")})
    await ask(port, b"\x16\x03\x01\x02\r\n\r\n")
    assert caplog.records == []
