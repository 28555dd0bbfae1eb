"""Each fault of a slow Service, as its facts: the one finding that names it."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from proto.objects import EndpointPort, EndpointSlice, Service, ServicePort, SliceEndpoint
from services.dataplane.core.doctor.endpoints import CODES, Asked, check, check_times, targets

WEB = Service("shop", "web", "u", ports=(ServicePort("dns", 17, 53), ServicePort("http", 6, 80)))
PORTS = (EndpointPort("http", 6, 8080), EndpointPort("dns", 17, 5353))


def asked(*zones: str, ready: bool = True, zone: str = "a") -> Asked:
    """A Service with an endpoint in each of these zones, asked for in zone ``zone`` of two."""
    endpoints = tuple(
        SliceEndpoint((ip_address(f"10.0.0.{number}"),), ready=ready, serving=ready, node=f"n{number}", zone=where)
        for number, where in enumerate(zones, 1)
    )
    part = EndpointSlice("shop", "web-x", "web", endpoints, PORTS)
    return Asked(service=WEB, slices=(part,), node="n9", zone=zone, zones=frozenset({"a", "b"}))


@pytest.mark.parametrize(
    ("facts", "codes"),
    [
        (asked("a", "b"), []),
        (asked("b", "b"), ["service-endpoints-elsewhere"]),
        (asked("b", ""), []),
        (asked("b", zone=""), []),
        (asked(), ["service-no-endpoint"]),
        (asked("a", ready=False), ["service-no-endpoint"]),
    ],
)
def test_where_the_endpoints_are(facts: Asked, codes: list[str]) -> None:
    found = list(check(facts))
    assert [one.code for one in found] == codes
    assert all(one.about == "Service shop/web" for one in found)


def test_a_service_without_ports_asks_for_no_endpoint() -> None:
    facts = Asked(service=Service("a", "b", "u"), slices=(), node="n", zone="", zones=frozenset())
    assert list(check(facts)) == []


@pytest.mark.parametrize(
    ("times", "slow"),
    [
        ([[1.0], [1.2], [0.9]], []),
        ([[1.0], [1.2], [900.0, 200.0, 1100.0]], ["10.0.0.3"]),
        ([[1.0], [1.2], [900.0, 1.1]], []),
        ([[1.0], [1.2], []], []),
        ([[1.0], [200.0]], []),
        ([[0.1], [0.1], [15.0]], []),
        ([[10.0], [12.0], [45.0]], []),
        ([[1.0], [300.0], [300.0]], []),
        ([[1.0], [300.0], [1.0], [300.0], [2.0]], ["10.0.0.2", "10.0.0.4"]),
    ],
)
def test_the_odd_one_is_slow_beside_the_others(times: list[list[float]], slow: list[str]) -> None:
    facts = asked(*("a" for _ in times))
    where = targets(facts)
    assert {port for _, port in where} == {8080}, "UDP has no handshake"
    found = list(check_times(facts, dict(zip(where, times, strict=True))))
    assert [one.code for one in found] == ["service-slow-endpoint"] * len(slow)
    for one, address in zip(found, slow, strict=True):
        assert address in one.cause
        assert one.node == f"n{address[-1]}"


def test_every_code_has_a_page() -> None:
    faults = Path(__file__).parents[4] / "docs" / "faults"
    assert [code for code in CODES if not (faults / f"{code}.md").is_file()] == []
