"""What a policy is to the compiler, whichever dialect it was written in: ordered rules in ordered tiers.

Tiers are asked in their order. In a tier, the rules of those policies whose subject holds the pod are asked in theirs;
the first that matches the flow decides: *allow* and *deny* are the answer, *pass* leaves it to the next tier. Where no
rule of the tier matches, the flow is denied if one of these policies isolates the pod in that direction, else the next
tier is asked. What no tier answers is allowed.

This holds, as far as rules and precedence go, what the field's dialects say. NetworkPolicy: one tier, everything
allows, every policy isolates. ClusterNetworkPolicy (policy.networking.k8s.io): a tier before that of NetworkPolicy and
one after it, priorities as orders, pass, nothing isolates. Calico: tiers with orders, a tier that ends in a deny
isolates and one that ends in a pass does not. Cilium: the tier of NetworkPolicy, where a rule that denies has an order
before those of all that allow.

A dialect (``core.dialects``) states tier, order and kind of what it reads; nothing here or in the compiler knows one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from proto.objects import IPBlock, PolicyPort
from proto.policy import Direction, SelectorPeer


class Action(IntEnum):
    """What a rule does with a flow that it matches."""

    DENY = 0
    ALLOW = 1
    PASS = 2
    """The next tier is asked."""


class Tier(NamedTuple):
    """Tiers are asked from the lowest order to the highest; those of one order by their names."""

    order: float
    name: str


class Kind(NamedTuple):
    """What kind of object a policy was read from, as the API spells it."""

    group: str
    kind: str


class PolicyName(NamedTuple):
    """What a policy is called, sorted as policies of one order are asked."""

    namespace: str
    """Empty for a policy of the whole cluster."""
    name: str
    kind: Kind

    def __str__(self) -> str:
        """``NetworkPolicy shop/web``."""
        return f"{self.kind.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind.kind} {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule matches a flow whose peer is among its peers and whose destination port is among its ports."""

    index: int
    """Place in the list of its object: with the policy's name it names the rule to a person."""
    action: Action
    any_peer: bool = False
    """Every peer, pod or not; without it and without the other two it has no peers, and matches nothing."""
    selectors: tuple[SelectorPeer, ...] = ()
    """Pods, each selector once."""
    blocks: tuple[IPBlock, ...] = ()
    """Addresses, those of pods too."""
    ports: tuple[PolicyPort, ...] = ()
    """Empty: every port of every protocol."""
    order: float | None = None
    """Within the tier; None: the policy's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """See the module for how its rules are asked."""

    name: PolicyName
    tier: Tier
    order: float
    """Within the tier, the lowest is asked first."""
    subject: SelectorPeer
    """Pods that it applies to; without a namespace it may be any that its namespace selector selects."""
    ingress: tuple[Rule, ...] = ()
    egress: tuple[Rule, ...] = ()
    isolates_ingress: bool = False
    """Whether ingress that no rule of the tier matches is denied at the tier's end."""
    isolates_egress: bool = False
    created: int = 0
    """Unix seconds: of those that together are too much the newest are refused."""

    def rules(self, direction: Direction) -> tuple[Rule, ...]:
        """Of one direction, in the order of its object."""
        return self.ingress if direction is Direction.INGRESS else self.egress

    def isolates(self, direction: Direction) -> bool:
        """Whether its subjects are isolated in this direction."""
        return self.isolates_ingress if direction is Direction.INGRESS else self.isolates_egress
