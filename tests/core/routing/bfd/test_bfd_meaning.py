"""What BGP makes of a BFD failure, and what people read of a session that is not up."""

from __future__ import annotations

import random
from collections import Counter
from ipaddress import ip_address

import pytest

from services.routing.core.bfd.bgp import Consequence, consequence
from services.routing.core.bfd.packet import ControlPacket, Diagnostic, Discard, State
from services.routing.core.bfd.session import Failure, Session, Settings
from services.routing.core.bfd.sessions import Key
from services.routing.core.bfd.status import DIAGNOSTICS, status_of, why_not_up
from tests.core.routing.bfd.pipe import KEYS, Pipe

EXPIRED, SIGNALLED, OFF = Diagnostic.TIME_EXPIRED, Diagnostic.NEIGHBOR_DOWN, Diagnostic.ADMIN_DOWN
UP, DOWN, ADMIN = State.UP, State.DOWN, State.ADMIN_DOWN
NONE, END = Consequence.NONE, Consequence.END


@pytest.mark.parametrize(
    ("diagnostic", "remote_state", "independent", "established", "while_restarting"),
    [
        (EXPIRED, UP, False, END, NONE),
        (EXPIRED, UP, True, END, END),
        (SIGNALLED, DOWN, False, END, NONE),
        (SIGNALLED, DOWN, True, END, END),
        (SIGNALLED, ADMIN, False, NONE, NONE),
        (SIGNALLED, ADMIN, True, NONE, NONE),
        (OFF, UP, False, NONE, NONE),
        (OFF, UP, True, NONE, NONE),
    ],
)
def test_what_bgp_does(
    diagnostic: Diagnostic,
    remote_state: State,
    independent: bool,
    established: Consequence,
    while_restarting: Consequence,
) -> None:
    """RFC 5882 3.2 and 4.3.2: (how it failed) → of an established session, and of one whose peer restarts."""
    failure = Failure(diagnostic=diagnostic, remote_state=remote_state, independent=independent)
    assert consequence(failure, restarting=False) is established
    assert consequence(failure, restarting=True) is while_restarting


def test_independent_is_what_both_ends_are() -> None:
    for own, theirs in ((True, True), (True, False), (False, True), (False, False)):
        session = Session.begun(Settings(), 1, 0, independent=own)
        for state in (State.DOWN, State.INIT, State.DOWN):
            said = ControlPacket(
                state=state, multiplier=3, my_discriminator=2, transmit_us=1, receive_us=1, independent=theirs
            )
            session, _ = session.received(said, 0, 0.0)
        assert session.failure == Failure(diagnostic=SIGNALLED, remote_state=State.DOWN, independent=own and theirs)


def why(session: Session, discards: Counter[Discard] | None = None, unsent: str = "", interface: str = "eth0") -> str:
    key = Key(ip_address("10.0.0.1"), ip_address("10.0.0.2"), interface)
    fault = why_not_up(status_of(key, session, discards or Counter(), unsent))
    assert fault is not None
    return f"{fault.fault} | {fault.remedy}"


def heard(*states: State) -> Session:
    session = Session.begun(Settings(), 1, 0)
    for state in states:
        said = ControlPacket(state=state, multiplier=3, my_discriminator=2, transmit_us=1, receive_us=1)
        session, _ = session.received(said, 0, 0.0)
    return session


def test_why_a_session_is_not_up_and_what_to_do() -> None:
    new = Session.begun(Settings(), 1, 0)
    assert why(new) == (
        "nothing has come from 10.0.0.2 on eth0 | switch BFD on at the peer for 10.0.0.1, and let UDP port 3784 through"
    )
    assert why(new, interface="").startswith("nothing has come from 10.0.0.2 |")
    assert why(Session.begun(Settings(enabled=False), 1, 0)) == (
        "BFD with 10.0.0.2 on eth0 is switched off at this node | switch it on for this peer; BGP goes on without"
    )
    assert why(heard(State.ADMIN_DOWN)) == (
        "10.0.0.2 on eth0 has switched BFD off | switch it on there; BGP goes on without"
    )
    ended, _ = heard(State.DOWN, State.INIT, State.ADMIN_DOWN).elapsed(10**9, 0.0)
    assert why(ended) == why(heard(State.ADMIN_DOWN)), "it said so, and then no more"
    assert why(heard(State.DOWN)) == (
        "10.0.0.2 on eth0 is heard in state DOWN and does not answer in state Up"
        " | look whether UDP port 3784 from 10.0.0.1 reaches it: a firewall, or another address as neighbour"
    )
    assert why(new, Counter({Discard.HOPS: 2, Discard.STATE: 1})) == (
        "packets of 10.0.0.2 on eth0 are discarded: its TTL is not 255: it came through a router (RFC 5881 5)"
        " | BFD of one hop is for peers on one link: switch it off for a peer behind a router"
    )
    silent, _ = heard(State.DOWN).elapsed(10**9, 0.0)
    assert why(silent).startswith("10.0.0.2 on eth0 has fallen silent: no packet came within the detection time | look")
    signalled, _ = heard(State.DOWN, State.INIT, State.DOWN).elapsed(10**9, 0.0)
    assert why(signalled).startswith("10.0.0.2 on eth0 has fallen silent")
    assert why(new, unsent="UDP port 3784 is taken: end that: now") == (
        "BFD with 10.0.0.2 on eth0: UDP port 3784 is taken | end that: now"
    )


def test_nothing_is_wrong_with_one_that_is_up() -> None:
    pipe = Pipe(random.Random(1))
    pipe.run(3_000_000)
    status = status_of(KEYS[0], pipe.session(0), Counter())
    assert status.state is State.UP
    assert why_not_up(status) is None
    assert status.key == KEYS[0]


def test_every_diagnostic_has_its_words() -> None:
    assert DIAGNOSTICS.keys() == set(Diagnostic)
