"""A policy edited under packets: between any two writes to the kernel's maps a packet is judged as before or after."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from chassis.log import Log
from proto.policy import CompiledPolicy
from services.dataplane.enforce import Enforcer
from tests.bpf import frames
from tests.bpf.frames import SYN, TCP
from tests.bpf.world import REDIRECT, World
from tests.core.dataplane.notation import policy

pytestmark = pytest.mark.privileged

B = 1002
PORTS = (80, 443)
PEER = {4: "10.244.2.7", 6: "fd00:10:244:2::7"}
EDITS = [
    # before | after
    pytest.param(policy(B, "in any tcp/80"), policy(B, "in any any"), id="wider"),
    pytest.param(policy(B, "in any any"), policy(B, "in any tcp/80"), id="narrower"),
    pytest.param(policy(B, "in 2001 tcp/80"), policy(B, "in any tcp/80"), id="said otherwise"),
    pytest.param(policy(B, "in any tcp/80"), policy(B, "in any tcp/443"), id="another port"),
    pytest.param(policy(B, isolated=""), policy(B, "in any tcp/80"), id="isolated but for a port"),
    pytest.param(policy(B, "in any tcp/80"), policy(B, isolated=""), id="opened"),
    pytest.param(policy(B, "in any any"), policy(B), id="closed"),
]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("before", "after"), EDITS)
def test_no_moment_is_worse_than_both_ends(
    world: World, monkeypatch: pytest.MonkeyPatch, before: CompiledPolicy, after: CompiledPolicy, version: int
) -> None:
    sports = itertools.count(20_000)

    def passing() -> frozenset[int]:
        """Ports of pod b that the remote pod reaches now, by flows that are new each time."""
        return frozenset(
            port
            for port in PORTS
            for segment in [frames.tcp(next(sports), port, SYN)]
            for packet in [frames.ip(PEER[version], str(world.b.address(version)), TCP, segment)]
            if world.from_wire(packet).action == REDIRECT
        )

    rules = {B: before}
    feed: Any = SimpleNamespace(rules=rules, frontiers=list, partitions=dict, rules_view=SimpleNamespace(synced=True))
    registry: Any = SimpleNamespace(up={"b": SimpleNamespace(identity=world.b.identity)})
    enforcer = Enforcer(world.tables, feed, registry, Log("test"), budget=1000)
    enforcer.enforce()
    old = passing()
    moments: list[frozenset[int]] = []

    def watched(apply: Callable[..., None]) -> Callable[..., None]:
        def applied(*steps: Any) -> None:
            apply(*steps)
            moments.append(passing())

        return applied

    for table in (world.tables.policy, world.tables.subjects):
        monkeypatch.setattr(table, "apply", watched(table.apply))
    rules[B] = after
    generation = world.tables.generation
    enforcer.enforce()
    new = passing()
    assert old != new or before.rules != after.rules
    assert len(moments) >= 2
    for moment in moments:
        assert moment <= old | new, "allowed for a moment what neither allows"
        assert moment >= old & new, "refused for a moment what both allow"
    assert world.tables.generation != generation, "live flows are judged again"
