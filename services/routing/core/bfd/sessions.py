"""The BFD sessions of one node: which one a packet belongs to, and which one is due (RFC 5880 6.3, 6.8.6; RFC 5881).

A session is with one peer, from one address, by one interface (RFC 5881 3). Its discriminator is kept as long as it is
wanted, whatever the peer does. One that is wanted no longer says AdminDown for a detection time of the peer and is then
dropped; wanted again meanwhile it goes on. Randomness comes from two functions that the owner brings, and time with
every call, in microseconds of a clock that does not go back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from heapq import heappop, heappush
from typing import NamedTuple

from proto.net import Address
from services.routing.core.bfd.packet import HOPS, ControlPacket, Discard, State, read_packet
from services.routing.core.bfd.session import Session, Settings

MOST_CLOSING_US = 10_000_000
"""How long AdminDown is said at most, whatever intervals a peer asks for."""


class Key(NamedTuple):
    """What a session is between (RFC 5881 3)."""

    local: Address
    """This side's address; a link-local one without its scope."""
    peer: Address
    interface: str = ""
    """Where the peer is; empty: what the kernel takes."""


class Outgoing(NamedTuple):
    """A packet to send now."""

    key: Key
    packet: ControlPacket


class Sessions:
    """See the module."""

    def __init__(self, *, independent: bool, discriminators: Callable[[], int], jitters: Callable[[], float]) -> None:
        """``independent``: the C bit of all; ``discriminators``: random numbers of 32 bits; ``jitters``: in [0, 1)."""
        self._independent = independent
        self._discriminators = discriminators
        self._jitters = jitters
        self._keys: dict[int, Key] = {}
        self._closing: dict[Key, int] = {}
        self._heap: list[tuple[int, int]] = []
        """Moments and discriminators; at least one for each session, not after it is due."""
        self._queued: dict[int, int] = {}
        """The earliest moment of each discriminator in the heap."""
        self.by_key: dict[Key, Session] = {}
        """All of them, those that are closing too."""
        self.changed: set[Key] = set()
        """Those whose state or negotiated intervals changed, and new ones; the owner empties it."""
        self.gone: set[Key] = set()
        """Those that are no more; the owner empties it."""
        self.discards: dict[Key, Counter[Discard]] = {}
        """Packets from the peers of sessions that were discarded."""
        self.strangers: Counter[Discard] = Counter()
        """The same from everybody else."""

    @property
    def wanted(self) -> frozenset[Key]:
        """Those that are not closing."""
        return frozenset(self.by_key.keys() - self._closing.keys())

    @property
    def next_at(self) -> int | None:
        """When :meth:`elapse` is to be called next."""
        return self._heap[0][0] if self._heap else None

    def want(self, wanted: Mapping[Key, Settings], now: int) -> list[Outgoing]:
        """Exactly these from now on. What a new one says first is due at once, by :meth:`elapse`."""
        sent = []
        for key in self.wanted - wanted.keys():
            session = self.by_key[key]
            self._closing[key] = now + _peer_detection_us(session)
            off = replace(session.settings, enabled=False)
            sent += self._moved(key, *session.configured(off, now, self._jitters()))
        for key, settings in wanted.items():
            self._closing.pop(key, None)
            if key in self.by_key:
                sent += self._moved(key, *self.by_key[key].configured(settings, now, self._jitters()))
            else:
                self._add(key, settings, now)
        return sent

    def receive(self, at: Key, payload: bytes, hops: int, now: int) -> list[Outgoing]:
        """A UDP payload that came from ``at.peer`` to ``at.local``, with this TTL or hop limit left."""
        found = self._select(at, payload, hops)
        if isinstance(found, Discard):
            (self.discards[at] if at in self.by_key else self.strangers)[found] += 1
            return []
        return self._moved(at, *self.by_key[at].received(found, now, self._jitters()))

    def elapse(self, now: int) -> list[Outgoing]:
        """What is due at this moment."""
        sent: list[Outgoing] = []
        while self._heap and self._heap[0][0] <= now:
            at, discriminator = heappop(self._heap)
            key = self._keys.get(discriminator)
            if key is None or self._queued.get(discriminator) != at:
                continue
            del self._queued[discriminator]
            if self._closing and self._closing.get(key, now + 1) <= now:
                self._drop(key)
                continue
            sent += self._moved(key, *self.by_key[key].elapsed(now, self._jitters()))
        return sent

    def _select(self, at: Key, payload: bytes, hops: int) -> ControlPacket | Discard:
        """The packet, when it is for the session with its sender; else the first check that it fails."""
        if hops != HOPS:
            return Discard.HOPS
        packet = read_packet(payload)
        if isinstance(packet, Discard):
            return packet
        if packet.your_discriminator:
            key = self._keys.get(packet.your_discriminator)
            if key is None:
                return Discard.NO_SESSION
            if key != at:
                return Discard.SENDER
        elif packet.state not in (State.DOWN, State.ADMIN_DOWN):
            return Discard.STATE
        elif at not in self.by_key:
            return Discard.NO_PEER
        return Discard.AUTHENTICATED if packet.authenticated else packet

    def _add(self, key: Key, settings: Settings, now: int) -> None:
        discriminator = self._discriminators()
        while discriminator == 0 or discriminator in self._keys:
            discriminator = self._discriminators()
        self._keys[discriminator] = key
        self.by_key[key] = Session.begun(settings, discriminator, now, independent=self._independent)
        self.discards[key] = Counter()
        self.changed.add(key)
        self._queue(key, self.by_key[key])

    def _drop(self, key: Key) -> None:
        session = self.by_key.pop(key)
        del self._closing[key], self._keys[session.discriminator], self.discards[key]
        self.changed.discard(key)
        self.gone.add(key)

    def _moved(self, key: Key, after: Session, packet: ControlPacket | None) -> list[Outgoing]:
        if _negotiated(after) != _negotiated(self.by_key[key]):
            self.changed.add(key)
        self.by_key[key] = after
        self._queue(key, after)
        return [] if packet is None else [Outgoing(key, packet)]

    def _queue(self, key: Key, session: Session) -> None:
        """Sees to it that a session is looked at when it is due; a moment that is too early costs one look."""
        due = session.due_at
        if self._closing and (closes_at := self._closing.get(key)) is not None:
            due = closes_at if due is None else min(due, closes_at)
        queued = self._queued.get(session.discriminator)
        if due is not None and (queued is None or due < queued):
            self._queued[session.discriminator] = due
            heappush(self._heap, (due, session.discriminator))


def _negotiated(session: Session) -> tuple[State, int, int]:
    return session.state, session.transmit_us, session.expected_us


def _peer_detection_us(session: Session) -> int:
    """How long AdminDown is to be said to a peer: its detection time for this side, within reason; 0 when it was never
    heard.
    """
    off = replace(session, state=State.ADMIN_DOWN, held_transmit_us=None)
    return min(session.settings.multiplier * off.transmit_us, MOST_CLOSING_US) if session.remote.discriminator else 0
