"""Import and export policy of one peer: the rules of its BGPFilters, and behind them what holds where none matches.

Calico's behaviour, since that is what whoever writes these objects expects: a BGPPeer without filters is a peer that is
trusted. What RFC 8212 asks of an external session, an explicit policy, is this one:

- *Imported* is everything but the range of an IPPool itself, since a peer that announces it would draw the traffic of
  all pods. (Default routes the tables refuse by themselves unless a filter accepts them.)
- *Exported* are this node's own announcements. Learnt routes are exported when their prefix lies in an IPPool, or in an
  announced range of Services' addresses, and never when the pool says ``disableBGPExport``.
- One thing differs from Calico: a route that came from an outside neighbour's AS is not exported to outside peers. With
  two switches each node would offer to carry the rack's traffic from one to the other; a node is no transit.

A filter's rule that accepts is looked at first and so may allow each of these. A peer that names a filter which is not
there exchanges no route at all: a missing rule may be the one that narrows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from proto.net import Network
from proto.objects import BGPFilter, BGPFilterRule, IPPool
from services.routing.core.bgp.communities import GRACEFUL_SHUTDOWN
from services.routing.core.bgp.configuration import standard_or_large
from services.routing.core.bgp.peers import Action, FilterRule, MatchOperator, Source
from services.routing.core.bgp.values import Asn, Family

MOST_METRIC = (1 << 31) - 1
"""A metric and the local preference that stands for it make this together: the lower metric is preferred."""
NOTHING = tuple(FilterRule(action=Action.REJECT, family=family) for family in Family)
"""No route passes."""

Rules = tuple[FilterRule, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """What lies in which range, for all peers of a node."""

    pools: tuple[IPPool, ...] = ()
    services: tuple[Network, ...] = ()
    """Ranges of Services' addresses that are announced."""
    outside: frozenset[Asn] = frozenset()
    """AS numbers of this node's external peers that are no nodes."""


def policies(
    names: Sequence[str], filters: Mapping[str, BGPFilter], ranges: Ranges, *, external: bool, is_node: bool
) -> tuple[Rules, Rules]:
    """Import and export rules of a peer whose BGPFilters have these ``names``."""
    if any(name not in filters for name in names):
        return NOTHING, NOTHING
    used = [filters[name] for name in names]
    imports = [rule for one in used for rule in _of_filter(one.import_v4, one.import_v6, external)]
    exports = [rule for one in used for rule in _of_filter(one.export_v4, one.export_v6, external)]
    pools = sorted(ranges.pools, key=lambda pool: pool.name)
    imports += (_about(Action.REJECT, pool.cidr, MatchOperator.EQUAL) for pool in pools)
    if external and not is_node:
        exports += _not_carried(ranges.outside)
    exports += (_about(Action.REJECT, pool.cidr, MatchOperator.IN) for pool in pools if pool.disable_bgp_export)
    carried = [pool.cidr for pool in pools if not pool.disable_bgp_export]
    exports += (_about(Action.ACCEPT, cidr, MatchOperator.IN) for cidr in (*carried, *ranges.services))
    exports += (FilterRule(action=Action.REJECT, family=family, source=Source.REMOTE_PEERS) for family in Family)
    return tuple(imports), tuple(exports)


def passed_over(asn: Asn) -> Rules:
    """Rules behind those of import from a peer that goes: any other path is preferred here, and by whoever is sent one
    of these. A peer that had it from this node too would not send another way of its own.
    """
    return tuple(
        FilterRule(
            action=Action.ACCEPT,
            family=family,
            set_local_pref=0,
            prepend=(asn,),
            add_communities=(GRACEFUL_SHUTDOWN,),
        )
        for family in Family
    )


def _not_carried(outside: Iterable[Asn]) -> Iterator[FilterRule]:
    for asn in sorted(outside):
        for family in Family:
            yield FilterRule(action=Action.REJECT, family=family, source=Source.REMOTE_PEERS, as_path_prefix=(asn,))


def _about(action: Action, cidr: Network, operator: MatchOperator) -> FilterRule:
    return FilterRule(action=action, family=_family(cidr), network=cidr, operator=operator)


def _family(cidr: Network) -> Family:
    return Family.IPV4 if cidr.version == 4 else Family.IPV6


def _of_filter(v4: Iterable[BGPFilterRule], v6: Iterable[BGPFilterRule], external: bool) -> Iterator[FilterRule]:
    """The rules of one direction that are for peers of this type, in their order."""
    for family, rules in ((Family.IPV4, v4), (Family.IPV6, v6)):
        for rule in rules:
            if rule.peer_type in ("", "eBGP" if external else "iBGP"):
                yield _rule(rule, family)


def _rule(rule: BGPFilterRule, family: Family) -> FilterRule:
    return FilterRule(
        action=Action(rule.action),
        family=family,
        network=rule.cidr,
        operator=MatchOperator(rule.operator),
        lengths=rule.lengths,
        source=Source(rule.source) if rule.source else None,
        interface=rule.interface,
        communities=tuple(map(standard_or_large, rule.communities)),
        as_path_prefix=rule.as_path_prefix,
        set_local_pref=None if rule.priority is None else MOST_METRIC - rule.priority,
        prepend=rule.prepend,
        add_communities=tuple(map(standard_or_large, rule.add_communities)),
    )
