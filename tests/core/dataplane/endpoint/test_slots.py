"""Which slot an address gets: it stays, nobody is pushed out, and what somebody else filled is used again."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from proto.net import Address
from proto.slots import SLOTS
from services.dataplane.core.endpoint.slots import assign

NEAR = [ip_address("10.0.0.0") + number for number in range(12)]
some = st.sets(st.sampled_from(NEAR))
stands = st.dictionaries(st.integers(0, 9), st.sampled_from(NEAR), max_size=8)


@given(some, some, stands)
def test_each_address_has_a_slot_of_its_own_and_keeps_it(
    wanted: set[Address], before: set[Address], present: dict[int, Address]
) -> None:
    assigned = assign(before, {}, present)
    now = assign(wanted, assigned, present)
    assert now.keys() == wanted
    assert len(set(now.values())) == len(wanted)
    assert all(now[address] == assigned[address] for address in wanted & before)


@given(some, stands)
def test_an_agent_without_memory_finds_its_addresses_where_they_stand(
    wanted: set[Address], present: dict[int, Address]
) -> None:
    now = assign(wanted, {}, present)
    for address in wanted & set(present.values()):
        assert present[now[address]] == address


def test_a_new_address_takes_an_empty_slot_before_one_that_is_being_emptied() -> None:
    assert assign([NEAR[1]], {}, {0: NEAR[0]}) == {NEAR[1]: 1}


def test_with_every_slot_filled_by_a_thief_the_node_still_has_all_of_its_own() -> None:
    lies = {number: ip_address("192.0.2.1") for number in range(SLOTS)}
    wanted = [ip_address("10.0.0.0") + number for number in range(SLOTS)]
    now = assign(wanted, {}, lies)
    assert sorted(now.values()) == list(range(SLOTS))
    assert assign(wanted, now, lies) == now
