"""The plan's routes as messages and back, and which notifications wake."""

from __future__ import annotations

import errno
import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linux import rtnl
from linux.netlink import number
from proto.net import Address, Network
from services.routing.core.fib import OTHER_MTU, Kind, Remove, Replace, Route
from services.routing.core.learnt import FIRST_ID
from services.routing.rtnetlink import ALL, NOTHING, Concern, concerns, message, read


@st.composite
def routes(draw: st.DrawFn) -> Route:
    destination: Network
    via: Address
    if draw(st.booleans()):
        destination = IPv4Network((draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 32))), strict=False)
        via = IPv4Address(draw(st.integers(0, 2**32 - 1)))
    else:
        destination = IPv6Network((draw(st.integers(0, 2**128 - 1)), draw(st.integers(0, 128))), strict=False)
        via = IPv6Address(draw(st.integers(0, 2**128 - 1)))
    metric, protocol = draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 255))
    if draw(st.booleans()):
        return Route(destination=destination, kind=Kind.UNREACHABLE, metric=metric, protocol=protocol)
    link = draw(st.integers(1, 2**31 - 1))
    return Route(
        destination=destination,
        via=via if draw(st.booleans()) else None,
        link=link,
        mtu=draw(st.integers(0, 2**31 - 1)),
        metric=metric,
        protocol=protocol,
    )


@given(routes())
def test_what_is_written_is_read_back(route: Route) -> None:
    for operation, kind in ((Replace(route), rtnl.NEWROUTE), (Remove(route), rtnl.DELROUTE)):
        sent = message(operation)
        assert (sent.kind, read(sent.body)) == (kind, route)


def test_a_route_that_is_gone_already_is_no_failure() -> None:
    route = Route(destination=IPv4Network("10.244.0.64/26"), via=IPv4Address("172.30.0.12"), link=3)
    assert (message(Remove(route)).tolerated, message(Replace(route)).tolerated) == ((errno.ESRCH,), ())


def test_a_route_with_metrics_that_are_not_written_here_is_no_route_of_the_plan() -> None:
    """Somebody's `mtu 1300` without `lock`: it is replaced, and can be taken away."""
    header = struct.pack("=BBBBBBBBI", 2, 26, 0, 0, 254, 186, 0, 1, 0)
    route = read(header + struct.pack("=HH", 12, 8) + number(2, 1300))
    assert route is not None
    assert route.mtu == OTHER_MTU
    cleared = read(message(Remove(route)).body)
    assert cleared is not None
    assert cleared.mtu == 0, "asks for a route with any metrics"


@pytest.mark.parametrize(
    ("table", "kind", "flags", "more"),
    [
        pytest.param(255, 1, 0, b"", id="another table"),
        pytest.param(254, 2, 0, b"", id="a local one"),
        pytest.param(254, 1, rtnl.CLONED, b"", id="a cached exception"),
        pytest.param(254, 1, 0, number(15, 1000), id="a table of a large number"),
    ],
)
def test_what_is_not_looked_at_is_no_route(table: int, kind: int, flags: int, more: bytes) -> None:
    header = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, table, 4, 0, kind, flags)
    assert read(header + more) is None


def test_the_link_of_an_unreachable_route_says_nothing() -> None:
    """IPv6 lists it with the loopback (net/ipv6/route.c)."""
    header = struct.pack("=BBBBBBBBI", 10, 0, 0, 0, 254, 186, 0, 7, 0)
    route = read(header + number(4, 1) + number(6, 4096))
    assert route == Route(destination=IPv6Network("::/0"), kind=Kind.UNREACHABLE, metric=4096)


def _heard(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def _route(protocol: int, table: int = 254, kind: int = rtnl.NEWROUTE) -> bytes:
    more = number(15, table) if table > 255 else b""
    return _heard(
        kind, struct.pack("=BBBBBBBBI", 2, 32, 0, 0, min(table, 252) if more else table, protocol, 0, 1, 0) + more
    )


def _link(name: str) -> bytes:
    text = name.encode() + b"\0"
    return _heard(16, bytes(16) + struct.pack("=HH", 4 + len(text), 3) + text + bytes(-len(text) % 4))


def _neighbour(kind: int, link: int) -> bytes:
    return _heard(kind, struct.pack("=BBHiHBB", 10, 0, 0, link, 0x20, 0, 0))


def _next_hop(kind: int, identifier: int) -> bytes:
    return _heard(kind, struct.pack("=BBBBI", 0, 0, 185, 0, 0) + number(1, identifier))


PLAN, LEARNT = Concern.PLAN, Concern.LEARNT


@pytest.mark.parametrize(
    ("received", "reported"),
    [
        pytest.param(_route(187), NOTHING, id="a pod's route"),
        pytest.param(_route(186), PLAN, id="one of ours"),
        pytest.param(_route(4), PLAN, id="somebody's"),
        pytest.param(_route(2, table=255), NOTHING, id="the kernel's own, of a pod's link"),
        pytest.param(_route(186, table=18601, kind=rtnl.DELROUTE), PLAN, id="a device's own table"),
        pytest.param(_route(186, table=18700, kind=rtnl.DELROUTE), NOTHING, id="another's table"),
        pytest.param(_route(185, kind=rtnl.DELROUTE), LEARNT, id="a learnt one"),
        pytest.param(_link("am0123456789"), NOTHING, id="a pod's link"),
        pytest.param(_link("eth0"), PLAN, id="an uplink"),
        pytest.param(_link("eth01"), NOTHING, id="a name that only begins like an uplink's"),
        pytest.param(_heard(20, bytes(8)), PLAN, id="an address"),
        pytest.param(_heard(33, bytes(12)), PLAN, id="a rule"),
        pytest.param(_neighbour(rtnl.DELNEIGH, 7), PLAN, id="an entry of a tunnel device"),
        pytest.param(_neighbour(rtnl.DELNEIGH, 8), NOTHING, id="a pod's neighbour"),
        pytest.param(_neighbour(rtnl.NEWNEIGH, 7), NOTHING, id="what a device learns"),
        pytest.param(_next_hop(105, FIRST_ID + 3), LEARNT, id="a next hop object of ours"),
        pytest.param(_next_hop(105, 12), NOTHING, id="somebody's next hop object"),
        pytest.param(_next_hop(104, FIRST_ID + 3), NOTHING, id="a next hop object that comes"),
        pytest.param(_route(187) + _link("am0") + _route(4), PLAN, id="one among many"),
        pytest.param(_route(4) + _route(185, kind=rtnl.DELROUTE) + _route(187), ALL, id="both"),
        pytest.param(_route(187) + b"\xff" * 7, NOTHING, id="bytes that are no message"),
    ],
)
def test_only_what_may_change_something_wakes(received: bytes, reported: Concern) -> None:
    assert concerns(received, ("eth0", "eth1"), {7}, {18600, 18601}) == reported
