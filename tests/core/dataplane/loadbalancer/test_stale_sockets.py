"""Whose sockets stay when backends come and go."""

from __future__ import annotations

from ipaddress import ip_address
from random import Random

import pytest

from proto.objects import EndpointPort, EndpointSlice, SliceEndpoint
from services.dataplane.core.loadbalancer.stale_sockets import UdpBackends, serving
from tests.core.states import Driver, every_order, follow


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
    backends = UdpBackends()
    for number, one in enumerate(slices):
        assert not backends.put(str(number), one)
    assert backends.addresses == addresses("10.0.0.1")
    assert serving(slices) == addresses("10.0.0.1", "10.0.0.2", "10.0.0.3")
    assert not backends.put("1", None)
    assert backends.put("0", part("10.0.0.1"))


class Followed(Driver[str, EndpointSlice]):
    """Backends as they are kept; each change says whether an address has gone."""

    def __init__(self) -> None:
        self.backends = UdpBackends()

    def put(self, key: str, value: EndpointSlice | None) -> None:
        before = self.backends.addresses
        assert self.backends.put(key, value) is bool(before - self.backends.addresses)

    def settle(self) -> object:
        return self.backends.addresses, self.backends.keys()


def all_looked_at(slices: dict[str, EndpointSlice]) -> object:
    udp = {key: one for key, one in slices.items() if one.service and any(port.protocol == 17 for port in one.ports)}
    return serving(udp.values()), frozenset(key for key, one in udp.items() if serving([one]))


@every_order(seeds=4)
def test_kept_by_what_changes_they_are_as_if_all_slices_were_looked_at(expander: str, seed: int) -> None:
    rng = Random(seed)
    kinds = [("dns", 17), ("web", 6), ("", 17), ("other", 17)]
    states = []
    for _ in range(6):
        state = {}
        for number in range(rng.randint(0, 5)):
            name, protocol = rng.choice(kinds)
            hosts = [f"10.0.0.{rng.randint(1, 4)} {rng.choice(['ready', 'serving', ''])}" for _ in range(3)]
            state[f"slice.{number}"] = part(*hosts, protocol=protocol, service=name)
        states.append(state)
    follow(Followed, all_looked_at, states, expander, seed)
