"""Tunnel devices and routes as the kernel has them and tells of them, and maps that follow; in a namespace."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from ipaddress import ip_address, ip_network

import pytest

from kit.tunnels import Tunnel, next_hop, tunnel_alias, vtep_mac
from linux import bpf, netlink
from services.dataplane.core.datapath.layout import AddressKey
from services.dataplane.core.datapath.maps import TUNNEL_PEERS
from services.dataplane.core.datapath.tunnel_layout import TunnelPeer
from services.dataplane.core.tunnel.routes import Routes, SeenRoute
from services.dataplane.datapath.maps import Table
from services.dataplane.tunnel.kernel import MOST_NOTICES, KernelWatch, TunnelKernel
from services.dataplane.tunnel.maps import FollowedMap
from tests.bpf.world import inside, namespace, run

pytestmark = pytest.mark.privileged
LOCAL, SIX = ip_address("172.30.0.11"), ip_address("fd00:172:30::11")
VXLAN = Tunnel(model="vxlan", local=LOCAL, port=4789, vni=4096)
IPIP = Tunnel(model="ipip", local=LOCAL)
HOP = next_hop(ip_address("fd00:172:30::13"), 6)


@pytest.fixture
def node() -> Iterator[str]:
    name = f"am-tk{os.getpid() % 10_000}"
    with ExitStack() as stack:
        stack.enter_context(namespace(name))
        stack.enter_context(inside(name))
        ip("link add fab0 type veth peer name fab1")
        ip("link set fab0 up")
        ip("link set fab1 up")
        ip("addr add 172.30.0.11/24 dev fab0")
        ip("addr add fd00:172:30::11/64 dev fab0 nodad")
        yield name


def ip(command: str) -> str:
    return run("ip", *command.split())


def make_vxlan(mark: Tunnel = VXLAN) -> int:
    """As ``routing`` does; its index."""
    mac = vtep_mac(mark.local).hex(":")
    ip(f"link add am-vxlan address {mac} type vxlan id {mark.vni} dstport {mark.port} local {mark.local} nolearning")
    ip("link set am-vxlan up")
    run("ip", "link", "set", "am-vxlan", "alias", tunnel_alias(mark))
    return socket.if_nametoindex("am-vxlan")


def make_ipip() -> int:
    ip("link add am-ipip type veth peer name am-ipip-p")
    ip("link set am-ipip-p up")
    ip("link set am-ipip up")
    run("ip", "link", "set", "am-ipip", "alias", tunnel_alias(IPIP))
    return socket.if_nametoindex("am-ipip")


def add_routes(vxlan: int, ipip: int) -> dict[tuple[object, int], SeenRoute]:
    """Of each form; as they are to be read."""
    own = "proto 186 metric 64"
    ip(f"route add 10.244.1.0/26 via 172.30.0.12 dev am-vxlan onlink {own}")
    ip(f"route add 10.244.2.0/26 via 172.30.0.13 dev am-ipip onlink {own}")
    ip(f"route add 10.244.3.0/26 via inet6 {HOP} dev am-vxlan onlink {own}")
    ip(f"-6 route add fd00:10:244:1::/122 via fe80::5efe:ac1e:c dev am-vxlan onlink {own}")
    ip(f"-6 route add fd00:10:244:2::/122 via {HOP} dev am-vxlan onlink {own}")
    ip("route add prohibit 10.244.0.0/16 proto 186 metric 4096")
    ip("-6 route add prohibit fd00:10:244::/56 proto 186 metric 4096")
    # And what is not ours, or says nothing here.
    ip("route add 10.9.0.0/24 via 172.30.0.12 dev am-vxlan onlink proto 186 metric 20")
    ip("route add 10.8.0.0/24 via 172.30.0.12 dev am-vxlan onlink proto 99 metric 64")
    ip("route add 10.7.0.0/24 via 172.30.0.12 dev am-vxlan onlink proto 186 metric 64 table 100")
    ip("route add unreachable 10.244.9.0/26 proto 186 metric 4096")

    def at(cidr: str, metric: int = 64) -> tuple[object, int]:
        return ip_network(cidr), metric

    return {
        at("10.244.1.0/26"): SeenRoute(vxlan, ip_address("172.30.0.12")),
        at("10.244.2.0/26"): SeenRoute(ipip, ip_address("172.30.0.13")),
        at("10.244.3.0/26"): SeenRoute(vxlan, HOP),
        at("fd00:10:244:1::/122"): SeenRoute(vxlan, ip_address("fe80::5efe:ac1e:c")),
        at("fd00:10:244:2::/122"): SeenRoute(vxlan, HOP),
        at("10.244.0.0/16", 4096): SeenRoute(0, None, prohibits=True),
        at("fd00:10:244::/56", 4096): SeenRoute(0, None, prohibits=True),
    }


def test_a_look_shows_marked_devices_and_the_routes_of_routing(node: str) -> None:
    with closing(TunnelKernel()) as kernel:
        assert kernel.links().devices == ()
        vxlan, ipip = make_vxlan(), make_ipip()
        seen = {device.name: device for device in kernel.links().devices}
        assert {name: (one.index, one.tunnel, one.up) for name, one in seen.items()} == {
            "am-vxlan": (vxlan, VXLAN, True),
            "am-ipip": (ipip, IPIP, True),
        }
        assert seen["am-vxlan"].mac == vtep_mac(LOCAL)
        expected = add_routes(vxlan, ipip)
        assert kernel.routes() == expected
        assert kernel.own_addresses() == {LOCAL, SIX}


class Followed:
    """What notices make of it, without another look at the routes."""

    def __init__(self) -> None:
        self.heard: list[None] = []
        self.watch = KernelWatch(lambda: self.heard.append(None))
        self.listener = netlink.listen(0x1 | 0x40 | 0x400)
        self.routes = Routes()

    def close(self) -> None:
        self.listener.close()

    def follow(self, kernel: TunnelKernel) -> dict[tuple[object, int], SeenRoute]:
        try:
            while received := self.listener.recv(1 << 16):
                self.watch.hear(received)
        except BlockingIOError:
            pass
        notices = self.watch.take()
        assert not notices.lost
        for key, route, is_there in notices.routes:
            if is_there:
                self.routes.put(key, route)
            else:
                self.routes.remove(key, route)
        if notices.links:
            links = kernel.links()
            self.watch.known = [device.index for device in links.devices]
            self.routes.keep_links(links.up)
        return dict(self.routes)

    def until(self, kernel: TunnelKernel, wanted: Callable[[], object]) -> None:
        deadline = time.monotonic() + 30
        while (found := self.follow(kernel)) != (expected := wanted()):
            assert time.monotonic() < deadline, (found, expected)
            time.sleep(0.01)


def test_what_the_kernel_reports_leads_to_what_a_look_shows(node: str) -> None:
    with closing(TunnelKernel()) as kernel, closing(Followed()) as followed:
        add_routes(make_vxlan(), make_ipip())
        assert len(kernel.routes()) == 7
        followed.until(kernel, kernel.routes)
        ip("route replace 10.244.1.0/26 via 172.30.0.12 dev am-ipip onlink proto 186 metric 64")
        ip("-6 route replace fd00:10:244:2::/122 via fe80::5efe:ac1e:d dev am-vxlan onlink proto 186 metric 64")
        ip("route del 10.244.2.0/26")
        followed.until(kernel, kernel.routes)
        ip("link set am-vxlan down")  # IPv4 routes go with it, and nobody says so
        assert not any(route.via and route.via.version == 4 for _, route in kernel.routes().items() if route.link == 1)
        followed.until(kernel, kernel.routes)
        ip("link del am-ipip")
        followed.until(kernel, kernel.routes)
        assert [key for key, route in kernel.routes().items() if not route.prohibits] == []


def test_pods_links_and_others_routes_are_not_heard(node: str) -> None:
    with closing(Followed()) as followed:
        ip("link add am0123456789 type veth peer name eth9")
        ip("link set am0123456789 up")
        ip("route add 10.244.7.7/32 dev am0123456789 proto 187")
        ip("route add 10.3.0.0/16 via 172.30.0.12 proto 186 metric 20")
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            try:
                assert not followed.watch.hear(followed.listener.recv(1 << 16))
            except BlockingIOError:
                break
        assert followed.watch.take().routes == ()


def test_too_many_notices_ask_for_a_look_at_all(node: str) -> None:
    watch = KernelWatch(lambda: None)
    with closing(netlink.listen(0x40)) as listener:
        ip("route add 10.244.1.0/26 via 172.30.0.12 proto 186 metric 64")
        received = listener.recv(1 << 16)
    for _ in range(MOST_NOTICES):
        watch.hear(received)
    assert not watch._lost
    watch.hear(received)
    notices = watch.take()
    assert (notices.lost, notices.routes) == (True, ())
    watch.hear(received)
    assert len(watch.take().routes) == 1


@pytest.fixture
def followed() -> Iterator[FollowedMap[AddressKey, TunnelPeer]]:
    """A map of the kernel with room for four."""
    fd = bpf.map_create(TUNNEL_PEERS.kind, TUNNEL_PEERS.key_size, TUNNEL_PEERS.value_size, 4, flags=TUNNEL_PEERS.flags)
    table = Table(fd, TUNNEL_PEERS, AddressKey, TunnelPeer)
    yield FollowedMap(table)
    table.close()


def entries(**numbers: int) -> dict[AddressKey, TunnelPeer]:
    """Addresses by their last part: ``_5=7`` is 172.30.0.5 of node 7."""
    return {AddressKey(address=ip_address(f"172.30.0.{at[1:]}")): TunnelPeer(node=one) for at, one in numbers.items()}


class TestFollowedMap:
    def test_one_change_is_one_write(self, followed: FollowedMap[AddressKey, TunnelPeer]) -> None:
        wanted = entries(_1=1, _2=2)
        followed.compare({}, wanted)
        assert followed.write(wanted, lambda: False) == 2
        followed.changed(entries(_2=2).keys(), now := entries(_1=1, _2=3))
        assert followed.write(now, lambda: False) == 1
        assert followed.write(now, lambda: False) == 0
        assert followed.table.items() == now == followed.actual

    def test_what_a_former_agent_left_stays_until_all_is_known(
        self, followed: FollowedMap[AddressKey, TunnelPeer]
    ) -> None:
        followed.table.apply(entries(_1=1, _9=9))
        wanted = entries(_1=1, _2=2)
        followed.compare(followed.table.items(), wanted)
        assert followed.write(wanted, lambda: False) == 1
        assert followed.table.items() == entries(_1=1, _2=2, _9=9)
        followed.changed(entries(_2=2).keys(), now := entries(_1=1))
        assert followed.write(now, lambda: False) == 1, "whose it was is known"
        assert followed.table.items() == entries(_1=1, _9=9)
        assert followed.write(now, lambda: True) == 1
        assert followed.table.items() == now

    def test_what_comes_back_before_it_went_stays(self, followed: FollowedMap[AddressKey, TunnelPeer]) -> None:
        wanted = entries(_1=1)
        followed.compare({}, wanted)
        followed.write(wanted, lambda: False)
        followed.changed(wanted.keys(), {})
        followed.changed(wanted.keys(), wanted)
        assert followed.write(wanted, lambda: True) == 0
        assert followed.table.items() == wanted

    def test_a_full_map_keeps_nothing_else_from_it(self, followed: FollowedMap[AddressKey, TunnelPeer]) -> None:
        wanted = entries(_1=1, _2=2, _3=3, _4=4)
        followed.compare({}, wanted)
        followed.write(wanted, lambda: False)
        more = entries(_1=7, _2=2, _3=3, _4=4, _5=5, _6=6)
        followed.changed(more.keys(), more)
        followed.write(more, lambda: False)
        assert followed.without_room == 2
        assert followed.table.items() == entries(_1=7, _2=2, _3=3, _4=4)
        fewer = entries(_1=7, _5=5, _6=6)
        followed.changed(entries(_2=2, _3=3, _4=4).keys(), fewer)
        followed.write(fewer, lambda: False)
        assert followed.without_room == 0
        assert followed.table.items() == fewer

    def test_what_was_done_by_hand_is_undone(self, followed: FollowedMap[AddressKey, TunnelPeer]) -> None:
        wanted = entries(_1=1, _2=2)
        followed.compare({}, wanted)
        followed.write(wanted, lambda: False)
        followed.table.remove(AddressKey(address=ip_address("172.30.0.1")))
        followed.table.apply(entries(_3=3))
        followed.compare(followed.table.items(), wanted)
        followed.write(wanted, lambda: True)
        assert followed.table.items() == wanted
