"""The two peers of the speaker that is measured: one sends it a table as fast as it takes it, one notes what arrives.

Both wait for the speaker's connection and speak plain BGP (RFC 4271) of one family, with four-octet numbers. What
arrives is noted as octets with the time at which they came, and read in the moments in which nothing comes: so reading
never delays the next octets, and never counts as the speaker's time.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address

from bench.bgp.ground import PEERS, Link, path
from bench.bgp.tables import RECEIVER, SENDER, SPEAKER
from linux.netns import inside, open_netns
from services.routing.core.bgp.codec.messages import (
    LARGEST,
    MessageKind,
    decode_notification,
    encode_open,
    keepalive,
    split,
)
from services.routing.core.bgp.codec.updates import UpdateReader
from services.routing.core.bgp.peers import SessionSettings
from services.routing.core.bgp.session import negotiation
from services.routing.core.bgp.values import Agreed, Asn, Family, Prefix

HOLD = 240
KEEPALIVE_EVERY = 20.0
PATIENCE = 60.0
"""Seconds for a session to come up."""
IDLE = 0.05
"""Seconds without an octet after which what has come is read."""
PORT = 179


class SessionLost(Exception):
    """The speaker ended a session; the text says how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """What the receiver was sent."""

    at: float | None
    """When all that was expected had come, by the monotonic clock; None: it did not come in time."""
    count: int
    messages: int
    wrong: int
    """Prefixes that were not to come, or came by another AS path."""


class End:
    """One peer: listens, and holds the session."""

    def __init__(self, link: Link, family: Family, asn: Asn, router_id: str) -> None:
        self._family = family
        self._settings = SessionSettings(
            address=link.speaker,
            local=link.peer,
            local_asn=asn,
            peer_asn=SPEAKER,
            router_id=IPv4Address(router_id),
            hold_seconds=HOLD,
            families=frozenset({family}),
            extended_messages=False,
            restart_seconds=0,
        )
        descriptor = open_netns(path(PEERS))
        with inside(descriptor):
            kind = socket.AF_INET if family is Family.IPV4 else socket.AF_INET6
            self._listener = socket.create_server((str(link.peer), PORT), family=kind)
        self._listener.settimeout(PATIENCE)
        self._socket: socket.socket | None = None
        self._rest = b""
        self.agreed = Agreed(families=frozenset({family}), four_octets=True, external=True)

    def establish(self) -> None:
        """Wait for the speaker, and say OPEN and KEEPALIVE. Raises `SessionLost`, or `TimeoutError`."""
        end = time.monotonic() + PATIENCE
        while not self._opened():
            if time.monotonic() > end:
                raise TimeoutError(f"no session with {self._settings.address}")

    def _opened(self) -> bool:
        """Whether the next connection becomes a session; one that ends before is followed by another."""
        connected, _ = self._listener.accept()
        connected.settimeout(PATIENCE)
        self._socket, self._rest = connected, b""
        offered = negotiation.offered(self._settings)
        connected.sendall(encode_open(negotiation.opening(self._settings, offered)) + keepalive())
        kinds: set[MessageKind] = set()
        try:
            while not kinds & {MessageKind.KEEPALIVE, MessageKind.NOTIFICATION}:
                kinds |= {kind for kind, _ in self._messages(connected.recv(1 << 16))}
        except ConnectionError:
            kinds.clear()
        connected.settimeout(None)
        if MessageKind.KEEPALIVE not in kinds:
            connected.close()
        return MessageKind.KEEPALIVE in kinds

    def _messages(self, octets: bytes) -> Sequence[tuple[MessageKind, bytes]]:
        if not octets:
            raise ConnectionResetError("the speaker has closed the connection")
        found, consumed = split(self._rest + octets, LARGEST)
        whole, self._rest = [(kind, bytes(body)) for kind, body in found], (self._rest + octets)[consumed:]
        return whole

    @property
    def opened(self) -> socket.socket:
        """The session's connection."""
        if self._socket is None:
            raise SessionLost("there is no session yet")
        return self._socket

    def close(self) -> None:
        """End without a word."""
        self._listener.close()
        if self._socket is not None:
            self._socket.close()


class Sender(End):
    """Sends messages, and keeps the session up after them."""

    def __init__(self, link: Link, family: Family) -> None:
        super().__init__(link, family, SENDER, "172.28.255.1")
        self.began = 0.0
        """When the first octet was sent, by the monotonic clock."""
        self.taken = 0.0
        """When the speaker had taken the last one."""
        self.ended = ""
        """How the session ended; empty: it is up."""
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []

    def send(self, messages: Sequence[bytes]) -> None:
        """Begin to send them, in a thread."""
        octets = b"".join(messages)
        self._threads = [threading.Thread(target=self._send, args=(octets,)), threading.Thread(target=self._listen)]
        for one in self._threads:
            one.start()

    def _send(self, octets: bytes) -> None:
        self.began = time.monotonic()
        try:
            self.opened.sendall(octets)
            self.taken = time.monotonic()
            while not self._stopped.wait(KEEPALIVE_EVERY):
                self.opened.sendall(keepalive())
        except OSError as error:
            self.ended = self.ended or str(error)

    def _listen(self) -> None:
        try:
            while not self._stopped.is_set():
                for kind, body in self._messages(self.opened.recv(1 << 16)):
                    if kind is MessageKind.NOTIFICATION:
                        self.ended = decode_notification(body).reason
        except OSError as error:
            self.ended = self.ended or str(error)

    def close(self) -> None:
        self._stopped.set()
        if self._socket is not None and self._threads:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        for one in self._threads:
            one.join()
        super().close()


class Receiver(End):
    """Notes what arrives."""

    def __init__(self, link: Link, family: Family) -> None:
        super().__init__(link, family, RECEIVER, "172.28.255.3")

    def collect(self, paths: Mapping[Prefix, tuple[Asn, ...]], seconds: float, alive: Callable[[], str]) -> Arrived:
        """Until all these prefixes have come, each by its AS path. ``alive`` says why to wait no longer; empty: wait.

        Raises `SessionLost`.
        """
        reading = Reading(paths, self.agreed)
        came: list[tuple[float, bytes]] = []
        deadline, said = time.monotonic() + seconds, time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(self.opened, selectors.EVENT_READ)
            while reading.at is None and time.monotonic() < deadline:
                ready = selector.select(IDLE)
                if ready and (octets := self.opened.recv(1 << 20)):
                    came.append((time.monotonic(), octets))
                    continue
                for at, octets in came:
                    for kind, body in self._messages(octets):
                        reading.take(at, kind, body)
                came.clear()
                if time.monotonic() - said > KEEPALIVE_EVERY:
                    said = time.monotonic()
                    self.opened.sendall(keepalive())
                if why := alive() or ("the speaker has closed the receiver's connection" if ready else ""):
                    raise SessionLost(why)
        return Arrived(at=reading.at, count=len(reading.there), messages=reading.messages, wrong=len(reading.wrong))


class Reading:
    """What has come of what was expected."""

    def __init__(self, paths: Mapping[Prefix, tuple[Asn, ...]], agreed: Agreed) -> None:
        self.there: set[Prefix] = set()
        self.wrong: set[Prefix] = set()
        self.messages = 0
        self.at: float | None = None
        self._paths = paths
        self._reader = UpdateReader(agreed)

    def take(self, at: float, kind: MessageKind, body: bytes) -> None:
        """A message that came then. Raises `SessionLost`."""
        if kind is MessageKind.NOTIFICATION:
            raise SessionLost(decode_notification(body).reason)
        if kind is not MessageKind.UPDATE:
            return
        self.messages += 1
        update = self._reader.read(body)
        for gone in update.unreachable:
            self.there.difference_update(gone.prefixes)
            self.wrong.difference_update(gone.prefixes)
        for come in update.reachable:
            path = tuple(number for segment in come.attributes.as_path for number in segment.numbers)
            for prefix in come.prefixes:
                right = self._paths.get(prefix) == path
                (self.there if right else self.wrong).add(prefix)
                (self.wrong if right else self.there).discard(prefix)
        if self.at is None and len(self.there) == len(self._paths) and not self.wrong:
            self.at = at
