"""Each fault of a policy that does not bite, as objects: the one finding that names it; and nothing where none is."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

from proto.findings import DoctorRequest, Finding, Kind
from proto.objects import KubernetesObject, Namespace, NetworkPolicy, Node, Pod
from proto.policy import Ack, Revision
from services.policy.core.doctor import lag
from services.policy.core.doctor.examine import CODES, DENIED, Examination, Facts
from services.policy.core.doctor.nearest import alike
from services.policy.core.graph import Graph
from tests.core.policy.cluster import feed
from tests.core.policy.notation import named, namespace, pod, policies

DNS_PORTS = named("dns:UDP:53", "dns-tcp:TCP:53")
PODS = [
    pod("shop/web-1", ip_address("10.0.0.1"), labels={"app": "web"}, named_ports=named("http:TCP:8080")),
    pod("shop/web-2", ip_address("10.0.0.2"), labels={"app": "web"}, named_ports=named("http:TCP:8080")),
    pod("shop/cart", ip_address("10.0.0.3"), labels={"app": "cart", "tier": "back"}),
    pod("shop/agent", ip_address("172.30.0.1"), labels={"app": "agent"}, host_network=True),
    pod("prod/db", ip_address("10.0.1.1"), labels={"role": "db"}, named_ports=named("pg:TCP:5432")),
    pod("prod/api", ip_address("10.0.1.2"), labels={"role": "api"}),
    pod("prod/old", ip_address("10.0.1.3"), labels={"role": "worker"}, phase="Succeeded"),
    pod("kube-system/dns-a", ip_address("10.0.2.1"), labels={"k8s-app": "kube-dns"}, named_ports=DNS_PORTS),
    pod("kube-system/dns-b", ip_address("10.0.2.2"), labels={"k8s-app": "kube-dns"}, named_ports=DNS_PORTS),
]
NAMESPACES = [
    namespace("shop"),
    namespace("prod", team="data"),
    Namespace("kube-system", "u", labels=(("kubernetes.io/metadata.name", "kube-system"),)),
]


def examination(text: str, pods: list[Pod] = PODS) -> Examination:
    written: dict[str, NetworkPolicy] = {f"policy.{one.name}": one for one in policies(text)}
    objects: dict[str, KubernetesObject] = {f"namespace.{one.name}": one for one in NAMESPACES}
    objects |= {"node": Node("n1", "u1", addresses=(ip_address("172.30.0.1"),))}
    objects |= {f"pod.{one.namespace}.{one.name}": one for one in pods}
    objects |= written
    graph = feed(Graph(), objects)
    return Examination(Facts(graph=graph, policies=written, namespaces=tuple(NAMESPACES)))


def examine(text: str, kind: Kind = "all", pods: list[Pod] = PODS, **more: Any) -> list[Finding]:
    found = examination(text, pods).examine(DoctorRequest(kind=kind, **more))
    return [one for some in found for one in some]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Policies, and what is found of them: the code, and words of cause and evidence; none for nothing."""

    policies: str
    code: str = ""
    says: tuple[str, ...] = ()
    asked: str = ""
    """The policy that is asked for; empty: the whole cluster."""


CASES = {
    "a subject's label with two letters changed": Case(
        policies="[{namespace: shop, podSelector: {matchLabels: {app: wbe}}, ingress: [{}]}]",
        code="policy-labels",
        says=("spec.podSelector asks for app=wbe", "2 pods (shop/web-1 and others)", "set app=web in place of app=wbe"),
    ),
    "a peer's label in another case": Case(
        policies="""[{namespace: prod, podSelector: {matchLabels: {role: db}}, ingress: [
            {from: [{podSelector: {matchLabels: {role: API}}}]}]}]""",
        code="policy-labels",
        says=("spec.ingress[0].from[0].podSelector asks for role=API", "role=api"),
    ),
    "the value under another key": Case(
        policies="""[{namespace: prod, podSelector: {matchLabels: {role: db}}, ingress: [{from: [
            {namespaceSelector: {matchLabels: {ns: shop}},
             podSelector: {matchLabels: {app.kubernetes.io/name: web}}}]}]}]""",
        code="policy-labels",
        says=("app=web", "of shop"),
    ),
    "a value of an expression": Case(
        policies="""[{namespace: shop, podSelector: {matchExpressions: [
            {key: app, operator: In, values: [crat]}, {key: tier, operator: Exists}]}}]""",
        code="policy-labels",
        says=("app=crat", "app=cart"),
    ),
    "labels of pods that are not there yet": Case(
        policies="[{namespace: shop, podSelector: {matchLabels: {app: payments}}, ingress: [{}]}]"
    ),
    "such labels, asked for": Case(
        policies="[{namespace: shop, name: pay, podSelector: {matchLabels: {app: payments}}, ingress: [{}]}]",
        code="policy-labels",
        says=("app=payments", "no label there is near"),
        asked="shop/pay",
    ),
    "a number that is another one": Case(policies="[{namespace: shop, podSelector: {matchLabels: {app: web2}}}]"),
    "a near label that the policy names, too": Case(
        policies="""[{namespace: shop, podSelector: {matchLabels: {app: cart}}, ingress: [
            {from: [{podSelector: {matchLabels: {app: web}}}, {podSelector: {matchLabels: {app: webs}}}]}]}]"""
    ),
    "a namespace by its name under the wrong key": Case(
        policies="""[{namespace: prod, podSelector: {}, ingress: [
            {from: [{namespaceSelector: {matchLabels: {name: shop}}}]}]}]""",
        code="policy-namespace-labels",
        says=("from[0].namespaceSelector asks for name=shop", "kubernetes.io/metadata.name=shop"),
    ),
    "a namespace's label with a slip": Case(
        policies="""[{namespace: shop, podSelector: {}, ingress: [
            {from: [{namespaceSelector: {matchLabels: {team: dtaa}}}]}]}]""",
        code="policy-namespace-labels",
        says=("team=data",),
    ),
    "two peers that were meant as one": Case(
        policies="""[{namespace: prod, podSelector: {matchLabels: {role: db}}, ingress: [{from: [
            {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}},
            {podSelector: {matchLabels: {app: web}}}]}]}]""",
        code="policy-peers-apart",
        says=("every pod of shop", "app=web", "take the dash before podSelector away"),
    ),
    "pods of another namespace": Case(
        policies="""[{namespace: prod, name: db, podSelector: {matchLabels: {role: db}}, ingress: [
            {from: [{podSelector: {matchLabels: {tier: back}}}]}]}]""",
        code="policy-peer-elsewhere",
        says=("means pods of prod alone", "are in shop", "kubernetes.io/metadata.name: shop"),
        asked="prod/db",
    ),
    "host-network pods alone": Case(
        policies="[{namespace: shop, podSelector: {matchLabels: {app: agent}}}]",
        code="policy-host-network",
        says=("spec.podSelector selects host-network pods alone", "shop/agent"),
    ),
    "a host-network peer": Case(
        policies="""[{namespace: shop, podSelector: {matchLabels: {app: web}}, ingress: [
            {from: [{podSelector: {matchLabels: {app: agent}}}]}]}]""",
        code="policy-host-network",
        says=("from[0].podSelector", "its node's address"),
    ),
    "host-network pods among all": Case(policies="[{namespace: shop, podSelector: {}}]"),
    "a port's name with a slip": Case(
        policies="""[{namespace: shop, podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: htpp}]}]}]""",
        code="policy-port-name",
        says=("ports[0].port names htpp/TCP", "http/TCP (8080)", "set http"),
    ),
    "a port's name of another protocol": Case(
        policies="""[{namespace: shop, podSelector: {matchLabels: {app: web}},
            ingress: [{ports: [{port: http, protocol: UDP}]}]}]""",
        code="policy-port-name",
        says=("http/UDP", "protocol TCP"),
    ),
    "a peer's port name": Case(
        policies="""[{namespace: prod, podSelector: {matchLabels: {role: api}}, egress: [
            {to: [{podSelector: {matchLabels: {role: db}}}], ports: [{port: gp}]},
            {to: [{namespaceSelector: {}}], ports: [{port: 53, protocol: UDP}]}]}]""",
        code="policy-port-name",
        says=("egress[0].ports[0].port names gp/TCP", "pg/TCP (5432)"),
    ),
    "rules that policyTypes leaves out": Case(
        policies="""[{namespace: prod, podSelector: {}, policyTypes: [Ingress],
            egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}}]}]}]""",
        code="policy-types",
        says=("spec.egress has rules", "does not list Egress", "add Egress to spec.policyTypes"),
    ),
    "a second policy that allows everything": Case(
        policies="""[
          {namespace: prod, name: db, podSelector: {matchLabels: {role: db}}, ingress: [
            {from: [{podSelector: {matchLabels: {role: api}}}]}]},
          {namespace: prod, name: open, podSelector: {}, ingress: [{}]}]""",
        code="policy-second-allow",
        says=("restrict nothing: NetworkPolicy prod/open", "take ingress rule 0 out"),
    ),
    "a second policy that allows some": Case(
        policies="""[
          {namespace: prod, name: db, podSelector: {matchLabels: {role: db}}, ingress: [
            {from: [{podSelector: {matchLabels: {role: api}}}], ports: [{port: 5432}]}]},
          {namespace: prod, name: same, podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}]""",
        code="policy-second-allow",
        says=("NetworkPolicy prod/same selects the same pods", "pods in prod with role=db"),
        asked="prod/db",
    ),
    "such a one, not asked for": Case(
        policies="""[
          {namespace: prod, name: db, podSelector: {matchLabels: {role: db}}, ingress: [
            {from: [{podSelector: {matchLabels: {role: api}}}], ports: [{port: 5432}]}]},
          {namespace: prod, name: same, podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}]""",
    ),
    "a second policy of other ports": Case(
        policies="""[
          {namespace: prod, name: db, podSelector: {matchLabels: {role: db}}, ingress: [
            {from: [{podSelector: {matchLabels: {role: api}}}], ports: [{port: 5432}]}]},
          {namespace: prod, name: same, podSelector: {}, ingress: [{ports: [{port: 80}]}]}]""",
        asked="prod/db",
    ),
    "a default deny beside an open policy": Case(
        policies="[{namespace: prod, podSelector: {}}, {namespace: prod, podSelector: {}, ingress: [{}]}]"
    ),
    "egress without port 53": Case(
        policies="""[{namespace: prod, name: api, podSelector: {matchLabels: {role: api}}, egress: [
            {to: [{podSelector: {matchLabels: {role: db}}}], ports: [{port: 5432}]}]}]""",
        code="dns-policy",
        says=(
            "pods in prod with role=api cannot ask CoreDNS by UDP",
            "no rule of theirs allows UDP port 53",
            "prod/api",
        ),
    ),
    "egress with port 53 of other pods": Case(
        policies="""[{namespace: prod, podSelector: {matchLabels: {role: api}}, egress: [
            {to: [{podSelector: {}}], ports: [{port: 53, protocol: UDP}]}]}]""",
        code="dns-policy",
        says=("name peers that CoreDNS is not among",),
    ),
    "egress that is closed whole": Case(policies="[{namespace: prod, podSelector: {}, policyTypes: [Egress]}]"),
    "egress to a resolver of one's own": Case(
        policies="""[{namespace: prod, podSelector: {}, egress: [
            {to: [{ipBlock: {cidr: 9.9.9.9/32}}], ports: [{port: 53, protocol: UDP}]}]}]"""
    ),
    "egress to CoreDNS' addresses": Case(
        policies="""[{namespace: prod, podSelector: {}, egress: [
            {to: [{ipBlock: {cidr: 10.0.2.0/24}}], ports: [{port: 53, protocol: UDP}, {port: 53}]}]}]"""
    ),
    "CoreDNS itself closed": Case(
        policies="""[{namespace: kube-system, name: own, podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}]""",
        code="dns-policy",
        says=("CoreDNS takes no query of pods in prod", "kube-system/own"),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_one_finding_names_the_fault(case: Case) -> None:
    found = examine(case.policies, kind="policy", name=case.asked) if case.asked else examine(case.policies)
    assert [one.code for one in found] == ([case.code] if case.code else [])
    text = repr(found)
    assert [words for words in case.says if words not in text] == []


@pytest.mark.parametrize("kind", ["all", "dns"])
def test_a_policy_that_closes_coredns_explains_what_is_found_of_its_service(kind: Kind) -> None:
    (found,) = examine(CASES["CoreDNS itself closed"].policies, kind=kind)
    assert (found.code, found.affects) == ("dns-policy", ("Service kube-system/kube-dns",))


def test_every_code_is_found_by_a_case_and_has_a_page() -> None:
    faults = Path(__file__).parents[3] / "docs" / "faults"
    for code in CODES:
        assert code == DENIED or any(case.code == code for case in CASES.values()), code
        assert (faults / f"{code}.md").is_file(), code


def test_tcp_of_port_53_counts_when_name_service_is_asked_about() -> None:
    text = """[{namespace: prod, podSelector: {}, egress: [{to: [{namespaceSelector: {}}],
        ports: [{port: 53, protocol: UDP}]}]}]"""
    assert examine(text) == []
    found = examine(text, kind="dns")
    assert [one.code for one in found] == ["dns-policy"]
    assert "by TCP" in found[0].cause


def test_a_denied_connection_names_who_denies_it_and_why() -> None:
    text = CASES["a peer's label in another case"].policies
    found = examine(text, kind="connection", source="prod/api", destination="prod/db", port=5432)
    assert [one.code for one in found] == ["policy-denied", "policy-labels"]
    assert min(found, key=lambda one: one.precedence).code == "policy-labels", "the cause comes before what it does"
    assert examine(text, kind="connection", source="prod/db", destination="prod/api", port=80) == []


def test_the_shops_policies_are_sound() -> None:
    folder = Path(__file__).parents[3] / "examples" / "shop"
    trees = [
        one
        for path in sorted(folder.glob("*polic*.yaml"))
        for one in yaml.safe_load_all(path.read_text())
        if one and one["kind"] == "NetworkPolicy"
    ]
    text = yaml.safe_dump([{**one["spec"], **{k: one["metadata"][k] for k in ("name", "namespace")}} for one in trees])
    pods = [
        *(
            pod(f"prod/{role}", ip_address(f"10.0.1.{n}"), labels={"role": role}, named_ports=named("http:TCP:8080"))
            for n, role in enumerate(("api", "db", "monitor", "worker"), 1)
        ),
        pod("shop/web", ip_address("10.0.3.1"), labels={"app": "web"}),
        *PODS[-2:],
    ]
    assert len(trees) >= 5
    assert examine(text, pods=pods) == []
    for one in trees:
        name = f"{one['metadata']['namespace']}/{one['metadata']['name']}"
        assert examine(text, kind="policy", name=name, pods=pods) == [], name


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        ("web", "wbe", True),
        ("web", "WEB", True),
        ("frontend", "frontned", True),
        ("web-1", "web-2", False),
        ("web", "web2", False),
        ("api", "db", False),
        ("", "x", False),
        ("backend", "frontend", False),
        ("payment", "payments", True),
    ],
)
def test_what_is_a_slip(one: str, other: str, near: bool) -> None:
    assert bool(alike(one, other)) is near


def ack(node: str, sequence: int, epoch: str = "e") -> Ack:
    return Ack(node=node, rules=Revision(epoch, sequence), endpoints=0, pods=3, ready=True)


@pytest.mark.parametrize(
    ("before", "now", "lagging"),
    [
        (ack("n1", 7), ack("n1", 7), False),
        (ack("n1", 5), ack("n1", 8), False),
        (ack("n1", 5), ack("n1", 6), False),
        (ack("n1", 5), ack("n1", 5), True),
        (ack("n1", 9, "old"), ack("n1", 9, "old"), True),
        (None, ack("n1", 5), False),
    ],
)
def test_a_kernel_lags_when_its_acknowledgement_stands_still(before: Ack | None, now: Ack, lagging: bool) -> None:
    published = Revision("e", 7)
    held = {} if before is None else {"n1": before}
    found = list(lag.check(published, held, {"n1": now, "n2": ack("n2", 7)}, seconds=4))
    assert [one.code for one in found] == (["policy-kernel-lags"] if lagging else [])
    assert not list(lag.check(published, held, {"n1": now}, seconds=4, only="n2"))
