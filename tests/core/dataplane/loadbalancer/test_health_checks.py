"""What load balancers are told: which node has a Service's ready endpoints, and whether a node should be used."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from services.dataplane.core.loadbalancer.health_checks import ServiceCheck, checks_of, node_answer
from tests.core.dataplane.notation import service, slice_of

LOCAL: dict[str, Any] = {"type": "LoadBalancer", "external_policy": "Local", "health_check_port": 32000}


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
    checks = checks_of([web], [slice_of("web", *endpoints), slice_of("other", "10.244.0.9")], "n1")
    assert checks == {32000: ServiceCheck(namespace="shop", name="web", endpoints=count)}


def test_services_without_the_port_or_of_other_proxies_have_no_check_and_the_older_of_two_has_it() -> None:
    plain = service("plain", "10.96.0.11")
    others = service("others", "10.96.0.12", **LOCAL, fronted=False)
    assert checks_of([plain, others], [], "n1") == {}
    younger = service("a", "10.96.0.13", **LOCAL, created=2)
    older = service("b", "10.96.0.14", **LOCAL, created=1)
    assert checks_of([younger, older], [], "n1")[32000].name == "b"


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
