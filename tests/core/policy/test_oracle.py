"""Compiled lines in the model of the datapath against the oracle: no wrong verdict. And: the oracle can object."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proto.objects import NetworkPolicy, Peer, PolicyPort, PolicyRule, Selector
from tests.core.policy.cluster import disagreements, probes
from tests.core.policy.worlds import Builder, World, seeded

CLUSTERS = 4800
PROBES = 250


@pytest.mark.parametrize("start", range(0, CLUSTERS, 600))
def test_random_clusters_are_judged_as_the_api_text_says(start: int) -> None:
    for seed in range(start, start + 600):
        world = seeded(seed).world()
        assert not disagreements(world, world, probes(world, seed, PROBES)), f"seed {seed}: {world}"


class Drawn:
    def __init__(self, data: st.DataObject) -> None:
        self.data = data

    def choice(self, seq):  # type: ignore[no-untyped-def]
        return seq[self.data.draw(st.integers(0, len(seq) - 1))]


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_shrinkable_clusters_are_judged_as_the_api_text_says(data: st.DataObject) -> None:
    world = Builder(Drawn(data)).world(pods_per_namespace=2, policies=2)
    assert not disagreements(world, world, probes(world, 1, 80))


def rewrite(
    peer: Callable[[Peer], Peer | None] = lambda peer: peer,
    port: Callable[[PolicyPort], PolicyPort] = lambda port: port,
    policy: Callable[[NetworkPolicy], NetworkPolicy] = lambda policy: policy,
) -> Callable[[World], World]:
    """A wrong compiler, made by feeding the right one a misread policy."""

    def rules(old: tuple[PolicyRule, ...]) -> tuple[PolicyRule, ...]:
        return tuple(
            PolicyRule(tuple(new for p in rule.peers if (new := peer(p))), tuple(map(port, rule.ports))) for rule in old
        )

    def misread(world: World) -> World:
        changed = tuple(
            policy(msgspec.structs.replace(p, ingress=rules(p.ingress), egress=rules(p.egress))) for p in world.policies
        )
        return World(world.namespaces, world.nodes, world.pods, changed)

    return misread


def block(peer: Peer, **fields: object) -> Peer:
    return peer if peer.ip_block is None else Peer(ip_block=msgspec.structs.replace(peer.ip_block, **fields))


MUTANTS = {
    "except is ignored": rewrite(peer=lambda p: block(p, excepted=())),
    "an empty pod selector selects nothing": rewrite(
        peer=lambda p: msgspec.structs.replace(p, pod_selector=None) if p.pod_selector == Selector() else p
    ),
    "an empty selector of the policy selects nothing": rewrite(
        policy=lambda p: (
            msgspec.structs.replace(p, pod_selector=Selector((("no", "such"),))) if p.pod_selector == Selector() else p
        )
    ),
    "IPv6 blocks are dropped": rewrite(
        peer=lambda p: p if p.ip_block is None or p.ip_block.cidr.version == 4 else None
    ),
    "endPort is ignored": rewrite(port=lambda p: msgspec.structs.replace(p, end_port=None)),
    "a named port widens to any": rewrite(port=lambda p: msgspec.structs.replace(p, port_name=None)),
    "SCTP is taken for TCP": rewrite(port=lambda p: msgspec.structs.replace(p, protocol=17 if p.protocol == 17 else 6)),
    "a namespace selector reads the policy's own namespace": rewrite(
        peer=lambda p: p if p.ip_block else Peer(pod_selector=p.pod_selector or Selector())
    ),
    "egress is never isolated": rewrite(policy=lambda p: msgspec.structs.replace(p, applies_egress=False)),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_oracle_objects_to_a_wrong_compiler(mutant: str) -> None:
    misread = MUTANTS[mutant]
    worlds = ((seed, seeded(seed).world()) for seed in range(400))
    assert any(disagreements(misread(world), world, probes(world, seed, PROBES)) for seed, world in worlds)
