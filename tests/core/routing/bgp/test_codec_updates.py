"""UPDATE messages that are right: families, next hops, ADD-PATH, two-octet numbers, End-of-RIB, how few it takes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.routing.core.bgp.codec.messages import LARGEST, LARGEST_EXTENDED, MessageError, split
from services.routing.core.bgp.codec.multiprotocol import cut_out, has_multiprotocol
from services.routing.core.bgp.codec.updates import KEPT_ENTRY, KEPT_FACTOR, KEPT_OCTETS, Unwritable
from services.routing.core.bgp.codec.updates import UpdateReader as Reader
from services.routing.core.bgp.codec.updates import UpdateWriter as Writer
from services.routing.core.bgp.values import (
    Aggregator,
    Agreed,
    Attributes,
    Family,
    Origin,
    Prefix,
    Reachable,
    Segment,
    SegmentKind,
    UnknownAttribute,
    Unreachable,
    Update,
    network_of,
    prefix_of,
)
from tests.core.routing.bgp.wire import (
    AS_PATH,
    GLOBAL,
    LINK_LOCAL,
    LOCAL_PREF,
    NEXT_HOP,
    ORIGIN,
    as_path,
    attribute,
    message,
    mp_reach,
    mp_unreach,
    octets,
    prefix,
    prefixes,
    update,
)
from tests.cpu_time import least

V4, V6 = Family.IPV4, Family.IPV6
EXTERNAL = Agreed(families=frozenset(Family), four_octets=True, external=True)
INTERNAL = replace(EXTERNAL, external=False)
PATH = (Segment(SegmentKind.SEQUENCE, (65001, 65002)),)
PLAIN = Attributes(origin=Origin.IGP, as_path=PATH, next_hop=ip_address("10.0.0.1"))
PLAIN6 = replace(PLAIN, next_hop=ip_address("2001:db8::1"))


def read(body: bytes, agreed: Agreed = EXTERNAL) -> Update:
    return Reader(agreed).read(body)


def one(body: bytes, agreed: Agreed = EXTERNAL) -> Attributes:
    """The attributes of the one set of prefixes that a message makes reachable, without any fault."""
    found = read(body, agreed)
    (reachable,) = found.reachable
    assert (found.unreachable, found.faults) == ((), ())
    return reachable.attributes


def networks(family: Family, found: tuple[Prefix, ...]) -> list[str]:
    return [str(network_of(family, one)) for one in found]


def sent(messages: list[bytes] | Unwritable, agreed: Agreed = EXTERNAL) -> list[Update]:
    """What the other side reads; each message is as large as may be, and whole."""
    assert isinstance(messages, list)
    reader = Reader(agreed)
    bodies = [body for one in messages for _, body in split(one, agreed.largest_message)[0]]
    assert len(bodies) == len(messages)
    return [reader.read(body) for body in bodies]


# Families and next hops


def test_an_update_of_ipv4() -> None:
    path = attribute(0x40, 2, octets("02 01 0000fde9 01 02 0000fdea 0000fdeb"))
    body = update([attribute(0x40, 1, "02"), path, NEXT_HOP], "192.0.2.0/24 0.0.0.0/0", "10.1.0.0/16 0.0.0.0/0")
    found = read(body)
    assert networks(V4, found.unreachable[0].prefixes) == ["10.1.0.0/16", "0.0.0.0/0"]
    assert networks(V4, found.reachable[0].prefixes) == ["192.0.2.0/24", "0.0.0.0/0"]
    assert found.reachable[0].attributes == Attributes(
        origin=Origin.INCOMPLETE,
        as_path=(Segment(SegmentKind.SEQUENCE, (65001,)), Segment(SegmentKind.SET, (65002, 65003))),
        next_hop=ip_address("10.0.0.1"),
    )


def test_all_attributes_of_an_internal_peer() -> None:
    path = [
        ORIGIN,
        AS_PATH,
        NEXT_HOP,
        attribute(0x80, 4, "0000000a"),
        LOCAL_PREF,
        attribute(0x40, 6, ""),
        attribute(0xC0, 7, "00010000 0a000009"),
        attribute(0xC0, 8, "ffffff01 fde90002 fde90001 fde90002"),
        attribute(0x80, 9, "0a000002"),
        attribute(0x80, 10, "0a000003 0a000004"),
        attribute(0xC0, 16, "0002fde900000002 0002fde900000001"),
        attribute(0xC0, 32, "00010000 00000002 00000003  00010000 00000001 00000009"),
        attribute(0xC0, 200, "02"),
        attribute(0xE0, 199, "01"),
    ]
    expected = Attributes(
        origin=Origin.IGP,
        as_path=PATH,
        next_hop=ip_address("10.0.0.1"),
        med=10,
        local_pref=100,
        atomic_aggregate=True,
        aggregator=Aggregator(65536, ip_address("10.0.0.9")),  # type: ignore[arg-type]
        communities=(0xFDE90001, 0xFDE90002, 0xFFFFFF01),
        extended_communities=(octets("0002fde900000001"), octets("0002fde900000002")),
        large_communities=((65536, 1, 9), (65536, 2, 3)),
        originator_id=ip_address("10.0.0.2"),  # type: ignore[arg-type]
        cluster_list=(ip_address("10.0.0.3"), ip_address("10.0.0.4")),  # type: ignore[arg-type]
        unknown=(UnknownAttribute(0xE0, 199, b"\1"), UnknownAttribute(0xE0, 200, b"\2")),
    )
    assert one(update(path, "10.0.0.0/8"), INTERNAL) == expected
    assert one(update(reversed(path), "10.0.0.0/8"), INTERNAL) == expected
    extended = [attribute(octet[0], octet[1], octet[3:], extended=True) for octet in path]
    assert one(update(extended, "10.0.0.0/8"), INTERNAL) == expected


@pytest.mark.parametrize(
    ("hop", "next_hop", "link_local"),
    [
        (GLOBAL, "2001:db8::1", None),
        (GLOBAL + LINK_LOCAL, "2001:db8::1", "fe80::1"),
        (LINK_LOCAL, "fe80::1", None),
        (LINK_LOCAL + LINK_LOCAL, "fe80::1", "fe80::1"),
        (bytes(16) + LINK_LOCAL, "fe80::1", "fe80::1"),
        (GLOBAL + GLOBAL, "2001:db8::1", None),  # RFC 2545 has a link-local one there, or none
        (GLOBAL + bytes(16), "2001:db8::1", None),
    ],
)
@pytest.mark.parametrize("family", Family)
def test_next_hops_of_ipv6(hop: bytes, next_hop: str, link_local: str | None, family: Family) -> None:
    """Of IPv6 (RFC 2545), and of IPv4 where that was agreed on (RFC 8950)."""
    agreed = replace(EXTERNAL, extended_next_hops=frozenset((V4,)))
    text = "2001:db8:1::/48" if family is V6 else "10.0.0.0/8"
    found = one(update([mp_reach(hop, text, f"00 0{family.afi} 01"), ORIGIN, AS_PATH]), agreed)
    assert str(found.next_hop) == next_hop
    assert found.link_local == (None if link_local is None else ip_address(link_local))


def test_ipv4_in_the_multiprotocol_attribute() -> None:
    found = read(update([mp_reach(octets("0a000001"), "10.0.0.0/8", "00 01 01"), ORIGIN, AS_PATH]))
    assert found == read(update([ORIGIN, AS_PATH, NEXT_HOP], "10.0.0.0/8"))
    taken = read(update([mp_unreach("10.0.0.0/8", "00 01 01")]))
    assert taken == read(update(withdrawn="10.0.0.0/8"))


@pytest.mark.parametrize("first", [True, False])
def test_where_the_multiprotocol_attribute_stands_does_not_matter(first: bool) -> None:
    path = [ORIGIN, AS_PATH]
    reach = [mp_reach(GLOBAL, "2001:db8::/32 ::/0")]
    assert one(update([*reach, *path] if first else [*path, *reach])) == PLAIN6


def test_both_families_in_one_message() -> None:
    path = [ORIGIN, mp_unreach("2001:db8:9::/48"), AS_PATH, NEXT_HOP, mp_reach(GLOBAL, "2001:db8::/32")]
    found = read(update(path, "10.0.0.0/8", "10.9.0.0/16"))
    assert [(one.family, networks(one.family, one.prefixes)) for one in found.unreachable] == [
        (V4, ["10.9.0.0/16"]),
        (V6, ["2001:db8:9::/48"]),
    ]
    assert [(one.family, one.attributes) for one in found.reachable] == [(V4, PLAIN), (V6, PLAIN6)]


@pytest.mark.parametrize("agreed", [frozenset((V4,)), frozenset((V6,)), frozenset[Family]()])
def test_prefixes_of_a_family_that_was_not_agreed_on_are_ignored(agreed: frozenset[Family]) -> None:
    path = [ORIGIN, mp_unreach("2001:db8:9::/48"), AS_PATH, NEXT_HOP, mp_reach(GLOBAL, "2001:db8::/32")]
    found = read(update(path, "10.0.0.0/8", "10.9.0.0/16"), replace(EXTERNAL, families=agreed))
    assert {one.family for one in found.reachable} == {one.family for one in found.unreachable} == agreed
    assert {fault.code for fault in found.faults} == ({0} if V4 not in agreed else set()) | (
        {14, 15} if V6 not in agreed else set()
    )
    assert not any(fault.withdrawn for fault in found.faults)


def test_a_family_of_others_is_ignored_whatever_stands_there() -> None:
    broken = [mp_reach(b"", octets("ff ff ff"), "00 19 41"), mp_unreach(octets("ff"), "00 01 80"), ORIGIN, AS_PATH]
    found = read(update(broken))
    assert (found.reachable, found.unreachable, [fault.code for fault in found.faults]) == ((), (), [15, 14])
    found = read(update([*broken, attribute(0x80, 4, "00")]))
    assert [(fault.code, fault.withdrawn) for fault in found.faults] == [(15, False), (14, False), (4, True)]


# Prefixes


@pytest.mark.parametrize(
    ("field", "canonical"),
    [
        ("00", "00"),
        ("01 ff", "01 80"),
        ("07 0b", "07 0a"),
        ("08 0a", "08 0a"),
        ("09 0a ff", "09 0a 80"),
        ("17 0a ff ff", "17 0a ff fe"),
        ("1f 0a ff ff ff", "1f 0a ff ff fe"),
        ("20 0a ff ff ff", "20 0a ff ff ff"),
    ],
)
def test_bits_past_the_length_are_zero(field: str, canonical: str) -> None:
    found = read(update([ORIGIN, AS_PATH, NEXT_HOP], octets(field) * 2))
    assert found.reachable[0].prefixes == (octets(canonical),) * 2
    assert prefix_of(network_of(V4, octets(canonical))) == (V4, octets(canonical))


@pytest.mark.parametrize("length", range(129))
def test_prefixes_of_every_length(length: int) -> None:
    mine = prefix_of(ip_network(f"2001:db8:ffff:ffff:ffff:ffff:ffff:ffff/{length}", strict=False))[1]
    ones = bytes((length,)) + (b"\x20\x01\x0d\xb8" + b"\xff" * 12)[: (length + 7) // 8]
    (found,) = read(update([mp_reach(GLOBAL, ones + prefix("2001:db8::/32")), ORIGIN, AS_PATH])).reachable
    assert found.prefixes == (mine, prefix("2001:db8::/32"))


def test_add_path() -> None:
    agreed = replace(EXTERNAL, receives_paths=frozenset((V4,)))
    field = octets("00000001 08 0a  00000002 08 0a  ffffffff 19 c0000200")
    found = read(update([ORIGIN, AS_PATH, NEXT_HOP, mp_unreach("2001:db8::/32")], field, field), agreed)
    for come in (found.reachable[0], found.unreachable[0]):
        assert networks(V4, come.prefixes) == ["10.0.0.0/8", "10.0.0.0/8", "192.0.2.0/25"]
        assert come.path_ids == (1, 2, 0xFFFFFFFF)
    assert found.unreachable[1].path_ids == ()
    for broken in ("00", "00000001", "00000001 08", "00000001 21 0a00000000", "00000001 08 0a 00"):
        with pytest.raises(MessageError, match="3/10"):
            read(update([ORIGIN, AS_PATH, NEXT_HOP], octets(broken)), agreed)


# End-of-RIB


def test_end_of_rib() -> None:
    assert read(octets("0000 0000")) == Update(end_of_rib=V4)
    assert read(octets("0000 0006 80 0f 03 0002 01")) == Update(end_of_rib=V6)
    assert read(octets("0000 0007 90 0f 0003 0002 01")) == Update(end_of_rib=V6)
    assert read(octets("0000 0006 80 0f 03 0001 01")) == Update(end_of_rib=V4)


@pytest.mark.parametrize(
    "body",
    [
        update([mp_unreach(""), attribute(0xC0, 200, "")]),
        update([mp_unreach("")], withdrawn="10.0.0.0/8"),
        update([mp_unreach(""), ORIGIN, AS_PATH, NEXT_HOP], "10.0.0.0/8"),
        update([mp_unreach("", "00 19 46")]),
        update([mp_unreach("2001:db8::/32")]),
        update([ORIGIN]),
        update([mp_reach(GLOBAL, ""), ORIGIN, AS_PATH]),
    ],
)
def test_what_is_no_end_of_rib(body: bytes) -> None:
    assert read(body).end_of_rib is None


@pytest.mark.parametrize("family", Family)
def test_end_of_rib_is_written(family: Family) -> None:
    (found,) = sent([Writer(EXTERNAL).end_of_rib(family)])
    assert found == Update(end_of_rib=family)


# Numbers of two octets (RFC 6793)

TWO = replace(EXTERNAL, four_octets=False)
SEQUENCE, SET, CONFED = SegmentKind.SEQUENCE, SegmentKind.SET, SegmentKind.CONFED_SEQUENCE
T = 23456


def segments(*parts: str) -> tuple[Segment, ...]:
    """``1 2 3`` is a sequence, ``{1 2}`` a set, ``(1 2)`` a sequence of a confederation."""
    kinds = {"{": SET, "(": CONFED}
    return tuple(Segment(kinds.get(part[0], SEQUENCE), tuple(map(int, part.strip("{}()").split()))) for part in parts)


def value(parts: tuple[Segment, ...], width: int) -> bytes:
    return b"".join(as_path(*part.numbers, kind=part.kind, width=width) for part in parts)


@pytest.mark.parametrize(
    ("short", "long", "joined"),
    [
        (["1 2 3"], [], ["1 2 3"]),
        ([f"1 {T} 3"], ["1 70000 3"], ["1 70000 3"]),
        ([f"9 8 {T} 3"], ["70000 3"], ["9 8 70000 3"]),
        (["9"], ["70000 3"], ["9"]),  # longer: not of this route
        ([f"9 {T}", "{1 2}"], ["70000", "{1 2}"], ["9 70000", "{1 2}"]),
        (["9 8", "{1 2}"], ["70000"], ["9 8 70000"]),
        (["{1 2}", f"{T} 3"], ["70000 3"], ["{1 2}", "70000 3"]),
        (["(7 8)", f"9 {T}"], ["70000"], ["(7 8)", "9 70000"]),
        (["9", "(7 8)", f"{T}"], ["70000"], ["9", "(7 8)", "70000"]),
        (["9", f"{T}"], ["(5 6)", "70000"], ["9 70000"]),  # of a confederation: no part of AS4_PATH
        (["9"], ["(5 6)"], ["9"]),
        ([f"{T}"] * 3, ["70000 70001 70002"], ["70000 70001 70002"]),
    ],
)
def test_as4_path_is_joined_to_as_path(short: list[str], long: list[str], joined: list[str]) -> None:
    path = [ORIGIN, attribute(0x40, 2, value(segments(*short), 2)), NEXT_HOP, LOCAL_PREF]
    more = [attribute(0xC0, 17, value(segments(*long), 4))] if long else []
    for attributes in ([*path, *more], [*more, *path]):
        found = one(update(attributes, "10.0.0.0/8"), replace(TWO, external=False))
        assert found.as_path == segments(*joined)


@pytest.mark.parametrize(
    ("short", "long", "aggregator", "joined"),
    [
        ("fde9 0a000009", "", 65001, True),
        ("5ba0 0a000009", "00011170 0a000009", 70000, True),
        ("fde9 0a000009", "00011170 0a000009", 65001, False),  # made again by one who knows two octets alone
        ("5ba0 0a000009", "", T, True),
        ("", "00011170 0a000009", None, True),
        ("5ba0 0a000009", "00000000 0a000009", T, True),
    ],
)
def test_as4_aggregator_stands_for_as_trans(short: str, long: str, aggregator: int | None, joined: bool) -> None:
    path = [ORIGIN, attribute(0x40, 2, as_path(1, T, width=2)), NEXT_HOP, attribute(0xC0, 17, as_path(1, 70000))]
    path += [attribute(0xC0, 7, short)] * bool(short) + [attribute(0xC0, 18, long)] * bool(long)
    (reachable,) = read(update(path, "10.0.0.0/8"), TWO).reachable
    found = reachable.attributes.aggregator
    assert (found.asn if found else None) == aggregator
    assert reachable.attributes.as_path == segments("1 70000" if joined else f"1 {T}")


@pytest.mark.parametrize("broken", ["02", "02 00", "09 01 00011170", "02 02 00011170", "02 01 00000000", "02 01 1170"])
def test_a_malformed_as4_path_is_left_out(broken: str) -> None:
    path = [ORIGIN, attribute(0x40, 2, as_path(1, T, width=2)), NEXT_HOP, attribute(0xC0, 17, broken)]
    found = read(update(path, "10.0.0.0/8"), TWO)
    assert found.reachable[0].attributes.as_path == segments(f"1 {T}")
    assert [(fault.code, fault.withdrawn) for fault in found.faults] == [(17, False)]


def test_a_peer_of_two_octets_loses_no_number() -> None:
    attributes = replace(
        PLAIN,
        as_path=segments("1 70000", "{2 70001}"),
        aggregator=Aggregator(70000, ip_address("10.0.0.9")),  # type: ignore[arg-type]
    )
    messages = Writer(TWO).write(V4, attributes, [prefix("10.0.0.0/8")])
    (found,) = sent(messages, TWO)
    assert found.reachable[0].attributes == attributes
    assert isinstance(messages, list)
    assert as_path(1, T, width=2) + as_path(2, T, kind=1, width=2) in messages[0]


def test_a_peer_of_two_octets_gets_as4_path_only_where_it_must() -> None:
    messages = Writer(TWO).write(V4, PLAIN, [prefix("10.0.0.0/8")])
    path = attribute(0x40, 2, as_path(65001, 65002, width=2))
    assert messages == [update([ORIGIN, path, NEXT_HOP], "10.0.0.0/8", header=True)]


# Writing


def test_what_is_written() -> None:
    writer = Writer(EXTERNAL)
    assert writer.write(V4, PLAIN, [prefix("10.0.0.0/8")]) == [
        update([ORIGIN, AS_PATH, NEXT_HOP], "10.0.0.0/8", header=True)
    ]
    assert writer.write(V6, PLAIN6, [prefix("2001:db8::/32")]) == [
        update([mp_reach(GLOBAL, "2001:db8::/32"), ORIGIN, AS_PATH], header=True)
    ]
    both = replace(PLAIN6, link_local=ip_address("fe80::1"))
    assert writer.write(V6, both, [prefix("2001:db8::/32")]) == [
        update([mp_reach(GLOBAL + LINK_LOCAL, "2001:db8::/32"), ORIGIN, AS_PATH], header=True)
    ]
    assert writer.withdraw(V4, [prefix("10.0.0.0/8")]) == [update(withdrawn="10.0.0.0/8", header=True)]
    assert writer.withdraw(V6, [prefix("2001:db8::/32")]) == [update([mp_unreach("2001:db8::/32")], header=True)]
    assert writer.write(V4, PLAIN, []) == writer.withdraw(V4, []) == writer.withdraw(V6, []) == []
    assert writer.end_of_rib(V4) == message(2, bytes(4))


def test_path_identifiers_are_written_where_they_were_agreed_on() -> None:
    agreed = replace(EXTERNAL, sends_paths=frozenset((V6,)), receives_paths=frozenset((V6,)))
    writer, two = Writer(agreed), [prefix("2001:db8::/32")] * 2
    (found,) = sent(writer.write(V6, PLAIN6, two, (7, 9)), agreed)
    assert found.reachable[0].path_ids == (7, 9)
    (found,) = sent(writer.withdraw(V6, two), agreed)
    assert found.unreachable[0].path_ids == (0, 0)
    (found,) = sent(writer.write(V4, PLAIN, [prefix("10.0.0.0/8")], (7,)), agreed)
    assert found.reachable[0].path_ids == ()


@pytest.mark.parametrize("largest", [LARGEST, LARGEST_EXTENDED])
@pytest.mark.parametrize("paths", [True, False])
@pytest.mark.parametrize("family", Family)
def test_as_few_messages_as_hold_them(family: Family, paths: bool, largest: int) -> None:
    some = frozenset((family,)) if paths else frozenset[Family]()
    agreed = replace(EXTERNAL, largest_message=largest, receives_paths=some, sends_paths=some)
    base = 10 << 24 if family is V4 else 0x2001 << 112
    step = 1 << family.bits - 24
    given = [prefix_of(ip_network((base + step * index, 24)))[1] for index in range(40_000)]
    ids = tuple(range(len(given))) if paths else ()
    for messages in (
        Writer(agreed).write(family, PLAIN if family is V4 else PLAIN6, given, ids),
        Writer(agreed).withdraw(family, given, ids),
    ):
        found = sent(messages, agreed)
        parts: list[Reachable | Unreachable] = []
        for update_read in found:
            parts += update_read.reachable
            parts += update_read.unreachable
        assert [one for part in parts for one in part.prefixes] == given
        assert [one for part in parts for one in part.path_ids] == list(ids)
        assert isinstance(messages, list)
        size = 8 if paths else 4
        assert all(largest - size < len(one) <= largest for one in messages[:-1])


@pytest.mark.parametrize(
    ("attributes", "family", "reason"),
    [
        (replace(PLAIN, next_hop=None), V4, "no next hop"),
        (PLAIN, V6, "10.0.0.1"),
        (PLAIN6, V4, "2001:db8::1"),
        (replace(PLAIN, communities=tuple(range(1100))), V4, "octets"),
        (replace(PLAIN, as_path=(Segment(SEQUENCE, (70000,) * 20_000),)), V4, "octets"),
        (replace(PLAIN6, unknown=(UnknownAttribute(0xE0, 200, bytes(70_000)),)), V6, "octets"),
        (replace(PLAIN, med=1 << 32), V4, "value"),
    ],
)
def test_what_cannot_be_written_is_a_value(attributes: Attributes, family: Family, reason: str) -> None:
    text = "10.0.0.0/8" if family is V4 else "2001:db8::/32"
    found = Writer(EXTERNAL).write(family, attributes, [prefix(text)])
    assert isinstance(found, Unwritable)
    assert reason in found.reason


def test_the_largest_attributes_that_can_be_written() -> None:
    """Room for one prefix of any length stays: 21 octets."""
    for count in range(990, 1020):
        attributes = replace(PLAIN, communities=tuple(range(count)))
        found = Writer(EXTERNAL).write(V4, attributes, [prefix("10.0.0.1/32")] * 9)
        assert isinstance(found, Unwritable) == (23 + 4 + 13 + 7 + 4 + 4 * count + 21 > LARGEST), count
        if isinstance(found, list):
            assert {one.reachable[0].attributes for one in sent(found)} == {attributes}


def test_a_path_of_more_than_255_numbers_is_cut() -> None:
    attributes = replace(PLAIN, as_path=(Segment(SEQUENCE, tuple(range(1, 601))),))
    (found,) = sent(Writer(EXTERNAL).write(V4, attributes, [prefix("10.0.0.0/8")]))
    path = found.reachable[0].attributes.as_path
    assert [len(segment.numbers) for segment in path] == [255, 255, 90]
    assert [one for segment in path for one in segment.numbers] == list(range(1, 601))


# What a reader keeps


def test_equal_attributes_are_one_object() -> None:
    reader = Reader(EXTERNAL)
    first = reader.read(update([ORIGIN, AS_PATH, NEXT_HOP], "10.0.0.0/8")).reachable[0].attributes
    assert reader.read(update([ORIGIN, AS_PATH, NEXT_HOP], "11.0.0.0/8")).reachable[0].attributes is first
    six = [
        reader.read(update([mp_reach(GLOBAL, text), ORIGIN, AS_PATH])).reachable[0].attributes
        for text in ("2001:db8::/32", "2001:db9::/32")
    ]
    assert six[0] is six[1]


def test_next_hop_and_family_are_part_of_what_is_kept() -> None:
    """A block of attributes without its next hop is whole for IPv6, not for IPv4, and another one with another."""
    reader = Reader(EXTERNAL)
    path = [ORIGIN, AS_PATH]
    other = GLOBAL[:-1] + b"\2"
    for _ in range(2):
        assert not reader.read(update(path, "10.0.0.0/8")).reachable
        hops = [
            str(reader.read(update([mp_reach(hop, "2001:db8::/32"), *path])).reachable[0].attributes.next_hop)
            for hop in (GLOBAL, other)
        ]
        assert hops == ["2001:db8::1", "2001:db8::2"]


def test_what_is_kept_is_bounded() -> None:
    """A peer that sends a new set with each message has the oldest forgotten, and changes nothing else."""
    reader = Reader(replace(EXTERNAL, largest_message=LARGEST_EXTENDED))
    padding = attribute(0xC0, 200, bytes(60_000))
    cost = KEPT_ENTRY + KEPT_FACTOR * 60_000
    kept = []
    for index in range(2 * KEPT_OCTETS // cost + 2):
        path = [ORIGIN, AS_PATH, NEXT_HOP, attribute(0x80, 4, index.to_bytes(4, "big")), padding]
        found = reader.read(update(path, "10.0.0.0/8")).reachable[0].attributes
        assert found.med == index
        kept.append(len(reader._sets))
    assert max(kept) <= KEPT_OCTETS // cost < len(kept)
    assert 1 in kept[1:]


def test_prefixes_are_no_part_of_what_is_kept() -> None:
    reader = Reader(EXTERNAL)
    for index in range(2000):
        where = ip_network((0x20010DB8 << 96 | index << 80, 48))
        reader.read(update([mp_reach(GLOBAL, prefix_of(where)[1]), ORIGIN, AS_PATH]))
        reader.read(update([mp_unreach(prefix_of(where)[1]), ORIGIN, AS_PATH]))
    assert len(reader._sets) + len(reader._multiprotocol_sets) == 1


def floor(stream: bytes) -> int:
    """The least that a reader in Python can do: cut out messages, attributes and prefixes, and look at none of them."""
    table: dict[bytes, list[bytes]] = {}
    at = 0
    while at < len(stream):
        end = at + (stream[at + 16] << 8 | stream[at + 17])
        path = at + 23 + (stream[at + 21] << 8 | stream[at + 22])
        at += 23
        attributes = []
        while at < path:
            attributes.append(stream[at : at + 3 + stream[at + 2]])
            at += 3 + stream[at + 2]
        while at < end:
            size = 1 + (stream[at] + 7 >> 3)
            table[stream[at : at + size]] = attributes
            at += size
    return len(table)


def fill(table: dict[bytes, Attributes], reader: Reader, stream: bytes) -> None:
    for _, body in split(stream, LARGEST)[0]:
        for reachable in reader.read(body).reachable:
            table.update(dict.fromkeys(reachable.prefixes, reachable.attributes))


def table_of(stream: bytes) -> int:
    table: dict[bytes, Attributes] = {}
    fill(table, Reader(EXTERNAL), stream)
    return len(table)


def cpu_seconds(function: Callable[[bytes], int], stream: bytes) -> float:
    """The least of seven runs."""

    def run() -> None:
        assert function(stream) == 20_000

    return least(7, run)


def large_table() -> bytes:
    """Messages with five prefixes each, and attributes of their own."""
    bodies = [
        update(
            [
                ORIGIN,
                attribute(0x40, 2, as_path(65001, 3000 + index, 100_000 + index, 200_000 + index)),
                NEXT_HOP,
                attribute(0xC0, 8, bytes((0xFD, 0xE9, index >> 8, index & 0xFF, 0xFD, 0xE9, 0, 7))),
            ],
            b"".join(bytes((24, 16 + (index >> 13), index >> 5 & 0xFF, (index & 31) * 8 + part)) for part in range(5)),
        )
        for index in range(4000)
    ]
    return b"".join(message(2, body) for body in bodies)


def test_a_prefix_takes_little_memory() -> None:
    """400 octets, with its part of its attributes and its place in a table: 40 MB for 100,000."""
    stream = large_table()
    reader, table = Reader(EXTERNAL), dict[bytes, Attributes]()
    tracemalloc.start()
    try:
        fill(table, reader, stream)
        assert tracemalloc.get_traced_memory()[0] < 400 * len(table)
    finally:
        tracemalloc.stop()


def test_reading_a_table_costs_a_small_multiple_of_cutting_it() -> None:
    stream = large_table()
    assert cpu_seconds(table_of, stream) < 15 * cpu_seconds(floor, stream)


def test_prefixes_of_the_wire_are_those_of_networks() -> None:
    text = "0.0.0.0/0 10.0.0.0/8 192.0.2.128/25 255.255.255.255/32"
    found = read(update([ORIGIN, AS_PATH, NEXT_HOP], text)).reachable[0].prefixes
    assert networks(V4, found) == text.split()
    assert b"".join(found) == prefixes(text)


@given(st.lists(st.tuples(st.sampled_from([1, 2, 3, 8, 14, 15]), st.booleans(), st.binary(max_size=20)), max_size=5))
def test_multiprotocol_attributes_are_seen_where_they_are_cut_out(
    parts: list[tuple[int, bool, bytes]],
) -> None:
    octets = b"".join(
        bytes((0x90 if extended else 0x80, code)) + len(value).to_bytes(2 if extended else 1) + value
        for code, extended, value in parts
    )
    codes = {code for code, _, _ in parts} & {14, 15}
    assert has_multiprotocol(octets) is bool(codes)
    if not codes:
        assert cut_out(octets) == ({}, octets)


@pytest.mark.parametrize(
    "octets", [b"\x80", b"\x80\x0e", b"\x90\x01\x0f", b"\x80\x01\x0f\x0e", b"\x90\x01\x00\x0e\x0f"]
)
def test_attributes_that_end_too_soon_are_read_closely(octets: bytes) -> None:
    assert has_multiprotocol(octets) is (14 in octets or 15 in octets)
