"""Netlink on a real kernel: batches, refusals, dumps and notifications, each in a namespace of its own."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network

import pytest

from linux import netlink, rtnl
from linux.netlink import Message, Netlink, NetlinkRefused
from linux.netns import inside, netns_cookie, open_netns
from tests.netns.linux.conftest import Namespace

pytestmark = pytest.mark.privileged
LOOPBACK = 1
FAMILIES = pytest.mark.parametrize(
    ("family", "network"), [(socket.AF_INET, "10.1.0.0/24"), (socket.AF_INET6, "fd00:1::/64")]
)


@contextmanager
def within(netns: Namespace) -> Iterator[Netlink]:
    """A netlink socket of the namespace, used from outside of it."""
    descriptor = open_netns(netns.path)
    try:
        with inside(descriptor):
            made = Netlink()
        with made:
            yield made
    finally:
        os.close(descriptor)


def unreachable(network: str, *, protocol: int = 186) -> Message:
    return rtnl.replace_route(ip_network(network), kind=rtnl.UNREACHABLE, metric=64, protocol=protocol)


def routes(kernel: Netlink, family: int, protocol: int = 186) -> set[str]:
    bodies = kernel.dump(rtnl.GETROUTE, rtnl.routes_query(family, protocol=protocol), rtnl.NO_TABLE)
    found = map(rtnl.parse_route, bodies)
    return {f"{socket.inet_ntop(route.family, route.destination)}/{route.length}" for route in found}


def test_a_socket_acts_where_it_was_opened(netns: Namespace) -> None:
    with within(netns) as kernel:
        assert kernel.cookie != netns_cookie()
        kernel.run([rtnl.set_up(LOOPBACK)])
        assert "UP" in netns.ip("link show lo").partition(">")[0]


@FAMILIES
def test_a_batch_is_done_and_read_back(netns: Namespace, family: int, network: str) -> None:
    with within(netns) as kernel:
        many = [str(one) for one in list(ip_network(network).subnets(8))[:200]]
        kernel.run([unreachable(one) for one in many])
        assert routes(kernel, family) == set(many)
        assert routes(kernel, family, protocol=99) == set(), "the kernel chooses by protocol"
        gone = [
            rtnl.remove_route(ip_network(one), kind=rtnl.UNREACHABLE, metric=64, protocol=186) for one in many[:150]
        ]
        kernel.run(gone)
        assert routes(kernel, family) == set(many[150:])


def test_every_refusal_is_heard_and_the_others_take_effect(netns: Namespace) -> None:
    nowhere = rtnl.replace_route(ip_network("10.1.1.0/24"), link=999, metric=64, protocol=186)
    absent = rtnl.remove_route(ip_network("10.1.2.0/24"), metric=64, protocol=186)
    endured = absent._replace(tolerated=(errno.ESRCH,))
    with within(netns) as kernel:
        batch = [unreachable("10.1.0.0/24"), nowhere, endured, absent, unreachable("10.1.3.0/24")]
        refused = kernel.attempt(batch)
        assert [(index, error.errno) for index, error in refused] == [(1, errno.ENODEV), (3, errno.ESRCH)]
        assert routes(kernel, socket.AF_INET) == {"10.1.0.0/24", "10.1.3.0/24"}
        with pytest.raises(NetlinkRefused, match=r"^\[Errno 19\] route 10\.1\.1\.0/24: No such device"):
            kernel.run(batch)
        assert kernel.attempt([]) == []
        assert kernel.attempt([unreachable("10.1.4.0/24")]) == [], "the socket goes on"


def test_the_kernels_own_words_are_reported(netns: Namespace) -> None:
    lost = rtnl.replace_route(ip_network("10.1.1.0/24"), via=ip_address("10.9.9.9"), metric=64, protocol=186)
    with within(netns) as kernel:
        with pytest.raises(NetlinkRefused, match=r"\(Nexthop has invalid gateway\)$"):
            kernel.run([lost])
        with pytest.raises(NetlinkRefused, match=r"\(.*dump request.*\)$"):  # a length in a dump's header
            kernel.dump(rtnl.GETROUTE, struct.pack("<BBBBBBBBI", socket.AF_INET, 24, 0, 0, 0, 0, 0, 0, 0))


@FAMILIES
def test_a_dump_that_fails_is_no_empty_list(netns: Namespace, family: int, network: str) -> None:
    """The kernel ends it as any other, with the errno in its last message."""
    query = rtnl.routes_query(family, table=200)
    with within(netns) as kernel:
        with pytest.raises(NetlinkRefused) as refused:
            kernel.dump(rtnl.GETROUTE, query)
        assert refused.value.errno == errno.ENOENT
        assert kernel.dump(rtnl.GETROUTE, query, rtnl.NO_TABLE) == []
        kernel.run([unreachable(network)])
        assert routes(kernel, family) == {network}


def test_one_object_is_asked_for(netns: Namespace) -> None:
    with within(netns) as kernel:
        assert rtnl.link_name(kernel.ask(rtnl.GETLINK, rtnl.ifinfo(LOOPBACK))) == "lo"
        assert kernel.index_of("lo") == LOOPBACK
        with pytest.raises(NetlinkRefused) as refused:
            kernel.ask(rtnl.GETLINK, rtnl.ifinfo(999))
        assert refused.value.errno == errno.ENODEV


def test_what_changes_is_heard(netns: Namespace) -> None:
    descriptor = open_netns(netns.path)
    try:
        with inside(descriptor):
            listener = netlink.listen(0x40)  # RTMGRP_IPV4_ROUTE
    finally:
        os.close(descriptor)
    with listener, within(netns) as kernel:
        with pytest.raises(BlockingIOError):
            listener.recv(1 << 16)
        kernel.run([unreachable("10.1.0.0/24")])
        ((kind, _, _, body),) = netlink.parse(listener.recv(1 << 16))
        assert (kind, rtnl.parse_route(body).protocol) == (rtnl.NEWROUTE, 186)


def test_a_listener_that_is_behind_does_not_fail(netns: Namespace) -> None:
    descriptor = open_netns(netns.path)
    try:
        with inside(descriptor):
            listener = netlink.listen(0x40)
    finally:
        os.close(descriptor)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with listener, within(netns) as kernel:
        kernel.run([unreachable(f"10.1.{number}.0/24") for number in range(200)])
        heard = 0
        while True:
            try:
                heard += len(list(netlink.parse(listener.recv(1 << 16))))
            except BlockingIOError:
                break
        assert 0 < heard < 200
