"""Port ranges as prefixes, and what ports of a rule stand for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.objects import PolicyPort
from proto.policy import PortMatch
from services.policy.core.ports import ANY_PORT, cover, has_names, resolve
from tests.core.policy.notation import named

PORT = st.integers(0, 65535)


@pytest.mark.parametrize(
    ("first", "last", "prefixes"),
    [
        (80, 80, "80/16"),
        (0, 65535, "0/0"),
        (
            1,
            65535,
            "1/16 2/15 4/14 8/13 16/12 32/11 64/10 128/9 256/8 512/7 1024/6 2048/5 4096/4 8192/3 16384/2 32768/1",
        ),
        (80, 81, "80/15"),
        (79, 82, "79/16 80/15 82/16"),
        (32000, 32768, "32000/8 32256/7 32768/16"),
        (65535, 65535, "65535/16"),
        (81, 80, ""),
        (0, 65536, ""),
        (-1, 5, ""),
    ],
)
def test_cover(first: int, last: int, prefixes: str) -> None:
    assert " ".join(f"{port}/{bits}" for port, bits in cover(first, last)) == prefixes


@given(PORT, PORT, PORT)
def test_cover_holds_exactly_the_range(first: int, last: int, asked: int) -> None:
    hits = [1 for port, bits in cover(first, last) if bits == 0 or (asked ^ port) >> (16 - bits) == 0]
    assert len(hits) == (1 if first <= asked <= last else 0)


WEB = named("web:TCP:8080", "web:UDP:8081", "dns:UDP:53")


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        ((), (ANY_PORT,)),
        ((PolicyPort(6),), ((6, 0, 0),)),
        ((PolicyPort(132, port=80),), ((132, 80, 16),)),
        ((PolicyPort(6, port=80, end_port=81),), ((6, 80, 15),)),
        ((PolicyPort(6, port_name="web"),), ((6, 8080, 16),)),
        ((PolicyPort(17, port_name="web"),), ((17, 8081, 16),)),
        ((PolicyPort(132, port_name="web"),), ()),
        ((PolicyPort(6, port_name="nobody"),), ()),
        ((PolicyPort(6, port_name="nobody"), PolicyPort(6, port=1)), ((6, 1, 16),)),
        ((PolicyPort(6, port=80, port_name="web"),), ()),
        ((PolicyPort(6, end_port=80),), ()),
        ((PolicyPort(6, port=81, end_port=80),), ()),
        ((PolicyPort(6, port=80), PolicyPort(6, port=80)), ((6, 80, 16),)),
    ],
)
def test_resolve(ports: tuple[PolicyPort, ...], expected: tuple[tuple[int, int, int], ...]) -> None:
    assert resolve(ports, WEB) == tuple(PortMatch(*match) if isinstance(match, tuple) else match for match in expected)


def test_one_name_on_two_container_ports_is_both() -> None:
    both = named("web:TCP:80", "web:TCP:81")
    assert set(resolve((PolicyPort(6, port_name="web"),), both)) == {PortMatch(6, 80, 16), PortMatch(6, 81, 16)}


def test_has_names() -> None:
    assert has_names((PolicyPort(6), PolicyPort(6, port_name="web")))
    assert not has_names((PolicyPort(6, port=80),))
