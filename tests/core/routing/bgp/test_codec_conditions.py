"""RFC 7606 condition by condition: each attribute, each way to be wrong, external and internal peers, both families.

The rows are the conditions of FRR's conformance suite (58 that withdraw, 26 that leave an attribute out), with NEXT_HOP
and LOCAL_PREF by their octets. Where FRR understands an attribute that is not understood by this speaker (PMSI_TUNNEL,
TUNNEL_ENCAP, AIGP, BGP-LS, OTC, Prefix-SID, NHC, IPv6 communities), nothing in it may matter (VU#347067): it goes on
with the Partial bit, or is dropped where it is not transitive.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from services.routing.core.bgp.codec.messages import MessageError
from services.routing.core.bgp.codec.updates import UpdateReader
from services.routing.core.bgp.values import Agreed, Attributes, Family, UnknownAttribute, Update
from tests.core.routing.bgp.wire import (
    AS_PATH,
    GLOBAL,
    LOCAL_PREF,
    NEXT_HOP,
    ORIGIN,
    attribute,
    mp_reach,
    mp_unreach,
    octets,
    prefixes,
    update,
)

WITHDRAW, DISCARD, PASS_ON, DROP = "withdraw", "discard", "pass on", "drop"
PREFIXES = {Family.IPV4: "192.0.2.0/24 198.51.100.0/25", Family.IPV6: "2001:db8:1::/48 2001:db8:2::/64"}
BASE = {1: ORIGIN, 2: AS_PATH, 3: NEXT_HOP}
SHOULD_BE = {1: 5, 2: 11, 3: 5, 4: 5, 5: 5, 8: 9, 9: 9, 10: 9, 16: 9, 32: 9}
"""Subcode of the NOTIFICATION for a malformed value (RFC 4271 6.3), by attribute, where no row says another."""


@dataclass(frozen=True)
class Condition:
    name: str
    code: int
    flags: int
    value: str
    external: str
    internal: str
    subcode: int
    """Of the NOTIFICATION where there is nothing to withdraw."""


def rows(text: str) -> list[Condition]:
    """Name, type code, flags, value (``-``: empty), outcome (external/internal where they differ), special subcode."""
    found = []
    for row in text.strip().splitlines():
        name, code, flags, value, outcome, *subcode = (one.strip() for one in row.split("|"))
        external, _, internal = outcome.partition("/")
        number = int(code, 0)
        found.append(
            Condition(
                name,
                number,
                int(flags, 16),
                "" if value == "-" else value,
                external,
                internal or external,
                4 if "flag" in name else int(subcode[0]) if subcode else SHOULD_BE.get(number, 0),
            )
        )
    return found


CONDITIONS = rows(
    """
    origin-flag-optional       |  1 | c0 | 00                  | withdraw
    origin-flag-partial        |  1 | 60 | 00                  | withdraw
    origin-flag-intransitive   |  1 | 00 | 00                  | withdraw
    origin-empty               |  1 | 40 | -                   | withdraw
    origin-2-octets            |  1 | 40 | 00 00               | withdraw
    origin-3                   |  1 | 40 | 03                  | withdraw | 6
    origin-4                   |  1 | 40 | 04                  | withdraw | 6
    origin-255                 |  1 | 40 | ff                  | withdraw | 6
    as-path-flag-optional      |  2 | c0 | 02 01 0000fde9      | withdraw
    as-path-flag-partial       |  2 | 60 | 02 01 0000fde9      | withdraw
    as-path-segment-0          |  2 | 40 | 00 01 0000fde9      | withdraw
    as-path-segment-5          |  2 | 40 | 05 01 0000fde9      | withdraw
    as-path-no-numbers         |  2 | 40 | 02 00               | withdraw
    as-path-overrun            |  2 | 40 | 02 ff 0000fde9      | withdraw
    as-path-one-octet-left     |  2 | 40 | 02 01 0000fde9 02   | withdraw
    as-path-number-0           |  2 | 40 | 02 01 00000000      | withdraw
    as-path-number-0-in-set    |  2 | 40 | 02 01 0000fde9 01 02 0000fdea 00000000 | withdraw
    as-path-confederation      |  2 | 40 | 03 01 0000fde9      | withdraw/keep
    as-path-confed-set         |  2 | 40 | 04 01 0000fde9      | withdraw/keep
    med-flag-transitive        |  4 | c0 | 0000000a            | withdraw
    med-flag-partial           |  4 | a0 | 0000000a            | withdraw
    med-empty                  |  4 | 80 | -                   | withdraw
    med-3-octets               |  4 | 80 | 000000              | withdraw
    med-5-octets               |  4 | 80 | 000000000a          | withdraw
    local-pref-empty           |  5 | 40 | -                   | discard/withdraw
    local-pref-3-octets        |  5 | 40 | 000000              | discard/withdraw
    local-pref-5-octets        |  5 | 40 | 0000000064          | discard/withdraw
    local-pref-whole           |  5 | 40 | 000000c8            | discard/keep
    local-pref-flag-optional   |  5 | c0 | 00000064            | withdraw
    atomic-aggregate-1-octet   |  6 | 40 | 00                  | discard
    atomic-aggregate-flag-opt  |  6 | c0 | -                   | withdraw
    aggregator-empty           |  7 | c0 | -                   | discard
    aggregator-5-octets        |  7 | c0 | 0000fde90a          | discard
    aggregator-2-octet-number  |  7 | c0 | fde9 0a000002       | discard
    aggregator-7-octets        |  7 | c0 | 0000fde90a0000      | discard
    aggregator-9-octets        |  7 | c0 | 0000fde90a00000200  | discard
    aggregator-number-0        |  7 | c0 | 000000000a000002    | discard
    aggregator-flag-intrans    |  7 | 80 | 0000fde90a000002    | withdraw
    communities-flag-intrans   |  8 | 80 | ffff0001            | withdraw
    communities-empty          |  8 | c0 | -                   | withdraw
    communities-5-octets       |  8 | c0 | ffff000100          | withdraw
    originator-id-empty        |  9 | 80 | -                   | discard/withdraw
    originator-id-3-octets     |  9 | 80 | 0a0000              | discard/withdraw
    originator-id-5-octets     |  9 | 80 | 0a00000200          | discard/withdraw
    originator-id-whole        |  9 | 80 | 0a000002            | discard/keep
    originator-id-flag-trans   |  9 | c0 | 0a000002            | withdraw
    cluster-list-empty         | 10 | 80 | -                   | discard/withdraw
    cluster-list-5-octets      | 10 | 80 | 0a00000200          | discard/withdraw
    cluster-list-whole         | 10 | 80 | 0a0000020a000003    | discard/keep
    cluster-list-flag-trans    | 10 | c0 | 0a000002            | withdraw
    ext-communities-flag-intr  | 16 | 80 | 0002fde900000001    | withdraw
    ext-communities-empty      | 16 | c0 | -                   | withdraw
    ext-communities-9-octets   | 16 | c0 | 0002fde90000000100  | withdraw
    as4-path-flag-intransitive | 17 | 80 | 02 01 00010001      | withdraw
    as4-path-segment-0         | 17 | c0 | 00 01 00010001      | discard
    as4-path-whole             | 17 | c0 | 02 01 00010001      | discard
    as4-path-number-0          | 17 | c0 | 02 01 00000000      | discard
    as4-aggregator-7-octets    | 18 | c0 | 0000fde90a0000      | discard
    as4-aggregator-9-octets    | 18 | c0 | 0000fde90a00000200  | discard
    as4-aggregator-flag-intr   | 18 | 80 | 0000fde90a000002    | withdraw
    large-comm-flag-intrans    | 32 | 80 | 0000fde90000000100000002   | withdraw
    large-comm-empty           | 32 | c0 | -                          | withdraw
    large-comm-13-octets       | 32 | c0 | 0000fde9000000010000000200 | withdraw
    pmsi-flag-intransitive     | 22 | 80 | 00060000000a000002   | drop
    pmsi-4-octets              | 22 | c0 | 00060000             | pass on
    pmsi-type-8                | 22 | c0 | 00080000000a000002   | pass on
    pmsi-type-255              | 22 | c0 | 00ff0000000a000002   | pass on
    pmsi-10-octets             | 22 | c0 | 00060000000a00000200 | pass on
    encap-flag-intransitive    | 23 | 80 | 00070000             | drop
    encap-3-octets             | 23 | c0 | 000700               | pass on
    encap-outer-length         | 23 | c0 | 0007000401           | pass on
    encap-sub-tlv-overrun      | 23 | c0 | 0007000401ff         | pass on
    ipv6-comm-flag-intrans     | 25 | 80 | 000220010db80000000000000000000000010001   | drop
    ipv6-comm-empty            | 25 | c0 | -                    | pass on
    ipv6-comm-21-octets        | 25 | c0 | 000220010db8000000000000000000000001000100 | pass on
    aigp-transitive            | 26 | c0 | 01000b0000000000000000000a | pass on
    aigp-unknown-tlv           | 26 | 80 | 09000b0000000000000000000a | drop
    aigp-tlv-length            | 26 | 80 | 0100050000000000000000000a | drop
    aigp-empty                 | 26 | 80 | -                    | drop
    link-state-transitive      | 29 | c0 | 0400000100           | pass on
    link-state-overrun         | 29 | 80 | 040000ff00           | drop
    link-state-truncated       | 29 | 80 | 0400                 | drop
    otc-flag-intransitive      | 35 | 80 | 0000fde9             | drop
    otc-3-octets               | 35 | c0 | 0000fd               | pass on
    otc-5-octets               | 35 | c0 | 0000fde900           | pass on
    otc-0                      | 35 | c0 | 00000000             | pass on
    nhc-family                 | 39 | c0 | 00ff010001000100     | pass on
    nhc-overrun                | 39 | c0 | 0001010001ff00       | pass on
    prefix-sid-flag-intrans    | 40 | 80 | 010007000000000001   | drop
    prefix-sid-overrun         | 40 | c0 | 0100ff000000         | pass on
    prefix-sid-truncated       | 40 | c0 | 0100                 | pass on
    prefix-sid-label-index     | 40 | c0 | 010000               | pass on
    unknown-intransitive       | 0xfd | 80 | deadbeef           | drop
    unknown-partial-intrans    | 0xfd | a0 | deadbeef           | drop
    unknown-transitive         | 0xfe | c0 | deadbeef           | pass on
    unknown-partial            | 0xfe | e0 | deadbeef           | pass on
    unknown-low-bits           | 0xfe | cf | deadbeef           | pass on
    unknown-empty              | 0xfe | c0 | -                  | pass on
    reserved-0                 | 0    | c0 | 00                 | pass on
    """
)
NEXT_HOPS = rows(
    """
    next-hop-flag-optional     |  3 | c0 | 0a000001            | withdraw
    next-hop-flag-partial      |  3 | 60 | 0a000001            | withdraw
    next-hop-empty             |  3 | 40 | -                   | withdraw
    next-hop-1-octet           |  3 | 40 | 0a                  | withdraw
    next-hop-3-octets          |  3 | 40 | 0a0000              | withdraw
    next-hop-5-octets          |  3 | 40 | 0a00000100          | withdraw
    next-hop-16-octets         |  3 | 40 | 20010db8000000000000000000000001 | withdraw
    next-hop-zero              |  3 | 40 | 00000000            | withdraw | 8
    next-hop-zero-network      |  3 | 40 | 00000001            | withdraw | 8
    next-hop-loopback          |  3 | 40 | 7f000001            | withdraw | 8
    next-hop-multicast         |  3 | 40 | e0000001            | withdraw | 8
    next-hop-reserved          |  3 | 40 | f0000001            | withdraw | 8
    next-hop-broadcast         |  3 | 40 | ffffffff            | withdraw | 8
    """
)


def reader(external: bool) -> UpdateReader:
    return UpdateReader(Agreed(families=frozenset(Family), four_octets=True, external=external))


def body(attributes: dict[int, bytes], external: bool, family: Family | None) -> bytes:
    """An UPDATE with these and all that must be there; ``family`` None: without prefixes."""
    path = (BASE if external else BASE | {5: LOCAL_PREF}) | attributes
    if family is Family.IPV4:
        return update(path.values(), PREFIXES[family])
    if family is Family.IPV6:
        return update([mp_reach(GLOBAL, PREFIXES[family]), *(path[code] for code in path if code != 3)])
    return update(path.values())


def clean(external: bool, family: Family) -> Attributes:
    (found,) = reader(external).read(body({}, external, family)).reachable
    return found.attributes


def announced(read: Update, family: Family) -> Attributes:
    """The attributes of the prefixes, all of which are reachable."""
    assert read.unreachable == ()
    (found,) = read.reachable
    assert (found.family, b"".join(found.prefixes)) == (family, prefixes(PREFIXES[family]))
    return found.attributes


def check_withdrawn(read: Update, family: Family, code: int) -> None:
    assert read.reachable == ()
    (found,) = read.unreachable
    assert (found.family, b"".join(found.prefixes)) == (family, prefixes(PREFIXES[family]))
    assert [(fault.code, fault.withdrawn) for fault in read.faults] == [(code, True)]


def check(condition: Condition, external: bool, family: Family) -> None:
    one = attribute(condition.flags, condition.code, condition.value)
    session = reader(external)
    read = session.read(body({condition.code: one}, external, family))
    outcome = condition.external if external else condition.internal
    base = clean(external, family)
    if outcome == WITHDRAW:
        check_withdrawn(read, family, condition.code)
    elif outcome == DISCARD:
        assert announced(read, family) == base
        assert [(fault.code, fault.withdrawn) for fault in read.faults] == [(condition.code, False)]
    elif outcome == PASS_ON:
        kept = UnknownAttribute(0xE0, condition.code, octets(condition.value))
        assert announced(read, family) == replace(base, unknown=(kept,))
        assert read.faults == ()
    elif outcome == DROP:
        assert (announced(read, family), read.faults) == (base, ())
    else:
        assert outcome == "keep"
        assert announced(read, family) != base
        assert read.faults == ()
    assert session.read(body({}, external, family)) == reader(external).read(body({}, external, family))


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("external", [True, False], ids=["external", "internal"])
@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda one: str(one.name))
def test_a_condition(condition: Condition, external: bool, family: Family) -> None:
    check(condition, external, family)


@pytest.mark.parametrize("external", [True, False], ids=["external", "internal"])
@pytest.mark.parametrize("condition", NEXT_HOPS, ids=lambda one: str(one.name))
def test_a_condition_of_next_hop(condition: Condition, external: bool) -> None:
    check(condition, external, Family.IPV4)


@pytest.mark.parametrize("condition", [one for one in NEXT_HOPS if one.subcode != 4], ids=lambda one: str(one.name))
def test_next_hop_beside_mp_reach_is_not_looked_at(condition: Condition) -> None:
    one = attribute(condition.flags, 3, condition.value)
    read = reader(True).read(update([mp_reach(GLOBAL, PREFIXES[Family.IPV6]), ORIGIN, AS_PATH, one]))
    assert (announced(read, Family.IPV6), read.faults) == (clean(True, Family.IPV6), ())


@pytest.mark.parametrize("external", [True, False], ids=["external", "internal"])
@pytest.mark.parametrize("condition", CONDITIONS + NEXT_HOPS, ids=lambda one: str(one.name))
def test_what_would_withdraw_ends_the_session_where_nothing_is_reachable(condition: Condition, external: bool) -> None:
    """RFC 7606 5.2; and what would not, does not."""
    message = body({condition.code: attribute(condition.flags, condition.code, condition.value)}, external, None)
    if (condition.external if external else condition.internal) != WITHDRAW:
        read = reader(external).read(message)
        assert (read.reachable, read.unreachable) == ((), ())
        return
    with pytest.raises(MessageError) as caught:
        reader(external).read(message)
    assert (caught.value.code, caught.value.subcode) == (3, condition.subcode)
    assert caught.value.content == attribute(condition.flags, condition.code, condition.value)


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("external", [True, False], ids=["external", "internal"])
@pytest.mark.parametrize("missing", [1, 2, 3, 5])
def test_what_must_be_there_is_missing(missing: int, external: bool, family: Family) -> None:
    path = BASE if external else BASE | {5: LOCAL_PREF}
    rest = [one for code, one in path.items() if code not in (missing, 3 if family is Family.IPV6 else 0)]
    if family is Family.IPV4:
        read = reader(external).read(update(rest, PREFIXES[family]))
    else:
        read = reader(external).read(update([mp_reach(GLOBAL, PREFIXES[family]), *rest]))
    if (missing == 5 and external) or (missing == 3 and family is Family.IPV6):
        assert (announced(read, family), read.faults) == (clean(external, family), ())
    else:
        check_withdrawn(read, family, missing)


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 16, 17, 18, 32, 0xFE])
@pytest.mark.parametrize("external", [True, False], ids=["external", "internal"])
def test_a_second_copy_is_left_out(code: int, external: bool) -> None:
    """RFC 7606 3 g: whatever stands in it; the first one counts."""
    first = {
        1: ORIGIN,
        2: AS_PATH,
        3: NEXT_HOP,
        4: attribute(0x80, 4, "00000005"),
        5: LOCAL_PREF,
        6: attribute(0x40, 6, ""),
        7: attribute(0xC0, 7, "0000fde9 0a000001"),
        8: attribute(0xC0, 8, "fde90001"),
        9: attribute(0x80, 9, "0a000001"),
        10: attribute(0x80, 10, "0a000001"),
        16: attribute(0xC0, 16, "0002fde900000001"),
        17: attribute(0xC0, 17, "02 01 00010001"),
        18: attribute(0xC0, 18, "0001 0001 0a000001"),
        32: attribute(0xC0, 32, "000000010000000200000003"),
        0xFE: attribute(0xC0, 0xFE, "01"),
    }[code]
    path = (BASE if external else BASE | {5: LOCAL_PREF}) | {code: first}
    once = reader(external).read(update(path.values(), "10.0.0.0/8"))
    twice = reader(external).read(update([*path.values(), attribute(0xC0, code, "ff")], "10.0.0.0/8"))
    assert twice.reachable == once.reachable != ()
    assert [(fault.code, fault.withdrawn) for fault in twice.faults] == [(code, False)]


def test_thousands_of_copies_are_one_fault() -> None:
    copies = [attribute(0xC0, 0xFE, "")] * 20_000
    read = reader(True).read(update([*BASE.values(), *copies], "10.0.0.0/8"))
    assert len(read.faults) == 1


@pytest.mark.parametrize("flags", [0x00, 0x40, 0x60, 0x50, 0x20])
@pytest.mark.parametrize("code", [11, 19, 21, 128, 255, 0])
def test_an_unknown_well_known_attribute_ends_the_session(code: int, flags: int) -> None:
    """RFC 4271 6.3, which RFC 7606 leaves as it is; with prefixes, and without."""
    one = attribute(flags & ~0x10, code, "de ad", extended=bool(flags & 0x10))
    for reachable in ("10.0.0.0/8", ""):
        with pytest.raises(MessageError) as caught:
            reader(True).read(update([*BASE.values(), one], reachable))
        assert (caught.value.code, caught.value.subcode, caught.value.content) == (3, 2, one)


@pytest.mark.parametrize(
    ("tail", "code"),
    [
        ("80", 0),  # flags alone
        ("80 04", 0),
        ("90 04 00", 0),  # extended, without its second octet
        ("80 04 05 00 00 00 0a", 4),
        ("80 04 ff", 4),
        ("90 04 ff ff 00 00 00 0a", 4),
        ("c0 fe 01", 0xFE),
        ("40 0f ff 00", 15),
    ],
)
@pytest.mark.parametrize("family", Family)
def test_attributes_that_are_longer_than_their_whole_length_withdraw(tail: str, code: int, family: Family) -> None:
    """RFC 7606 4: the whole length says where the prefixes are."""
    path = [ORIGIN, AS_PATH, NEXT_HOP]
    if family is Family.IPV4:
        read = reader(True).read(update([*path, octets(tail)], PREFIXES[family]))
    else:
        read = reader(True).read(update([mp_reach(GLOBAL, PREFIXES[family]), *path, octets(tail)]))
    check_withdrawn(read, family, code)


def test_what_stands_after_an_overrun_is_missing() -> None:
    """The prefixes of an MP_REACH_NLRI behind it are never seen: nothing can be withdrawn, and the session ends."""
    message = update([ORIGIN, octets("40 02 ff"), mp_reach(GLOBAL, "2001:db8::/32")])
    with pytest.raises(MessageError) as caught:
        reader(True).read(message)
    assert (caught.value.code, caught.value.subcode) == (3, 5)


@pytest.mark.parametrize(
    ("fields", "subcode"),
    [
        # lengths that contradict each other
        (octets(""), 1),
        (octets("00 00 00"), 1),
        (octets("00 01 00 00"), 1),
        (octets("ff ff 00 00"), 1),
        (octets("00 00 00 01"), 1),
        (octets("00 00 ff ff 00"), 1),
        (octets("00 01 08 00"), 1),
        # prefixes
        (update([], withdrawn=octets("21 0a 00 00 00 00")), 10),
        (update([], withdrawn=octets("18 0a 00")), 10),
        (update([], withdrawn=octets("08 0a 20 0a")), 10),
        (update([ORIGIN, AS_PATH, NEXT_HOP], octets("21 0a 00 00 00 00")), 10),
        (update([ORIGIN, AS_PATH, NEXT_HOP], octets("ff")), 10),
        (update([ORIGIN, AS_PATH, NEXT_HOP], octets("18 0a 00")), 10),
        (update([ORIGIN, AS_PATH, NEXT_HOP], octets("08 0a 01")), 10),
        (update([mp_reach(GLOBAL, octets("81" + "00" * 17)), ORIGIN, AS_PATH]), 10),
        (update([mp_reach(GLOBAL, octets("20 20 01")), ORIGIN, AS_PATH]), 10),
        (update([mp_unreach(octets("81" + "00" * 17))]), 10),
        (update([mp_unreach(octets("ff"))]), 10),
        # multiprotocol attributes
        (update([mp_reach(GLOBAL, "2001:db8::/32")] * 2 + [ORIGIN, AS_PATH]), 1),
        (update([mp_unreach("2001:db8::/32")] * 2), 1),
        (update([attribute(0x80, 14, "")]), 9),
        (update([attribute(0x80, 14, "00 02 01 00")]), 9),
        (update([attribute(0x80, 14, "00 02 01 ff 00")]), 9),
        (update([attribute(0x80, 14, "00 02 01 10" + "00" * 16)]), 9),
        (update([mp_reach(b"", "2001:db8::/32"), ORIGIN, AS_PATH]), 9),
        (update([mp_reach(GLOBAL[:4], "2001:db8::/32"), ORIGIN, AS_PATH]), 9),
        (update([mp_reach(GLOBAL + GLOBAL[:8], "2001:db8::/32"), ORIGIN, AS_PATH]), 9),
        (update([mp_reach(GLOBAL * 3, "2001:db8::/32"), ORIGIN, AS_PATH]), 9),
        (update([mp_reach(GLOBAL, "10.0.0.0/8", "00 01 01"), ORIGIN, AS_PATH]), 9),  # RFC 8950 was not agreed on
        (update([attribute(0x80, 15, "")]), 9),
        (update([attribute(0x80, 15, "00 02")]), 9),
    ],
)
@pytest.mark.parametrize("external", [True, False], ids=["external", "internal"])
def test_the_session_ends(fields: bytes, subcode: int, external: bool) -> None:
    with pytest.raises(MessageError) as caught:
        reader(external).read(fields)
    assert (caught.value.code, caught.value.subcode) == (3, subcode)


@pytest.mark.parametrize("flags", [0xC0, 0x40, 0x00, 0xA0])
def test_multiprotocol_attributes_with_wrong_flags_withdraw(flags: int) -> None:
    path = [ORIGIN, AS_PATH]
    read = reader(True).read(update([mp_reach(GLOBAL, PREFIXES[Family.IPV6], flags=flags), *path]))
    check_withdrawn(read, Family.IPV6, 14)
    read = reader(True).read(update([mp_unreach(PREFIXES[Family.IPV6], flags=flags)]))
    check_withdrawn(read, Family.IPV6, 15)
    with pytest.raises(MessageError, match="3/4"):
        reader(True).read(update([mp_reach(GLOBAL, "", flags=flags), *path]))


@pytest.mark.parametrize("hop", ["::", "::1", "ff02::1"])
def test_a_next_hop_that_is_no_host_withdraws(hop: str) -> None:
    raw = {"::": bytes(16), "::1": bytes(15) + b"\1", "ff02::1": octets("ff02" + "00" * 13 + "01")}[hop]
    read = reader(True).read(update([mp_reach(raw, PREFIXES[Family.IPV6]), ORIGIN, AS_PATH]))
    check_withdrawn(read, Family.IPV6, 14)


def test_the_worst_of_several_faults_counts() -> None:
    wrong = [attribute(0x40, 6, "00"), attribute(0x80, 4, "00"), attribute(0xC0, 7, "00")]
    read = reader(True).read(update([*BASE.values(), *wrong], "10.0.0.0/8"))
    assert (read.reachable, len(read.unreachable)) == ((), 1)
    assert [(fault.code, fault.withdrawn) for fault in read.faults] == [(6, False), (4, True), (7, False)]
    with pytest.raises(MessageError, match="3/2"):
        reader(True).read(update([*BASE.values(), *wrong, attribute(0x40, 99, "")], "10.0.0.0/8"))


def test_both_families_of_one_message_are_withdrawn() -> None:
    path = [mp_reach(GLOBAL, "2001:db8::/32"), attribute(0x40, 1, "09"), AS_PATH, NEXT_HOP, mp_unreach("2001:db9::/32")]
    read = reader(True).read(update(path, "10.0.0.0/8", "10.1.0.0/16"))
    assert read.reachable == ()
    assert [(one.family, b"".join(one.prefixes)) for one in read.unreachable] == [
        (Family.IPV4, prefixes("10.1.0.0/16")),
        (Family.IPV6, prefixes("2001:db9::/32")),
        (Family.IPV4, prefixes("10.0.0.0/8")),
        (Family.IPV6, prefixes("2001:db8::/32")),
    ]
    assert [(fault.code, fault.withdrawn) for fault in read.faults] == [(1, True)]
