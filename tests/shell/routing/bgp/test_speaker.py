"""The speaker's sockets on loopback: who is accepted, what a peer that takes nothing costs, what a change touches."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from ipaddress import ip_address
from typing import Any

import pytest
import pytest_asyncio
import uvloop

from services.routing.bgp.outbox import MOST_WAITING
from services.routing.bgp.speaker import Speaker
from services.routing.core.bgp.codec.messages import MessageKind, encode_open, keepalive, split
from services.routing.core.bgp.codec.updates import UpdateWriter
from services.routing.core.bgp.dissector import Passed
from services.routing.core.bgp.peers import Peer, SessionSettings, TableSettings
from services.routing.core.bgp.session import negotiation
from services.routing.core.bgp.session.actions import Established, Lost
from services.routing.core.bgp.session.admission import BURST
from services.routing.core.bgp.session.connection import Timer
from services.routing.core.bgp.session.table import State
from services.routing.core.bgp.values import Agreed, Family, Update
from tests.natsd import free_port

PATIENCE = 30.0
EOR = UpdateWriter(Agreed(families=frozenset(Family), four_octets=True, external=True)).end_of_rib(Family.IPV6)


class Owner:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def established(self, name: str, session: Established) -> None:
        self.events.append((name, session))

    def lost(self, name: str, lost: Lost) -> None:
        self.events.append((name, lost))

    def received(self, name: str, message: object) -> None:
        self.events.append((name, message))

    def tables(self, name: str, step: object) -> None:
        self.events.append((name, step))

    def writable(self, name: str) -> None:
        self.events.append((name, "writable"))

    def passed(self, passed: Passed) -> None:
        self.events.append((passed.peer, passed))

    def changed(self, name: str) -> None:
        self.events.append((name, "changed"))

    def of(self, name: str, kind: type) -> list[Any]:
        return [event for whose, event in self.events if whose == name and isinstance(event, kind)]


def settings(one: int, other: int, port: int, **more: Any) -> SessionSettings:
    """Of the speaker 127.0.1.<one>, AS 65000 + one, towards 127.0.1.<other>."""
    usual: dict[str, Any] = {
        "address": ip_address(f"127.0.1.{other}"),
        "port": port,
        "local": ip_address(f"127.0.1.{one}"),
        "local_asn": 65000 + one,
        "peer_asn": 65000 + other,
        "router_id": ip_address(f"10.0.0.{one}"),
        "connect_retry_seconds": 1,
    }
    return SessionSettings(**(usual | more))


def peer(name: str, session: SessionSettings, **tables: Any) -> Peer:
    return Peer(name=name, session=session, tables=TableSettings(**tables))


async def until(holds: Callable[[], object], what: str = "") -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0.01)


@pytest.fixture
def port() -> int:
    return free_port()


Make = Callable[[], tuple[Speaker, Owner]]


@pytest_asyncio.fixture
async def make() -> AsyncIterator[Make]:
    async with AsyncExitStack() as stack:

        def made() -> tuple[Speaker, Owner]:
            owner = Owner()
            speaker = Speaker(owner)
            stack.callback(speaker.close)
            return speaker, owner

        yield made


def listens(speaker: Speaker, number: int, port: int) -> None:
    speaker.listen([ip_address(f"127.0.1.{number}")], port)
    assert speaker.listener.faults == {}


class Raw:
    """A peer by hand: number 9, AS 65009, over a plain socket."""

    def __init__(self, port: int, one: int = 1, number: int = 9) -> None:
        self.socket = socket.socket()
        self.socket.bind((f"127.0.1.{number}", 0))
        self.socket.setblocking(False)
        self._at = f"127.0.1.{one}", port
        self._settings = settings(number, one, port)
        self.octets = b""

    async def connect(self) -> Raw:
        with suppress(ConnectionResetError):  # closed at once
            await asyncio.get_running_loop().sock_connect(self.socket, self._at)
        return self

    async def send(self, octets: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, octets)

    async def establish(self) -> None:
        opened = negotiation.opening(self._settings, negotiation.offered(self._settings))
        await self.send(encode_open(opened) + keepalive())

    async def closed(self) -> bytes:
        """All that comes until the other side closes."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE):
            with suppress(ConnectionResetError):
                while octets := await loop.sock_recv(self.socket, 65536):
                    self.octets += octets
        return self.octets

    def messages(self) -> list[tuple[MessageKind, memoryview]]:
        return split(self.octets, 65535)[0]


@pytest_asyncio.fixture
async def raw(port: int) -> AsyncIterator[Callable[..., Raw]]:
    made: list[Raw] = []

    def make_raw(number: int = 9) -> Raw:
        made.append(Raw(port, number=number))
        return made[-1]

    yield make_raw
    for one in made:
        one.socket.close()


async def test_two_speakers_meet_and_speak(make: Make, port: int) -> None:
    (one, heard), (two, heard_there) = make(), make()
    for number, speaker in ((1, one), (2, two)):
        listens(speaker, number, port)
    one.follow({"two": peer("two", settings(1, 2, port))})
    two.follow({"one": peer("one", settings(2, 1, port))})
    await until(lambda: heard.of("two", Established) and heard_there.of("one", Established))
    await until(lambda: one.states()["two"].state is two.states()["one"].state is State.ESTABLISHED)
    assert one.send("two", [EOR] * 1000)
    await until(lambda: len(heard_there.of("one", Update)) == 1000)
    assert not one.send("nobody", [EOR])
    state = two.states()["one"]
    assert state.received[MessageKind.UPDATE] == 1000
    assert state.received_octets >= 1000 * len(EOR)


async def test_who_is_not_configured_is_closed_at_once(make: Make, port: int, raw: Callable[..., Raw]) -> None:
    one, owner = make()
    listens(one, 1, port)
    one.follow({"nine": peer("nine", settings(1, 9, port, passive=True))})
    stranger = await raw(8).connect()
    assert await stranger.closed() == b"", "not even an OPEN"
    known = await raw(9).connect()
    await known.establish()
    await until(lambda: owner.of("nine", Established))
    assert one.listener.refused == 1


async def test_a_flood_of_connections_disturbs_no_session(make: Make, port: int, raw: Callable[..., Raw]) -> None:
    """500 of a stranger and 50 of the peer itself: the session stays, and nothing of them does."""
    one, owner = make()
    listens(one, 1, port)
    one.follow({"nine": peer("nine", settings(1, 9, port, passive=True, restart_seconds=0))})
    await (known := await raw(9).connect()).establish()
    await until(lambda: owner.of("nine", Established))
    for number, times in ((8, 500), (9, 50)):
        for _ in range(times):
            with socket.socket() as flood:
                flood.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                flood.bind((f"127.0.1.{number}", 0))
                flood.setblocking(False)
                with suppress(BlockingIOError, ConnectionError):
                    flood.connect(("127.0.1.1", port))
                await asyncio.sleep(0)
    await known.send(EOR)
    await until(lambda: owner.of("nine", Update))
    assert owner.of("nine", Lost) == []
    assert one.listener.refused > 100


async def test_a_peer_that_reconnects_all_the_time_is_admitted_at_a_rate(
    make: Make, port: int, raw: Callable[..., Raw]
) -> None:
    one, _ = make()
    listens(one, 1, port)
    one.follow({"nine": peer("nine", settings(1, 9, port, passive=True))})
    for _ in range(30):
        (again := await raw(9).connect()).socket.close()
        assert again
        await asyncio.sleep(0)
    await until(lambda: one.listener.refused >= 30 - BURST - 5)


async def test_silent_connections_of_a_peer_make_room_for_one_that_speaks(
    make: Make, port: int, raw: Callable[..., Raw]
) -> None:
    """The third connection takes the number of one whose OPEN has not come, and that one alone is closed."""
    one, owner = make()
    listens(one, 1, port)
    one.follow({"nine": peer("nine", settings(1, 9, port, passive=True))})
    silent = [await raw(9).connect() for _ in range(2)]
    await until(lambda: one.states()["nine"].sent_messages == 2)
    speaks = await raw(9).connect()
    await speaks.establish()
    await until(lambda: owner.of("nine", Established))
    for connection in silent:
        await connection.closed()
    assert all(bytes(connection.messages()[-1][1]) == b"\x06\x07" for connection in silent), "collision"
    await speaks.send(EOR)
    await until(lambda: owner.of("nine", Update))


async def test_a_peer_that_takes_nothing_costs_a_bound_and_holds_nobody(
    make: Make, port: int, raw: Callable[..., Raw]
) -> None:
    one, owner = make()
    listens(one, 1, port)
    one.follow({f"{n}": peer(f"{n}", settings(1, n, port, passive=True)) for n in (8, 9)})
    stuck, works = [await raw(number).connect() for number in (8, 9)]
    for one_of in (stuck, works):
        await one_of.establish()
    await until(lambda: owner.of("8", Established) and owner.of("9", Established))
    while one.send("8", [EOR * 130] * 100):
        await asyncio.sleep(0)
    assert one.states()["8"].waiting_octets < MOST_WAITING + 13_000 * len(EOR)
    assert not one.send("8", [EOR]), "none of it is taken"
    assert one.send("9", [EOR])
    await works.send(EOR)
    await until(lambda: owner.of("9", Update))
    assert ("8", "writable") not in owner.events
    reading = asyncio.create_task(stuck.closed())
    await until(lambda: ("8", "writable") in owner.events)
    assert one.send("8", [EOR])
    one.shut_down("8", "enough")
    await reading
    whole, consumed = split(stuck.octets, 65535)
    assert consumed == len(stuck.octets), "the stream ends between two messages"
    assert whole[-1][0] is MessageKind.NOTIFICATION


async def test_a_change_of_one_peer_touches_no_other(make: Make, port: int, raw: Callable[..., Raw]) -> None:
    one, owner = make()
    listens(one, 1, port)
    peers = {f"{n}": peer(f"{n}", settings(1, n, port, passive=True)) for n in (7, 8, 9)}
    one.follow(peers)
    for number in (7, 8, 9):
        await (await raw(number).connect()).establish()
    await until(lambda: all(owner.of(name, Established) for name in peers))
    one.follow(
        {
            "7": peer("7", peers["7"].session, most_prefixes=10),
            "8": peer("8", settings(1, 8, port, passive=True, hold_seconds=30)),
        }
    )
    reasons = {name: [lost.reason.subcode for lost in owner.of(name, Lost)] for name in peers}
    assert reasons == {"7": [], "8": [6], "9": [3]}
    assert one.states().keys() == {"7", "8"}


async def test_a_peer_that_is_gone_without_a_word_restarts(make: Make, port: int, raw: Callable[..., Raw]) -> None:
    """Both have agreed on graceful restart (RFC 4724 4.2): its routes are kept, and stale."""
    one, owner = make()
    listens(one, 1, port)
    one.follow({"nine": peer("nine", settings(1, 9, port, passive=True))})
    nine = await raw(9).connect()
    await nine.establish()
    await until(lambda: owner.of("nine", Established))
    assert one.is_established("nine")
    assert not one.is_restarting("nine")
    nine.socket.close()
    await until(lambda: owner.of("nine", Lost))
    assert not one.is_established("nine")
    assert one.is_restarting("nine")
    assert not one.is_restarting("nobody")


async def test_two_peers_with_one_address(make: Make, port: int, raw: Callable[..., Raw]) -> None:
    one, owner = make()
    listens(one, 1, port)
    one.follow({name: peer(name, settings(1, 9, port, passive=True)) for name in ("b", "a")})
    assert "peer a has the same address" in str(one.refused["b"])
    await (await raw(9).connect()).establish()
    await until(lambda: owner.of("a", Established))


async def test_an_address_that_cannot_be_listened_on_is_said(make: Make, port: int) -> None:
    one, _ = make()
    one.listen([ip_address("192.0.2.1"), ip_address("127.0.1.1")], port)
    assert one.listener.faults.keys() == {ip_address("192.0.2.1")}
    assert "192.0.2.1" in str(one.listener.faults[ip_address("192.0.2.1")])


async def test_a_peer_that_refuses_connections_is_said(make: Make, port: int) -> None:
    one, _ = make()
    one.follow({"two": peer("two", settings(1, 2, port))})
    await until(lambda: one.states()["two"].fault)
    assert "refuses connections" in str(one.states()["two"].fault)


async def test_garbage_is_answered_and_the_others_stay(make: Make, port: int, raw: Callable[..., Raw]) -> None:
    one, owner = make()
    listens(one, 1, port)
    one.follow({f"{n}": peer(f"{n}", settings(1, n, port, passive=True)) for n in (8, 9)})
    await (await raw(8).connect()).establish()
    await until(lambda: owner.of("8", Established))
    bad = await raw(9).connect()
    await bad.send(b"GET / HTTP/1.1\r\nHost: bgp\r\n\r\n")
    await bad.closed()
    assert [(kind, bytes(body[:2])) for kind, body in bad.messages()][-1] == (MessageKind.NOTIFICATION, b"\x01\x01")
    assert owner.of("8", Lost) == []
    fault = one.states()["9"].fault
    assert fault is not None
    assert fault.code == 1


def test_a_timer_that_is_due_at_once_is_armed_again_on_the_agents_loop(port: int) -> None:
    """uvloop, which agents run on, calls what is due by a handle that knows no time."""

    async def story() -> None:
        owner = Owner()
        speaker = Speaker(owner)
        try:
            speaker.follow({"two": peer("two", settings(1, 2, port))})
            session = speaker._sessions["two"]
            session.machine._connections[0].timers[Timer.CONNECT_RETRY] = 0.0
            session.act([])
            session.act([])
            await until(lambda: owner.of("two", str), "the peer is tried")
        finally:
            speaker.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(story())


async def test_a_capture_shows_the_keepalives_of_a_loop_that_is_late(
    make: Make, port: int, raw: Callable[..., Raw]
) -> None:
    """The loop is held until the peer has one: the thread sent it, at a time that the loop did not see."""
    one, owner = make()
    listens(one, 1, port)
    one.follow({"nine": peer("nine", settings(1, 9, port, passive=True, hold_seconds=3))})
    await (known := await raw(9).connect()).establish()
    await until(lambda: owner.of("nine", Established))
    await until(lambda: one.states()["nine"].sent_messages >= 2)  # OPEN and KEEPALIVE
    known.socket.setblocking(True)
    known.socket.settimeout(PATIENCE)
    one.capture(lambda _: True)
    before = time.time_ns()
    octets = b""
    while not octets.endswith(keepalive() * 2):  # the first one may have come before
        octets += known.socket.recv(65536)
    assert owner.of("nine", Passed) == []
    time.sleep(0.5)  # the thread notes when after it has sent
    after = time.time_ns()
    known.socket.setblocking(False)
    await until(lambda: owner.of("nine", Passed))
    kept = owner.of("nine", Passed)[0]
    assert (kept.sent, kept.kind, kept.body) == (True, MessageKind.KEEPALIVE, b"")
    assert before < kept.time_ns < after
