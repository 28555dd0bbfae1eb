"""Whose MAC address stands for a node's address: one that two machines answer for, and a neighbour entry of another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address

from proto.findings import HOST, NETWORK, Expected, Finding, Fix, Observed, node_name, pair_name

CODES = ("address-duplicate", "neighbour-stale")
MOST = 32
"""Nodes of one link that one node asks for: a request is heard by all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An uplink, and who answered on it."""

    node: str
    device: str
    own: IPv4Address
    peers: Mapping[IPv4Address, str]
    """Nodes by their addresses on this link."""
    answers: Mapping[IPv4Address, frozenset[bytes]]
    """MAC addresses that answered an ARP request for each address."""
    entries: Mapping[IPv4Address, tuple[bytes, bool]]
    """The kernel's neighbour entries: MAC address, and whether somebody set it for good."""


def asked(own: IPv4Address, peers: Mapping[IPv4Address, str]) -> dict[IPv4Address, str]:
    """Those of ``peers`` that ``own`` asks for: the next :data:`MOST` addresses, the lowest after the highest.

    So each address of a large link is asked for by as many nodes, and all of them by somebody.
    """
    ordered = sorted(peers, key=lambda one: (one < own, one))
    return {address: peers[address] for address in ordered[:MOST]}


def check(seen: Link) -> Iterable[Finding]:
    """Findings of one link. An address that two machines have says nothing of its neighbour entry."""
    for address in sorted(seen.answers):
        macs = seen.answers[address]
        peer = seen.peers.get(address, "")
        if (address == seen.own and macs) or len(macs) > 1:
            yield _duplicate(seen, address, peer or seen.node, macs)
        elif peer and len(macs) == 1 and address in seen.entries:
            mac, is_permanent = seen.entries[address]
            if mac and mac not in macs:
                yield _stale(seen, address, peer, mac, next(iter(macs)), is_permanent=is_permanent)


def _duplicate(seen: Link, address: IPv4Address, whose: str, macs: frozenset[bytes]) -> Finding:
    others = ", ".join(mac.hex(":") for mac in sorted(macs))
    who = f"{others} answers, and so does {seen.node}" if whose == seen.node else f"{others} all answer"
    return Finding(
        code="address-duplicate",
        fault="nodes-apart",
        about=node_name(whose),
        node=seen.node,
        cause=f"two machines have {address}, the address of node {whose}, on {seen.device}",
        expected=Expected(text=f"{address} is the address of {whose} alone", object=node_name(whose)),
        observed=(Observed(where="packet", text=f"ARP request for {address} on {seen.device}: {who}"),),
        fixes=(
            Fix(
                command=f"ip neigh show {address}; ip addr del {address}/32 dev IFACE  # on the machine that must not",
                risk="the machine that loses the address is cut off, if it is the wrong one",
            ),
        ),
        precedence=NETWORK,
    )


def _stale(seen: Link, address: IPv4Address, peer: str, mac: bytes, true: bytes, *, is_permanent: bool) -> Finding:
    kind = "permanent" if is_permanent else "cached"
    lasting = " nud permanent" * is_permanent
    return Finding(
        code="neighbour-stale",
        fault="nodes-apart",
        about=pair_name(seen.node, peer),
        node=seen.node,
        cause=f"{seen.node} sends what is for {peer} to {mac.hex(':')}, which is not its MAC address",
        expected=Expected(text=f"{address} lladdr {true.hex(':')} dev {seen.device}", object=node_name(peer)),
        observed=(
            Observed(where="neighbour", text=f"{address} lladdr {mac.hex(':')} dev {seen.device} ({kind})"),
            Observed(where="packet", text=f"ARP request for {address}: {true.hex(':')} answers, and nobody else"),
        ),
        fixes=(
            Fix(
                command=f"ip neigh del {address} dev {seen.device}",
                risk="none: the kernel asks for the address again",
                automatic=True,
                undo=f"ip neigh replace {address} lladdr {mac.hex(':')} dev {seen.device}{lasting}",
            ),
        ),
        precedence=HOST,
    )
