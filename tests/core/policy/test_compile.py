"""Policies in YAML on the left, compiled lines on the right, one per line of text."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from proto.codec import encode
from proto.objects import IPBlock, KubernetesObject, Namespace, Peer, PolicyRule, Selector
from proto.policy import CompiledPolicy, Direction, PeerKind
from services.policy.core.cidrs import set_number
from services.policy.core.compile import MOST_NAMED
from services.policy.core.graph import Graph
from services.policy.core.limits import Limits, estimated_size
from tests.core.policy.cluster import settled
from tests.core.policy.notation import named, namespace, pod, policies, policy

DB = named("pg:TCP:5432")
PODS = {
    "x/db": pod("x/db", labels={"role": "db"}, named_ports=DB),
    "x/api": pod("x/api", labels={"role": "api"}),
    "y/api": pod("y/api", labels={"role": "api"}, named_ports=named("pg:TCP:6000")),
}
BLOCK = "10.0.0.0/8!10.1.0.0/16"


def graph(text: str, **limits: int) -> Graph:
    made = Graph(Limits(**limits))
    objects: dict[str, KubernetesObject] = {"ns": Namespace("kube-system", "cluster")}
    objects |= {name: namespace(name) for name in "xy"} | dict(PODS)
    objects |= {f"policy/{index}": one for index, one in enumerate(policies(text))}
    for key, value in objects.items():
        made.put(key, value)
    return settled(made)


def identity(made: Graph, name: str) -> int:
    found = made.roster.identities_of(PODS[name], made.relevant)
    assert found is not None
    return found[0]


def lines(made: Graph, compiled: CompiledPolicy) -> list[str]:
    """``< x/api TCP 80/16 p0:0``: direction, peer, protocol, port prefix, policy and rule."""
    named_peers = {identity(made, name): name for name in PODS} | {
        set_number([area]): area.text for own in made.partitions.values() for area in own.numbers_by_area
    }
    protocols = {0: "any", 6: "TCP", 17: "UDP", 132: "SCTP"}
    told = []
    for rule in compiled.rules:
        peer = "*" if rule.peer_kind is PeerKind.ANY else named_peers[rule.peer]
        source = compiled.sources[rule.rule]
        sign = "<" if rule.direction is Direction.INGRESS else ">"
        told.append(
            f"{sign} {peer} {protocols[rule.protocol]} {rule.port}/{rule.port_bits} {source.name}:{source.index}"
        )
    flags = f"{'<' if compiled.ingress_isolated else ''}{'>' if compiled.egress_isolated else ''}"
    return [f"isolated {flags}" if flags else "open", *sorted(told)]


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
        "isolated <\n< x/api TCP 5432/16 p0:0",
    ),
    (
        "all namespaces",
        "[{podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {role: api}}}]}]}]",
        "isolated <\n< x/api any 0/0 p0:0\n< y/api any 0/0 p0:0",
    ),
    (
        "a named port of ingress is the subject's own",
        "[{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}], ports: [{port: pg}]}]}]",
        "isolated <\n< y/api TCP 5432/16 p0:0",
    ),
    (
        "a named port of egress is each peer's",
        "[{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}], ports: [{port: pg}]}]}]",
        "isolated >\n> x/db TCP 5432/16 p0:0\n> y/api TCP 6000/16 p0:0",
    ),
    (
        "a named port to anyone is every pod that has it",
        "[{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: pg}, {port: 53, protocol: UDP}]}]}]",
        "isolated >\n> * UDP 53/16 p0:0\n> x/db TCP 5432/16 p0:0\n> y/api TCP 6000/16 p0:0",
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
        "isolated <\n< * TCP 79/16 p0:0\n< * TCP 80/15 p0:0\n< * TCP 82/16 p0:0",
    ),
    ("SCTP stays SCTP", "[{podSelector: {}, ingress: [{ports: [{protocol: SCTP}]}]}]", "isolated <\n< * SCTP 0/0 p0:0"),
    (
        "two rules that say the same are one line, of the first",
        "[{podSelector: {}, ingress: [{ports: [{port: 80}]}, {ports: [{port: 80}, {port: 81}]}]}]",
        "isolated <\n< * TCP 80/16 p0:0\n< * TCP 81/16 p0:1",
    ),
    (
        "ingress rules without the type Ingress are not in force",
        "[{podSelector: {}, policyTypes: [Egress], ingress: [{}], egress: [{ports: [{port: 1}]}]}]",
        "isolated >\n> * TCP 1/16 p0:0",
    ),
    ("a peer that says nothing allows nothing", "[{podSelector: {}, ingress: [{from: [{}]}]}]", "isolated <"),
]


@pytest.mark.parametrize(("text", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_compile(text: str, expected: str) -> None:
    made = graph(text)
    assert "\n".join(lines(made, made.compiled[identity(made, "x/db")].policy)) == expected


def test_a_peer_of_both_kinds_is_refused_by_the_api_and_allows_nothing_here() -> None:
    both = Peer(pod_selector=Selector(), ip_block=IPBlock(ip_network("10.0.0.0/8")))
    made = graph("[]")
    one = policy({"podSelector": {}})
    made.put("policy/0", type(one)("x", "p", "u", Selector(), True, False, (PolicyRule(peers=(both,)),)))
    made.run()
    assert lines(made, made.compiled[identity(made, "x/db")].policy) == ["isolated <"]


def test_every_identity_has_an_entry_and_says_who_isolates_it() -> None:
    made = graph("[{podSelector: {}, name: b}, {podSelector: {}, name: a, policyTypes: [Egress]}]")
    assert set(made.compiled) == {identity(made, name) for name in PODS}
    told = made.compiled[identity(made, "x/db")].policy.isolated_by
    assert [(source.name, source.index) for source in told] == [("b", -1), ("a", -2)]


def test_over_the_limit_a_direction_is_denied_whole_and_reported() -> None:
    text = (
        "[{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{ports: [{port: 1}, {port: 3}]}], egress: [{}]}]"
    )
    made = graph(text, lines=1)
    compiled = made.compiled[identity(made, "x/db")]
    assert lines(made, compiled.policy) == ["isolated <>", "> * any 0/0 p0:0"]
    (problem,) = compiled.problems
    assert "ingress of pods in x with role=db would take more than 1 lines: denied whole" in problem.fault
    assert "x/p0" in problem.remedy
    assert problem in made.problems
    assert lines(graph(text, lines=2), graph(text, lines=2).compiled[identity(made, "x/db")].policy)[1:]


def test_over_the_size_both_directions_are_denied_whole() -> None:
    made = graph("[{podSelector: {}, ingress: [{ports: [{port: 1}]}]}]", size=600)
    compiled = made.compiled[identity(made, "x/db")]
    assert lines(made, compiled.policy) == ["isolated <"]
    assert len(compiled.problems) == 2


def test_the_largest_allowed_value_fits_on_the_bus() -> None:
    """The estimate of ``limits`` is from above: what it lets pass can be published."""

    ports = ", ".join(f"{{port: {port}}}" for port in range(20001, 20001 + 2 * 3000, 2))
    made = graph(f"[{{podSelector: {{}}, policyTypes: [Egress, Ingress], egress: [{{ports: [{ports}]}}]}}]")
    compiled = made.compiled[identity(made, "x/db")].policy
    assert len(compiled.rules) == 3000
    assert len(encode(compiled)) <= estimated_size(compiled.rules, compiled.sources)


def test_a_pod_that_very_many_policies_isolate_still_fits_on_the_bus() -> None:
    text = "\n".join(
        f"- {{name: {'n' * 200}{index}, podSelector: {{}}, policyTypes: [Ingress, Egress]}}" for index in range(900)
    )
    made = graph(text)
    compiled = made.compiled[identity(made, "x/db")].policy
    assert len(compiled.isolated_by) == 2 * MOST_NAMED
    assert len(encode(compiled)) < 60_000
