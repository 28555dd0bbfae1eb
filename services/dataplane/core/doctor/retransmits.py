"""A check for loss on the link between two nodes: TCP segments that this node's sockets had to send again.

Two looks at each socket's own counters, seconds apart. A pair of nodes loses when so many of the segments to one node
are sent again and a quarter of that at most to another; without another node that is sent enough to compare, the
pair alone is named. What was sent again for nothing does not count (RFC 2883). Congestion makes a sender repeat less
than a hundredth of its segments, so that is no loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from proto.findings import NETWORK, Expected, Finding, Fix, Observed, node_name, pair_name
from proto.net import Address

LOSES = "pair-loses-packets"
ENOUGH, LEAST = 50, 5
"""Segments to a node within the two looks, and those sent again, before anything is said."""
SHARE = 0.03
"""Part of the segments to a node that are sent again, from which on it is a fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """Segments with data, and those among them that were sent again."""

    segments: int = 0
    retransmitted: int = 0

    def __add__(self, other: Sent) -> Sent:
        return Sent(segments=self.segments + other.segments, retransmitted=self.retransmitted + other.retransmitted)

    def since(self, before: Sent) -> Sent:
        """What was sent after ``before``."""
        return Sent(segments=self.segments - before.segments, retransmitted=self.retransmitted - before.retransmitted)

    @property
    def share(self) -> float:
        """Part that was sent again; 0 where nothing was sent."""
        return self.retransmitted / self.segments if self.segments else 0.0


Sockets = Mapping[int, tuple[Address, Sent]]
"""By cookie: whom it sends to, and what it has sent in its life."""


def by_node(before: Sockets, now: Sockets, node_of: Mapping[Address, str]) -> dict[str, Sent]:
    """What was sent to each node between two looks, by sockets that both have seen; ``node_of``: who has an address."""
    found: dict[str, Sent] = {}
    for cookie in before.keys() & now.keys():
        peer, sent = now[cookie]
        more = sent.since(before[cookie][1])
        if more.segments > 0 and (node := node_of.get(peer)):
            found[node] = found.get(node, Sent()) + more
    return found


def check(node: str, sent: Mapping[str, Sent], seconds: float) -> Iterator[Finding]:
    """``sent``: by other node, within ``seconds``."""
    known = {peer: one for peer, one in sent.items() if peer != node and one.segments >= ENOUGH}
    for peer, one in sorted(known.items()):
        others = {name: other for name, other in known.items() if name != peer}
        if one.retransmitted < LEAST or one.share < SHARE:
            continue
        if others and min(other.share for other in others.values()) > one.share / 4:
            continue  # this node, or all of the network
        yield _finding(node, peer, one, others, seconds)


def _finding(node: str, peer: str, one: Sent, others: Mapping[str, Sent], seconds: float) -> Finding:
    beside = [
        Observed("counter", f"to {name}: {other.retransmitted} of {other.segments}")
        for name, other in sorted(others.items())[:3]
    ]
    return Finding(
        code=LOSES,
        fault="service",
        about=pair_name(node, peer),
        node=node,
        cause=f"the link between {node} and {peer} loses packets: {one.share:.0%} of the segments are sent again",
        expected=Expected(f"less than {SHARE:.0%} of the segments to {peer} are sent again", node_name(peer)),
        observed=(
            Observed(
                "counter",
                f"sockets here sent {one.segments} segments to {peer} in {seconds:.1f} s, {one.retransmitted} again",
            ),
            *beside,
        ),
        fixes=(
            Fix(
                command="ip -s link; tc -s qdisc; ethtool -S IFACE | grep -i -e err -e drop  # on both nodes, then the "
                "switch between",
                risk="none: it only looks",
            ),
        ),
        precedence=NETWORK + 2,
    )
