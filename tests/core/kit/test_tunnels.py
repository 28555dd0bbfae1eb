"""Names and marks of tunnel devices, and what next hops stand for: what one service writes, the other reads."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.models import SERVED
from kit.tunnels import (
    DEVICES,
    MODELS,
    Tunnel,
    is_tunnel_name,
    next_hop,
    parse_alias,
    tunnel_alias,
    vtep_mac,
)
from services.dataplane.core.endpoint import links
from tests.hops import outer_address, outer_addresses

addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))
tunnels = st.builds(
    Tunnel, model=st.sampled_from(MODELS), local=addresses, port=st.integers(0, 65535), vni=st.integers(0, 0xFFFFFF)
)


@given(tunnel=tunnels)
def test_an_alias_says_what_went_in(tunnel: Tunnel) -> None:
    assert parse_alias(tunnel_alias(tunnel)) == tunnel
    assert len(tunnel_alias(tunnel)) <= links.MAX_ALIAS
    assert links.parse_alias(tunnel_alias(tunnel)) is None, "a pod's link"


@pytest.mark.parametrize(
    "words",
    [
        "",
        "airmesh/1 c eth0 u 7",
        "airmesh-tunnel/2 vxlan 172.30.0.11 4789 4096",
        "airmesh-tunnel/1 gre 172.30.0.11 0 0",
        "airmesh-tunnel/1 vxlan fab0 4789 4096",
        "airmesh-tunnel/1 vxlan 172.30.0.11 65536 4096",
        "airmesh-tunnel/1 vxlan 172.30.0.11 4789 16777216",
        "airmesh-tunnel/1 vxlan 172.30.0.11 -1 1",
        "airmesh-tunnel/1 vxlan 172.30.0.11 4789",
    ],
)
def test_what_is_not_ours_is_no_tunnel(words: str) -> None:
    assert parse_alias(words) is None


def test_devices_are_known_by_their_names() -> None:
    assert set(DEVICES) == set(MODELS)
    names = {name for by_family in DEVICES.values() for name in by_family.values()}
    assert all(is_tunnel_name(name) and len(name) <= 15 for name in names)
    assert is_tunnel_name("am-ipip-p")
    assert not any(is_tunnel_name(name) for name in ("eth0", "fab0", "amazon0", "am0123456789"))
    assert "host-gw" in SERVED
    assert "host-gw" not in DEVICES


@given(outer=st.ip_addresses(v=4).filter(lambda one: not one.is_link_local))
def test_a_next_hop_stands_for_an_ipv4_address_in_both_families(outer: IPv4Address) -> None:
    assert next_hop(outer, 4) == outer
    assert next_hop(outer, 6).version == 6
    assert {outer_address(next_hop(outer, family)) for family in (4, 6)} == {outer}


@given(outer=st.ip_addresses(v=6))
def test_a_next_hop_for_an_ipv6_address_is_link_local_in_both_families(outer: IPv6Address) -> None:
    """The kernel refuses any other that the uplink's own route leads to."""
    hops = {next_hop(outer, family) for family in (4, 6)}
    assert len(hops) == 1
    hop = hops.pop()
    assert hop.is_link_local
    assert outer_address(hop) is None
    assert outer_addresses([outer]) == {hop: outer}


def test_the_next_hop_of_an_ipv6_address_is_what_the_device_has_by_its_mac() -> None:
    assert next_hop(ip_address("fd00:172:30::11"), 4) == ip_address("fe80::a9:96ff:fe29:b4a8")


@given(outers=st.lists(addresses, unique=True))
def test_next_hops_lead_back_to_their_addresses(outers: list[IPv4Address | IPv6Address]) -> None:
    found = outer_addresses(outers)
    assert all(found[next_hop(outer, family)] == outer for outer in outers for family in (4, 6))


def test_the_isatap_form() -> None:
    assert next_hop(ip_address("172.30.0.12"), 6) == ip_address("fe80::5efe:ac1e:c")
    assert outer_address(ip_address("fe80::5efe:172.30.0.12")) == ip_address("172.30.0.12")
    for other in ("fe80::1", "fe80::200:5efe:ac1e:c", "fe80::1:0:5efe:ac1e:c", "fd00::5efe:ac1e:c"):
        assert outer_address(ip_address(other)) is None


@given(one=addresses, other=addresses)
def test_macs_are_local_and_distinct(one: IPv4Address | IPv6Address, other: IPv4Address | IPv6Address) -> None:
    mac = vtep_mac(one)
    assert len(mac) == 6
    assert mac[0] & 0b11 == 0b10
    assert (mac == vtep_mac(other)) == (one == other)


def test_the_mac_of_an_address_never_changes() -> None:
    """Nodes of two releases reckon it alike."""
    assert vtep_mac(ip_address("172.30.0.11")).hex(":") == "02:61:ac:1e:00:0b"
    assert vtep_mac(ip_address("fd00:172:30::11")).hex(":") == "02:a9:96:29:b4:a8"
