"""Networks: overlap against the standard library's own reading."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.prefixes import overlap, router_anycast
from proto.net import Network


def _networks() -> st.SearchStrategy[Network]:
    four = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32))
    six = st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 128))
    made = four.map(lambda t: ip_network((t[0].to_bytes(4, "big"), t[1]), strict=False))
    return made | six.map(lambda t: ip_network((t[0].to_bytes(16, "big"), t[1]), strict=False))


@given(_networks(), _networks())
def test_overlap_is_what_the_standard_library_says(one: Network, other: Network) -> None:
    wanted = one.version == other.version and one.overlaps(other)
    assert overlap(one, other) == overlap(other, one) == wanted


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        ("10.0.0.0/8", "10.1.0.0/16", True),
        ("10.0.0.0/9", "10.128.0.0/9", False),
        ("0.0.0.0/0", "203.0.113.7/32", True),
        ("::/0", "0.0.0.0/0", False),
        ("fd00::/64", "fd00:0:0:1::/64", False),
        ("fd00::/63", "fd00:0:0:1::/64", True),
    ],
)
def test_overlap_in_cases(one: str, other: str, wanted: bool) -> None:
    assert overlap(ip_network(one), ip_network(other)) is wanted


@pytest.mark.parametrize(
    ("network", "wanted"),
    [
        ("fd00::40/122", "fd00::40"),
        ("fd00::/126", "fd00::"),
        ("fd00::4/127", None),
        ("fd00::4/128", None),
        ("10.0.0.0/26", None),
    ],
)
def test_the_routers_address(network: str, wanted: str | None) -> None:
    found = router_anycast(ip_network(network))
    assert (str(found) if found else None) == wanted
