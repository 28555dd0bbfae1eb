"""Whether the compiled policy of a pod here lets an address in: what the checks have to know of nodes' own addresses.

A node speaks in its own name for clients from outside. The node that a pod runs on always reaches it, so what a node is
answered by its own pods says nothing of what others are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from proto.net import Address
from proto.policy import CidrPartition, CompiledPolicy, Direction, PortMatch, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A pod of this node, and what judges it."""

    name: str
    """``namespace/pod``."""
    addresses: tuple[Address, ...]
    policy: CompiledPolicy
    partition: CidrPartition


def allows(subject: Subject, source: Address, protocol: int, port: int) -> bool:
    """Whether a node's address may open a connection to a port of the pod (``protocol``: IANA number)."""
    if not subject.policy.ingress_isolated:
        return True
    number = _set_of(subject.partition, source)
    for rule in subject.policy.rules:
        matches = rule.any_peer or (number and number in rule.cidr_sets)
        if rule.direction == Direction.INGRESS and matches and is_on(rule.ports, protocol, port):
            return rule.verdict == Verdict.ALLOW
    return False


def is_on(ports: Iterable[PortMatch], protocol: int, port: int) -> bool:
    """Whether a rule's ports have this one."""
    return any(
        one.protocol in (0, protocol) and port >> (16 - one.bits) == one.port >> (16 - one.bits) for one in ports
    )


def _set_of(partition: CidrPartition, source: Address) -> int:
    holding = [one for one in partition.prefixes if source in one.prefix]
    return max(holding, key=lambda one: one.prefix.prefixlen).number if holding else 0
