"""The state machine's table, against one that was written down from RFC 4271 8.2.2 by hand."""

from __future__ import annotations

import pytest

from services.routing.core.bgp.session.table import NEVER, STARTS, TABLE, Act, Event, State

COLUMNS = (State.IDLE, State.CONNECT, State.ACTIVE, State.OPEN_SENT, State.OPEN_CONFIRM, State.ESTABLISHED)
LETTERS = dict(zip("ICASFE", COLUMNS, strict=True))
"""Next state: Idle, Connect, Active, open Sent, open conFirm, Established. Then what is done: see MARKS."""

WRITTEN = """
 1 ManualStart                  C0c  C    A    S    F    E
 2 ManualStop                   I    I0   I0   I!0  I!0  I!0
 3 AutomaticStart               Cc   C    A    S    F    E
 4 ManualStart_passive          A0   C    A    S    F    E
 5 AutomaticStart_passive       A    C    A    S    F    E
 6 AutomaticStart_damped        Cc   C    A    S    F    E
 7 AutomaticStart_damped_passive A   C    A    S    F    E
 8 AutomaticStop                I    I+   I+   I!+  I!+  I!+
 9 ConnectRetryTimer_Expires    I    Cc   Cc   I!+  I!+  I!+
10 HoldTimer_Expires            I    I+   I+   I!+  I!+  I!+
11 KeepaliveTimer_Expires       I    I+   I+   I!+  Fk   Ek
16 Tcp_CR_Acked                 I    So   So   S    F    E
17 TcpConnectionConfirmed       I    So   So   S    F    E
18 TcpConnectionFails           I    I+   I+   A+   I+   I+
19 BGPOpen                      I    I+   I+   Fkh  I!+  I!+
21 BGPHeaderErr                 I    I+   I+   I!+  I!+  I!+
22 BGPOpenMsgErr                I    I+   I+   I!+  I!+  I!+
23 OpenCollisionDump            I    I    I    I!   I!   I!
24 NotifMsgVerErr               I    I+   I+   I    I    I+
25 NotifMsg                     I    I+   I+   I+   I+   I+
26 KeepAliveMsg                 I    I+   I+   I!+  Ehu  Eh
27 UpdateMsg                    I    I+   I+   I!+  I!+  Ehd
28 UpdateMsgErr                 I    I+   I+   I!+  I!+  I!+
29 SendHoldTimer_Expires        I    I+   I+   I!+  I!+  I!+
30 RouteRefreshMsg              I    I+   I+   I!+  I!+  Ehd
"""
MARKS = {
    "!": {Act.NOTIFY},
    "+": {Act.COUNT},  # a failure
    "0": {Act.FORGET},  # failures count from zero
    "c": {Act.CONNECT, Act.START_RETRY},
    "o": {Act.SEND_OPEN},
    "k": {Act.SEND_KEEPALIVE},
    "h": {Act.RESTART_HOLD},
    "d": {Act.DELIVER},
    "u": {Act.ESTABLISH},
}


def written() -> dict[tuple[State, Event], str]:
    rows = [line.split() for line in WRITTEN.strip().splitlines()]
    return {
        (state, Event(int(number))): cell
        for number, _, *cells in rows
        for state, cell in zip(COLUMNS, cells, strict=True)
    }


def test_every_event_of_the_rfc_occurs_or_has_a_reason_not_to() -> None:
    assert {*Event, *NEVER} == set(range(1, 31))
    assert not set(Event) & set(NEVER)


def test_every_state_has_every_event() -> None:
    assert TABLE.keys() == {(state, event) for state in State for event in Event} == written().keys()


@pytest.mark.parametrize(("key", "cell"), written().items(), ids=str)
def test_as_it_is_written(key: tuple[State, Event], cell: str) -> None:
    state, acts = TABLE[key]
    expected = set[Act]().union(*(MARKS[mark] for mark in cell[1:]))
    if key == (State.OPEN_SENT, Event.BGP_OPEN):
        expected = {Act.CONFIRM}  # KEEPALIVE and hold timer in one
    assert state is LETTERS[cell[0]]
    assert set(acts) - {Act.RELEASE, Act.START_RETRY} == expected - {Act.START_RETRY}


@pytest.mark.parametrize("key", TABLE, ids=str)
def test_a_connection_that_goes_to_idle_is_let_go(key: tuple[State, Event]) -> None:
    state, acts = TABLE[key]
    if key[0] is not State.IDLE and state is State.IDLE:
        assert Act.RELEASE in acts
    if Act.NOTIFY in acts:
        assert acts.index(Act.NOTIFY) < acts.index(Act.RELEASE), "what is sent is sent before the connection is closed"


@pytest.mark.parametrize("event", STARTS, ids=str)
@pytest.mark.parametrize("state", [one for one in State if one is not State.IDLE], ids=str)
def test_a_start_changes_nothing_that_has_started(state: State, event: Event) -> None:
    assert TABLE[state, event] == (state, ())
