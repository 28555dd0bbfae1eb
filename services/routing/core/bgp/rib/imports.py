"""Import policy: what becomes of the paths that one peer sends (RFC 4271 9.1.1), before they are compared with others.

What depends on the attributes alone is decided once for all prefixes of an UPDATE: loops (RFC 4271 9.1.2, RFC 4456 8),
the first system of the path, the next hop, and rules that name no prefix. A default route, a prefix of this node's own
and a reserved one pass only when a rule of a filter names exactly that prefix. Paths that are rejected are kept with
the reason, so that other settings can accept them without asking the peer again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network

from proto.net import Address, Network
from services.routing.core.bgp.communities import GRACEFUL_SHUTDOWN, LLGR_STALE
from services.routing.core.bgp.filters import (
    Policy,
    Rule,
    changed_by,
    deciding,
    elsewhere,
    first_octets,
    nearest,
    with_communities,
)
from services.routing.core.bgp.peers import SessionSettings, TableSettings
from services.routing.core.bgp.rib.paths import NextHop, NextHops, Path, Rejection, Source
from services.routing.core.bgp.values import Attributes, Family, PathId, Prefix, prefix_of

MARTIANS: dict[Family, tuple[Network, ...]] = {
    Family.IPV4: tuple(map(IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"))),
    Family.IPV6: tuple(map(IPv6Network, ("::/16", "fe80::/10", "ff00::/8"))),
}
"""Ranges that no router may send packets to (RFC 6890): this host, loopback, link-local, multicast, reserved."""

DEFAULT_ROUTE: Prefix = b"\0"


class Guard:
    """Prefixes of one family that a filter has to name before a peer's path to them is accepted.

    Args:
        family: Of the prefixes.
        own: This node's own, as those of pools; only they themselves, not what lies in them.
    """

    def __init__(self, family: Family, own: Collection[Network] = ()) -> None:
        self._own = frozenset(prefix for network in own for of, prefix in (prefix_of(network),) if of is family)
        self._martians = tuple(
            (network.prefixlen, int(network.network_address) >> family.bits - network.prefixlen)
            for network in MARTIANS[family]
        )
        self._bits = family.bits
        same = [network for network in own if prefix_of(network)[0] is family]
        self.octets = frozenset((b"",)).union(*map(first_octets, (*MARTIANS[family], *same)))
        """First octets that a guarded prefix may have: whatever begins otherwise needs no closer look."""

    def rejection(self, prefix: Prefix) -> Rejection | None:
        """Why the prefix is guarded; None where it is not."""
        if prefix == DEFAULT_ROUTE or prefix in self._own:
            return Rejection.DEFAULT
        number = int.from_bytes(prefix[1:].ljust(self._bits // 8, b"\0"))
        for length, bits in self._martians:
            if prefix[0] >= length and number >> self._bits - length == bits:
                return Rejection.MARTIAN
        return None


class Admission:
    """What becomes of paths with the same attributes and path identifier from one peer."""

    __slots__ = ("_applicable", "_found", "_judge", "_rejects_all", "attributes", "hop", "path_id", "usual")

    def __init__(self, judge: Judge, attributes: Attributes, path_id: PathId, hop: NextHop | None) -> None:
        self._judge = judge
        self.attributes = attributes
        self.path_id = path_id
        self.hop = hop
        self._found: dict[Rule | Rejection | None, tuple[Path]] = {}
        self._applicable: tuple[Rule, ...] = ()
        self.usual: tuple[Path] | None = None
        """The path of every prefix that needs no closer look (:attr:`Judge.octets`), alone; None where all need one."""
        self._rejects_all = True
        """No prefix is accepted."""
        wrong = judge.wrong(attributes, hop)
        if wrong is not None:
            self.usual = self._path(wrong)
            return
        self._applicable = judge.applicable(attributes, hop)
        certain, rule = elsewhere(self._applicable)
        if certain:
            self.usual = self._path(rule)
        ranges = any(one is not rule for one in self._applicable)
        self._rejects_all = self.usual is not None and not ranges and self.usual[0].rejection is not None

    def alone(self, prefix: Prefix) -> tuple[Path]:
        """The path of a prefix, as the tuple that all prefixes share which have no other."""
        if self.usual is not None and (self._rejects_all or prefix[1:2] not in self._judge.octets):
            return self.usual
        guard = self._judge.guard
        rule = deciding(self._applicable, prefix)
        guarded = guard.rejection(prefix) if prefix[1:2] in guard.octets else None
        if guarded is not None and (rule is None or not rule.accepts or rule.names != prefix):
            return self._path(guarded)
        return self._path(rule)

    def _path(self, why: Rule | Rejection | None) -> tuple[Path]:
        alone = self._found.get(why)
        if alone is None:
            alone = self._found[why] = (self._judge.made(self, why),)
        return alone


@dataclass(frozen=True, slots=True)
class Learner:
    """A peer as import policy sees it."""

    source: Source
    session: SessionSettings
    tables: TableSettings
    own: frozenset[Address]
    """Addresses of this node that the peer may know it by."""


class Judge:
    """Import policy of one peer and one family."""

    def __init__(self, learner: Learner, family: Family, guard: Guard) -> None:
        self._learner = learner
        self._policy = Policy(learner.tables.imports, family, default=learner.tables.default_import)
        self.guard = guard
        self.octets = guard.octets | self._policy.octets
        """First octets of prefixes that need a closer look: guarded ones, and those in a rule's range."""

    def wrong(self, attributes: Attributes, hop: NextHop | None) -> Rejection | None:
        """Why no prefix with these attributes is accepted, whatever filters say."""
        session, tables = self._learner.session, self._learner.tables
        own = sum(segment.numbers.count(session.local_asn) for segment in attributes.as_path)
        if own > tables.allowed_own_asn:
            return Rejection.OWN_AS
        if session.external:
            if tables.first_asn_checked and nearest(attributes.as_path, 1) != (session.peer_asn,):
                return Rejection.FIRST_AS
        elif attributes.originator_id == session.router_id:
            return Rejection.ORIGINATOR
        elif tables.cluster_id is not None and tables.cluster_id in attributes.cluster_list:
            return Rejection.CLUSTER
        if hop is None or not hop.valid or hop.address in self._learner.own:
            return Rejection.NEXT_HOP
        return None

    def applicable(self, attributes: Attributes, hop: NextHop | None) -> tuple[Rule, ...]:
        """The rules that may match."""
        interface = hop.reach.interface if hop is not None and hop.reach is not None else ""
        return self._policy.applicable(attributes, remote=True, interface=interface)

    def made(self, admission: Admission, why: Rule | Rejection | None) -> Path:
        """The path, as a rule, a reason, or the default where neither is given, leaves it."""
        rejection = why if isinstance(why, Rejection) else self._rejection(why)
        after = admission.attributes
        if rejection is None:
            if isinstance(why, Rule):
                after = changed_by(why.rule, after)
            if self._learner.session.external and GRACEFUL_SHUTDOWN in after.communities:
                after = replace(after, local_pref=0)  # RFC 8326 4.2: whatever a filter prefers
        return Path(
            source=self._learner.source,
            path_id=admission.path_id,
            received=admission.attributes,
            attributes=after,
            hop=admission.hop,
            rejection=rejection,
        )

    def _rejection(self, rule: Rule | None) -> Rejection | None:
        if self._policy.accepts(rule):
            return None
        return Rejection.NO_POLICY if rule is None else Rejection.FILTER


class Importer:
    """Import policy of one peer and one family, and what became of the attributes that the peer sent last.

    Args:
        learner: The peer.
        family: Of the paths.
        hops: Where their next hops are known.
        guard: Prefixes that a filter has to name.
    """

    REMEMBERED = 256
    """Attributes whose outcome is remembered, so that prefixes of several UPDATEs share a path."""

    def __init__(self, learner: Learner, family: Family, hops: NextHops, guard: Guard) -> None:
        self._judge = Judge(learner, family, guard)
        self._source = learner.source
        self._hops = hops
        self._remembered: dict[tuple[int, PathId], Admission] = {}
        self.closely = self._judge.octets
        """First octets of prefixes that need a closer look."""

    def admission(self, attributes: Attributes, path_id: PathId) -> Admission:
        """The outcome for paths with these attributes."""
        key = (id(attributes), path_id)  # whoever is remembered keeps its attributes alive, so the number is theirs
        known = self._remembered.get(key)
        if known is None:
            if len(self._remembered) >= self.REMEMBERED:
                self._remembered.clear()
            hop = self._hops.of(attributes, self._source)
            known = self._remembered[key] = Admission(self._judge, attributes, path_id, hop)
        return known


def long_lived(path: Path) -> Path:
    """The path as a long-lived stale one: marked, so that it is least preferred everywhere (RFC 9494 4.2)."""
    return replace(path, long_lived=True, attributes=with_communities(path.attributes, (LLGR_STALE,)))
