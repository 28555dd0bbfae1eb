"""Ways between two nodes that are not answered, and why: the host's firewall, the network between, or the other node.

A way is judged by the packets of measurement that the two agents send each other (``core.evidence``), and one that was
proved by some that are sent at the moment of the question: evidence of a failure takes up to a minute. Where it fails,
a connection to the other node's own address tells whether the node can be reached at all: then what is lost is what the
model adds, and whoever stands between drops it, unless a rule of this host is seen to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from kit.netfilter import Dropped, Packet, Ruleset, dropped
from proto.findings import HOST, NETWORK, Expected, Finding, Fix, Observed, pair_name
from proto.net import Address
from services.routing.core.evidence import LOST, Evidence, Verdict, Way

CODES = (
    "firewall-drops",
    "fabric-filters-ipip",
    "fabric-filters-vxlan",
    "fabric-filters-wireguard",
    "node-unreachable",
)
PATHS = ("path-mtu-small",)
IPIP, UDP = 4, 17


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A way to another node, and what is known of it."""

    peer: str
    way: Way
    device: str
    evidence: Evidence
    port: int
    """UDP port of the model's packets; 0 for IP in IP and for packets as they are."""
    most: int
    """Bytes that would fit by what both nodes say."""
    uplink: str
    """Interface that leads to the other node."""
    silent: int = 0
    """Small packets that were sent at the moment of the question, none of which was answered."""

    @property
    def fails(self) -> bool:
        """Small packets are not answered: by the evidence, or at this moment."""
        evidence = self.evidence
        return self.silent >= LOST or (evidence.verdict is Verdict.FAILS and not evidence.narrow)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """What is judged."""

    node: str
    measured: tuple[Measured, ...]
    """Ways that packets take, or are to take."""
    reached: Mapping[Address, bool]
    """Whether the other nodes' own addresses answer a connection."""
    ruleset: Ruleset | None
    """None: it cannot be read."""


def check(seen: Ways) -> Iterable[Finding]:
    """A finding for each way that fails."""
    for one in seen.measured:
        if not one.fails:
            continue
        rule = _rule(seen, one)
        if rule is not None:
            yield _firewall(seen, one, rule)
        elif seen.reached.get(one.way.remote, False):
            yield from _network(seen, one)
        else:
            yield _unreachable(seen, one)


def check_mtu(seen: Ways) -> Iterable[Finding]:
    """A finding for each way of :func:`small`."""
    return (_small(seen, one) for one in small(seen))


def small(seen: Ways) -> Iterator[Measured]:
    """Ways that take less than both nodes' interfaces do."""
    return (one for one in seen.measured if one.evidence.search.done and 0 < one.evidence.search.good < one.most)


def _outer(one: Measured, *, sent: bool) -> Packet:
    local, remote = (one.way.local, one.way.remote) if sent else (one.way.remote, one.way.local)
    by = {"sent_by": one.uplink} if sent else {"received_by": one.uplink}
    return Packet(source=local, destination=remote, protocol=UDP if one.port else IPIP, port=one.port, **by)


def _rule(seen: Ways, one: Measured) -> Dropped | None:
    """The rule of this host that drops what the model sends or receives."""
    if seen.ruleset is None or one.way.model == "host-gw":
        return None
    for hook in ("output", "postrouting", "egress", "ingress", "prerouting", "input"):
        found = dropped(seen.ruleset, hook, _outer(one, sent=hook in ("output", "postrouting", "egress")))
        if found is not None:
            return found
    return None


def _silence(one: Measured) -> Observed:
    text = (
        f"{max(one.silent, one.evidence.lost)} packets in a row to {one.way.remote} by {one.device} were not answered"
    )
    return Observed(where="packet", text=text)


def _carried(one: Measured) -> str:
    if one.way.model == "host-gw":
        return "packets as they are"
    return f"UDP port {one.port}" if one.port else "IP protocol 4"


def _finding(seen: Ways, one: Measured, code: str, cause: str, observed: tuple[Observed, ...], fix: Fix) -> Finding:
    return Finding(
        code=code,
        fault="nodes-apart",
        about=pair_name(seen.node, one.peer),
        node=seen.node,
        cause=cause,
        expected=Expected(
            text=f"packets by {one.way.model} ({_carried(one)}) reach {one.peer} and are answered",
            object=f"Node {one.peer}",
        ),
        observed=observed,
        fixes=(fix,),
        precedence=HOST if code == "firewall-drops" else NETWORK,
    )


def _firewall(seen: Ways, one: Measured, rule: Dropped) -> Finding:
    counted = f", its counter says {rule.packets} packets" if rule.packets else ""
    cause = f"a rule of {seen.node}'s own firewall drops {_carried(one)} between {seen.node} and {one.peer}"
    observed = (Observed(where="netfilter", text=f"{rule.text}{counted}"), _silence(one))
    fix = Fix(command=rule.removal, risk="what else the rule drops is let through; whoever set it may set it again")
    return _finding(seen, one, "firewall-drops", cause, observed, fix)


def _network(seen: Ways, one: Measured) -> Iterable[Finding]:
    if one.way.model == "host-gw":
        return
    cause = f"the network between {seen.node} and {one.peer} does not let {_carried(one)} through"
    reached = Observed(where="socket", text=f"{one.way.remote} itself answers a TCP connection")
    fix = Fix(
        command=f"# in the network's firewall or security group: let {_carried(one)} through between the nodes",
        risk="none for others: the nodes' addresses alone are named",
        on="cluster",
    )
    yield _finding(seen, one, f"fabric-filters-{one.way.model}", cause, (_silence(one), reached), fix)


def _unreachable(seen: Ways, one: Measured) -> Finding:
    cause = f"node {one.peer} cannot be reached from {seen.node} at its own address {one.way.remote}"
    reached = Observed(where="socket", text=f"{one.way.remote} answers no TCP connection")
    command = f"ip route get {one.way.remote}; ping {one.way.remote}"
    fix = Fix(command=command, risk="none: it only looks")
    return _finding(seen, one, "node-unreachable", cause, (_silence(one), reached), fix)


def _small(seen: Ways, one: Measured) -> Finding:
    good = one.evidence.search.good
    cause = f"the network between {seen.node} and {one.peer} takes smaller packets than their interfaces"
    observed = Observed(
        where="packet", text=f"by {one.device} {good} bytes are answered, and none of {one.evidence.search.bad} bytes"
    )
    fix = Fix(
        command=f"ip link set {one.uplink} mtu SIZE  # on every node, or raise it in the network between",
        risk="packets that are on their way may be lost for a moment",
    )
    return Finding(
        code="path-mtu-small",
        fault="nodes-apart",
        about=pair_name(seen.node, one.peer),
        node=seen.node,
        cause=cause,
        expected=Expected(text=f"packets of {one.most} bytes by {one.way.model} pass", object=f"Node {one.peer}"),
        observed=(observed,),
        fixes=(fix,),
        precedence=NETWORK + 1,
    )
