"""A policy edited under packets: between any two writes to the kernel's maps a packet is judged as before or after."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from msgspec import structs

from chassis.runtime.reconcile import Dirty
from linux import bpf
from proto.codec import identity_key
from proto.identity import IdentityRecord
from proto.policy import CompiledPolicy, Frontier, Revision, RuleSource
from services.dataplane.core.datapath import policy_layout as pl
from services.dataplane.core.datapath.layout import Event
from services.dataplane.core.monitor.flows import Interpreter
from services.dataplane.core.monitor.names import Names
from services.dataplane.core.policy import steps as ps
from services.dataplane.policy.enforce import Enforcer, Refused, Without
from tests.bpf import frames
from tests.bpf.frames import SYN, TCP
from tests.bpf.node_state import NodeState
from tests.bpf.world import REDIRECT, World, empty
from tests.core.dataplane.notation import policy, record

pytestmark = pytest.mark.privileged

B = 1002
PORTS = (80, 443)
PEER = {4: "10.244.2.7", 6: "fd00:10:244:2::7"}
CLIENT = record(2001, "depot", "app=web", "team=a")
EDITS = [
    # before | after
    pytest.param(policy(B, "in any tcp/80"), policy(B, "in any any"), id="wider"),
    pytest.param(policy(B, "in any any"), policy(B, "in any tcp/80"), id="narrower"),
    pytest.param(policy(B, "in depot:app=web tcp/80"), policy(B, "in any tcp/80"), id="said otherwise"),
    pytest.param(policy(B, "in depot:* tcp/80"), policy(B, "in team=a:* tcp/80"), id="by another selector"),
    pytest.param(policy(B, "in depot:* tcp/80"), policy(B, "in depot:app=db tcp/80,tcp/443"), id="others"),
    pytest.param(policy(B, "in any tcp/80"), policy(B, "in any tcp/443"), id="another port"),
    pytest.param(policy(B, isolated=""), policy(B, "in any tcp/80"), id="isolated but for a port"),
    pytest.param(policy(B, "in any tcp/80"), policy(B, isolated=""), id="opened"),
    pytest.param(policy(B, "in any any"), policy(B), id="closed"),
]


class Edited:
    """Pod b, its policy, and the enforcer that keeps it."""

    def __init__(self, world: World, version: int) -> None:
        self.world, self.version = world, version
        self.state = NodeState({"b": world.b.identity})
        self.state.learn(CLIENT)
        self.enforcer: Enforcer = self.state.enforcer(world.tables)
        self._sports = itertools.count(20_000)

    def passing(self) -> frozenset[int]:
        """Ports of pod b that the remote pod reaches now, by flows that are new each time."""
        target = str(self.world.b.address(self.version))
        return frozenset(
            port
            for port in PORTS
            for segment in [frames.tcp(next(self._sports), port, SYN)]
            for packet in [frames.ip(PEER[self.version], target, TCP, segment)]
            if self.world.from_wire(packet).action == REDIRECT
        )

    def dropped(self, port: int) -> Event:
        """What is told of a packet to a port that policy does not let through."""
        segment = frames.tcp(next(self._sports), port, SYN)
        target = str(self.world.b.address(self.version))
        event = self.world.from_wire(frames.ip(PEER[self.version], target, TCP, segment)).event
        assert event is not None
        return event

    def enforce(self, *changed: IdentityRecord | CompiledPolicy, full: bool = False) -> None:
        rules, records = set(), set()
        for one in changed:
            if isinstance(one, IdentityRecord):
                records.add(self.state.learn(one))
            else:
                self.state.rules[one.identity] = one
                rules.add(identity_key(one.identity))
        by_cursor = (frozenset(rules), frozenset[str](), frozenset(records))
        asyncio.run(self.enforcer.enforce(Dirty(full=full, by_cursor=by_cursor)))


def isolated_by(name: str, one: CompiledPolicy) -> CompiledPolicy:
    """The same policy, isolated by another NetworkPolicy."""
    return structs.replace(one, isolated_by=(RuleSource("NetworkPolicy", "shop", name, -1),))


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def edited(world: World, request: pytest.FixtureRequest) -> Edited:
    return Edited(world, request.param)


def watched(monkeypatch: pytest.MonkeyPatch, edited: Edited) -> list[frozenset[int]]:
    """What passes after each write to a map of policy."""
    moments: list[frozenset[int]] = []

    def watch(apply: Callable[..., None]) -> Callable[..., None]:
        def applied(*steps: Any) -> None:
            apply(*steps)
            if any(steps):
                moments.append(edited.passing())

        return applied

    tables = edited.world.tables
    for table in (tables.subjects, tables.selected, tables.scope_peers, tables.scope_ports, tables.scope_rules):
        monkeypatch.setattr(table, "apply", watch(table.apply))
    return moments


@pytest.mark.parametrize(("before", "after"), EDITS)
def test_no_moment_is_worse_than_both_ends(
    edited: Edited, monkeypatch: pytest.MonkeyPatch, before: CompiledPolicy, after: CompiledPolicy
) -> None:
    edited.enforce(before)
    old = edited.passing()
    moments = watched(monkeypatch, edited)
    generation = edited.world.tables.generation
    edited.enforce(after)
    new = edited.passing()
    assert old != new or before != after
    assert len(moments) >= 2
    for moment in moments:
        assert moment <= old | new, "allowed for a moment what neither allows"
        assert moment >= old & new, "refused for a moment what both allow"
    assert edited.world.tables.generation != generation, "live flows are judged again"


def test_a_drop_is_blamed_on_the_policy_that_judged_it(edited: Edited) -> None:
    """Policies that differ in their names alone too: then the kernel's rules are the same before and after."""
    steps = [
        policy(B, "in any tcp/80", sequence=10),
        isolated_by("strict", policy(B, "in any tcp/80", sequence=11)),
        isolated_by("other", policy(B, "!in any tcp/443", "in any tcp/80", sequence=12, sources="new")),
    ]
    edited.enforce(steps[0])
    reported = [edited.dropped(443)]
    for one in steps[1:]:
        edited.state.rules[B] = one  # received, and not in force
        reported.append(edited.dropped(443))
        edited.enforce(one)
        reported.append(edited.dropped(443))
    reader = Interpreter(node="n1", names=Names(), policies=edited.enforcer.history.names, wall_offset=0)
    read = [reader.read(event) for event in reported]
    assert [(one.policies, one.revision) for one in read] == [
        (("shop/deny-all",), "e1:10"),
        (("shop/deny-all",), "e1:10"),
        (("shop/strict",), "e1:11"),
        (("shop/strict",), "e1:11"),
        (("shop/new0",), "e1:12"),
    ]
    restarted = edited.state.enforcer(edited.world.tables)
    asyncio.run(restarted.enforce(Dirty(full=True)))
    reader = Interpreter(node="n1", names=Names(), policies=restarted.history.names, wall_offset=0)
    assert [reader.read(event).policies for event in reported[2:]] == [(), (), ("shop/new0",)]


def test_an_identity_matches_from_the_moment_its_record_is_known(edited: Edited) -> None:
    edited.enforce(policy(B, "in team=a:app=web tcp/80"), record(2001, "depot", "app=db", "team=a"))
    assert edited.passing() == frozenset()
    generation = edited.world.tables.generation
    edited.enforce(CLIENT)
    assert edited.passing() == {80}
    assert edited.world.tables.generation == generation, "nobody lost a right"
    edited.enforce(record(2001, "depot", "app=db", "team=a"))
    assert edited.passing() == frozenset()
    assert edited.world.tables.generation != generation


def test_a_member_goes_only_from_a_view_that_is_in_sync(edited: Edited) -> None:
    edited.enforce(policy(B, "in depot:* tcp/80"))
    edited.state.feed.identities.synced = False
    key = edited.state.forget(CLIENT)
    dirty = Dirty(full=False, by_cursor=(frozenset(), frozenset(), frozenset([key])))
    asyncio.run(edited.enforcer.enforce(dirty))
    assert edited.passing() == {80}
    edited.state.feed.identities.synced = True
    asyncio.run(edited.enforcer.enforce(dirty))
    assert edited.passing() == frozenset()


def test_what_the_kernel_holds_stays_until_rules_and_identities_are_in_sync(edited: Edited) -> None:
    edited.enforce(policy(B, "in depot:* tcp/80"))
    again = NodeState({"b": B})
    again.feed.identities.synced = False
    restarted = again.enforcer(edited.world.tables)
    assert asyncio.run(restarted.enforce(Dirty(full=True))).revision is None
    assert edited.passing() == {80}
    assert not restarted.begun
    again.rules[B] = policy(B, "in depot:* tcp/443")
    again.learn(CLIENT)
    again.feed.identities.synced = True
    asyncio.run(restarted.enforce(Dirty(full=True)))
    assert edited.passing() == {443}


def test_rules_that_nobody_knows_after_a_restart_stay(edited: Edited) -> None:
    edited.enforce(policy(B, "in any tcp/80"))
    again = NodeState({"b": B})
    asyncio.run(again.enforcer(edited.world.tables).enforce(Dirty(full=True)))
    assert edited.passing() == {80}


def test_what_is_deleted_by_hand_comes_back_and_what_is_written_goes(edited: Edited) -> None:
    edited.enforce(policy(B, "in depot:* tcp/80", "in cidr:7 any"))
    tables = edited.world.tables
    whole = [table.items() for table in (tables.selected, tables.scope_peers, tables.scope_ports, tables.scope_rules)]
    scope = next(iter(tables.scope_rules.items())).scope
    tables.scope_ports.put(pl.ScopePortKey.of(scope), pl.ScopeBits(bits=1))
    tables.scope_peers.put(pl.ScopePeerKey(scope=scope, kind=pl.PeerMatch.ANY_POD), pl.ScopeBits(bits=1))
    tables.scope_rules.put(pl.ScopeRuleKey(scope=9, index=1), pl.ScopeRule(rule=1, verdict=1))
    tables.selected.put(pl.IdentityKey(identity=666), pl.SelectorSet(number=1))
    tables.subjects.put(pl.SubjectKey(identity=B), pl.Subject(ingress_isolated=False, egress_isolated=False, policy=3))
    generation = tables.generation
    edited.enforce(full=True)
    assert tables.generation != generation
    assert edited.passing() == {80}
    empty(tables, ("selected", "scope_peers", "scope_ports", "scope_rules", "subjects"))
    assert edited.passing() == frozenset()
    edited.enforce(full=True)
    assert edited.passing() == {80}
    assert [
        table.items() for table in (tables.selected, tables.scope_peers, tables.scope_ports, tables.scope_rules)
    ] == whole


def test_a_full_map_does_not_stop_a_revocation(edited: Edited) -> None:
    """Somebody has filled the map: what is to be added does not fit, what is taken away goes all the same."""
    edited.enforce(policy(B, "in any tcp/80", "in any tcp/443"))
    assert edited.passing() == {80, 443}
    table = edited.world.tables.scope_rules
    most = table.entries
    codec = pl.ScopeRuleKey.wire().codec
    keys = b"".join(codec.pack(1, index) for index in range(most))
    assert bpf.update_batch(table.fd, keys, bytes(pl.ScopeRule.wire().size) * most, most), "the map is full"
    reported: list[Refused] = []
    edited.enforcer.report = reported.append
    edited.enforce(policy(B, "in any tcp/443"))
    assert edited.passing() == frozenset(), "denied whole, rather than the old rights"
    assert [(one.identity, one.namespace) for one in reported] == [(B, "shop")]
    for _ in range(2):  # the first finds who has filled the map, the next has room
        edited.enforce(full=True)
    assert edited.passing() == {443}


def test_maps_grow_before_they_are_full_and_packets_are_judged_alike_meanwhile(edited: Edited) -> None:
    """Each of them replaced by one twice as large in the middle of an edit, which nobody is refused for."""
    edited.enforce(policy(B, "in depot:app=web tcp/80"))
    tables, reported, grown = edited.world.tables, list[Refused](), list[str]()
    before = {name: table.entries for name, table in tables.by_name.items()}

    async def make_room(asked: Mapping[str, int]) -> None:
        names = [name for name, amount in asked.items() if amount]
        if not names:
            return
        assert edited.passing() == {80}
        grown.extend(edited.world.datapath.grow({name: before[name] * 2 for name in names}))
        assert edited.passing() == {80}

    edited.enforcer.report = reported.append
    edited.enforcer.make_room = make_room
    edited.enforcer._maps.rooms = ps.Rooms(ps.Sizes(2, 2, 2), 2)
    edited.enforce(policy(B, "in depot:app=web tcp/80,tcp/443"))
    assert edited.passing() == {80, 443}
    assert set(grown) == {"am_scope_peer", "am_scope_port", "am_scope_rule", "am_selected"}
    assert {name: tables.by_name[name].entries for name in grown} == {name: before[name] * 2 for name in grown}
    assert reported == []
    edited.enforce(policy(B, "in depot:app=web tcp/443"), full=True)
    assert edited.passing() == {443}, "the larger maps are compared and written like the others"


def test_who_finds_no_slot_among_identities_is_reported_and_keeps_nobody_out(edited: Edited) -> None:
    edited.enforce(policy(B, "in depot:app=web tcp/80"))
    table = edited.world.tables.selected
    codec = pl.IdentityKey.wire().codec
    keys = b"".join(codec.pack(10_000 + number) for number in range(table.entries))
    assert bpf.update_batch(table.fd, keys, bytes(pl.SelectorSet.wire().size) * table.entries, table.entries)
    reported: list[Without] = []
    edited.enforcer.report_without = reported.append
    edited.enforce(record(2002, "other", "app=web"), policy(B, "in depot:app=web tcp/80", "in other:* tcp/443"))
    assert edited.passing() == {80}, "who has a place keeps it"
    assert reported[-1].identities == {"other": 1}
    edited.state.forget(CLIENT)
    edited.enforce(full=True)
    edited.enforce(full=True)
    assert edited.passing() == frozenset(), "removals go on"
    assert reported[-1].identities == {}


def test_a_change_reads_no_map(edited: Edited, monkeypatch: pytest.MonkeyPatch) -> None:
    edited.enforce(policy(B, "in depot:* tcp/80"), full=True)
    monkeypatch.setattr(bpf, "lookup_batch", None)
    edited.enforce(policy(B, "in depot:* tcp/443"))
    assert edited.passing() == {443}


def test_a_revision_is_reached_when_the_records_that_it_counts_on_are_known(edited: Edited) -> None:
    """They come by another stream than the rules, and may be late."""
    edited.state.rules[B] = policy(B, "in depot:* tcp/80")
    edited.state.feed.identities.sequence = 4
    revision = Revision(epoch="e1", sequence=7)
    edited.state.frontiers = [
        Frontier(shard=0, shards=1, revision=revision, identities=Revision(epoch="i1", sequence=5))
    ]
    enforcer = edited.enforcer
    assert asyncio.run(enforcer.enforce(Dirty(full=True))).revision is None
    edited.state.feed.identities.sequence = 5
    assert asyncio.run(enforcer.enforce(Dirty(full=False))).revision == revision
    edited.state.feed.identities.epoch = "i2"
    assert asyncio.run(enforcer.enforce(Dirty(full=False))).revision is None
