"""What the agent and the process that runs BFD say to each other: lines of JSON over a unix socket.

The agent says all that it wants, each time; the process says the state of some or all sessions. Neither relies on a
message from before, so either may be new. ``version`` comes with each: a process that is asked in another version than
its own ends in good order, and the agent starts the one that belongs to it.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from proto.net import Address, from_wire, to_wire
from services.routing.core.bfd.session import Settings
from services.routing.core.bfd.sessions import Key
from services.routing.core.bfd.status import Status

SOCKET, LOCK, LOG = "bfd.sock", "bfd.lock", "bfd.log"
"""Names in the process' folder: where it listens, what it holds as long as it lives (its pid is in it), and what it
said when it died."""
VERSION = 1
"""Raised with every change of these messages that an older side would read wrongly."""
LONGEST = 8 << 20
"""Octets of a line; a session takes some 700."""


class Unreadable(ValueError):
    """A line that is no message of this version."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """One session as it is to be."""

    local: Address
    peer: Address
    interface: str
    settings: Settings

    @property
    def key(self) -> Key:
        """What it is between."""
        return Key(self.local, self.peer, self.interface)


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """From the agent."""

    version: int = VERSION
    wanted: tuple[Wanted, ...] = ()
    """All that there are to be."""
    linger_seconds: float = 0.0
    """How long sessions go on without an agent."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """From the process."""

    version: int = VERSION
    instance: int
    """Of this process; another one knows nothing of its sessions."""
    whole: bool
    """These are all sessions; else those that changed."""
    statuses: tuple[Status, ...]


_Message = TypeVar("_Message", Order, Report)
_encoder = msgspec.json.Encoder(enc_hook=to_wire)
_orders = msgspec.json.Decoder(Order, dec_hook=from_wire)
_reports = msgspec.json.Decoder(Report, dec_hook=from_wire)


def line(message: Order | Report) -> bytes:
    """The octets of a message."""
    return _encoder.encode(message) + b"\n"


def read_order(octets: bytes) -> Order:
    """Raises Unreadable, also for another version."""
    try:
        order = _orders.decode(octets)
    except (msgspec.DecodeError, ValueError) as error:
        raise Unreadable(str(error)) from error
    return _checked(order)


def read_report(octets: bytes) -> Report:
    """Raises Unreadable, also for another version."""
    try:
        report = _reports.decode(octets)
    except (msgspec.DecodeError, ValueError) as error:
        raise Unreadable(str(error)) from error
    return _checked(report)


def _checked(message: _Message) -> _Message:
    if message.version != VERSION:
        raise Unreadable(f"version {message.version}, not {VERSION}")
    return message
