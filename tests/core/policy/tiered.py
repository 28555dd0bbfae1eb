"""Random policies of several tiers, and a second opinion on them: each tier asked after the other, nothing compiled.

The policies are values of the model itself: no dialect that orders, denies or passes is read yet. :data:`SPOKEN` lets a
graph take them as if one were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from proto.objects import Namespace, NetworkPolicy, PolicyPort
from proto.policy import Direction, SelectorPeer
from services.policy.core.dialects import networkpolicy
from services.policy.core.model import Action, Kind, Policy, PolicyName, Rule, Tier
from tests.core.policy.oracle import Oracle, TrafficPeer, _chosen, _in_block
from tests.core.policy.worlds import NAMES, Builder

KIND = Kind("test", "Tiered")
ADMIN, TEAM, BASELINE = Tier(1_000, "admin"), Tier(1_000, "team"), Tier(10_000_000, "baseline")
TIERS = (ADMIN, TEAM, networkpolicy.TIER, BASELINE)
SPOKEN: dict[type, Callable[[Any], Policy]] = {NetworkPolicy: networkpolicy.parse, Policy: lambda policy: policy}
"""In the place of ``dialects.DIALECTS``."""


class TieredBuilder:
    """Policies of the model, from the same few values as the rest of a world."""

    def __init__(self, builder: Builder, actions: tuple[Action, ...] = tuple(Action)) -> None:
        self.of = builder
        self.choice = builder.choice
        self.actions = actions

    def policy(self, index: int) -> Policy:
        namespace = self.choice((*NAMES, "", ""))
        return Policy(
            name=PolicyName(namespace, f"t{index}", KIND),
            tier=self.choice(TIERS),
            order=self.choice((10, 20, 1_000)),
            subject=self.subject(namespace),
            ingress=self.rules(namespace),
            egress=self.rules(namespace),
            isolates_ingress=self.choice(range(3)) == 0,
            isolates_egress=self.choice(range(3)) == 0,
        )

    def subject(self, namespace: str) -> SelectorPeer:
        if namespace:
            return SelectorPeer(namespace=namespace, pod_selector=self.of.selector())
        return SelectorPeer(namespace_selector=self.of.selector(), pod_selector=self.choice((None, self.of.selector())))

    def rules(self, namespace: str) -> tuple[Rule, ...]:
        return tuple(self.rule(index, namespace) for index in range(self.choice(range(4))))

    def rule(self, index: int, namespace: str) -> Rule:
        peers = self.choice(("any", "pods", "pods", "blocks" if namespace else "pods"))
        return Rule(
            index=index,
            action=self.choice(self.actions),
            any_peer=peers == "any",
            selectors=tuple(dict.fromkeys(self.of.some(self.peer, 2))) if peers == "pods" else (),
            blocks=self.of.some(self.of.block, 2) if peers == "blocks" else (),
            ports=self.of.some(self.of.port, 2),
            order=self.choice((None, None, None, 5)),
        )

    def peer(self) -> SelectorPeer:
        if self.choice((True, False)):
            return SelectorPeer(namespace=self.choice(NAMES), pod_selector=self.of.selector())
        return SelectorPeer(namespace_selector=self.of.selector(), pod_selector=self.choice((None, self.of.selector())))


class TieredOracle(Oracle):
    """Tier by tier, rule by rule; NetworkPolicies stand in their tier as the dialect says they do."""

    def __init__(self, policies: Iterable[Policy], namespaces: Iterable[Namespace]) -> None:
        super().__init__((), namespaces)
        self.tiered = list(policies)

    def egress(self, source: TrafficPeer, destination: TrafficPeer, protocol: int, port: int) -> bool:
        return source.pod is None or self.asked(Direction.EGRESS, source, destination, destination, protocol, port)

    def ingress(self, source: TrafficPeer, destination: TrafficPeer, protocol: int, port: int) -> bool:
        if destination.pod is None or (source.pod is None and source.node and source.node == destination.node):
            return True
        return self.asked(Direction.INGRESS, destination, source, destination, protocol, port)

    def asked(
        self,
        direction: Direction,
        subject: TrafficPeer,
        peer: TrafficPeer,
        destination: TrafficPeer,
        protocol: int,
        port: int,
    ) -> bool:
        selecting = [policy for policy in self.tiered if self.matches(policy.subject, subject)]
        for tier in sorted({(policy.tier.order, policy.tier.name) for policy in selecting}):
            in_tier = [policy for policy in selecting if (policy.tier.order, policy.tier.name) == tier]
            asked = [
                (policy.order if rule.order is None else rule.order, *policy.name, rule.index, rule)
                for policy in in_tier
                for rule in policy.rules(direction)
            ]
            said = None
            for *_, rule in sorted(asked, key=lambda one: one[:-1]):
                if self.hit(rule, peer, destination, protocol, port, egress=direction is Direction.EGRESS):
                    said = rule.action
                    break
            if said is Action.ALLOW or said is Action.DENY:
                return said is Action.ALLOW
            if said is None and any(policy.isolates(direction) for policy in in_tier):
                return False
        return True

    def matches(self, selector: SelectorPeer, traffic_peer: TrafficPeer) -> bool:
        if traffic_peer.pod is None or (selector.namespace and selector.namespace != traffic_peer.pod.namespace):
            return False
        if selector.namespace_selector is not None:
            labels = tuple(sorted(self.namespaces[traffic_peer.pod.namespace].items()))
            if labels not in _chosen(selector.namespace_selector, {labels}):
                return False
        elif not selector.namespace:
            return False
        own = traffic_peer.pod.labels
        return selector.pod_selector is None or own in _chosen(selector.pod_selector, {own})

    def hit(
        self, rule: Rule, peer: TrafficPeer, destination: TrafficPeer, protocol: int, port: int, *, egress: bool
    ) -> bool:
        def on(ports: tuple[PolicyPort, ...], *, as_address: bool) -> bool:
            return self.ports(ports, None if as_address and egress else destination.pod, protocol, port)

        if any(_in_block(block, peer.address) for block in rule.blocks) and on(rule.ports, as_address=True):
            return True
        named = rule.any_peer or any(self.matches(selector, peer) for selector in rule.selectors)
        return named and on(rule.ports, as_address=False)
