"""Learnt routes: which next hop object stands for what, and what of the table is written when."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from services.routing.core.bgp.values import Family, prefix_of
from services.routing.core.learnt import (
    FIRST_ID,
    LAST_ID,
    Group,
    Hop,
    Hops,
    NextHop,
    NextHops,
    Object,
    Table,
    hops_of,
    longest_match,
)

A, B, C = (Hop(ip_address(address), link) for address, link in (("172.31.0.1", 3), ("172.31.1.1", 4), ("fe80::1", 3)))
SETS = st.lists(st.sampled_from((A, B, C)), min_size=1).map(hops_of)


def put(seen: dict[int, Object], objects: Iterable[Object]) -> None:
    seen.update((one.identifier, one) for one in objects)


def settle(known: NextHops, seen: dict[int, Object], used: Iterable[int], *lost: Hop) -> list[Object]:
    """As the shell does it, into a kernel that refuses nothing."""
    done: list[Object] = [*known.singles(used, seen)]
    put(seen, done)
    groups = known.groups(used, seen, set(lost))
    put(seen, groups)
    return [*done, *groups]


def leads(seen: dict[int, Object], identifier: int) -> set[Hop]:
    """Where packets go by an object, as the kernel does it."""
    one = seen.get(identifier)
    if isinstance(one, NextHop):
        return {one.hop}
    return {hop for member in one.members for hop in leads(seen, member)} if one is not None else set()


def test_equal_next_hops_are_one_object_whatever_their_order() -> None:
    known = NextHops()
    assert known.identifier(hops_of((B, A))) == known.identifier(hops_of((A, B, A)))
    assert known.identifier((A,)) != known.identifier((B,))


def test_a_lost_next_hop_changes_its_groups_alone_and_comes_back_the_same_way() -> None:
    known, seen = NextHops(), dict[int, Object]()
    both, three, alone = (known.identifier(hops_of(some)) for some in ((A, B), (A, B, C), (A,)))
    used = [both, three, alone]
    settle(known, seen, used)
    changes = settle(known, seen, used, A)
    assert {one.identifier for one in changes} == {both, three}
    assert [leads(seen, one) for one in used] == [{B}, {B, C}, {A}], "a route without another way keeps the one it has"
    settle(known, seen, used, A, B, C)
    assert leads(seen, both) == {A, B}, "of which all are lost, none is"
    settle(known, seen, used)
    assert [leads(seen, one) for one in used] == [{A, B}, {A, B, C}, {A}]


@given(st.lists(SETS, min_size=1, max_size=6), st.data())
def test_an_agent_without_memory_gives_the_same_objects(asked: list[Hops], data: st.DataObject) -> None:
    known, seen = NextHops(), dict[int, Object]()
    ids = {hops: known.identifier(hops) for hops in asked}
    settle(known, seen, ids.values())
    later = NextHops()
    later.adopt(seen)
    assert {hops: later.identifier(hops) for hops in data.draw(st.permutations(asked))} == ids
    assert settle(later, seen, ids.values()) == []


def test_a_group_that_the_kernel_has_cut_keeps_its_meaning_while_it_is_remembered() -> None:
    """A link went down and came back: the routes still name the group, which gets its member back."""
    known, seen = NextHops(), dict[int, Object]()
    both = known.identifier(hops_of((A, B)))
    settle(known, seen, [both])
    first, second = known.identifier((A,)), known.identifier((B,))
    del seen[first]
    seen[both] = Group(both, (second,))
    known.adopt(seen)
    assert settle(known, seen, [both]) == [NextHop(first, A), Group(both, (first, second))]


def test_numbers_of_objects_run_out_and_come_back() -> None:
    """A peer may name every address of a link: that has a bound, and the last one costs no more than the first."""
    known = NextHops()
    numbers = [known.identifier((Hop(ip_address(0x0A000000 + n), 3),)) for n in range(LAST_ID - FIRST_ID + 1)]
    assert sorted(numbers) == list(range(FIRST_ID, LAST_ID + 1))
    with pytest.raises(OverflowError):
        known.identifier((A,))
    with pytest.raises(OverflowError):
        known.identifier(hops_of((A, B)))
    assert known.identifier((Hop(ip_address(0x0A000000), 3),)) == FIRST_ID, "what is known stays"
    known.forget([FIRST_ID + 7])
    assert known.identifier((A,)) == FIRST_ID + 7


def test_what_changed_before_it_was_written_gives_its_number_back() -> None:
    known, seen = NextHops(), dict[int, Object]()
    used, passing = known.identifier(hops_of((A, B))), known.identifier(hops_of((A, C)))
    settle(known, seen, [used])
    idle = known.never_written([used], seen)
    assert {known.hops(one) for one in idle} == {hops_of((A, C)), (C,)}
    known.forget(idle)
    assert known.hops(passing) == ()
    assert leads(seen, used) == {A, B}
    assert known.never_written([used], seen) == ()


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("10.1.2.0/24", "10.1.2.0/24"),
        ("10.1.2.128/25", "10.1.2.0/24"),
        ("10.1.3.0/24", "10.1.2.0/23"),
        ("10.1.0.0/16", "10.0.0.0/8"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.0.0.0/7", None),
        ("192.0.2.1/32", None),
        ("fd00:1:2:3::/64", "fd00::/13"),
    ],
)
def test_the_longest_route_that_covers_a_prefix(prefix: str, expected: str | None) -> None:
    texts = ("10.0.0.0/8", "10.1.2.0/23", "10.1.2.0/24", "fd00::/13")
    routes = {prefix_of(ip_network(text)): text for text in texts}
    family, wanted = prefix_of(ip_network(prefix))
    found = longest_match({one for which, one in routes if which is family}, wanted)
    assert (routes[family, found] if found is not None else None) == expected


def test_what_nothing_needs_goes_groups_first() -> None:
    known, seen = NextHops(), dict[int, Object]()
    both, alone = known.identifier(hops_of((A, B))), known.identifier((B,))
    settle(known, seen, [both, alone])
    assert known.unused([both], seen) == ()
    idle = known.unused([alone], seen)
    assert idle == (both, known.identifier((A,)))
    known.forget(idle)
    assert known.identifier((C,)) == FIRST_ID, "a number that is free is given again"


def test_what_belongs_to_a_group_of_a_stray_route_stays() -> None:
    known, seen = NextHops(), dict[int, Object]()
    settle(known, seen, [known.identifier(hops_of((A, B)))])
    fresh = NextHops()  # has adopted nothing: the members stand for nothing that it knows
    assert fresh.unused(seen.keys(), seen) == ()


PREFIXES = [bytes((24, 10, 1, number)) for number in range(6)]


class Kernel:
    """A table of routes by prefix that refuses some."""

    def __init__(self) -> None:
        self.routes: dict[bytes, int] = {}
        self.refuses: set[bytes] = set()

    def write(self, table: Table, objects: set[int], most: int = 2) -> None:
        while len(table):
            taken = table.take(most, objects, ())
            refused = []
            for index, (prefix, identifier) in enumerate(taken):
                if prefix in self.refuses and identifier:
                    refused.append((index, errno.ENOMEM))
                elif identifier:
                    self.routes[prefix] = identifier
                elif self.routes.pop(prefix, None) is None:
                    refused.append((index, errno.ESRCH))
            table.settle(taken, refused)

    def compare(self, table: Table, objects: set[int]) -> None:
        odd = {prefix: one for prefix, one in self.routes.items() if table.wanted.get(prefix) != one}
        table.begin()
        table.mend(odd.items(), [prefix for prefix in table.wanted if prefix not in self.routes], objects)
        self.write(table, objects)


class Tables(RuleBasedStateMachine):
    """Any order of changes, refusals, losses and comparisons; in the end the kernel has what is wanted, nothing else,
    and each route that it has names an object that counts as used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.table, self.kernel, self.objects = Table(Family.IPV4), Kernel(), {1, 2, 3}
        self.spoken = set[bytes]()

    @rule(prefix=st.sampled_from(PREFIXES), identifier=st.sampled_from((0, 1, 2, 3)))
    def replace(self, prefix: bytes, identifier: int) -> None:
        self.table.replace(prefix, identifier)
        if identifier:
            self.spoken.add(prefix)

    @rule(prefix=st.sampled_from(PREFIXES), identifier=st.sampled_from((1, 2, 3)))
    def somebody_writes(self, prefix: bytes, identifier: int) -> None:
        self.kernel.routes[prefix] = identifier

    @rule(identifier=st.sampled_from((1, 2, 3)))
    def an_object_goes_with_its_link(self, identifier: int) -> None:
        self.objects.discard(identifier)
        self.kernel.routes = {prefix: one for prefix, one in self.kernel.routes.items() if one != identifier}

    @rule()
    def links_are_up(self) -> None:
        self.objects = {1, 2, 3}

    @rule(prefixes=st.sets(st.sampled_from(PREFIXES)))
    def the_kernel_refuses(self, prefixes: set[bytes]) -> None:
        self.kernel.refuses = prefixes

    @rule()
    def write(self) -> None:
        self.kernel.write(self.table, self.objects)

    @rule()
    def compare(self) -> None:
        """Not yet complete: what nothing was heard of stays, and what it names is in use."""
        before = {prefix: one for prefix, one in self.kernel.routes.items() if prefix not in self.spoken}
        self.kernel.compare(self.table, self.objects)
        assert before.items() <= self.kernel.routes.items()
        assert set(self.kernel.routes.values()) <= set(self.table.used)

    def teardown(self) -> None:
        self.objects, self.kernel.refuses = {1, 2, 3}, set()
        self.table.complete()
        self.kernel.compare(self.table, self.objects)
        assert self.kernel.routes == self.table.wanted
        assert self.table.refused == {}
        self.kernel.compare(self.table, self.objects)
        assert set(self.table.used) == set(self.table.wanted.values())


Tables.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
test_tables = Tables.TestCase


def test_refusals_say_why_and_leave_others_routes_alone() -> None:
    table = Table(Family.IPV4)
    foreign, waits, fails, fine = PREFIXES[:4]
    for prefix in (foreign, fails, fine):
        table.replace(prefix, 1)
    table.replace(waits, 2)
    taken = table.take(10, {1}, {foreign})
    assert taken == [(fails, 1), (fine, 1)]
    table.settle(taken, [(0, errno.ENOMEM)])
    assert table.refused == {foreign: errno.EEXIST, waits: errno.ENETDOWN, fails: errno.ENOMEM}
    table.replace(fails, 0)
    assert (table.take(10, {1}, {fails}), fails in table.refused) == ([(fails, 0)], False)


def test_what_waits_for_a_link_is_written_all_at_once_when_it_is_there() -> None:
    table = Table(Family.IPV6)
    prefixes = [bytes((128,)) + number.to_bytes(16) for number in range(3000)]
    for prefix in prefixes:
        table.replace(prefix, 1)
    assert table.take(5000, set(), ()) == []
    table.begin()
    table.mend((), prefixes, {1})
    assert len(table.take(5000, {1}, ())) == 3000


def test_what_the_kernel_has_never_taken_is_unwritten_until_it_has() -> None:
    """A route that is there and changes leads on meanwhile; a new one leads nowhere before it is written."""
    table, one, other = Table(Family.IPV4), PREFIXES[0], PREFIXES[1]
    objects = {FIRST_ID: NextHop(FIRST_ID, A), FIRST_ID + 1: NextHop(FIRST_ID + 1, B)}
    table.replace(one, FIRST_ID)
    table.replace(other, FIRST_ID)
    assert table.unwritten == {one, other}
    part = table.take(2, objects, ())
    assert table.unwritten == {one, other}, "it is on its way"
    table.settle(part, [(1, errno.ENETUNREACH)])
    assert table.unwritten == {part[1][0]}
    table.replace(part[0][0], FIRST_ID + 1)
    assert part[0][0] not in table.unwritten
    table.replace(other, 0)
    table.replace(one, 0)
    assert not table.unwritten


def test_a_route_that_is_left_out_leaves_the_shorter_one() -> None:
    longer, shorter = (prefix_of(ip_network(text))[1] for text in ("10.1.2.0/24", "10.1.0.0/16"))
    host = prefix_of(ip_network("10.1.2.3/32"))[1]
    assert longest_match({longer, shorter}, host) == longer
    assert longest_match({longer, shorter}, host, {longer}) == shorter
    assert longest_match({longer, shorter}, host, {longer, shorter}) is None
