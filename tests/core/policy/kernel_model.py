"""The datapath's maps and lookups as a model: what a node does with published rules, records and CIDR sets.

Addresses are 128 bits with IPv4 mapped; identities and CIDR sets come from longest-prefix tries. A node asks each
selector of each published record; a peer and a port each give the set of rules that they are in (a vector of bits); of
the rules in both the first wins, since rules stand in the order of precedence; no subject, no way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from kit.selectors import Candidate
from proto.identity import IdentityRecord, Reserved
from proto.policy import CidrSet, CompiledPolicy, Direction, PortMatch

Address = IPv4Address | IPv6Address
PORTED = {6, 17, 132}
MAPPED = 0xFFFF << 32


def bits(address: Address) -> int:
    return int(address) | (MAPPED if address.version == 4 else 0)


class Trie:
    """Longest-prefix match over fixed-width keys, by trying every stored length."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.values: dict[tuple[int, int], int] = {}

    def add(self, key: int, length: int, value: int) -> None:
        slot = (length, key >> (self.width - length))
        assert slot not in self.values, "two entries with one key: the second would overwrite the first"
        self.values[slot] = value

    def find(self, key: int) -> int | None:
        for length in sorted({length for length, _ in self.values}, reverse=True):
            found = self.values.get((length, key >> (self.width - length)))
            if found is not None:
                return found
        return None

    def add_network(self, network: IPv4Network | IPv6Network, value: int) -> None:
        length = network.prefixlen + (96 if network.version == 4 else 0)
        self.add(bits(network.network_address), length, value)


def holds(match: PortMatch, key: int) -> bool:
    """Whether the first bits of protocol and port are the match's."""
    length = 0 if match.protocol == 0 else 8 + match.bits
    return (key ^ (match.protocol << 16 | match.port)) >> (24 - length) == 0


@dataclass
class Kernel:
    """One node's maps (all nodes of a test share them, but for which node is its own)."""

    subjects: dict[int, CompiledPolicy] = field(default_factory=dict)
    members: dict[tuple[int, int], set[int]] = field(default_factory=dict)
    """By subject and place of the selector in its policy: identities that it matches."""
    cidrs: dict[str, Trie] = field(default_factory=dict)
    """By the namespace whose policies they are of."""
    ipcache: dict[Address, int] = field(default_factory=dict)
    node_of: dict[Address, str] = field(default_factory=dict)

    @classmethod
    def filled(
        cls,
        policies: Iterable[CompiledPolicy],
        records: Iterable[IdentityRecord],
        prefixes: Mapping[str, Iterable[CidrSet]],
    ) -> Kernel:
        kernel, known = cls(), list(records)
        matched: dict[object, set[int]] = {}
        for policy in policies:
            kernel.subjects[policy.identity] = policy
            for rule_index, peer in enumerate(policy.selectors):
                if peer not in matched:
                    matched[peer] = {record.identity for record in known if Candidate.of(record).is_in(peer)}
                kernel.members[policy.identity, rule_index] = matched[peer]
        for namespace, entries in prefixes.items():
            kernel.cidrs[namespace] = Trie(128)
            for entry in entries:
                kernel.cidrs[namespace].add_network(entry.prefix, entry.number)
        return kernel

    def judge(self, subject: int, direction: Direction, peer: int, address: Address, protocol: int, port: int) -> bool:
        if subject not in self.subjects:
            return False
        policy = self.subjects[subject]
        cidrs = self.cidrs.get(policy.namespace)
        number = cidrs.find(bits(address)) if cidrs else 0
        key = protocol << 16 | (port if protocol in PORTED else 0)
        for rule in policy.rules:
            by_selector = any(peer in self.members[subject, rule_index] for rule_index in rule.selectors)
            by_peer = rule.any_peer or by_selector or (number and number in rule.cidr_sets)
            if rule.direction == direction and by_peer and any(holds(match, key) for match in rule.ports):
                return rule.verdict == 1
        return not (policy.egress_isolated if direction else policy.ingress_isolated)

    def allows(self, source: Address, destination: Address, protocol: int, port: int) -> bool:
        """A flow between two addresses, judged at the source's egress and at the destination's ingress."""
        start, end = self.ipcache.get(source, Reserved.WORLD), self.ipcache.get(destination, Reserved.WORLD)
        if source == destination:
            return True
        if start > 255 and not self.judge(start, Direction.EGRESS, end, destination, protocol, port):
            return False
        if start == Reserved.HOST and self.node_of.get(source) == self.node_of.get(destination):
            return True
        return end <= 255 or self.judge(end, Direction.INGRESS, start, source, protocol, port)
