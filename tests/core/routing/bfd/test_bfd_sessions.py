"""Sessions of a node: which packet is whose, what is due, and two nodes joined by a pipe that loses what it will."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.routing.core.bfd.packet import ControlPacket, Diagnostic, Discard, State, write_packet
from services.routing.core.bfd.session import SLOW_US, Settings
from services.routing.core.bfd.sessions import MOST_CLOSING_US, Key, Sessions
from tests.core.routing.bfd.pipe import KEYS, Pipe

MS = 1000
SETTINGS = st.builds(
    Settings,
    transmit_us=st.integers(40 * MS, 1_500 * MS),
    receive_us=st.integers(40 * MS, 1_500 * MS),
    multiplier=st.integers(2, 4),
)
PHASES = st.lists(
    st.tuples(
        st.integers(0, 4_000 * MS),
        st.sampled_from((0.0, 0.1, 0.5, 1.0)),
        st.sampled_from((0.0, 0.1, 0.5, 1.0)),
        st.none() | SETTINGS,
        st.none() | SETTINGS,
    ),
    max_size=6,
)
"""How long, the loss in each direction, and other settings of each end."""


def settle(pipe: Pipe) -> None:
    """A pipe that loses nothing, long enough for the slowest of settings."""
    pipe.loss = (0.0, 0.0)
    pipe.run(12_000 * MS)


@settings(max_examples=60)
@given(st.integers(0, 2**32), SETTINGS, SETTINGS, PHASES)
def test_whatever_was_lost_both_ends_come_up_and_agree(
    seed: int, one: Settings, two: Settings, phases: list[tuple[int, float, float, Settings | None, Settings | None]]
) -> None:
    pipe = Pipe(random.Random(seed), settings=(one, two), double=0.1, delay=5 * MS)
    for microseconds, there, back, *changes in phases:
        pipe.loss = (there, back)
        for end, changed in enumerate(changes):
            if changed is not None:
                pipe.configure(end, changed)
        pipe.run(microseconds)
    settle(pipe)
    assert pipe.states == (State.UP, State.UP)
    downs = [pipe.session(end).downs for end in (0, 1)]
    for end in (0, 1):
        own, other = pipe.session(end), pipe.session(1 - end)
        assert own.transmit_us == max(own.settings.transmit_us, other.settings.receive_us)
        assert own.expected_us == other.transmit_us
        assert own.detection_us == other.settings.multiplier * other.transmit_us
        assert (own.remote.discriminator, own.remote.state) == (other.discriminator, State.UP)
        assert not own.polling
        assert own.ups == own.downs + 1
    settle(pipe)
    assert [pipe.session(end).downs for end in (0, 1)] == downs, "what is up stays up while nothing is lost"


@settings(max_examples=40)
@given(st.integers(0, 2**32), SETTINGS, SETTINGS, st.sampled_from([(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)]))
def test_what_is_cut_in_one_direction_is_down_at_both_ends(
    seed: int, one: Settings, two: Settings, loss: tuple[float, float]
) -> None:
    pipe = Pipe(random.Random(seed), settings=(one, two))
    settle(pipe)
    longest = max(pipe.session(end).detection_us for end in (0, 1))
    pipe.loss = loss
    pipe.run(longest + 2 * pipe.delay)
    assert State.UP not in pipe.states
    deaf = [end for end in (0, 1) if loss[1 - end] == 1.0]
    for end in deaf:
        failure = pipe.session(end).failure
        assert failure is not None
        assert failure.diagnostic is Diagnostic.TIME_EXPIRED
    if len(deaf) == 1:
        failure = pipe.session(1 - deaf[0]).failure
        assert failure is not None
        assert failure.diagnostic is Diagnostic.NEIGHBOR_DOWN
        assert pipe.session(deaf[0]).state is State.DOWN
    assert all(pipe.session(end).failure is not None for end in (0, 1))


@settings(max_examples=20)
@given(st.integers(0, 2**32), SETTINGS, SETTINGS)
def test_neither_end_sends_more_than_was_agreed(seed: int, one: Settings, two: Settings) -> None:
    pipe = Pipe(random.Random(seed), settings=(one, two))
    settle(pipe)
    pipe.sent.clear()
    span = 20_000 * MS
    pipe.run(span)
    for end in (0, 1):
        interval = pipe.session(end).transmit_us
        count = sum(by == end for _, by, _ in pipe.sent)
        assert span / interval - 1 <= count <= span / (interval * 0.75) + 1
    assert not any(packet.poll or packet.final for _, _, packet in pipe.sent)


def test_until_up_each_sends_once_a_second_at_most() -> None:
    pipe = Pipe(random.Random(1), loss=(1.0, 1.0))
    pipe.run(10 * SLOW_US)
    for end in (0, 1):
        assert 10 <= sum(by == end for _, by, _ in pipe.sent) <= 14


def test_three_of_ten_lost_packets_in_a_row_end_a_session_and_two_do_not() -> None:
    pipe = Pipe(random.Random(2), delay=0)
    settle(pipe)
    pipe.loss = (1.0, 0.0)
    last = pipe.session(1).heard_at
    assert last is not None
    pipe.run(last + 149 * MS - pipe.now)
    assert pipe.session(1).state is State.UP
    pipe.run(1 * MS)
    assert pipe.session(1).state is State.DOWN
    assert pipe.session(0).state is State.DOWN, "it is told at once"


def sessions_of(*keys: Key) -> Sessions:
    numbers = iter((0, 11, 11, 12, 13))  # 0 and one that is taken are drawn again
    made = Sessions(independent=False, discriminators=lambda: next(numbers), jitters=lambda: 0.0)
    made.want({key: Settings() for key in keys}, 0)
    return made


OTHER = Key(KEYS[0].local, ip_address("10.0.0.3"), "eth0")
UP = ControlPacket(
    state=State.UP, multiplier=3, my_discriminator=7, your_discriminator=11, transmit_us=MS, receive_us=MS
)
AUTHENTICATED = bytes.fromhex("20c4031c 00000007 0000000b 000003e8 000003e8 00000000 01040178")


@pytest.mark.parametrize(
    ("at", "payload", "hops", "reason"),
    [
        (KEYS[0], write_packet(UP), 254, Discard.HOPS),
        (KEYS[0], b"", 1, Discard.HOPS),
        (KEYS[0], b"", 255, Discard.VERSION),
        (KEYS[0], write_packet(replace(UP, your_discriminator=99)), 255, Discard.NO_SESSION),
        (OTHER, write_packet(UP), 255, Discard.SENDER),
        (KEYS[0]._replace(interface="eth1"), write_packet(UP), 255, Discard.SENDER),
        (KEYS[0], write_packet(replace(UP, your_discriminator=0)), 255, Discard.STATE),
        (KEYS[0], write_packet(replace(UP, your_discriminator=0, state=State.INIT)), 255, Discard.STATE),
        (KEYS[1], write_packet(replace(UP, your_discriminator=0, state=State.DOWN)), 255, Discard.NO_PEER),
        (KEYS[0], AUTHENTICATED, 255, Discard.AUTHENTICATED),
    ],
)
def test_what_is_discarded(at: Key, payload: bytes, hops: int, reason: Discard) -> None:
    sessions = sessions_of(KEYS[0], OTHER)
    before = dict(sessions.by_key)
    assert sessions.receive(at, payload, hops, 1) == []
    assert sessions.by_key == before
    counted = sessions.discards[at] if at in before else sessions.strangers
    assert counted == Counter([reason])


def test_a_discriminator_finds_its_session_and_none_the_sender() -> None:
    sessions = sessions_of(KEYS[0], OTHER)
    assert [sessions.by_key[key].discriminator for key in (KEYS[0], OTHER)] == [11, 12]
    for key, yours in ((KEYS[0], 0), (KEYS[0], 11), (OTHER, 0), (OTHER, 12)):
        heard = sessions.by_key[key].heard
        state = State.DOWN if yours == 0 else State.INIT
        sessions.receive(key, write_packet(replace(UP, state=state, your_discriminator=yours)), 255, 1)
        assert sessions.by_key[key].heard == heard + 1


def test_one_that_is_wanted_no_longer_says_so_for_a_detection_time() -> None:
    pipe = Pipe(random.Random(3))
    settle(pipe)
    near, number = pipe.ends[0], pipe.session(0).discriminator
    pipe.sent.clear()
    pipe._send(0, near.want({}, pipe.now))
    assert near.wanted == frozenset()
    pipe.run(2_900 * MS)
    assert near.by_key.keys() == {KEYS[0]}
    failure = pipe.session(1).failure
    assert failure is not None
    assert failure.administrative
    pipe.run(200 * MS)
    assert near.by_key == {}
    assert near.gone == {KEYS[0]}
    assert near.next_at is None
    said = [packet.state for _, by, packet in pipe.sent if by == 0]
    assert 3 <= len(said) <= 5
    assert set(said) == {State.ADMIN_DOWN}
    assert number not in near._keys


def test_a_peer_that_asks_for_days_between_packets_keeps_no_session_from_ending() -> None:
    pipe = Pipe(random.Random(3))
    settle(pipe)
    lazy = replace(pipe.session(1).packet(), receive_us=2**32 - 1)
    pipe.ends[0].receive(KEYS[0], write_packet(lazy), 255, pipe.now)
    pipe._send(0, pipe.ends[0].want({}, pipe.now))
    pipe.run(MOST_CLOSING_US)
    assert pipe.ends[0].by_key == {}


def test_one_that_was_never_heard_goes_at_once() -> None:
    sessions = sessions_of(KEYS[0])
    sessions.want({}, 10)
    assert sessions.elapse(10) == []
    assert sessions.by_key == {}


def test_one_that_is_wanted_again_while_it_ends_goes_on() -> None:
    pipe = Pipe(random.Random(4))
    settle(pipe)
    number = pipe.session(0).discriminator
    pipe._send(0, pipe.ends[0].want({}, pipe.now))
    pipe.run(500 * MS)
    pipe.configure(0, Settings())
    settle(pipe)
    assert pipe.states == (State.UP, State.UP)
    assert pipe.session(0).discriminator == number


def test_a_node_that_forgot_everything_is_up_again_after_the_detection_time() -> None:
    pipe = Pipe(random.Random(5))
    settle(pipe)
    pipe.ends[0] = Sessions(
        independent=True, discriminators=lambda: pipe.dice.getrandbits(32), jitters=pipe.dice.random
    )
    pipe.configure(0, Settings())
    settle(pipe)
    assert pipe.states == (State.UP, State.UP)
    assert pipe.session(1).downs == 1


def test_packets_that_came_are_looked_at_before_deadlines() -> None:
    """A node that was held for a second takes no peer for gone whose packets wait in its sockets."""
    pipe = Pipe(random.Random(6))
    settle(pipe)
    near = pipe.ends[0]
    held = pipe.now + 1_000 * MS
    spoken = write_packet(pipe.session(1).packet())
    near.receive(KEYS[0], spoken, 255, held)
    near.elapse(held)
    assert pipe.session(0).state is State.UP


def test_50_000_packets_of_a_stranger_move_no_session() -> None:
    """Near-right ones, from anywhere but the peer: nothing is raised, nothing sent, nothing of the session changes."""
    pipe = Pipe(random.Random(7))
    settle(pipe)
    near, dice = pipe.ends[0], pipe.dice
    before = dict(near.by_key)
    addresses = [ip_address(f"10.0.0.{last}") for last in (1, 3, 4)]
    right = write_packet(pipe.session(1).packet())
    for _ in range(50_000):
        octets = bytearray(right)
        for _ in range(dice.randrange(5)):
            octets[dice.randrange(len(octets))] = dice.randrange(256)
        at = Key(KEYS[0].local, dice.choice(addresses), "eth0")
        assert near.receive(at, bytes(octets[: dice.randrange(1, 25)]), dice.choice((255, 255, 254)), pipe.now) == []
    assert near.by_key == before
    assert near.strangers.total() == 50_000


def test_50_000_packets_of_a_mad_peer_leave_the_other_sessions_alone() -> None:
    """Whatever the peer of one session says, nothing is raised, and it comes up again when it is sane."""
    pipe = Pipe(random.Random(8))
    settle(pipe)
    near, dice = pipe.ends[0], pipe.dice
    quiet = Key(KEYS[0].local, ip_address("10.0.0.9"), "eth0")
    near.want({KEYS[0]: Settings(), quiet: Settings()}, pipe.now)
    before = near.by_key[quiet]
    right = write_packet(pipe.session(1).packet())
    states = set()
    for _ in range(50_000):
        octets = bytearray(right)
        octets[1] = dice.randrange(256)
        for _ in range(dice.randrange(3)):
            octets[dice.randrange(len(octets))] = dice.randrange(256)
        assert len(near.receive(KEYS[0], bytes(octets), 255, pipe.now)) <= 1, "an answer each at most"
        states.add(near.by_key[KEYS[0]].state)
    assert states == {State.DOWN, State.INIT, State.UP}
    assert near.by_key[quiet] == before
    assert len(near._heap) < 200
    settle(pipe)
    assert pipe.states == (State.UP, State.UP)
