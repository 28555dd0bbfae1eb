"""Which peers are on a link of this node, what their sessions are held from, and the BFD session of each."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from proto.net import Address
from services.routing.core.bfd.bgp import key_of
from services.routing.core.bfd.sessions import Key
from services.routing.core.bgp.next_hops import links_of
from services.routing.core.bgp.peers import SessionSettings
from services.routing.core.fib import Route, Snapshot, Uplink

OWN = {4: ip_address("10.9.9.9"), 6: ip_address("fd00:9::9")}
NEAR, NEAR6 = ip_address("172.31.0.1"), ip_address("fd00:31:0::1")
FAR, LOCAL = ip_address("198.51.100.1"), ip_address("fe80::1")
ON_LINK, ON_LINK6, OWN_LOCAL = ip_address("172.31.0.2"), ip_address("fd00:31:0::2"), ip_address("fe80::2")


def uplink(number: int, *, up: bool = True, addresses: tuple[str, ...] | None = None) -> Uplink:
    usual = (f"172.31.{number}.2/24", f"fd00:31:{number}::2/64", "fe80::2/64")
    written = usual if addresses is None else addresses
    found = tuple(ip_interface(one) for one in written)
    return Uplink(name=f"tor{number}", index=number + 2, up=up, addresses=found)


def kernel(*uplinks: Uplink, routes: tuple[Route, ...] = ()) -> Snapshot:
    return Snapshot(uplinks=uplinks, routes=routes)


def session(address: Address, **more: object) -> SessionSettings:
    usual: dict[str, object] = {
        "address": address,
        "local": OWN[address.version],
        "local_asn": 64512,
        "peer_asn": 65001,
        "router_id": OWN[4],
    }
    return SessionSettings(**(usual | more))  # type: ignore[arg-type]


ROUTE = Route(destination=ip_network("172.31.0.1/32"), link=3, via=ip_address("172.31.1.1"), protocol=4)
BOTH = (uplink(0), uplink(1))
DOWN = (uplink(0, up=False), uplink(1))


@pytest.mark.parametrize(
    ("seen", "peer", "on"),
    [
        (kernel(*BOTH), session(NEAR), "tor0"),
        (kernel(*BOTH), session(NEAR6), "tor0"),
        (kernel(*BOTH), session(FAR), None),
        (kernel(*BOTH), session(LOCAL, interface="tor1"), "tor1"),
        (kernel(*BOTH), session(LOCAL), None),
        (kernel(*BOTH), session(ON_LINK), None),
        (kernel(*BOTH, routes=(ROUTE,)), session(NEAR), None),
        (kernel(*DOWN), session(NEAR), "tor0"),
        (kernel(*DOWN), session(LOCAL, interface="tor0"), "tor0"),
        (kernel(*DOWN, routes=(ROUTE,)), session(NEAR), "tor0"),
        (kernel(uplink(0, up=False, addresses=()), uplink(1)), session(NEAR), None),
        (kernel(uplink(0, up=False), uplink(1, addresses=("172.31.0.3/24",))), session(NEAR), "tor1"),
    ],
    ids=[
        "on a link",
        "on a link, by IPv6",
        "on none",
        "link-local",
        "link-local without its link",
        "this node itself",
        "behind a router, by a longer prefix",
        "its link is down",
        "its link is down, link-local",
        "its link is down, and another router leads there",
        "its link has no address any more",
        "its link is down, and another one has its network",
    ],
)
def test_the_link_of_a_peer(seen: Snapshot, peer: SessionSettings, on: str | None) -> None:
    found = links_of(seen).link_of(peer)
    assert (found.name if found is not None else None) == on


def test_a_peer_with_a_gateway_is_on_no_link() -> None:
    seen = kernel(*BOTH)
    assert links_of(seen, [(NEAR, ip_address("172.31.1.1"))]).link_of(session(NEAR)) is None


@pytest.mark.parametrize("up", [True, False])
def test_a_session_is_held_from_the_link_whether_it_is_up_or_not(up: bool) -> None:
    """Else a link that goes down and comes back would end the session twice, for another address each time."""
    seen = kernel(uplink(0, up=up), uplink(1))
    assert links_of(seen).bound(session(NEAR)).local == ON_LINK
    assert links_of(seen).bound(session(NEAR6)).local == ON_LINK6


@pytest.mark.parametrize(
    ("peer", "local", "key"),
    [
        (NEAR, ON_LINK, Key(ON_LINK, NEAR, "tor0")),
        (NEAR6, ON_LINK6, Key(ON_LINK6, NEAR6, "tor0")),
        (NEAR, OWN[4], None),
        (NEAR, None, Key(ON_LINK, NEAR, "tor0")),
        (NEAR6, None, Key(ON_LINK6, NEAR6, "tor0")),
        (LOCAL, None, Key(OWN_LOCAL, LOCAL, "tor0")),
        (FAR, None, None),
    ],
)
def test_bfd_goes_between_the_two_addresses_of_bgp(peer: Address, local: Address | None, key: Key | None) -> None:
    assert key_of(replace(session(peer), local=local), uplink(0)) == key
