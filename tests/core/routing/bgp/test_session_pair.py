"""Two machines over connections that fragment, break and fall silent: in the end both hold a session, or none does."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.routing.core.bgp.codec.errors import Cease
from services.routing.core.bgp.session.actions import Established, Lost, Send
from services.routing.core.bgp.session.table import State
from services.routing.core.bgp.values import Family
from tests.core.routing.bgp.world import World
from tests.core.routing.bgp.world import settings as of

CALM = 420.0
"""Seconds in which every back-off, hold time and large hold time (240 s) is over."""

TROUBLES = st.lists(
    st.tuples(st.sampled_from(["cut", "silence", "unreachable", "reachable", "reset", "flap"]), st.floats(0.0, 40.0)),
    max_size=12,
)


def trouble(world: World, kind: str, who: int) -> None:
    machine = world.machines[who]
    if kind in ("cut", "silence"):
        world.cut(silent=kind == "silence")
    elif kind in ("unreachable", "reachable"):
        world.reachable = kind == "reachable"
    elif kind == "reset":
        world.do(who, machine.stop(world.now, Cease.ADMINISTRATIVE_RESET, again_after=1.0))
    else:
        world.do(who, machine.stop(world.now, Cease.ADMINISTRATIVE_SHUTDOWN))
        world.do(who, machine.start(world.now))


@given(
    seed=st.integers(0, 2**32),
    troubles=TROUBLES,
    passive=st.sampled_from([(False, False), (True, False), (False, True)]),
    hold=st.sampled_from([(9, 90), (3, 3), (0, 30), (90, 90)]),
    restart=st.booleans(),
    internal=st.booleans(),
)
@settings(max_examples=25)
def test_in_the_end_both_hold_one_session(
    seed: int,
    troubles: list[tuple[str, float]],
    passive: tuple[bool, bool],
    hold: tuple[int, int],
    restart: bool,
    internal: bool,
) -> None:
    asns = {"local_asn": 64512, "peer_asn": 64512} if internal else {}
    one, two = (
        of(
            *numbers,
            passive=passive[who],
            hold_seconds=hold[who],
            restart_seconds=120 if restart else 0,
            **asns,
        )
        for who, numbers in enumerate([(1, 2), (2, 1)])
    )
    random = Random(seed)
    world = World(one, two, random)
    for who in random.sample([0, 1], 2):
        world.start(who)
        world.run(world.now + random.uniform(0, 2))
    for kind, wait in troubles:
        trouble(world, kind, random.randrange(2))
        world.run(world.now + wait)
    world.reachable = True
    silence_is_noticed = hold[0] and hold[1]
    if not silence_is_noticed and any(kind == "silence" for kind, _ in troubles):
        world.cut(silent=False)  # without a hold time nobody else ends a silent connection
    world.run(world.now + CALM)
    assert world.up(), (world.machines[0].fault, world.machines[1].fault)
    for who in (0, 1):
        assert world.sessions(who) == [Established, Lost] * (len(world.sessions(who)) // 2) + [Established]
    before = [len(world.sessions(who)) for who in (0, 1)]
    world.run(world.now + CALM)
    assert [len(world.sessions(who)) for who in (0, 1)] == before, "what is up stays up"


@given(seed=st.integers(0, 2**32), wrong=st.sampled_from(["asn", "router id", "families"]))
@settings(max_examples=4)
def test_who_does_not_fit_never_holds_a_session_and_tries_seldom(seed: int, wrong: str) -> None:
    one, two = of(1, 2), of(2, 1)
    if wrong == "asn":
        one = of(1, 2, peer_asn=65009)
    elif wrong == "router id":
        same = {"router_id": one.router_id, "local_asn": 64512, "peer_asn": 64512}
        one, two = of(1, 2, **same), of(2, 1, **same)
    else:
        one, two = of(1, 2, families=frozenset({Family.IPV4})), of(2, 1, families=frozenset({Family.IPV6}))
    world = World(one, two, Random(seed))
    for who in (0, 1):
        world.start(who)
    world.run(1800.0)
    assert world.sessions(0) == world.sessions(1) == []
    refusals = sum(isinstance(one, Send) and one.last for log in world.log for one in log)
    assert 10 < refusals < 300, "damped: each side refuses about once in 45 s at last"
    assert any(one.fault is not None and one.fault.remedy for one in world.machines)


@pytest.mark.parametrize("seed", range(12))
def test_both_connect_at_once(seed: int) -> None:
    """RFC 4271 6.8: one of two connections stays, the one that the greater identifier has made."""
    world = World(of(1, 2), of(2, 1), Random(seed))
    world.start(0)
    world.start(1)
    world.run(60.0)
    assert world.up()
    assert [one.state for one in world.machines] == [State.ESTABLISHED] * 2
