"""Flow events: the reasons of drops, and the published record of a dropped or forwarded packet.

:class:`DropReason` is the one list of reasons; the C header of the eBPF programs is generated from it. Numbers are part
of the published contract: never renumber, only append.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from proto.net import Address


class DropReason(IntEnum):
    """Why the datapath dropped (or, for the first two, let through) a packet."""

    FORWARDED = 0
    REPLY = 1
    POLICY_DENIED = 2
    """The subject is isolated in this direction and no rule allows the peer."""
    POLICY_UNKNOWN = 3
    """The subject's rules have not arrived: deny until known."""
    POLICY_REVOKED = 4
    """An established flow that the present policy no longer allows."""
    SPOOFED_ADDRESS = 5
    """Source address that the sender does not have."""
    SPOOFED_MAC = 6
    SPOOFED_NEIGHBOUR = 7
    """ARP, neighbour or router advertisement in another's name."""
    NOT_IP = 8
    MALFORMED = 9
    """Truncated, or a header that contradicts itself."""
    FRAGMENT = 10
    """A fragment without its first one, a tiny first one, or an overlap."""
    EXTENSION_HEADERS = 11
    """More IPv6 extension headers than are walked, or an unknown one."""
    CONNTRACK_FULL = 12
    CONNTRACK_BUDGET = 13
    """This endpoint has used up its share of the table."""
    TTL_EXCEEDED = 14
    ENDPOINT_GONE = 15
    LINK_UNKNOWN = 16
    """Seen on an interface that no endpoint is recorded for."""
    SERVICE_NO_BACKEND = 17
    """From outside to an external or load-balancer address of a Service that has no backend."""
    SERVICE_NO_LOCAL_BACKEND = 18
    """From outside to a Service whose external traffic policy is Local, and no backend of it is on this node."""
    SERVICE_SOURCE = 19
    """From outside to a Service that names the networks it may be reached from (loadBalancerSourceRanges)."""
    SERVICE_NO_SOURCE = 20
    """The node has no address, or no free source port, to speak to the chosen backend with."""
    TRANSLATION_UNKNOWN = 21
    """An answer whose translation is forgotten: the client would not know whom it is from."""
    NO_ROUTE = 22
    """A translated packet that this node has no way for, or that is too big for it."""
    SPOOFED_ERROR = 23
    """An ICMP error about a packet that was not sent to who reports it, or that nobody could tell from such a one."""
    TUNNEL_PEER = 24
    """A tunnel's packet from an address that no node of the cluster has, or that came into a tunnel device unjudged."""
    TUNNEL_SOURCE = 25
    """In a tunnel's packet: a source that is not the sending node's or its pods'."""
    TUNNEL_MALFORMED = 26
    """A tunnel's packet that is truncated, fragmented, of another VNI, holds a tunnel's packet or no IP packet, or has
    a forbidden combination of ECN fields (RFC 6040)."""
    UNENCRYPTED = 27
    """Between pods of two nodes, where encryption is asked for, and not by WireGuard."""
    TOO_BIG = 28
    """Longer than the way takes, and it cannot be fragmented here; the sender was told by an ICMP error."""


class FlowEvent(msgspec.Struct, frozen=True):
    """Body of ``airmesh.v1.flows.<node>.<verdict>``; published, lossy by design (``missed`` counts what was not sent).

    Verdict in the subject: ``dropped`` or ``forwarded``.
    """

    node: str
    time_ns: int
    """Wall clock, nanoseconds since 1970."""
    reason: str
    """Name of a :class:`DropReason`."""
    direction: str
    """``ingress`` or ``egress``, seen from the subject whose policy was asked."""
    source: Address
    destination: Address
    protocol: int
    source_port: int
    destination_port: int
    source_identity: int
    destination_identity: int
    source_name: str = ""
    """``namespace/pod``, a reserved identity's name, or empty when unknown; never whose address was forged."""
    destination_name: str = ""
    policies: tuple[str, ...] = ()
    """``namespace/name`` of the policies that decided (for a denial: those that isolate the subject)."""
    rule: int = -1
    revision: str = ""
    """``<epoch>:<sequence>`` of the subject's rules."""
    length: int = 0
    missed: int = 0
    """Events of this reason that were not sent since the last one."""
    interface: str = ""
    """Where the packet came by, when its source is forged: a pod's link, or a card of the node."""
