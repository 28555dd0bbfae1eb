"""Random policies and packets: the kernel's verdict against a naive reading of the rules, and against spoofing."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest

from chassis.runtime.reconcile import Dirty
from kit.selectors import hidden_key
from proto.identity import IdentityRecord, NamedPort
from proto.objects import Requirement, Selector
from proto.policy import (
    CidrPartition,
    CidrSet,
    CompiledPolicy,
    CompiledRule,
    Direction,
    Frontier,
    PortMatch,
    Revision,
    SelectorPeer,
    Verdict,
)
from services.dataplane.core.datapath import layout as at
from tests.bpf import frames
from tests.bpf.node_state import NodeState
from tests.bpf.world import SHOT, PeerKind, Rule, World, empty, write_rules

pytestmark = pytest.mark.privileged


@dataclass(frozen=True)
class Party:
    """Who has a network, and all that can be known of him."""

    identity: int
    networks: tuple[str, str]
    namespace: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    of_namespace: dict[str, str] = field(default_factory=dict)
    hidden: str = ""
    named: tuple[NamedPort, ...] = ()
    is_known: bool = True


HTTP = NamedPort("http", 6, 8080)
PARTIES = (
    Party(2001, ("10.244.2.", "fd00:10:244:2::"), "shop", {"app": "web"}, {"team": "a"}, named=(HTTP,)),
    Party(2002, ("10.244.3.", "fd00:10:244:3::"), "depot", {"app": "db", "tier": "1"}, {"team": "b"}, hidden="owner"),
    Party(2003, ("10.244.4.", "fd00:10:244:4::"), "depot", {}, {"team": "b"}),
    Party(2004, ("10.244.5.", "fd00:10:244:5::"), "shop", {"app": "web"}, {"team": "a"}, is_known=False),
    Party(2, ("192.0.2.", "2001:db8::")),
)
CIDRS = {
    "10.244.2.0/25": 71, "10.244.3.0/24": 72, "192.0.2.8/29": 73,
    "fd00:10:244:2::/121": 71, "fd00:10:244:3::/64": 72, "2001:db8::8/125": 73,
}  # fmt: skip
PROTOCOLS = (6, 17, 132)
PORTS = (0, 1, 79, 80, 81, 8080, 8095, 8096, 32767, 32768, 65535)
CHOSEN: tuple[Selector | None, ...] = (
    None,
    Selector(),
    Selector((("app", "web"),)),
    Selector((("app", "db"), ("tier", "1"))),
    Selector((), (Requirement("app", "In", ("web", "db")),)),
    Selector((), (Requirement("app", "NotIn", ("web",)),)),
    Selector((), (Requirement("tier", "Exists", ()),)),
    Selector((), (Requirement("owner", "DoesNotExist", ()),)),
    Selector((), (Requirement("owner", "Exists", ()),)),
    Selector((("owner", "me"),)),
)
SPACES: tuple[Selector | None, ...] = (None, Selector(), Selector((("team", "a"),)), Selector((("team", "b"),)))


def holds(requirement: Requirement, labels: dict[str, str], hidden: str) -> bool:
    key, there = requirement.key, requirement.key in labels or requirement.key == hidden
    match requirement.operator:
        case "Exists":
            return there
        case "DoesNotExist":
            return not there
        case "In":
            return labels.get(key) in requirement.values
        case _:
            return key != hidden and labels.get(key) not in requirement.values


def chooses(selector: Selector | None, labels: dict[str, str], hidden: str = "") -> bool:
    return selector is None or (
        all(labels.get(key) == value for key, value in selector.match_labels)
        and all(holds(requirement, labels, hidden) for requirement in selector.match_expressions)
    )


def names(peer: SelectorPeer, party: Party) -> bool:
    """Whether a selector names somebody, by hand."""
    everyone = SelectorPeer(namespace_selector=Selector())
    if party.identity < 256:
        return False
    if peer in (everyone, SelectorPeer(namespace_selector=Selector(), pod_selector=Selector())):
        return True
    return (
        party.is_known
        and peer.namespace in ("", party.namespace)
        and chooses(peer.namespace_selector, party.of_namespace)
        and chooses(peer.pod_selector, party.labels, party.hidden)
        and (peer.named_port is None or peer.named_port in party.named)
    )


def record(party: Party) -> IdentityRecord:
    return IdentityRecord(
        identity=party.identity, digest="", namespace=party.namespace,
        namespace_labels=tuple(party.of_namespace.items()), pod_labels=tuple(party.labels.items()),
        hidden_pod_keys=(hidden_key(party.hidden),) if party.hidden else (), named_ports=party.named,
    )  # fmt: skip


def random_peer(rng: random.Random) -> SelectorPeer:
    space = rng.choice(SPACES)
    return SelectorPeer(
        namespace=rng.choice(("shop", "depot")) if space is None else "",
        namespace_selector=space,
        pod_selector=rng.choice(CHOSEN),
        named_port=HTTP if rng.random() < 0.1 else None,
    )


def random_port(rng: random.Random) -> PortMatch:
    protocol = rng.choice((0, *PROTOCOLS))
    bits = rng.choice((0, 1, 8, 12, 15, 16)) if protocol else 0
    return PortMatch(protocol, rng.choice(PORTS) & (0xFFFF << (16 - bits)) & 0xFFFF, bits)


def random_policy(rng: random.Random, identity: int) -> CompiledPolicy:
    selectors = tuple(random_peer(rng) for _ in range(6))
    rules = [
        CompiledRule(
            direction=rng.choice(list(Direction)), precedence=rng.randrange(4),
            verdict=rng.choice(list(Verdict)), source=number, any_peer=rng.random() < 0.15,
            selectors=tuple(rng.sample(range(6), rng.randrange(0, 3))),
            cidr_sets=tuple(rng.sample((71, 72, 73), rng.randrange(0, 2))),
            ports=tuple(random_port(rng) for _ in range(rng.randrange(1, 4))),
        )
        for number in range(rng.choice((0, 2, 5, 12, 90, 300)))
    ]  # fmt: skip
    return CompiledPolicy(
        identity=identity, revision=Revision("e", 1), ingress_isolated=rng.random() < 0.7,
        egress_isolated=rng.random() < 0.7, rules=tuple(rules), selectors=selectors,
    )  # fmt: skip


def naive(
    policy: CompiledPolicy, side: Direction, party: Party, address: IPv4Address | IPv6Address, protocol: int, port: int
) -> tuple[bool, int]:
    """(allowed, rule) by reading every rule: no tries, no maps, no vectors."""
    cidr = next((number for net, number in CIDRS.items() if address in ip_network(net)), 0)
    best: tuple[int, int, int] | None = None
    for number, rule in enumerate(policy.rules):
        if rule.direction is not side:
            continue
        peers = rule.any_peer or cidr in rule.cidr_sets
        peers = peers or any(names(policy.selectors[index], party) for index in rule.selectors)
        ports = any(
            one.protocol in (0, protocol)
            and (one.protocol == 0 or port >> (16 - one.bits) == one.port >> (16 - one.bits))
            for one in rule.ports
        )
        if peers and ports:
            best = min(best or (99, 99, 0), (rule.precedence, int(rule.verdict), number))
    if best is None:
        return not (policy.egress_isolated if side is Direction.EGRESS else policy.ingress_isolated), at.NO_RULE
    return bool(best[1]), best[2]


def body(protocol: int, port: int) -> bytes:
    return {6: frames.tcp(4000, port), 17: frames.udp(4000, port), 132: frames.sctp(4000, port)}[protocol]


@pytest.mark.parametrize("seed", range(60))
def test_kernel_agrees_with_a_naive_reading(world: World, seed: int) -> None:
    rng = random.Random(seed)
    state = NodeState({"b": world.b.identity})
    for party in PARTIES:
        for network, length in zip(party.networks, (24, 64), strict=True):
            if party.identity >= 256:
                world.know(f"{network}{'0' if length == 24 else ''}/{length}", party.identity, at.PeerFlag.POD)
        if party.is_known and party.identity >= 256:
            state.learn(record(party))
    state.frontiers = [Frontier(shard=0, shards=1, revision=Revision(epoch="e", sequence=1))]
    cut = tuple(CidrSet(ip_network(prefix), number) for prefix, number in CIDRS.items())
    state.feed.partitions = lambda: {"shop": CidrPartition(state.frontiers[0].revision, cut, "shop", "digest")}
    policy = random_policy(rng, world.b.identity)
    if max(sum(rule.direction is side for rule in policy.rules) for side in Direction) > 256:
        policy = random_policy(random.Random(seed + 1000), world.b.identity)
    state.rules[policy.identity] = policy
    asyncio.run(state.enforcer(world.tables).enforce(Dirty(full=True)))
    world.isolate(world.a.identity)
    world.tables.configure(
        at.Config(flags=at.ConfigFlag.EMIT_FORWARDED, events_per_second=1_000_000, events_burst=1_000_000)
    )
    decided = 0
    for _ in range(200):
        party, version, side = rng.choice(PARTIES), rng.choice((4, 6)), rng.choice(list(Direction))
        address = ip_address(party.networks[version == 6] + str(rng.randrange(1, 99)))
        protocol, port = rng.choice(PROTOCOLS), rng.choice(PORTS)
        own = world.b.address(version)
        if side is Direction.INGRESS:
            outcome = world.from_wire(frames.ip(address, own, protocol, body(protocol, port)))
        else:
            outcome = world.from_pod(world.b, frames.ip(own, address, protocol, body(protocol, port)))
        allowed, rule = naive(policy, side, party, address, protocol, port)
        assert (outcome.action != SHOT) is allowed, (side, party, address, protocol, port, policy)
        # A flow that is known already tells nothing.
        assert outcome.event is None or outcome.event.rule == rule
        decided += outcome.event is not None
        empty(world.tables, ("flows", "budgets"))
        world.tables.set_budget(world.b.number, 1000)
    assert decided == 200


def test_each_of_256_rules_is_distinguished(world: World) -> None:
    world.isolate(world.b.identity, ingress=True)
    written = [
        Rule(world.b.identity, Direction.INGRESS, PeerKind.ANY, 0, PortMatch(6, number + 1, 16), 1 + number, 0, number)
        for number in range(256)
    ]
    write_rules(world.tables, world.b.identity, Direction.INGRESS, written)
    reported = []
    for number in range(256):
        event = world.from_wire(frames.ip("10.244.2.7", world.b.address4, 6, body(6, number + 1))).event
        reported.append(event.rule if event is not None else None)
    assert reported == list(range(256))


def test_no_mutation_of_a_frame_gets_another_source_out(world: World) -> None:
    rng = random.Random(1)
    own = {world.a.address4, world.a.address6}
    tail = bytes(64)
    seeds = [
        frames.ip(world.a.address4, world.b.address4, 6, frames.tcp(4000, 80)),
        frames.ip(world.a.address4, "192.0.2.1", 17, frames.udp(4000, 53)),
        frames.ip(world.a.address6, world.b.address6, 6, frames.tcp(4000, 80)),
        frames.ip(world.a.address6, "2001:db8::1", 0, frames.extension(17) + frames.udp(1, 2)),
        frames.ip(world.a.address6, world.b.address6, 44, frames.fragment6(17, offset=0, more=True, ident=3) + tail),
        frames.ip(world.a.address6, "fe80::1", 58, frames.neighbour(135, "fe80::1", world.a.mac), hops=255),
    ]  # fmt: skip
    passed = 0
    for round_number in range(6000):
        frame = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(1, 5)):
            frame[rng.randrange(len(frame))] = rng.choice((0, 1, 0x40, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        kind = 0x0800 if len(frame) < 55 or rng.random() < 0.5 else 0x86DD
        outcome = world.from_pod(world.a, bytes(frame), kind=kind)
        if outcome.action == SHOT:
            continue
        passed += 1
        source: IPv4Address | IPv6Address = IPv4Address(bytes(frame[12:16]))
        if kind == 0x86DD:
            source = IPv6Address(bytes(frame[8:24]))
            if frame[6] == 58 and source.is_link_local:  # neighbour discovery with the gateway
                continue
        assert source in own, (round_number, bytes(frame).hex())
    assert passed > 100
    empty(world.tables, ("flows",))
