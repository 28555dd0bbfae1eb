"""Compiled policy: what each identity may send and receive, and how far each node is with enforcing it.

``policy`` compiles every NetworkPolicy once per identity; nodes put the result into kernel maps. A revision is
(epoch of ``objects``, last sequence compiled), so "is it enforced everywhere" is a comparison of numbers. An identity
without an entry in ``rules`` is unknown and denied: absence never allows.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from proto.identity import NamedPort, RelevantKeys
from proto.net import Network
from proto.objects import Selector

MAX_RULES = 256
"""Rules of one direction: each is one bit of the vectors that the datapath intersects."""


class Revision(msgspec.Struct, frozen=True, order=True):
    """How far something is. Revisions of different epochs are not comparable by size: see ``covers``."""

    epoch: str
    """Epoch of the ``objects`` bucket."""
    sequence: int
    """Stream sequence of the last object taken into account."""

    def covers(self, other: Revision) -> bool:
        """True when everything up to ``other`` is contained; False for another epoch."""
        return self.epoch == other.epoch and self.sequence >= other.sequence

    @property
    def text(self) -> str:
        """``<epoch>:<sequence>``, as events, explanations, findings and reports carry it."""
        return f"{self.epoch}:{self.sequence}"


class Direction(IntEnum):
    """Seen from the subject."""

    INGRESS = 0
    EGRESS = 1


class Verdict(IntEnum):
    """What a rule says."""

    DENY = 0
    ALLOW = 1


class SelectorPeer(msgspec.Struct, frozen=True, order=True):
    """Peers that a selector names: one thing in a policy, however many identities match (evaluated on each node).

    Source: networking/v1 NetworkPolicyPeer. Evaluated by ``kit.selectors`` against ``identities``.
    """

    namespace: str = ""
    """Only identities of this namespace; empty = of any that :attr:`namespace_selector` selects."""
    namespace_selector: Selector | None = None
    """None = :attr:`namespace` says it."""
    pod_selector: Selector | None = None
    """None = every pod."""
    named_port: NamedPort | None = None
    """Only identities that have this container port by this name and protocol (an egress rule's named port)."""


class PortMatch(msgspec.Struct, frozen=True, order=True, array_like=True, gc=False):
    """``protocol`` 0 = any. The first ``bits`` bits of the 16-bit port must agree (0 = any port, 16 = exactly this)."""

    protocol: int
    port: int
    bits: int


class CompiledRule(msgspec.Struct, frozen=True, array_like=True):
    """One rule of an identity's policy; of the rules whose peers and ports both match, the lowest rank wins.

    A peer matches when any of the three says so. Of rules with equal rank the first in the tuple wins, a deny before an
    allow.
    """

    direction: Direction
    precedence: int
    verdict: Verdict
    source: int
    """Index into :attr:`CompiledPolicy.sources`."""
    any_peer: bool
    selectors: tuple[int, ...]
    """Indexes into :attr:`CompiledPolicy.selectors`."""
    cidr_sets: tuple[int, ...]
    """Numbers of CIDR sets (:class:`CidrSet`)."""
    ports: tuple[PortMatch, ...]


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
    """In the order of precedence, ingress and egress apart; at most :data:`MAX_RULES` in each direction."""
    selectors: tuple[SelectorPeer, ...] = ()
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
    """Value of ``rules._frontier.<shard>``: all rules of this shard up to ``revision`` are written.

    What identities are made of is part of it: whoever computes a pod's identity under this frontier uses ``relevant``,
    and namespaces that are at least as new as ``namespaces``. An identity of the shard that has no rules is refused by
    ``policy`` (it stays denied): a frontier never waits for what cannot be published.
    """

    shard: int
    shards: int
    """How many shards there are; identity ``i`` belongs to shard ``i % shards``."""
    revision: Revision
    namespaces: int = 0
    """Sequence in ``objects`` of the last change of a namespace that was taken into account."""
    relevant: RelevantKeys = RelevantKeys()
    """Unstable label keys that identities were computed with."""
    identities: Revision = Revision(epoch="", sequence=0)
    """Epoch of ``identities`` and sequence of the last record of this shard: its rules match peers by these."""


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
