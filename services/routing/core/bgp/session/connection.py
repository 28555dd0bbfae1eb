"""One connection of a BGP peer: its state, its timers as deadlines, and what of a message has come.

The table decides what becomes of the state; ``machine.py`` carries it out.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, auto

from services.routing.core.bgp.codec.messages import LARGEST, MessageKind, Open, split
from services.routing.core.bgp.codec.updates import UpdateReader
from services.routing.core.bgp.session.actions import OUTGOING, Link
from services.routing.core.bgp.session.table import State
from services.routing.core.bgp.values import Agreed, Capabilities


class Timer(Enum):
    """Timers of a connection (RFC 4271 10, RFC 9687), in the order in which they are looked at."""

    CONNECT_RETRY = auto()
    HOLD = auto()
    SEND_HOLD = auto()
    KEEPALIVE = auto()


class Connection:
    """A connection; :attr:`state` begins as Idle."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.state = State.IDLE
        self.timers: dict[Timer, float] = {}
        """When each of those that run expires."""
        self.not_before = 0.0
        """When it may start again."""
        self.opened = False
        """There is a TCP connection, or one is being made."""
        self.ours = Capabilities()
        """What this side has said in its OPEN."""
        self.theirs: Open | None = None
        self.agreed: Agreed | None = None
        self.reader: UpdateReader | None = None
        self.hold_seconds = 0
        self.largest = LARGEST
        self._rest = b""

    @property
    def passive(self) -> bool:
        """The peer makes it."""
        return self.link != OUTGOING

    def clear(self) -> None:
        """Nothing is left of the TCP connection, of what came by it and of what was agreed on."""
        self.timers.clear()
        self.opened = False
        self.theirs = self.agreed = self.reader = None
        self.hold_seconds = 0
        self.largest = LARGEST
        self._rest = b""

    def messages(self, octets: bytes) -> Iterator[tuple[MessageKind, memoryview]]:
        """The messages that are whole by now; what is left waits for more. Raises MessageError.

        What waits is less than one message, and ends with the connection.
        """
        whole = self._rest + octets if self._rest else octets
        found, consumed = split(whole, self.largest)
        self._rest = whole[consumed:]
        yield from found
