"""Every eBPF map of the datapath: its key, its value, its size. The one place for layouts.

The C structs are written from these records (``services/dataplane/bpf/generated.h``), so there is no second definition
to keep in step; at load the compiled maps are compared with :data:`MAPS` all the same, and a difference refuses.

Units: times are nanoseconds of CLOCK_MONOTONIC, addresses 16 bytes in network order (IPv4 mapped), ports big endian in
the kernel and plain integers here, identities as in ``proto.identity``.
Two keys are longest-prefix tries (``struct bpf_lpm_trie_key``: ``prefixlen`` first, counted in bits of what follows).
:class:`ScopePortKey` has its fields in the order in which they may be left open: protocol and port are the last 24
bits, so "any protocol" is a prefix of :data:`SCOPE_FIXED_BITS`, "any port" eight more, a port range a few prefixes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from ipaddress import IPv4Network, IPv6Network
from typing import Self

from services.dataplane.core.datapath.wire import (
    U8,
    U16,
    U32,
    U64,
    Addr,
    Address,
    Flag,
    Mac,
    MaybeAddr,
    Port,
    Record,
    Room136,
    Room208,
    Room1312,
    address_bytes,
)

MAPPED_BITS = 96
NO_RULE = 0xFFFFFFFF
"""Rule number of a verdict that no rule gave (isolation, or the absence of it)."""
REPLY_MARK = 0x0A150001
"""Mark of a packet that a pod sends in reply: netfilter never saw the packet it answers (it came by redirect), so it
would take the reply for something new and masquerade it."""
SENT_MARK = 0x0A150003
"""Mark of a packet that a program has judged and sends out of the node: ``to_wire`` lets it pass and takes it off."""
WORK_FIB = 648
"""Where in :class:`Scratch` the kernel's last answer of a route stands: ``struct bpf_fib_lookup`` (packet.h)."""
MAX_EXPIRED = 32
"""Conntrack entries that one run of the collecting program takes."""
FRAGMENTS_EACH = 128
"""Fragmented packets of one sender that are remembered at a time: the next takes the place of an older one of its own.
Fragments of a packet follow each other closely, so more are only ever there in a flood."""
FRAGMENT_SENDERS = 64
"""Senders of one link that are told apart, by a hash of their address."""


class MapKind(IntEnum):
    """``enum bpf_map_type`` of the kernel (include/uapi/linux/bpf.h)."""

    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    RINGBUF = 27


class PeerFlag(IntFlag):
    """What kind of address an entry of ``am_ipcache`` is."""

    POD = 1
    """A pod of the cluster: routed by the fast path when it is not local."""
    NODE = 2


class UplinkFlag(IntFlag):
    """What an interface of ``am_uplinks`` may bring."""

    LOCAL = 1
    """What the node sends to itself (loopback): any source is believed. Without it: pods and nodes elsewhere."""


class FlowFlag(IntFlag):
    """How a conntrack entry came to be."""

    HOST = 1
    """Begun by this node itself: no policy is asked (the kubelet's probes)."""
    TRANSLATED = 2
    """Its packets come by a Service's address: the replies have a translation to find."""


class Locality(IntEnum):
    """Where a flow's peer is, as seen from this node."""

    LOCAL = 1
    """The node itself, or a pod of it."""
    REMOTE = 2
    REMOTE_POD = 3
    """A pod of another node."""


class Seen(IntFlag):
    """What of a flow has been seen; decides how long it may be idle (``core/conntrack/state.py``)."""

    REPLY = 1
    FIN_ORIGINAL = 2
    FIN_REPLY = 4
    RESET = 8
    ESTABLISHED = 16
    """TCP: the handshake is done, or both directions of a flow older than its entry were seen. Others: a second
    exchange. What lacks it is the first to go under pressure."""
    SYN = 32
    """The flow began with a SYN that was seen; without it, it is older than its entry."""
    AGAIN = 64
    """Not TCP: the originator sent again after an answer."""
    ONE_SHOT = 128
    """A query to port 53 over UDP: never more than a question and its answers."""


class ConfigFlag(IntFlag):
    """Switches of the datapath."""

    EMIT_FORWARDED = 1
    """Also send an event for each new flow that was let through."""
    ENCRYPT4 = 2
    """Between pods of two nodes IPv4 packets go out by WireGuard alone."""
    ENCRYPT6 = 4
    """The same of IPv6."""
    TUNNELS = 8
    """There is something in ``am_tunnels``, or in what belongs to it (``tunnel_layout.py``)."""
    REFUSE_PLAIN4 = 16
    """What came in the clear from an IPv4 address of another node's pod is not taken."""
    REFUSE_PLAIN6 = 32
    """The same of IPv6."""
    MEASURE_DNS = 64
    """Pods' DNS is measured (``dns_layout.py``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkKey(Record):
    """A host veth, by interface index in the node's namespace."""

    ifindex: U32


@dataclass(frozen=True, slots=True, kw_only=True)
class Link(Record):
    """The pod behind a host veth: what it may call itself. ``None`` where it lacks a family."""

    identity: U64
    address4: MaybeAddr
    address6: MaybeAddr
    mac: Mac
    flags: U16 = 0
    endpoint: U32


@dataclass(frozen=True, slots=True, kw_only=True)
class Uplink(Record):
    """An interface whose packets may have the address of somebody in the cluster (``UplinkFlag``)."""

    flags: U32 = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressKey(Record):
    """An address of a pod of this node."""

    address: Addr


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint(Record):
    """Where a local pod's packets go: its host veth, and the MACs of both ends (pod first: copied as one)."""

    identity: U64
    ifindex: U32
    endpoint: U32
    mac: Mac
    host_mac: Mac
    flags: U16 = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixKey(Record):
    """A prefix; ``prefixlen`` counts bits of the 16-byte form, so an IPv4 /24 is 120."""

    prefixlen: U32
    address: Addr

    @classmethod
    def of(cls, network: IPv4Network | IPv6Network) -> Self:
        """The key of a prefix as people write it."""
        base = MAPPED_BITS if network.version == 4 else 0
        return cls(prefixlen=base + network.prefixlen, address=network.network_address)

    @classmethod
    def host(cls, address: Address) -> Self:
        """The key of a single address."""
        return cls(prefixlen=128, address=address)

    @property
    def network(self) -> IPv4Network | IPv6Network:
        """The prefix as people write it."""
        if self.address.version == 4 and self.prefixlen >= MAPPED_BITS:
            return IPv4Network((self.address.packed, self.prefixlen - MAPPED_BITS))
        return IPv6Network((address_bytes(self.address), self.prefixlen))


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer(Record):
    """Whose an address is. An address without an entry is ``Reserved.WORLD``."""

    identity: U64
    flags: U32 = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Index(Record):
    """Key of an array."""

    index: U32


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation(Record):
    """Raised after every change that policy depends on: makes live flows be judged again."""

    number: U32


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowKey(Record):
    """A flow as the pod it is tracked for sees it: one key for both directions, whoever began."""

    local: Addr
    remote: Addr
    local_port: Port
    remote_port: Port
    protocol: U8


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow(Record):
    """A flow that was let through, and the policy generation it was judged under.

    ``side`` (``proto.policy.Direction``): EGRESS when the pod began it, INGRESS when its peer did. ``locality`` is
    ``generation << 8 | Whereabouts``: what was found in that generation, and holds as long; one word, written at once.
    Of TCP, ``sent`` is the pod's next sequence number during the handshake, ``expected`` its peer's: what the pod last
    acknowledged. ``cell`` is its place in ``am_ct_recent`` counted from 1, 0 where it has none.
    """

    last_seen: U64
    locality: U64 = 0
    generation: U32
    endpoint: U32
    rule: U32
    sent: U32 = 0
    expected: U32 = 0
    cell: U32 = 0
    seen: U8
    flags: U8
    side: U8


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointKey(Record):
    """An endpoint by its number on this node."""

    endpoint: U32


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget(Record):
    """How many flows an endpoint has, and may have: those that others began (ingress) apart from its own (egress).

    Without an entry it may have none. Its newest flows are remembered in the sets ``first`` to ``first + mask`` of
    ``am_ct_recent``. The entry of endpoint :data:`NODE` counts all flows of the node under ``ingress``; beyond its
    limit the table is nearly full, and every endpoint may have an eighth of its own limits.
    """

    ingress_limit: U64
    egress_limit: U64
    ingress: U64 = 0
    egress: U64 = 0
    first: U32 = 0
    mask: U32 = 0

    @property
    def count(self) -> int:
        """Flows of both directions."""
        return self.ingress + self.egress


NODE = 0
"""Endpoint number that no pod has (it is an interface's index): the whole node's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recent(Record):
    """Four places for flows that are not established (``struct am_recent_set`` in bpf/recent.h)."""

    room: Room208


@dataclass(frozen=True, slots=True, kw_only=True)
class Held(Record):
    """How many established flows peers hold whose hash is this place's, at one endpoint (or another of this hash)."""

    count: U64


@dataclass(frozen=True, slots=True, kw_only=True)
class FragmentKey(Record):
    """A place for a fragmented packet, on the link that it comes by (0: the node itself).

    Chosen by hashes of its sender and of itself: ``FRAGMENTS_EACH`` places for each of ``FRAGMENT_SENDERS``.
    """

    link: U32
    slot: U32


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment(Record):
    """Whose place it is (RFC 791, RFC 8200 4.5), and what the first fragment said, for those after it."""

    source: Addr
    destination: Addr
    identification: U32
    source_port: Port
    destination_port: Port
    protocol: U32


@dataclass(frozen=True, slots=True, kw_only=True)
class Event(Record):
    """What the ring buffer carries: one packet's verdict. Numbers as in ``proto.flow`` and ``proto.policy``."""

    time: U64
    subject: U64
    peer: U64
    source: Addr
    destination: Addr
    length: U32
    ifindex: U32
    endpoint: U32
    rule: U32
    missed: U32
    policy: U32
    """The policy that was asked (:attr:`~.policy_layout.Subject.policy`); 0 = none was."""
    source_port: Port
    destination_port: Port
    reason: U16
    protocol: U8
    direction: U8


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric(Record):
    """Packets and bytes of one (reason, direction), on one processor."""

    packets: U64
    bytes: U64


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Record):
    """Switches. Rates are for each endpoint and reason on each processor; events beyond are counted, not sent."""

    flags: U32 = 0
    events_per_second: U32 = 100
    events_burst: U32 = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class NextHop(Record):
    """A question to the kernel's routing table and its answer (``struct am_known_hop`` in bpf/fib.h).

    Good for the tick of the kernel's clock (jiffies) whose number stands in the upper 56 bits of the first word.
    """

    room: Room136


@dataclass(frozen=True, slots=True, kw_only=True)
class Scratch(Record):
    """Room for one packet while a program looks at it (``struct am_work``); means nothing to anybody else."""

    room: Room1312


@dataclass(frozen=True, slots=True, kw_only=True)
class ThrottleKey(Record):
    """One stream of events."""

    endpoint: U32
    reason: U32


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttle(Record):
    """A token bucket, and the events it has held back since the last one sent."""

    last: U64
    tokens: U32
    missed: U32


@dataclass(frozen=True, slots=True, kw_only=True)
class CookieKey(Record):
    """A network namespace by its cookie (``SO_NETNS_COOKIE``)."""

    cookie: U64


@dataclass(frozen=True, slots=True, kw_only=True)
class CookieMark(Record):
    """The socket programs act in this namespace; ``node`` where it is the node's own."""

    node: Flag = False
