"""Whatever attributes and prefixes there are: written and read again they are the same, and so are the octets."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from hypothesis import given
from hypothesis import strategies as st

from services.routing.core.bgp.codec.messages import LARGEST_EXTENDED, split
from services.routing.core.bgp.codec.updates import Unwritable, UpdateReader, UpdateWriter
from services.routing.core.bgp.values import (
    Aggregator,
    Agreed,
    Attributes,
    Family,
    Origin,
    Segment,
    SegmentKind,
    UnknownAttribute,
    Update,
    prefix_of,
)

NUMBER = st.sampled_from((1, 255, 256, 23456, 65535, 65536, 70000, 2**32 - 1))
COMMUNITY = st.sampled_from((0, 1, 0xFDE90001, 0xFFFFFF01, 2**32 - 1))
UNKNOWN = st.builds(UnknownAttribute, st.just(0xE0), st.sampled_from((0, 11, 19, 35, 255)), st.binary(max_size=3))
LONG = UnknownAttribute(0xE0, 128, bytes(300))
V4_HOSTS = st.sampled_from([IPv4Address(one) for one in ("1.0.0.1", "10.0.0.1", "192.0.2.1", "223.255.255.255")])
V6_HOSTS = st.sampled_from([IPv6Address(one) for one in ("2001:db8::1", "fe80::1", "::ffff:10.0.0.1", "fd00::9")])
LINK_LOCALS = st.sampled_from([None, IPv6Address("fe80::1"), IPv6Address("febf::ffff")])
NUMBERS = st.lists(NUMBER, min_size=1, max_size=4).map(tuple) | st.just((70000,) * 255)
EXTENDED = st.lists(st.binary(min_size=8, max_size=8), max_size=3, unique=True)
LARGE = st.lists(st.tuples(COMMUNITY, COMMUNITY, COMMUNITY), max_size=3, unique=True)
PREFIXES = {
    family: st.lists(
        st.tuples(st.integers(0, 2**family.bits - 1), st.integers(0, family.bits)).map(
            lambda pair, kind=kind: prefix_of(kind(pair, strict=False))[1]  # type: ignore[misc]
        ),
        min_size=1,
        max_size=9,
    )
    for family, kind in ((Family.IPV4, IPv4Network), (Family.IPV6, IPv6Network))
}
FAMILIES = st.frozensets(st.sampled_from(Family))
SESSIONS = st.builds(
    lambda paths, **more: Agreed(families=frozenset(Family), receives_paths=paths, sends_paths=paths, **more),
    paths=FAMILIES,
    four_octets=st.booleans(),
    external=st.booleans(),
    largest_message=st.sampled_from((4096, LARGEST_EXTENDED)),
    extended_next_hops=st.sampled_from((frozenset[Family](), frozenset((Family.IPV4,)))),
)
INTERNET = st.lists(st.builds(Segment, st.sampled_from((SegmentKind.SET, SegmentKind.SEQUENCE)), NUMBERS), max_size=3)
ANY = st.lists(st.builds(Segment, st.sampled_from(SegmentKind), NUMBERS), max_size=3)


@st.composite
def attributes(draw: st.DrawFn, agreed: Agreed, family: Family) -> Attributes:
    """Segments of a confederation only where nothing of them can be lost: to internal peers, with four octets."""
    plain = family is Family.IPV4 and not (bool(agreed.extended_next_hops) and draw(st.booleans()))
    internal = not agreed.external
    return Attributes(
        origin=draw(st.sampled_from(Origin)),
        as_path=tuple(draw(ANY if agreed.four_octets and internal else INTERNET)),
        next_hop=draw(V4_HOSTS) if plain else draw(V6_HOSTS),
        link_local=None if plain else draw(LINK_LOCALS),
        med=draw(st.none() | COMMUNITY),
        local_pref=draw(COMMUNITY) if internal else None,
        atomic_aggregate=draw(st.booleans()),
        aggregator=draw(st.none() | st.builds(Aggregator, NUMBER, V4_HOSTS)),
        communities=draw(st.just(tuple(range(90))) | st.frozensets(COMMUNITY).map(lambda one: tuple(sorted(one)))),
        extended_communities=tuple(sorted(draw(EXTENDED))),
        large_communities=tuple(sorted(draw(LARGE))),
        originator_id=draw(st.none() | V4_HOSTS) if internal else None,
        cluster_list=tuple(draw(st.lists(V4_HOSTS, max_size=3))) if internal else (),
        unknown=draw(st.sampled_from(((), (LONG,))) | UNKNOWN.map(lambda one: tuple(sorted((one, LONG), key=by_code)))),
    )


def by_code(one: UnknownAttribute) -> int:
    return one.code


def reread(messages: list[bytes], agreed: Agreed) -> list[Update]:
    reader = UpdateReader(agreed)
    return [reader.read(body) for one in messages for _, body in split(one, agreed.largest_message)[0]]


@given(st.data())
def test_what_is_written_is_read(data: st.DataObject) -> None:
    agreed, family = data.draw(SESSIONS), data.draw(st.sampled_from(Family))
    given_attributes, prefixes = data.draw(attributes(agreed, family)), data.draw(PREFIXES[family])
    numbered = family in agreed.sends_paths
    ids = tuple(data.draw(st.lists(COMMUNITY, min_size=len(prefixes), max_size=len(prefixes)))) if numbered else ()
    writer = UpdateWriter(agreed)
    messages = writer.write(family, given_attributes, prefixes, ids)
    if isinstance(messages, Unwritable):  # drawn longer than a message: two octets a number, and four again
        assert "too many for 4096" in messages.reason
        assert sum(len(segment.numbers) for segment in given_attributes.as_path) > 200
        return
    found = reread(messages, agreed)
    assert [one.faults for one in found] == [()] * len(messages)
    parts = [part for one in found for part in one.reachable]
    assert [(part.family, part.attributes) for part in parts] == [(family, given_attributes)] * len(messages)
    assert [prefix for part in parts for prefix in part.prefixes] == prefixes
    assert [number for part in parts for number in part.path_ids] == list(ids)
    assert [
        again for part in parts for again in written(writer, part.family, part.attributes, part.prefixes, part.path_ids)
    ] == messages


def written(
    writer: UpdateWriter, family: Family, found: Attributes, prefixes: tuple[bytes, ...], ids: tuple[int, ...]
) -> list[bytes]:
    messages = writer.write(family, found, prefixes, ids)
    assert isinstance(messages, list)
    return messages


@given(st.data())
def test_what_is_taken_back_is_read(data: st.DataObject) -> None:
    agreed, family = data.draw(SESSIONS), data.draw(st.sampled_from(Family))
    prefixes = data.draw(PREFIXES[family])
    ids = tuple(range(7, 7 + len(prefixes))) if family in agreed.sends_paths else ()
    found = reread(UpdateWriter(agreed).withdraw(family, prefixes, ids), agreed)
    assert all(one == replace(Update(), unreachable=one.unreachable) for one in found)
    parts = [part for one in found for part in one.unreachable]
    assert [prefix for part in parts for prefix in part.prefixes] == prefixes
    assert [number for part in parts for number in part.path_ids] == list(ids)
    assert {part.family for part in parts} == {family}
