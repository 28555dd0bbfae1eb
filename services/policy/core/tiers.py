"""Tiers as one list of rules of which the first that matches decides: the form in which a datapath asks them.

A tier stands before those after it. One that isolates ends all questions, so what comes after it is reached by a pass
alone. A pass is expanded: in its place stands what the tiers after its own say, narrowed to the flows that it matches,
and then what they say of a flow that no rule of theirs matches. A pass with nothing between itself and the next tier
says nothing, and is left out.

A rule has a list of peers of which any may match, so a peer that has to be in a selector and in an ipBlock at once
cannot be said. That, and a list that grows too long, is :class:`Unenforceable`: the direction is to be denied whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from proto.objects import Selector
from proto.policy import Direction, PortMatch, RuleSource, SelectorPeer
from services.policy.core.model import Action

MOST_EXPANDED = 4096
"""Rules of one direction with every pass expanded; more are not looked at."""


class Unenforceable(ValueError):
    """What the rules of a direction would take of nodes, and these do not enforce; ``reason`` as in ``ObjectFault``."""

    def __init__(self, how: str, reason: str = "PolicyTooLarge") -> None:
        super().__init__(how)
        self.reason = reason


class Clause(NamedTuple):
    """A rule before its peers have numbers. It has peers and ports."""

    direction: Direction
    source: RuleSource
    ports: tuple[PortMatch, ...]
    any_peer: bool
    selectors: tuple[SelectorPeer, ...]
    cidr_sets: tuple[int, ...]
    action: Action = Action.ALLOW


class RuleList(NamedTuple):
    """Rules of one direction that allow or deny, the first that matches decides; what none matches is denied or not."""

    clauses: Sequence[Clause] = ()
    isolated: bool = False


NOTHING = RuleList()
"""No tier: everything is allowed."""


def prepend(own: Sequence[Clause], after: RuleList, *, isolates: bool) -> RuleList:
    """A tier of these rules before those that ``after`` is of; raises :class:`Unenforceable`."""
    end = RuleList(isolated=True) if isolates else after
    if all(clause.action is not Action.PASS for clause in own):
        return RuleList((*own, *end.clauses), end.isolated)
    falls_through = not isolates
    backwards = list(reversed(end.clauses))
    for clause in reversed(own):
        if clause.action is not Action.PASS:
            backwards.append(clause)
            falls_through = False
        elif not falls_through:
            backwards.append(clause._replace(action=Action.DENY if after.isolated else Action.ALLOW))
            backwards += (found for one in reversed(after.clauses) if (found := intersection(one, clause)) is not None)
            if len(backwards) > MOST_EXPANDED:
                raise Unenforceable(f"more than {MOST_EXPANDED} rules for what is passed on")
    return RuleList(tuple(reversed(backwards)), end.isolated)


def intersection(clause: Clause, to: Clause) -> Clause | None:
    """The rule for flows alone that the other matches too; None where there are none."""
    ports = {both for one in clause.ports for other in to.ports if (both := both_ports(one, other)) is not None}
    if not ports:
        return None
    found = clause._replace(ports=tuple(sorted(ports)))
    if to.any_peer:
        return found
    if clause.any_peer:
        return found._replace(any_peer=False, selectors=to.selectors, cidr_sets=to.cidr_sets)
    if (clause.selectors and to.cidr_sets) or (clause.cidr_sets and to.selectors):
        raise Unenforceable("peers that are of a selector and of an ipBlock at once", "PolicyNotEnforced")
    pairs = (_both(one, other) for one in clause.selectors for other in to.selectors)
    selectors = tuple(dict.fromkeys(both for both in pairs if both is not None))
    numbers = tuple(sorted(set(clause.cidr_sets) & set(to.cidr_sets)))
    return found._replace(selectors=selectors, cidr_sets=numbers) if selectors or numbers else None


def both_ports(one: PortMatch, other: PortMatch) -> PortMatch | None:
    """Ports that both match; None for none."""
    if not one.protocol or not other.protocol:
        return one if other.protocol == 0 else other
    if one.protocol != other.protocol:
        return None
    wide, narrow = sorted((one, other), key=lambda match: match.bits)
    return narrow if (wide.port ^ narrow.port) >> (16 - wide.bits) == 0 else None


def _both(one: SelectorPeer, other: SelectorPeer) -> SelectorPeer | None:
    """The selector of pods that both select; none where their namespaces differ."""
    if one.namespace and other.namespace and one.namespace != other.namespace:
        return None
    if one.named_port and other.named_port and one.named_port != other.named_port:
        raise Unenforceable("peers that have one port by two names", "PolicyNotEnforced")
    return SelectorPeer(
        namespace=one.namespace or other.namespace,
        namespace_selector=_all_of(one.namespace_selector, other.namespace_selector),
        pod_selector=_all_of(one.pod_selector, other.pod_selector),
        named_port=one.named_port or other.named_port,
    )


def _all_of(one: Selector | None, other: Selector | None) -> Selector | None:
    """Requirements of both; None says nothing."""
    if one is None or other is None:
        return other if one is None else one
    return Selector(
        match_labels=tuple(sorted({*one.match_labels, *other.match_labels})),
        match_expressions=tuple(dict.fromkeys((*one.match_expressions, *other.match_expressions))),
    )
