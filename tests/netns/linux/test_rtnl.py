"""Each message of a pod's interface and a node's routes on a real kernel, judged by what ip(8) says of it."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest

from linux import rtnl
from linux.netlink import Message, Netlink, NetlinkRefused
from linux.netns import inside, open_netns
from linux.rtnl import Address
from tests.netns.linux.conftest import Namespace

pytestmark = pytest.mark.privileged
MAC = bytes.fromhex("0242ac1e0002")
BOTH = pytest.mark.parametrize(
    ("address", "via", "network"),
    [("10.9.0.2", "10.9.0.1", "10.8.0.0/24"), ("fd00:9::2", "fd00:9::1", "fd00:8::/64")],
    ids=["IPv4", "IPv6"],
)


class Link:
    """A veth in a namespace: ``pod0`` (up) and its peer, with a netlink socket there."""

    def __init__(self, netns: Namespace, kernel: Netlink) -> None:
        self.netns = netns
        self.kernel = kernel
        self.index = kernel.index_of("pod0")

    def run(self, *messages: Message) -> None:
        self.kernel.run(messages)

    def reported(self, command: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.netns.ip(f"-j -d {command}") or "[]")
        return [one for one in found if one]

    def routes(self, version: int) -> list[dict[str, Any]]:
        return self.reported(f"-{version} route show table main proto 186")


@pytest.fixture
def link(netns: Namespace) -> Iterator[Link]:
    netns.ip("link add pod0 type veth peer name peer0")
    descriptor = open_netns(netns.path)
    try:
        with inside(descriptor):
            kernel = Netlink()
    finally:
        os.close(descriptor)
    with kernel:
        made = Link(netns, kernel)
        made.run(rtnl.set_up(made.index), rtnl.set_up(kernel.index_of("peer0")))
        yield made


@BOTH
def test_an_address_is_there_at_once_with_its_full_length(link: Link, address: str, via: str, network: str) -> None:
    for _ in range(2):  # the same again is no error
        link.run(rtnl.add_address(link.index, ip_address(address)))
    (reported,) = link.reported("addr show dev pod0")
    (found,) = (one for one in reported["addr_info"] if one["local"] == address)
    assert found["prefixlen"] == ip_address(address).max_prefixlen
    assert "tentative" not in found, "duplicate detection would hold it back for a second"
    assert link.reported(f"-{ip_address(address).version} route show table main dev pod0 proto kernel scope link") == []


@BOTH
def test_a_pods_routes_go_over_its_link_and_a_default_by_its_gateway(
    link: Link, address: str, via: str, network: str
) -> None:
    gateway = ip_address(via)
    link.run(
        rtnl.add_address(link.index, ip_address(address)),
        rtnl.add_route(link.index, gateway, version=gateway.version, protocol=186),
        rtnl.add_route(link.index, None, version=gateway.version, via=gateway, protocol=186),
        rtnl.add_route(link.index, None, version=gateway.version, via=gateway, protocol=186),
    )
    found = {one["dst"]: one for one in link.routes(gateway.version)}
    assert found.keys() == {via, "default"}
    assert found["default"]["gateway"] == via
    assert all(one["dev"] == "pod0" for one in found.values())
    link.run(rtnl.delete_route(link.index, gateway, protocol=186))
    assert [one["dst"] for one in link.routes(gateway.version)] == ["default"]


@BOTH
def test_a_route_of_another_protocol_is_left_alone(link: Link, address: str, via: str, network: str) -> None:
    gateway = ip_address(via)
    link.run(rtnl.add_route(link.index, gateway, version=gateway.version, protocol=99))
    with pytest.raises(NetlinkRefused) as refused:
        link.run(rtnl.delete_route(link.index, gateway, protocol=186))
    assert refused.value.errno == errno.ESRCH
    link.run(rtnl.delete_route(link.index, gateway, protocol=186, tolerated=(errno.ESRCH,)))
    assert [one["dst"] for one in link.reported(f"-{gateway.version} route show proto 99")] == [via]


@BOTH
def test_a_neighbour_is_permanent_and_may_change(link: Link, address: str, via: str, network: str) -> None:
    for mac in (MAC, MAC[::-1]):
        link.run(rtnl.add_neighbour(link.index, ip_address(via), mac))
        (found,) = (one for one in link.reported("neigh show dev pod0 nud permanent") if one["dst"] == via)
        assert (found["lladdr"], found["state"]) == (mac.hex(":"), ["PERMANENT"])


@BOTH
def test_a_route_of_a_network_is_replaced_and_never_missing(link: Link, address: str, via: str, network: str) -> None:
    gateway, wanted = ip_address(via), ip_network(network)
    link.run(
        rtnl.add_address(link.index, ip_address(address)),
        rtnl.add_route(link.index, gateway, version=gateway.version, protocol=186),
        rtnl.replace_route(wanted, kind=rtnl.UNREACHABLE, metric=2000, protocol=186),
        rtnl.replace_route(wanted, via=gateway, link=link.index, metric=64, protocol=186),
        rtnl.replace_route(wanted, link=link.index, metric=64, protocol=186),
    )
    found = sorted(
        (one["metric"], one.get("type", "unicast"), one.get("gateway", ""))
        for one in link.routes(wanted.version)
        if one["dst"] == network
    )
    assert found == [(64, "unicast", ""), (2000, "unreachable", "")]
    link.run(rtnl.remove_route(wanted, kind=rtnl.UNREACHABLE, metric=2000, protocol=186))
    assert [one["metric"] for one in link.routes(wanted.version) if one["dst"] == network] == [64]


@BOTH
def test_what_the_kernel_has_is_read_as_it_was_written(link: Link, address: str, via: str, network: str) -> None:
    gateway, wanted = ip_address(via), ip_network(network)
    family = rtnl.family_of(gateway)
    link.run(
        rtnl.add_address(link.index, ip_address(address)),
        rtnl.add_route(link.index, gateway, version=gateway.version, protocol=187),
        rtnl.replace_route(wanted, via=gateway, link=link.index, metric=64, protocol=186),
        rtnl.replace_route(wanted, kind=rtnl.UNREACHABLE, metric=2000, protocol=186),
    )

    def seen(**query: int) -> set[tuple[bytes, int, int, int, bytes, int, int]]:
        bodies = link.kernel.dump(rtnl.GETROUTE, rtnl.routes_query(family, **query), rtnl.NO_TABLE)
        return {
            (one.destination, one.length, one.protocol, one.kind, one.gateway, one.link, one.metric)
            for one in map(rtnl.parse_route, bodies)
        }

    base, length = wanted.network_address.packed, wanted.prefixlen
    by_gateway = (base, length, 186, rtnl.UNICAST, gateway.packed, link.index, 64)
    nowhere = next(one for one in seen(protocol=186, kind=rtnl.UNREACHABLE))
    assert nowhere[:5] == (base, length, 186, rtnl.UNREACHABLE, b"")
    assert nowhere[6] == 2000
    assert seen(protocol=186) == {by_gateway, nowhere}
    ((host, whole, *_),) = seen(protocol=187)
    assert (host, whole) == (gateway.packed, gateway.max_prefixlen)


def test_a_link_is_set_up_down_and_to_a_size_at_both_its_ends(link: Link) -> None:
    peer = link.kernel.index_of("peer0")
    for index, mtu in ((link.index, 1280), (peer, 65535), (link.index, 1500)):
        link.run(rtnl.set_mtu(index, mtu))
    assert {one["ifname"]: one["mtu"] for one in link.reported("link show type veth")} == {"pod0": 1500, "peer0": 65535}
    link.run(rtnl.set_up(peer, up=False))
    assert [one["ifname"] for one in link.reported("link show up type veth")] == ["pod0"]


@pytest.mark.parametrize("mtu", [67, 65536])
def test_a_size_that_a_link_cannot_have_is_refused_with_the_kernels_words(link: Link, mtu: int) -> None:
    with pytest.raises(NetlinkRefused, match=rf"MTU of link {link.index}: Invalid argument \(mtu .* than device m"):
        link.run(rtnl.set_mtu(link.index, mtu))


def test_links_of_a_group_go_at_once_with_their_peers(link: Link) -> None:
    link.netns.ip("link add pod1 type veth peer name peer1")
    link.netns.ip("link add pod2 type veth peer name peer2")
    for name in ("pod0", "pod1"):
        link.run(rtnl.set_group(link.kernel.index_of(name), 0x41))
    link.run(rtnl.delete_group(0x41))
    assert {one["ifname"] for one in link.reported("link show type veth")} == {"pod2", "peer2"}
    with pytest.raises(NetlinkRefused, match="links of group 65: No such device"):
        link.run(rtnl.delete_group(0x41))
    link.run(rtnl.delete_group(0x41, tolerated=(errno.ENODEV,)))


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (rtnl.set_up(999), "link 999 up: No such device"),
        (rtnl.set_up(999, up=False), "link 999 down: No such device"),
        (rtnl.set_mtu(999, 1500), "MTU of link 999: No such device"),
        (rtnl.set_group(999, 1), "group of link 999: No such device"),
        (rtnl.add_address(999, IPv4Address("10.9.0.2")), "address 10.9.0.2: No such device"),
        (rtnl.add_address(999, IPv6Address("fd00::2")), "address fd00::2: No such device"),
        (rtnl.add_neighbour(999, IPv6Address("fd00::2"), MAC), "neighbour fd00::2: No such device"),
        (
            rtnl.add_route(999, IPv6Address("fd00::2"), version=6, protocol=186),
            "route fd00::2 via the link: No such device",
        ),
        (rtnl.add_route(999, None, version=4, protocol=186), "route default via the link: No such device"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_a_link_that_is_gone_is_named(link: Link, message: Message, said: str) -> None:
    with pytest.raises(NetlinkRefused) as refused:
        link.run(message)
    assert refused.value.errno == errno.ENODEV
    assert str(refused.value.strerror).startswith(said)


def test_names_are_read_from_the_kernel_itself(link: Link) -> None:
    for name in ("a", "exactly15chars_"):
        link.netns.ip(f"link add name {name} type veth peer name p{name[:5]}")
        index = link.kernel.index_of(name)
        assert rtnl.link_name(link.kernel.ask(rtnl.GETLINK, rtnl.ifinfo(index))) == name
    with pytest.raises(OSError, match="No such device") as absent:
        link.kernel.index_of("absent")
    assert absent.value.errno == errno.ENODEV


@pytest.mark.parametrize("address", ["10.9.0.2", "fd00:9::2"])
def test_a_large_batch_over_many_reads_is_whole(link: Link, address: str) -> None:
    """More acknowledgements and more of a dump than one read takes."""
    base: Address = ip_address(address)
    many = [ip_network(f"{base + number}/{base.max_prefixlen}") for number in range(1500)]
    with_one_wrong = [rtnl.replace_route(one, link=link.index, metric=64, protocol=186) for one in many]
    with_one_wrong[700] = rtnl.replace_route(many[700], link=999, metric=64, protocol=186)
    ((number, refused),) = link.kernel.attempt(with_one_wrong)
    assert (number, refused.errno) == (700, errno.ENODEV)
    family = socket.AF_INET if base.version == 4 else socket.AF_INET6
    bodies = link.kernel.dump(rtnl.GETROUTE, rtnl.routes_query(family, protocol=186))
    assert {rtnl.parse_route(body).destination for body in bodies} == {
        one.network_address.packed for one in many if one is not many[700]
    }
