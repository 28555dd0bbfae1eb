"""Flow states: the program against its table in Python, every sequence of packets; and what no forger can do."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from itertools import product

import pytest

from linux import bpf
from proto.policy import Direction
from services.dataplane.core.conntrack import state as core
from services.dataplane.core.conntrack.state import Segment, State
from services.dataplane.core.datapath import layout as at
from tests.bpf import frames
from tests.bpf.frames import ACK, FIN, ICMP, RST, SYN, TCP, UDP
from tests.bpf.world import OUR_MAC, SHOT, Pod, World, inside

pytestmark = pytest.mark.privileged

SECOND = core.SECOND
COARSE = 6  # CLOCK_MONOTONIC_COARSE: what the programs read
STRANGER = {4: "192.0.2.5", 6: "2001:db8::5"}
OWN_START, PEER_START = 1000, 0xFFFFFFF0  # one of them runs over
FAR = 1 << 30
BASE = 0x50000000
DEPTH = 6
FAMILIES = pytest.mark.parametrize("version", [4, 6])
SIDES = pytest.mark.parametrize("side", [Direction.EGRESS, Direction.INGRESS], ids=["pod began", "stranger began"])
KINDS = (SYN, SYN | ACK, ACK, FIN | ACK, RST, RST | ACK, FIN)


def segments(side: Direction) -> Iterator[Segment]:
    """Every packet of one connection, with numbers that are right or far off."""
    for own, flags, right, length in product((True, False), KINDS, (True, False), (0, 7)):
        mine, other = (OWN_START, PEER_START) if own else (PEER_START, OWN_START)
        first = 0 if flags & SYN else 1
        off = 0 if right else FAR
        yield Segment(
            is_reply=own != (side == Direction.EGRESS),
            is_own=own,
            flags=flags,
            sequence=(mine + first + off) & 0xFFFFFFFF,
            acknowledged=(other + 1 + off) & 0xFFFFFFFF if flags & ACK else 0,
            length=length,
        )


class Bench:
    """A flow between pod a and a stranger, whose entry is set and read, packet by packet."""

    def __init__(self, world: World, side: Direction, version: int, protocol: int, port: int = 80) -> None:
        self.world, self.side, self.version, self.protocol = world, side, version, protocol
        self.pod: Pod = world.a
        ports = (4000, port) if side == Direction.EGRESS else (port, 4000)
        self.key = at.FlowKey(
            local=self.pod.address(version), remote=ip_address(STRANGER[version]), local_port=ports[0],
            remote_port=ports[1], protocol=protocol,
        )  # fmt: skip

    def packet(self, segment: Segment) -> bytes:
        key = self.key
        ends = (key.local_port, key.remote_port) if segment.is_own else (key.remote_port, key.local_port)
        payload = bytes(segment.length)
        if self.protocol == TCP:
            body = frames.tcp(
                *ends, segment.flags, payload, sequence=segment.sequence, acknowledged=segment.acknowledged
            )
        elif self.protocol == UDP:
            body = frames.udp(*ends, payload)
        elif self.protocol in core.ICMP:
            body = frames.echo(self.version, ident=0)
        else:
            body = payload + bytes(20)
        there = (key.local, key.remote) if segment.is_own else (key.remote, key.local)
        return frames.ip(str(there[0]), str(there[1]), self.protocol, body)

    def run(self, segment: Segment) -> int:
        raw = self.packet(segment)
        pod, program = self.pod, "from_pod" if segment.is_own else "from_wire"
        source, ifindex = (pod.mac, pod.ifindex) if segment.is_own else (OUR_MAC, self.world.wire)
        frame = frames.eth(raw, source=source, kind=0x0800 if self.version == 4 else 0x86DD)
        context = struct.pack("<36xII", ifindex, ifindex)
        return bpf.run_on(self.world.datapath.programs[program], frame, context=context).value

    def set(self, state: State | None, *, is_due: bool) -> None:
        if state is None:
            self.world.tables.flows.remove(self.key)
            return
        seen_at = time.clock_gettime_ns(COARSE) - (2 * SECOND if is_due else 0)
        entry = at.Flow(
            last_seen=seen_at, generation=self.world.tables.generation, endpoint=self.pod.number, rule=at.NO_RULE,
            flags=0, side=self.side, seen=state.seen, sent=state.sent, expected=state.expected,
        )  # fmt: skip
        self.world.tables.flows.put(self.key, entry)

    def state(self) -> State | None:
        flow = self.world.tables.flows.get(self.key)
        return None if flow is None else State(seen=flow.seen, sent=flow.sent, expected=flow.expected)


def after(protocol: int, state: State | None, segment: Segment, *, is_due: bool, is_dns: bool) -> State | None:
    """What the table in Python says; a flow that is none is begun by either end only in its own direction."""
    begins = segment.flags & (SYN | ACK) == SYN and protocol == TCP
    if state is not None and begins and core.is_over(state.seen):
        state = None
    if state is not None:
        return core.step(protocol, state, segment, is_due=is_due)
    if not core.begins(protocol, segment.flags) or segment.is_reply:
        return None
    return core.first(protocol, segment, is_dns=is_dns)


def compare(bench: Bench, alphabet: list[Segment], *, is_dns: bool = False) -> int:
    """Every sequence of up to DEPTH packets: what is compared is each step that any of them takes, from each state that
    any of them reaches, since the next state depends on nothing else. Returns how many steps that were.
    """
    reached: set[State | None] = {None}
    fresh: set[State | None] = {None}
    steps = 0
    with inside(bench.world.netns):
        for _ in range(DEPTH):
            found: set[State | None] = set()
            for state, segment, is_due in product(fresh, alphabet, (False, True)):
                wanted = after(bench.protocol, state, segment, is_due=is_due, is_dns=is_dns)
                if wanted is None and (state is not None or segment.is_reply):
                    continue  # the other end begins a flow of its own: another table row
                bench.set(state, is_due=is_due)
                action = bench.run(segment)
                got = bench.state()
                assert (action != SHOT, got) == (True, wanted), f"{state} {segment} due={is_due}"
                steps += 1
                found.add(wanted)
            fresh = found - reached
            reached |= found
    bench.world.reader.drain(1 << 20)
    return steps


@FAMILIES
@SIDES
class TestTable:
    def test_tcp(self, world: World, version: int, side: Direction) -> None:
        alphabet = list(segments(side))
        steps = compare(Bench(world, side, version, TCP), alphabet)
        print(f"\n{steps} steps")
        assert steps > 1000

    @pytest.mark.parametrize(("protocol", "port"), [(UDP, 80), (UDP, 53), (ICMP, 0), (47, 0)])
    def test_others(self, world: World, version: int, side: Direction, protocol: int, port: int) -> None:
        if protocol == ICMP:
            protocol = ICMP if version == 4 else 58
        alphabet = [Segment(is_reply=own != (side == Direction.EGRESS), is_own=own, length=12) for own in (True, False)]
        bench = Bench(world, side, version, protocol, port)
        if protocol not in (UDP, TCP):
            bench.key = replace(bench.key, local_port=0, remote_port=0)
        assert compare(bench, alphabet, is_dns=port == 53) >= 4


def entry(world: World, key: at.FlowKey) -> at.Flow:
    flow = world.tables.flows.get(key)
    assert flow is not None
    return flow


def lives(world: World, key: at.FlowKey) -> int:
    return core.idle_seconds(key.protocol, entry(world, key).seen)


@FAMILIES
class TestForged:
    """A stranger who sees nothing of a flow, but knows its addresses and ports."""

    def established(self, world: World, version: int) -> Bench:
        bench = Bench(world, Direction.INGRESS, version, TCP)
        with inside(world.netns):
            for own, flags, sequence, acknowledged in (
                (False, SYN, BASE - 1, 0), (True, SYN | ACK, 900, BASE), (False, ACK, BASE, 901),
            ):  # fmt: skip
                bench.run(Segment(
                    is_reply=own, is_own=own, flags=flags, sequence=sequence, acknowledged=acknowledged
                ))  # fmt: skip
        assert lives(world, bench.key) == core.TCP_ESTABLISHED
        return bench

    def test_half_open_handshake_lives_a_minute(self, world: World, version: int) -> None:
        """From an unreachable source: the pod's SYN-ACK, however often, makes nothing of it."""
        bench = Bench(world, Direction.INGRESS, version, TCP)
        answer = Segment(is_reply=True, is_own=True, flags=SYN | ACK, sequence=900, acknowledged=101)
        with inside(world.netns):
            bench.run(Segment(is_reply=False, is_own=False, flags=SYN, sequence=100))
            for _ in range(3):
                bench.run(answer)
            assert lives(world, bench.key) == core.TCP_SYN
            for guess in (0, 900, 902 + core.EARLY, 901 + FAR):
                bench.run(Segment(is_reply=False, is_own=False, flags=ACK, sequence=101, acknowledged=guess))
        assert lives(world, bench.key) == core.TCP_SYN

    @pytest.mark.parametrize("flags", [RST, RST | ACK, FIN | ACK, SYN])
    def test_blind_packet_shortens_nothing(self, world: World, version: int, flags: int) -> None:
        bench = self.established(world, version)
        with inside(world.netns):
            for guess in (0, 1, FAR, 0x90000000, BASE - core.BEHIND - 1, BASE + core.AHEAD):
                bench.run(Segment(is_reply=False, is_own=False, flags=flags, sequence=guess & 0xFFFFFFFF))
        assert lives(world, bench.key) == core.TCP_ESTABLISHED

    def test_reset_that_the_pod_does_not_accept_is_undone(self, world: World, version: int) -> None:
        """RFC 5961 3.2: within the window, but not what is expected next: the pod asks, and goes on."""
        bench = self.established(world, version)
        with inside(world.netns):
            bench.run(Segment(is_reply=False, is_own=False, flags=RST, sequence=BASE + 50))
            assert lives(world, bench.key) == core.TCP_CLOSING
            bench.run(Segment(is_reply=True, is_own=True, flags=ACK, sequence=901, acknowledged=BASE))
        assert lives(world, bench.key) == core.TCP_ESTABLISHED

    def test_real_reset_and_close_count(self, world: World, version: int) -> None:
        bench = self.established(world, version)
        with inside(world.netns):
            bench.run(Segment(is_reply=True, is_own=True, flags=ACK, sequence=901, acknowledged=BASE + 3_000_000))
            bench.run(
                Segment(is_reply=False, is_own=False, flags=FIN | ACK, sequence=BASE + 3_000_000, acknowledged=901)
            )
            assert lives(world, bench.key) == core.TCP_HALF_CLOSED
            bench.run(Segment(is_reply=True, is_own=True, flags=FIN | ACK, sequence=901, acknowledged=BASE + 3_000_001))
            assert lives(world, bench.key) == core.TCP_CLOSING
            bench.run(Segment(is_reply=False, is_own=False, flags=SYN, sequence=77))
        assert entry(world, bench.key).seen == at.Seen.SYN, "the ports are used again"

    def test_flow_older_than_its_entry_is_taken_up(self, world: World, version: int) -> None:
        bench = self.established(world, version)
        world.tables.flows.remove(bench.key)
        with inside(world.netns):
            bench.run(Segment(is_reply=False, is_own=False, flags=ACK, sequence=5000, acknowledged=7000, length=10))
            assert lives(world, bench.key) == core.TCP_SYN, "one direction alone proves nothing"
            bench.run(Segment(is_reply=True, is_own=True, flags=ACK, sequence=7000, acknowledged=5010))
        assert lives(world, bench.key) == core.TCP_ESTABLISHED

    def test_answers_to_nothing_begin_no_flow(self, world: World, version: int) -> None:
        """The pod's SYN-ACK of a flow that made room would else be a flow of the pod's own."""
        bench = Bench(world, Direction.EGRESS, version, TCP)
        with inside(world.netns):
            for flags in (SYN | ACK, RST, RST | ACK):
                for own in (True, False):
                    segment = Segment(is_reply=not own, is_own=own, flags=flags, sequence=1, acknowledged=2)
                    assert bench.run(segment) != SHOT
        assert world.tables.flows.items() == {}


def test_udp_and_dns_times(world: World) -> None:
    for port, once, answered, stream in ((80, 30, 30, 180), (53, 30, 10, 10)):
        bench = Bench(world, Direction.INGRESS, 4, UDP, port)
        there, back = (Segment(is_reply=own, is_own=own, length=5) for own in (False, True))
        seconds = []
        with inside(world.netns):
            for segment in (there, back, there, back):
                bench.run(segment)
                seconds.append(lives(world, bench.key))
        assert seconds == [once, answered, answered, stream]
