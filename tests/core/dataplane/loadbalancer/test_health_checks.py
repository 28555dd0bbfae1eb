"""What load balancers are told: which node has a Service's ready endpoints, and whether a node should be used."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from proto.codec import object_key
from proto.objects import EndpointSlice, Service
from services.dataplane.core.loadbalancer.health_checks import Checks, ServiceCheck, node_answer
from tests.core.dataplane.notation import service, slice_of

LOCAL: dict[str, Any] = {"type": "LoadBalancer", "external_policy": "Local", "health_check_port": 32000}


def checks_of(*objects: Service | EndpointSlice) -> Checks:
    checks = Checks("n1")
    for one in objects:
        checks.put(object_key(one), one)
    checks.settle()
    return checks


@pytest.mark.parametrize(
    ("endpoints", "fields", "count"),
    [
        (["10.244.0.1", "10.244.0.2", "10.244.1.1 @n2"], {}, 2),
        (["10.244.0.1 terminating"], {}, 0),
        (["10.244.0.1 terminating", "10.244.0.2"], {}, 1),
        (["10.244.0.1 notready"], {}, 0),
        (["10.244.0.1 notready"], {"publish_not_ready": True}, 1),
        (["10.244.1.1 @n2"], {}, 0),
        ([], {}, 0),
    ],
)
def test_only_ready_endpoints_of_this_node_count(endpoints: list[str], fields: dict[str, Any], count: int) -> None:
    web = service("web", "10.96.0.10", **LOCAL, **fields)
    checks = checks_of(web, slice_of("web", *endpoints), slice_of("other", "10.244.0.9"))
    assert checks.by_port == {32000: ServiceCheck(namespace="shop", name="web", endpoints=count)}


def test_services_without_the_port_or_of_other_proxies_have_no_check_and_the_older_of_two_has_it() -> None:
    plain = service("plain", "10.96.0.11")
    others = service("others", "10.96.0.12", **LOCAL, fronted=False)
    assert checks_of(plain, others).by_port == {}
    younger = service("a", "10.96.0.13", **LOCAL, created=2)
    older = service("b", "10.96.0.14", **LOCAL, created=1)
    assert checks_of(younger, older).by_port[32000].name == "b"


def test_a_change_costs_the_service_that_it_is_about() -> None:
    """Of a namespace with a thousand such Services."""
    checks = Checks("n1")
    for number in range(1000):
        web = service(f"s{number}", "10.96.0.10", **{**LOCAL, "health_check_port": 30000 + number})
        assert checks.put(object_key(web), web) == ("shop", web.name)
        checks.put(f"slice {number}", slice_of(web.name, "10.244.0.1"))
    assert checks.settle()
    before = checks.visits
    checks.put("slice 7", slice_of("s7", "10.244.0.1", "10.244.0.2"))
    checks.put("slice of another", slice_of("plain", "10.244.0.1"))
    assert checks.settle()
    assert checks.visits == before + 1
    assert checks.by_port[30007].endpoints == 2
    checks.put("slice of another", slice_of("plain", "10.244.0.2"))
    assert not checks.settle()
    assert checks.visits == before + 1


@pytest.mark.parametrize(("count", "healthy", "status"), [(2, True, 200), (0, True, 503), (2, False, 503)])
def test_the_answer_for_a_service(count: int, healthy: bool, status: int) -> None:
    answer = ServiceCheck(namespace="shop", name="web", endpoints=count).answer(healthy=healthy)
    assert answer.status == status
    assert msgspec.json.decode(answer.body) == {
        "service": {"namespace": "shop", "name": "web"},
        "localEndpoints": count,
        "serviceProxyHealthy": healthy,
    }
    assert ("X-Load-Balancing-Endpoint-Weight", str(count)) in answer.headers


@pytest.mark.parametrize(
    ("path", "healthy", "eligible", "status"),
    [
        ("/healthz", True, True, 200),
        ("/healthz", False, True, 503),
        ("/healthz", True, False, 503),
        ("/livez", True, False, 200),
        ("/livez", False, True, 503),
        ("/", True, True, 404),
    ],
)
def test_the_answer_for_a_node(path: str, healthy: bool, eligible: bool, status: int) -> None:
    answer = node_answer(path, healthy=healthy, eligible=eligible, now=100.0, last_healthy=40.0)
    assert answer.status == status
    if status != 404:
        body = msgspec.json.decode(answer.body)
        assert body["currentTime"] == "1970-01-01T00:01:40Z"
        assert body["lastUpdated"] == ("1970-01-01T00:01:40Z" if healthy else "1970-01-01T00:00:40Z")
        assert body.get("nodeEligible") == (eligible if path == "/healthz" else None)
