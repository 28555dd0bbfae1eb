"""ICMP errors: about what was sent to their sender, and never more than read: no flow begins, lives or ends by them."""

from __future__ import annotations

import struct
import time
from dataclasses import replace

import pytest

from proto.policy import Direction
from services.dataplane.core.datapath import layout as at
from services.dataplane.core.datapath import nat_layout as nat
from tests.bpf import frames
from tests.bpf.frames import ACK, FRAGMENT, ICMP, ICMP6, SYN, TCP, UDP
from tests.bpf.frontends import Names, error, packet, sent, serve
from tests.bpf.world import World

pytestmark = pytest.mark.privileged

SECOND = 1_000_000_000
GRE = 47
ROUTER = {4: "172.30.0.1", 6: "fd00:172:30::1"}
TYPES = {4: (3, 4, 5, 11, 12), 6: (1, 2, 3, 4, 100, 127)}
"""Every type that carries the packet it is about (RFC 792, 1122; RFC 4443: whatever is below 128)."""


@pytest.fixture(params=[4, 6], autouse=True)
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def n(version: int) -> Names:
    return Names(version)


def about(version: int, source: object, destination: object, inner: bytes, *, kind: int | None = None) -> bytes:
    """An ICMP error with the addresses that its sender likes it to have."""
    number = kind or (3 if version == 4 else 1)
    body = struct.pack(">BBHI", number, 1, 0, 0) + inner[:64]
    return frames.ip(str(source), str(destination), ICMP if version == 4 else ICMP6, body)


def segment(source: object, destination: object, sport: int, dport: int, flags: int = ACK) -> bytes:
    return frames.ip(str(source), str(destination), TCP, frames.tcp(sport, dport, flags))


def bare(name: str) -> str:
    return name.strip("[]")


def state(world: World) -> tuple[dict[at.FlowKey, at.Flow], dict[nat.NatKey, nat.Nat], int]:
    """All that an error might touch: flows, translations, what the pods have used up."""
    used = sum(budget.count for budget in world.tables.budgets.items().values())
    return world.tables.flows.items(), world.tables.nats.items(), used


def age(world: World, seconds: int) -> None:
    """Everything was last seen so long ago."""
    then = time.monotonic_ns() - seconds * SECOND
    flows, nats = world.tables.flows, world.tables.nats
    flows.apply({key: replace(flow, last_seen=then) for key, flow in flows.items().items()})
    nats.apply({key: replace(entry, last_seen=then) for key, entry in nats.items().items()})


class TestOfOthers:
    """Pod a writes errors about what passes between b and somebody else."""

    @pytest.mark.parametrize("isolated", [False, True])
    def test_neighbours_flow_lives_on(self, world: World, n: Names, isolated: bool) -> None:
        b, remote = bare(n.pod), bare(n.away)
        world.isolate(world.b.identity, egress=True)
        world.isolate(world.a.identity, ingress=isolated, egress=isolated)
        assert str(world.from_wire(segment(remote, b, 4000, 80, SYN))) == "redirect"
        before = state(world)
        attack = about(n.version, bare(n.second), remote, segment(remote, b, 4000, 80))
        assert str(world.from_pod(world.a, attack)) == "drop SPOOFED_ERROR"
        assert state(world) == before
        assert str(world.from_pod(world.b, segment(b, remote, 80, 4000, SYN | ACK))) == "redirect"

    def test_neighbours_translated_flow_lives_on(self, world: World, n: Names) -> None:
        serve(world, f"{n.node}:80", f"{n.pod}:8080")
        client = bare(n.client)
        there = world.from_wire(packet(f"tcp {n.client}:4000 > {n.node}:80")).frame[14:]
        before = state(world)
        assert str(world.from_pod(world.a, about(n.version, bare(n.second), client, there))) == "drop SPOOFED_ERROR"
        assert state(world) == before
        back = world.from_pod(world.b, packet(f"tcp {n.pod}:8080 > {n.client}:4000", flags=SYN | ACK))
        assert sent(back) == f"tcp {n.node}:80 > {n.client}:4000"

    @pytest.mark.parametrize("whom", ["pod", "away", "node", "other", "client"])
    @pytest.mark.parametrize("protocol", [TCP, UDP, ICMP, GRE])
    def test_whoever_is_to_accept_it(self, world: World, n: Names, whom: str, protocol: int) -> None:
        victim, third = bare(getattr(n, whom)), bare(n.pod if whom != "pod" else n.away)
        protocol = ICMP6 if protocol == ICMP and n.version == 6 else protocol
        bodies = {TCP: frames.tcp(1, 2), UDP: frames.udp(1, 2), GRE: bytes(40)}
        inner = frames.ip(victim, third, protocol, bodies.get(protocol, frames.echo(n.version)))
        for kind in TYPES[n.version]:
            outcome = world.from_pod(world.a, about(n.version, bare(n.second), victim, inner, kind=kind))
            assert str(outcome) == ("drop SPOOFED_NEIGHBOUR" if (n.version, kind) == (4, 5) else "drop SPOOFED_ERROR")
        assert state(world) == ({}, {}, 0)

    def test_inner_packet_of_somebody_else_again(self, world: World, n: Names) -> None:
        """To b, about what a sent c, and about what c sent a: neither was sent by b."""
        a, b, c = bare(n.second), bare(n.pod), bare(n.away)
        for inner in (segment(a, c, 1, 2), segment(c, a, 1, 2), segment(a, b, 1, 2), segment(b, b, 1, 2)):
            assert str(world.from_pod(world.a, about(n.version, a, b, inner))) == "drop SPOOFED_ERROR"

    def test_error_that_shows_no_packet(self, world: World, n: Names) -> None:
        for inner in (b"", bytes(12), segment(bare(n.pod), bare(n.second), 1, 2)[:20]):
            assert str(world.from_pod(world.a, about(n.version, bare(n.second), bare(n.pod), inner))) == (
                "drop SPOOFED_ERROR"
            )

    def test_in_pieces(self, world: World, n: Names) -> None:
        """Its later pieces would be known by ports that lie inside the first."""
        a, b = bare(n.second), bare(n.pod)
        body = struct.pack(">BBHI", 3 if n.version == 4 else 1, 1, 0, 0) + segment(b, a, 1, 2)
        body += bytes(-len(body) % 8)
        if n.version == 4:
            first = frames.ip(a, b, ICMP, body, frag=0x2000, ident=5)
            later = frames.ip(a, b, ICMP, bytes(16), frag=len(body) // 8, ident=5)
        else:
            heads = [frames.fragment6(ICMP6, offset=o, more=not o, ident=5) for o in (0, len(body))]
            first = frames.ip(a, b, FRAGMENT, heads[0] + body)
            later = frames.ip(a, b, FRAGMENT, heads[1] + bytes(16))
        assert [str(world.from_pod(world.a, one)) for one in (first, later)] == ["drop FRAGMENT"] * 2
        assert state(world) == ({}, {}, 0)

    def test_its_own_refusal_is_no_such_thing(self, world: World, n: Names) -> None:
        a, b = bare(n.second), bare(n.pod)
        assert str(world.from_pod(world.b, packet(f"udp {n.pod}:4000 > {n.second}:53"))) == "redirect"
        world.isolate(world.a.identity, egress=True)
        world.isolate(world.b.identity, ingress=True)
        refusal = about(n.version, a, b, packet(f"udp {n.pod}:4000 > {n.second}:53"))
        assert str(world.from_pod(world.a, refusal)) == "redirect"


class TestOnlyRead:
    """Errors of whoever is on the way, about flows that there are and flows that there are not."""

    def test_neither_end_is_refreshed(self, world: World, n: Names) -> None:
        world.from_pod(world.b, segment(bare(n.pod), bare(n.second), 4000, 80, SYN))
        age(world, 30)
        before = state(world)
        refusal = about(n.version, bare(n.second), bare(n.pod), segment(bare(n.pod), bare(n.second), 4000, 80))
        assert str(world.from_pod(world.a, refusal)) == "redirect"
        assert state(world) == before

    def test_judged_again_it_leaves_no_trace(self, world: World, n: Names) -> None:
        own, remote = bare(n.second), bare(n.away)
        there = segment(own, remote, 4000, 80, SYN)
        world.from_pod(world.a, there)
        age(world, 30)
        before = state(world)
        world.tables.bump_generation()
        assert str(world.from_wire(about(n.version, ROUTER[n.version], own, there))) == "redirect"
        assert state(world) == before
        world.isolate(world.a.identity, egress=True)
        world.tables.bump_generation()
        assert str(world.from_wire(about(n.version, ROUTER[n.version], own, there))) == "drop POLICY_REVOKED"
        assert state(world) == before

    @pytest.mark.parametrize("half", ["whole", "no partner"])
    def test_translated_flow_is_not_refreshed(self, world: World, n: Names, half: str) -> None:
        serve(world, f"{n.node}:80", f"{n.away}:8080")
        there = world.from_wire(packet(f"tcp {n.client}:4000 > {n.node}:80")).frame[14:]
        if half == "no partner":
            partner = next(key for key, entry in world.tables.nats.items().items() if not entry.is_back)
            world.tables.nats.remove(partner)
        age(world, 30)
        before = state(world)
        outcome = world.from_wire(error(ROUTER[n.version], there))
        assert sent(outcome) == f"icmp {bare(n.node)} > {bare(n.client)} (tcp {n.client}:4000 > {n.node}:80)"
        assert state(world) == before

    def test_address_with_a_new_owner_keeps_what_it_had(self, world: World, n: Names) -> None:
        """Only a packet of the flow itself shows that it is over."""
        own, remote = bare(n.second), bare(n.away)
        there = segment(own, remote, 4000, 80, SYN)
        world.from_pod(world.a, there)
        flows = world.tables.flows.items()
        world.tables.flows.apply({key: replace(flow, endpoint=77) for key, flow in flows.items()})
        before = state(world)
        assert str(world.from_wire(about(n.version, ROUTER[n.version], own, there))) == "redirect"
        world.isolate(world.a.identity, ingress=True)
        assert str(world.from_wire(about(n.version, ROUTER[n.version], own, there))) == "drop POLICY_DENIED"
        assert state(world) == before

    def test_about_no_flow_begins_none(self, world: World, n: Names) -> None:
        own, remote = bare(n.second), bare(n.away)
        inners = [segment(own, remote, 4000, 81), segment(remote, own, 1, 2), segment(bare(n.pod), remote, 1, 2), b""]
        for inner in inners:
            for kind in TYPES[n.version]:
                if (n.version, kind) != (4, 5):
                    raw = about(n.version, ROUTER[n.version], own, inner, kind=kind)
                    assert str(world.from_wire(raw)) == "redirect"
        assert state(world) == ({}, {}, 0)
        world.isolate(world.a.identity, ingress=True)
        for inner in inners:
            assert str(world.from_wire(about(n.version, ROUTER[n.version], own, inner))) == "drop POLICY_DENIED"

    def test_no_stranger_answers_for_an_echo_it_did_not_see(self, world: World, n: Names) -> None:
        """An error that shows nothing has no number: it is no answer to the echo of number 0 either."""
        own, remote = bare(n.second), bare(n.away)
        world.isolate(world.a.identity, ingress=True)
        protocol = ICMP if n.version == 4 else ICMP6
        assert world.from_pod(world.a, frames.ip(own, remote, protocol, frames.echo(n.version, ident=0))).action == 7
        assert str(world.from_wire(about(n.version, remote, own, b""))) == "drop POLICY_DENIED"

    @pytest.mark.parametrize("reply", [False, True])
    def test_about_an_echo(self, world: World, n: Names, reply: bool) -> None:
        own, remote = bare(n.second), bare(n.away)
        protocol = ICMP if n.version == 4 else ICMP6
        if reply:
            world.from_wire(frames.ip(remote, own, protocol, frames.echo(n.version)))
        echo = frames.ip(own, remote, protocol, frames.echo(n.version, reply=reply))
        assert str(world.from_pod(world.a, echo)) == "redirect"
        world.isolate(world.a.identity, ingress=True)
        if reply:
            world.rule(world.a, Direction.INGRESS, protocol=TCP)
        raw = about(n.version, ROUTER[n.version], own, echo)
        assert str(world.from_wire(raw)) == "redirect"
        assert len(world.tables.flows.items()) == 1

    def test_about_a_protocol_without_ports(self, world: World, n: Names) -> None:
        own, remote = bare(n.second), bare(n.away)
        there = frames.ip(own, remote, GRE, bytes(range(1, 41)))
        assert str(world.from_pod(world.a, there)) == "redirect"
        world.isolate(world.a.identity, ingress=True)
        assert str(world.from_wire(about(n.version, ROUTER[n.version], own, there))) == "redirect"

    def test_nobody_outside_is_between_two_pods_of_a_node(self, world: World, n: Names) -> None:
        there = segment(bare(n.second), bare(n.pod), 4000, 80)
        assert str(world.from_pod(world.a, there)) == "redirect"
        raw = about(n.version, ROUTER[n.version], bare(n.second), there)
        assert str(world.from_wire(raw)) == "drop SPOOFED_ADDRESS"
