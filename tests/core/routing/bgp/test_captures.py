"""BGP messages that are captured: what is said of each, what of them waits and how long, and what it costs nobody."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from proto.bgp_capture import LEASE, MAX_CAPTURES, MAX_MESSAGES, MAX_PREFIXES, CapturedMessage
from services.routing.core.bgp import captures
from services.routing.core.bgp.captures import Captures
from services.routing.core.bgp.codec.messages import (
    HEADER,
    KINDS,
    MessageKind,
    Notification,
    RefreshKind,
    RouteRefresh,
    communication,
    encode_notification,
    encode_open,
    encode_route_refresh,
    keepalive,
)
from services.routing.core.bgp.codec.updates import UpdateWriter
from services.routing.core.bgp.dissector import MOST_TEXT, Passed, dissect
from services.routing.core.bgp.peers import SessionSettings
from services.routing.core.bgp.session import negotiation
from services.routing.core.bgp.session.actions import OUTGOING, Established, Seen, Send
from services.routing.core.bgp.session.machine import Machine
from services.routing.core.bgp.values import (
    AddPath,
    Aggregator,
    Agreed,
    Attributes,
    Family,
    Origin,
    Segment,
    SegmentKind,
    UnknownAttribute,
    prefix_of,
)

AGREED = Agreed(families=frozenset(Family), four_octets=True, external=True)
BOTH_WAYS = replace(AGREED, sends_paths=frozenset({Family.IPV4}))
SETTINGS = SessionSettings(
    address=ip_address("10.0.0.9"),
    local_asn=65001,
    peer_asn=65009,
    router_id=ip_address("10.0.0.1"),  # type: ignore[arg-type]
    password="topsecret",
    add_path=((Family.IPV4, AddPath.BOTH),),
)
PATH = (Segment(SegmentKind.SEQUENCE, (65009, 65010)), Segment(SegmentKind.SET, (65011, 65012)))
ATTRIBUTES = Attributes(
    origin=Origin.EGP,
    as_path=PATH,
    next_hop=ip_address("10.0.0.9"),
    med=7,
    atomic_aggregate=True,
    aggregator=Aggregator(65010, ip_address("10.0.0.10")),  # type: ignore[arg-type]
    communities=(65009 << 16 | 7, 0xFFFFFF01),
    extended_communities=(bytes.fromhex("0002fde800000064"),),
    large_communities=((65009, 7, 8),),
    unknown=(UnknownAttribute(0xE0, 99, b"\1\2"),),
)


def passed(message: bytes, **more: Any) -> Passed:
    usual: dict[str, Any] = {
        "peer": "rack/10.0.0.9",
        "time_ns": 1_700_000_000_000_000_000,
        "sent": False,
        "link": OUTGOING,
        "kind": KINDS[message[HEADER - 1]],
        "body": message[HEADER:],
        "agreed": AGREED,
    }
    return Passed(**(usual | more))


def read(message: bytes, **more: Any) -> CapturedMessage:
    return dissect(passed(message, **more), 1, 0)


def update(
    *texts: str, attributes: Attributes = ATTRIBUTES, agreed: Agreed = AGREED, ids: tuple[int, ...] = ()
) -> bytes:
    prefixes = [prefix_of(ip_network(text)) for text in texts]
    written = UpdateWriter(agreed).write(prefixes[0][0], attributes, [prefix for _, prefix in prefixes], ids)
    assert isinstance(written, list)
    [message] = written
    return message


def test_an_update_has_its_attributes_in_the_terms_of_the_rfcs() -> None:
    said = read(update("10.1.0.0/24", "10.2.0.0/16"))
    assert (said.type, said.direction, said.connection, said.octets) == ("UPDATE", "received", "outgoing", said.octets)
    [part] = said.reachable
    assert (part.family, [str(one) for one in part.prefixes]) == (4, ["10.1.0.0/24", "10.2.0.0/16"])
    assert dict(part.attributes) == {
        "ORIGIN": "EGP",
        "AS_PATH": "65009 65010 {65011 65012}",
        "NEXT_HOP": "10.0.0.9",
        "MULTI_EXIT_DISC": "7",
        "ATOMIC_AGGREGATE": "",
        "AGGREGATOR": "65010 10.0.0.10",
        "COMMUNITIES": "65009:7 no-export",
        "EXTENDED COMMUNITIES": "0002fde800000064",
        "LARGE_COMMUNITY": "65009:7:8",
        "attribute 99": "0102",
    }
    assert not said.faults


def test_prefixes_that_are_taken_back_and_the_end_of_a_table() -> None:
    writer = UpdateWriter(AGREED)
    [gone] = writer.withdraw(Family.IPV6, [prefix_of(ip_network("fd00:1::/64"))[1]])
    [part] = read(gone).withdrawn
    assert (part.family, [str(one) for one in part.prefixes], part.attributes) == (6, ["fd00:1::/64"], ())
    end = read(writer.end_of_rib(Family.IPV6))
    assert (end.end_of_rib, end.family, end.reachable, end.withdrawn) == (True, 6, (), ())


def test_what_is_sent_has_the_identifiers_that_the_peer_takes() -> None:
    message = update("10.1.0.0/24", agreed=BOTH_WAYS, ids=(7,))
    [part] = read(message, agreed=BOTH_WAYS, sent=True).reachable
    assert part.path_ids == (7,)
    assert read(message, agreed=BOTH_WAYS, sent=True).direction == "sent"
    assert read(message, agreed=BOTH_WAYS).reachable != (part,), "received ones have none"


def test_open_says_who_it_is_and_what_it_can_do_and_no_password() -> None:
    opening = negotiation.opening(SETTINGS, negotiation.offered(SETTINGS))
    said = read(encode_open(opening), agreed=None, link=1)
    assert said.connection == "incoming"
    assert said.open is not None
    assert (said.open.asn, said.open.hold_seconds, str(said.open.router_id)) == (65001, 90, "10.0.0.1")
    for one in ("IPv4 unicast", "IPv6 unicast", "four-octet AS 65001", "ADD-PATH IPv4 send and receive"):
        assert one in said.open.capabilities
    assert any(one.startswith("graceful restart 120 s") for one in said.open.capabilities)
    assert "topsecret" not in repr(said)


OTHERS: tuple[tuple[bytes, dict[str, object]], ...] = (
    (keepalive(), {"type": "KEEPALIVE", "octets": 19}),
    (encode_route_refresh(RouteRefresh(Family.IPV6)), {"type": "ROUTE-REFRESH", "refresh": "request", "family": 6}),
    (encode_route_refresh(RouteRefresh(Family.IPV4, RefreshKind.BEGINNING)), {"refresh": "begin", "family": 4}),
    (encode_route_refresh(RouteRefresh(Family.IPV4, RefreshKind.END)), {"refresh": "end", "family": 4}),
)


@pytest.mark.parametrize(("message", "fields"), OTHERS)
def test_each_other_type(message: bytes, fields: dict[str, object]) -> None:
    said = read(message)
    assert {name: getattr(said, name) for name in fields} == fields


def test_a_notification_is_in_words() -> None:
    found = read(encode_notification(Notification(6, 2, communication("maintenance until noon")))).notification
    assert found is not None
    assert (found.code, found.subcode) == (6, 2)
    assert "maintenance until noon" in found.reason


# The attribute that is spoilt, octet by octet; what RFC 7606 makes of it.
FAULTS = (
    ("treat-as-withdraw", "ORIGIN", bytes((0x40, 1, 1, 0)), bytes((0x40, 1, 1, 9))),
    ("attribute discard", "ATOMIC_AGGREGATE", bytes((0x40, 6, 0)), bytes((0x40, 6, 1, 0))),
)
PLAIN = Attributes(
    origin=Origin.IGP,
    as_path=(Segment(SegmentKind.SEQUENCE, (65009,)),),
    next_hop=ip_address("10.0.0.9"),
    atomic_aggregate=True,
)


@pytest.mark.parametrize(("treatment", "about", "right", "wrong"), FAULTS)
def test_what_is_wrong_with_an_attribute_is_said_with_what_became_of_it(
    treatment: str, about: str, right: bytes, wrong: bytes
) -> None:
    message = update("10.1.0.0/24", attributes=PLAIN)
    assert message.count(right) == 1
    body = message.replace(right, wrong)[HEADER:]
    size = int.from_bytes(body[2:4]) + len(wrong) - len(right)
    said = read(message, body=body[:2] + size.to_bytes(2) + body[4:])
    [fault] = said.faults
    assert (fault.treatment, fault.about) == (treatment, about)
    assert fault.reason
    withdrawn = treatment == "treat-as-withdraw"
    assert bool(said.withdrawn) is withdrawn
    assert bool(said.reachable) is not withdrawn


def test_what_ends_the_session_is_said() -> None:
    message = update("10.1.0.0/24")
    [fault] = read(message, body=b"\xff\xff" + message[HEADER + 2 :]).faults
    assert (fault.treatment, fault.about) == ("session reset", "")
    [fault] = read(keepalive(), kind=None, body=b"", refused="the marker of a message is not all ones").faults
    assert fault.reason == "the marker of a message is not all ones"


def test_what_is_said_of_one_message_is_bounded() -> None:
    longest = replace(ATTRIBUTES, communities=tuple(range(500)))
    agreed = replace(AGREED, largest_message=65_535)
    [part] = read(
        update(*(f"10.1.{number}.0/24" for number in range(200)), attributes=longest, agreed=agreed)
    ).reachable
    assert (len(part.prefixes), part.left_out) == (MAX_PREFIXES, 200 - MAX_PREFIXES)
    assert {len(value) for name, value in part.attributes if name == "COMMUNITIES"} == {MOST_TEXT}


# Who captures, and what waits.


def test_nothing_waits_for_nobody_and_a_capture_ends_when_nobody_asks() -> None:
    known = Captures()
    assert not known.want("rack/10.0.0.9")
    capture = known.ask(100.0, "a", "rack")
    assert capture is not None
    assert known.want("rack/10.0.0.9")
    assert not known.want("mesh/n2")
    known.put(100.0 + LEASE - 1, passed(keepalive()))
    known.put(100.0 + LEASE - 1, passed(keepalive(), peer="mesh/n2"))
    assert [one.peer for one in capture.take()[0]] == ["rack/10.0.0.9"]
    assert known.ask(100.0 + LEASE - 1, "a", "rack") is capture
    known.put(100.0 + 2 * LEASE - 2, passed(keepalive()))
    assert len(known) == 1, "it was asked for again"
    known.put(100.0 + 2 * LEASE - 1, passed(keepalive()))
    assert len(known) == 0
    assert not known.want("rack/10.0.0.9")


def test_each_capture_has_its_own_messages_and_there_are_only_so_many() -> None:
    known = Captures()
    found = [known.ask(0.0, str(number), "") for number in range(MAX_CAPTURES + 1)]
    assert found[-1] is None
    known.put(1.0, passed(keepalive()))
    for one in found[:-1]:
        assert one is not None
        messages, missed = one.take()
        assert [(message.number, message.type) for message in messages] == [(1, "KEEPALIVE")]
        assert (one.take(), missed) == (((), 0), 0)


def test_what_finds_no_room_is_counted_where_it_would_have_been(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captures, "MOST_WAITING", 3)
    capture = Captures().ask(0.0, "a", "")
    assert capture is not None
    for _ in range(5):
        capture.put(passed(keepalive()))
    messages, missed = capture.take()
    assert ([one.number for one in messages], missed) == ([1, 2, 3], 2)
    for _ in range(4):
        capture.put(passed(keepalive()))
    capture.waiting.popleft()
    capture.put(passed(keepalive()))
    messages, missed = capture.take()
    assert ([(one.number, one.missed) for one in messages], missed) == ([(4, 0), (5, 0), (6, 1)], 0)


def test_what_waits_and_what_is_answered_is_bounded_in_octets() -> None:
    capture = Captures().ask(0.0, "a", "")
    assert capture is not None
    body = update("10.1.0.0/24")[HEADER:].ljust(60_000, b"\0")
    count = captures.MOST_WAITING_OCTETS // len(body)
    for _ in range(count + 4):
        capture.put(passed(keepalive(), kind=MessageKind.UPDATE, body=body))
    assert capture.missed == 4
    answered = 0
    while messages := capture.take()[0]:
        answered += len(messages)
        assert sum(one.octets for one in messages) <= captures.ANSWERED_OCTETS + len(body) + HEADER
    assert (answered, capture.octets) == (count, 0)
    for _ in range(MAX_MESSAGES + 1):
        capture.put(passed(keepalive()))
    assert [len(capture.take()[0]), len(capture.take()[0])] == [MAX_MESSAGES, 1]


# Where they come from.


def established(*, captured: bool) -> Machine:
    machine = Machine(SETTINGS, lambda: 0.5)
    machine.captured = captured
    machine.start(0.0)
    machine.connected(0.1)
    return machine


def theirs() -> bytes:
    peer = replace(SETTINGS, local_asn=65009, peer_asn=65001, router_id=ip_address("10.0.0.9"))  # type: ignore[arg-type]
    return encode_open(negotiation.opening(peer, negotiation.offered(peer)))


def test_a_machine_reports_each_message_as_it_came_and_none_when_nobody_captures() -> None:
    said = [theirs(), keepalive(), update("10.1.0.0/24", attributes=PLAIN, agreed=BOTH_WAYS)]
    machine = established(captured=True)
    actions = machine.received(1.0, OUTGOING, b"".join(said))
    assert any(isinstance(one, Established) for one in actions)
    seen = [one for one in actions if isinstance(one, Seen)]
    assert [(one.kind, one.body, one.refused) for one in seen] == [
        (KINDS[one[HEADER - 1]], one[HEADER:], "") for one in said
    ]
    assert seen[-1].agreed is not None
    quiet = established(captured=False).received(1.0, OUTGOING, b"".join(said))
    assert [one for one in actions if not isinstance(one, Seen)] == quiet


@pytest.mark.parametrize("what", [b"\0" * HEADER, theirs().replace((65009).to_bytes(2), (65008).to_bytes(2))])
def test_a_machine_reports_why_it_refuses_a_message_before_it_says_so(what: bytes) -> None:
    actions = established(captured=True).received(1.0, OUTGOING, what)
    seen = next(index for index, one in enumerate(actions) if isinstance(one, Seen))
    sent = next(index for index, one in enumerate(actions) if isinstance(one, Send) and one.last)
    assert seen < sent
    said = actions[seen]
    assert isinstance(said, Seen)
    assert said.refused
