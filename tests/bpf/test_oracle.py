"""Random policies and packets: the kernel's verdict against a naive reading of the rules, and against spoofing."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest

from proto.policy import CompiledPolicy, CompiledRule, Direction, PeerKind, Revision, Verdict
from services.dataplane.core import layout as at
from services.dataplane.core.policy_maps import entries_of
from tests.bpf import frames
from tests.bpf.world import SHOT, World, empty

pytestmark = pytest.mark.privileged

IDENTITIES = {"10.244.2.": 2001, "10.244.3.": 2002, "192.0.2.": 2}
CIDRS = {"10.244.2.0/25": 71, "10.244.3.0/24": 72, "192.0.2.8/29": 73}
PROTOCOLS = (6, 17, 132)
PORTS = (0, 1, 79, 80, 81, 8080, 8095, 8096, 32767, 32768, 65535)


def random_rule(rng: random.Random, rank: int) -> CompiledRule:
    kind = rng.choice(list(PeerKind))
    peer = {
        PeerKind.ANY: 0,
        PeerKind.IDENTITY: rng.choice([2001, 2002, 2]),
        PeerKind.CIDR_SET: rng.choice([71, 72, 73]),
    }[kind]
    protocol = rng.choice((0, *PROTOCOLS))
    bits = rng.choice((0, 1, 8, 12, 15, 16)) if protocol else 0
    return CompiledRule(
        direction=Direction.INGRESS, peer_kind=kind, peer=peer, protocol=protocol,
        port=rng.choice(PORTS) & (0xFFFF << (16 - bits)) & 0xFFFF, port_bits=bits, rank=rank,
        verdict=rng.choice(list(Verdict)), rule=rank,
    )  # fmt: skip


def naive(policy: CompiledPolicy, source: IPv4Address, protocol: int, port: int) -> tuple[bool, int]:
    """(allowed, rule) by reading every rule: no tries, no maps."""
    identity = next(number for prefix, number in IDENTITIES.items() if str(source).startswith(prefix))
    cidr = next((number for net, number in CIDRS.items() if source in ip_network(net)), 0)
    matching = [
        rule
        for rule in policy.rules
        if (rule.peer_kind, rule.peer) in ((PeerKind.ANY, 0), (PeerKind.IDENTITY, identity), (PeerKind.CIDR_SET, cidr))
        and rule.protocol in (0, protocol)
        and (rule.protocol == 0 or port >> (16 - rule.port_bits) == rule.port >> (16 - rule.port_bits))
    ]
    if not matching:
        return not policy.ingress_isolated, at.NO_RULE
    best = min(matching, key=lambda rule: rule.rank)
    return best.verdict is Verdict.ALLOW, best.rule


def body(protocol: int, port: int) -> bytes:
    return {6: frames.tcp(4000, port), 17: frames.udp(4000, port), 132: frames.sctp(4000, port)}[protocol]


@pytest.mark.parametrize("seed", range(40))
def test_kernel_agrees_with_a_naive_reading(world: World, seed: int) -> None:
    rng = random.Random(seed)
    world.know("10.244.3.0/24", 2002, at.PeerFlag.POD)
    for network, number in CIDRS.items():
        world.cidr(network, number)
    count = rng.randrange(0, 12)
    policy = CompiledPolicy(
        identity=world.b.identity, revision=Revision("e", 1), ingress_isolated=rng.random() < 0.7,
        egress_isolated=False, rules=tuple(random_rule(rng, rank) for rank in rng.sample(range(100), count)),
    )  # fmt: skip
    wanted = entries_of([policy.identity], {policy.identity: policy})
    world.tables.policy.apply(wanted.lines)
    world.tables.subjects.apply(wanted.subjects)
    world.tables.configure(
        at.Config(flags=at.ConfigFlag.EMIT_FORWARDED, events_per_second=1_000_000, events_burst=1_000_000)
    )
    for _ in range(100):
        source = ip_address(rng.choice(list(IDENTITIES)) + str(rng.randrange(1, 255)))
        assert isinstance(source, IPv4Address)
        protocol, port = rng.choice(PROTOCOLS), rng.choice(PORTS)
        outcome = world.from_wire(frames.ip(source, world.b.address4, protocol, body(protocol, port)))
        allowed, rule = naive(policy, source, protocol, port)
        assert (outcome.action != SHOT) is allowed, (source, protocol, port, policy)
        # A flow that is known already tells nothing.
        assert outcome.event is None or outcome.event.rule == rule


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
