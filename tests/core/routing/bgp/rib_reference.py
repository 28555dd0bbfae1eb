"""What the tables must hold, worked out from scratch from all that is so now: slowly, plainly, and sharing no code with
the tables but the values. The order in which things came is nowhere in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, ip_network

from proto.net import Address
from services.routing.core.bgp.peers import Action, FilterRule, MatchOperator, SessionSettings, TableSettings
from services.routing.core.bgp.rib.exports import OwnNextHop
from services.routing.core.bgp.values import Agreed, Attributes, Family, Prefix, Segment, SegmentKind, network_of

RESERVED = [ip_network(text) for text in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4")]
RESERVED_6 = [ip_network(text) for text in ("::/16", "fe80::/10", "ff00::/8")]
LLGR_STALE = 0xFFFF0006


@dataclass(frozen=True)
class PeerNow:
    """A peer as it is now."""

    session: SessionSettings
    tables: TableSettings
    agreed: Agreed
    router_id: IPv4Address
    next_hops: tuple[tuple[Family, OwnNextHop], ...]
    long_lived: bool = False


@dataclass(frozen=True)
class Known:
    """A path that policy accepted."""

    name: str
    peer: PeerNow | None
    path_id: int
    attributes: Attributes
    hop: Address | None

    @property
    def external(self) -> bool:
        return self.peer is not None and self.peer.session.external


def numbers(path: Iterable[Segment], *kinds: SegmentKind) -> list[int]:
    return [number for segment in path if segment.kind in kinds for number in segment.numbers]


def matches(
    rule: FilterRule, family: Family, prefix: Prefix, attributes: Attributes, *, remote: bool, iface: str
) -> bool:
    if rule.family is not family:
        return False
    network = network_of(family, prefix)
    low, high = rule.lengths or (0, 128)
    fits = low <= network.prefixlen <= high
    if rule.network is not None:
        inside = network.subnet_of(rule.network)  # type: ignore[arg-type]
        said = {
            MatchOperator.EQUAL: network == rule.network and fits,
            MatchOperator.NOT_EQUAL: not (network == rule.network and fits),
            MatchOperator.IN: inside and fits,
            MatchOperator.NOT_IN: not (inside and fits),
        }[rule.operator]
        if not said:
            return False
    elif not fits:
        return False
    if rule.source is not None and not remote:
        return False
    if rule.interface and not (iface == rule.interface or (rule.interface == "eth*" and iface.startswith("eth"))):
        return False
    carried: list[object] = [*attributes.communities, *attributes.large_communities]
    if rule.communities and not [one for one in rule.communities if one in carried]:
        return False
    flat: list[int] = []
    for segment in attributes.as_path:
        if segment.kind is not SegmentKind.SEQUENCE:
            break
        flat += segment.numbers
    return tuple(flat[: len(rule.as_path_prefix)]) == rule.as_path_prefix


def operated(rule: FilterRule, attributes: Attributes) -> Attributes:
    path = attributes.as_path
    for number in rule.prepend[::-1]:
        if path and path[0].kind is SegmentKind.SEQUENCE:
            path = (Segment(SegmentKind.SEQUENCE, (number, *path[0].numbers)), *path[1:])
        else:
            path = (Segment(SegmentKind.SEQUENCE, (number,)), *path)
    return replace(
        attributes,
        as_path=path,
        local_pref=attributes.local_pref if rule.set_local_pref is None else rule.set_local_pref,
        communities=tuple(sorted({*attributes.communities, *(c for c in rule.add_communities if isinstance(c, int))})),
        large_communities=tuple(
            sorted({*attributes.large_communities, *(c for c in rule.add_communities if not isinstance(c, int))})
        ),
    )


def verdict(
    rules: tuple[FilterRule, ...],
    default: bool,
    family: Family,
    prefix: Prefix,
    attributes: Attributes,
    **about: object,
) -> tuple[bool, FilterRule | None]:
    for rule in rules:
        if matches(rule, family, prefix, attributes, **about):  # type: ignore[arg-type]
            return rule.action is Action.ACCEPT, rule
    return default, None


class Reference:
    """The tables of one family.

    Args:
        peers: Those whose sessions are established.
        paths: By peer, prefix and path identifier, as sent; those of other peers are not looked at.
        own: What this speaker begins itself.
        reach: Cost and interface of each next hop; None: not reached. Others cost nothing, by no interface.
        most: Paths that are used together.
    """

    def __init__(
        self,
        family: Family,
        peers: Mapping[str, PeerNow],
        paths: Mapping[tuple[str, Prefix, int], Attributes],
        own: Mapping[Prefix, Attributes],
        reach: Mapping[Address, tuple[int, str] | None],
        most: int = 3,
    ) -> None:
        self.family, self.peers, self.reach, self.most = family, peers, reach, most
        self.accepted: dict[Prefix, list[Known]] = {}
        for prefix, attributes in own.items():
            self.accepted.setdefault(prefix, []).append(Known("", None, 0, attributes, None))
        for (name, prefix, path_id), attributes in paths.items():
            if name in peers:
                after = self.imported(peers[name], prefix, attributes)
                if after is not None:
                    known = Known(name, peers[name], path_id, after, attributes.next_hop)
                    self.accepted.setdefault(prefix, []).append(known)
        self.chosen = {prefix: found for prefix, known in self.accepted.items() if (found := self.choose(known))}

    def how(self, hop: Address | None) -> tuple[int, str] | None:
        return (0, "") if hop is None else self.reach.get(hop, (0, ""))

    def imported(self, peer: PeerNow, prefix: Prefix, attributes: Attributes) -> Attributes | None:
        session, tables = peer.session, peer.tables
        every = numbers(attributes.as_path, *SegmentKind)
        if every.count(session.local_asn) > tables.allowed_own_asn:
            return None
        if session.external:
            first = attributes.as_path[:1]
            if tables.first_asn_checked and not (
                first and first[0].kind is SegmentKind.SEQUENCE and first[0].numbers[0] == session.peer_asn
            ):
                return None
        else:
            if attributes.originator_id == session.router_id:
                return None
            if tables.cluster_id and tables.cluster_id in attributes.cluster_list:
                return None
        if attributes.next_hop is None or attributes.next_hop in [hop.address for _, hop in peer.next_hops]:
            return None
        reach = self.how(attributes.next_hop)
        accepts, rule = verdict(
            tables.imports, tables.default_import, self.family, prefix, attributes,
            remote=True, iface=reach[1] if reach else "",
        )  # fmt: skip
        network = network_of(self.family, prefix)
        special = prefix == b"\0" or any(
            network.subnet_of(one)  # type: ignore[arg-type]
            for one in (RESERVED if self.family is Family.IPV4 else RESERVED_6)
        )
        if special and not (
            rule and rule.network == network and rule.operator in (MatchOperator.EQUAL, MatchOperator.IN)
        ):
            return None
        if not accepts:
            return None
        if rule:
            attributes = operated(rule, attributes)
        if session.external and 0xFFFF0000 in attributes.communities:
            attributes = replace(attributes, local_pref=0)
        return attributes

    def choose(self, known: list[Known]) -> list[Known]:
        left = [one for one in known if self.how(one.hop) is not None]

        def keep(value: object) -> None:
            nonlocal left
            if left:
                least = min(value(one) for one in left)  # type: ignore[operator]
                left = [one for one in left if value(one) == least]  # type: ignore[operator]

        keep(lambda one: LLGR_STALE in one.attributes.communities)
        keep(lambda one: -(100 if one.attributes.local_pref is None else one.attributes.local_pref))
        keep(lambda one: one.name != "")
        keep(
            lambda one: sum(
                {SegmentKind.SEQUENCE: len(segment.numbers), SegmentKind.SET: 1}.get(segment.kind, 0)
                for segment in one.attributes.as_path
            )
        )
        keep(lambda one: one.attributes.origin)
        left = [
            one
            for one in left
            if not any(
                self.neighbour(one) == self.neighbour(other) and (other.attributes.med or 0) < (one.attributes.med or 0)
                for other in left
            )
        ]
        keep(lambda one: not one.external)
        keep(lambda one: self.how(one.hop)[0])  # type: ignore[index]
        left.sort(
            key=lambda one: (
                (
                    one.attributes.originator_id or one.peer.router_id,
                    len(one.attributes.cluster_list),
                    one.peer.session.address,
                    one.path_id,
                )
                if one.peer
                else ()
            )
        )
        found: list[Known] = []
        for one in left:
            if one.hop not in [other.hop for other in found]:
                found.append(one)
        return found[: self.most]

    @staticmethod
    def neighbour(one: Known) -> int:
        path = [s for s in one.attributes.as_path if s.kind in (SegmentKind.SEQUENCE, SegmentKind.SET)]
        return path[0].numbers[0] if path and path[0].kind is SegmentKind.SEQUENCE else 0

    def sent(self, name: str) -> dict[tuple[Prefix, int], Attributes]:
        """What a peer has when all is sent, by prefix and path identifier."""
        peer = self.peers[name]
        several = self.family in peer.agreed.sends_paths
        found: dict[tuple[Prefix, int], Attributes] = {}
        for prefix, chosen in self.chosen.items():
            exported = [
                (one.name, attributes)
                for one in chosen[: self.most if several else 1]
                if (attributes := self.exported(peer, prefix, one)) is not None
            ]
            for number, (source, attributes) in enumerate(exported, 1):
                if source != name:
                    found[prefix, number if several else 0] = attributes
        return found

    def exported(self, to: PeerNow, prefix: Prefix, one: Known) -> Attributes | None:
        external, attributes = to.session.external, one.attributes
        if one.name:
            if 0xFFFFFF02 in attributes.communities:
                return None
            if external and {0xFFFFFF01, 0xFFFFFF03} & set(attributes.communities):
                return None
            if LLGR_STALE in attributes.communities and not to.long_lived:
                return None
            if not external and not one.external:
                reflects = to.tables.cluster_id is not None
                assert one.peer is not None
                if not reflects or not (one.peer.tables.client or to.tables.client):
                    return None
        reach = self.how(one.hop)
        accepts, rule = verdict(
            to.tables.exports, to.tables.default_export, self.family, prefix, attributes,
            remote=bool(one.name), iface=reach[1] if reach else "",
        )  # fmt: skip
        if not accepts:
            return None
        mine = dict(to.next_hops).get(self.family)
        hop: Address | None = mine.address if mine else None
        through_us = True
        came = attributes.next_hop
        same = came is not None and (to.tables.keep_next_hop if one.external else not external)
        if same and (came.version == 4 or self.family is Family.IPV6 or self.family in to.agreed.extended_next_hops):  # type: ignore[union-attr]
            hop, through_us = came, False
        if hop is None:
            return None
        passed_over = to.tables.leaving and through_us
        if rule:
            attributes = operated(rule, attributes)
        attributes = replace(attributes, next_hop=hop, link_local=None)
        if passed_over:
            marked = tuple(sorted({*attributes.communities, 0xFFFF0000}))
            attributes = replace(attributes, communities=marked, local_pref=0)
        if external:
            grown = operated(
                FilterRule(action=Action.ACCEPT, family=self.family, prepend=(to.session.local_asn,)), attributes
            )
            return replace(
                grown, med=None if one.name else grown.med, local_pref=None, originator_id=None, cluster_list=()
            )
        if attributes.local_pref is None:
            attributes = replace(attributes, local_pref=100)
        if one.peer is not None and not one.external and to.tables.cluster_id is not None:
            attributes = replace(
                attributes,
                originator_id=attributes.originator_id or one.peer.router_id,
                cluster_list=(to.tables.cluster_id, *attributes.cluster_list),
            )
        return attributes
