"""One session: the whole table of RFC 5880 6.8.6, timers, polls, slow start, missed packets. In microseconds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.routing.core.bfd.packet import ControlPacket, Diagnostic, State
from services.routing.core.bfd.session import SLOW_US, Session, Settings, missing

A, D, I, U = State.ADMIN_DOWN, State.DOWN, State.INIT, State.UP  # noqa: E741
MS = 1000
SETTINGS = Settings()


def said(
    state: State, *, mine: int = 7, transmit: int = 50 * MS, receive: int = 50 * MS, **more: bool
) -> ControlPacket:
    """A packet of the peer."""
    return ControlPacket(
        state=state,
        multiplier=3,
        my_discriminator=mine,
        your_discriminator=1,
        transmit_us=transmit,
        receive_us=receive,
        **more,
    )


def session_in(state: State, settings: Settings = SETTINGS) -> Session:
    """A session whose peer speaks, brought there by packets; at 0."""
    begun = Session.begun(replace(settings, enabled=state is not A), 1, 0)
    for packet in {A: (), D: (A,), I: (D,), U: (D, I)}[state]:
        begun, _ = begun.received(said(packet), 0, 0.0)
    assert begun.state is state
    return begun


def answered(session: Session, now: int = 0) -> Session:
    """The same after the peer has ended the poll."""
    return session.received(said(session.remote.state, final=True), now, 0.0)[0]


TABLE = """
own         AdminDown  Down       Init       Up         | nothing in the detection time
AdminDown   AdminDown  AdminDown  AdminDown  AdminDown  | AdminDown
Down        Down       Init       Up         Down       | Down
Init        Down       Init       Up         Up         | Down
Up          Down       Down       Up         Up         | Down
"""
STATES = {"AdminDown": A, "Down": D, "Init": I, "Up": U}
ROWS = [[STATES[word] for word in row.replace("|", " ").split()] for row in TABLE.strip().splitlines()[1:]]


@pytest.mark.parametrize(
    ("own", "received", "after"),
    [(row[0], received, after) for row in ROWS for received, after in zip(STATES.values(), row[1:5], strict=True)],
)
def test_own_state_by_received_state(own: State, received: State, after: State) -> None:
    session, packet = session_in(own).received(said(received), 100, 0.0)
    assert session.state is after
    moved = after is not own
    assert session.since == (100 if moved else 0)
    assert session.diagnostic is (
        (Diagnostic.NEIGHBOR_DOWN if after is D else Diagnostic.NONE) if moved else session_in(own).diagnostic
    )
    assert (session.ups, session.downs) == ((own is U) + (moved and after is U), int(own is U and moved))
    if moved:
        assert packet is not None
        assert packet.state is after, "said at once"


@pytest.mark.parametrize(("own", "after"), [(row[0], row[5]) for row in ROWS])
def test_own_state_when_the_peer_falls_silent(own: State, after: State) -> None:
    session, _ = session_in(own).received(said(D if own is I else session_in(own).remote.state), 0, 0.0)
    assert session.expires_at == 150 * MS
    early, _ = session.elapsed(150 * MS - 1, 0.0)
    assert (early.state, early.remote.discriminator) == (own, 7)
    late, _ = session.elapsed(150 * MS, 0.0)
    assert late.state is after
    assert late.diagnostic is (Diagnostic.TIME_EXPIRED if own in (I, U) else session.diagnostic)
    assert late.remote.discriminator == 0
    assert late.expires_at is None


def test_three_packets_make_a_session() -> None:
    one, two = (Session.begun(SETTINGS, number, 0) for number in (1, 2))
    one, down = one.elapsed(0, 0.0)
    assert down is not None
    two, init = two.received(down, 0, 0.0)
    assert init is not None
    one, up = one.received(init, 0, 0.0)
    assert up is not None
    two, _ = two.received(up, 0, 0.0)
    assert (down.state, init.state, up.state, two.state) == (D, I, U, U)
    assert (down.your_discriminator, init.your_discriminator, up.your_discriminator) == (0, 1, 2)


def test_slow_until_up() -> None:
    for state in (A, D, I):
        assert session_in(state).packet().transmit_us == SLOW_US
        assert session_in(state).transmit_us == SLOW_US
    up = session_in(U)
    assert up.packet().transmit_us == 50 * MS
    assert up.packet().poll
    assert up.transmit_us == 50 * MS, "a shorter interval needs no waiting for the answer"
    assert session_in(U, replace(SETTINGS, transmit_us=2_000_000)).transmit_us == 2_000_000
    down, _ = up.received(said(D), 10, 0.0)
    assert down.transmit_us == SLOW_US


@given(
    st.integers(10 * MS, 10_000 * MS),
    st.integers(0, 10_000 * MS),
    st.integers(1, 255),
    st.floats(0, 1, exclude_max=True),
)
def test_jitter_shortens_by_a_quarter_at_most(own: int, theirs: int, multiplier: int, jitter: float) -> None:
    up = answered(session_in(U, Settings(transmit_us=own, multiplier=multiplier)))
    up, _ = up.received(said(U, receive=theirs, transmit=60_000 * MS), 0, 0.0)
    if theirs == 0:
        assert up.transmit_at is None
        return
    assert up.transmit_at is not None
    sent, packet = up.elapsed(up.transmit_at, jitter)
    assert packet is not None
    assert sent.transmit_at is not None
    interval, waited = max(own, theirs), sent.transmit_at - up.transmit_at
    assert interval * 3 // 4 <= waited <= (interval * 9 // 10 if multiplier == 1 else interval)


def test_a_shorter_wish_of_the_peer_counts_from_the_last_packet() -> None:
    slow, _ = answered(session_in(U)).received(said(U, receive=1_000 * MS), 0, 0.0)
    assert slow.transmit_at == 1_000 * MS
    quick, _ = slow.received(said(U, receive=50 * MS), 400 * MS, 0.0)
    assert quick.transmit_at == 50 * MS, "overdue: sent at once (RFC 5880 6.8.3)"
    assert quick.elapsed(400 * MS, 0.0)[1] is not None


def test_detection_time_is_the_peers_multiplier_times_the_slower_wish() -> None:
    for receive, transmit, detection in ((50, 50, 150), (50, 300, 900), (300, 50, 900)):
        up = answered(session_in(U, replace(SETTINGS, receive_us=receive * MS, multiplier=7)))
        up, _ = up.received(said(U, transmit=transmit * MS), 0, 0.0)
        assert up.detection_us == detection * MS


def test_a_poll_is_answered_at_once_in_every_state_but_admin_down() -> None:
    for state in (D, I, U):
        session, packet = session_in(state).received(said(session_in(state).remote.state, poll=True), 5, 0.0)
        assert packet is not None
        assert (packet.final, packet.poll) == (True, False)
        assert session.sent_at == 5
    assert session_in(A).received(said(D, poll=True), 5, 0.0)[1] is None


def test_a_longer_interval_waits_for_the_end_of_the_poll() -> None:
    """RFC 5880 6.8.3: the peer would take this side for gone."""
    up = answered(session_in(U))
    slow, packet = up.configured(replace(SETTINGS, transmit_us=200 * MS), 10, 0.0)
    assert packet is not None
    assert (packet.poll, packet.transmit_us) == (True, 200 * MS)
    assert slow.transmit_us == 50 * MS
    slow = answered(slow)
    assert slow.transmit_us == 200 * MS
    assert not slow.packet().poll


def test_a_shorter_detection_time_waits_for_the_end_of_the_poll() -> None:
    up = answered(session_in(U, replace(SETTINGS, receive_us=300 * MS)))
    quick, _ = up.configured(replace(SETTINGS, receive_us=50 * MS), 10, 0.0)
    assert quick.detection_us == 900 * MS
    assert answered(quick).detection_us == 150 * MS
    slow, _ = answered(session_in(U)).configured(replace(SETTINGS, receive_us=300 * MS), 10, 0.0)
    assert slow.detection_us == 900 * MS, "a longer one is safe at once"


def test_a_change_during_a_poll_asks_twice() -> None:
    """The F that comes may answer the values of before."""
    up = answered(session_in(U))
    up, _ = up.configured(replace(SETTINGS, transmit_us=200 * MS), 10, 0.0)
    up, _ = up.configured(replace(SETTINGS, transmit_us=400 * MS), 20, 0.0)
    assert up.transmit_us == 50 * MS
    up = answered(up)
    assert up.packet().poll
    assert up.transmit_us == 50 * MS
    assert answered(up).transmit_us == 400 * MS


def test_an_answer_that_nobody_asked_for_changes_nothing() -> None:
    up = answered(session_in(U))
    again = answered(up)
    assert replace(again, heard=up.heard) == up


def test_a_poll_ends_with_what_is_known_of_the_peer() -> None:
    polling = session_in(U)
    assert polling.polling
    silent, packet = polling.elapsed(150 * MS, 0.0)
    assert packet is not None
    assert not packet.poll
    assert not silent.polling


def test_a_peer_in_demand_mode_gets_no_periodic_packets_but_answers() -> None:
    up, _ = answered(session_in(U)).received(said(U, demand=True), 0, 0.0)
    assert up.transmit_at is None
    assert up.received(said(U, demand=True, poll=True), 0, 0.0)[1] is not None
    alone, _ = up.elapsed(150 * MS, 0.0)
    assert alone.state is D
    assert alone.transmit_at is not None


def test_a_peer_that_wants_nothing_gets_nothing_until_it_is_forgotten() -> None:
    up, _ = answered(session_in(U)).received(said(U, receive=0), 0, 0.0)
    assert up.transmit_at is None
    assert up.elapsed(150 * MS - 1, 0.0)[1] is None
    assert up.elapsed(150 * MS, 0.0)[1] is not None


def test_switched_off_and_on() -> None:
    off, packet = answered(session_in(U)).configured(replace(SETTINGS, enabled=False), 9, 0.0)
    assert packet is not None
    assert (packet.state, packet.diagnostic, packet.transmit_us) == (A, Diagnostic.ADMIN_DOWN, SLOW_US)
    assert off.failure is not None
    assert off.failure.administrative
    assert off.transmit_at is not None, "it goes on saying so"
    on, packet = off.configured(SETTINGS, 20, 0.0)
    assert packet is not None
    assert packet.state is D
    assert on.diagnostic is Diagnostic.NONE


def test_the_same_settings_say_nothing() -> None:
    up = answered(session_in(U))
    assert up.configured(SETTINGS, 10, 0.0) == (up, None)


def test_a_peer_that_starts_again_with_another_discriminator_is_followed() -> None:
    up, _ = answered(session_in(U)).received(said(U, mine=8), 0, 0.0)
    assert up.state is U
    assert up.packet().your_discriminator == 8


@pytest.mark.parametrize(
    ("gap_ms", "lost"),
    [(37, 0), (50, 0), (60, 0), (75, 1), (100, 1), (112, 2), (150, 2), (151, 2), (200, 3)],
)
def test_how_many_packets_a_gap_is(gap_ms: int, lost: int) -> None:
    assert missing(gap_ms * MS, 50 * MS) == lost


def test_only_a_session_that_is_up_misses_packets() -> None:
    up, _ = answered(session_in(U)).received(said(U), 100 * MS, 0.0)
    assert up.missed == 1
    down, _ = session_in(D).received(said(A), 140 * MS, 0.0)
    assert down.missed == 0


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"transmit_us": 9_999}, "transmit_us"),
        ({"receive_us": 60_000_001}, "receive_us"),
        ({"multiplier": 0}, "multiplier"),
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, int], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Settings(**wrong)  # type: ignore[arg-type]
