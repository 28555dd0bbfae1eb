"""Layouts: what Python packs is what the C structs hold, and prefixes mean what people mean."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dataplane.core.datapath import layout as at
from services.dataplane.core.datapath import policy_layout as pl
from services.dataplane.core.datapath import service_layout as lb
from services.dataplane.core.datapath.maps import MAPS, RECORDS
from services.dataplane.core.datapath.wire import MAPPED, Kind, Record, address_bytes, address_from

ADDRESSES = st.one_of(
    st.ip_addresses(v=4), st.ip_addresses(v=6).filter(lambda address: address.packed[:12] not in (MAPPED, bytes(12)))
)
_STRATEGIES: dict[str, st.SearchStrategy[Any]] = {
    "B": st.integers(0, 0xFF),
    "H": st.integers(0, 0xFFFF),
    "I": st.integers(0, 0xFFFFFFFF),
    "Q": st.integers(0, 0xFFFFFFFFFFFFFFFF),
    "16s": ADDRESSES,
    "32s": st.integers(0, (1 << 256) - 1),
}


def values_of(record: type[Record]) -> st.SearchStrategy[Record]:
    """Any value of a record."""
    hints = get_type_hints(record, include_extras=True)
    kinds: dict[str, Kind] = {name: hints[name].__metadata__[0] for name in record.wire().names}
    flags: dict[str, st.SearchStrategy[Any]] = {
        name: st.booleans() for name, kind in kinds.items() if kind.decode is bool
    }
    flags |= {name: st.just(0) for name in kinds if name == "hole"}
    sizes = {name: int(kind.code[:-1]) for name, kind in kinds.items() if kind.code[:-1]}
    numbers = {
        name: st.tuples(*[_STRATEGIES["Q"]] * (size // 8))
        for name, size in sizes.items()
        if isinstance(kinds[name].decode(bytes(size)), tuple)
    }
    return st.builds(record, **({name: _strategy(kind.code) for name, kind in kinds.items()} | flags | numbers))


def _strategy(code: str) -> st.SearchStrategy[Any]:
    """Of a member; one of many bytes is any sixteen, again and again."""
    if code in _STRATEGIES:
        return _STRATEGIES[code]
    size = int(code.removesuffix("s"))
    return st.binary(min_size=16, max_size=16).map(lambda some: (some * size)[:size])


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
@given(drawn=st.data())
def test_what_is_packed_is_unpacked(record: type[Record], drawn: st.DataObject) -> None:
    value = drawn.draw(values_of(record))
    raw = value.pack()
    assert len(raw) == record.wire().size
    assert record.unpack(raw) == value


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_members_leave_no_hole(record: type[Record]) -> None:
    position = 0
    for member in record.wire().members:
        assert member.offset == position, member.name
        position += member.size
    assert position == record.wire().size


@given(ADDRESSES)
def test_addresses_come_back(address: IPv4Address | IPv6Address) -> None:
    assert address_from(address_bytes(address)) == address


def test_ports_are_big_endian() -> None:
    key = lb.BackendKey(service=1, index=2)
    assert key.pack() == bytes([1, 0, 0, 0, 2, 0, 0, 0])
    backend = lb.Backend(address=ip_address("10.0.0.1"), port=0x1234)
    assert backend.pack() == MAPPED + bytes([10, 0, 0, 1, 0x12, 0x34, 0, 0])


@pytest.mark.parametrize(
    ("network", "bits", "tail"),
    [
        ("0.0.0.0/0", 96, bytes(4)),
        ("10.244.0.0/16", 112, bytes([10, 244, 0, 0])),
        ("10.1.2.3/32", 128, bytes([10, 1, 2, 3])),
        ("::/0", 0, bytes(4)),
        ("fd00:10:244::/56", 56, bytes(4)),
        ("::1/128", 128, bytes([0, 0, 0, 1])),
    ],
)
def test_prefix(network: str, bits: int, tail: bytes) -> None:
    key = at.PrefixKey.of(ip_network(network))
    assert key.prefixlen == bits
    assert key.pack()[-4:] == tail
    assert key.network == ip_network(network)


# A trie compares the first prefixlen bits of what follows the length itself.
def matches(rule: pl.ScopePortKey, packet: pl.ScopePortKey) -> bool:
    bits = rule.prefixlen
    one, other = (int.from_bytes(key.pack()[4:], "big") >> (160 - bits) for key in (rule, packet))
    return one == other


def packet(protocol: int, port: int, *, scope: int = 1000) -> pl.ScopePortKey:
    key = pl.ScopePortKey.of(scope, protocol or 255, port, 16)
    assert key.prefixlen == pl.SCOPE_BITS
    return key


@pytest.mark.parametrize(
    ("rule", "protocol", "port", "expected"),
    [
        ((), 6, 80, True),
        ((), 132, 9, True),
        ((6,), 6, 80, True),
        ((6,), 17, 80, False),
        ((6, 80, 16), 6, 80, True),
        ((6, 80, 16), 6, 81, False),
        ((6, 8080, 12), 6, 8095, True),
        ((6, 8080, 12), 6, 8096, False),
    ],
)
def test_port_prefix_covers(rule: tuple[int, ...], protocol: int, port: int, expected: bool) -> None:
    key = pl.ScopePortKey.of(1000, *rule)
    assert matches(key, packet(protocol, port)) is expected
    assert not matches(key, packet(protocol, port, scope=1001))
    assert not matches(key, packet(protocol, port, scope=1000 | 1 << 63))


@given(port=st.integers(0, 65535), bits=st.integers(0, 16), asked=st.integers(0, 65535))
def test_port_prefix(port: int, bits: int, asked: int) -> None:
    key = pl.ScopePortKey.of(1, 17, port, bits)
    other = pl.ScopePortKey.of(1, 17, asked, 16)
    assert matches(key, other) is (port >> (16 - bits) == asked >> (16 - bits))


def test_protocol_and_port_are_the_last_three_bytes_that_are_compared() -> None:
    wire = pl.ScopePortKey.wire()
    assert (wire.offset("protocol"), wire.offset("port")) == (17, 18)
    assert (wire.offset("port") + 2 - 4) * 8 == pl.SCOPE_BITS
    assert pl.SCOPE_BITS - pl.SCOPE_FIXED_BITS == 24


@pytest.mark.parametrize(("more", "complaint"), [((0, 80, 16), "without a protocol"), ((6, 0, 17), "0 to 16")])
def test_port_prefix_refuses(more: tuple[int, int, int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        pl.ScopePortKey.of(1, *more)


def test_a_vector_s_bits_lie_where_the_program_looks() -> None:
    """Bit j of a vector is bit j % 64 of the word j / 64, each word little endian."""
    raw = pl.ScopeBits(bits=1 << 65 | 1 << 3).pack()
    assert [int.from_bytes(raw[start : start + 8], "little") for start in range(0, 32, 8)] == [1 << 3, 1 << 1, 0, 0]


def test_unpack_refuses_another_length() -> None:
    with pytest.raises(ValueError, match="Budget has 40 bytes"):
        at.Budget.unpack(bytes(15))


def test_names_fit_the_kernel() -> None:
    assert all(len(spec.name) <= 15 and spec.name.startswith("am_") for spec in MAPS)
    assert len({spec.name for spec in MAPS}) == len(MAPS)
