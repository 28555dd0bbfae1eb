"""Explanations as a table, and on random clusters the same verdicts as the oracle."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from proto.identity import Reserved
from proto.objects import KubernetesObject, Namespace, Node
from services.policy.core.explain import Explainer, NotFound
from services.policy.core.graph import Graph
from services.policy.core.limits import Limits
from tests.core.policy.cluster import feed, keyed, peers_of, probes
from tests.core.policy.notation import namespace, pod, policies
from tests.core.policy.oracle import Oracle
from tests.core.policy.worlds import seeded

POLICIES = """
- {name: deny, podSelector: {matchLabels: {role: db}}, policyTypes: [Ingress, Egress]}
- name: api-to-db
  podSelector: {matchLabels: {role: db}}
  ingress: [{from: [{podSelector: {matchLabels: {role: api}}}], ports: [{port: 5432}]}]
- name: four-only
  podSelector: {matchLabels: {role: api}}
  policyTypes: [Egress]
  egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}}]}]
"""
PODS = [
    pod("x/db", ip_address("10.0.0.1"), ip_address("fd00::1"), labels={"role": "db"}),
    pod("x/api", ip_address("10.0.0.2"), ip_address("fd00::2"), labels={"role": "api"}, node="n2"),
    pod("x/web", ip_address("10.0.0.3"), ip_address("fd00::3"), labels={"role": "web"}, node="n2"),
    pod("x/new", labels={"role": "web"}, node="n2"),
    pod("x/agent", ip_address("172.30.0.1"), labels={"role": "api"}, host_network=True),
    pod("x/job", ip_address("10.0.0.3"), labels={"role": "api"}, phase="Succeeded"),
]


def graph(text: str = POLICIES, **limits: Any) -> Graph:
    objects: dict[str, KubernetesObject] = {"k": Namespace("kube-system", "u"), "x": namespace("x")}
    objects |= {f"node{i}": Node(f"n{i}", f"u{i}", addresses=(ip_address(f"172.30.0.{i}"),)) for i in (1, 2)}
    objects |= {f"pod.{p.name}": p for p in PODS} | {f"p{i}": p for i, p in enumerate(policies(text))}
    return feed(Graph(Limits(**limits)), objects)


TABLE = [
    ("x/api", "x/db", 5432, "no", "egress of x/api by IPv6: denied, isolated by NetworkPolicy x/four-only"),
    ("10.0.0.2", "10.0.0.1", 5432, "yes", "ingress of x/db: allowed by NetworkPolicy x/api-to-db, ingress rule 0"),
    ("10.0.0.2", "10.0.0.1", 80, "no", "isolated by NetworkPolicy x/api-to-db, NetworkPolicy x/deny and no rule"),
    ("x/web", "x/db", 5432, "no", "no rule allows TCP port 5432 from x/web"),
    ("x/db", "x/web", 80, "no", "egress of x/db: denied, isolated by NetworkPolicy x/deny and no rule"),
    ("x/web", "10.0.0.2", 80, "yes", "ingress of x/api: allowed, no policy selects it in this direction"),
    ("x/db", "x/db", 80, "yes", "speaks to itself"),
    ("172.30.0.1", "x/db", 80, "yes", "a pod always takes from its own node"),
    ("x/agent", "x/db", 80, "yes", "a pod always takes from its own node"),
    ("172.30.0.2", "x/db", 80, "no", "TCP port 80 from node n2"),
    ("8.8.8.8", "x/db", 80, "no", "TCP port 80 from world (8.8.8.8)"),
    ("x/api", "10.1.2.3", 80, "yes", "allowed by NetworkPolicy x/four-only, egress rule 0"),
    ("x/api", "8.8.8.8", 80, "no", "egress of x/api: denied"),
    ("x/web", "8.8.8.8", 80, "yes", "ingress of world (8.8.8.8): allowed, policies apply to pods"),
    ("x/new", "x/db", 5432, "no", "from x/new"),
]


@pytest.mark.parametrize(("source", "destination", "port", "allowed", "reason"), TABLE)
def test_explain(source: str, destination: str, port: int, allowed: str, reason: str) -> None:
    verdicts = Explainer(graph()).explain(source, destination, 6, port)
    assert verdicts.allowed == (allowed == "yes"), verdicts.reasons
    assert any(reason in reported for reported in verdicts.reasons), verdicts.reasons


def test_a_finished_pod_has_left_its_address_to_another() -> None:
    assert Explainer(graph()).explain("10.0.0.3", "x/db", 6, 80).source.name == "x/web"


def test_nodes_as_seen_from_both_sides() -> None:
    explainer = Explainer(graph())
    assert explainer.explain("172.30.0.1", "x/db", 6, 80).source.identity == Reserved.HOST
    assert explainer.explain("172.30.0.2", "x/db", 6, 80).source.identity == Reserved.REMOTE_NODE
    assert explainer.explain("9.9.9.9", "x/db", 6, 80).source.identity == Reserved.WORLD


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x/nobody", "no pod x/nobody has a node"),
        ("nonsense", "neither namespace/pod nor an address"),
        ("10.0.0.1/8", "no pod 10.0.0.1/8"),
        ("x/job", "has no identity"),
    ],
)
def test_ends_that_are_not_there(text: str, reason: str) -> None:
    with pytest.raises(NotFound, match=reason):
        Explainer(graph()).explain(text, "x/db", 6, 80)


def test_over_the_limit_says_so() -> None:
    text = """[{name: wide, podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{ports: [{port: 1}, {port: 3}]}],
                egress: [{ports: [{port: 1}]}]}]"""
    verdicts = Explainer(graph(text, ports=1)).explain("x/web", "x/db", 6, 1)
    assert not verdicts.allowed
    assert verdicts.egress.allowed
    assert "denied whole" in verdicts.ingress.reason
    assert "isolated by" in Explainer(graph(text, ports=1)).explain("x/web", "x/db", 6, 2).egress.reason


def test_an_identity_that_is_refused_says_why() -> None:
    verdicts = Explainer(graph(labels=1)).explain("x/web", "x/db", 6, 5432)
    assert not verdicts.allowed
    assert "more than 1 labels" in verdicts.ingress.reason


@pytest.mark.parametrize("start", range(0, 600, 100))
def test_explanations_agree_with_the_oracle(start: int) -> None:
    for seed in range(start, start + 100):
        world = seeded(seed).world()
        explainer, oracle = Explainer(feed(Graph(), keyed(world))), Oracle(world.policies, world.namespaces)
        where = peers_of(world)
        for source, destination, protocol, port in probes(world, seed, 60):
            if source == destination:
                continue
            expected = oracle.allows(where[source], where[destination], protocol, port)
            verdicts = explainer.explain(str(source), str(destination), protocol, port)
            assert verdicts.allowed == expected, f"seed {seed}: {source} > {destination}: {verdicts.reasons}"
