"""Policies in YAML on the left, compiled lines on the right, one per line of text."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from proto.codec import encode
from proto.identity import NamedPort
from proto.objects import IPBlock, KubernetesObject, Namespace, Peer, PolicyRule, Selector
from proto.policy import MAX_RULES, CompiledPolicy, Direction, SelectorPeer
from services.policy.core.cidrs import set_number
from services.policy.core.compile import MOST_NAMED, PRECEDENCE
from services.policy.core.graph import Graph
from services.policy.core.identities import NO_KEYS
from services.policy.core.limits import About, Limits
from tests.core.policy.cluster import settled
from tests.core.policy.notation import named, namespace, pod, policies, policy

DB = named("pg:TCP:5432")
PODS = {
    "x/db": pod("x/db", labels={"role": "db"}, named_ports=DB),
    "x/api": pod("x/api", labels={"role": "api"}),
    "y/api": pod("y/api", labels={"role": "api"}, named_ports=named("pg:TCP:6000")),
}
BLOCK = "10.0.0.0/8!10.1.0.0/16"


def graph(text: str, **limits: Any) -> Graph:
    made = Graph(Limits(**limits))
    objects: dict[str, KubernetesObject] = {"ns": Namespace("kube-system", "cluster")}
    objects |= {name: namespace(name) for name in "xy"} | dict(PODS)
    objects |= {f"policy/{index}": one for index, one in enumerate(policies(text))}
    for key, value in objects.items():
        made.put(key, value)
    return settled(made)


def identity(made: Graph, name: str) -> int:
    found = made.roster.identity_of(PODS[name], made.relevant)
    assert found is not None
    return found


def peer_text(one: SelectorPeer) -> str:
    """``y`` for a namespace, ``(ns=y)`` or ``()`` for a namespace selector, then the pod selector, then a port."""

    def text(chosen: Selector | None) -> str:
        return "" if chosen is None else f"({' '.join(f'{key}={value}' for key, value in chosen.match_labels)})"

    port = "" if one.named_port is None else f"@{one.named_port.name}:{one.named_port.port}"
    return (
        f"{one.namespace}{text(one.namespace_selector)}{'/' + text(one.pod_selector) if one.pod_selector else ''}{port}"
    )


def rule_texts(made: Graph, compiled: CompiledPolicy) -> list[str]:
    """``< x/(role=api) TCP 80/16 p0:0``: direction, peers, ports with prefixes, policy and rule."""
    blocks = {set_number([area]): area.text for own in made.partitions.values() for area in own.numbers_by_area}
    protocols = {0: "any", 6: "TCP", 17: "UDP", 132: "SCTP"}
    reported = []
    for rule in compiled.rules:
        assert rule.precedence == PRECEDENCE
        peers = ["*"] if rule.any_peer else []
        peers += [peer_text(compiled.selectors[at]) for at in rule.selectors]
        peers += [blocks[number] for number in rule.cidr_sets]
        source = compiled.sources[rule.source]
        sign = "<" if rule.direction is Direction.INGRESS else ">"
        ports = " ".join(f"{protocols[match.protocol]} {match.port}/{match.bits}" for match in rule.ports)
        reported.append(f"{sign} {', '.join(peers)} {ports} {source.name}:{source.index}")
    flags = f"{'<' if compiled.ingress_isolated else ''}{'>' if compiled.egress_isolated else ''}"
    return [f"isolated {flags}" if flags else "open", *reported]


TABLE = [
    ("no policy at all", "[]", "open"),
    ("a policy of another namespace", "[{namespace: y, podSelector: {}}]", "open"),
    ("a policy on other pods", "[{podSelector: {matchLabels: {role: api}}}]", "open"),
    ("deny ingress", "[{podSelector: {}}]", "isolated <"),
    ("deny both", "[{podSelector: {}, policyTypes: [Ingress, Egress]}]", "isolated <>"),
    ("allow all ingress", "[{podSelector: {}, ingress: [{}]}]", "isolated <\n< * any 0/0 p0:0"),
    (
        "the mission's policy",
        """[{podSelector: {matchLabels: {role: db}},
             ingress: [{from: [{podSelector: {matchLabels: {role: api}}}], ports: [{protocol: TCP, port: 5432}]}]}]""",
        "isolated <\n< x/(role=api) TCP 5432/16 p0:0",
    ),
    (
        "all namespaces",
        "[{podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {role: api}}}]}]}]",
        "isolated <\n< ()/(role=api) any 0/0 p0:0",
    ),
    (
        "a named port of ingress is the subject's own",
        "[{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}], ports: [{port: pg}]}]}]",
        "isolated <\n< (ns=y) TCP 5432/16 p0:0",
    ),
    (
        "a named port of egress is each peer's",
        "[{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}], ports: [{port: pg}]}]}]",
        "isolated >\n> ()@pg:5432 TCP 5432/16 p0:0\n> ()@pg:6000 TCP 6000/16 p0:0",
    ),
    (
        "a named port to anyone is every pod that has it",
        "[{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: pg}, {port: 53, protocol: UDP}]}]}]",
        "isolated >\n> * UDP 53/16 p0:0\n> ()@pg:5432 TCP 5432/16 p0:0\n> ()@pg:6000 TCP 6000/16 p0:0",
    ),
    (
        "a name that nobody has allows nothing",
        "[{podSelector: {}, ingress: [{ports: [{port: nobody}]}]}]",
        "isolated <",
    ),
    (
        "a name of another protocol allows nothing",
        "[{podSelector: {}, ingress: [{ports: [{port: pg, protocol: UDP}]}]}]",
        "isolated <",
    ),
    (
        "an ipBlock with an exception",
        "[{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]}]}]",
        f"isolated <\n< {BLOCK} any 0/0 p0:0",
    ),
    (
        "a named port to an ipBlock is nobody's",
        """[{podSelector: {}, policyTypes: [Egress],
             egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: pg}]}]}]""",
        "isolated >",
    ),
    (
        "a named port from an ipBlock is the subject's own",
        "[{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: pg}]}]}]",
        "isolated <\n< 10.0.0.0/8 TCP 5432/16 p0:0",
    ),
    (
        "a range",
        "[{podSelector: {}, ingress: [{ports: [{port: 79, endPort: 82}]}]}]",
        "isolated <\n< * TCP 79/16 TCP 80/15 TCP 82/16 p0:0",
    ),
    ("SCTP stays SCTP", "[{podSelector: {}, ingress: [{ports: [{protocol: SCTP}]}]}]", "isolated <\n< * SCTP 0/0 p0:0"),
    (
        "two rules that say the same are one, of the first",
        "[{podSelector: {}, ingress: [{ports: [{port: 80}]}, {ports: [{port: 80}]}, {ports: [{port: 81}]}]}]",
        "isolated <\n< * TCP 80/16 p0:0\n< * TCP 81/16 p0:2",
    ),
    (
        "ingress rules without the type Ingress are not in force",
        "[{podSelector: {}, policyTypes: [Egress], ingress: [{}], egress: [{ports: [{port: 1}]}]}]",
        "isolated >\n> * TCP 1/16 p0:0",
    ),
    (
        "peers of one rule stand together",
        """[{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {role: api}}}, {namespaceSelector: {}},
             {ipBlock: {cidr: 10.0.0.0/8}}, {podSelector: {matchLabels: {role: api}}}],
             ports: [{port: 1}, {port: 2}]}]}]""",
        "isolated <\n< x/(role=api), (), 10.0.0.0/8 TCP 1/16 TCP 2/16 p0:0",
    ),
    ("a peer that says nothing allows nothing", "[{podSelector: {}, ingress: [{from: [{}]}]}]", "isolated <"),
]


@pytest.mark.parametrize(("text", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_compile(text: str, expected: str) -> None:
    made = graph(text)
    assert "\n".join(rule_texts(made, made.compiled[identity(made, "x/db")].policy)) == expected


def test_a_peer_of_both_kinds_is_refused_by_the_api_and_allows_nothing() -> None:
    both = Peer(pod_selector=Selector(), ip_block=IPBlock(ip_network("10.0.0.0/8")))
    made = graph("[]")
    one = policy({"podSelector": {}})
    made.put("policy/0", type(one)("x", "p", "u", Selector(), True, False, (PolicyRule(peers=(both,)),)))
    made.run()
    assert rule_texts(made, made.compiled[identity(made, "x/db")].policy) == ["isolated <"]


def test_every_identity_has_an_entry_and_says_who_isolates_it() -> None:
    made = graph("[{podSelector: {}, name: b}, {podSelector: {}, name: a, policyTypes: [Egress]}]")
    assert set(made.compiled) == {identity(made, name) for name in PODS}
    reported = made.compiled[identity(made, "x/db")].policy.isolated_by
    assert [(source.name, source.index) for source in reported] == [("b", -1), ("a", -2)]


def allow_ports(count: int, direction: str = "ingress", first: int = 1) -> str:
    return f"{direction}: [{', '.join(f'{{ports: [{{port: {first + port}}}]}}' for port in range(count))}]"


def test_over_the_limit_a_direction_is_denied_whole_and_reported_on_its_policies() -> None:
    text = f"[{{podSelector: {{}}, policyTypes: [Ingress, Egress], {allow_ports(MAX_RULES + 1)}, egress: [{{}}]}}]"
    made = graph(text)
    compiled = made.compiled[identity(made, "x/db")]
    assert rule_texts(made, compiled.policy) == ["isolated <>", "> * any 0/0 p0:0"]
    (problem,) = compiled.problems
    assert "ingress of pods in x with role=db would take 257 rules of different ports" in problem.fault
    assert "denied whole" in problem.fault
    assert "x/p0" in problem.remedy
    assert problem.about == (About("networking.k8s.io", "NetworkPolicy", "x", "p0", "PolicyTooLarge"),)
    assert problem in made.problems
    fits = graph(f"[{{podSelector: {{}}, {allow_ports(MAX_RULES)}}}]")
    assert len(fits.compiled[identity(fits, "x/db")].policy.rules) == MAX_RULES
    assert not fits.problems


def test_rules_of_equal_ports_become_one_only_where_there_are_too_many() -> None:
    """257 rules on one port, each of another peer: one rule of 257 peers, named after the first."""

    def policy_of(count: int) -> CompiledPolicy:
        rules = ", ".join(
            f"{{from: [{{podSelector: {{matchLabels: {{role: r{at}}}}}}}], ports: [{{port: {1 + at % 2}}}]}}"
            for at in range(count)
        )
        made = graph(f"[{{podSelector: {{}}, ingress: [{rules}]}}]")
        assert not made.problems
        return made.compiled[identity(made, "x/db")].policy

    assert len(policy_of(MAX_RULES).rules) == MAX_RULES
    merged = policy_of(MAX_RULES + 1)
    assert [(len(rule.selectors), rule.source, rule.ports[0].port) for rule in merged.rules] == [
        (129, 0, 1),
        (128, 1, 2),
    ]
    assert len(merged.selectors) == MAX_RULES + 1
    assert [source.index for source in merged.sources] == [0, 1]


def test_too_many_ports_or_peers_are_denied_whole() -> None:
    for limits in ({"ports": 1}, {"peers": 1}):
        made = graph(
            """[{podSelector: {}, ingress: [{from: [{podSelector: {}}, {namespaceSelector: {}}],
                 ports: [{port: 1}, {port: 3}]}]}]""",
            **limits,
        )
        compiled = made.compiled[identity(made, "x/db")]
        assert rule_texts(made, compiled.policy) == ["isolated <"]
        assert "more than 1: denied whole" in compiled.problems[0].fault


def test_over_the_size_both_directions_are_denied_whole() -> None:
    made = graph("[{podSelector: {}, ingress: [{ports: [{port: 1}]}]}]", size=100)
    compiled = made.compiled[identity(made, "x/db")]
    assert rule_texts(made, compiled.policy) == ["isolated <"]
    assert len(compiled.problems) == 2


def test_the_largest_allowed_value_fits_on_the_bus() -> None:
    ports = ", ".join(f"{{port: {port}}}" for port in range(20001, 20001 + 2 * 3000, 2))
    made = graph(f"[{{podSelector: {{}}, policyTypes: [Egress, Ingress], egress: [{{ports: [{ports}]}}]}}]")
    compiled = made.compiled[identity(made, "x/db")].policy
    assert len(compiled.rules[0].ports) == 3000
    assert len(encode(compiled)) < 20_000


def web(port: int) -> tuple[NamedPort, ...]:
    return named(f"web:TCP:{port}")


TO_WEB = "[{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}], ports: [{port: web}]}]}]"


def test_one_tenants_numbers_for_a_name_do_not_push_out_those_of_others() -> None:
    """The attack: thousands of container ports of one name, each of which was a line of everybody's policy."""
    made = graph(TO_WEB)
    made.put("x/web", pod("x/web", named_ports=web(8080)))
    for space in ("y", "z"):
        made.put(space, namespace(space))
        made.put(f"{space}/web", pod(f"{space}/web", named_ports=web(9090)))
    for number in range(1, 301):
        made.put(f"y/{number}", pod(f"y/{number}", named_ports=web(number)))
        made.put(f"y/{number}b", pod(f"y/{number}b", named_ports=web(number)))
    made.run()
    compiled = made.compiled[identity(made, "x/db")]
    numbers = [rule.ports[0].port for rule in compiled.policy.rules]
    assert len(numbers) == 64
    assert {8080, 9090} < set(numbers), "its own namespace's, and what two namespaces have"
    (problem,) = compiled.problems
    assert "have 302 numbers" in problem.fault
    assert problem.about == (About("networking.k8s.io", "NetworkPolicy", "x", "p0", "NamedPortNumbers"),)


def test_named_ports_come_and_go_with_the_peers_that_have_them() -> None:
    made = graph(TO_WEB)
    subject = identity(made, "x/db")

    def numbers() -> list[int]:
        return [rule.ports[0].port for rule in made.compiled[subject].policy.rules]

    assert numbers() == []
    made.put("y/web", pod("y/web", named_ports=web(80)))
    assert subject in made.run()
    assert numbers() == [80]
    made.put("y/web2", pod("y/web2", named_ports=web(80)))
    assert subject not in made.run(), "another identity with the same port costs nobody anything"
    made.put("y/web", None)
    assert subject not in made.run()
    made.put("y/web2", None)
    assert subject in made.run()
    assert numbers() == []
    assert made.roster.identity_of(PODS["x/db"], NO_KEYS) == subject


def test_a_pod_that_very_many_policies_isolate_still_fits_on_the_bus() -> None:
    text = "\n".join(
        f"- {{name: {'n' * 200}{index}, podSelector: {{}}, policyTypes: [Ingress, Egress]}}" for index in range(900)
    )
    made = graph(text)
    compiled = made.compiled[identity(made, "x/db")].policy
    assert len(compiled.isolated_by) == 2 * MOST_NAMED
    assert len(encode(compiled)) < 60_000
