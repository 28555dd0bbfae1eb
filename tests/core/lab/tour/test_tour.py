"""The tour's judgement: it must see every kind of disagreement between policy, connections, drops and Services."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from typing import Any

import pytest
from rich.console import Console

from lab.tour import tables
from lab.tour.drops import Drop, drops, parse_drop
from lab.tour.probes import Move, Outcome, Pod, Port, Probe, cells, parse_pod, probes
from lab.tour.services import Check, answered, checks, parse_service

HTTP = Port(number=8080, protocol="tcp", name="http")
PULSE = Port(number=5433, protocol="udp", name="pulse")


def pod(name: str, number: int, *ports: Port, workload: str = "") -> Pod:
    namespace, _, short = name.partition("/")
    return Pod(
        namespace=namespace,
        name=short,
        uid=f"uid-{name}-{number}",
        workload=workload or f"{namespace}/{short.rpartition('-')[0]}",
        node=f"n{number % 3 + 1}",
        addresses=(ip_address(f"10.244.0.{number}"), ip_address(f"fd00:10:244::{number}")),
        ports=ports,
        labels=(("app", short.rpartition("-")[0]),),
        ready=True,
    )


WEB1, WEB2, API = pod("shop/web-1", 1, HTTP), pod("shop/web-2", 2, HTTP), pod("prod/api-1", 3, HTTP)


def outcome(source: Pod, target: Pod, port: Port, *, allowed: bool, did: str, family: int = 0) -> Outcome:
    probe = Probe(source=source, target=target, address=target.addresses[family], port=port)
    return Outcome(probe=probe, allowed=allowed, connected=did == "ok", error="" if did == "ok" else did)


def text(draw: Callable[[Console], None]) -> str:
    out = io.StringIO()
    draw(Console(file=out, width=200))
    return out.getvalue()


def test_every_pod_is_tried_from_every_other_in_both_families() -> None:
    tried = probes([WEB1, WEB2, API])
    assert len(tried) == 3 * 2 * 2
    assert all(probe.source is not probe.target for probe in tried)
    assert {probe.url for probe in tried if probe.target is API} == {
        "tcp://10.244.0.3:8080",
        "tcp://[fd00:10:244::3]:8080",
    }


def test_policy_is_asked_by_the_addresses_that_the_packets_will_have() -> None:
    probe = Probe(source=WEB1, target=API, address=API.addresses[1], port=PULSE)
    assert probe.question == "fd00:10:244::1 [fd00:10:244::3]:5433/udp"


@pytest.mark.parametrize(
    ("allowed", "did", "agrees"),
    [
        (True, "ok", True),
        (True, "timeout", False),
        (True, "refused", False),
        (False, "timeout", True),
        (False, "unreachable", True),
        (False, "ok", False),
        (False, "refused", False),
    ],
)
def test_a_connection_agrees_or_not(allowed: bool, did: str, agrees: bool) -> None:
    seen = outcome(WEB1, API, HTTP, allowed=allowed, did=did)
    assert seen.agrees is agrees
    (state,) = cells([seen]).values()
    assert (len(state.wrong) == 0) is agrees
    drawn = text(lambda page: tables.matrix(page, cells([seen])))
    assert ("policy allows, connection" in drawn or "policy denies, connection" in drawn) is not agrees


class TestDrops:
    DENIED = replace(
        outcome(WEB1, API, HTTP, allowed=False, did="timeout"),
        reasons="ingress: denied, isolated by prod/default-deny and no rule allows",
    )
    ALLOWED = outcome(API, WEB1, HTTP, allowed=True, did="ok")

    def drop(self, source: Pod, target: Pod, **change: Any) -> Drop:
        event = Drop(
            source=source.addresses[0],
            destination=target.addresses[0],
            protocol="tcp",
            port=8080,
            reason="POLICY_DENIED",
            direction="ingress",
            policies=("prod/default-deny",),
            rule=-1,
            revision="e:7",
            missed=0,
        )
        return replace(event, **change)

    def test_a_denied_connection_with_its_drop_agrees(self) -> None:
        seen = drops([self.drop(WEB1, API), self.drop(WEB1, API)], [self.DENIED, self.ALLOWED])
        assert (seen.unnamed, seen.unexpected) == ((), ())
        assert [(row.count, row.policies, row.revisions) for row in seen.rows] == [
            (2, ("prod/default-deny",), ("e:7",))
        ]
        assert "prod/default-deny" in text(lambda page: tables.drops(page, seen))

    def test_a_denied_connection_without_a_named_drop_does_not(self) -> None:
        for events in ([], [self.drop(WEB1, API, policies=())]):
            seen = drops(events, [self.DENIED])
            assert seen.unnamed == (("shop/web", "prod/api", HTTP),)
            assert "told nowhere, or without a policy" in text(partial(tables.drops, seen=seen))

    def test_unless_events_were_left_out(self) -> None:
        assert drops([self.drop(API, WEB2, missed=4)], [self.DENIED]).unnamed == ()

    def test_a_drop_where_policy_allows_is_a_disagreement(self) -> None:
        assert len(drops([self.drop(API, WEB1)], [self.ALLOWED]).unexpected) == 1

    def test_a_drop_that_names_a_policy_which_does_not_decide_is_one_too(self) -> None:
        seen = drops([self.drop(WEB1, API, policies=("prod/default-deny", "prod/worker-egress"))], [self.DENIED])
        assert len(seen.misnamed) == 1
        assert "names prod/default-deny, prod/worker-egress; policy does not" in seen.contradictions[0]

    def test_drops_that_differ_in_the_other_end_alone_are_one_line(self) -> None:
        both = [self.DENIED, replace(self.DENIED, probe=replace(self.DENIED.probe, source=pod("prod/job-1", 8)))]
        seen = drops([self.drop(WEB1, API), self.drop(pod("prod/job-1", 8), API)], both)
        assert len(seen.rows) == 2
        drawn = text(lambda page: tables.drops(page, seen))
        assert drawn.count("prod/default-deny") == 1
        assert "from prod/job, shop/web" in drawn

    def test_traffic_of_others_is_left_out(self) -> None:
        stranger = pod("kube-system/coredns-1", 9, HTTP)
        assert drops([self.drop(stranger, API)], [self.DENIED]).rows == ()

    def test_an_event_of_the_observer_is_parsed(self) -> None:
        event = {
            "source": "10.244.0.1",
            "destination": "fd00::1",
            "protocol": 17,
            "destination_port": 53,
            "reason": "POLICY_DENIED",
            "direction": "egress",
            "policies": ["prod/worker-egress"],
            "rule": 2,
            "revision": "e:1",
            "missed": 3,
        }
        parsed = parse_drop(event)
        assert (parsed.protocol, parsed.port, parsed.missed) == ("udp", 53, 3)


def service_json(**spec: object) -> dict[str, object]:
    ports = [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}]
    whole = {"clusterIPs": ["10.96.0.5", "fd00:10:96::5"], "selector": {"app": "web"}, "ports": ports, **spec}
    return {"metadata": {"namespace": "shop", "name": "web"}, "spec": whole}


class TestServices:
    OUTCOMES = (
        outcome(API, WEB1, HTTP, allowed=True, did="ok"),
        outcome(API, WEB2, HTTP, allowed=True, did="ok"),
        outcome(pod("prod/worker-1", 4), WEB1, HTTP, allowed=False, did="timeout"),
        outcome(pod("prod/worker-1", 4), WEB2, HTTP, allowed=False, did="timeout"),
        outcome(pod("prod/odd-1", 5), WEB1, HTTP, allowed=True, did="ok"),
        outcome(pod("prod/odd-1", 5), WEB2, HTTP, allowed=False, did="timeout"),
    )

    def of(self, **spec: object) -> tuple[Check, ...]:
        service = parse_service(service_json(**spec), [WEB1, WEB2, API])
        return checks([service], self.OUTCOMES, "cluster.local")

    def test_a_named_target_port_is_the_pods_own(self) -> None:
        service = parse_service(service_json(), [WEB1, WEB2, API])
        assert service.ports[0].target == HTTP
        assert service.backends == (WEB1, WEB2)

    def test_ways_are_the_name_and_each_cluster_ip_and_one_for_whom_policy_stops(self) -> None:
        assert [(one.way, one.allowed, one.client.name) for one in self.of()] == [
            ("name", True, "api-1"),
            ("IPv4", True, "api-1"),
            ("IPv6", True, "api-1"),
            ("IPv6", False, "worker-1"),
        ]
        assert self.of()[0].url == "http://web.shop.svc.cluster.local:80/"
        assert self.of()[2].url == "http://[fd00:10:96::5]:80/"

    def test_a_headless_service_gives_each_pod_a_name(self) -> None:
        hosts = [one.host for one in self.of(clusterIPs=["None"]) if one.allowed]
        assert hosts == [f"{pre}web.shop.svc.cluster.local" for pre in ("", "web-1.", "web-2.")]

    @pytest.mark.parametrize(
        ("sticky", "did", "agrees"),
        [
            (False, ("web-1", "web-2"), True),
            (True, ("web-1", "web-1"), True),
            (True, ("web-1", "web-2"), False),
            (False, ("web-1", "api-1"), False),
            (False, ("web-1", ""), False),
            (False, ("", ""), False),
        ],
    )
    def test_answers_must_come_from_its_own_pods(self, sticky: bool, did: tuple[str, ...], agrees: bool) -> None:
        check = self.of(sessionAffinity="ClientIP" if sticky else "None")[0]
        lines = [
            {"ok": bool(name), "ms": 1.0, "answer": {"pod": name}}
            if name
            else {"ok": False, "ms": 9, "error": "timeout"}
            for name in did
        ]
        assert answered(check, lines).agrees is agrees
        assert ("should be reached" in text(lambda page: tables.services(page, [answered(check, lines)]))) is not agrees

    def test_a_service_opens_no_way_round_policy(self) -> None:
        denied = self.of()[-1]
        assert answered(denied, [{"ok": False, "ms": 9, "error": "timeout"}]).agrees
        assert not answered(denied, [{"ok": True, "ms": 1, "answer": {"pod": "web-1"}}]).agrees


class TestMove:
    BEFORE = pod("prod/db-0", 7, PULSE)

    def moved(self, **change: Any) -> Move:
        after = replace(self.BEFORE, uid="new", node="n9", **change)
        return Move(before=self.BEFORE, after=after, gaps_ms=(("IPv4", 900.0),), seconds=2.0)

    def test_kept_addresses_on_another_node_agree(self) -> None:
        assert self.moved().agrees
        assert "addresses kept" in text(lambda page: tables.move(page, self.moved()))

    def test_any_other_address_node_or_silence_does_not(self) -> None:
        assert not self.moved(addresses=(ip_address("10.244.0.9"), self.BEFORE.addresses[1])).agrees
        assert not self.moved(addresses=self.BEFORE.addresses[:1]).agrees
        assert not replace(self.moved(), gaps_ms=()).agrees
        same = replace(self.moved(), after=replace(self.BEFORE, uid="new"))
        assert not same.agrees
        assert "did not move" in text(lambda page: tables.move(page, same))


def test_a_pod_is_parsed_with_why_it_waits() -> None:
    item: dict[str, Any] = {
        "metadata": {"namespace": "prod", "name": "db-0", "uid": "u", "labels": {"role": "db"}},
        "spec": {
            "nodeName": "n2",
            "containers": [{"ports": [{"containerPort": 5433, "protocol": "UDP", "name": "pulse"}]}],
        },
        "status": {
            "podIPs": [{"ip": "10.244.0.7"}],
            "conditions": [{"type": "Ready", "status": "False", "message": "not yet"}],
            "containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}],
        },
    }
    parsed = parse_pod(item)
    assert (parsed.workload, parsed.ready, parsed.waits_for) == ("prod/db", False, "ContainerCreating")
    assert parsed.ports == (PULSE,)
    item["status"] = {"podIPs": [], "conditions": [{"type": "Ready", "status": "True"}]}
    assert parse_pod(item).ready
    item["metadata"]["deletionTimestamp"] = "now"
    assert not parse_pod(item).ready
