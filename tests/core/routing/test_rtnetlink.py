"""Route messages as bytes: what is packed is read back, and no bytes break the reader."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.net import Address, Network
from services.routing.core.fib import Kind, Remove, Replace, Route
from services.routing.rtnetlink import RTM_DELROUTE, RTM_NEWROUTE, concerns, messages, pack, parse_route


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
        metric=metric,
        protocol=protocol,
    )


@given(st.lists(routes(), max_size=8), st.integers(0, 2**31))
def test_what_is_packed_is_read_back(many: list[Route], first: int) -> None:
    batch = b"".join(
        pack(Replace(route) if number % 2 else Remove(route), first + number) for number, route in enumerate(many)
    )
    read = list(messages(batch))
    assert [parse_route(body) for *_, body in read] == many
    assert [sequence for _, _, sequence, _ in read] == [first + number for number in range(len(many))]
    assert [kind for kind, *_ in read] == [(RTM_DELROUTE, RTM_NEWROUTE)[number % 2] for number in range(len(many))]


def test_the_bytes_of_a_route_are_those_of_the_kernel_headers() -> None:
    route = Route(destination=IPv4Network("10.244.0.64/26"), via=IPv4Address("172.30.0.12"), link=3)
    expected = (
        struct.pack("=IHHII", 60, 24, 0x1 | 0x4 | 0x100 | 0x400, 7, 0)
        + struct.pack("=BBBBBBBBI", 2, 26, 0, 0, 254, 186, 0, 1, 0)
        + struct.pack("=HH", 8, 1) + bytes((10, 244, 0, 64))
        + struct.pack("=HHI", 8, 6, 64)
        + struct.pack("=HH", 8, 5) + bytes((172, 30, 0, 12))
        + struct.pack("=HHI", 8, 4, 3)
    )  # fmt: skip
    assert pack(Replace(route), 7) == expected


@given(st.binary(max_size=200))
def test_noise_is_no_message(noise: bytes) -> None:
    for *_, body in messages(noise):
        assert len(body) <= len(noise)


def _heard(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def _route(protocol: int, table: int = 254) -> bytes:
    return _heard(24, struct.pack("=BBBBBBBBI", 2, 32, 0, 0, table, protocol, 0, 1, 0))


def _link(name: str) -> bytes:
    text = name.encode() + b"\0"
    return _heard(16, bytes(16) + struct.pack("=HH", 4 + len(text), 3) + text + bytes(-len(text) % 4))


@pytest.mark.parametrize(
    ("received", "told"),
    [
        pytest.param(_route(187), False, id="a pod's route"),
        pytest.param(_route(186), True, id="one of ours"),
        pytest.param(_route(4), True, id="somebody's"),
        pytest.param(_route(2, table=255), False, id="the kernel's own, of a pod's link"),
        pytest.param(_link("am0123456789"), False, id="a pod's link"),
        pytest.param(_link("eth0"), True, id="an uplink"),
        pytest.param(_link("eth01"), False, id="a name that only begins like an uplink's"),
        pytest.param(_heard(20, bytes(8)), True, id="an address"),
        pytest.param(_route(187) + _link("am0") + _route(4), True, id="one among many"),
        pytest.param(_route(187) + b"\xff" * 7, False, id="bytes that are no message"),
    ],
)
def test_only_what_may_change_the_plan_wakes(received: bytes, told: bool) -> None:
    assert concerns(received, ("eth0", "eth1")) is told
