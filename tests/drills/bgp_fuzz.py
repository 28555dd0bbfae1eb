"""Malformed BGP messages by the million: made part by part with a known answer, or spoilt octet by octet without one.

A constructed UPDATE starts right and has some of its parts made wrong; :mod:`tests.core.routing.bgp.judge` says by the
parts what has to become of it. A spoilt message is any whole one with octets changed, added, moved or lost, and comes
in pieces; of it nothing is known but that it must be refused in an orderly way or read into what can be written again.
After each message a healthy one is read and must say what it always said. Chance comes from a seed.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from random import Random

from services.routing.core.bgp.codec.messages import (
    LARGEST,
    MessageError,
    MessageKind,
    decode_notification,
    decode_open,
    decode_route_refresh,
    encode_open,
    split,
)
from services.routing.core.bgp.codec.updates import Unwritable, UpdateReader, UpdateWriter
from services.routing.core.bgp.values import (
    Agreed,
    Family,
    Prefix,
    Reachable,
    Unreachable,
    Update,
    network_of,
    prefix_of,
)
from tests.core.routing.bgp.judge import IPV4, IPV6, Case, Part, Reach, Unreach, Verdict, judge
from tests.core.routing.bgp.wire import attribute, message, octets

FAMILIES = {IPV4: Family.IPV4, IPV6: Family.IPV6}
RIGHT: dict[int, tuple[int, tuple[str, ...]]] = {
    1: (0x40, ("00", "01", "02")),
    2: (0x40, ("", "02 01 0000fde9", "02 02 0000fde9 0000fdea", "02 01 0000fde9 01 02 00000001 00000002")),
    3: (0x40, ("0a000001", "c0000201")),
    4: (0x80, ("00000000", "0000000a", "ffffffff")),
    5: (0x40, ("00000064", "00000000")),
    6: (0x40, ("",)),
    7: (0xC0, ("0000fde9 0a000001", "00010000 0a000002")),
    8: (0xC0, ("ffffff01", "fde90001 fde90002 fde90001")),
    9: (0x80, ("0a000001",)),
    10: (0x80, ("0a000001", "0a000001 0a000002")),
    16: (0xC0, ("0002fde900000001", "0002fde900000001 0102fde900000001")),
    17: (0xC0, ("02 01 00011170",)),
    18: (0xC0, ("00011170 0a000001",)),
    32: (0xC0, ("000000010000000200000003",)),
    23: (0xC0, ("0007000401ff", "")),
    26: (0x80, ("01000b0000000000000000000a",)),
    254: (0xE0, ("deadbeef",)),
}
"""Attributes as they should be: flags and values; those of numbers with four octets, for peers who have them."""
SHORT = {
    2: ("", "02 01 fde9", "02 02 fde9 5ba0", "02 01 fde9 01 02 0001 0002"),
    7: ("fde9 0a000001", "5ba0 0a000002"),
}
WRONG: dict[int, tuple[str, ...]] = {
    1: ("", "03", "ff", "0000"),
    2: (
        "02",
        "02 00",
        "00 01 0000fde9",
        "05 01 0000fde9",
        "02 ff 0000fde9",
        "02 01 00000000",
        "03 01 0000fde9",
        "02 01 01",
    ),
    3: ("", "0a0000", "0a00000100", "00000000", "7f000001", "e0000001", "ffffffff"),
    17: ("", "02", "02 00", "09 01 00011170", "02 01 00000000"),
}
"""Values that are wrong, or not, besides those of a wrong length."""
PREFIXES = {
    IPV4: ("00", "08 0a", "18 c00002", "18 c63364", "20 cb007101", "09 0aff", "07 0b"),
    IPV6: ("00", "20 20010db8", "30 20010db80001", "80 20010db8000000000000000000000001", "21 20010db8ff", "03 ff"),
}
BROKEN = {IPV4: ("21 0a00000000", "18 0a00", "ff", "08"), IPV6: ("81" + "00" * 17, "20 2001", "ff", "40 20010db8")}
HOPS = {
    IPV4: ("0a000001", "c0000201", "7f000001", "e0000001"),
    IPV6: (
        "20010db8000000000000000000000001",
        "fe800000000000000000000000000001",
        "20010db8000000000000000000000001 fe800000000000000000000000000001",
        "00" * 16 + "fe800000000000000000000000000001",
        "00" * 16,
        "00" * 15 + "01",
        "ff020000000000000000000000000001",
        "20010db8000000000000000000000001 20010db8000000000000000000000002",
        "00" * 32,
    ),
}


@dataclass
class Tally:
    """What was seen, by outcome."""

    outcomes: Counter[str] = field(default_factory=Counter)


class Wrong(AssertionError):
    """A message that had another outcome, with the seed and the octets that show it again."""


# Constructed messages


def some(random: Random, choices: tuple[str, ...]) -> bytes:
    return octets(random.choice(choices))


def entries(random: Random, family: int, most: int = 4) -> tuple[bytes, ...]:
    found = [some(random, PREFIXES[family]) for _ in range(random.randrange(most))]
    if random.random() < 0.02:
        found.append(some(random, BROKEN[family]))
    return tuple(found)


def next_hop(random: Random, family: int, agreed: bool) -> bytes:
    if random.random() < 0.03:
        return bytes(random.choice((0, 1, 3, 5, 8, 15, 17, 24, 31, 33, 48)))
    return some(
        random,
        HOPS[random.choice((IPV4, IPV6)) if family == IPV4 and agreed else family][
            : 2 if random.random() < 0.8 else None
        ],
    )


def parts(random: Random, external: bool, four_octets: bool) -> tuple[Part, ...]:
    """All that must be there and some of what may; sometimes one is wrong, missing, twice, or of nobody."""
    codes = [1, 2, 3, *([] if external else [5])]
    codes += [code for code in RIGHT if code not in codes and random.random() < 0.15]
    random.shuffle(codes)
    found = []
    for code in codes:
        flags, values = RIGHT[code]
        found.append(Part(flags, code, some(random, values if four_octets else SHORT.get(code, values))))
    for _ in range(random.choice((0, 0, 0, 1, 1, 2))):
        spoil(random, found)
    return tuple(found)


def spoil(random: Random, found: list[Part]) -> None:
    at = random.randrange(len(found)) if found else 0
    what = random.randrange(6) if found else 5
    if what == 0:
        found.pop(at)
    elif what == 1:
        found.insert(random.randrange(len(found) + 1), replace(found[at], value=random.randbytes(random.randrange(14))))
    elif what == 2:
        found[at] = replace(
            found[at], flags=random.choice((0x00, 0x20, 0x40, 0x60, 0x80, 0xA0, 0xC0, 0xE0)) | random.choice((0, 15))
        )
    elif what == 3:
        values = WRONG.get(found[at].code)
        found[at] = replace(found[at], value=some(random, values) if values else random.randbytes(random.randrange(20)))
    elif what == 4:
        value = found[at].value
        found[at] = replace(found[at], value=value[:-1] if random.random() < 0.5 else value + b"\1")
    else:
        code = random.choice((0, 11, 19, 25, 35, 40, 128, 255))
        found.append(
            Part(random.choice((0x80, 0xC0, 0xE0, 0xA0, 0x40, 0x00)), code, random.randbytes(random.randrange(9)))
        )


def constructed(random: Random) -> Case:
    external, four_octets = random.random() < 0.5, random.random() < 0.7
    families = frozenset(random.choice(((IPV4, IPV6), (IPV4, IPV6), (IPV4, IPV6), (IPV4,), (IPV6,))))
    agreed = random.random() < 0.3
    family = random.choice((IPV4, IPV6, IPV6))
    reach = unreach = None
    if random.random() < 0.5:
        reach = Reach(multiprotocol_flags(random), family, next_hop(random, family, agreed), entries(random, family))
    if random.random() < 0.25:
        unreach = Unreach(multiprotocol_flags(random), family, entries(random, family))
    return Case(
        external=external,
        four_octets=four_octets,
        families=families,
        extended_next_hop=agreed,
        parts=parts(random, external, four_octets) if random.random() < 0.93 else (),
        reach=reach,
        unreach=unreach,
        entries=entries(random, IPV4) if random.random() < 0.7 else (),
        withdrawn=entries(random, IPV4) if random.random() < 0.2 else (),
        overrun=random.choice((0, 4, 8, 14, 254)) if random.random() < 0.04 else None,
    )


def multiprotocol_flags(random: Random) -> int:
    return 0x80 if random.random() < 0.96 else random.choice((0x00, 0x40, 0xC0, 0xA0))


def body_of(case: Case, random: Random) -> bytes:
    """The message of a case; where its multiprotocol attributes stand, and how lengths are written, is chance."""
    path = [attribute(part.flags & ~0x10, part.code, part.value, extended=random.random() < 0.1) for part in case.parts]
    if case.reach is not None:
        family = bytes((0, case.reach.family, 1, len(case.reach.next_hop)))
        value = family + case.reach.next_hop + b"\0" + b"".join(case.reach.entries)
        path.insert(random.randrange(len(path) + 1), attribute(case.reach.flags, 14, value))
    if case.unreach is not None:
        value = bytes((0, case.unreach.family, 1)) + b"".join(case.unreach.entries)
        path.insert(random.randrange(len(path) + 1), attribute(case.unreach.flags, 15, value))
    if case.overrun is not None:
        path.append(bytes((0xC0, case.overrun, 200)) + bytes(random.randrange(9)) if case.overrun else b"\xc0\x08")
    taken, given, octets_of_path = b"".join(case.withdrawn), b"".join(case.entries), b"".join(path)
    return len(taken).to_bytes(2, "big") + taken + len(octets_of_path).to_bytes(2, "big") + octets_of_path + given


def agreed_on(case: Case) -> Agreed:
    return Agreed(
        families=frozenset(FAMILIES[family] for family in case.families),
        four_octets=case.four_octets,
        external=case.external,
        extended_next_hops=frozenset((Family.IPV4,)) if case.extended_next_hop else frozenset(),
    )


def seen(read: Update) -> Verdict:
    """What the codec made of a message, in the judge's words."""
    return Verdict(
        withdraws={fault.code for fault in read.faults if fault.withdrawn},
        discards={fault.code for fault in read.faults if not fault.withdrawn},
        passed_on={one.code for given in read.reachable for one in given.attributes.unknown},
        reachable=prefixes_of(read.reachable),
        unreachable=prefixes_of(read.unreachable),
    )


def prefixes_of(given: tuple[Reachable | Unreachable, ...]) -> set[tuple[int, Prefix]]:
    return {(one.family.afi, prefix) for one in given for prefix in one.prefixes}


def check_constructed(random: Random, tally: Tally) -> None:
    case = constructed(random)
    right, body = judge(case), body_of(case, random)
    reader = UpdateReader(agreed_on(case))
    try:
        found = seen(reader.read(body))
    except MessageError as error:
        if error.code != 3 or error.subcode not in right.subcodes:
            raise Wrong(f"{error}\n{case}\n{right}\n{body.hex()}") from error
        tally.outcomes[f"notification 3/{error.subcode}"] += 1
        return
    for verdict in (found, right):
        verdict.discards -= verdict.withdraws  # the worst of an attribute is what counts
    if right.subcodes or not right.reachable:
        right.passed_on = set()
    if found != right:
        raise Wrong(f"{found}\n{right}\n{case}\n{body.hex()}")
    tally.outcomes["withdrawn" if right.withdraws else "left out" if right.discards else "right"] += 1


# Spoilt messages

CAPABILITIES = octets(
    """01 04 0001 00 01  01 04 0002 00 01  02 00  06 00  46 00  41 04 0000fde9  40 06 0078 0001 01 80
       45 04 0001 01 03  05 06 0001 0001 0002"""
)
OPEN = message(1, octets("04 fde9 005a 0a000001") + bytes((len(CAPABILITIES) + 2, 2, len(CAPABILITIES))) + CAPABILITIES)
OTHERS = (
    OPEN,
    message(1, octets("04 fde9 005a 0a000001 ff ff 0007 02 0004 02 00 46 00")),
    message(3, octets("06 02 05 6166746572")),
    message(3, octets("06 09 06 02 03 6e6f77")),
    message(4, b""),
    message(5, octets("0001 00 01")),
)
HEALTHY = octets("0000 0014 40 01 01 00  40 02 06 02 01 0000fde9  40 03 04 0a000001 08 0a")
"""The body of an UPDATE of a peer with nothing wrong: 10.0.0.0/8."""


def spoilt(random: Random, whole: bytes) -> bytes:
    octet = bytearray(whole)
    for _ in range(random.choice((1, 1, 2, 3, 8))):
        at = (
            random.randrange(len(octet))
            if random.random() < 0.3
            else random.randrange(min(16, len(octet) - 1), len(octet))
        )
        size = random.choice((1, 1, 2, 4, 9))
        match random.randrange(6):
            case 0:
                octet[at] ^= 1 << random.randrange(8)
            case 1:
                octet[at] = random.choice((0, 1, 2, 4, 14, 15, 32, 33, 64, 127, 128, 129, 255))
            case 2:
                del octet[at : at + size]
            case 3:
                octet[at:at] = random.randbytes(size)
            case 4:
                octet[at:at] = octet[at : at + size]
            case _:
                octet[at : at + size] = random.randbytes(size)
        if len(octet) < 20:
            break
    if random.random() < 0.7 and len(octet) > 18:  # the length fits again, so that what is inside is looked at
        octet[:16] = b"\xff" * 16
        octet[16:18] = len(octet).to_bytes(2, "big")
    return bytes(octet)


def pieces(random: Random, stream: bytes) -> list[bytes]:
    cuts = sorted(random.randrange(len(stream) + 1) for _ in range(random.choice((0, 1, 3))))
    return [stream[begun:end] for begun, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


def check_spoilt(random: Random, tally: Tally) -> None:
    case = constructed(random)
    paths = frozenset((Family.IPV4,)) if random.random() < 0.2 else frozenset[Family]()
    agreed = replace(agreed_on(case), receives_paths=paths, sends_paths=paths)
    whole = message(2, body_of(case, random)) if random.random() < 0.7 else random.choice(OTHERS)
    stream = spoilt(random, whole)
    reader, waiting = UpdateReader(agreed), b""
    try:
        for piece in pieces(random, stream):
            waiting += piece
            found, consumed = split(waiting, LARGEST)
            for kind, body in found:
                tally.outcomes[f"spoilt {read_any(kind, bytes(body), reader, agreed)}"] += 1
            waiting = waiting[consumed:]
    except MessageError as error:
        if not (1 <= error.code <= 7 and error.reason and len(error.content) < 65536):
            raise Wrong(f"{error}\n{stream.hex()}") from error
        tally.outcomes[f"spoilt notification {error.code}/{error.subcode}"] += 1
    except Exception as error:
        raise Wrong(f"{error!r}\n{agreed}\n{stream.hex()}") from error


def read_any(kind: MessageKind, body: bytes, reader: UpdateReader, agreed: Agreed) -> str:
    """Read a message, and what was read of it once more after it was written."""
    if kind is MessageKind.OPEN:
        opened = decode_open(body)
        again = decode_open(encode_open(opened)[19:])
        assert again == opened, (again, opened)
    elif kind is MessageKind.UPDATE:
        check_stable(reader.read(body), reader, agreed)
    elif kind is MessageKind.NOTIFICATION:
        assert decode_notification(body).reason.isprintable()
    elif kind is MessageKind.ROUTE_REFRESH:
        decode_route_refresh(body)
    return kind.name


def check_stable(read: Update, reader: UpdateReader, agreed: Agreed) -> None:
    writer = UpdateWriter(agreed)
    for taken in read.unreachable:
        whole(taken.family, taken.prefixes)
        (again,) = (reader.read(one[19:]) for one in writer.withdraw(taken.family, taken.prefixes, taken.path_ids))
        assert again.unreachable == (taken,)
    for given in read.reachable:
        whole(given.family, given.prefixes)
        written = writer.write(given.family, given.attributes, given.prefixes, given.path_ids)
        if isinstance(written, Unwritable):
            assert len(given.attributes.unknown) + len(given.attributes.as_path) > 0, written
            continue
        (again,) = (reader.read(one[19:]) for one in written)
        assert again.reachable == (given,), (again, given)
        assert not again.faults


def whole(family: Family, prefixes: tuple[Prefix, ...]) -> None:
    """Each prefix is one of the family, in canonical form."""
    for prefix in prefixes:
        assert prefix_of(network_of(family, prefix)) == (family, prefix)


# The run


def fuzz(count: int, seed: int) -> Tally:
    """So many messages, half of them constructed. Raises ``Wrong`` at the first that has another outcome."""
    tally = Tally()
    agreed = Agreed(families=frozenset(Family), four_octets=True, external=True)
    healthy = UpdateReader(agreed)
    expected = healthy.read(HEALTHY)
    blocks = 0
    for index in range(count):
        random = Random(f"{seed}/{index}")
        try:
            (check_constructed if index % 2 else check_spoilt)(random, tally)
        except AssertionError as error:
            raise Wrong(f"message {index} of seed {seed}: {error}") from error
        if healthy.read(HEALTHY) != expected:
            raise Wrong(f"message {index} of seed {seed} changed what a healthy peer's message says")
        if index == count // 2:
            blocks = sys.getallocatedblocks()
    grown = sys.getallocatedblocks() - blocks
    if grown > 20_000:
        raise Wrong(f"{grown} blocks of memory more after the second half of {count} messages")
    return tally
