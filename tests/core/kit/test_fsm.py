"""State machines: a door, as a table."""

from __future__ import annotations

import pytest

from kit.fsm import NoTransition, Table

DOOR = """
closed  open    opened  creak
opened  close   closed  slam
closed  lock    locked  click
locked  unlock  closed  clack
closed  remove  gone    crash
"""


def door() -> Table[str, str, str]:
    rows = [line.split() for line in DOOR.strip().splitlines()]
    return Table({(state, event): (target, action) for state, event, target, action in rows}, final=["gone"])


def test_steps() -> None:
    state, heard = "closed", []
    for event in ("open", "close", "lock", "unlock", "remove"):
        state, action = door().step(state, event)
        heard.append(action)
    assert (state, heard) == ("gone", ["creak", "slam", "click", "clack", "crash"])


def test_what_is_not_in_the_table_is_an_error() -> None:
    with pytest.raises(NoTransition, match="no transition from locked on open"):
        door().step("locked", "open")


def test_holes_and_reach() -> None:
    events = ["open", "close", "lock", "unlock", "remove"]
    missing = door().missing(["closed", "opened", "locked", "gone"], events)
    assert len(missing) == 3 * 5 - 5
    assert all(state != "gone" for state, _ in missing)
    assert door().reachable("closed") == {"closed", "opened", "locked", "gone"}
    assert door().reachable("gone") == {"gone"}


def test_a_final_state_has_no_way_out() -> None:
    with pytest.raises(ValueError, match="way out: \\['a'\\]"):
        Table({("a", "x"): ("b", 1)}, final=["a"])
