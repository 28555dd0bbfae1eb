"""Checks of this node's pods: one that is no endpoint here, and flows that come near to what there is room for.

A pod whose link this agent never made (it is older than the agent, or another plugin made it) is judged by no policy
and reached by no Service. Its object alone does not say so, since a pod that goes leaves its link before its object:
so it counts only when it was no endpoint in two looks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from proto.findings import EFFECT, HOST, Expected, Finding, Fix, Observed, node_name, object_name
from proto.objects import Pod

UNATTACHED, TABLE_FULL, BUDGET = "policy-pod-unattached", "service-conntrack-full", "service-flow-budget"
FULL = 0.95
"""Part of a table or a budget from which new flows are soon refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flows:
    """How many flows there are, and how many there may be."""

    node: str
    used: int
    entries: int
    pods: Mapping[str, tuple[int, int]]
    """``namespace/pod ingress`` (or ``egress``) → used and limit."""


def unattached(pods: Iterable[Pod], uids: Collection[str]) -> frozenset[str]:
    """Uids of pods that run on the pod network and are no endpoint; ``uids``: of those that are."""
    return frozenset(
        pod.uid
        for pod in pods
        if pod.phase == "Running"
        and pod.addresses
        and not pod.host_network
        and not pod.terminating
        and not any(pod.runs_as(uid) for uid in uids)
    )


def check_unattached(node: str, pods: Iterable[Pod], uids: Collection[str]) -> Iterator[Finding]:
    """``uids``: of pods that were unattached in both looks."""
    for pod in pods:
        if pod.uid not in uids:
            continue
        name = f"{pod.namespace}/{pod.name}"
        yield Finding(
            code=UNATTACHED,
            fault="policy",
            about=object_name("Pod", pod.namespace, pod.name),
            node=node,
            cause=f"{name} runs on a link that this agent did not make: no policy judges it",
            expected=Expected("an endpoint in the maps", object_name("Pod", pod.namespace, pod.name)),
            observed=(
                Observed("map", f"no endpoint has the uid {pod.uid}"),
                Observed("object", f"it is Running with {', '.join(map(str, pod.addresses))}"),
            ),
            fixes=(
                Fix(
                    command=f"kubectl -n {pod.namespace} delete pod {pod.name}",
                    risk="The pod ends; its workload starts another one, which this agent attaches.",
                    on="cluster",
                ),
            ),
            precedence=HOST,
        )


def check_flows(flows: Flows) -> Iterator[Finding]:
    """A table, or the share of a pod, that is nearly full."""
    if flows.used >= FULL * flows.entries:
        yield Finding(
            code=TABLE_FULL,
            fault="service",
            about=node_name(flows.node),
            node=flows.node,
            cause=f"conntrack is nearly full: {flows.used} of {flows.entries} entries; new flows are soon refused",
            expected=Expected(f"less than {FULL:.0%} of {flows.entries} entries"),
            observed=(Observed("map", f"am_flows: {flows.used} of {flows.entries} entries"),),
            fixes=(
                Fix(
                    command="kubectl -n airmesh-system set env daemonset/dataplane AIRMESH_CONNTRACK_ENTRIES="
                    f"{2 * flows.entries}",
                    risk="The agents start again, one after the other; the table is made larger under live flows.",
                    on="cluster",
                ),
            ),
            precedence=EFFECT,
        )
    for whose, (used, limit) in sorted(flows.pods.items()):
        if limit and used >= FULL * limit:
            pod, _, direction = whose.partition(" ")
            yield Finding(
                code=BUDGET,
                fault="service",
                about=object_name("Pod", *pod.split("/", 1)),
                node=flows.node,
                cause=f"{pod} has {used} of the {limit} flows of {direction} that one pod may have",
                expected=Expected(f"less than {FULL:.0%} of {limit} flows"),
                observed=(Observed("map", f"am_budgets, {direction}: {used} of {limit}"),),
                fixes=(
                    Fix(
                        command=f"kubectl -n {pod.partition('/')[0]} get pods  # more replicas, or fewer connections",
                        risk="None: more pods share the flows.",
                        on="cluster",
                    ),
                ),
                precedence=EFFECT - 1,
            )
