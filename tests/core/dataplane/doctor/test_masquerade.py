"""An ipBlock that never sees its clients: denials by a node's address, the present policy, and the Service's way."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import msgspec
import pytest

from proto.flow import DropReason
from proto.identity import Reserved
from proto.objects import EndpointPort, EndpointSlice, Service, ServicePort, SliceEndpoint
from proto.policy import (
    CidrPartition,
    CidrSet,
    CompiledPolicy,
    CompiledRule,
    Direction,
    PortMatch,
    Revision,
    RuleSource,
    Verdict,
)
from services.dataplane.core.datapath.layout import Event
from services.dataplane.core.doctor.ingress import Subject
from services.dataplane.core.doctor.masquerade import KEPT, MOST, Denials, Denied, Facts, check

POD, N2 = ip_address("10.0.1.5"), ip_address("172.30.0.12")
AT = Revision(epoch="e", sequence=7)
CLIENTS = CidrSet(prefix=ip_network("198.51.100.0/24"), number=99)
ONE = Denied(endpoint=4, source=N2, protocol=6, port=8080)
SERVICE = Service(
    namespace="shop",
    name="web",
    uid="u",
    type="NodePort",
    ports=(ServicePort("http", 6, 80, 30080),),
)
SLICE = EndpointSlice(
    namespace="shop",
    name="web-1",
    service="web",
    endpoints=(SliceEndpoint(addresses=(POD,), node="n1"),),
    ports=(EndpointPort("http", 6, 8080),),
)


def rule(*sets: int, port: int = 8080, any_peer: bool = False, verdict: Verdict = Verdict.ALLOW) -> CompiledRule:
    return CompiledRule(Direction.INGRESS, 0, verdict, 0, any_peer, (), sets, (PortMatch(6, port, 16),))


def subject(*rules: CompiledRule, prefixes: tuple[CidrSet, ...] = (CLIENTS,), isolated: bool = True) -> Subject:
    policy = CompiledPolicy(
        identity=1000,
        revision=AT,
        ingress_isolated=isolated,
        egress_isolated=False,
        rules=rules,
        sources=(RuleSource("NetworkPolicy", "shop", "from-office", 0),),
        namespace="shop",
    )
    return Subject(
        name="shop/web-0", addresses=(POD,), policy=policy, partition=CidrPartition(revision=AT, prefixes=prefixes)
    )


def facts(service: Service = SERVICE, part: EndpointSlice = SLICE) -> Facts:
    return Facts(node="n1", nodes={N2: "n2"}, services=(service,), slices=(part,))


def test_it_names_the_policy_with_the_denials_as_evidence() -> None:
    (one,) = check({ONE: 3}, {4: subject(rule(99))}, facts())
    assert (one.code, one.about, one.node) == ("policy-ipblock-masqueraded", "NetworkPolicy shop/from-office", "n1")
    assert one.affects == ("Service shop/web", "Pod shop/web-0")
    assert "by the address of node n2 (172.30.0.12): ipBlock 198.51.100.0/24 of shop/from-office" in one.cause
    assert one.observed[0].text == "3 translated packets of n2 (172.30.0.12) to port 8080 denied"
    assert one.fixes[0].command.endswith("""-p '{"spec": {"externalTrafficPolicy": "Local"}}'""")


WHOLE = CidrSet(prefix=ip_network("172.30.0.0/24"), number=99)
HOLE = CidrSet(prefix=ip_network("172.30.0.12/32"), number=98)


@pytest.mark.parametrize(
    ("judged", "known"),
    [
        (subject(rule(99), isolated=False), facts()),
        (subject(rule(99), rule(any_peer=True)), facts()),
        (subject(rule(99), prefixes=(CLIENTS, WHOLE)), facts()),
        (subject(rule(99, port=9090)), facts()),
        (subject(rule()), facts()),
        (subject(rule(99, verdict=Verdict.DENY)), facts()),
        (subject(rule(99)), facts(msgspec.structs.replace(SERVICE, external_policy="Local"))),
        (subject(rule(99)), facts(msgspec.structs.replace(SERVICE, ports=(ServicePort("http", 6, 80),)))),
        (subject(rule(99)), facts(part=msgspec.structs.replace(SLICE, service="other"))),
        (subject(rule(99)), Facts(node="n1", nodes={}, services=(SERVICE,), slices=(SLICE,))),
    ],
    ids=["mended", "anybody", "the node is held", "another port", "no ipBlock", "a denial", "Local", "not from outside",
         "another's endpoint", "no node's address"],
)  # fmt: skip
def test_what_else_denies_is_not_this(judged: Subject, known: Facts) -> None:
    assert not list(check({ONE: 3}, {4: judged}, known))


def test_the_longest_prefix_says_whether_the_node_is_held() -> None:
    assert list(check({ONE: 1}, {4: subject(rule(99), prefixes=(CLIENTS, WHOLE, HOLE))}, facts()))
    assert not list(check({ONE: 1}, {4: subject(rule(99, 98), prefixes=(CLIENTS, WHOLE, HOLE))}, facts()))


def test_an_address_of_a_load_balancer_leads_there_too() -> None:
    balanced = msgspec.structs.replace(SERVICE, ports=(ServicePort("http", 6, 80),), load_balancer_ips=(N2,))
    assert list(check({ONE: 1}, {4: subject(rule(99))}, facts(balanced)))


def event(time: int = 0, **more: object) -> Event:
    fields: dict[str, object] = {
        "time": time, "subject": 1000, "peer": int(Reserved.REMOTE_NODE), "source": N2, "destination": POD,
        "length": 60, "ifindex": 4, "endpoint": 4, "rule": 0xFFFFFFFF, "missed": 0, "policy": 1, "source_port": 61001,
        "destination_port": 8080, "reason": int(DropReason.POLICY_DENIED), "protocol": 6,
        "direction": int(Direction.INGRESS),
    }  # fmt: skip
    return Event(**{**fields, **more})  # type: ignore[arg-type]


def test_translated_packets_of_nodes_are_remembered_for_a_while() -> None:
    denials = Denials()
    denials.take([event(), event(5, missed=2), event(6, endpoint=5)])
    assert denials.now(10) == {ONE: 4, Denied(endpoint=5, source=N2, protocol=6, port=8080): 1}
    assert denials.now(KEPT + 5).keys() == {ONE, Denied(endpoint=5, source=N2, protocol=6, port=8080)}
    assert denials.now(KEPT + 7) == {}
    denials.take([event(1), event(KEPT + 9)])
    assert denials.now(KEPT + 9) == {ONE: 1}


@pytest.mark.parametrize(
    "other",
    [
        {"source_port": 60999},
        {"peer": int(Reserved.WORLD)},
        {"peer": 4711},
        {"reason": int(DropReason.POLICY_UNKNOWN)},
        {"direction": int(Direction.EGRESS)},
    ],
)
def test_others_are_not(other: dict[str, object]) -> None:
    denials = Denials()
    denials.take([event(0, **other)])
    assert not denials.now(0)


def test_the_latest_are_remembered() -> None:
    denials = Denials()
    denials.take([event(number, endpoint=number) for number in range(MOST + 7)])
    denials.take([event(MOST + 8, endpoint=7)])
    assert {one.endpoint for one in denials.now(MOST + 8)} == set(range(7, MOST + 7))
