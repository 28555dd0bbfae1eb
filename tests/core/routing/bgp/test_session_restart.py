"""Restarts: which routes of a peer stay, for how long, and what this speaker waits for after its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from services.routing.core.bgp.codec.errors import Cease
from services.routing.core.bgp.codec.messages import (
    MessageKind,
    Notification,
    Open,
    decode_open,
    encode_notification,
    encode_open,
    keepalive,
    message,
)
from services.routing.core.bgp.codec.updates import UpdateWriter
from services.routing.core.bgp.session import negotiation
from services.routing.core.bgp.session.actions import OUTGOING, Connect, DeferSelection, Established, Lost
from services.routing.core.bgp.session.reasons import Reason
from services.routing.core.bgp.session.restart import REFRESHED, DropStale, LongLived
from services.routing.core.bgp.values import Agreed, Capabilities, Family, GracefulRestart, RestartFamily
from tests.core.routing.bgp.test_session_machine import OURS, THEIRS, Bench, open_of, sent

BOTH = frozenset(Family)
NONE: frozenset[Family] = frozenset()
FALLEN = Reason("the connection broke")
OURS_LONG = replace(OURS, long_lived_seconds=3600)
V4, V6 = frozenset({Family.IPV4}), frozenset({Family.IPV6})


def theirs(
    *kept: Family, seconds: int = 120, restarted: bool = False, notification: bool = True, long: int = 0
) -> Open:
    """The peer's OPEN: it keeps these families' forwarding state, and speaks of both."""
    offer = tuple(RestartFamily(family, family in kept) for family in Family)
    return open_of(
        capabilities=Capabilities(
            families=BOTH,
            asn4=65002,
            graceful_restart=GracefulRestart(restarted, seconds, offer, notification),
            long_lived=tuple(RestartFamily(family, family in kept, long) for family in Family if long),
        )
    )


def fall(bench: Bench) -> Lost:
    bench.do(bench.machine.failed(bench.now, OUTGOING, FALLEN))
    (lost,) = [one for one in bench.done if isinstance(one, Lost)]
    bench.done.clear()
    return lost


def back(bench: Bench, opened: Open) -> list[object]:
    """The session is up again: what tables hear."""
    while Connect() not in bench.done:
        bench.to(bench.now + 0.5)
    bench.connected().hear(encode_open(opened), keepalive())
    return [one for one in bench.done if isinstance(one, DropStale | LongLived | DeferSelection)]


def end_of_rib(family: Family) -> bytes:
    return UpdateWriter(Agreed(families=BOTH, four_octets=True, external=True)).end_of_rib(family)


def drops(actions: Sequence[object]) -> list[frozenset[Family]]:
    return [one.families for one in actions if isinstance(one, DropStale)]


# The peer restarts.


@pytest.mark.parametrize(
    ("ours", "opened", "kept"),
    [
        (OURS, theirs(*Family), BOTH),
        (OURS, theirs(), BOTH),  # what it keeps, its next OPEN says
        (OURS, theirs(seconds=0), NONE),
        (replace(OURS, restart_seconds=0), theirs(*Family), NONE),
        (OURS, open_of(capabilities=Capabilities(families=BOTH, asn4=65002)), NONE),
        (replace(OURS, families=V4), theirs(*Family), V4),
        (OURS_LONG, theirs(seconds=0, long=60), BOTH),
        (OURS, theirs(seconds=0, long=60), NONE),
    ],
    ids=["both", "F bits off", "no time", "not offered", "not by the peer", "one family", "long-lived", "not by both"],
)
def test_routes_stay_where_both_offered_it(ours: object, opened: Open, kept: frozenset[Family]) -> None:
    assert fall(Bench(ours).established(opened)).kept == kept


def test_routes_go_when_the_restart_time_is_over() -> None:
    bench = Bench().established(theirs(seconds=20))
    assert fall(bench).until == 20.0
    assert drops(bench.to(19.9)) == []
    assert sorted(drops(bench.to(20.0))) == [V4, V6]


def test_routes_stay_until_end_of_rib_of_their_family() -> None:
    bench = Bench().established(theirs())
    fall(bench)
    assert back(bench, theirs(*Family, restarted=True)) == []
    assert drops(bench.hear(end_of_rib(Family.IPV6))) == [V6]
    assert drops(bench.hear(end_of_rib(Family.IPV6))) == []
    assert bench.machine.stale == V4
    assert drops(bench.hear(end_of_rib(Family.IPV4))) == [V4]


def test_what_the_peer_has_not_kept_goes_when_it_is_back() -> None:
    bench = Bench().established(theirs())
    fall(bench)
    assert drops(back(bench, theirs(Family.IPV6, restarted=True))) == [V4]


def test_a_peer_that_comes_back_without_graceful_restart_has_kept_nothing() -> None:
    bench = Bench().established(theirs())
    fall(bench)
    assert drops(back(bench, open_of(capabilities=Capabilities(families=BOTH, asn4=65002)))) == [BOTH]


def test_an_end_of_rib_that_never_comes_is_waited_for_in_vain_once() -> None:
    bench = Bench(replace(OURS, hold_seconds=0)).established(theirs())
    fall(bench)
    assert back(bench, theirs(*Family, restarted=True)) == []
    began = bench.now
    assert drops(bench.to(began + REFRESHED - 1)) == []
    assert len(drops(bench.to(began + REFRESHED + 1))) == 2


def test_a_second_fall_before_the_end_of_rib_counts_again() -> None:
    bench = Bench().established(theirs(seconds=20))
    fall(bench)
    back(bench, theirs(*Family, restarted=True, seconds=20))
    lost = fall(bench)
    assert (lost.kept, lost.until) == (BOTH, bench.now + 20)


def test_long_lived_stale_routes_follow_those_of_the_restart_time() -> None:
    bench = Bench(OURS_LONG).established(theirs(*Family, seconds=20, long=100))
    fall(bench)
    seen = bench.to(20.0)
    assert [one for one in seen if isinstance(one, LongLived)] == [LongLived(V4, 120.0), LongLived(V6, 120.0)]
    assert drops(bench.to(119.0)) == []
    assert sorted(drops(bench.to(120.0))) == [V4, V6]


def test_long_lived_routes_stay_as_long_as_the_more_careful_side_says() -> None:
    bench = Bench(replace(OURS, long_lived_seconds=50)).established(theirs(*Family, seconds=20, long=100))
    fall(bench)
    assert {one.until for one in bench.to(20.0) if isinstance(one, LongLived)} == {70.0}


def test_without_a_restart_time_routes_are_long_lived_stale_at_once() -> None:
    bench = Bench(OURS_LONG).established(theirs(*Family, seconds=0, long=100))
    actions = bench.do(bench.machine.failed(0.0, OUTGOING, FALLEN))
    kinds = [type(one) for one in actions if isinstance(one, Lost | LongLived | DropStale)]
    assert kinds == [Lost, LongLived, LongLived]


# Which ends are restarts.


@pytest.mark.parametrize("notification", [True, False], ids=["N bit", "no N bit"])
@pytest.mark.parametrize(
    ("end", "may_stay"),
    [
        ("hold timer", True),
        ("reset by the peer", True),
        ("hard reset by the peer", False),
        ("error of the peer", True),
        ("reset by this side", True),
        ("too many prefixes", False),
        ("BFD", False),
        ("stopped", False),
    ],
)
def test_with_the_n_bit_a_notification_is_a_restart(end: str, may_stay: bool, notification: bool) -> None:
    """RFC 8538; without it only a connection that breaks is one."""
    bench = Bench().established(theirs(*Family, notification=notification))
    stop = bench.machine.stop
    match end:
        case "hold timer":
            seen = bench.to(9.0)
        case "reset by the peer":
            seen = bench.hear(encode_notification(Notification(6, Cease.ADMINISTRATIVE_RESET)))
        case "hard reset by the peer":
            seen = bench.hear(encode_notification(Notification(6, Cease.HARD_RESET, b"\x06\x04")))
        case "error of the peer":
            seen = bench.hear(message(MessageKind.UPDATE, b"\x00\x09\x00\x00"))
        case "reset by this side":
            seen = bench.do(stop(0.0, Cease.ADMINISTRATIVE_RESET, again_after=1.0))
        case "too many prefixes":
            seen = bench.do(stop(0.0, Cease.MAXIMUM_PREFIXES, again_after=1.0))
        case "BFD":
            seen = bench.do(stop(0.0, Cease.BFD_DOWN, again_after=1.0))
        case _:
            seen = bench.do(stop(0.0, Cease.ADMINISTRATIVE_SHUTDOWN))
    (lost,) = [one for one in seen if isinstance(one, Lost)]
    assert lost.kept == (BOTH if may_stay and notification else NONE)


@pytest.mark.parametrize(
    ("cease", "again_after", "dropped"),
    [
        (Cease.PEER_DECONFIGURED, None, [BOTH]),
        (Cease.BFD_DOWN, 1.0, [BOTH]),
        (Cease.MAXIMUM_PREFIXES, 60.0, [BOTH]),
        (Cease.ADMINISTRATIVE_RESET, 1.0, []),
    ],
)
def test_what_takes_the_routes_takes_stale_ones_too(
    cease: Cease, again_after: float | None, dropped: list[frozenset[Family]]
) -> None:
    """Those of a peer that is restarting, whose session is down: it has been removed, or BFD that outlives its speaker
    says that its link is dead (RFC 5882 4.3.2.1).
    """
    bench = Bench().established(theirs())
    fall(bench)
    assert drops(bench.do(bench.machine.stop(bench.now, cease, again_after=again_after))) == dropped
    assert bench.machine.stale == (NONE if dropped else BOTH)


# This speaker restarts.


def opened(bench: Bench) -> Open:
    return decode_open(sent(bench.done, MessageKind.OPEN)[-1])


def test_after_a_restart_the_peers_end_of_rib_are_waited_for() -> None:
    bench = Bench(restarting_until=100.0).start().connected()
    restart = opened(bench).capabilities.graceful_restart
    assert restart is not None
    assert restart.restarted
    assert all(one.preserved for one in restart.families)
    seen = bench.hear(encode_open(theirs()), keepalive())
    assert [one for one in seen if isinstance(one, DeferSelection)] == [DeferSelection(BOTH, 100.0)]
    assert [type(one) for one in seen if isinstance(one, Established | DeferSelection)] == [Established, DeferSelection]


def test_two_that_restart_do_not_wait_for_each_other() -> None:
    """RFC 4724 4.1."""
    bench = Bench(restarting_until=100.0).established(theirs(restarted=True))
    assert not [one for one in bench.done if isinstance(one, DeferSelection)]


@pytest.mark.parametrize("late", [True, False], ids=["too late", "the session after the first one"])
def test_a_restart_is_said_once_and_in_time(late: bool) -> None:
    bench = Bench(restarting_until=10.0)
    if late:
        bench.now = 11.0
        bench.start().connected()
    else:
        bench.established(theirs())
        fall(bench)
        back(bench, theirs())
    restart = opened(bench).capabilities.graceful_restart
    assert restart is not None
    assert not restart.restarted


def test_routes_that_the_kernel_has_lost_are_not_said_to_be_kept() -> None:
    offer = negotiation.offered(OURS, restarted=True, preserved=False).graceful_restart
    assert offer is not None
    assert not any(one.preserved for one in offer.families)
    assert negotiation.offered(THEIRS).graceful_restart is not None
