"""Paths: what one peer, or this speaker, says of a prefix, before and after import policy, and the next hop's state.

A path is shared by all prefixes that one peer sent with the same attributes and that policy treats alike. So a prefix
costs an entry in a table and no object. Paths are compared by identity; ``alike`` compares what they say. A next hop is
one object for all paths through it: when it becomes unreachable, they all know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address
from weakref import WeakValueDictionary

from proto.net import Address
from services.routing.core.bgp.values import Asn, Attributes, PathId, Prefix, RouterId

Key = bytes
"""A prefix, followed by the four octets of its path identifier where that is not 0. Its first octet says which."""
DEFAULT_LOCAL_PREF = 100
"""Preference of a path that came without one (RFC 4271 9.1.1; the value of every common speaker)."""


def key_of(prefix: Prefix, path_id: PathId) -> Key:
    """The key of a path of a peer."""
    return prefix + path_id.to_bytes(4) if path_id else prefix


def prefix_in(key: Key) -> Prefix:
    """The prefix of a key; the same object where the key is nothing else."""
    return key[: 1 + (key[0] + 7) // 8]


class Rejection(Enum):
    """Why a path that a peer sent is not considered."""

    OWN_AS = "this system's number is in its AS path"
    FIRST_AS = "its AS path does not begin with the peer's number"
    ORIGINATOR = "it began at this speaker (ORIGINATOR_ID)"
    CLUSTER = "it has been in this cluster (CLUSTER_LIST)"
    NEXT_HOP = "its next hop is no address of a router, or one of this node"
    DEFAULT = "a default route that no rule of a filter names"
    MARTIAN = "its prefix is reserved, and no rule of a filter names it"
    FILTER = "a rule of a filter rejects it"
    NO_POLICY = "no rule of a filter matches it, and without one nothing is accepted (RFC 8212)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Who a path was learnt from."""

    name: str
    """The peer's; empty: this speaker itself."""
    address: Address
    asn: Asn
    router_id: RouterId
    external: bool
    client: bool = False
    """A client of this route reflector."""
    interface: str = ""
    """Of the session, for a link-local next hop."""


OWN = Source(name="", address=IPv4Address(0), asn=0, router_id=IPv4Address(0), external=False)
"""Routes that this speaker begins itself."""


@dataclass(frozen=True, slots=True)
class Reach:
    """How a next hop is reached."""

    cost: int = 0
    """Interior cost (RFC 4271 9.1.2.2 e): lower is better; 0 on a link of this node's."""
    interface: str = ""


Resolve = Callable[[Address, str], Reach | None]
"""How a next hop is reached, by address and, for a link-local one, interface; None: it is not."""


class NextHop:
    """A next hop and how it is reached now."""

    __slots__ = ("__weakref__", "address", "interface", "reach", "valid")

    def __init__(self, address: Address, interface: str, reach: Reach | None) -> None:
        self.address = address
        self.interface = interface
        """The session's, for a link-local address; else empty."""
        self.reach = reach
        self.valid = not (address.is_unspecified or address.is_multicast or address.is_loopback)
        """It can be the address of a router."""


class NextHops:
    """All next hops that some path has."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self._known: WeakValueDictionary[tuple[Address, str], NextHop] = WeakValueDictionary()

    def of(self, attributes: Attributes, source: Source) -> NextHop | None:
        """The next hop of a path; None where it has none."""
        address = attributes.next_hop
        if address is None:
            return None
        interface = source.interface if address.is_link_local else ""
        known = self._known.get((address, interface))
        if known is None:
            known = NextHop(address, interface, self._resolve(address, interface))
            self._known[address, interface] = known
        return known

    def changed(self, addresses: Iterable[Address] | None) -> dict[NextHop, Reach | None]:
        """Resolve again those of ``addresses``, or all; give those reached in another way, and how it was before."""
        wanted = None if addresses is None else set(addresses)
        changed: dict[NextHop, Reach | None] = {}
        for hop in list(self._known.values()):
            if wanted is None or hop.address in wanted:
                reach = self._resolve(hop.address, hop.interface)
                if reach != hop.reach:
                    changed[hop], hop.reach = hop.reach, reach
        return changed

    def all(self) -> tuple[NextHop, ...]:
        """Those that some path has now."""
        return tuple(self._known.values())


@dataclass(frozen=True, slots=True, eq=False)
class Path:
    """See the module."""

    source: Source
    path_id: PathId
    received: Attributes
    """As the peer sent them."""
    attributes: Attributes
    """After import policy; as received where it was rejected."""
    hop: NextHop | None
    """None: this speaker began the route itself."""
    rejection: Rejection | None = None
    long_lived: bool = False
    """Kept as a long-lived stale route (RFC 9494)."""

    @property
    def reachable(self) -> bool:
        """The next hop is reached (RFC 4271 9.1.2.1)."""
        return self.hop is None or self.hop.reach is not None

    @property
    def interface(self) -> str:
        """The next hop's interface; empty where there is none, or none is known."""
        return self.hop.reach.interface if self.hop is not None and self.hop.reach is not None else ""


def alike(one: Path, other: Path) -> bool:
    """Both say the same."""
    return one is other or (
        one.attributes == other.attributes
        and one.received == other.received
        and one.source == other.source
        and (one.path_id, one.hop, one.rejection, one.long_lived)
        == (other.path_id, other.hop, other.rejection, other.long_lived)
    )
