"""The datapath's maps and lookups as a model: what the eBPF programs do with compiled lines, bit for bit of the keys.

Addresses are 128 bits with IPv4 mapped; identities and CIDR sets come from longest-prefix tries; policy keys end in 24
bits of protocol and port of which the longest stored prefix wins; three lookups, lowest rank wins; no subject, no way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from proto.identity import Reserved
from proto.policy import CidrSet, CompiledPolicy, Direction, PeerKind

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


@dataclass
class Kernel:
    """One node's maps (all nodes of a test share them, but for which node is its own)."""

    subjects: dict[int, tuple[bool, bool]] = field(default_factory=dict)
    policy: dict[tuple[int, int, int, int], Trie] = field(default_factory=dict)
    lines: list[tuple[int, int]] = field(default_factory=list)
    cidrs: dict[str, Trie] = field(default_factory=dict)
    namespaces: dict[int, str] = field(default_factory=dict)
    ipcache: dict[Address, int] = field(default_factory=dict)
    node_of: dict[Address, str] = field(default_factory=dict)

    @classmethod
    def filled(cls, compiled: Iterable[CompiledPolicy], prefixes: Mapping[str, Iterable[CidrSet]]) -> Kernel:
        kernel = cls()
        for policy in compiled:
            kernel.subjects[policy.identity] = (policy.ingress_isolated, policy.egress_isolated)
            kernel.namespaces[policy.identity] = policy.namespace
            for rule in policy.rules:
                where = (policy.identity, rule.direction, rule.peer_kind, rule.peer)
                length = 0 if rule.protocol == 0 else 8 + rule.port_bits
                kernel.policy.setdefault(where, Trie(24)).add(
                    rule.protocol << 16 | rule.port, length, len(kernel.lines)
                )
                kernel.lines.append((rule.rank, rule.verdict))
        for namespace, entries in prefixes.items():
            kernel.cidrs[namespace] = Trie(128)
            for entry in entries:
                kernel.cidrs[namespace].add_network(entry.prefix, entry.number)
        return kernel

    def judge(self, subject: int, direction: Direction, peer: int, address: Address, protocol: int, port: int) -> bool:
        if subject not in self.subjects:
            return False
        key = protocol << 16 | (port if protocol in PORTED else 0)
        found = []
        cidrs = self.cidrs.get(self.namespaces[subject])
        for kind, number in (
            (PeerKind.IDENTITY, peer),
            (PeerKind.CIDR_SET, (cidrs.find(bits(address)) if cidrs else 0) or 0),
            (PeerKind.ANY, 0),
        ):
            trie = self.policy.get((subject, direction, kind, number))
            line = None if trie is None else trie.find(key)
            if line is not None:
                found.append(self.lines[line])
        if found:
            return min(found)[1] == 1
        return not self.subjects[subject][direction]

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
