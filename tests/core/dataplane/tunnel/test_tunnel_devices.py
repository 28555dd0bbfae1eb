"""Devices and routes as the kernel tells them, and what of them says whether packets must be encrypted."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from kit.tunnels import Tunnel
from services.dataplane.core.datapath.layout import ConfigFlag, LinkKey
from services.dataplane.core.datapath.tunnel_layout import Tunnel as Entry
from services.dataplane.core.datapath.tunnel_layout import TunnelEnd, TunnelEndKey, TunnelKind
from services.dataplane.core.tunnel.devices import Device, ends, tunnels
from services.dataplane.core.tunnel.encryption import (
    PATIENCE,
    Encryption,
    Facts,
    judge,
    of_flags,
    read,
    written,
)
from services.dataplane.core.tunnel.routes import RouteKey, Routes, SeenRoute

LOCAL = ip_address("172.30.0.11")
VXLAN = Device(
    index=7, name="am-vxlan", mac=b"\2a\xac\x1e\0\x0b", tunnel=Tunnel(model="vxlan", local=LOCAL, port=4789, vni=4096)
)
IPIP = Device(index=8, name="am-ipip", mac=b"\2\0\0\0\0\1", tunnel=Tunnel(model="ipip", local=LOCAL))
WIREGUARD = Device(index=9, name="am-wg", mac=b"", tunnel=Tunnel(model="wireguard", local=LOCAL, port=51820))
NEXT = ip_address("172.30.0.12")


def key(cidr: str, metric: int = 64) -> RouteKey:
    return ip_network(cidr), metric


def test_each_device_has_its_entry() -> None:
    found = tunnels([VXLAN, IPIP, WIREGUARD])
    assert found == {
        LinkKey(ifindex=7): Entry(
            kind=int(TunnelKind.VXLAN), family=4, port=4789, vni=4096, local=LOCAL, mac=VXLAN.mac
        ),
        LinkKey(ifindex=8): Entry(kind=int(TunnelKind.IPIP), family=4, local=LOCAL, mac=IPIP.mac),
        LinkKey(ifindex=9): Entry(kind=int(TunnelKind.WIREGUARD), family=4, port=51820, local=LOCAL),
    }


def test_packets_are_taken_at_the_ends_of_what_is_decapsulated_here() -> None:
    assert ends([VXLAN, IPIP, WIREGUARD]) == {
        TunnelEndKey(address=LOCAL, port=4789, protocol=17): TunnelEnd(ifindex=7, vni=4096),
        TunnelEndKey(address=LOCAL, protocol=4): TunnelEnd(ifindex=8),
    }


@pytest.mark.parametrize("order", [1, -1])
def test_the_younger_of_two_devices_has_their_end(order: int) -> None:
    younger = replace(VXLAN, index=17, tunnel=replace(VXLAN.tunnel, vni=1))
    assert list(ends([VXLAN, younger][::order]).values()) == [TunnelEnd(ifindex=17, vni=1)]


class TestRoutes:
    def test_what_takes_a_routes_place_stays_when_the_former_is_reported_gone(self) -> None:
        routes, before, now = Routes(), SeenRoute(7, NEXT), SeenRoute(8, NEXT)
        routes.put(key("10.244.0.0/26"), before)
        routes.put(key("10.244.0.0/26"), now)
        routes.remove(key("10.244.0.0/26"), before)
        assert routes.get(key("10.244.0.0/26")) == now
        assert routes.take_changed() == {key("10.244.0.0/26")}
        assert routes.take_changed() == set()

    def test_those_of_a_device_that_is_gone_are_gone_and_no_others(self) -> None:
        """The kernel does not say so (IPv4)."""
        routes = Routes()
        for number, link in enumerate((7, 7, 8, 0)):
            routes.put(key(f"10.244.{number}.0/26"), SeenRoute(link, NEXT if link else None, prohibits=not link))
        routes.take_changed()
        routes.keep_links({8})
        assert routes.take_changed() == {key("10.244.0.0/26"), key("10.244.1.0/26")}
        assert {route.link for _, route in routes} == {8, 0}

    def test_a_look_at_all_marks_what_differs(self) -> None:
        routes = Routes()
        same, gone, other = (key(f"10.244.{number}.0/26") for number in range(3))
        for each in (same, gone, other):
            routes.put(each, SeenRoute(7, NEXT))
        routes.take_changed()
        routes.replace({same: SeenRoute(7, NEXT), other: SeenRoute(8, NEXT)})
        assert routes.take_changed() == {gone, other}
        assert dict(routes) == {same: SeenRoute(7, NEXT), other: SeenRoute(8, NEXT)}

    def test_what_goes_in_the_clear_and_what_is_refused(self) -> None:
        routes = Routes()
        routes.put(key("10.244.0.0/26"), SeenRoute(9, NEXT))
        routes.put(key("fd00::/122"), SeenRoute(7, NEXT))
        routes.put(key("10.244.0.0/16", 4096), SeenRoute(0, None, prohibits=True))
        assert [family for family in (4, 6) if routes.has_plain(family, {9})] == [6]
        assert routes.prohibited() == {4}


ASKED = Facts(asked={4, 6}, is_known=True)


class TestEncryption:
    def test_the_way_out_closes_when_nothing_goes_in_the_clear_and_the_way_in_later(self) -> None:
        now = judge(Encryption(), replace(ASKED, plain={4, 6}), 0.0)
        assert now.flags == ConfigFlag(0), "what lives goes on"
        now = judge(now, replace(ASKED, plain={6}), 100.0)
        assert now.flags == ConfigFlag.ENCRYPT4
        assert now.remaining
        now = judge(now, ASKED, 100.0 + PATIENCE - 1)
        assert now.flags == ConfigFlag.ENCRYPT4 | ConfigFlag.ENCRYPT6
        now = judge(now, ASKED, 100.0 + PATIENCE)
        assert now.both == {4}
        now = judge(now, ASKED, 200.0)
        assert now.both == {4, 6}
        assert not now.remaining

    @pytest.mark.parametrize(
        "facts",
        [Facts(), Facts(plain={4, 6}), Facts(prohibited={4}), Facts(asked={4})],
        ids=["nothing-known", "a-plain-route", "the-kernel-asks", "one-family-known"],
    )
    def test_what_is_in_force_stays_until_it_is_known_that_nobody_asks(self, facts: Facts) -> None:
        before = Encryption(frozenset((4, 6)), frozenset((4, 6)))
        assert judge(before, facts, 5.0) == before
        assert judge(before, Facts(is_known=True, prohibited={4, 6}), 5.0) == Encryption()
        assert judge(before, Facts(asked={6}, is_known=True), 5.0) == Encryption(frozenset((6,)), frozenset((6,)))

    def test_the_kernels_word_closes_the_way_out_while_the_bus_is_away(self) -> None:
        assert judge(Encryption(), Facts(prohibited={4}), 0.0).out == {4}
        assert judge(Encryption(), Facts(prohibited={4}, plain={4}), 0.0).out == set()

    def test_the_way_in_waits_again_when_something_goes_in_the_clear_again(self) -> None:
        now = judge(Encryption(), ASKED, 0.0)
        now = judge(now, replace(ASKED, plain={4}), PATIENCE / 2)
        assert now.out == {4, 6}, "and the way out stays closed"
        now = judge(now, ASKED, PATIENCE)
        assert now.both == {6}
        assert judge(now, ASKED, 2 * PATIENCE).both == {4, 6}

    @pytest.mark.parametrize("families", [(), (4,), (6,), (4, 6)], ids=["none", "4", "6", "both"])
    def test_a_restart_and_a_boot_find_it_as_it_was(self, families: tuple[int, ...]) -> None:
        closed = Encryption(frozenset(families), frozenset(families))
        assert of_flags(closed.flags | ConfigFlag.EMIT_FORWARDED) == closed
        assert of_flags(closed.flags_of_gateway) == Encryption(closed.out), "what pods send in the clear is taken in"
        assert read(written(closed)) == closed
        half = Encryption(frozenset(families), frozenset())
        assert of_flags(half.flags) == half
        assert read(written(half)) == closed, "nothing lives after a boot"

    @pytest.mark.parametrize("text", [b"?", b"4 5", b"\xff"])
    def test_a_file_that_cannot_be_read_asks_for_all(self, text: bytes) -> None:
        assert read(text).both == {4, 6}
