"""How `dns` asks a server: over real sockets, of one that answers, one that is silent, and one that is not there."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest

from services.dns import doctor
from services.dns.core.doctor.upstreams import Upstream

LOOPBACK = ip_address("127.0.0.1")
Reply = Callable[[bytes], tuple[bytes, ...]]


def refused(asked: bytes) -> tuple[bytes, ...]:
    return (asked[:2] + b"\x81\x85" + asked[4:],)


def one_record(asked: bytes) -> tuple[bytes, ...]:
    return (asked[:2] + b"\x81\x80\0\1\0\1" + asked[8:],)


def strangers_first(asked: bytes) -> tuple[bytes, ...]:
    return b"nonsense", bytes((asked[0] ^ 1,)) + one_record(asked)[0][1:], *refused(asked)


@asynccontextmanager
async def server(reply: Reply) -> AsyncIterator[int]:
    """A server on loopback; its port."""

    class Server(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            for message in reply(data):
                self.transport.sendto(message, addr)  # type: ignore[attr-defined]

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Server, local_addr=(str(LOOPBACK), 0))
    try:
        yield transport.get_extra_info("sockname")[1]
    finally:
        transport.close()


@pytest.mark.parametrize(
    ("reply", "rcode", "records"),
    [(refused, "REFUSED", 0), (one_record, "NOERROR", 1), (strangers_first, "REFUSED", 0)],
)
async def test_the_answer_to_the_query_is_taken(
    reply: Reply, rcode: str, records: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "PATIENCE", 30.0)
    async with server(reply) as port:
        asked = await doctor._ask(LOOPBACK, port, "a.example", times=2)
    assert asked.answer is not None
    assert (asked.answer.rcode, asked.answer.records, asked.times) == (rcode, records, 2)


async def test_an_upstream_of_everything_is_asked_for_a_name_that_nobody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PATIENCE", 30.0)
    names: list[bytes] = []

    def note(asked: bytes) -> tuple[bytes, ...]:
        names.append(asked)
        return one_record(asked)

    async with server(note) as port:
        asked = await doctor._ask_upstream(Upstream(".", str(LOOPBACK), port))
        of_stub = await doctor._ask_upstream(Upstream("corp.example", str(LOOPBACK), port))
    assert asked.invalid is not None
    assert asked.invalid.records == 1
    assert of_stub.invalid is None
    assert sum(b"\x07invalid\0" in name for name in names) == 1


async def test_silence_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PATIENCE", 0.05)
    async with server(lambda _: ()) as port:
        assert (await doctor._ask(LOOPBACK, port, "a.example")).answer is None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind((str(LOOPBACK), 0))
        port = closed.getsockname()[1]
    assert (await doctor._ask(LOOPBACK, port, "a.example")).answer is None
