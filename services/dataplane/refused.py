"""Tells a policy that this node cannot hold on the NetworkPolicies that it comes from.

Owns the wording. Promises: bounded, whatever a policy is made of.
"""

from __future__ import annotations

from chassis.bus import Bus
from proto.codec import encode_segment
from proto.events import ObjectFault
from proto.subjects import object_fault_subject
from services.dataplane.enforce import Refused

MOST = 8
"""NetworkPolicies that are told of one refusal."""


def tell_refused(bus: Bus, node: str, refused: Refused) -> None:
    """One event for each NetworkPolicy."""
    for namespace, name in refused.policies[:MOST]:
        fault = ObjectFault(
            service="dataplane",
            node=node,
            group="networking.k8s.io",
            kind="NetworkPolicy",
            namespace=namespace,
            name=name,
            reason="PolicyNotHeld",
            fault=f"pods of namespace {refused.namespace} on node {node} are denied instead: {refused.why}",
            remedy="name fewer ports, CIDRs and distinct selectors in the policies of this namespace",
        )
        bus.publish(object_fault_subject("dataplane", encode_segment(node)), fault)
