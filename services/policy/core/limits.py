"""Bounds on what an identity and a namespace may cost, and what is said when one is passed.

A compiled policy travels as one value of the bus and lives in every kernel that hosts such a pod, so its size is
bounded. Past a bound it is never cut short: a policy with some of its rules missing is a policy nobody wrote. The
direction becomes deny-all and the fault is reported, naming the policies to change. Identities are bounded for each
namespace: a tenant that wants more than its share gets none for its newest pods, and nobody else notices.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from proto.objects import Pod
from proto.policy import MAX_RULES
from services.policy.core.model import Action, PolicyName


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one compiled policy, of one identity and of one namespace."""

    actions: tuple[Action, ...] = (Action.ALLOW,)
    """What nodes enforce. A direction with a rule of another action is denied whole, and told.

    Before a node may be told to deny, what is uncertain has to count against the peer: a selector asked of an untold
    label (``kit.selectors.may_select``), the numbers that an older partition has for a part of an ipBlock, and ipBlocks
    that are refused. Today each of them matches nothing, as is right for a rule that allows.
    """
    rules: int = MAX_RULES
    """Most rules of one identity in one direction."""
    ports: int = 4096
    """Most different ports and parts of port ranges of one identity in one direction."""
    peers: int = 4096
    """Most different peers, selectors and CIDR sets, of one identity in one direction."""
    named_ports: int = 64
    """Most numbers that the named ports of one egress rule stand for."""
    size: int = 900_000
    """Most bytes of one identity's rules; the bus takes 1 MiB (``proto.codec.MAX_VALUE``)."""
    policy_prefixes: int = 1_000
    """Most CIDRs and exceptions, as written, that one policy may name."""
    namespace_prefixes: int = 4_000
    """Most of all policies of a namespace: its partition is one value of the bus."""
    prefixes: int = 100_000
    """Most of all namespaces: each node has room for twice as many."""
    memberships: int = 100_000
    """Most pairs of a CIDR set and a rule in it, of one namespace: what overlapping rules cost."""
    identities: int = 2048
    """Most identities of one namespace, those that linger included."""
    record_bytes: int = 2 << 20
    """Most bytes of the records of one namespace's identities, estimated from above."""
    rule_bytes: int = 16 << 20
    """Most bytes of the rules of one namespace's identities."""
    labels: int = 256
    """Most labels of a pod that count for its identity, of a namespace, and named ports of a pod."""


class About(NamedTuple):
    """A Kubernetes object that a problem is told on; what fields mean: ``proto.events.ObjectFault``."""

    group: str
    kind: str
    namespace: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Something a person should know: one sentence, and what to do about it."""

    fault: str
    remedy: str
    about: tuple[About, ...] = ()
    """Whose fault it is; empty for one that is no object's."""


MOST_ABOUT = 16
"""Objects that one problem is told on."""


def about_pods(pods: Iterable[Pod], reason: str) -> tuple[About, ...]:
    """Pods, as what a problem is about."""
    return tuple(About("", "Pod", pod.namespace, pod.name, reason) for pod in islice(pods, MOST_ABOUT))


def about_policies(reason: str, names: Iterable[PolicyName]) -> tuple[About, ...]:
    """Policies, as what a problem is about."""
    return tuple(About(*one.kind, one.namespace, one.name, reason) for one in islice(names, MOST_ABOUT))
