"""The layouts of load balancing: frontends, their backends, who may come, what clients and sockets remember.

Part of the one place for layouts: see ``layout.py`` for units and for what becomes of these records.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from ipaddress import IPv4Network, IPv6Network
from typing import Self

from services.dataplane.core.datapath.layout import PrefixKey
from services.dataplane.core.datapath.wire import U8, U32, U64, Addr, Port, Record


class Scope(IntEnum):
    """Who a service's entry is for: one address may have two, with backends of their own."""

    SOCKET = 0
    """Sockets of this node and its pods: chosen in connect and sendmsg, whatever the external traffic policy says."""
    PACKET = 1
    """Packets that an uplink receives: node ports, host ports, external and load-balancer addresses."""


class ServiceFlag(IntFlag):
    """What is special about a service's entry."""

    NODE_ONLY = 1
    """Scope SOCKET: for sockets of the node's own namespace alone (a host port on 127.0.0.1)."""
    FOREIGN = 2
    """Scope PACKET: the address is not the node's own, so its stack must never see the packet."""
    LOCAL_ONLY = 4
    """Scope PACKET: the client's address is kept and all backends are pods of this node; with none, drop in silence
    (externalTrafficPolicy: Local)."""
    SOURCE_RANGES = 8
    """Scope PACKET: only clients in ``am_src_ranges``; all others are dropped."""


class AffinityKind(IntEnum):
    """What :attr:`AffinityKey.client` is a cookie of."""

    NAMESPACE = 0
    SOCKET = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceKey(Record):
    """A virtual address, port and protocol, as sockets of this node see it or as packets from outside do."""

    address: Addr
    port: Port
    protocol: U8
    scope: U8 = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Service(Record):
    """Its backends are ``am_backends[number, 0 … backends - 1]``; with none, connections are refused.

    For a single one ``am_backends[number, 1]``, where there is such an entry, stands in while it refuses.
    """

    number: U32
    backends: U32
    affinity_seconds: U32 = 0
    flags: U32 = 0
    """:class:`ServiceFlag`"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRangeKey(Record):
    """A prefix that may reach a service from outside; ``prefixlen`` counts the service's 32 bits too."""

    prefixlen: U32
    service: U32
    address: Addr

    @classmethod
    def of(cls, service: int, network: IPv4Network | IPv6Network) -> Self:
        """The key of a prefix as people write it (spec.loadBalancerSourceRanges)."""
        prefix = PrefixKey.of(network)
        return cls(prefixlen=32 + prefix.prefixlen, service=service, address=prefix.address)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRange(Record):
    """Its presence allows."""

    mark: U32 = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendKey(Record):
    """The index-th backend of a service."""

    service: U32
    index: U32


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend(Record):
    """Where a connection really goes."""

    address: Addr
    port: Port


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceKey(Record):
    """The 128-bit key of the hash by which a flow from outside chooses its backend, the same on all nodes."""

    first: U64 = 0
    second: U64 = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberKey(Record):
    """A backend by what it is: tells whether a remembered one still serves."""

    service: U32
    address: Addr
    port: Port


@dataclass(frozen=True, slots=True, kw_only=True)
class Member(Record):
    """Its index in ``am_backends``."""

    index: U32


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedKey(Record):
    """A backend of any service."""

    address: Addr
    port: Port
    protocol: U8
    """IANA number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused(Record):
    """When it refused last."""

    last: U64
    """Nanoseconds of the coarse monotonic clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AffinityKey(Record):
    """A client of a service: a network namespace (ClientIP affinity) or a UDP socket."""

    client: U64
    service: U32
    kind: U32


@dataclass(frozen=True, slots=True, kw_only=True)
class Affinity(Record):
    """The backend it had, and when."""

    last: U64
    address: Addr
    port: Port


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot(Record):
    """Which connected socket has this place in ``am_sent``: the last one of those with this ``cookie % SLOTS``."""

    socket: U64 = 0
    """Its cookie; 0 while the place is free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent(Record):
    """Where a socket that connected was sent, and the virtual address that it had asked for."""

    address: Addr
    virtual: Addr
    port: Port
    virtual_port: Port


@dataclass(frozen=True, slots=True, kw_only=True)
class ReverseKey(Record):
    """A backend as one socket sees it."""

    socket: U64
    address: Addr
    port: Port


@dataclass(frozen=True, slots=True, kw_only=True)
class Virtual(Record):
    """The virtual address that the socket asked for."""

    address: Addr
    port: Port
