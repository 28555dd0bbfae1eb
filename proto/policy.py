"""Compiled policy: what each identity may send and receive, and how far each node is with enforcing it.

``policy`` compiles every NetworkPolicy once per identity; nodes put the result into kernel maps. A revision is
(epoch of ``objects``, last sequence compiled), so "is it enforced everywhere" is a comparison of numbers. An identity
without an entry in ``rules`` is unknown and denied: absence never allows.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from proto.net import Network


class Revision(msgspec.Struct, frozen=True, order=True):
    """How far something is. Revisions of different epochs are not comparable by size: see ``covers``."""

    epoch: str
    """Epoch of the ``objects`` bucket."""
    sequence: int
    """Stream sequence of the last object taken into account."""

    def covers(self, other: Revision) -> bool:
        """True when everything up to ``other`` is contained; False for another epoch."""
        return self.epoch == other.epoch and self.sequence >= other.sequence


class Direction(IntEnum):
    """Seen from the subject."""

    INGRESS = 0
    EGRESS = 1


class PeerKind(IntEnum):
    """What :attr:`CompiledRule.peer` is a number of."""

    ANY = 0
    IDENTITY = 1
    CIDR_SET = 2


class Verdict(IntEnum):
    """What a rule says."""

    DENY = 0
    ALLOW = 1


class CompiledRule(msgspec.Struct, frozen=True, order=True, array_like=True, gc=False):
    """One line of an identity's policy; the matching line with the lowest rank wins.

    ``protocol`` 0 = any. ``port`` with ``port_bits``: the first ``port_bits`` bits of the 16-bit port must agree
    (0 = any port, 16 = exactly this one), so a range is a few lines. An array on the wire: there may be thousands.
    """

    direction: Direction
    peer_kind: PeerKind
    peer: int
    protocol: int
    port: int
    port_bits: int
    rank: int
    verdict: Verdict
    rule: int
    """Index into :attr:`CompiledPolicy.sources`."""


class RuleSource(msgspec.Struct, frozen=True):
    """Where a compiled line comes from: for a person who asks why."""

    kind: str
    """``NetworkPolicy``."""
    namespace: str
    name: str
    index: int
    """Index of the rule within the policy's ingress or egress list; negative in ``isolated_by``."""


class CompiledPolicy(msgspec.Struct, frozen=True):
    """Value of ``rules.<identity>``, one for every identity in use, also where no policy selects it."""

    identity: int
    revision: Revision
    ingress_isolated: bool
    egress_isolated: bool
    rules: tuple[CompiledRule, ...] = ()
    sources: tuple[RuleSource, ...] = ()
    isolated_by: tuple[RuleSource, ...] = ()
    """Policies that isolate the subject: what denies when no line allows. Index -1: in ingress, -2: in egress; a policy
    that does both stands here twice."""
    namespace: str = ""
    """Whose policies these are: its :class:`CidrPartition` says what the numbers of CIDR sets mean."""


class CidrSet(msgspec.Struct, frozen=True):
    """A prefix and the set of ipBlock rules that hold its addresses, but for those in a longer prefix of the list."""

    prefix: Network
    number: int
    """64-bit hash of the set: the same set has the same number in every replica and for ever. 0 = no rule holds it."""


class CidrPartition(msgspec.Struct, frozen=True):
    """Value of ``rules._cidrs.<namespace>``: all addresses that one namespace's policies name by CIDR.

    The longest prefix that holds an address says its set; where none does, no rule holds it. Each namespace has its own
    partition and is judged by no other. A node puts a partition in force only when every shard's frontier covers
    ``revision``: then the rules that name its numbers are already in the maps.
    """

    revision: Revision
    prefixes: tuple[CidrSet, ...] = ()
    namespace: str = ""
    digest: str = ""
    """Of the prefixes: of two partitions with one digest either may stand for the other."""


class Frontier(msgspec.Struct, frozen=True):
    """Value of ``rules._frontier.<shard>``: all rules of this shard up to ``revision`` are written."""

    shard: int
    shards: int
    """How many shards there are; identity ``i`` belongs to shard ``i % shards``."""
    revision: Revision


class Ack(msgspec.Struct, frozen=True):
    """Value of ``acks.<node>``: what this node's kernel maps hold."""

    node: str
    rules: Revision
    """The smallest frontier of all shards that the maps hold."""
    endpoints: int
    """Stream sequence of ``endpoints`` that the maps hold."""
    endpoints_epoch: str = ""
    pods: int = 0
    """Endpoints of this node."""
    ready: bool = False
    """CNI answers, programs are attached, all watches are in sync."""
