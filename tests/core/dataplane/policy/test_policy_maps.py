"""Compiled policy in the maps: what a flow then meets, and that no step in between allows too much or too little."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.selectors import Candidate
from proto.identity import IdentityRecord
from proto.policy import (
    MAX_RULES,
    CompiledPolicy,
    CompiledRule,
    Direction,
    PortMatch,
    Verdict,
)
from services.dataplane.core.datapath.policy_layout import (
    IdentityKey,
    Subject,
    SubjectKey,
)
from services.dataplane.core.policy.maps import PolicyMaps
from services.dataplane.core.policy.steps import Bump, Clear, Demand, Fill, Flip, MakeRoom, Rooms, Sizes, refusals
from tests.core.dataplane.notation import TCP, UDP, policy, record
from tests.core.dataplane.policy.kernel_policy import Kernel, Probe

IN, OUT = Direction
PEERS = (0, 2, 300, 301, 302, 303)
PROBES = [
    Probe(subject, direction, peer, cidr_set, protocol, port)
    for subject, direction, peer, cidr_set, (protocol, port) in itertools.product(
        (900, 901), (IN, OUT), PEERS, (0, 7), ((TCP, 80), (TCP, 85), (TCP, 443), (UDP, 80), (1, 0))
    )
]
LINES = [
    "in any tcp/80",
    "in shop:app=web tcp/80",
    "in shop:app=web tcp/80/13,udp",
    "in shop:* any",
    "in team=a:* tcp/443",
    "in *:* tcp",
    "in *:app=web any",
    "in cidr:7 tcp/80,tcp/443",
    "in shop:app=db,cidr:7 tcp/80",
    "out shop:app=web tcp/80",
    "out *:* any",
    "out any udp/80",
    "!in shop:app=web tcp/80 @1",
    "!in any tcp/80/13",
]
RECORDS = [
    record(300, "shop", "app=web", "team=a"),
    record(301, "shop", "app=db", "team=a"),
    record(302, "depot", "app=web", "team=b"),
    record(303, "depot", "tier=1"),
]


def naive(
    wanted: Mapping[int, CompiledPolicy], records: Mapping[int, IdentityRecord], probe: Probe, isolated: bool = False
) -> bool:
    """What the language says, read rule by rule."""
    one = wanted.get(probe.subject)
    if one is None:
        return False

    def names(rule: CompiledRule) -> bool:
        record = records.get(probe.peer)
        return (
            rule.any_peer
            or (bool(probe.cidr_set) and probe.cidr_set in rule.cidr_sets)
            or any(
                (probe.peer >= 256 and everybody(one.selectors[index]))
                or (record is not None and Candidate.of(record).is_in(one.selectors[index]))
                for index in rule.selectors
            )
        )

    def everybody(peer: object) -> bool:
        return peer == policy(1, "in *:* any").selectors[0]

    def holds(port: PortMatch) -> bool:
        return port.protocol in (0, probe.protocol) and (
            not port.protocol or (port.port ^ probe.port) >> (16 - port.bits) == 0
        )

    matching = [
        rule
        for rule in one.rules
        if rule.direction == probe.direction and names(rule) and any(holds(port) for port in rule.ports)
    ]
    if matching:
        return min(matching, key=lambda rule: (rule.precedence, rule.verdict)).verdict is Verdict.ALLOW
    return not (one.ingress_isolated if probe.direction is IN else one.egress_isolated)


def settled(maps: PolicyMaps, kernel: Kernel) -> Kernel:
    kernel.run(maps.settle())
    assert maps.settled
    return kernel


def holds_what_is_wanted(maps: PolicyMaps) -> None:
    """Nothing that a look at all would find has been missed."""
    named = {number for one in maps.subjects.values() for number in (one.ingress, one.egress)} - {0}
    assert named == maps.held.scopes.keys(), "a scope that no subject names, or that the maps lack"
    assert all(one.users for one in maps.held.sets.values()), "a set that no identity has"
    assert set(maps.selected.values()) == maps.held.sets.keys()
    mask = 0
    for held in maps.held.scopes.values():
        mask |= held.mask
    denies = any(held.scope.denies for held in maps.held.scopes.values())
    assert maps.held.in_force() == (mask, denies)


def from_scratch(wanted: Mapping[int, CompiledPolicy], records: Mapping[int, IdentityRecord]) -> Kernel:
    maps = PolicyMaps()
    for one in wanted.values():
        maps.want(one, "shop")
    for known in records.values():
        maps.selection.learn(known)
    return settled(maps, Kernel())


_policies = st.builds(
    lambda identity, lines, isolated, sequence: policy(identity, *lines, isolated=isolated, sequence=sequence),
    st.sampled_from([900, 901]),
    st.lists(st.sampled_from(LINES), max_size=4),
    st.sampled_from(["in", "", "out", "in out"]),
    st.integers(1, 9),
)
_records = st.sampled_from([*RECORDS, record(300, "shop", "app=db", "team=a"), record(303, "depot", "app=web")])
_events = st.lists(st.one_of(_policies, _records, st.sampled_from([900, 901, 300, 301, 302, 303, 0])), max_size=14)


@given(_events, st.booleans())
def test_whatever_came_before_the_maps_are_as_from_scratch_and_as_the_language_says(
    events: list[CompiledPolicy | IdentityRecord | int], each: bool
) -> None:
    """An event is a policy, a record, or the end of an identity (0: time to settle)."""
    maps, kernel = PolicyMaps(), Kernel()
    wanted: dict[int, CompiledPolicy] = {}
    records: dict[int, IdentityRecord] = {}
    for event in events:
        if isinstance(event, CompiledPolicy):
            wanted[event.identity] = event
            maps.want(event, "shop")
        elif isinstance(event, IdentityRecord):
            records[event.identity] = event
            maps.selection.learn(event)
        elif event >= 900:
            wanted.pop(event, None)
            maps.unwant(event)
        elif event:
            records.pop(event, None)
            maps.selection.forget(event)
        if each or event == 0:
            settled(maps, kernel)
            holds_what_is_wanted(maps)
    settled(maps, kernel)
    holds_what_is_wanted(maps)
    assert kernel.maps() == from_scratch(wanted, records).maps()
    assert maps.held.taken == Sizes(len(kernel.peers), len(kernel.ports), len(kernel.rules))
    for probe in PROBES:
        assert kernel.allows(probe) == naive(wanted, records, probe), probe


@given(_policies, _policies, st.sampled_from(RECORDS), st.booleans())
def test_no_moment_of_an_edit_is_worse_than_both_its_ends(
    before: CompiledPolicy, after: CompiledPolicy, late: IdentityRecord, knows: bool
) -> None:
    before = msgspec.structs.replace(before, identity=900)
    after = msgspec.structs.replace(after, identity=900)
    records = {one.identity: one for one in RECORDS if one != late or knows}
    maps = PolicyMaps()
    maps.want(before, "shop")
    for one in records.values():
        maps.selection.learn(one)
    kernel = settled(maps, Kernel())
    old = {probe for probe in PROBES if kernel.allows(probe)}
    generation = kernel.generation
    maps.want(after, "shop")
    new = {probe for probe in PROBES if naive({900: after}, records, probe)}
    reported = True
    steps = maps.settle()
    step = next(steps, None)
    for _ in range(10_000):
        fits = kernel.take(step)
        now = {probe for probe in PROBES if kernel.allows(probe)}
        assert now <= old | new, step
        assert now >= old & new, step
        if isinstance(step, Bump):
            reported = True
        elif isinstance(step, Flip):
            reported = False
        try:
            step = steps.send(fits)
        except StopIteration:
            break
    assert {probe for probe in PROBES if kernel.allows(probe)} == new
    if old - new:
        assert kernel.generation > generation, "flows whose right was taken away end"
        assert reported


def test_an_identity_that_loses_a_selector_ends_its_flows_and_one_that_wins_does_not_disturb() -> None:
    maps = PolicyMaps()
    maps.want(policy(900, "in shop:app=web tcp/80"), "shop")
    kernel = settled(maps, Kernel())
    generation = kernel.generation
    maps.selection.learn(RECORDS[0])
    settled(maps, kernel)
    probe = Probe(900, IN, 300, 0, TCP, 80)
    assert kernel.allows(probe)
    assert kernel.generation == generation
    maps.selection.learn(record(300, "shop", "app=db"))
    settled(maps, kernel)
    assert not kernel.allows(probe)
    assert kernel.generation == generation + 1


def test_a_denial_that_wins_a_peer_ends_its_flows() -> None:
    maps = PolicyMaps()
    maps.want(policy(900, "!in shop:app=web tcp/80 @1", "in any any"), "shop")
    kernel = settled(maps, Kernel())
    generation = kernel.generation
    maps.selection.learn(RECORDS[0])
    settled(maps, kernel)
    assert kernel.generation == generation + 1


def test_equal_policies_share_a_scope_and_a_lost_memory_finds_the_same_numbers() -> None:
    maps = PolicyMaps()
    for identity in (900, 901):
        maps.want(policy(identity, "in shop:app=web tcp/80", sources=f"of-{identity}-"), "shop")
    for one in RECORDS:
        maps.selection.learn(one)
    kernel = settled(maps, Kernel())
    assert len({one.ingress for one in kernel.subjects.values()}) == 1
    later = PolicyMaps()
    later.selection.learn(RECORDS[2])
    later.want(policy(901, "in shop:app=web tcp/80"), "shop")
    later.adopt({key.identity: one for key, one in kernel.subjects.items()}, {900, 901})
    for one in reversed(RECORDS):
        later.selection.learn(one)
    before = kernel.maps()
    kernel.run(later.settle())
    assert kernel.maps() == before, "what another life left is what is wanted"


def test_rules_that_are_not_known_go_on_as_the_earlier_incarnation_had_them() -> None:
    maps = PolicyMaps()
    maps.adopt({900: Subject(ingress=5, ingress_isolated=True, egress_isolated=False)}, {900})
    maps.adopt(maps.subjects | {901: Subject(ingress=6, ingress_isolated=True, egress_isolated=False)}, {900})
    kernel = Kernel()
    kernel.subjects[SubjectKey(identity=901)] = maps.subjects[901]
    settled(maps, kernel)
    assert set(maps.subjects) == {900}
    assert maps.kept == {5}


def test_what_namespace_selector_everything_costs_does_not_grow_with_identities() -> None:
    maps = PolicyMaps()
    for identity in range(900, 910):
        maps.want(policy(identity, "in *:* tcp/80", f"in any tcp/{identity}"), "shop")
    for identity in range(1000, 3000):
        maps.selection.learn(record(identity, "crowd", f"app=a{identity}"))
    kernel = settled(maps, Kernel())
    assert len(kernel.peers) == 20
    assert not kernel.selected
    assert kernel.allows(Probe(900, IN, 5555, 0, TCP, 80)), "also of whom nothing is known but that it is a pod"
    assert not kernel.allows(Probe(900, IN, 2, 0, TCP, 80))


def test_identities_of_one_tenant_that_differ_for_nobody_are_one_set() -> None:
    """2,048 label sets of one tenant: what others' rules cost stays the same."""
    maps = PolicyMaps()
    maps.want(policy(900, "in team=a:* tcp/80", "in depot:app=db any"), "shop")
    for identity in range(1000, 3048):
        maps.selection.learn(record(identity, "crowd", f"app=a{identity}", "team=a"))
    kernel = settled(maps, Kernel())
    assert len(kernel.peers) == 1
    assert len(kernel.selected) == 2048


def test_one_change_looks_at_its_own_scopes_however_many_there_are() -> None:
    maps, kernel = PolicyMaps(), Kernel()
    for identity in range(1000, 1400):
        maps.want(policy(identity, f"in shop:app=a{identity % 7} tcp/{identity}", "out any any"), "shop")
    for one in range(2000, 2500):
        maps.selection.learn(record(one, "shop", f"app=a{one % 7}", f"n={one}"))
    settled(maps, kernel)
    assert len(maps.held.scopes) == 401
    changes: list[Callable[[], object]] = [
        lambda: maps.want(policy(1000, "in shop:app=a1 tcp/9"), "shop"),
        lambda: maps.unwant(1001),
        lambda: maps.selection.learn(record(2000, "shop", "app=a1")),
        lambda: maps.selection.forget(2001),
        lambda: None,
    ]
    for change in changes:
        before = maps.visits
        change()
        settled(maps, kernel)
        assert maps.visits - before <= 12
        holds_what_is_wanted(maps)


def test_a_new_selector_asks_in_slices_and_an_edit_meanwhile_is_whole() -> None:
    maps, kernel = PolicyMaps(), Kernel()
    for identity in range(1000, 6000):
        maps.selection.learn(record(identity, "crowd", f"app=a{identity % 7}"))
    maps.want(policy(900, "in *:app=a3 tcp/80"), "shop")
    steps = maps.settle()
    pauses, fits = 0, True
    step = next(steps)
    late = record(999, "crowd", "app=a3")
    while True:
        if step is None:
            pauses += 1
        if pauses == 3:  # an ADD comes in between, and an identity
            maps.want(policy(901, "in *:app=a4 tcp/80"), "shop")
            maps.selection.learn(late)
            settled(maps, kernel)
            assert kernel.allows(Probe(901, IN, 1005, 0, TCP, 80)) == (1005 % 7 == 4)
            assert kernel.allows(Probe(901, IN, 1005 + 4, 0, TCP, 80)) == (1009 % 7 == 4)
        fits = kernel.take(step)
        try:
            step = steps.send(fits)
        except StopIteration:
            break
    assert pauses >= 5
    settled(maps, kernel)
    for peer in range(1000, 1020):
        assert kernel.allows(Probe(900, IN, peer, 0, TCP, 80)) == (peer % 7 == 3)
        assert kernel.allows(Probe(901, IN, peer, 0, TCP, 80)) == (peer % 7 == 4)
    assert kernel.allows(Probe(900, IN, 999, 0, TCP, 80))
    fresh = PolicyMaps()
    for identity in range(1000, 6000):
        fresh.selection.learn(record(identity, "crowd", f"app=a{identity % 7}"))
    fresh.selection.learn(late)
    fresh.want(policy(901, "in *:app=a4 tcp/80"), "shop")
    fresh.want(policy(900, "in *:app=a3 tcp/80"), "shop")
    assert kernel.maps() == settled(fresh, Kernel()).maps()


def test_an_identity_without_rules_has_no_entry_and_is_denied() -> None:
    maps = PolicyMaps()
    maps.want(policy(900, "in any any"), "shop")
    kernel = settled(maps, Kernel())
    assert set(kernel.subjects) == {SubjectKey(identity=900)}
    assert not kernel.allows(Probe(901, IN, 300, 0, TCP, 80))


_PORT_OF_NO_PROTOCOL = msgspec.structs.replace(policy(900, "in any any").rules[0], ports=(PortMatch(0, 8, 16),))


@pytest.mark.parametrize(
    "bad",
    [
        msgspec.structs.replace(policy(900), rules=policy(900, "in any any").rules * (MAX_RULES + 1)),
        msgspec.structs.replace(policy(900, "in any any"), rules=(_PORT_OF_NO_PROTOCOL,)),
        msgspec.structs.replace(policy(900, "in shop:app=web any"), selectors=()),
    ],
    ids=["too many rules", "a port without a protocol", "a selector that is not there"],
)  # fmt: skip
def test_what_the_maps_cannot_say_is_isolated_whole(bad: CompiledPolicy) -> None:
    maps = PolicyMaps()
    assert maps.want(bad, "shop").why
    kernel = settled(maps, Kernel())
    assert not any(kernel.allows(probe) for probe in PROBES)


def test_all_256_rules_are_distinguished() -> None:
    lines = [f"{'!' if number % 2 else ''}in any tcp/{number} @{number}" for number in range(MAX_RULES)]
    maps = PolicyMaps()
    maps.want(policy(900, *lines), "shop")
    kernel = settled(maps, Kernel())
    assert [kernel.allows(Probe(900, IN, 300, 0, TCP, port)) for port in range(MAX_RULES + 1)] == [
        number % 2 == 0 for number in range(MAX_RULES)
    ] + [False]


class TestRoom:
    """A map that is full hurts the newest of the largest tenant, and keeps nobody's old rights."""

    def maps(self, peers: int = 1000, ports: int = 1000, rules: int = 1000, selected: int = 1000) -> PolicyMaps:
        self.rooms = Rooms(Sizes(peers, ports, rules), selected)
        maps = PolicyMaps(self.rooms)
        for one in RECORDS:
            maps.selection.learn(one)
        return maps

    def many(self, count: int, first: int = 1) -> list[str]:
        return [f"in any tcp/{port}" for port in range(first, first + count)]

    @pytest.mark.parametrize("reported", [True, False], ids=["known room", "the kernel says no"])
    def test_a_revocation_goes_through(self, reported: bool) -> None:
        maps = self.maps(ports=20)
        kernel = Kernel(self.rooms)
        if not reported:
            maps.rooms = Rooms(Sizes(1000, 1000, 1000), 1000)
        maps.want(policy(900, *self.many(10), sequence=1), "shop")
        settled(maps, kernel)
        maps.want(policy(900, *self.many(30, first=5), sequence=2), "shop")
        settled(maps, kernel)
        assert not kernel.allows(Probe(900, IN, 300, 0, TCP, 1)), "a right that was taken away"
        assert not kernel.allows(Probe(900, IN, 300, 0, TCP, 6)), "denied rather than half"
        assert set(maps.refused) == {(900, IN)}
        maps.want(policy(900, *self.many(3), sequence=3), "shop")
        maps.admit_again()
        settled(maps, kernel)
        assert kernel.allows(Probe(900, IN, 300, 0, TCP, 1))
        assert not maps.refused

    def test_the_largest_tenant_is_hurt_and_his_newest_first(self) -> None:
        maps = self.maps(ports=40)
        kernel = Kernel(self.rooms)
        maps.want(policy(901, *self.many(5), sequence=1), "small")
        maps.want(policy(902, *self.many(15, 100), sequence=2), "large")
        maps.want(policy(903, *self.many(15, 200), sequence=3), "large")
        settled(maps, kernel)
        assert not maps.refused
        maps.want(policy(904, *self.many(8, 300), sequence=4), "small")
        settled(maps, kernel)
        assert set(maps.refused) == {(903, IN)}
        assert kernel.allows(Probe(904, IN, 300, 0, TCP, 300))
        assert kernel.allows(Probe(902, IN, 300, 0, TCP, 100))
        assert not kernel.allows(Probe(903, IN, 300, 0, TCP, 200))
        maps.unwant(902)
        maps.admit_again()
        settled(maps, kernel)
        assert kernel.allows(Probe(903, IN, 300, 0, TCP, 200)), "as soon as there is room"

    def test_an_edit_that_fits_only_without_its_old_form_goes_through(self) -> None:
        maps = self.maps(ports=20)
        kernel = Kernel(self.rooms)
        maps.want(policy(900, *self.many(15), sequence=1), "shop")
        settled(maps, kernel)
        maps.want(policy(900, *self.many(15, first=100), sequence=2), "shop")
        settled(maps, kernel)
        assert not maps.refused
        assert kernel.allows(Probe(900, IN, 300, 0, TCP, 100))
        assert not kernel.allows(Probe(900, IN, 300, 0, TCP, 1))

    def test_an_identity_that_has_no_room_matches_nothing(self) -> None:
        maps = self.maps(selected=2)
        kernel = Kernel(self.rooms)
        maps.want(policy(900, "in shop:* tcp/80", "in depot:* tcp/80"), "shop")
        settled(maps, kernel)
        allowed = [peer for peer in (300, 301, 302, 303) if kernel.allows(Probe(900, IN, peer, 0, TCP, 80))]
        assert len(allowed) == 2
        assert set(maps.unselected) == {300, 301, 302, 303} - set(allowed)
        maps.selection.forget(allowed[0])
        settled(maps, kernel)
        maps.admit_again()
        settled(maps, kernel)
        assert len(kernel.selected) == 2

    def test_an_identity_of_a_small_tenant_gets_the_slot_of_the_newest_of_the_largest(self) -> None:
        maps = self.maps(selected=3)
        kernel = Kernel(self.rooms)
        for known in RECORDS:
            maps.selection.forget(known.identity)
        maps.want(policy(900, "in large:* tcp/80", "in small:* tcp/80"), "shop")
        for identity in (701, 702, 703, 704):
            maps.selection.learn(record(identity, "large"))
            settled(maps, kernel)
        assert maps.without() == {"large": 1}
        assert set(maps.selected) == {701, 702, 703}
        before = kernel.generation
        maps.selection.learn(record(801, "small"))
        settled(maps, kernel)
        assert set(maps.selected) == {701, 702, 801}
        assert kernel.allows(Probe(900, IN, 801, 0, TCP, 80)), "others are served"
        assert not kernel.allows(Probe(900, IN, 703, 0, TCP, 80))
        assert kernel.generation > before, "flows of who gave are judged again"
        assert maps.without() == {"large": 2}
        maps.selection.forget(701)
        settled(maps, kernel)
        maps.admit_again()
        settled(maps, kernel)
        assert len(maps.selected) == 3, "a removal goes on, and its place is given away"
        assert maps.without() == {"large": 1}

    def test_room_is_asked_for_before_anybody_goes_without(self) -> None:
        """Maps that may become larger do, and nobody is refused meanwhile."""
        maps = self.maps(peers=4, ports=10, rules=10, selected=3)
        kernel = Kernel()
        asked: list[MakeRoom] = []
        for n in range(8):
            maps.want(policy(900 + n, *self.many(5, 100 * n), "in shop:* tcp/80", "in depot:* tcp/80"), "shop")
            steps = maps.settle()
            step = next(steps)
            while True:
                if isinstance(step, MakeRoom):
                    asked.append(step)
                    scopes = Sizes(*(size * 2 for size in step.scopes))
                    maps.rooms = Rooms(scopes, step.selected * 2)
                    assert kernel.take(None)
                kernel.take(step)
                assert not maps.refused
                assert not maps.unselected
                try:
                    step = steps.send(True)
                except StopIteration:
                    break
        assert asked
        assert kernel.allows(Probe(907, IN, 300, 0, TCP, 700))

    @settings(max_examples=200)
    @given(
        st.lists(st.tuples(_policies, st.sampled_from(["small", "large"]), st.booleans()), max_size=8),
        st.integers(1, 12),
        st.integers(0, 6),
        st.integers(1, 6),
        st.booleans(),
    )
    def test_nobody_ever_has_more_than_he_should(
        self, edits: list[tuple[CompiledPolicy, str, bool]], ports: int, peers: int, selected: int, known: bool
    ) -> None:
        rooms = Rooms(Sizes(peers, ports, 1000), selected)
        maps, kernel = PolicyMaps(rooms if known else Rooms(Sizes(99, 99, 9999), 99)), Kernel(rooms)
        records = {one.identity: one for one in RECORDS}
        for member in RECORDS:
            maps.selection.learn(member)
        wanted: dict[int, CompiledPolicy] = {}
        for one, namespace, again in edits:
            if any(not rule.verdict for rule in one.rules):
                continue
            wanted[one.identity] = one
            maps.want(one, namespace)
            if again:
                maps.admit_again()
            settled(maps, kernel)
            for probe in PROBES:
                assert kernel.allows(probe) <= naive(wanted, records, probe), probe
            assert maps.held.taken == Sizes(len(kernel.peers), len(kernel.ports), len(kernel.rules))
            holds_what_is_wanted(maps)
            for probe in PROBES:
                if not maps.refused and not maps.unselected:
                    assert kernel.allows(probe) == naive(wanted, records, probe), probe

    def test_refused_are_all_of_one_scope_of_the_largest(self) -> None:
        sizes = Sizes(ports=6)
        demands = [
            Demand((1, IN), "a", 1, 71, sizes),
            Demand((2, IN), "a", 9, 71, sizes),
            Demand((3, IN), "a", 5, 72, sizes),
            Demand((4, IN), "b", 99, 73, sizes),
        ]
        assert refusals(demands, Sizes(9, 20, 9)) == set()
        assert refusals(demands, Sizes(9, 12, 9)) == {(3, IN)}, "who shares an old scope is not in the way"
        assert refusals(demands, Sizes(9, 6, 9)) <= {(1, IN), (2, IN), (3, IN), (4, IN)}
        assert refusals(demands, Sizes(9, 0, 9)) == {(1, IN), (2, IN), (3, IN), (4, IN)}


def test_a_subject_flips_when_its_scope_is_whole() -> None:
    maps, kernel = PolicyMaps(), Kernel()
    maps.want(policy(900, "in any tcp/80"), "shop")
    steps = maps.settle()
    for step in steps:
        kernel.take(step)
        for subject in kernel.subjects.values():
            assert [key for key in kernel.rules if key.scope == subject.ingress], "named before it is there"
        if step is not None:
            break
    assert type(step) is Fill


def test_what_nobody_names_goes_and_rules_go_first() -> None:
    maps = PolicyMaps()
    maps.want(policy(900, "in shop:app=web tcp/80"), "shop")
    maps.selection.learn(RECORDS[0])
    kernel = settled(maps, Kernel())
    maps.unwant(900)
    steps = kernel.run(maps.settle())
    assert kernel.maps() == ({}, {}, {}, {}, {})
    kinds = [type(step) for step in steps if step is not None]
    assert kinds[:3] == [Flip, Bump, Clear]
    assert Fill not in kinds
    assert IdentityKey(identity=300) not in kernel.selected


def test_a_set_that_no_identity_has_leaves_the_maps() -> None:
    maps = PolicyMaps()
    maps.want(policy(900, "in shop:app=web tcp/80"), "shop")
    maps.selection.learn(RECORDS[0])
    kernel = settled(maps, Kernel())
    assert len(kernel.peers) == 1
    maps.selection.forget(300)
    settled(maps, kernel)
    assert not kernel.peers
    holds_what_is_wanted(maps)


def naive_is_the_languages(cases: Iterable[tuple[bool, Probe]]) -> None:
    """The oracle itself, by hand."""
    known = {900: policy(900, "in shop:app=web tcp/80/13 @5", "!in any tcp/85 @1")}
    records = {one.identity: one for one in RECORDS}
    for wanted, probe in cases:
        assert naive(known, records, probe) is wanted, probe


def test_the_oracle_by_hand() -> None:
    naive_is_the_languages(
        [
            (True, Probe(900, IN, 300, 0, TCP, 80)),
            (True, Probe(900, IN, 300, 0, TCP, 87)),
            (False, Probe(900, IN, 300, 0, TCP, 88)),
            (False, Probe(900, IN, 300, 0, TCP, 85)),
            (False, Probe(900, IN, 301, 0, TCP, 80)),
            (False, Probe(900, IN, 302, 0, TCP, 80)),
            (True, Probe(900, OUT, 302, 0, TCP, 80)),
        ]
    )
