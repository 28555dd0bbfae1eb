"""A peer's machine by itself: messages as bytes in, actions out, with the clock in the test's hand."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from services.routing.core.bgp.codec.errors import Cease
from services.routing.core.bgp.codec.messages import (
    MessageKind,
    Notification,
    Open,
    RouteRefresh,
    communication,
    decode_notification,
    decode_open,
    encode_notification,
    encode_open,
    encode_route_refresh,
    keepalive,
    message,
    split,
)
from services.routing.core.bgp.codec.updates import UpdateWriter
from services.routing.core.bgp.session import negotiation
from services.routing.core.bgp.session.actions import (
    INCOMING,
    OUTGOING,
    Action,
    Close,
    Connect,
    Established,
    Link,
    Lost,
    Received,
    Send,
)
from services.routing.core.bgp.session.machine import OPEN_HOLD, SEND_HOLD, SETTLED, Machine
from services.routing.core.bgp.session.reasons import Reason
from services.routing.core.bgp.session.table import State
from services.routing.core.bgp.values import (
    AddPath,
    Agreed,
    Capabilities,
    Family,
    GracefulRestart,
    RestartFamily,
    Update,
)
from tests.core.routing.bgp.world import settings

OURS = settings(1, 2, hold_seconds=9)
THEIRS = settings(2, 1, hold_seconds=30)
GONE = Reason("the connection broke")


def open_of(peer: object = THEIRS, **more: object) -> Open:
    """The peer's OPEN, with changes."""
    opened = negotiation.opening(peer, negotiation.offered(peer))  # type: ignore[arg-type]
    return replace(opened, **more)  # type: ignore[arg-type]


class Bench:
    """A machine, and what it asked for; ``chance`` is always 0."""

    def __init__(self, ours: object = OURS, **more: object) -> None:
        self.machine = Machine(ours, lambda: 0.0, **more)  # type: ignore[arg-type]
        self.now = 0.0
        self.done: list[Action] = []

    def state(self) -> State:
        return self.machine.state

    def do(self, actions: list[Action]) -> list[Action]:
        self.done += actions
        return actions

    def start(self) -> Bench:
        self.do(self.machine.start(self.now))
        return self

    def to(self, now: float) -> list[Action]:
        """Let the time pass, with a tick at each deadline."""
        seen: list[Action] = []
        while (deadline := self.machine.deadline) is not None and deadline <= now:
            self.now = max(self.now, deadline)
            seen += self.do(self.machine.tick(self.now))
        self.now = now
        return seen

    def connected(self) -> Bench:
        self.do(self.machine.connected(self.now))
        return self

    def accept(self) -> Link | None:
        link, actions = self.machine.accept(self.now)
        self.do(actions)
        return link

    def hear(self, *messages: bytes, link: Link = OUTGOING) -> list[Action]:
        return self.do(self.machine.received(self.now, link, b"".join(messages)))

    def opened(self, theirs: Open | None = None) -> Bench:
        self.start().connected().hear(encode_open(theirs or open_of()))
        return self

    def established(self, theirs: Open | None = None) -> Bench:
        self.opened(theirs).hear(keepalive())
        assert self.state() is State.ESTABLISHED
        return self

    def at(self, state: State) -> Bench:
        reached = {
            State.OPEN_SENT: lambda: self.start().connected(),
            State.OPEN_CONFIRM: self.opened,
            State.ESTABLISHED: self.established,
        }
        return reached[state]()


def sent(actions: list[Action], kind: MessageKind, link: Link | None = None) -> list[memoryview]:
    """Bodies of messages of a kind that were sent."""
    octets = b"".join(one.octets for one in actions if isinstance(one, Send) and link in (None, one.link))
    return [body for of, body in split(octets, 65535)[0] if of is kind]


def notified(actions: list[Action]) -> list[tuple[int, int, bytes]]:
    found = [decode_notification(body) for body in sent(actions, MessageKind.NOTIFICATION)]
    return [(one.code, one.subcode, one.content) for one in found]


def lost(actions: list[Action]) -> list[Lost]:
    return [one for one in actions if isinstance(one, Lost)]


# A session comes up.


def test_a_session_comes_up_by_open_and_keepalive() -> None:
    bench = Bench().start()
    assert bench.done == [Connect()]
    bench = bench.connected()
    ours = decode_open(sent(bench.done, MessageKind.OPEN)[0])
    assert (ours.asn, ours.hold_seconds, ours.router_id) == (65001, 9, ip_address("10.0.0.1"))
    assert bench.state() is State.OPEN_SENT
    seen = bench.hear(encode_open(open_of()))
    assert sent(seen, MessageKind.KEEPALIVE)
    assert bench.state() is State.OPEN_CONFIRM
    (established,) = bench.hear(keepalive())
    assert isinstance(established, Established)
    assert established.hold_seconds == 9
    assert established.agreed.external
    assert established.agreed.families == frozenset(Family)


@pytest.mark.parametrize("cut", range(1, 80))
def test_messages_come_in_any_pieces(cut: int) -> None:
    bench = Bench().start().connected()
    stream = encode_open(open_of()) + keepalive() + UpdateWriter(agreed()).end_of_rib(Family.IPV6)
    for at in range(0, len(stream), cut):
        bench.hear(stream[at : at + cut])
    assert [one.message for one in bench.done if isinstance(one, Received)] == [Update(end_of_rib=Family.IPV6)]


def agreed() -> Agreed:
    return negotiation.agree(negotiation.offered(OURS), negotiation.offered(THEIRS), external=True)


def test_the_peers_connection_is_taken_while_ours_is_made() -> None:
    bench = Bench().start()
    link = bench.accept()
    assert link in INCOMING
    assert link is not None
    seen = bench.hear(encode_open(open_of()), keepalive(), link=link)
    assert Close(OUTGOING) in seen, "the attempt is given up"
    assert bench.state() is State.ESTABLISHED


def test_a_passive_peer_is_waited_for_and_never_connected_to() -> None:
    bench = Bench(replace(OURS, passive=True)).start()
    bench.to(1000.0)
    assert Connect() not in bench.done
    link = bench.accept()
    assert link is not None
    bench.hear(encode_open(open_of()), keepalive(), link=link)
    assert bench.state() is State.ESTABLISHED


def test_nobody_is_accepted_before_the_start_and_after_the_stop() -> None:
    bench = Bench()
    assert bench.accept() is None
    bench.start()
    bench.do(bench.machine.stop(0.0, Cease.ADMINISTRATIVE_SHUTDOWN))
    assert bench.accept() is None
    assert bench.machine.deadline is None


# What is refused of an OPEN.


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        (open_of(asn=65009, capabilities=Capabilities(asn4=65009)), (2, 2)),
        (open_of(settings(2, 1, local_asn=70_000)), (2, 2)),
        (open_of(capabilities=Capabilities(asn4=65002, families=frozenset({Family.IPV6}))), (2, 7)),
    ],
    ids=["AS", "AS of four octets", "no family in common"],
)
def test_an_open_is_refused(theirs: Open, expected: tuple[int, int]) -> None:
    bench = Bench(replace(OURS, families=frozenset({Family.IPV4}))).start().connected()
    seen = bench.hear(encode_open(theirs))
    assert [one[:2] for one in notified(seen)] == [expected]
    assert seen[-1] == Close(OUTGOING)
    fault = bench.machine.fault
    assert fault is not None
    assert (fault.code, fault.subcode) == expected
    assert fault.remedy
    assert bench.accept() is None, "an error of the peer damps its own connections, too"


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (b"\x03\xfd\xea\x00\x1e\x0a\x00\x00\x02\x00", (2, 1)),
        (b"\x04\xfd\xea\x00\x1e\x00\x00\x00\x00\x00", (2, 3)),
        (b"\x04\xfd\xea\x00\x01\x0a\x00\x00\x02\x00", (2, 6)),
        (b"\x04\xfd\xea\x00\x02\x0a\x00\x00\x02\x00", (2, 6)),
        (b"\x04\xfd\xea\x00\x1e\x0a\x00\x00\x02\x03\x01\x01\x00", (2, 4)),
        (b"\x04\x00\x00\x00\x1e\x0a\x00\x00\x02\x00", (2, 2)),
    ],
    ids=["version 3", "router id 0.0.0.0", "hold time 1", "hold time 2", "unknown parameter", "AS 0"],
)
def test_octets_of_an_open_are_refused(octets: bytes, expected: tuple[int, int]) -> None:
    seen = Bench().start().connected().hear(message(MessageKind.OPEN, octets))
    assert [one[:2] for one in notified(seen)] == [expected]


def test_a_router_id_may_be_the_same_in_another_autonomous_system_alone() -> None:
    same = open_of(router_id=OURS.router_id)
    assert Bench().established(same).machine.session is not None
    inside = replace(OURS, peer_asn=65001)
    theirs = open_of(asn=65001, router_id=OURS.router_id, capabilities=Capabilities(asn4=65001))
    seen = Bench(inside).start().connected().hear(encode_open(theirs))
    assert notified(seen) == [(2, 3, OURS.router_id.packed)]


def test_a_peer_without_capabilities_carries_ipv4_with_two_octets() -> None:
    bench = Bench().established(open_of(capabilities=Capabilities()))
    session = bench.machine.session
    assert session is not None
    assert session.agreed == Agreed(families=frozenset({Family.IPV4}), four_octets=False, external=True)


@pytest.mark.parametrize(
    ("ours", "theirs", "receives", "sends"),
    [
        (AddPath.BOTH, AddPath.BOTH, True, True),
        (AddPath.BOTH, AddPath.SEND, True, False),
        (AddPath.RECEIVE, AddPath.BOTH, True, False),
        (AddPath.SEND, AddPath.RECEIVE, False, True),
        (AddPath.SEND, AddPath.SEND, False, False),
        (AddPath.RECEIVE, AddPath.RECEIVE, False, False),
    ],
)
def test_add_path_goes_where_one_sends_and_the_other_receives(
    ours: AddPath, theirs: AddPath, receives: bool, sends: bool
) -> None:
    sides = [
        negotiation.offered(replace(of, add_path=((Family.IPV4, way),))) for of, way in ((OURS, ours), (THEIRS, theirs))
    ]
    got = negotiation.agree(*sides, external=True)
    assert got.receives_paths == (frozenset({Family.IPV4}) if receives else frozenset())
    assert got.sends_paths == (frozenset({Family.IPV4}) if sends else frozenset())


def test_what_only_one_side_offers_is_not_agreed_on() -> None:
    full = negotiation.offered(replace(OURS, extended_next_hops=frozenset({Family.IPV4})))
    bare = Capabilities(families=frozenset({Family.IPV6}))
    for ours, theirs in ((full, bare), (bare, full)):
        assert negotiation.agree(ours, theirs, external=False) == Agreed(
            families=frozenset({Family.IPV6}), four_octets=False, external=False
        )


# NOTIFICATIONs, both ways.

UNEXPECTED = [
    (State.OPEN_SENT, keepalive(), 1),
    (State.OPEN_SENT, UpdateWriter(agreed()).end_of_rib(Family.IPV4), 1),
    (State.OPEN_SENT, encode_route_refresh(RouteRefresh(Family.IPV4)), 1),
    (State.OPEN_CONFIRM, encode_open(open_of()), 2),
    (State.OPEN_CONFIRM, UpdateWriter(agreed()).end_of_rib(Family.IPV4), 2),
    (State.OPEN_CONFIRM, encode_route_refresh(RouteRefresh(Family.IPV4)), 2),
    (State.ESTABLISHED, encode_open(open_of()), 3),
]


@pytest.mark.parametrize(("state", "octets", "subcode"), UNEXPECTED)
def test_what_is_not_expected_ends_the_connection(state: State, octets: bytes, subcode: int) -> None:
    """RFC 6608: the subcode says in which state, the content which message."""
    bench = Bench().at(state)
    assert notified(bench.hear(octets)) == [(5, subcode, octets[18:19])]
    assert bench.state() in (State.IDLE, State.ACTIVE)


@pytest.mark.parametrize("state", [State.OPEN_SENT, State.OPEN_CONFIRM, State.ESTABLISHED], ids=str)
@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (b"\xfe" + b"\xff" * 15 + b"\x00\x13\x04", (1, 1, b"")),
        (b"\xff" * 16 + b"\x00\x12\x04", (1, 2, b"\x00\x12")),
        (b"\xff" * 16 + b"\x00\x14\x04", (1, 2, b"\x00\x14")),
        (b"\xff" * 16 + b"\x00\x13\x09", (1, 3, b"\x09")),
    ],
    ids=["marker", "short", "a KEEPALIVE with a body", "type"],
)
def test_a_header_is_refused(state: State, octets: bytes, expected: tuple[int, int, bytes]) -> None:
    assert notified(Bench().at(state).hear(octets)) == [expected]


def test_an_update_that_cannot_be_read_ends_the_session() -> None:
    bench = Bench().established()
    seen = bench.hear(message(MessageKind.UPDATE, b"\x00\x09\x00\x00"))
    assert [one[:2] for one in notified(seen)] == [(3, 1)]
    assert [one.reason.code for one in lost(seen)] == [3]


def test_a_route_refresh_of_another_length_ends_the_session() -> None:
    bench = Bench().established()
    refresh = message(MessageKind.ROUTE_REFRESH, bytes(5))
    assert notified(bench.hear(refresh)) == [(7, 1, refresh)]


ALL = [
    (1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (2, 4), (2, 5), (2, 6), (2, 7), (2, 11),
    *((3, subcode) for subcode in range(1, 12)),
    (4, 0), (5, 0), (5, 1), (5, 2), (5, 3),
    *((6, subcode) for subcode in range(1, 11)),
    (7, 1), (8, 0), (99, 99),
]  # fmt: skip


@pytest.mark.parametrize(("code", "subcode"), ALL)
@pytest.mark.parametrize("state", [State.OPEN_SENT, State.OPEN_CONFIRM, State.ESTABLISHED], ids=str)
def test_a_notification_of_the_peer_ends_the_connection_unanswered(state: State, code: int, subcode: int) -> None:
    bench = Bench().at(state)
    before = len(bench.done)
    bench.hear(encode_notification(Notification(code, subcode)), keepalive())
    after = bench.done[before:]
    assert not sent(after, MessageKind.NOTIFICATION)
    assert Close(OUTGOING) in after
    fault = bench.machine.fault
    assert fault is not None
    assert (fault.code, fault.subcode, fault.ours) == (code, subcode, False)
    assert len(lost(after)) == (state is State.ESTABLISHED)


@pytest.mark.parametrize("cease", Cease)
def test_a_session_is_ended_from_outside(cease: Cease) -> None:
    bench = Bench().established(open_of(replace(THEIRS, restart_seconds=0)))
    seen = bench.do(bench.machine.stop(bench.now, cease, again_after=5.0))
    assert notified(seen) == [(6, cease, b"")]
    assert [one.reason.subcode for one in lost(seen)] == [cease]
    assert Connect() not in bench.to(4.9)
    assert Connect() in bench.to(70.0)


@pytest.mark.parametrize("cease", [Cease.ADMINISTRATIVE_SHUTDOWN, Cease.ADMINISTRATIVE_RESET])
def test_a_shutdown_carries_its_text(cease: Cease) -> None:
    """RFC 9003; what does not fit is cut between two characters."""
    text = "maintenance until 6: ring +1 555 0100 ☎" * 10
    bench = Bench().established(open_of(replace(THEIRS, restart_seconds=0)))
    ((_, _, content),) = notified(bench.do(bench.machine.stop(0.0, cease, text=text)))
    assert content == communication(text)
    other = Bench(THEIRS).established(open_of(OURS))
    (report,) = lost(other.hear(encode_notification(Notification(6, cease, content))))
    assert content[1:].decode() in report.reason.text


def test_the_end_for_too_many_prefixes_waits_longer_each_time() -> None:
    bench, waits = Bench().start(), []
    for _ in range(6):
        bench.connected().hear(encode_open(open_of()), keepalive())
        assert bench.machine.session is not None
        bench.do(bench.machine.stop(bench.now, Cease.MAXIMUM_PREFIXES, again_after=30.0))
        assert bench.accept() is None
        began = bench.now
        while Connect() not in bench.to(bench.now + 1):
            pass
        waits.append(round(bench.now - began))
    assert waits == [30, 60, 120, 240, 240, 240]


@pytest.mark.parametrize(
    ("cease", "wrapped"),
    [
        (Cease.MAXIMUM_PREFIXES, True),
        (Cease.ADMINISTRATIVE_SHUTDOWN, True),
        (Cease.PEER_DECONFIGURED, True),
        (Cease.ADMINISTRATIVE_RESET, False),
        (Cease.CONFIGURATION_CHANGE, False),
    ],
)
def test_what_is_meant_to_take_the_routes_away_is_a_hard_reset(cease: Cease, wrapped: bool) -> None:
    """RFC 8538: with the N bit of both, a plain Cease would let the peer keep the routes."""
    bench = Bench().established()
    ((code, subcode, content),) = notified(bench.do(bench.machine.stop(0.0, cease)))
    assert (code, subcode, content[:2]) == ((6, 9, bytes((6, cease))) if wrapped else (6, cease, b""))
    other = Bench(THEIRS).established(open_of(OURS))
    (report,) = lost(other.hear(encode_notification(Notification(code, subcode, content))))
    assert report.kept == (frozenset() if wrapped else frozenset(Family))
    assert (report.reason.code, report.reason.subcode) == (6, cease)


# Timers.


def test_keepalives_are_sent_within_a_third_of_the_hold_time() -> None:
    bench = Bench().established()
    for second in range(3, 60, 3):
        assert sent(bench.to(float(second)), MessageKind.KEEPALIVE)
        bench.hear(keepalive())
    assert bench.machine.session is not None


def test_a_silent_peer_is_given_up_when_the_hold_time_is_over() -> None:
    bench = Bench().established()
    bench.to(5.0)
    bench.hear(keepalive())
    assert not lost(bench.to(13.99))
    seen = bench.to(14.0)
    assert notified(seen) == [(4, 0, b"")]
    assert lost(seen)


def test_an_update_is_a_sign_too() -> None:
    bench = Bench().established()
    for second in range(4, 40, 4):
        bench.to(float(second))
        bench.hear(UpdateWriter(agreed()).end_of_rib(Family.IPV4))
    assert bench.machine.session is not None


def test_without_a_hold_time_nothing_expires_and_no_keepalive_is_sent() -> None:
    bench = Bench(replace(OURS, hold_seconds=0)).established()
    before = len(bench.done)
    bench.to(100_000.0)
    assert bench.done[before:] == []


def test_without_a_hold_time_a_keepalive_is_waited_for_once() -> None:
    bench = Bench(replace(OURS, hold_seconds=0)).opened()
    assert notified(bench.to(OPEN_HOLD)) == [(4, 0, b"")]


def test_an_open_is_waited_for() -> None:
    bench = Bench().start().connected()
    assert not notified(bench.to(OPEN_HOLD - 1))
    assert notified(bench.to(OPEN_HOLD)) == [(4, 0, b"")]


def test_a_peer_that_takes_nothing_is_given_up() -> None:
    """RFC 9687: it sends KEEPALIVEs, but its window stays closed."""
    bench = Bench(replace(OURS, hold_seconds=90)).established()
    bench.to(10.0)
    bench.machine.sent(bench.now, OUTGOING)
    seen: list[Action] = []
    while not notified(seen) and bench.now < 1000:
        seen = bench.to(bench.now + 5)
        bench.hear(keepalive())
    assert notified(seen) == [(8, 0, b"")]
    assert bench.now == pytest.approx(10 + SEND_HOLD, abs=5)


def test_what_is_sent_defers_the_next_keepalive() -> None:
    bench = Bench().established()
    for second in range(1, 8):
        assert not sent(bench.to(float(second)), MessageKind.KEEPALIVE)
        bench.machine.sent(bench.now, OUTGOING)


def test_attempts_to_connect_come_less_often_up_to_the_retry_time() -> None:
    bench, waits = Bench().start(), []
    for _ in range(6):
        began = bench.now
        bench.do(bench.machine.failed(bench.now, OUTGOING, GONE))
        while Connect() not in bench.to(bench.now + 0.25):
            pass
        waits.append(bench.now - began)
    assert waits == [0.5, 1.0, 2.0, 2.5, 2.5, 2.5], "the lower half, as chance has it, of 1, 2, 4, 5"


def test_an_attempt_that_nobody_answers_is_repeated_with_its_reason() -> None:
    bench = Bench(replace(OURS, password="s3cret")).start()
    seen = bench.to(5.0)
    assert seen == [Close(OUTGOING), Connect()]
    assert bench.machine.fault is not None
    assert "password" in bench.machine.fault.remedy
    assert "s3cret" not in str(bench.machine.fault)


def test_errors_damp_and_a_session_that_lasted_forgives() -> None:
    bench, waits = Bench().start(), []
    for lasting in (0, 0, 0, 0, 61, 0):
        bench.connected().hear(encode_open(open_of(settings(2, 1, hold_seconds=0))), keepalive())
        bench.to(bench.now + lasting)
        began = bench.now
        bench.hear(message(MessageKind.UPDATE, b"\x00\x09\x00\x00"))
        assert bench.accept() is None
        while Connect() not in bench.to(bench.now + 0.25):
            pass
        waits.append(bench.now - began)
    assert waits == [0.5, 1.0, 2.0, 4.0, 0.5, 1.0]


def test_after_the_peers_notification_its_connection_is_taken_at_once() -> None:
    bench = Bench().established()
    bench.hear(encode_notification(Notification(6, Cease.ADMINISTRATIVE_RESET)))
    assert bench.accept() in INCOMING


# Collisions.


def test_no_other_connection_is_made_beside_a_session() -> None:
    """One that failed while its OPEN was waited for would be made again when its ConnectRetryTimer expires."""
    bench = Bench().start().connected()
    bench.do(bench.machine.failed(bench.now, OUTGOING, GONE))
    link = bench.accept()
    assert link is not None
    bench.hear(encode_open(open_of()), keepalive(), link=link)
    before = len(bench.done)
    for second in range(1, 40):
        bench.to(float(second))
        bench.hear(keepalive(), link=link)
    assert Connect() not in bench.done[before:]


@pytest.mark.parametrize(("number", "stays"), [(1, "theirs"), (3, "ours")])
@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_of_two_connections_the_greater_router_ids_stays(number: int, stays: str, first: str) -> None:
    bench = Bench(settings(number, 2)).start().connected()
    link = bench.accept()
    assert link is not None
    theirs = encode_open(open_of(settings(2, number)))
    order = [OUTGOING, link] if first == "ours" else [link, OUTGOING]
    for one in order:
        bench.hear(theirs, link=one)
    stay, go = (OUTGOING, link) if stays == "ours" else (link, OUTGOING)
    assert Close(go) in bench.done
    assert Close(stay) not in bench.done
    assert notified([one for one in bench.done if isinstance(one, Send) and one.link == go]) == [(6, 7, b"")]
    bench.hear(keepalive(), link=stay)
    session = bench.machine.session
    assert session is not None
    assert session.link == stay


def test_equal_router_ids_are_decided_by_the_number_of_the_system() -> None:
    """RFC 6286 2.3."""
    bench = Bench(settings(1, 2)).start().connected()
    link = bench.accept()
    assert link is not None
    same = encode_open(open_of(router_id=OURS.router_id))
    bench.hear(same)
    bench.hear(same, link=link)
    assert Close(OUTGOING) in bench.done, "65002 is more than 65001"


@pytest.mark.parametrize("restart", [True, False])
def test_a_connection_beside_a_session_is_a_restart_or_refused(restart: bool) -> None:
    """RFC 4724 4.2: the OPEN by the new connection ends the old one; soon after the first it is a collision."""
    bench = Bench().established(open_of(replace(THEIRS, restart_seconds=120 if restart else 0)))
    assert bench.accept() is None
    bench.to(SETTLED - 4)
    bench.hear(keepalive())
    bench.to(SETTLED + 1)
    link = bench.accept()
    if not restart:
        assert link is None
        return
    assert link is not None
    assert bench.state() is State.ESTABLISHED, "a connection alone ends nothing"
    seen = bench.hear(encode_open(open_of()), keepalive(), link=link)
    assert [one.kept for one in lost(seen)] == [frozenset(Family)]
    assert notified(seen) == []
    assert bench.machine.session is not None
    assert bench.machine.session.link == link


def test_silent_connections_of_the_peer_do_not_keep_it_out() -> None:
    bench = Bench(replace(OURS, passive=True)).start()
    links = [bench.accept() for _ in range(5)]
    assert None not in links
    assert links[-1] is not None
    bench.hear(encode_open(open_of()), keepalive(), link=links[-1])
    assert bench.state() is State.ESTABLISHED


# Restarts of this speaker.


def test_a_planned_restart_closes_without_a_word_where_routes_are_kept() -> None:
    bench = Bench().established()
    seen = bench.do(bench.machine.suspend(bench.now))
    assert not sent(seen, MessageKind.NOTIFICATION)
    assert Close(OUTGOING) in seen
    assert bench.machine.deadline is None or not bench.to(1000.0)


def test_a_planned_restart_says_so_where_they_are_not() -> None:
    bench = Bench().established(open_of(replace(THEIRS, restart_seconds=0)))
    assert notified(bench.do(bench.machine.suspend(bench.now))) == [(6, 4, b"")]


def test_the_password_is_in_no_text() -> None:
    ours = replace(OURS, password="s3cret")
    bench = Bench(ours).established()
    bench.to(100.0)
    assert "s3cret" not in repr((ours, bench.done, bench.machine.fault))


def test_restarting_capabilities() -> None:
    ours = negotiation.offered(replace(OURS, long_lived_seconds=3600), restarted=True, preserved=True)
    both = tuple(RestartFamily(family, preserved=True) for family in Family)
    assert ours.graceful_restart == GracefulRestart(restarted=True, seconds=120, families=both, notification=True)
    assert ours.long_lived == tuple(RestartFamily(family, True, 3600) for family in Family)
    assert negotiation.offered(replace(OURS, restart_seconds=0, long_lived_seconds=9)).long_lived == ()
