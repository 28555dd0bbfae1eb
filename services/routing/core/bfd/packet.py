"""BFD control packets: bytes to values and back, and why a packet is discarded (RFC 5880 4.1, 6.8.6).

Only what a packet says by itself is judged by ``read_packet``, in the RFC's order; what depends on a session is judged
by ``core.bfd.sessions``. No session uses authentication: a packet that carries it is discarded there. Intervals are
microseconds, as on the wire.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum, IntEnum

PORT = 3784
"""UDP port of control packets on one hop (RFC 5881 4)."""
HOPS = 255
"""TTL or hop limit that is sent, and demanded of what comes (RFC 5881 5)."""
SHORTEST = 24
"""Octets of a packet without an authentication section."""
SHORTEST_AUTHENTICATED = 26
_VERSION = 1
_LENGTH_READ = 4
"""Octets up to and with the length field."""
_FORM = struct.Struct("!BBBBIIIII")
_POLL, _FINAL, _INDEPENDENT, _AUTHENTICATED, _DEMAND, _MULTIPOINT = 0x20, 0x10, 0x08, 0x04, 0x02, 0x01


class State(IntEnum):
    """State of a session (RFC 5880 4.1)."""

    ADMIN_DOWN = 0
    DOWN = 1
    INIT = 2
    UP = 3


class Diagnostic(IntEnum):
    """Why a session changed its state last (RFC 5880 4.1)."""

    NONE = 0
    TIME_EXPIRED = 1
    ECHO_FAILED = 2
    NEIGHBOR_DOWN = 3
    FORWARDING_RESET = 4
    PATH_DOWN = 5
    CONCATENATED_PATH_DOWN = 6
    ADMIN_DOWN = 7
    REVERSE_CONCATENATED_PATH_DOWN = 8


class Discard(Enum):
    """Why a packet is discarded; the value is the reason in words. In the order of RFC 5880 6.8.6, GTSM first."""

    HOPS = "its TTL is not 255: it came through a router (RFC 5881 5)"
    VERSION = "its version is not 1"
    LENGTH = "its length field is below 24, or below 26 with authentication"
    TRUNCATED = "its length field is greater than the packet"
    MULTIPLIER = "its detection multiplier is 0"
    MULTIPOINT = "its multipoint bit is set"
    MY_DISCRIMINATOR = "its own discriminator is 0"
    NO_SESSION = "no session has the discriminator that it names"
    SENDER = "it names the discriminator of a session with another peer"
    STATE = "it names no discriminator and its state is neither Down nor AdminDown"
    NO_PEER = "no session is with its sender"
    AUTHENTICATED = "it is authenticated, and no session uses authentication"
    ADMIN_DOWN = "the session is switched off at this side"


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPacket:
    """A control packet (RFC 5880 4.1)."""

    state: State
    diagnostic: int = 0
    """0 to 31; :class:`Diagnostic` names those that are assigned."""
    poll: bool = False
    final: bool = False
    independent: bool = False
    """C bit: the sender's BFD goes on when its control plane ends."""
    authenticated: bool = False
    """A bit. Never set in what is written."""
    demand: bool = False
    multiplier: int
    my_discriminator: int
    your_discriminator: int = 0
    transmit_us: int
    """Desired Min TX Interval."""
    receive_us: int
    """Required Min RX Interval; 0: the sender wants no periodic packets."""
    echo_us: int = 0
    """Required Min Echo RX Interval; 0: the sender returns no echo packets."""


def write_packet(packet: ControlPacket) -> bytes:
    """The 24 octets of a packet."""
    bits = (_POLL * packet.poll) | (_FINAL * packet.final) | (_INDEPENDENT * packet.independent)
    return _FORM.pack(
        _VERSION << 5 | packet.diagnostic,
        packet.state << 6 | bits | (_DEMAND * packet.demand),
        packet.multiplier,
        SHORTEST,
        packet.my_discriminator,
        packet.your_discriminator,
        packet.transmit_us,
        packet.receive_us,
        packet.echo_us,
    )


def read_packet(payload: bytes) -> ControlPacket | Discard:
    """What a UDP payload says, or the first check of RFC 5880 6.8.6 that it fails. Raises nothing."""
    if not payload or payload[0] >> 5 != _VERSION:
        return Discard.VERSION
    if len(payload) < _LENGTH_READ:
        return Discard.TRUNCATED
    authenticated, length = bool(payload[1] & _AUTHENTICATED), payload[3]
    if length < (SHORTEST_AUTHENTICATED if authenticated else SHORTEST):
        return Discard.LENGTH
    if length > len(payload):
        return Discard.TRUNCATED
    first, flags, multiplier, _, mine, yours, transmit_us, receive_us, echo_us = _FORM.unpack_from(payload)
    if multiplier == 0:
        return Discard.MULTIPLIER
    if flags & _MULTIPOINT:
        return Discard.MULTIPOINT
    if mine == 0:
        return Discard.MY_DISCRIMINATOR
    return ControlPacket(
        state=State(flags >> 6),
        diagnostic=first & 0x1F,
        poll=bool(flags & _POLL),
        final=bool(flags & _FINAL),
        independent=bool(flags & _INDEPENDENT),
        authenticated=authenticated,
        demand=bool(flags & _DEMAND),
        multiplier=multiplier,
        my_discriminator=mine,
        your_discriminator=yours,
        transmit_us=transmit_us,
        receive_us=receive_us,
        echo_us=echo_us,
    )
