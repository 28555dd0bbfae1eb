"""The layouts of translation: flows from outside whose packets carry a Service's address on the wire.

Part of the one place for layouts: see ``layout.py`` for units and for what becomes of these records. A translated flow
has two entries, one for each direction, each under the packet as it is met; each says what the packet becomes, and so
where the other entry is.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from services.dataplane.core.datapath.wire import U8, U16, U32, U64, Addr, Flag, MaybeAddr, Port, Record

FIRST_PORT = 61_000
LAST_PORT = 65_535
"""Source ports of translated flows: beyond ``net.ipv4.ip_local_port_range`` (32768 to 60999 unless set), so that no
connection of the node's own has one."""
PORT_TRIES = 6
"""Ports tried for a flow before it is refused; the latter half may be those of flows that are not established."""


class Hook(IntEnum):
    """Where a packet is met: entries of one place are never found in another."""

    WIRE = 0
    """Received by an uplink: what clients send, and what backends elsewhere answer."""
    POD = 1
    """Sent by a pod of this node: a local backend's answers."""
    NODE = 2
    """Sent by this node's own stack through an uplink: a hostNetwork backend's answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NatKey(Record):
    """A packet of a translated flow, as it is met."""

    source: Addr
    destination: Addr
    source_port: Port
    destination_port: Port
    protocol: U8
    hook: U8
    hole: U16 = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Nat(Record):
    """What such a packet becomes. The first four members lie as those of NatKey do: copied and summed as one."""

    last_seen: U64
    source: Addr
    destination: Addr
    source_port: Port
    destination_port: Port
    service: U32
    """Number of the service that chose."""
    endpoint: U32
    """Endpoint number of a backend that is a pod of this node, else 0."""
    partner: U8
    """:class:`Hook` of the entry for the other direction."""
    is_back: Flag
    """The direction from the backend to the client."""
    seen: U8
    """``layout.Seen`` of the flow, the same in both entries."""
    hole: U8 = 0
    sent: U32 = 0
    """Of TCP, during the handshake: the backend's next sequence number."""
    expected: U32 = 0
    """Of TCP: the client's next sequence number, as the backend last acknowledged it."""
    cell: U32 = 0
    """Place in ``am_nat_recent`` counted from 1, the same in both entries; 0: none."""
    period: U32 = 0
    """Seconds that the flow may be idle, by what was seen of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAddresses(Record):
    """In whose name this node speaks to backends elsewhere when the client asked for an address that is not its own."""

    address4: MaybeAddr = None
    address6: MaybeAddr = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outward(Record):
    """When a packet last went to a backend that is this node itself; spares the node's own traffic a look."""

    last_node_flow: U64


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientKey(Record):
    """A client from outside and the service it asked for (ClientIP affinity)."""

    address: Addr
    service: U32
