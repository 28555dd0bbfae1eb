"""The listener of the BGP speaker: one for all peers, on the addresses that are given.

A connection of nobody's, or of a peer that comes too often, is closed at once by a reset: it costs an accept(2) and a
look-up, and leaves nothing behind. With a password the kernel answers none that is not signed. An address that cannot
be listened on, as it is not there yet, is tried again.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from proto.net import Address
from services.routing.bgp.sockets import Opener, Refused, bound_distance, family_of, listening, sign, source_of
from services.routing.core.bgp.peers import Peer
from services.routing.core.bgp.session.admission import Admission, Source
from services.routing.core.bgp.session.reasons import Reason

AGAIN = 5.0
"""Seconds until an address is tried again."""
AT_ONCE = 64
"""Connections that are accepted before others have their share of the loop."""
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: close by a reset, and keep no state."""


class Listener:
    """``listen`` on addresses, ``follow`` the peers."""

    def __init__(self, opener: Opener, accepted: Callable[[str, socket.socket], None]) -> None:
        """``accepted`` is given the peer's name and the socket, which is its own from then on."""
        self._opener = opener
        self._accepted = accepted
        self._loop = asyncio.get_running_loop()
        self._sockets: dict[tuple[Address, int], socket.socket] = {}
        self._wanted: frozenset[tuple[Address, int]] = frozenset()
        self._admission = Admission()
        self._peers: dict[str, Peer] = {}
        self._retry: asyncio.TimerHandle | None = None
        self.faults: dict[Address, Reason] = {}
        """Addresses that cannot be listened on."""
        self.refused = 0
        """Connections that were closed at once."""

    def listen(self, addresses: Iterable[Address], port: int) -> None:
        """Listen on these addresses, and on no other."""
        self._wanted = frozenset((address, port) for address in addresses)
        for key in self._sockets.keys() - self._wanted:
            self._shut(self._sockets.pop(key))
        self._open()

    def follow(self, peers: Mapping[str, Peer]) -> dict[str, Reason]:
        """Accept these peers' connections, each with its password; names of those that the kernel does not sign for."""
        before = self._signed()
        self._peers = dict(peers)
        self._admission.follow({source(peer): name for name, peer in peers.items()})
        for address in before - self._signed():
            for opened in self._sockets.values():
                if opened.family == family_of(address):
                    sign(opened, address, None)
        return self._sign(self._sockets.values())

    def close(self) -> None:
        """Close all sockets."""
        if self._retry is not None:
            self._retry.cancel()
        for opened in self._sockets.values():
            self._shut(opened)
        self._sockets.clear()

    def _signed(self) -> set[Address]:
        sessions = (peer.session for peer in self._peers.values())
        return {session.address for session in sessions if session.password}

    def _sign(self, sockets: Iterable[socket.socket]) -> dict[str, Reason]:
        refused: dict[str, Reason] = {}
        for opened in sockets:
            for name, peer in self._peers.items():
                session = peer.session
                if session.password and opened.family == family_of(session.address):
                    try:
                        sign(opened, session.address, session.password)
                    except Refused as error:
                        refused[name] = error.reason
        return refused

    def _open(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self.faults.clear()
        for address, port in self._wanted - self._sockets.keys():
            try:
                opened = listening(self._opener, address, port)
            except Refused as error:
                self.faults[address] = error.reason
                continue
            self._sockets[address, port] = opened
            self._sign([opened])
            self._loop.add_reader(opened, self._accept, opened)
        if self.faults:
            self._retry = self._loop.call_later(AGAIN, self._open)

    def _accept(self, opened: socket.socket) -> None:
        for _ in range(AT_ONCE):
            try:
                accepted, other = opened.accept()
            except OSError:  # none is left, or it has gone already
                return
            self._judge(accepted, other)

    def _judge(self, accepted: socket.socket, other: tuple[str, int]) -> None:
        name = self._admitted(accepted, other)
        if name is None:
            self.refused += 1
            refuse(accepted)
        else:
            self._accepted(name, accepted)

    def _admitted(self, accepted: socket.socket, other: tuple[str, int]) -> str | None:
        try:
            name = self._admission.admit(source_of(other), self._loop.time())
            if name is not None:
                accepted.setblocking(False)
                bound_distance(accepted, self._peers[name].session)
        except OSError:  # the interface, or the connection, is gone already
            return None
        return name

    def _shut(self, opened: socket.socket) -> None:
        self._loop.remove_reader(opened)
        opened.close()


def source(peer: Peer) -> Source:
    """What a peer's connections come from."""
    session = peer.session
    return session.address, session.interface if session.address.is_link_local else ""


def refuse(accepted: socket.socket) -> None:
    """Close a connection by a reset."""
    with suppress(OSError):
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    accepted.close()
