"""Identities where nodes have zones: Kubernetes copies a node's zone and region to its pods, and policy does not mind.

Source: kube-apiserver's admission plugin PodTopologyLabels, on by default since Kubernetes 1.35.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count

from proto.identity import RelevantKeys
from proto.objects import Namespace, Pod
from services.policy.core.graph import Graph
from services.policy.core.identities import NO_KEYS, Roster
from tests.core.policy.cluster import feed
from tests.core.policy.notation import namespace, pod, policies

ZONE, REGION = "topology.kubernetes.io/zone", "topology.kubernetes.io/region"
AS_BEFORE = RelevantKeys(keys=(REGION, ZONE))
"""With these two named, identities are what they were while every label counted."""
NODES: Mapping[str, dict[str, str]] = {
    f"n{number}": {ZONE: f"eu-1{'abc'[number % 3]}", REGION: "eu-1"} for number in range(1, 7)
}
WORKLOADS = (("prod", "db", 3), ("prod", "api", 12), ("prod", "web", 24), ("shop", "web", 18), ("shop", "cart", 6))
"""Namespace, name and replicas, besides an agent on each node."""


def pod_on(space: str, name: str, node: str, **more: str) -> Pod:
    """A pod with the labels that Kubernetes gives it on this node."""
    app = name.rpartition("-")[0]
    return pod(f"{space}/{name}", node=node, labels={"app": app, **NODES[node], **more}, service_account=app)


def pods() -> Iterator[Pod]:
    at = count()
    nodes = list(NODES)
    for space, name, replicas in WORKLOADS:
        for index in range(replicas):
            own = {"statefulset.kubernetes.io/pod-name": f"{name}-{index}"} if name == "db" else {}
            yield pod_on(space, f"{name}-{index}", nodes[next(at) % len(nodes)], **own)
    yield from (pod_on("kube-system", f"agent-{node}", node) for node in nodes)


def roster(relevant: RelevantKeys = NO_KEYS) -> Roster:
    made = Roster()
    made.use_relevant(frozenset({relevant}))
    made.put_namespace("kube-system", Namespace("kube-system", "u"))
    for space in ("prod", "shop"):
        made.put_namespace(space, namespace(space))
    for one in pods():
        made.put_pod(f"{one.namespace}.{one.name}", one)
    made.refresh()
    return made


def test_six_nodes_in_three_zones_have_an_identity_for_each_workload() -> None:
    """The figures of services/policy/README.md."""
    assert len(list(pods())) == 69
    assert len(roster(AS_BEFORE).members) == 18
    assert len(roster().members) == len(WORKLOADS) + 1 == 6


def test_a_kept_pod_has_its_identity_wherever_it_starts_again() -> None:
    moved_from, moved_to = pod_on("prod", "db-0", "n3"), pod_on("prod", "db-0", "n2")
    assert NODES["n3"][ZONE] != NODES["n2"][ZONE]
    book = roster()
    for before, after in ((moved_from, moved_to), (moved_to, moved_from)):
        book.put_pod("prod.db-0", before)
        book.refresh()
        known = book.identity_of(before, NO_KEYS)
        book.put_pod("prod.db-0", after)
        turnover = book.refresh()
        assert (turnover.appeared, turnover.gone) == ((), ()), "nothing is compiled, written or told anew"
        assert book.identities_at("prod.db-0") == {known}
    assert roster(AS_BEFORE).identity_of(moved_from, AS_BEFORE) != roster(AS_BEFORE).identity_of(moved_to, AS_BEFORE)


BY_ZONE = """
- namespace: shop
  podSelector: {}
  ingress:
  - from: [{podSelector: {matchLabels: {topology.kubernetes.io/zone: eu-1a}}}]
"""


def test_a_policy_that_names_zones_splits_identities_of_its_namespace_alone() -> None:
    graph = feed(Graph(), {policy.name: policy for policy in policies(BY_ZONE)})
    assert graph.relevant.of("shop") == {ZONE}
    assert graph.relevant.of("prod") == frozenset()
    book = roster(graph.relevant)
    assert len(book.by_namespace["shop"]) == 2 * 3, "each workload in each zone"
    assert len(book.by_namespace["prod"]) == 3
