"""Route policy: the rules of BGPFilters, in order, applied to a route's prefix and attributes.

The first rule that matches decides, and where none does, the peer's default. A rule without a condition matches every
route. Whatever a rule says of attributes is looked at once for all prefixes of an UPDATE; what it says of the prefix is
a comparison of integers, made when the rules are read. The meaning of each field is that of Calico's BGPFilter as its
agent writes it for BIRD: a range is the set ``[ cidr{min,max} ]``, where ``min`` is no shorter than the range itself,
and ``NotIn`` and ``NotEqual`` are the opposite of the whole range, lengths included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from proto.net import Network
from services.routing.core.bgp.peers import Action, FilterRule, MatchOperator
from services.routing.core.bgp.values import Asn, Attributes, Family, Prefix, Segment, SegmentKind, prefix_of

MOST_IN_SEGMENT = 255
"""Numbers of a segment of an AS path (RFC 4271 4.3: its length is one octet)."""


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """A rule that is ready to be applied."""

    rule: FilterRule
    covers: Callable[[Prefix], bool] | None
    """Whether a prefix matches; None: every prefix does."""
    names: Prefix | None
    """The prefix that the rule names itself: its range, where prefixes in it or equal to it match."""
    octets: frozenset[bytes] | None
    """First octets of the addresses of all prefixes that match; None: it may be any."""

    @property
    def accepts(self) -> bool:
        """The rule lets a route pass."""
        return self.rule.action is Action.ACCEPT


def _range(rule: FilterRule) -> Callable[[Prefix], bool] | None:
    """Whether a prefix is what the operator compares with: in the range, or equal to it."""
    least, most = rule.lengths or (0, 128)
    if rule.network is None:
        return (lambda prefix: least <= prefix[0] <= most) if rule.lengths is not None else None
    family, named = prefix_of(rule.network)
    width, length = family.bits // 8, named[0]
    if rule.operator in (MatchOperator.EQUAL, MatchOperator.NOT_EQUAL):
        return lambda prefix: prefix == named and least <= length <= most
    shift = family.bits - length
    bits = int(rule.network.network_address) >> shift
    least = max(least, length)
    return lambda prefix: least <= prefix[0] <= most and int.from_bytes(prefix[1:].ljust(width, b"\0")) >> shift == bits


def first_octets(network: Network) -> frozenset[bytes]:
    """First octets of the addresses in a range; empty octets for one that holds them all."""
    if not network.prefixlen:
        return frozenset((b"",))
    first = network.network_address.packed[0]
    return frozenset(bytes((octet,)) for octet in range(first, first + (1 << max(0, 8 - network.prefixlen))))


def _ready(rule: FilterRule) -> Rule:
    within, network = _range(rule), rule.network
    if within is None or network is None:
        return Rule(rule, within, prefix_of(network)[1] if network is not None else None, None)
    if rule.operator in (MatchOperator.NOT_EQUAL, MatchOperator.NOT_IN):
        return Rule(rule, lambda prefix: not within(prefix), None, None)
    return Rule(rule, within, prefix_of(network)[1], first_octets(network) if network.prefixlen else None)


def nearest(as_path: tuple[Segment, ...], count: int) -> tuple[Asn, ...]:
    """The first ``count`` numbers of an AS path, fewer where a set or the end comes before."""
    found: tuple[Asn, ...] = ()
    for segment in as_path:
        if segment.kind is not SegmentKind.SEQUENCE or len(found) >= count:
            break
        found += segment.numbers
    return found[:count]


def prepended(as_path: tuple[Segment, ...], numbers: tuple[Asn, ...]) -> tuple[Segment, ...]:
    """An AS path with numbers before it, nearest first (RFC 4271 5.1.2): in its first sequence while that has room."""
    for number in reversed(numbers):
        first = as_path[0] if as_path else None
        if first is not None and first.kind is SegmentKind.SEQUENCE and len(first.numbers) < MOST_IN_SEGMENT:
            as_path = (Segment(SegmentKind.SEQUENCE, (number, *first.numbers)), *as_path[1:])
        else:
            as_path = (Segment(SegmentKind.SEQUENCE, (number,)), *as_path)
    return as_path


def with_communities(attributes: Attributes, added: Iterable[int | tuple[int, int, int]]) -> Attributes:
    """The attributes with standard and large communities besides their own, each once, ascending."""
    standard, large = set(attributes.communities), set(attributes.large_communities)
    for community in added:
        if isinstance(community, int):
            standard.add(community)
        else:
            large.add(community)
    return replace(attributes, communities=tuple(sorted(standard)), large_communities=tuple(sorted(large)))


def changed_by(rule: FilterRule, attributes: Attributes) -> Attributes:
    """The attributes after a rule that accepts: preference, numbers before the AS path, communities added."""
    if rule.set_local_pref is not None:
        attributes = replace(attributes, local_pref=rule.set_local_pref)
    if rule.prepend:
        attributes = replace(attributes, as_path=prepended(attributes.as_path, rule.prepend))
    if rule.add_communities:
        attributes = with_communities(attributes, rule.add_communities)
    return attributes


def _suits(rule: FilterRule, attributes: Attributes, *, remote: bool, interface: str) -> bool:
    """Whether all matches that a rule names beside the prefix hold. ``remote``: the route was learnt from a peer."""
    if rule.source is not None and not remote:
        return False
    if rule.interface and not (interface and fnmatchcase(interface, rule.interface)):
        return False
    if rule.communities and not any(
        one in (attributes.communities if isinstance(one, int) else attributes.large_communities)
        for one in rule.communities
    ):
        return False
    return nearest(attributes.as_path, len(rule.as_path_prefix)) == rule.as_path_prefix


class Policy:
    """The rules of one direction and one family.

    Args:
        rules: In order; those of the other family are left out.
        default: What becomes of a route that no rule matches.
    """

    def __init__(self, rules: Iterable[FilterRule], family: Family, *, default: bool) -> None:
        self.default = default
        self._rules = tuple(_ready(rule) for rule in rules if rule.family is family)
        self.is_empty = not self._rules
        plain = (rule.rule for rule in self._rules)
        self._by_prefix_alone = all(
            not (rule.source or rule.interface or rule.communities or rule.as_path_prefix) for rule in plain
        )
        known = (rule.octets for rule in self._rules if rule.octets is not None)
        self.octets = frozenset[bytes]().union(*known)
        """First octets of the prefixes in the rules' ranges, as far as these can be told."""

    def applicable(self, attributes: Attributes, *, remote: bool, interface: str) -> tuple[Rule, ...]:
        """The rules that may match a route with these attributes, up to the first that matches every prefix."""
        found: list[Rule] = []
        for rule in self._rules:
            if self._by_prefix_alone or _suits(rule.rule, attributes, remote=remote, interface=interface):
                found.append(rule)
                if rule.covers is None:
                    break
        return tuple(found)

    def accepts(self, rule: Rule | None) -> bool:
        """What the rule that decides says; None: no rule matched."""
        return self.default if rule is None else rule.accepts


def deciding(applicable: tuple[Rule, ...], prefix: Prefix) -> Rule | None:
    """The first of the rules that matches the prefix."""
    for rule in applicable:
        if rule.covers is None or rule.covers(prefix):
            return rule
    return None


def elsewhere(applicable: tuple[Rule, ...]) -> tuple[bool, Rule | None]:
    """Whether one rule, or none, decides about all prefixes outside of the rules' ranges (:attr:`Policy.octets`), and
    which.
    """
    for rule in applicable:
        if rule.covers is None:
            return True, rule
        if rule.octets is None:
            return False, None
    return True, None
