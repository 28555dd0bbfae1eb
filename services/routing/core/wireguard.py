"""WireGuard between nodes: which keys a node shows, which of two devices a pair takes, which peers each device has.

WireGuard has one private key a device, and gives an address to one peer of a device. So a key that changes in place
loses packets, and so would one that is told first. A node therefore has two *slots*, 0 and 1, each a device with a port
and a key of its own; both ends of a pair use the same slot. A node's *home* is the slot of its key. It shows the other
slot too when that is another node's home, with the same key (a *guest*). To change its key it makes a new one in the
other slot and goes home there; the old slot is *leaving*: pairs move away from it one by one, each as soon as there was
a handshake in the other slot, and what still arrives by the old one is taken. When nothing has arrived by it for
:data:`DRAIN` seconds, its key is deleted. Peers send keepalives in the slot that they take and in the one that they are
to take, so silence means that nobody takes it, be agents dead or away; and since it lasts for longer than a handshake
proves anything, nobody moves there any more. So every packet finds a device that knows its key.

Peers are what ``blocks``, ``claims`` and the judgement on underlay addresses say (``kit.underlay``), never what a node
says of itself: a node's own word is its key, and the port. A public key that two nodes tell is the one's that has it
already; where neither has, neither is believed, since one of them lies and hurts nobody but itself that way longest.

Pure: keys here are public ones, times are seconds and come from the caller.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass, field
from hashlib import blake2b
from ipaddress import ip_network
from typing import Literal, Protocol

from proto.addresses import IPAM_HOLDER, Block, Claim
from proto.net import Address, Network
from proto.routes import NodeRoutes, WireguardKey
from services.routing.core.faults import Fault
from services.routing.core.mesh import holder_of

SLOTS = (0, 1)
DEVICES: Mapping[int, str] = {0: "am-wg", 1: "am-wg2"}
"""Names of the devices by slot; the port of slot 1 is the one after that of slot 0."""
KEY_BYTES = 32
KEEPALIVE = 25
"""Seconds between keepalives in the slot that a pair takes and in the one that it is to take: so that both know of each
other, also after one of them has started anew, and that a handshake says whether the way is there."""
FIRST = 1.0
"""Seconds that the node with the greater name leaves to the other one to begin: of two handshakes that begin at once
neither ends, and both are begun again after five seconds."""
PROVED = 180
"""Seconds that a handshake proves a way: its session's life (REJECT_AFTER_TIME of the WireGuard paper)."""
DRAIN = 200.0
"""Seconds without a packet by a slot until its key is deleted; more than :data:`PROVED`."""
NOBODY = blake2b(b"airmesh: nobody has the private key of this", digest_size=KEY_BYTES).digest()
"""Public key of the peer that addresses are given to before it is removed: neither the kernel (before 6.16) nor
wireguard-go takes single addresses from a peer, and a new list would be none for a moment."""

Step = Literal["stay", "begin", "make", "drop"]


class SeenPeer(Protocol):
    """A peer as a device has it (``linux.wireguard.Peer``)."""

    @property
    def public_key(self) -> bytes: ...  # noqa: D102
    @property
    def endpoint(self) -> tuple[Address, int] | None: ...  # noqa: D102
    @property
    def keepalive(self) -> int: ...  # noqa: D102
    @property
    def allowed(self) -> frozenset[Network]: ...  # noqa: D102
    @property
    def handshake(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnKeys:
    """The public halves of this node's keys."""

    home: int
    """Slot of the key that it has now."""
    keys: Mapping[int, bytes]
    """By slot: that of ``home``, and of the other slot the one that is being left."""
    made: int
    """When the key of ``home`` was made, in Unix seconds."""
    rotating: bool = False
    """A new key is wanted, and the other slot has to be empty of guests first."""

    @property
    def other(self) -> int:
        """The slot that is not home."""
        return 1 - self.home

    def key_of(self, slot: int) -> bytes:
        """The key that the device of a slot has."""
        return self.keys.get(slot, self.keys[self.home])


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """Another node as peers of it are made."""

    node: str
    keys: Mapping[int, tuple[bytes, int]]
    """Public key and port by slot."""
    addresses: tuple[Address, ...]
    """On the shared network, the one to send to first."""
    allowed: frozenset[Network]


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedPeer:
    """A peer as it should be."""

    addresses: tuple[Address, ...]
    port: int
    keepalive: int
    allowed: frozenset[Network]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStep:
    """A change of a peer (``linux.wireguard.PeerChange``)."""

    public_key: bytes
    remove: bool = False
    endpoint: tuple[Address, int] | None = None
    keepalive: int | None = None
    allow: tuple[Network, ...] = ()
    existing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the buckets and the API say, as far as peers follow from it."""

    me: str
    routes: Mapping[str, NodeRoutes] = field(default_factory=dict)
    blocks: Mapping[Network, Block] = field(default_factory=dict)
    claims: Iterable[Claim] = ()
    underlay: Mapping[str, Collection[Address]] = field(default_factory=dict)
    """Addresses on the shared network by node, as ``kit.underlay`` judges."""
    families: Set[int] = frozenset()
    """Of this node's own addresses on the shared network."""
    complete: bool = False
    """``blocks``, ``claims`` and ``routes`` are known whole."""
    reported: Set[str] = frozenset()
    """Nodes that have told all of their own in ``routes``."""

    def may_lose(self, networks: Iterable[Network]) -> bool:
        """Whether a peer of these networks that nothing asks for is surely not needed: whoever holds one of them has
        told all of its own, and so would have told the key.
        """
        holders = set(map(holder_of(self.blocks, self.claims), networks))
        return self.complete and holders <= {"", IPAM_HOLDER, self.me, *self.reported}


@dataclass(frozen=True, slots=True, kw_only=True)
class WireguardState:
    """The WireGuard of this node as the last pass over its devices left it. Made without arguments: it has none."""

    mine: tuple[WireguardKey, ...] = ()
    """What others are told: devices that are ready."""
    links: Mapping[int, int] = field(default_factory=dict)
    """Index of the interface of each slot."""
    mtu: int = 0
    """Of those."""
    slots: Mapping[str, int] = field(default_factory=dict)
    """The slot that packets to a node take."""
    outer: Mapping[str, Address] = field(default_factory=dict)
    """A node's address on the shared network."""
    proved: frozenset[str] = frozenset()
    """Nodes with which there was a handshake that still counts."""
    begins: bool = False
    """A peer waits to be the first to speak."""
    fault: Fault | None = None
    """Why there is no device."""
    faults: tuple[Fault, ...] = ()
    """All that a person must know."""

    @property
    def paths(self) -> object:
        """All that routes and other nodes follow from: while this is equal, nothing is to be planned again."""
        return self.mine, self.links, self.mtu, self.slots, self.outer, self.fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a pass over the devices is to bring about."""

    known: Known
    port: int
    """UDP port of slot 0."""
    uplink_mtu: int
    """The smallest of this node's uplinks, in bytes."""
    local: tuple[Address, ...]
    """This node's addresses on the shared network, one at least; the first is the one that stands in the mark."""
    taken: Mapping[str, Collection[int]]
    """Interfaces that routes of ours to each node lead out by now."""


def public_text(key: bytes) -> str:
    """A key as others read it."""
    return b64encode(key).decode()


def parse_key(text: str) -> bytes | None:
    """The bytes of a key; None for a text that is none."""
    try:
        raw = b64decode(text.encode(), validate=True)
    except (NotBase64, UnicodeEncodeError):
        return None
    return raw if len(raw) == KEY_BYTES and any(raw) else None


def shown(own: OwnKeys, others: Iterable[NodeRoutes], port: int, *, in_use: bool = False) -> tuple[WireguardKey, ...]:
    """The slots that this node shows, home first; ``port`` is slot 0's. ``in_use``: packets come or go by the slot that
    is not home, or did lately: a guest whom nobody needs any more stays as long.
    """
    home = WireguardKey(own.home, public_text(own.keys[own.home]), port + own.home, "home")
    other = own.other
    if other in own.keys:
        return home, WireguardKey(other, public_text(own.keys[other]), port + other, "leaving")
    if in_use or any(_needs(routes.wireguard[:2], own.home) for routes in others):
        state = "leaving" if own.rotating else "guest"
        return home, WireguardKey(other, public_text(own.keys[own.home]), port + other, state)
    return (home,)


def _needs(theirs: Iterable[WireguardKey], home: int) -> bool:
    """Whether another node needs this one, whose home is ``home``, as a guest in the other slot.

    Of two with different homes the one of slot 0 is the guest of the other. The one of slot 1 is that, too, as long as
    the other one leaves a slot.
    """
    states = {key.slot: key.state for key in theirs}
    if home == 0:
        return states.get(1, "guest") != "guest"
    return states.get(0) == "leaving" or (states.get(0), states.get(1)) == ("home", "leaving")


def next_step(own: OwnKeys, mine: Iterable[WireguardKey], *, due: bool, drained: bool) -> Step:
    """What comes next of a rotation; ``drained``: nothing has come or gone by the slot that is not home for long.

    ``begin``: let the guests of the other slot move home. ``make``: a new key in the other slot, which is home from
    then on. ``drop``: forget the key that was left.
    """
    if own.other in own.keys:
        return "drop" if drained else "stay"
    if not (due or own.rotating):
        return "stay"
    if all(key.slot != own.other for key in mine):
        return "make"
    if not own.rotating:
        return "begin"
    return "make" if drained else "stay"


def best_slot(me: str, mine: Iterable[WireguardKey], peer: NodeRoutes) -> int | None:
    """The slot that a pair should take: both ends come to the same one. None: they share none.

    Not one that an end is leaving; where each slot is left by one of them, the wish of the node with the smaller name
    counts first, and the other has to wait. Then one that is both's home, then slot 1.
    """
    ours = {key.slot: key.state for key in mine}
    theirs = {key.slot: key.state for key in peer.wireguard[:2] if key.slot in SLOTS}

    def precedence(slot: int) -> tuple[bool, bool, int, int]:
        states = (ours[slot], theirs[slot]) if me < peer.node else (theirs[slot], ours[slot])
        return states[0] == "leaving", states[1] == "leaving", -states.count("home"), -slot

    return min(ours.keys() & theirs.keys(), key=precedence, default=None)


def slot_now(best: int | None, current: int | None, proved: Set[int], shared: Set[int]) -> int | None:
    """The slot that packets to a peer take: the best, once there was a handshake in it; until then the present one.

    ``current`` is the one that the routes have now, ``shared`` those in which the peer is one of ours.
    """
    if best is None or best in proved or current is None or current not in shared:
        return best
    return current


def remotes(known: Known, own: OwnKeys, held: Mapping[tuple[int, bytes], str]) -> tuple[dict[str, Remote], list[Fault]]:
    """The other nodes that can be peers, by name, and why some cannot.

    ``held`` says whose a key is on this node's devices now, by slot (:func:`holders`).
    """
    faults: list[Fault] = []
    announced: dict[str, dict[int, tuple[bytes, int]]] = {}
    for name in sorted(known.routes.keys() - {known.me}):
        announced[name] = keys = _keys_of(known.routes[name], own, faults)
        if not keys:
            del announced[name]
    users = Counter((slot, key) for keys in announced.values() for slot, (key, _) in keys.items())
    allowed = _held_by(known, announced)
    found: dict[str, Remote] = {}
    for name, keys in announced.items():
        mine = {slot: at for slot, at in keys.items() if users[slot, at[0]] == 1 or held.get((slot, at[0])) == name}
        if len(mine) < len(keys):
            faults.append(
                Fault(
                    f"node {name} tells a WireGuard key that another node tells too",
                    "take the key of routing from the node that is not to be trusted",
                    of_others=True,
                )
            )
        addresses = _in_order(known, name)
        if not addresses:
            faults.append(
                Fault(
                    f"node {name} has no address on the shared network that is surely its own, so WireGuard cannot "
                    "reach it",
                    f"give Node {name} its address (InternalIP) and an uplink with it",
                    of_others=True,
                )
            )
        elif mine:
            own_addresses = {ip_network(address) for address in known.underlay[name]}
            found[name] = Remote(
                node=name, keys=mine, addresses=addresses, allowed=frozenset(allowed[name] | own_addresses)
            )
    return found, faults


def _keys_of(routes: NodeRoutes, own: OwnKeys, faults: list[Fault]) -> dict[int, tuple[bytes, int]]:
    keys: dict[int, tuple[bytes, int]] = {}
    for one in routes.wireguard[:2]:
        raw = parse_key(one.key)
        if raw is None or one.slot not in SLOTS or not 0 < one.port < 1 << 16:
            what, remedy = "a WireGuard key that is none", "run the same release of routing on all nodes"
        elif raw in own.keys.values():
            what = "this node's own WireGuard key as its own"
            remedy = "if its disk is a copy of this node's, delete wireguard/keys.json there: it makes a key of its own"
        else:
            keys[one.slot] = raw, one.port
            continue
        faults.append(Fault(f"node {routes.node} tells {what}", remedy, of_others=True))
    return keys


def _held_by(known: Known, names: Collection[str]) -> dict[str, set[Network]]:
    """What ``blocks`` and ``claims`` give to each of some nodes; a claim inside of its node's block is in that."""
    allowed: dict[str, set[Network]] = {name: set() for name in names}
    lengths: dict[int, set[int]] = {4: set(), 6: set()}
    for cidr, block in known.blocks.items():
        lengths[cidr.version].add(cidr.prefixlen)
        if block.node in allowed:
            allowed[block.node].add(cidr)
    for claim in known.claims:
        if claim.node in allowed:
            address = ip_network(claim.address)
            holding = (address.supernet(new_prefix=length) for length in lengths[claim.address.version])
            if not any(cidr in allowed[claim.node] for cidr in holding):
                allowed[claim.node].add(address)
    return allowed


def networks_of_nodes(known: Known) -> dict[str, set[Network]]:
    """What each node that tells a key holds, by ``blocks`` and ``claims``."""
    return _held_by(known, [name for name, routes in known.routes.items() if routes.wireguard and name != known.me])


def _in_order(known: Known, name: str) -> tuple[Address, ...]:
    """A node's addresses of the families that this node has, IPv4 first, each family from the lowest."""
    usable = (address for address in known.underlay.get(name, ()) if address.version in known.families)
    return tuple(sorted(usable, key=lambda address: (address.version, int(address))))


def holders(
    devices: Mapping[int, Iterable[SeenPeer]], found: Mapping[str, Collection[Network]]
) -> dict[tuple[int, bytes], str]:
    """Whose a key is by what the devices have: the node whose addresses are all that the peer may use.

    ``found``: what each node holds, of which anything at all tells it.
    """
    whose = {network: name for name, networks in found.items() for network in networks}
    held: dict[tuple[int, bytes], str] = {}
    for slot, peers in devices.items():
        for peer in peers:
            names = {whose[network] for network in peer.allowed if network in whose}
            if len(names) == 1:
                held[slot, peer.public_key] = names.pop()
    return held


def wanted_peers(
    slot: int,
    found: Mapping[str, Remote],
    best: Mapping[str, int | None],
    slots: Mapping[str, int],
    new: Set[bytes] = frozenset(),
) -> dict[bytes, WantedPeer]:
    """The peers of the device of a slot, by public key.

    ``best`` is :func:`best_slot` of each node, ``slots`` what packets to it take (:func:`slot_now`). ``new``: keys of
    those that the other node begins with.
    """
    return {
        remote.keys[slot][0]: WantedPeer(
            addresses=remote.addresses,
            port=remote.keys[slot][1],
            keepalive=KEEPALIVE
            if slot in (best.get(remote.node), slots.get(remote.node)) and remote.keys[slot][0] not in new
            else 0,
            allowed=remote.allowed,
        )
        for remote in found.values()
        if slot in remote.keys
    }


def proved_keys(peers: Iterable[SeenPeer], now: float) -> frozenset[bytes]:
    """Keys of the peers with which there was a handshake that still counts; ``now`` in Unix seconds."""
    return frozenset(peer.public_key for peer in peers if peer.handshake and now - peer.handshake < PROVED)


def peer_steps(
    wanted: Mapping[bytes, WantedPeer], seen: Iterable[SeenPeer], now: float, known: Known
) -> tuple[PeerStep, ...]:
    """What makes a device's peers the wanted ones, in order. A change costs the peers that it is about. What is
    ``known`` says which peers and addresses may go: a device keeps those of a node that has not been heard of yet.

    An address that changes hands is in somebody's at any moment. An endpoint is told to a peer with which there is no
    session: where a peer with one is heard from, WireGuard knows better.
    """
    before = {peer.public_key: peer for peer in seen}
    alive = proved_keys(before.values(), now)
    steps: list[PeerStep] = []
    for key, peer in wanted.items():
        there = before.get(key)
        endpoint = (peer.addresses[0], peer.port)
        if there is None:
            allow = tuple(sorted(peer.allowed, key=str))
            steps.append(PeerStep(public_key=key, endpoint=endpoint, keepalive=peer.keepalive, allow=allow))
            continue
        right = there.endpoint is not None and there.endpoint[0] in peer.addresses and there.endpoint[1] == peer.port
        step = PeerStep(
            public_key=key,
            endpoint=None if right or key in alive else endpoint,
            keepalive=None if there.keepalive == peer.keepalive else peer.keepalive,
            allow=tuple(sorted(peer.allowed - there.allowed, key=str)),
            existing=True,
        )
        if step.endpoint is not None or step.keepalive is not None or step.allow:
            steps.append(step)
    given = {network for peer in wanted.values() for network in peer.allowed}
    kept = (peer for key, peer in before.items() if key in wanted)
    nobodys = {network for peer in kept for network in peer.allowed if network not in given and known.complete}
    if nobodys:
        steps.append(PeerStep(public_key=NOBODY, allow=tuple(sorted(nobodys, key=str))))
    unasked = [peer for key, peer in before.items() if key not in wanted and key != NOBODY]
    gone = [peer.public_key for peer in unasked if known.may_lose(peer.allowed)]
    if nobodys or NOBODY in before:
        gone.append(NOBODY)
    return (*steps, *(PeerStep(public_key=key, remove=True) for key in gone))
