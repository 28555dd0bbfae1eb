"""A BGP peer by hand on loopback: what comes is noted in order, in words; what is sent, a test says octet by octet."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

from services.routing.core.bgp.codec.messages import (
    MessageKind,
    RefreshKind,
    RouteRefresh,
    decode_notification,
    decode_open,
    decode_route_refresh,
    encode_open,
    encode_route_refresh,
    keepalive,
    split,
)
from services.routing.core.bgp.codec.updates import UpdateReader, UpdateWriter
from services.routing.core.bgp.peers import SessionSettings
from services.routing.core.bgp.session import negotiation
from services.routing.core.bgp.session.reasons import is_hard_reset
from services.routing.core.bgp.values import (
    Agreed,
    Attributes,
    Family,
    Origin,
    Segment,
    SegmentKind,
    Update,
    network_of,
    prefix_of,
)

PATIENCE = 30.0
HOPS = {4: "10.0.0.{}", 6: "fd00::{}"}
"""Next hops of the peer with a number."""


async def until(holds: Callable[[], object]) -> None:
    """Wait for it."""
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0.01)


def settings(one: int, other: int, port: int, **more: Any) -> SessionSettings:
    """Of the speaker 127.0.1.<one>, AS 65000 + one, towards 127.0.1.<other>, which connects."""
    usual: dict[str, Any] = {
        "address": ip_address(f"127.0.1.{other}"),
        "port": port,
        "local": ip_address(f"127.0.1.{one}"),
        "passive": True,
        "local_asn": 65000 + one,
        "peer_asn": 65000 + other,
        "router_id": ip_address(f"10.0.1.{one}"),
        "connect_retry_seconds": 1,
    }
    return SessionSettings(**(usual | more))


class ByHand:
    """Number ``number``, AS 65000 + number, which connects to number 1, or ``listens`` for it. ``more``: of its
    session's settings.

    It reads as soon as it is up, unless ``reads`` is False: then it takes nothing until :meth:`read`.
    """

    def __init__(self, port: int, number: int = 9, *, reads: bool = True, listens: bool = False, **more: Any) -> None:
        self.number = number
        self.settings = settings(number, 1, port, **more)
        self.said: list[str] = []
        """What came, in order: ``+10.1.0.0/24``, ``-10.1.0.0/24``, ``EoR IPV4``, ``BoRR IPV4``, ``EoRR IPV4``,
        ``asks IPV4``, ``closed 6/3``, ``closed hard 6/3`` (RFC 8538).
        """
        self.table: dict[str, Attributes] = {}
        self.updates = 0
        self.closed = False
        self.last_words = b""
        """Content of the NOTIFICATION that came."""
        self.opened = False
        """The other side's OPEN has come."""
        self.agreed = Agreed(families=self.settings.families, four_octets=True, external=True)
        self._reads = reads
        self._socket = socket.socket()
        self._reader = UpdateReader(self.agreed)
        self._buffer = b""
        self._task: asyncio.Task[None] | None = None
        self._drain: threading.Thread | None = None
        self._port = port
        self._listener: socket.socket | None = None
        if listens:
            self._listener = socket.create_server((str(self.settings.local), port))
            self._listener.setblocking(False)

    async def establish(self, *, asn: int | None = None, router_id: str = "") -> ByHand:
        """Connect, and say OPEN and KEEPALIVE."""
        self._socket.close()
        if self._task is not None:
            self._task.cancel()
        self.closed, self.opened, self._buffer, self.said, self.table = False, False, b"", [], {}
        await (self._connect() if self._listener is None else self._accept(self._listener))
        opened = negotiation.opening(self.settings, negotiation.offered(self.settings))
        opened = replace(opened, router_id=ip_address(router_id)) if router_id else opened  # type: ignore[arg-type]
        await self.send(encode_open(opened if asn is None else replace(opened, asn=asn)) + keepalive())
        if self._reads:
            self.read()
        return self

    async def _connect(self) -> None:
        self._socket = socket.socket()
        if not self._reads:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.bind((str(self.settings.local), 0))
        self._socket.setblocking(False)
        await asyncio.get_running_loop().sock_connect(self._socket, (str(self.settings.address), self._port))

    async def _accept(self, listener: socket.socket) -> None:
        async with asyncio.timeout(PATIENCE):
            self._socket, _ = await asyncio.get_running_loop().sock_accept(listener)

    async def come_back(self) -> ByHand:
        """Connect again and again, until it is answered."""
        self.opened = False
        async with asyncio.timeout(PATIENCE):
            while not self.opened:
                with suppress(ConnectionError):
                    await self.establish()
                    await until(lambda: self.opened or self.closed)
                await asyncio.sleep(0.05)
        return self

    async def is_refused(self) -> bool:
        """Connect: whether the connection is closed without a word."""
        try:
            await self.establish()
        except ConnectionError:
            return True
        await until(lambda: self.closed)
        return not self.opened

    def read(self) -> None:
        """Take what comes from now on."""
        self._task = asyncio.create_task(self._read())

    def drain(self) -> None:
        """Take what comes from now on, in a thread, and forget it."""

        def take(taken: socket.socket) -> None:
            with taken, suppress(OSError):
                taken.setblocking(True)
                while taken.recv(1 << 20):
                    pass

        self._drain = threading.Thread(target=take, args=(self._socket.dup(),))
        self._drain.start()

    async def send(self, *messages: bytes) -> None:
        """Send some messages."""
        await asyncio.get_running_loop().sock_sendall(self._socket, b"".join(messages))

    def announce(self, *texts: str, hop: str = "", path: tuple[int, ...] = (), **more: Any) -> bytes:
        """UPDATEs of prefixes of one family, by this peer's next hop."""
        networks = [ip_network(text) for text in texts]
        family = prefix_of(networks[0])[0]
        numbers = (self.settings.local_asn, *path)
        attributes = Attributes(
            origin=Origin.IGP,
            as_path=(Segment(SegmentKind.SEQUENCE, numbers),),
            next_hop=ip_address(hop or HOPS[networks[0].version].format(self.number)),
            **more,
        )
        written = UpdateWriter(self.agreed).write(family, attributes, [prefix_of(one)[1] for one in networks])
        assert isinstance(written, list), written
        return b"".join(written)

    def withdraw(self, *texts: str) -> bytes:
        """UPDATEs that take prefixes of one family back."""
        networks = [ip_network(text) for text in texts]
        family = prefix_of(networks[0])[0]
        return b"".join(UpdateWriter(self.agreed).withdraw(family, [prefix_of(one)[1] for one in networks]))

    def end_of_rib(self, *families: Family) -> bytes:
        """End-of-RIB of these families, of all if none is named."""
        return b"".join(map(UpdateWriter(self.agreed).end_of_rib, families or tuple(Family)))

    def refresh(self, kind: RefreshKind = RefreshKind.REQUEST, family: Family = Family.IPV4) -> bytes:
        """A ROUTE-REFRESH."""
        return encode_route_refresh(RouteRefresh(family, kind))

    def close(self) -> None:
        """End without a word."""
        if self._task is not None:
            self._task.cancel()
        if self._drain is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._drain.join()
        self._socket.close()
        if self._listener is not None:
            self._listener.close()

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        with suppress(ConnectionError):
            while octets := await loop.sock_recv(self._socket, 1 << 16):
                self._buffer += octets
                messages, consumed = split(self._buffer, 65535)
                for kind, body in messages:
                    self._note(kind, bytes(body))
                self._buffer = self._buffer[consumed:]
        self.closed = True

    def _note(self, kind: MessageKind, body: bytes) -> None:
        match kind:
            case MessageKind.OPEN:
                self.opened = True
                theirs = decode_open(body).capabilities
                ours = negotiation.offered(self.settings)
                self.agreed = negotiation.agree(ours, theirs, external=self.settings.external)
                self._reader = UpdateReader(self.agreed)
            case MessageKind.UPDATE:
                self.updates += 1
                self._note_update(self._reader.read(body))
            case MessageKind.ROUTE_REFRESH:
                if (refresh := decode_route_refresh(body)) is not None:
                    words = {RefreshKind.BEGINNING: "BoRR", RefreshKind.END: "EoRR", RefreshKind.REQUEST: "asks"}
                    self.said.append(f"{words[refresh.kind]} {refresh.family.name}")
            case MessageKind.NOTIFICATION:
                found = decode_notification(body)
                hard = is_hard_reset(found)
                pair = tuple(found.content[:2]) if hard else (found.code, found.subcode)
                self.said.append(f"closed {'hard ' * hard}{pair[0]}/{pair[1]}")
                self.last_words = found.content
            case _:
                pass

    def _note_update(self, update: Update) -> None:
        if update.end_of_rib is not None:
            self.said.append(f"EoR {update.end_of_rib.name}")
        for gone in update.unreachable:
            for prefix in gone.prefixes:
                text = str(network_of(gone.family, prefix))
                self.said.append(f"-{text}")
                self.table.pop(text, None)
        for come in update.reachable:
            for prefix in come.prefixes:
                text = str(network_of(come.family, prefix))
                self.said.append(f"+{text}")
                self.table[text] = come.attributes


def names(networks: Collection[str]) -> set[str]:
    """As ``said`` has them announced."""
    return {f"+{network}" for network in networks}
