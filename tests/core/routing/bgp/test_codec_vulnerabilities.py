"""Messages behind published vulnerabilities of BGP speakers: as they were reported, or built from what is said of them.

Each crashed a speaker, or had it read past a field, or ended a session that RFC 7606 keeps. The answer that is right
stands beside. Those of GoBGP's MRT, RTR and BMP readers (CVE-2025-43970, -43973, CVE-2026-7736, -7737) have no message
of BGP.
"""

from __future__ import annotations

import pytest

from services.routing.core.bgp.codec.messages import (
    LARGEST,
    MessageError,
    MessageKind,
    decode_notification,
    decode_open,
    decode_route_refresh,
    split,
)
from services.routing.core.bgp.codec.updates import UpdateReader
from services.routing.core.bgp.values import Agreed, Family
from tests.core.routing.bgp.wire import (
    AS_PATH,
    GLOBAL,
    MARKER,
    NEXT_HOP,
    ORIGIN,
    attribute,
    message,
    mp_reach,
    mp_unreach,
    octets,
    update,
)

OPEN_HEAD = octets("04 fde9 005a 0a000001")


def opening(length: str, parameters: str) -> bytes:
    return message(1, OPEN_HEAD + octets(length) + octets(parameters))


def whole(*attributes: bytes, prefixes: str = "10.0.0.0/8") -> bytes:
    return update(attributes, prefixes, header=True)


def answer(stream: bytes, reader: UpdateReader) -> str:
    """What becomes of the first message: code and subcode of a NOTIFICATION, or what counts of it."""
    try:
        (kind, body), *_ = split(stream, LARGEST)[0]
        if kind is MessageKind.OPEN:
            opened = decode_open(body)
            return f"open AS {opened.asn}"
        if kind is MessageKind.ROUTE_REFRESH:
            return "refresh" if decode_route_refresh(body) else "ignored"
        if kind is MessageKind.NOTIFICATION:
            return decode_notification(body).reason
        read = reader.read(body)
    except MessageError as error:
        return f"{error.code}/{error.subcode}"
    if read.end_of_rib is not None:
        return "end of RIB"
    return "reachable" if read.reachable else "withdrawn" if read.unreachable else "nothing"


FLOW_SPECIFICATION = "00 01 85"
MESSAGES = {
    # GoBGP
    "CVE-2026-42285 an ORIGIN without the transitive flag, for prefixes that were never announced": (
        whole(attribute(0x00, 1, "00"), AS_PATH, NEXT_HOP),
        "withdrawn",
    ),
    "CVE-2026-41642 an unknown well-known attribute": (
        whole(ORIGIN, AS_PATH, NEXT_HOP, attribute(0x40, 99, "")),
        "3/2",
    ),
    "CVE-2026-41643 AS4_PATH of one octet before AS_PATH, as reported": (
        MARKER + octets("00 22 02  00 00  00 0b  40 11 01 02  40 02 04 ff ff de ad"),
        "3/4",
    ),
    "CVE-2026-41643 the same with right flags, and prefixes": (
        whole(attribute(0xC0, 17, "02"), ORIGIN, AS_PATH, NEXT_HOP),
        "reachable",
    ),
    "CVE-2026-49838 an empty AS_PATH": (whole(ORIGIN, attribute(0x40, 2, ""), NEXT_HOP), "reachable"),
    "CVE-2026-49838 a segment without numbers": (whole(ORIGIN, attribute(0x40, 2, "03 00"), NEXT_HOP), "withdrawn"),
    "CVE-2026-49837 a four-octet AS capability of no octets, before others": (
        opening("0a", "02 08  41 00  01 04 0001 00 01"),
        "2/0",
    ),
    "CVE-2026-49837 a graceful restart capability of one octet, before others": (
        opening("0b", "02 09  40 01 00  01 04 0001 00 01"),
        "2/0",
    ),
    "CVE-2026-37461 IPv6 extended communities that end early": (
        whole(ORIGIN, AS_PATH, NEXT_HOP, attribute(0xC0, 25, "00 02 20 01")),
        "reachable",
    ),
    "CVE-2026-37462 attributes longer than the message": (message(2, octets("00 00 00 ff")), "3/1"),
    "CVE-2026-37462 withdrawn routes longer than the message": (message(2, octets("00 05 00 00")), "3/1"),
    "CVE-2026-7734 a Prefix-SID with an SRv6 service that ends early": (
        whole(ORIGIN, AS_PATH, NEXT_HOP, attribute(0xC0, 40, "05 00 03 00 01 00")),
        "reachable",
    ),
    "CVE-2026-30405 a NEXT_HOP of no octets": (whole(ORIGIN, AS_PATH, attribute(0x40, 3, "")), "withdrawn"),
    "CVE-2026-30405 a NEXT_HOP of three octets without the transitive flag": (
        whole(ORIGIN, AS_PATH, attribute(0x00, 3, "0a 00 00")),
        "withdrawn",
    ),
    "CVE-2025-43971 a software version of no length": (opening("05", "02 03  4b 01 00"), "open AS 65001"),
    "CVE-2025-43971 a software version longer than its capability, as reported": (
        MARKER + octets("0062 01 04 fc00 005a c0a80a05 45 02 43 4b 41 40") + bytes(64),
        "open AS 64512",
    ),
    "CVE-2025-43972 a flow specification that ends early": (
        whole(ORIGIN, AS_PATH, mp_reach(b"", octets("03 01 20"), FLOW_SPECIFICATION), prefixes=""),
        "nothing",
    ),
    "CVE-2023-46565 a message of no known type": (MARKER + octets("00 13 00"), "1/3"),
    "CVE-2023-46565 a message shorter than its header": (MARKER + octets("00 12 02"), "1/2"),
    # FRR
    "CVE-2022-40302 extended optional parameters without their length": (opening("ff", "ff"), "2/0"),
    "CVE-2022-40302 an extended parameter with two octets left": (opening("ff", "ff 0002 02 00"), "2/0"),
    "CVE-2022-40318 an extended parameter longer than the message": (opening("ff", "ff 0003 02 ff ff"), "2/0"),
    "CVE-2022-43681 parameters that end after their type": (opening("01", "02"), "2/0"),
    "CVE-2022-43681 an OPEN that ends before its parameters": (opening("ff", ""), "2/0"),
    "CVE-2022-36440 parameters longer than the message": (opening("fe", "02 02 02 00"), "2/0"),
    "CVE-2023-38406 a flow specification of no octets": (
        whole(ORIGIN, AS_PATH, mp_reach(b"", octets("00"), FLOW_SPECIFICATION), prefixes=""),
        "nothing",
    ),
    "CVE-2023-38802 a corrupted TUNNEL_ENCAP attribute": (
        whole(ORIGIN, AS_PATH, NEXT_HOP, attribute(0xC0, 23, "00 07 00 04 01 ff")),
        "reachable",
    ),
    "CVE-2023-38802 as another speaker hands it on": (
        whole(ORIGIN, AS_PATH, NEXT_HOP, attribute(0xE0, 23, "")),
        "reachable",
    ),
    "CVE-2023-46752 an MP_REACH_NLRI that ends in its next hop": (
        whole(ORIGIN, AS_PATH, attribute(0x80, 14, "00 02 01 20 20 01"), prefixes=""),
        "3/9",
    ),
    "CVE-2023-46752 an MP_REACH_NLRI of one octet": (whole(ORIGIN, AS_PATH, attribute(0x80, 14, "00")), "3/9"),
    "CVE-2023-46753 an unknown attribute, and none that must be there": (
        whole(attribute(0xC0, 31, "00" * 16), prefixes="10.0.0.0/8"),
        "withdrawn",
    ),
    "CVE-2023-47234 an MP_UNREACH_NLRI with prefixes, and attributes that nobody needs": (
        whole(attribute(0xC0, 31, "00" * 16), mp_unreach("2001:db8::/32"), prefixes=""),
        "withdrawn",
    ),
    "CVE-2023-47235 an End-of-RIB with one attribute more": (
        whole(mp_unreach(""), attribute(0xC0, 31, "00" * 16), prefixes=""),
        "nothing",
    ),
    "CVE-2023-41358 prefixes, and no attributes at all": (whole(prefixes="10.0.0.0/8"), "withdrawn"),
    "CVE-2023-41359 an AIGP attribute that ends within a TLV": (
        whole(ORIGIN, AS_PATH, NEXT_HOP, attribute(0x80, 26, "01")),
        "reachable",
    ),
    "CVE-2023-41360 a ROUTE-REFRESH that begins a filter and ends": (message(5, octets("0001 00 01 01")), "7/1"),
    "CVE-2023-41909 a flow specification without attributes": (
        whole(mp_reach(b"", octets("03 01 08 0a"), FLOW_SPECIFICATION), prefixes=""),
        "nothing",
    ),
    "CVE-2023-31490 a Prefix-SID that ends within a TLV": (
        whole(ORIGIN, AS_PATH, NEXT_HOP, attribute(0xC0, 40, "05 00")),
        "reachable",
    ),
    "CVE-2024-31948 a Prefix-SID of SRv6 that is too long": (
        whole(ORIGIN, AS_PATH, NEXT_HOP, attribute(0xC0, 40, "05 ff ff" + "00" * 8)),
        "reachable",
    ),
    "CVE-2024-44070 a TUNNEL_ENCAP attribute with less than it says": (
        whole(ORIGIN, AS_PATH, NEXT_HOP, attribute(0xC0, 23, "00 07 ff ff")),
        "reachable",
    ),
    # several speakers
    "VU#347067 an unknown transitive attribute that is all ones": (
        whole(ORIGIN, AS_PATH, NEXT_HOP, attribute(0xC0, 28, "ff" * 40)),
        "reachable",
    ),
    "CVE-2023-38283 attributes that are longer than their whole length": (
        whole(ORIGIN, AS_PATH, NEXT_HOP, octets("c0 08 ff")),
        "withdrawn",
    ),
    "CVE-2023-38283 the same where only MP_REACH_NLRI has prefixes": (
        whole(mp_reach(GLOBAL, "2001:db8::/32"), ORIGIN, AS_PATH, octets("c0 08 ff"), prefixes=""),
        "withdrawn",
    ),
}


@pytest.mark.parametrize("name", MESSAGES, ids=lambda name: name.replace(" ", "-"))
def test_a_published_vulnerability(name: str) -> None:
    sent, right = MESSAGES[name]
    reader = UpdateReader(Agreed(families=frozenset(Family), four_octets=True, external=True))
    healthy = whole(ORIGIN, AS_PATH, NEXT_HOP)
    before = reader.read(healthy[19:])
    assert answer(sent, reader) == right
    assert reader.read(healthy[19:]) == before


@pytest.mark.parametrize("name", MESSAGES, ids=lambda name: name.replace(" ", "-"))
def test_no_prefix_of_the_message_waits_for_what_cannot_come(name: str) -> None:
    """Cut anywhere it is not whole yet, or refused: never read past its end."""
    sent, _ = MESSAGES[name]
    for size in range(len(sent)):
        try:
            found, consumed = split(sent[:size], LARGEST)
        except MessageError as error:
            assert error.code == 1
        else:
            assert (found, consumed) == ([], 0)
