"""BGP messages other than UPDATE: their octets, every error of a header and of an OPEN, NOTIFICATIONs in words."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.routing.core.bgp.codec.errors import CODES, SUBCODES
from services.routing.core.bgp.codec.messages import (
    LARGEST,
    LARGEST_EXTENDED,
    MessageError,
    MessageKind,
    Notification,
    Open,
    RefreshKind,
    RouteRefresh,
    communication,
    decode_notification,
    decode_open,
    decode_route_refresh,
    encode_notification,
    encode_open,
    encode_route_refresh,
    hard_reset,
    keepalive,
    split,
)
from services.routing.core.bgp.values import AddPath, Capabilities, Family, GracefulRestart, RestartFamily
from tests.core.routing.bgp.wire import MARKER, message, octets, update

V4, V6 = Family.IPV4, Family.IPV6
KEEPALIVE = MARKER + octets("00 13 04")


def header(length: int, kind: int) -> bytes:
    return MARKER + length.to_bytes(2, "big") + bytes((kind,))


def refused(buffer: bytes, largest: int = LARGEST) -> tuple[int, int, bytes]:
    with pytest.raises(MessageError) as caught:
        split(buffer, largest)
    assert caught.value.reason
    return caught.value.code, caught.value.subcode, caught.value.content


# Framing


def test_a_keepalive_is_a_header() -> None:
    assert keepalive() == KEEPALIVE


def test_whole_messages_are_cut_out_and_the_rest_waits() -> None:
    stream = KEEPALIVE + update(withdrawn="10.0.0.0/8", header=True) + KEEPALIVE[:18]
    found, consumed = split(stream, LARGEST)
    assert [(kind, bytes(body)) for kind, body in found] == [
        (MessageKind.KEEPALIVE, b""),
        (MessageKind.UPDATE, octets("00 02 08 0a 00 00")),
    ]
    assert consumed == len(stream) - 18


@given(st.lists(st.integers(0, 60), max_size=6), st.data())
def test_a_stream_cut_anywhere_gives_the_same_messages(sizes: list[int], draw: st.DataObject) -> None:
    stream = b"".join(message(2, bytes(4 + size)) for size in sizes)
    found, waiting = [], b""
    while stream:
        size = draw.draw(st.integers(1, len(stream)))
        waiting, stream = waiting + stream[:size], stream[size:]
        messages, consumed = split(waiting, LARGEST)
        found += [len(body) - 4 for _, body in messages]
        waiting = waiting[consumed:]
    assert (found, waiting) == (sizes, b"")


@pytest.mark.parametrize(
    ("length", "kind", "code", "content"),
    [
        (18, 4, 2, "00 12"),
        (0, 2, 2, "00 00"),
        (20, 4, 2, "00 14"),
        (28, 1, 2, "00 1c"),
        (22, 2, 2, "00 16"),
        (20, 3, 2, "00 14"),
        (22, 5, 2, "00 16"),
        (4097, 2, 2, "10 01"),
        (65535, 3, 2, "ff ff"),
        (19, 0, 3, "00"),
        (19, 6, 3, "06"),
        (19, 255, 3, "ff"),
        (18, 9, 2, "00 12"),
    ],
)
def test_a_header_is_refused_before_its_body_has_come(length: int, kind: int, code: int, content: str) -> None:
    assert refused(header(length, kind)) == (1, code, octets(content))


@pytest.mark.parametrize("at", range(16))
def test_each_octet_of_the_marker_counts(at: int) -> None:
    broken = bytearray(KEEPALIVE)
    broken[at] = 0xFE
    assert refused(bytes(broken)) == (1, 1, b"")


def test_extended_messages_are_longer_but_open_and_keepalive_are_not() -> None:
    assert split(header(65535, 2), LARGEST_EXTENDED) == ([], 0)
    assert split(header(65535, 3), LARGEST_EXTENDED) == ([], 0)
    assert refused(header(4097, 1), LARGEST_EXTENDED) == (1, 2, octets("10 01"))
    assert refused(header(20, 4), LARGEST_EXTENDED) == (1, 2, octets("00 14"))


# OPEN

OPEN = octets("04 fde9 005a 0a000001")
"""Version 4, AS 65001, 90 s, 10.0.0.1."""


def opening(parameters: str, head: bytes = OPEN) -> bytes:
    value = octets(parameters)
    return head + bytes((len(value),)) + value


def capabilities(text: str) -> Capabilities:
    """What an OPEN says whose one optional parameter holds these."""
    value = octets(text)
    return decode_open(opening(f"02 {len(value):02x} {text}")).capabilities


def test_an_open_that_offers_much() -> None:
    offered = """01 04 0001 00 01  01 04 0002 00 01  # multiprotocol
                 02 00                               # route refresh
                 05 06 0001 0001 0002                # extended next hop
                 06 00                               # extended messages
                 40 06 0078 0001 01 80               # graceful restart, 120 s
                 41 04 0000fdea                      # four octets
                 46 00                               # enhanced route refresh"""
    value = octets(offered)
    body = octets("04 fdea 00f0 0a000002") + bytes((len(value) + 2, 2, len(value))) + value
    assert decode_open(body) == Open(
        65002,
        240,
        IPv4Address("10.0.0.2"),
        Capabilities(
            families=frozenset((V4, V6)),
            asn4=65002,
            route_refresh=True,
            enhanced_route_refresh=True,
            extended_messages=True,
            extended_next_hops=frozenset((V4,)),
            graceful_restart=GracefulRestart(restarted=False, seconds=120, families=(RestartFamily(V4, True),)),
        ),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Capabilities()),
        ("02 00 46 00 06 00", Capabilities(route_refresh=True, enhanced_route_refresh=True, extended_messages=True)),
        ("01 04 0001 00 02", Capabilities()),  # multicast
        ("01 04 0019 00 41", Capabilities()),  # L2VPN
        ("01 04 0001 ff 01", Capabilities(families=frozenset((V4,)))),  # the reserved octet is not looked at
        ("05 0c 0002 0001 0002 0001 0001 0002", Capabilities(extended_next_hops=frozenset((V4, V6)))),
        ("05 06 0001 0001 0001", Capabilities()),  # next hops of IPv4 are no extension
        ("05 06 0001 0101 0002", Capabilities()),  # SAFI 257
        ("45 04 0001 01 03", Capabilities(add_path=((V4, AddPath.BOTH),))),
        ("45 08 0001 01 01 0002 01 02", Capabilities(add_path=((V4, AddPath.RECEIVE), (V6, AddPath.SEND)))),
        ("45 08 0001 01 00 0002 01 04", Capabilities()),  # no such direction
        ("45 00", Capabilities()),
        pytest.param(
            "45 04 0001 01 03 00 02 0102",
            Capabilities(add_path=((V4, AddPath.BOTH),)),
            id="one-whose-header-would-be-another-entry",
        ),
        ("40 02 c0b4", Capabilities(graceful_restart=GracefulRestart(True, 180, (), True))),
        ("40 02 8000 40 02 0001", Capabilities(graceful_restart=GracefulRestart(False, 1))),  # the last one counts
        (
            "40 0a 4fff 0001 01 00 0002 01 80",
            Capabilities(
                graceful_restart=GracefulRestart(False, 4095, (RestartFamily(V4, False), RestartFamily(V6, True)), True)
            ),
        ),
        ("47 07 0002 01 80 000e10", Capabilities(long_lived=(RestartFamily(V6, True, 3600),))),
        ("09 01 03", Capabilities()),  # role
        ("49 05 04 6e616d65 02 00", Capabilities(route_refresh=True)),  # host name, then one that is known
        ("80 00 ff 02 0000", Capabilities()),
    ],
)
def test_capabilities(text: str, expected: Capabilities) -> None:
    assert capabilities(text) == expected


def test_capabilities_in_several_parameters_are_all_counted() -> None:
    body = opening("02 06 01 04 0001 00 01  02 02 02 00  02 06 41 04 0000fde9")
    assert decode_open(body).capabilities == Capabilities(families=frozenset((V4,)), route_refresh=True, asn4=65001)


def test_extended_optional_parameters() -> None:
    """RFC 9072: lengths of two octets, with more than 255 octets or fewer."""
    filler = "c8 fa" + " 00" * 250
    assert decode_open(OPEN + octets(f"ff ff 0103 02 0100 02 00 {filler} 46 00")).capabilities == Capabilities(
        route_refresh=True, enhanced_route_refresh=True
    )
    short = OPEN + octets("05 ff 0005 02 0002 02 00")
    assert decode_open(short).capabilities == Capabilities(route_refresh=True)


@pytest.mark.parametrize(
    ("body", "error", "content"),
    [
        (opening("", octets("03 fde9 005a 0a000001")), (2, 1), "00 04"),
        (opening("", octets("05 fde9 005a 0a000001")), (2, 1), "00 04"),
        (opening("", octets("04 0000 005a 0a000001")), (2, 2), "00 00"),
        (opening("02 06 41 04 00000000"), (2, 2), "fd e9"),
        (opening("02 06 41 04 0000fdea"), (2, 2), "fd e9"),
        (opening("", octets("04 fde9 005a 00000000")), (2, 3), ""),
        (opening("01 02 0000"), (2, 4), ""),  # authentication, deprecated
        (opening("03 00"), (2, 4), ""),
        (opening("", octets("04 fde9 0001 0a000001")), (2, 6), "00 01"),
        (opening("", octets("04 fde9 0002 0a000001")), (2, 6), "00 02"),
        (OPEN + octets("05 02 02 02 00"), (2, 0), ""),  # parameters are said to be longer
        (OPEN + octets("03 02 02 02 00"), (2, 0), ""),  # and shorter
        (opening("02"), (2, 0), ""),
        (opening("02 03 02 00"), (2, 0), ""),
        (opening("02 01 02"), (2, 0), "02"),
        (opening("02 04 41 04 00 00"), (2, 0), "41 04 00 00"),
        (opening("02 04 01 02 00 01"), (2, 0), "01 02 00 01"),
        (opening("02 03 02 01 00"), (2, 0), "02 01 00"),
        (opening("02 03 06 01 00"), (2, 0), "06 01 00"),
        (opening("02 03 46 01 00"), (2, 0), "46 01 00"),
        (opening("02 04 41 02 fde9"), (2, 0), "41 02 fd e9"),
        (opening("02 03 40 01 00"), (2, 0), "40 01 00"),
        (opening("02 05 40 03 0078 00"), (2, 0), "40 01 00"),
        (opening("02 05 45 03 0001 01"), (2, 0), "45 03 00 01 01"),
        (opening("02 03 47 01 00"), (2, 0), "47 01 00"),
        (opening("02 03 05 01 00"), (2, 0), "05 01 00"),
        (OPEN + octets("ff ff"), (2, 0), ""),
        (OPEN + octets("ff ff 00"), (2, 0), ""),
        (OPEN + octets("ff ff 0003 02 00"), (2, 0), ""),
        (OPEN + octets("ff ff 0002 02 00"), (2, 0), ""),
        (OPEN + octets("ff ff 0004 02 0002 00"), (2, 0), ""),
        (OPEN, (1, 2), "00 1c"),
    ],
)
def test_an_open_is_refused(body: bytes, error: tuple[int, int], content: str) -> None:
    with pytest.raises(MessageError) as caught:
        decode_open(body)
    assert (caught.value.code, caught.value.subcode, caught.value.content) == (*error, octets(content))


def test_a_number_of_four_octets_comes_as_as_trans() -> None:
    body = opening("02 06 41 04 fffffffe", octets("04 5ba0 0000 0a000001"))
    assert decode_open(body).asn == 0xFFFFFFFE
    assert encode_open(decode_open(body)) == message(1, body)


FAMILIES = st.frozensets(st.sampled_from(Family))
SORTED = st.lists(st.sampled_from(Family), unique=True).map(sorted)


@st.composite
def whole_capabilities(draw: st.DrawFn) -> Capabilities:
    restart = GracefulRestart(
        draw(st.booleans()),
        draw(st.integers(0, 4095)),
        tuple(RestartFamily(one, draw(st.booleans())) for one in draw(SORTED)),
        draw(st.booleans()),
    )
    return Capabilities(
        families=draw(FAMILIES),
        asn4=draw(st.none() | st.integers(1, 2**32 - 1)),
        route_refresh=draw(st.booleans()),
        enhanced_route_refresh=draw(st.booleans()),
        extended_messages=draw(st.booleans()),
        extended_next_hops=draw(FAMILIES),
        add_path=tuple((one, draw(st.sampled_from(AddPath))) for one in draw(SORTED)),
        graceful_restart=draw(st.none() | st.just(restart)),
        long_lived=tuple(
            RestartFamily(one, draw(st.booleans()), draw(st.integers(0, 2**24 - 1))) for one in draw(SORTED)
        ),
    )


@given(whole_capabilities(), st.integers(1, 2**16 - 1), st.sampled_from((0, 3, 90, 65535)), st.integers(1, 2**32 - 1))
def test_an_open_is_read_as_it_was_written(offered: Capabilities, short: int, hold: int, router: int) -> None:
    asn = short if offered.asn4 is None else offered.asn4
    opened = Open(asn, hold, IPv4Address(router), offered)
    ((kind, body),), _ = split(encode_open(opened), LARGEST)
    assert (kind, decode_open(body)) == (MessageKind.OPEN, opened)


# NOTIFICATION


@pytest.mark.parametrize(("code", "subcode"), [*((code, 0) for code in CODES), *SUBCODES])
def test_every_notification_both_ways(code: int, subcode: int) -> None:
    sent = Notification(code, subcode, b"\0\1")
    written = encode_notification(sent)
    assert written == message(3, bytes((code, subcode, 0, 1)))
    ((_, body),), _ = split(written, LARGEST)
    assert decode_notification(body) == sent
    words = SUBCODES.get((code, subcode), CODES[code])
    assert words in sent.reason


@pytest.mark.parametrize(
    ("code", "subcode", "content", "reason"),
    [
        (6, 2, "", "Cease: Administrative Shutdown"),
        (6, 2, "00", "Cease: Administrative Shutdown"),
        (6, 2, "05 6166 7465 72", "Cease: Administrative Shutdown: after"),
        (6, 4, "03 6e 6f 77", "Cease: Administrative Reset: now"),
        (6, 2, "ff 6e 6f 77", "Cease: Administrative Shutdown"),  # longer than the message
        (6, 2, "02 c3 28", "Cease: Administrative Shutdown: �("),  # no UTF-8
        (6, 2, "05 61 0a 1b 5b 62", "Cease: Administrative Shutdown: a��[b"),  # nothing that a terminal obeys
        (6, 2, "03 e2 80 ae", "Cease: Administrative Shutdown: �"),  # right to left
        (6, 3, "03 6e 6f 77", "Cease: Peer De-configured"),
        (6, 9, "06 02 03 6e 6f 77", "Cease: Hard Reset (Cease: Administrative Shutdown: now)"),
        (6, 9, "04 00", "Cease: Hard Reset (Hold Timer Expired)"),
        (6, 9, "04", "Cease: Hard Reset"),
        (6, 9, "06 09 06 09 06 09", "Cease: Hard Reset (Cease: Hard Reset)"),
        (6, 200, "", "Cease: Subcode 200"),
        (99, 0, "", "Error 99"),
        (99, 7, "", "Error 99: Subcode 7"),
    ],
)
def test_a_notification_in_words(code: int, subcode: int, content: str, reason: str) -> None:
    assert Notification(code, subcode, octets(content)).reason == reason


def test_a_hard_reset_holds_the_reason() -> None:
    inner = Notification(6, 2, communication("rack 7 moves"))
    assert hard_reset(inner).reason == "Cease: Hard Reset (Cease: Administrative Shutdown: rack 7 moves)"
    assert hard_reset(inner).content == bytes((6, 2)) + inner.content


@given(st.text(st.characters(codec="utf-8"), max_size=400))
def test_a_shutdown_communication_is_cut_between_characters(text: str) -> None:
    content = communication(text)
    assert content[0] == len(content) - 1 <= 255
    assert text.startswith(content[1:].decode())
    assert content[0] == len(text.encode()) or content[0] > 251


@given(st.binary(max_size=600))
def test_any_notification_has_words(body: bytes) -> None:
    if len(body) < 2:
        with pytest.raises(MessageError, match="1/2"):
            decode_notification(body)
    else:
        assert all(one.isprintable() for one in decode_notification(body).reason)


def test_a_nest_of_hard_resets_is_not_followed() -> None:
    assert Notification(6, 9, bytes((6, 9)) * 2000).reason == "Cease: Hard Reset (Cease: Hard Reset)"


def test_a_notification_is_never_too_large() -> None:
    assert len(encode_notification(Notification(3, 5, bytes(65535)))) == LARGEST


# ROUTE-REFRESH


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("kind", RefreshKind)
def test_route_refresh_both_ways(family: Family, kind: RefreshKind) -> None:
    written = encode_route_refresh(RouteRefresh(family, kind))
    assert written == message(5, bytes((0, 1 if family is V4 else 2, kind, 1)))
    ((_, body),), _ = split(written, LARGEST)
    assert decode_route_refresh(body) == RouteRefresh(family, kind)


@pytest.mark.parametrize("body", ["0001 03 01", "0001 ff 01", "0001 00 02", "0019 00 46", "ffff 00 ff"])
def test_a_route_refresh_of_something_else_is_ignored(body: str) -> None:
    assert decode_route_refresh(octets(body)) is None


@pytest.mark.parametrize("body", ["0001 01 01 00", "0001 02", "0001 00 01 01 40 0000"])
def test_a_route_refresh_of_another_length_is_an_error_of_its_own(body: str) -> None:
    with pytest.raises(MessageError) as caught:
        decode_route_refresh(octets(body))
    assert (caught.value.code, caught.value.subcode) == (7, 1)
    assert caught.value.content == message(5, octets(body))


def test_an_open_with_all_capabilities_stays_one_octet_long() -> None:
    """Encoding has one optional parameter: everything that can be said fits into it."""
    both = tuple(Family)
    most = Capabilities(
        families=frozenset(both),
        asn4=2**32 - 1,
        route_refresh=True,
        enhanced_route_refresh=True,
        extended_messages=True,
        extended_next_hops=frozenset(both),
        add_path=tuple((one, AddPath.BOTH) for one in both),
        graceful_restart=GracefulRestart(True, 9999, tuple(RestartFamily(one, True) for one in both), True),
        long_lived=tuple(RestartFamily(one, True, 2**30) for one in both),
    )
    read = decode_open(encode_open(Open(2**32 - 1, 90, IPv4Address("10.0.0.1"), most))[19:]).capabilities
    assert most.graceful_restart is not None
    assert read == replace(
        most,
        graceful_restart=replace(most.graceful_restart, seconds=4095),
        long_lived=tuple(RestartFamily(one, True, 2**24 - 1) for one in both),
    )
