"""The list of maps: which records go into which, of what type, how many, and what each is for.

Names have at most 15 characters (``BPF_OBJ_NAME_LEN`` counts the closing zero). Sizes bound memory: a full hash refuses
an entry, which the datapath answers with a drop and the agent with an error, never with a silent "allow". The sizes
here are those of a fresh map; hashes and tries may be larger (``core.datapath.sizes``), and are what they are when
pinned. What an upgrade does with each map is said in ``core.datapath.pins``. ``am_ct`` is a plain hash on purpose: an
LRU would evict live flows under pressure. ``am_nat`` is one all the same: flows from outside have no endpoint whose
share they could be counted against. Beside each stands a table of the flows that are not established yet,
``am_ct_recent`` and ``am_nat_recent``: a newcomer takes the place of an elder there, and that one's flow goes. So they
are never more than a quarter of the entries.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.dataplane.core.datapath import dns_layout as dns
from services.dataplane.core.datapath import layout as at
from services.dataplane.core.datapath import nat_layout as nat
from services.dataplane.core.datapath import policy_layout as pl
from services.dataplane.core.datapath import service_layout as lb
from services.dataplane.core.datapath import tunnel_layout as tl
from services.dataplane.core.datapath.layout import MapKind
from services.dataplane.core.datapath.wire import Record

NO_PREALLOC = 1
"""``BPF_F_NO_PREALLOC``: what tries must have, and what large, seldom full tables should."""

CONNTRACK_ENTRIES = 131_072
"""The fewest. About 18 MB, allocated at the start: a full table is a clean refusal, an allocation failing in softirq is
not."""
MOST_CONNTRACK_ENTRIES = 1_048_576
MEMORY_OF_AN_ENTRY = 32_768
"""Bytes of the node's memory for each entry (of some 140 bytes) by default: 524,288 for 16 GiB, 0.4 % of it."""

WAYS = 4
"""Places in a set of ``am_ct_recent`` and ``am_nat_recent``."""
RECENT_SETS = 32_768
"""A power of two. 6.5 MB; a table of fewer than 524,288 entries uses as many of its sets as are a quarter of it."""
NAT_RECENT_SETS = 2048
"""A power of two. Two entries a flow: at most a quarter of the fewest :data:`NAT_ENTRIES`."""
HELD = 65_536
"""A power of two. Two peers have the same place by accident once in as many."""

NEXT_HOP_SLOTS = 1024
"""A power of two; 139 KB a processor. Two flows that use one place ask the routing table each time."""
FRAGMENT_ENTRIES = 32_768
"""About 3.5 MB: an uplink whose every place is taken, and 192 pods that all flood. An LRU: links come and go."""

NAT_ENTRIES = 65_536
"""The fewest; grows as conntrack does. Two a flow, about 11 MB. An LRU: strangers fill it, so the longest unused flow
must make room for the next."""

SLOTS = 65_536
"""Places for connected sockets, a power of two. Cookies are counted up, so neighbours in time are neighbours in memory;
two arrays, 0.5 and 2.6 MB, since every socket that closes looks into the first."""


@dataclass(frozen=True, slots=True)
class MapSpec:
    """One map. ``key`` and ``value`` are None for the ring buffer, whose ``entries`` is its size in bytes."""

    name: str
    kind: MapKind
    key: type[Record] | None
    value: type[Record] | None
    entries: int
    purpose: str
    flags: int = 0
    revision: int = 0
    """Raised when entries come to mean something else though they lie as before: then none is taken over."""

    @property
    def key_size(self) -> int:
        """Bytes of a key."""
        return self.key.wire().size if self.key else 0

    @property
    def value_size(self) -> int:
        """Bytes of a value (of one processor's, for a per-CPU map)."""
        return self.value.wire().size if self.value else 0

    @property
    def may_grow(self) -> bool:
        """Whether programs do not care how many entries it takes: it may be replaced by a larger one while they run, so
        its size is no part of the layout but a property of the map that is pinned.
        """
        return self.kind in (MapKind.HASH, MapKind.LRU_HASH, MapKind.LPM_TRIE)


H, LRU, LPM, ARRAY = MapKind.HASH, MapKind.LRU_HASH, MapKind.LPM_TRIE, MapKind.ARRAY

LINKS = MapSpec("am_links", H, at.LinkKey, at.Link, 4096, "the pod behind a host veth: what it may call itself")
UPLINKS = MapSpec("am_uplinks", H, at.LinkKey, at.Uplink, 256, "interfaces that bring others of the cluster")
ENDPOINTS = MapSpec("am_endpoints", H, at.AddressKey, at.Endpoint, 8192, "local delivery: address to veth and MACs")
IPCACHE = MapSpec("am_ipcache", LPM, at.PrefixKey, at.Peer, 524_288, "whose an address is", NO_PREALLOC)
CIDRS = MapSpec("am_cidrs", LPM, pl.CidrKey, pl.CidrNumber, 262_144, "ipBlock rules that hold an address", NO_PREALLOC)
SUBJECTS = MapSpec("am_subjects", H, pl.SubjectKey, pl.Subject, 8192, "policy of the identities that live here")
SELECTED = MapSpec("am_selected", H, pl.IdentityKey, pl.SelectorSet, 131_072, "selectors that match it", NO_PREALLOC)
SCOPE_PEERS = MapSpec("am_scope_peer", H, pl.ScopePeerKey, pl.ScopeBits, 524_288, "rules that name a peer", NO_PREALLOC)
SCOPE_PORTS = MapSpec(
    "am_scope_port", LPM, pl.ScopePortKey, pl.ScopeBits, 262_144, "rules that name a port", NO_PREALLOC
)
SCOPE_RULES = MapSpec("am_scope_rule", H, pl.ScopeRuleKey, pl.ScopeRule, 131_072, "what a rule says", NO_PREALLOC)
GENERATION = MapSpec("am_generation", ARRAY, at.Index, at.Generation, 1, "raised after each change to policy")
FLOWS = MapSpec("am_ct", H, at.FlowKey, at.Flow, CONNTRACK_ENTRIES, "conntrack, each pod's side apart")
BUDGETS = MapSpec("am_ct_budget", H, at.EndpointKey, at.Budget, 4096, "how much conntrack an endpoint may use")
RECENT = MapSpec("am_ct_recent", ARRAY, at.Index, at.Recent, RECENT_SETS, "flows that are not established yet")
PEERS = MapSpec("am_ct_peers", ARRAY, at.Index, at.Held, HELD, "established flows that others began, by peer")
FRAGMENTS = MapSpec("am_frags", LRU, at.FragmentKey, at.Fragment, FRAGMENT_ENTRIES, "ports of fragmented packets")
EVENTS = MapSpec("am_events", MapKind.RINGBUF, None, None, 1 << 20, "drops (and, if asked for, new flows)")
METRICS = MapSpec(
    "am_metrics", MapKind.PERCPU_ARRAY, at.Index, at.Metric, 128, "counters, index = reason * 2 + direction"
)
CONFIG = MapSpec("am_config", ARRAY, at.Index, at.Config, 1, "switches and event rates")
THROTTLES = MapSpec(
    "am_throttle", MapKind.LRU_PERCPU_HASH, at.ThrottleKey, at.Throttle, 4096, "token bucket of each event stream"
)
NEXT_HOPS = MapSpec(
    "am_next_hops", MapKind.PERCPU_ARRAY, at.Index, at.NextHop, NEXT_HOP_SLOTS, "what the routing table said this tick"
)
SCRATCH = MapSpec("am_scratch", MapKind.PERCPU_ARRAY, at.Index, at.Scratch, 1, "the packet being looked at")
SERVICES = MapSpec("am_services", H, lb.ServiceKey, lb.Service, 65_536, "virtual addresses", NO_PREALLOC)
BACKENDS = MapSpec("am_backends", H, lb.BackendKey, lb.Backend, 262_144, "backends by service and index", NO_PREALLOC)
MEMBERS = MapSpec("am_members", H, lb.MemberKey, lb.Member, 262_144, "backends by address: still serving?", NO_PREALLOC)
SOURCE_RANGES = MapSpec(
    "am_src_ranges", LPM, lb.SourceRangeKey, lb.SourceRange, 65_536, "who may reach a service from outside", NO_PREALLOC
)
CHOICE = MapSpec("am_choice", ARRAY, at.Index, lb.ChoiceKey, 1, "key of the hash by which flows choose backends")
REFUSED = MapSpec("am_refused", LRU, lb.RefusedKey, lb.Refused, 4096, "backends that refused a moment ago")
AFFINITIES = MapSpec("am_affinity", LRU, lb.AffinityKey, lb.Affinity, 65_536, "the backend a client had")
SLOTTED = MapSpec("am_slots", ARRAY, at.Index, lb.Slot, SLOTS, "which connected socket has which place in am_sent")
SENT = MapSpec("am_sent", ARRAY, at.Index, lb.Sent, SLOTS, "what connected sockets asked for, and got")
REVERSES = MapSpec("am_reverse", LRU, lb.ReverseKey, lb.Virtual, 65_536, "what sockets without a place asked for")
COOKIES = MapSpec("am_cookies", H, at.CookieKey, at.CookieMark, 8192, "namespaces the socket programs act in")

NATS = MapSpec("am_nat", LRU, nat.NatKey, nat.Nat, NAT_ENTRIES, "translated flows from outside, each direction apart")
NAT_RECENT = MapSpec(
    "am_nat_recent", ARRAY, at.Index, at.Recent, NAT_RECENT_SETS, "translated flows that are not established yet"
)
CLIENTS = MapSpec("am_clients", LRU, nat.ClientKey, lb.Affinity, 16_384, "the backend a client from outside had")
NODE_ADDRESSES = MapSpec("am_own", ARRAY, at.Index, nat.NodeAddresses, 1, "in whose name this node speaks to backends")
OUTWARD = MapSpec("am_outward", ARRAY, at.Index, nat.Outward, 1, "when the node itself last was a backend")

TUNNELS = MapSpec("am_tunnels", H, at.LinkKey, tl.Tunnel, 64, "tunnel devices of this node")
TUNNEL_ENDS = MapSpec(
    "am_tunnel_ends", H, tl.TunnelEndKey, tl.TunnelEnd, 64, "where this node takes packets of tunnels"
)
TUNNEL_PEERS = MapSpec("am_tunnel_peers", H, at.AddressKey, tl.TunnelPeer, 65_536, "the other ends", NO_PREALLOC)
TUNNEL_SOURCES = MapSpec(
    "am_tunnel_srcs", LPM, at.PrefixKey, tl.TunnelSource, 262_144, "which node may send what", NO_PREALLOC
)

DNS_PODS = MapSpec("am_dns", H, at.EndpointKey, dns.DnsPod, 4096, "what was measured of a pod's DNS", NO_PREALLOC)
DNS_BLANK = MapSpec("am_dns_blank", ARRAY, at.Index, dns.DnsPod, 1, "what a pod's record begins as: all zero")

MAPS: tuple[MapSpec, ...] = (
    LINKS, UPLINKS, ENDPOINTS, IPCACHE, CIDRS, SUBJECTS, SELECTED, SCOPE_PEERS, SCOPE_PORTS, SCOPE_RULES, GENERATION,
    FLOWS, BUDGETS, FRAGMENTS, EVENTS, METRICS, CONFIG, THROTTLES, SCRATCH, SERVICES, BACKENDS, MEMBERS, CHOICE,
    SOURCE_RANGES, AFFINITIES, SLOTTED, SENT, REVERSES, COOKIES, NATS, CLIENTS, NODE_ADDRESSES, OUTWARD, RECENT, PEERS,
    NAT_RECENT, TUNNELS, TUNNEL_ENDS, TUNNEL_PEERS, TUNNEL_SOURCES, NEXT_HOPS, REFUSED,
    DNS_PODS, DNS_BLANK,
)  # fmt: skip

PROGRAMS_WRITE = frozenset((FLOWS, BUDGETS, FRAGMENTS, AFFINITIES, REVERSES, NATS, CLIENTS, DNS_PODS))
"""Maps that may grow and hold what the programs remember: a copy of one is brought up to date after the switch."""

PACKETS_CHANGE: tuple[MapSpec, ...] = (
    FLOWS, BUDGETS, RECENT, PEERS, FRAGMENTS, EVENTS, METRICS, THROTTLES, NEXT_HOPS, SCRATCH, REFUSED, AFFINITIES,
    SLOTTED, SENT, REVERSES, NATS, NAT_RECENT, CLIENTS, OUTWARD, DNS_PODS,
)  # fmt: skip
"""Every map in which a packet leaves something: whoever runs programs on a packet that is none has these apart."""

RECORDS: tuple[type[Record], ...] = (
    *dict.fromkeys(record for spec in MAPS for record in (spec.key, spec.value) if record is not None),
    at.Event,
)
"""Each record once, in the order in which the C header declares them."""


def conntrack_entries(memory: int, asked: int = 0) -> int:
    """How many conntrack entries a node has: as many as were asked for, else by its ``memory`` (bytes).

    A power of two from :data:`CONNTRACK_ENTRIES` to :data:`MOST_CONNTRACK_ENTRIES`; what is asked for is rounded down
    to one. Raises ValueError when it lies outside.
    """
    if asked and not CONNTRACK_ENTRIES <= asked <= MOST_CONNTRACK_ENTRIES:
        raise ValueError(
            f"{asked} conntrack entries: must be {CONNTRACK_ENTRIES} to {MOST_CONNTRACK_ENTRIES}, or 0 for as many as "
            "the node's memory suggests"
        )
    wanted = asked or min(max(memory // MEMORY_OF_AN_ENTRY, CONNTRACK_ENTRIES), MOST_CONNTRACK_ENTRIES)
    return 1 << (wanted.bit_length() - 1)


def conntrack_sizes(entries: int) -> dict[str, int]:
    """How large the maps of flows are with so many conntrack entries, by map."""
    return {FLOWS.name: entries, NATS.name: entries * NAT_ENTRIES // CONNTRACK_ENTRIES}


def recent_sets(entries: int) -> int:
    """How many sets of ``am_ct_recent`` are used: places for a quarter of the entries at most."""
    return min(entries // 4 // WAYS, RECENT_SETS)
