"""By which router and link a next hop is reached, over a kernel in the notation of ``ip address`` and ``ip route``."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_interface, ip_network

import pytest

from services.routing.core.bgp.next_hops import BY_ROUTER, Ways, links_of, static_routes, ways_of
from services.routing.core.bgp.peers import Peer, SessionSettings
from services.routing.core.bgp.rib.paths import Reach
from services.routing.core.bgp.values import network_of
from services.routing.core.fib import Kind, Route, Snapshot, Uplink

LINKS = {"up0": 3, "up1": 4, "down0": 5, "pod0": 9, "lo": 1}
PROTOCOLS = {"kernel": 2, "static": 4, "dhcp": 16, "learnt": 185, "airmesh": 186, "pod": 187}

ADDRESSES = {
    "up0": "10.0.0.11/24 10.9.0.2/31 fd00::11/64 fe80::11/64",
    "up1": "10.1.0.11/32 fd01::11/128",
    "down0": "10.2.0.11/24",
    "lo": "10.255.0.11/32 fd00:ff::11/128",
}
ROUTES = """
    default via 10.0.0.1 dev up0 proto dhcp
    ::/0 via fe80::1 dev up0 proto kernel
    10.0.0.0/24 dev up0 proto kernel
    10.1.0.1/32 dev up1 proto static
    fd01::1/128 dev up1 proto kernel
    10.255.0.0/24 via 10.0.0.1 dev up0 proto static
    10.255.0.9/32 via 10.1.0.1 dev up1 proto static
    10.244.1.0/26 via 10.0.0.12 dev up0 proto airmesh
    10.244.0.5/32 dev pod0 proto pod
    10.66.0.0/16 via 10.0.0.1 dev up0 proto learnt
    10.77.0.0/16 dev pod0 proto static
    10.78.0.0/16 via 10.2.0.1 dev down0 proto static
    192.0.2.0/24 via 10.0.0.2 dev up0 proto static metric 200
    192.0.2.0/24 via 10.1.0.1 dev up1 proto static metric 100
    blackhole 198.51.100.0/24 proto static
"""


def route(line: str) -> Route:
    words = line.split()
    kind = Kind.UNREACHABLE if words[0] == "blackhole" else Kind.UNICAST
    words = words[1:] if kind is Kind.UNREACHABLE else words
    said = dict(zip(words[1::2], words[2::2], strict=True))
    return Route(
        destination=ip_network("0.0.0.0/0" if words[0] == "default" else words[0]),
        via=ip_address(said["via"]) if "via" in said else None,
        link=LINKS[said["dev"]] if "dev" in said else 0,
        protocol=PROTOCOLS[said["proto"]],
        metric=int(said.get("metric", "0")),
        kind=kind,
    )


def link(name: str, addresses: str, *, up: bool = True) -> Uplink:
    return Uplink(name=name, index=LINKS[name], up=up, addresses=tuple(map(ip_interface, addresses.split())))


def kernel(routes: str = ROUTES, **links: str) -> Snapshot:
    links = {**ADDRESSES, **links}
    return Snapshot(
        routes=tuple(route(line) for line in routes.splitlines() if line.strip()),
        uplinks=tuple(link(name, links[name], up=name != "down0") for name in ("up0", "up1", "down0")),
        loopback=link("lo", links["lo"]),
    )


WAYS = ways_of(
    kernel(), [(ip_address("10.50.0.1"), ip_address("10.0.0.7")), (ip_address("fd50::1"), ip_address("fd00::7"))]
)


@pytest.mark.parametrize(
    ("what", "address", "expected"),
    [
        ("on an uplink's network", "10.0.0.1", "10.0.0.1 up0"),
        ("on an uplink's network", "fd00::1", "fd00::1 up0"),
        ("the other end of a /31", "10.9.0.3", "10.9.0.3 up0"),
        ("a /32 that is on a link by a route", "10.1.0.1", "10.1.0.1 up1"),
        ("a /128 that is on a link by a route", "fd01::1", "fd01::1 up1"),
        ("by a static route", "10.255.0.8", "10.0.0.1 up0 routed"),
        ("by the longer of two", "10.255.0.9", "10.1.0.1 up1 routed"),
        ("by the one with the lesser metric", "192.0.2.1", "10.1.0.1 up1 routed"),
        ("by the gateway that is named for it", "10.50.0.1", "10.0.0.7 up0 routed"),
        ("by the gateway that is named for it", "fd50::1", "fd00::7 up0 routed"),
        ("only the default route leads there", "203.0.113.1", None),
        ("only the default route leads there", "2001:db8::1", None),
        ("a pod of another node", "10.244.1.3", None),
        ("a pod of this node", "10.244.0.5", None),
        ("only a learnt route leads there", "10.66.0.1", None),
        ("by a link that is no uplink", "10.77.0.1", None),
        ("by a link that is down", "10.78.0.1", None),
        ("on the network of a link that is down", "10.2.0.1", None),
        ("by a route that leads nowhere", "198.51.100.1", None),
        ("this node itself", "10.0.0.11", None),
        ("this node itself", "fd00::11", None),
        ("this node's loopback address", "10.255.0.11", None),
        ("this node's address on a link that is down", "10.2.0.11", None),
        ("this node's own link-local address", "fe80::11 up0", None),
        ("link-local, with the session's interface", "fe80::9 up0", "fe80::9 up0"),
        ("link-local, with another interface", "fe80::9 up1", "fe80::9 up1"),
        ("link-local, with an interface that is down", "fe80::9 down0", None),
        ("link-local, with none", "fe80::9", None),
    ],
)
def test_a_next_hop(what: str, address: str, expected: str | None) -> None:
    text, _, interface = address.partition(" ")
    hop, reach = WAYS.hop(ip_address(text), interface), WAYS.reach(ip_address(text), interface)
    if expected is None:
        assert hop is None, what
        assert reach is None, what
        return
    via, name, *routed = expected.split()
    assert hop is not None, what
    assert (str(hop.via), hop.link) == (via, LINKS[name]), what
    assert reach == Reach(cost=BY_ROUTER if routed else 0, interface=name), what


def test_a_gateway_that_is_not_reached_leads_nowhere() -> None:
    ways = ways_of(kernel(), [(ip_address("10.0.0.9"), ip_address("203.0.113.1"))])
    assert ways.hop(ip_address("10.0.0.9")) is None


def test_the_order_of_the_kernels_listing_decides_nothing() -> None:
    whole = kernel()
    other = Snapshot(routes=whole.routes[::-1], uplinks=whole.uplinks[::-1], loopback=whole.loopback)
    assert ways_of(other) == ways_of(whole)


def test_without_addresses_there_is_no_way() -> None:
    assert ways_of(Snapshot()) == Ways()


def session(address: str, local: str | None, *, external: bool = True, interface: str = "") -> SessionSettings:
    return SessionSettings(
        address=ip_address(address),
        local=ip_address(local) if local else None,
        interface=interface,
        local_asn=64512,
        peer_asn=65001 if external else 64512,
        router_id=ip_address("10.255.0.11"),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("what", "held", "expected"),
    [
        ("a switch on the link", session("10.0.0.1", "10.255.0.11"), "10.0.0.11"),
        ("a switch on the link", session("fd00::1", "fd00:ff::11"), "fd00::11"),
        ("of two addresses of the link the one on the peer's network", session("10.9.0.3", "10.255.0.11"), "10.9.0.2"),
        ("a /32 on a link", session("10.1.0.1", "10.255.0.11"), "10.1.0.11"),
        ("the node's address is that of another link", session("10.0.0.1", "10.1.0.11"), "10.0.0.11"),
        ("a link that is down for a while", session("10.2.0.1", "10.255.0.11"), "10.2.0.11"),
        ("held from the link's address already", session("10.0.0.1", "10.0.0.11"), "10.0.0.11"),
        ("held from another address of the link", session("10.0.0.1", "10.9.0.2"), "10.9.0.2"),
        ("what the kernel takes", session("10.0.0.1", None), None),
        ("beyond a router", session("10.255.0.9", "10.255.0.11"), "10.255.0.11"),
        ("nothing leads there", session("203.0.113.1", "10.255.0.11"), "10.255.0.11"),
        ("within the system", session("10.0.0.1", "10.255.0.11", external=False), "10.255.0.11"),
    ],
)
def test_the_address_that_a_session_is_held_from(what: str, held: SessionSettings, expected: str | None) -> None:
    found = links_of(kernel()).bound(held)
    assert str(found.local) == str(expected), what


def test_a_link_without_an_address_of_the_family_changes_nothing() -> None:
    seen = kernel("fd02::1/128 dev up1 proto static", up1="10.1.0.11/32")
    held = session("fd02::1", "fd00:ff::11")
    assert links_of(seen).bound(held) == held


@pytest.mark.parametrize(
    ("peer", "gateway", "expected"),
    [
        ("10.66.0.1", "10.0.0.7", "10.66.0.1/32 via 10.0.0.7 dev up0"),
        ("10.0.0.9", "10.0.0.7", "10.0.0.9/32 via 10.0.0.7 dev up0"),
        ("10.66.0.1", "10.1.0.1", "10.66.0.1/32 via 10.1.0.1 dev up1"),
        ("10.66.0.1", "10.255.0.9", "10.66.0.1/32 via 10.1.0.1 dev up1"),
        ("fd66::1", "fd00::7", "fd66::1/128 via fd00::7 dev up0"),
        ("10.66.0.1", "10.2.0.1", "is on no network"),
        ("10.66.0.1", "203.0.113.1", "is on no network"),
    ],
)
def test_a_host_route_to_a_peer_by_its_gateway(peer: str, gateway: str, expected: str) -> None:
    session = SessionSettings(
        address=ip_address(peer), local_asn=64512, peer_asn=65001, router_id=IPv4Address("10.0.0.11")
    )
    named = ((ip_address(peer), ip_address(gateway)),)
    found, faults = static_routes([Peer(name=f"tor/{peer}", session=session)], named, ways_of(kernel(), named))
    by_index = {index: name for name, index in LINKS.items()}
    said = [
        f"{network_of(family, prefix)} via {hop.via} dev {by_index[hop.link]}"
        for (family, prefix), hop in found.items()
    ]
    if "via" in expected:
        assert (said, faults) == ([expected], ())
    else:
        (fault,) = faults
        assert expected in fault.fault
        assert gateway in fault.fault
        assert "spec.reachableBy" in fault.remedy
        assert fault.about == ("BGPPeer", "tor")
        assert not said
