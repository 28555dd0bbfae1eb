"""Whose sockets stay when backends come and go."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from proto.objects import EndpointPort, EndpointSlice, SliceEndpoint
from services.dataplane.core.loadbalancer.stale_sockets import serving, serving_udp


def part(*endpoints: str, protocol: int = 17, service: str = "dns") -> EndpointSlice:
    """``10.0.0.1 ready serving terminating``: an address and its conditions."""
    return EndpointSlice(
        namespace="shop",
        name="x",
        service=service,
        endpoints=tuple(
            SliceEndpoint(
                addresses=(ip_address(address),),
                ready="ready" in conditions,
                serving="serving" in conditions,
                terminating="terminating" in conditions,
                node="n1",
            )
            for address, *conditions in (words.split() for words in endpoints)
        ),
        ports=(EndpointPort(name="x", protocol=protocol, port=53),),
    )


def addresses(*words: str) -> frozenset[object]:
    return frozenset(ip_address(word) for word in words)


@pytest.mark.parametrize(
    ("conditions", "stays"),
    [
        ("ready serving", True),
        ("serving", True),
        ("serving terminating", True),
        ("ready", True),  # publishNotReadyAddresses
        ("", False),
        ("terminating", False),
    ],
)
def test_who_serves_keeps_its_sockets(conditions: str, stays: bool) -> None:
    assert (ip_address("10.0.0.1") in serving([part(f"10.0.0.1 {conditions}")])) is stays


def test_one_service_is_enough() -> None:
    assert serving([part("10.0.0.1"), part("10.0.0.1 serving", protocol=6)]) == addresses("10.0.0.1")


def test_only_udp_ports_of_services_are_a_reason_to_look() -> None:
    slices = [part("10.0.0.1 ready"), part("10.0.0.2 ready", protocol=6), part("10.0.0.3 ready", service="")]
    assert serving_udp(slices) == addresses("10.0.0.1")
    assert serving(slices) == addresses("10.0.0.1", "10.0.0.2", "10.0.0.3")
