"""Route messages as bytes: what is packed is read back, and they are those of the kernel's headers."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linux import rtnl
from linux.netlink import pack
from linux.rtnl import Address, Network, SeenRoute


@st.composite
def networks(draw: st.DrawFn) -> Network:
    if draw(st.booleans()):
        return IPv4Network((draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 32))), strict=False)
    return IPv6Network((draw(st.integers(0, 2**128 - 1)), draw(st.integers(0, 128))), strict=False)


@given(networks(), st.data())
def test_what_is_packed_is_read_back(network: Network, data: st.DataObject) -> None:
    gateways = st.ip_addresses(v=6 if network.version == 6 else 4)
    via: Address | None = data.draw(st.none() | gateways)
    link, metric = data.draw(st.integers(0, 2**31 - 1)), data.draw(st.integers(0, 2**32 - 1))
    kind, protocol = data.draw(st.sampled_from([rtnl.UNICAST, rtnl.UNREACHABLE])), data.draw(st.integers(0, 255))
    mtu = data.draw(st.integers(0, 2**32 - 1))
    wanted = SeenRoute(
        family=socket.AF_INET if network.version == 4 else socket.AF_INET6,
        destination=network.network_address.packed,
        length=network.prefixlen,
        table=rtnl.TABLE_MAIN,
        protocol=protocol,
        kind=kind,
        flags=0,
        gateway=b"" if via is None else via.packed,
        link=link,
        metric=metric,
        mtu=mtu,
        source=b"",
    )
    for encode in (rtnl.replace_route, rtnl.remove_route):
        message = encode(network, kind=kind, via=via, link=link, metric=metric, protocol=protocol, mtu=mtu)
        assert rtnl.parse_route(message.body) == wanted


def test_the_bytes_of_a_route_are_those_of_the_kernel_headers() -> None:
    message = rtnl.replace_route(
        IPv4Network("10.244.0.64/26"), via=IPv4Address("172.30.0.12"), link=3, metric=64, protocol=186
    )
    expected = (
        struct.pack("=IHHII", 60, 24, 0x1 | 0x4 | 0x100 | 0x400, 7, 0)
        + struct.pack("=BBBBBBBBI", 2, 26, 0, 0, 254, 186, 0, 1, 0)
        + struct.pack("=HH", 8, 1) + bytes((10, 244, 0, 64))
        + struct.pack("=HHI", 8, 6, 64)
        + struct.pack("=HH", 8, 5) + bytes((172, 30, 0, 12))
        + struct.pack("=HHI", 8, 4, 3)
    )  # fmt: skip
    assert pack([message], 7) == expected


def test_a_route_of_a_large_table_says_so_in_an_attribute() -> None:
    """rtm_table is one byte; what does not fit stands in RTA_TABLE."""
    body = struct.pack("<BBBBBBBBI", 2, 24, 0, 0, 252, 4, 0, 1, 0) + struct.pack("<HHI", 8, 15, 1000)
    assert rtnl.parse_route(body).table == 1000


LOCK_MTU = struct.pack("<HHI", 8, 1, 4)


def _mtu(size: int) -> bytes:
    return struct.pack("<HHI", 8, 2, size)


def test_a_locked_mtu_is_nested_as_the_kernel_takes_it() -> None:
    """RTA_METRICS with RTAX_LOCK (a bit for each metric) and RTAX_MTU."""
    network = IPv4Network("10.244.0.64/26")
    plain, small = (rtnl.replace_route(network, link=3, metric=64, protocol=186, mtu=mtu) for mtu in (0, 1400))
    assert small.body == plain.body + struct.pack("<HH", 20, 8) + LOCK_MTU + _mtu(1400)


@pytest.mark.parametrize(
    ("metrics", "mtu"),
    [
        pytest.param(LOCK_MTU + _mtu(1400), 1400, id="locked"),
        pytest.param(_mtu(1400), None, id="not locked"),
        pytest.param(LOCK_MTU, None, id="locked at nothing"),
        pytest.param(LOCK_MTU + _mtu(1400) + struct.pack("<HHI", 8, 8, 1360), None, id="another metric, too"),
        pytest.param(struct.pack("<HHI", 8, 1, 4 | 256) + _mtu(1400), None, id="another lock, too"),
    ],
)
@pytest.mark.parametrize("nested", [0, 0x8000])
def test_metrics_of_a_route(metrics: bytes, mtu: int | None, nested: int) -> None:
    body = struct.pack("<BBBBBBBBI", 2, 26, 0, 0, 254, 186, 0, 1, 0)
    body += struct.pack("<HH", 4 + len(metrics), 8 | nested) + metrics
    assert rtnl.parse_route(body).mtu == mtu


@pytest.mark.parametrize(("name", "more"), [("eth0", b""), ("am0123456789", struct.pack("<HHI", 8, 4, 1500))])
def test_the_name_of_a_link(name: str, more: bytes) -> None:
    raw = name.encode() + b"\0"
    body = rtnl.ifinfo(7) + struct.pack("<HH", 4 + len(raw), 3) + raw + bytes(-len(raw) % 4) + more
    assert rtnl.link_name(body) == name


def test_a_link_without_a_name_has_none() -> None:
    assert rtnl.link_name(rtnl.ifinfo(7)) == ""
