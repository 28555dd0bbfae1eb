"""What a packet costs, by test runs: loose bounds that only a blunder passes; the figures are printed (-s)."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from linux import bpf
from proto.policy import Direction, PortMatch
from services.dataplane.core.datapath import layout as at
from tests.bpf import frames
from tests.bpf.frames import ACK, SYN, TCP
from tests.bpf.frontends import Names, packet, serve
from tests.bpf.tunnels import PODS, fill, switch, tunnel_devices, wrapped
from tests.bpf.world import OK, REDIRECT, PeerKind, Rule, World, empty, inside, write_rules

pytestmark = pytest.mark.privileged

BOUND_NS = 2000


def cost(
    world: World, program: str, packet: bytes, *, ifindex: int, source: bytes, expected: int, rounds: int = 7
) -> int:
    frame = frames.eth(packet, source=source, kind=0x0800 if packet[0] >> 4 == 4 else 0x86DD)
    context = struct.pack("<36xII", ifindex, ifindex)
    fd = world.datapath.programs[program]
    with inside(world.netns):
        runs = [bpf.run_on(fd, frame, repeat=20_000, context=context) for _ in range(rounds)]
    assert {run.value for run in runs} == {expected}
    return min(run.nanoseconds for run in runs)


@pytest.mark.parametrize("version", [4, 6])
def test_established_flow(world: World, version: int) -> None:
    a, b = world.a, world.b
    for pod in (a, b):
        # The frame must look the same afterwards: repeated runs go on with what the last one left.
        key = at.AddressKey(address=pod.address(version))
        entry = at.Endpoint(
            identity=pod.identity, ifindex=pod.ifindex, endpoint=pod.number, mac=pod.mac, host_mac=a.mac
        )
        world.tables.endpoints.put(key, entry)
    outside = "192.0.2.5" if version == 4 else "2001:db8::5"
    segment = frames.tcp(4000, 80, ACK, bytes(64))
    to_b = frames.ip(a.address(version), b.address(version), TCP, segment)
    for raw in (to_b, frames.ip(a.address(version), outside, TCP, segment)):
        world.from_pod(a, raw)
    world.from_wire(frames.ip(outside, b.address(version), TCP, segment))
    lives = at.Seen.SYN | at.Seen.REPLY | at.Seen.ESTABLISHED
    world.tables.flows.apply({k: replace(v, seen=lives) for k, v in world.tables.flows.items().items()})
    figures = {
        "from_pod to the world": cost(
            world,
            "from_pod",
            frames.ip(a.address(version), outside, TCP, segment),
            ifindex=a.ifindex,
            source=a.mac,
            expected=OK,
        ),
        "from_pod to a local pod": cost(world, "from_pod", to_b, ifindex=a.ifindex, source=a.mac, expected=REDIRECT),
        "from_wire": cost(
            world,
            "from_wire",
            frames.ip(outside, b.address(version), TCP, segment),
            ifindex=world.wire,
            source=a.mac,
            expected=REDIRECT,
        ),
        "collect of nothing": cost(world, "collect", b"\x45" + bytes(60), ifindex=1, source=a.mac, expected=0),
    }
    print(f"\nIPv{version}, nanoseconds a packet: {figures}")
    assert max(figures.values()) < BOUND_NS


def once(world: World, program: str, raw: bytes, *, ifindex: int, source: bytes, received_on: int) -> int:
    """What one run on a frame takes, which the program changes: the least of many, each with a frame of its own."""
    frame = frames.eth(raw, source=source, kind=0x0800 if raw[0] >> 4 == 4 else 0x86DD)
    context = struct.pack("<36xII", received_on, ifindex)
    fd = world.datapath.programs[program]
    with inside(world.netns):
        return min(bpf.run_on(fd, frame, context=context).nanoseconds for _ in range(400))


@pytest.mark.parametrize("version", [4, 6])
def test_from_outside(world: World, version: int) -> None:
    """Beside what it costs all others: a packet to the node itself, and what the node sends."""
    n = Names(version)
    bpf.update(world.tables.descriptors["am_outward"], bytes(4), bytes(8))
    own = packet(f"tcp {n.client}:4000 > {n.node}:6443", flags=ACK)
    out = packet(f"tcp {n.node}:6443 > {n.client}:4000", flags=ACK)
    figures = {
        "from_wire to the node": once(
            world, "from_wire", own, received_on=world.wire, ifindex=world.wire, source=world.a.mac
        )
    }
    serve(world, f"{n.node}:80", f"{n.node}:8080", number=1)
    figures["to_wire, no such flow yet"] = once(
        world, "to_wire", out, received_on=0, ifindex=world.wire, source=world.a.mac
    )
    for number, frontend, backend in ((1, 80, n.node), (2, 81, n.pod), (3, 82, n.away)):
        serve(world, f"{n.node}:{frontend}", f"{backend}:8080", number=number)
        there = packet(f"tcp {n.client}:4000 > {n.node}:{frontend}", flags=ACK)
        figures[f"from_wire to {backend}"] = once(
            world, "from_wire", there, received_on=world.wire, ifindex=world.wire, source=world.a.mac
        )
    figures["to_wire, of no such flow"] = once(
        world, "to_wire", out, received_on=0, ifindex=world.wire, source=world.a.mac
    )
    figures["to_wire, of a pod"] = once(
        world, "to_wire", out, received_on=world.a.ifindex, ifindex=world.wire, source=world.a.mac
    )
    back = packet(f"tcp {n.pod}:8080 > {n.client}:4000", flags=ACK)
    figures["from_pod, its answer"] = once(
        world, "from_pod", back, received_on=world.b.ifindex, ifindex=world.b.ifindex, source=world.b.mac
    )
    print(f"\nIPv{version}, nanoseconds a packet, alone: {figures}")
    assert max(figures.values()) < 10 * BOUND_NS


@pytest.mark.parametrize("version", [4, 6])
def test_first_packet_of_a_flow(world: World, version: int) -> None:
    """What judging costs: an isolated pod with 250 rules, the last of which lets the peer in."""
    outside = "192.0.2.5" if version == 4 else "2001:db8::5"
    world.cidr("192.0.2.0/24" if version == 4 else "2001:db8::/32", 5)
    first = frames.ip(outside, world.b.address(version), TCP, frames.tcp(4000, 80, SYN))
    figures = {"not isolated": judged(world, first)}
    world.isolate(world.b.identity, ingress=True)
    rules = [
        Rule(world.b.identity, Direction.INGRESS, PeerKind.CIDR_SET, 5, PortMatch(6, 8000 + number, 16), 1, 1, number)
        for number in range(250)
    ]
    rules.append(Rule(world.b.identity, Direction.INGRESS, PeerKind.CIDR_SET, 5, PortMatch(6, 80, 16), 2, 1, 250))
    write_rules(world.tables, world.b.identity, Direction.INGRESS, rules)
    figures["251 rules"] = judged(world, first)
    print(f"\nIPv{version}, nanoseconds a first packet: {figures}")
    assert max(figures.values()) < 10 * BOUND_NS


def judged(world: World, packet: bytes) -> int:
    """The least that a packet of a flow that nobody knows yet takes."""
    frame = frames.eth(packet, source=world.a.mac, kind=0x0800 if packet[0] >> 4 == 4 else 0x86DD)
    context = struct.pack("<36xII", world.wire, world.wire)
    fd = world.datapath.programs["from_wire"]
    spent = []
    for _ in range(300):
        with inside(world.netns):
            run = bpf.run_on(fd, frame, context=context)
        assert run.value == REDIRECT
        spent.append(run.nanoseconds)
        empty(world.tables, ("flows",))
        world.tables.set_budget(world.b.number, 100_000)
    return min(spent)


@pytest.mark.parametrize("version", [4, 6])
def test_between_nodes(world: World, version: int) -> None:
    """Plain and in tunnels, out and in: to a pod elsewhere, and to a pod here."""
    a, b = str(world.a.address(version)), str(world.b.address(version))
    body = frames.tcp(4000, 80, ACK, bytes(64))
    figures = {}

    def measure(name: str, program: str, raw: bytes, ifindex: int, source: bytes) -> None:
        once(world, program, raw, ifindex=ifindex, source=source, received_on=ifindex)
        lives = at.Seen.SYN | at.Seen.REPLY | at.Seen.ESTABLISHED
        world.tables.flows.apply({k: replace(v, seen=lives) for k, v in world.tables.flows.items().items()})
        figures[name] = once(world, program, raw, ifindex=ifindex, source=source, received_on=ifindex)

    away = "10.244.2.7" if version == 4 else "fd00:10:244:2::7"
    measure("out, plain", "from_pod", frames.ip(a, away, TCP, body), world.a.ifindex, world.a.mac)
    measure("in, plain", "from_wire", frames.ip(away, b, TCP, body), world.wire, world.a.mac)
    with tunnel_devices(world.netns) as devices:
        fill(world, devices)
        measure("out, plain beside tunnels", "from_pod", frames.ip(a, away, TCP, body), world.a.ifindex, world.a.mac)
        for (tunnel, family), pod in PODS.items():
            if family != version:
                continue
            there, inner = frames.ip(a, pod, TCP, body), frames.ip(pod, b, TCP, body)
            measure(f"out, {tunnel}", "from_pod", there, world.a.ifindex, world.a.mac)
            measure(f"in, {tunnel}", "from_wire", wrapped(tunnel, inner), world.wire, world.a.mac)
    switch(world, 0)
    print(f"\nIPv{version}, nanoseconds a packet, alone: {figures}")
    assert max(figures.values()) < 10 * BOUND_NS
