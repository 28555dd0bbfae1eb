"""Records of the policy maps: scopes of rules, selector sets, and the CIDR sets of namespaces (see :mod:`.layout`).

A scope is the policy of one direction, named by its content; rule j is bit j of its vectors. Two keys are
longest-prefix tries, whose fields stand in the order in which they may be left open.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Network, IPv6Network
from typing import Self

from services.dataplane.core.datapath.layout import PrefixKey
from services.dataplane.core.datapath.wire import (
    U8,
    U32,
    U64,
    Addr,
    Bits256,
    Flag,
    Hole1,
    NamespaceHash,
    Port,
    Record,
)

CIDR_BITS = 192
NAMESPACE_BITS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CidrKey(Record):
    """A prefix within the partition of one namespace, so that no namespace's ipBlocks cut another's."""

    prefixlen: U32
    namespace: NamespaceHash
    address: Addr

    @classmethod
    def of(cls, namespace: bytes, network: IPv4Network | IPv6Network) -> Self:
        """The key of a prefix as people write it."""
        inner = PrefixKey.of(network)
        return cls(prefixlen=NAMESPACE_BITS + inner.prefixlen, namespace=namespace, address=inner.address)


@dataclass(frozen=True, slots=True, kw_only=True)
class CidrNumber(Record):
    """The set of ipBlock rules that hold an address (``proto.policy.CidrSet.number``); 0 = a hole in an outer one."""

    number: U64


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectKey(Record):
    """An identity that lives on this node."""

    identity: U64


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject(Record):
    """Its policy: the scope of each direction (0 = no rules); a subject without an entry is denied everything."""

    ingress: U64 = 0
    egress: U64 = 0
    ingress_isolated: Flag
    egress_isolated: Flag
    policy: U32 = 0
    """Which policy this is, for whoever asks why (``core.policy.history``); 0 = nobody has said."""
    namespace: NamespaceHash = bytes(8)
    """Whose CIDR sets it is judged by (:class:`CidrKey`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityKey(Record):
    """An identity that a selector in use on this node matches."""

    identity: U64


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectorSet(Record):
    """The set of selectors in use that match an identity (``core.policy.selection``); without an entry none does."""

    number: U64


class PeerMatch(IntEnum):
    """By what a rule may know a peer."""

    ANYBODY = 0
    ANY_POD = 1
    """Whoever has a computed identity; what is true of anybody is said here too."""
    SELECTOR_SET = 2
    CIDR_SET = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopePeerKey(Record):
    """Peers of a scope. ``peer`` is the number of the selector set or CIDR set, 0 for the others."""

    scope: U64
    peer: U64 = 0
    kind: U32


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeBits(Record):
    """Rules of a scope, one bit each, the first in precedence the lowest."""

    bits: Bits256


SCOPE_FIXED_BITS = 104
SCOPE_BITS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopePortKey(Record):
    """Ports of a scope. ``hole`` moves protocol and port to the very end of what is compared."""

    prefixlen: U32
    scope: U64
    hole: Hole1 = 0
    protocol: U8
    port: Port

    @classmethod
    def of(cls, scope: int, protocol: int = 0, port: int = 0, bits: int = 0) -> Self:
        """The key of a ``proto.policy.PortMatch`` (protocol 0 = any; ``bits`` of the port are fixed).

        Raises ValueError for a port prefix without a protocol: the trie cannot say it, and Kubernetes has no such rule.
        """
        if protocol == 0 and bits:
            raise ValueError(f"port {port}/{bits} without a protocol: name TCP, UDP or SCTP, or leave the port open")
        if not 0 <= bits <= 16:
            raise ValueError(f"port bits {bits}: must be 0 to 16")
        return cls(
            prefixlen=SCOPE_FIXED_BITS if protocol == 0 else SCOPE_FIXED_BITS + 8 + bits,
            scope=scope,
            protocol=protocol,
            port=port & (0xFFFF << (16 - bits)) & 0xFFFF,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeRuleKey(Record):
    """A rule by its bit."""

    scope: U64
    index: U32


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeRule(Record):
    """What a rule says, and its number for whoever asks why (``proto.policy.CompiledRule.source``)."""

    rule: U32
    verdict: U8
