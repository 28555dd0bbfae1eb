"""Slots: every number has a name, and no text is a slot that is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.slots import SLOTS, numbered, slot_key, slot_of, written


def test_each_slot_is_written_under_a_name_that_becomes_its_number() -> None:
    for number in range(SLOTS):
        key = slot_key("n1", number)
        assert slot_of(key) == number
        node, what, name = written(key).split(".")
        assert (node, what, numbered(name)) == ("n1", "slot", number)


@given(st.text(max_size=40))
def test_whatever_a_name_is_its_number_is_a_slot(name: str) -> None:
    assert 0 <= numbered(name) < SLOTS


OTHERS = "n1 _epoch _complete.n1 n1.0af40007 n1.slot.8192 n1.slot.07 n1.slot.x n1.slot.7.7 n1.slot.-1 n1.slot."


@pytest.mark.parametrize("key", OTHERS.split())
def test_any_other_key_is_no_slot_and_is_written_where_it_stands(key: str) -> None:
    assert slot_of(key) is None
    assert written(key) == key
    with pytest.raises(ValueError, match="slot"):
        slot_key("n1", SLOTS)
