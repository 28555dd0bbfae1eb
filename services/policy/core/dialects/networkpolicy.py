"""networking.k8s.io/v1 NetworkPolicy as policies of the model.

Every rule allows, so none need precede another; a policy isolates the pods it selects in each direction that it is
about. Tier and order are those that Calico gives to a NetworkPolicy, so that what is written to stand before or after
it does.

A peer is an ipBlock (which holds for pod addresses too) or selectors of pods and namespaces; one that is neither, or
both, is refused by the API and stands for nobody here. A rule without peers is about any peer.
"""

from __future__ import annotations

from collections.abc import Iterable

from proto.objects import NetworkPolicy, Peer, PolicyRule
from proto.policy import SelectorPeer
from services.policy.core.model import Action, Kind, Policy, PolicyName, Rule, Tier

KIND = Kind("networking.k8s.io", "NetworkPolicy")
TIER = Tier(1_000_000, "default")
ORDER = 1_000


def parse(written: NetworkPolicy) -> Policy:
    """The policy; rules of a direction that it is not about have no effect, and are left out."""
    namespace = written.namespace
    return Policy(
        name=PolicyName(namespace, written.name, KIND),
        tier=TIER,
        order=ORDER,
        subject=SelectorPeer(namespace=namespace, pod_selector=written.pod_selector),
        ingress=_rules(written.ingress, namespace) if written.applies_ingress else (),
        egress=_rules(written.egress, namespace) if written.applies_egress else (),
        isolates_ingress=written.applies_ingress,
        isolates_egress=written.applies_egress,
        created=written.created,
    )


def _rules(rules: Iterable[PolicyRule], namespace: str) -> tuple[Rule, ...]:
    return tuple(_rule(index, rule, namespace) for index, rule in enumerate(rules))


def _rule(index: int, rule: PolicyRule, namespace: str) -> Rule:
    selectors = (found for peer in rule.peers if (found := _selector(peer, namespace)) is not None)
    return Rule(
        index=index,
        action=Action.ALLOW,
        any_peer=not rule.peers,
        selectors=tuple(dict.fromkeys(selectors)),
        blocks=tuple(
            peer.ip_block
            for peer in rule.peers
            if peer.ip_block is not None and peer.pod_selector is None and peer.namespace_selector is None
        ),
        ports=rule.ports,
    )


def _selector(peer: Peer, namespace: str) -> SelectorPeer | None:
    if peer.ip_block is not None or (peer.pod_selector is None and peer.namespace_selector is None):
        return None
    home = namespace if peer.namespace_selector is None else ""
    return SelectorPeer(namespace=home, namespace_selector=peer.namespace_selector, pod_selector=peer.pod_selector)
