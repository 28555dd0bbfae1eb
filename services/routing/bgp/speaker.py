"""The BGP speaker of a node: its peers' sessions and their listener, as one thing that an agent holds.

``follow`` says which peers there should be. A peer whose session is to be held in another way gets a new one, one that
is gone hears so by a NOTIFICATION, and nobody else's session is touched. What happens is reported to the owner by
plain calls in the event loop (``session.Owner``).

A planned restart is ``suspend``, then ``close``: peers with graceful restart keep the routes. After a restart
``restarting_until`` says, in the loop's time, until when peers are asked for all their routes before any is chosen.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace

from proto.net import Address
from services.routing.bgp.keepalives import Keepalives
from services.routing.bgp.listener import Listener, refuse, source
from services.routing.bgp.session import Owner, PeerState, Session
from services.routing.bgp.sockets import Opener, tcp_socket
from services.routing.core.bgp.codec.errors import Cease
from services.routing.core.bgp.peers import Peer, SessionSettings
from services.routing.core.bgp.session.admission import Source
from services.routing.core.bgp.session.machine import Machine
from services.routing.core.bgp.session.reasons import Reason

CHANGED_AGAIN = 0.5
"""Seconds from the end of a session to the next one with other settings: the peer hears of the end first. One that sees
the new connection before would take it for a restart.
"""
MOST_PREFIXES_AGAIN = 60.0
"""Seconds until a peer that announced too much may come again; up to eight times as long when it goes on."""


class Speaker:
    """Sessions with peers. Made in a running event loop, used from it alone."""

    def __init__(
        self,
        owner: Owner,
        *,
        opener: Opener = tcp_socket,
        chance: Callable[[], float] = random.random,
        restarting_until: float | None = None,
        preserved: bool = True,
    ) -> None:
        """``opener`` makes sockets, in another network namespace if need be; ``preserved``: the kernel kept the routes
        over this speaker's restart.
        """
        self._owner = owner
        self._opener = opener
        self._chance = chance
        self._restarting_until = restarting_until
        self._preserved = preserved
        self._loop = asyncio.get_running_loop()
        self._keepalives = Keepalives()
        self._sessions: dict[str, Session] = {}
        self._peers: dict[str, Peer] = {}
        self._shut_down: set[str] = set()
        self._refused: dict[str, Reason] = {}
        self._captured: Callable[[str], bool] = lambda _: False
        self.listener = Listener(opener, self._accepted)

    def listen(self, addresses: Iterable[Address], port: int = 179) -> None:
        """Accept connections of peers on these addresses alone; faults are in ``listener.faults``."""
        self.listener.listen(addresses, port)

    def follow(self, peers: Mapping[str, Peer], suspended: Container[str] = ()) -> None:
        """Hold a session with each of these peers, by name, and with nobody else. Of others those that are to be
        ``suspended`` keep the routes for the time of a restart.
        """
        peers, self._refused = _distinct(peers)
        for name in self._sessions.keys() - peers.keys():
            self._end(name, None if name in suspended else Cease.PEER_DECONFIGURED)
        changed = [name for name, peer in peers.items() if self._is_new(name, peer)]
        replaced = self._sessions.keys() & changed
        for name in replaced:
            self._end(name, Cease.CONFIGURATION_CHANGE)
        self._shut_down &= peers.keys()
        self._peers = dict(peers)
        self._refused |= self.listener.follow(self._peers)
        for name in changed:
            self._begin(name, peers[name].session, after=CHANGED_AGAIN if name in replaced else 0.0)

    def send(self, name: str, messages: Sequence[bytes]) -> bool:
        """Send messages by a peer's session. False: there is none, or too much waits; then none of them is sent, and
        in the second case ``Owner.writable`` follows.
        """
        session = self._sessions.get(name)
        return session is not None and session.send(messages)

    def shut_down(self, name: str, text: str = "") -> None:
        """End a peer's session until ``enable``, with a text for its operator (RFC 9003)."""
        self._shut_down.add(name)
        if (session := self._sessions.get(name)) is not None:
            session.act(session.machine.stop(self._loop.time(), Cease.ADMINISTRATIVE_SHUTDOWN, text=text))

    def enable(self, name: str) -> None:
        """Hold a session that was shut down."""
        self._shut_down.discard(name)
        if (session := self._sessions.get(name)) is not None:
            session.act(session.machine.start(self._loop.time()))

    def reset(
        self, name: str, cease: Cease = Cease.ADMINISTRATIVE_RESET, *, text: str = "", after: float = 1.0
    ) -> None:
        """End a peer's session with a Cease, and begin again after so many seconds, more where that is repeated."""
        if (session := self._sessions.get(name)) is not None and name not in self._shut_down:
            session.act(session.machine.stop(self._loop.time(), cease, text=text, again_after=after))

    def is_established(self, name: str) -> bool:
        """There is a session with a peer."""
        session = self._sessions.get(name)
        return session is not None and session.machine.session is not None

    def is_restarting(self, name: str) -> bool:
        """Routes of a peer are kept while its session is down (RFC 4724 4.2). What it has sent is read before, so that
        a loop that was late knows of a connection that has ended.
        """
        if (session := self._sessions.get(name)) is None:
            return False
        session.read()
        return session.machine.session is None and bool(session.machine.stale)

    def refuse_prefixes(self, name: str, content: bytes = b"") -> None:
        """A peer has announced more than it may (RFC 4486 4); ``content``: AFI, SAFI and the bound."""
        if (session := self._sessions.get(name)) is not None:
            cease = Cease.MAXIMUM_PREFIXES
            stop = session.machine.stop
            session.act(stop(self._loop.time(), cease, content=content, again_after=MOST_PREFIXES_AGAIN))

    def states(self) -> dict[str, PeerState]:
        """All peers as they are now, those that cannot be held a session with, too."""
        return {name: self._state(name, session) for name, session in self._sessions.items()}

    def state(self, name: str) -> PeerState | None:
        """One peer as it is now; None: there is none of that name."""
        session = self._sessions.get(name)
        return self._state(name, session) if session is not None else None

    def _state(self, name: str, session: Session) -> PeerState:
        state, refused = session.state(), self._refused.get(name)
        return state if refused is None else replace(state, fault=refused)

    @property
    def refused(self) -> dict[str, Reason]:
        """Peers that there cannot be a session with, as they are configured."""
        return dict(self._refused)

    def capture(self, captured: Callable[[str], bool]) -> None:
        """Tell the owner each message of the peers, by name, that ``captured`` is true of now, or when they come."""
        self._captured = captured
        for name, session in self._sessions.items():
            session.capture(captured(name))

    def suspend(self) -> None:
        """End all sessions for a restart of this speaker: peers keep the routes if they can."""
        for session in self._sessions.values():
            session.act(session.machine.suspend(self._loop.time()))

    def close(self) -> None:
        """Let go of all sockets and of the thread; sessions that are still up end without a word."""
        self.listener.close()
        for session in self._sessions.values():
            session.close()
        self._keepalives.close()

    def _is_new(self, name: str, peer: Peer) -> bool:
        """Its session is to be held in another way, or has none yet."""
        return name not in self._sessions or _held(self._sessions[name].settings) != _held(peer.session)

    def _begin(self, name: str, settings: SessionSettings, after: float) -> None:
        machine = Machine(settings, self._chance, restarting_until=self._restarting_until, preserved=self._preserved)
        session = Session(name, machine, self._owner, self._keepalives, self._opener)
        self._sessions[name] = session
        session.capture(self._captured(name))
        if name not in self._shut_down:
            session.act(machine.start(self._loop.time(), after))

    def _end(self, name: str, cease: Cease | None) -> None:
        """End a session for good; None: as if for a restart."""
        session, now = self._sessions[name], self._loop.time()
        session.act(session.machine.suspend(now) if cease is None else session.machine.stop(now, cease))
        session.close()
        del self._sessions[name]

    def _accepted(self, name: str, opened: socket.socket) -> None:
        session = self._sessions.get(name)
        if session is None:
            refuse(opened)
        else:
            session.accepted(opened)


def _held(settings: SessionSettings) -> SessionSettings:
    """What of a session's settings a change of which needs another session."""
    return replace(settings, bfd=False)


def _distinct(peers: Mapping[str, Peer]) -> tuple[dict[str, Peer], dict[str, Reason]]:
    """Peers that can be told apart by their address, and why others cannot: the first by name stays."""
    kept: dict[Source, str] = {}
    for name in sorted(peers):
        kept.setdefault(source(peers[name]), name)
    reasons = {
        name: Reason(f"peer {other} has the same address, {peer.session.address}", "remove one of the two")
        for name, peer in peers.items()
        if (other := kept[source(peer)]) != name
    }
    return {name: peer for name, peer in peers.items() if name not in reasons}, reasons
