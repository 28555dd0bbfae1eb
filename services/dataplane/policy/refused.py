"""Reports a policy that this node cannot hold on the NetworkPolicies that it comes from, and or on its namespace.

Owns the wording. Promises: bounded, whatever a policy is made of.
"""

from __future__ import annotations

from collections.abc import Iterable

from chassis.bus.client import Bus
from proto.codec import encode_segment
from proto.events import ObjectFault
from proto.subjects import object_fault_subject
from services.dataplane.policy.enforce import Refused, Without

MOST = 8
"""NetworkPolicies that are told of one refusal."""


def report_refused(bus: Bus, node: str, refused: Refused) -> None:
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


def faults_of(node: str, without: Without) -> Iterable[ObjectFault]:
    """On each namespace that gives because it is the largest."""
    for namespace, count in sorted(without.identities.items()):
        yield _about_namespace(
            node,
            namespace,
            reason="IdentitiesNotHeld",
            fault=(
                f"{count} identities of namespace {namespace}, the newest, match no selector of a NetworkPolicy on "
                f"node {node}: it has room for {without.room} in am_selected, and no namespace has more there"
            ),
            remedy=f"use fewer distinct label sets in namespace {namespace}, or raise AIRMESH_TABLE_MEMORY",
        )
    for namespace, prefixes in sorted(without.cidrs.items()):
        yield _about_namespace(
            node,
            namespace,
            reason="CIDRsNotHeld",
            fault=(
                f"the ipBlocks of namespace {namespace} allow nothing on node {node}: they make {prefixes} prefixes, "
                f"more than any that are held, and am_cidrs has room for {without.cidr_room} of all namespaces"
            ),
            remedy=f"name fewer CIDRs in the NetworkPolicies of namespace {namespace}, or raise AIRMESH_TABLE_MEMORY",
        )


def _about_namespace(node: str, namespace: str, *, reason: str, fault: str, remedy: str) -> ObjectFault:
    return ObjectFault(
        service="dataplane",
        node=node,
        group="",
        kind="Namespace",
        namespace="",
        name=namespace,
        reason=reason,
        fault=fault,
        remedy=remedy,
    )
