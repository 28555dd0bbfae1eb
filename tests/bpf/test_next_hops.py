"""Answers of the routing table that programs remember: for the same question, and for a tick of the kernel's clock."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator

import pytest

from linux import bpf
from services.dataplane.core.datapath import layout as at
from services.dataplane.core.datapath.maps import NEXT_HOP_SLOTS, NEXT_HOPS
from tests.bpf import frames
from tests.bpf.frames import TCP, UDP
from tests.bpf.world import OK, SHOT, World, inside, routes_changed, run

pytestmark = pytest.mark.privileged

FAMILIES = pytest.mark.parametrize("version", [4, 6])
AWAY = {4: "10.244.2.7", 6: "fd00:10:244:2::7"}
OTHER = {4: "10.244.2.9", 6: "fd00:10:244:2::9"}
PLANTED, RIGHT = frames.mac("02:ff:00:00:00:99"), frames.mac("02:bb:00:00:00:12")
SIZE, PLANTED_AT = NEXT_HOPS.value_size, 8 + 64 + 58
"""Bytes of a slot; where in it the answer's next MAC address stands (``struct bpf_fib_lookup``)."""
TRIES = 400
GOLDEN_RATIO = 0x9E3779B1


def sends(world: World, to: str, *, protocol: int = UDP, sport: int = 4000, dport: int = 80, more: int = 0) -> bytes:
    """A packet of pod a."""
    source = world.a.address(6 if ":" in to else 4)
    body = (
        frames.udp(sport, dport, bytes(more)) if protocol == UDP else frames.tcp(sport, dport, frames.ACK, bytes(more))
    )
    return frames.ip(source, to, protocol, body)


def index_of(packet: bytes) -> int:
    """As ``am_find_next_hop`` has it."""
    at4 = packet[0] >> 4 == 4
    head, ports = (12, 20) if at4 else (8, 40)
    words = struct.unpack_from("<II" if at4 else "<IIIIIIII", packet, head)
    sport, dport = struct.unpack_from("<HH", packet, ports)
    source, destination = (words[:1], words[1:]) if at4 else ((words[0], words[3]), (words[4], words[7]))
    mixed: int = sport ^ dport << 16
    for word in (*source, *destination):
        mixed ^= word
    return (mixed * GOLDEN_RATIO & 0xFFFFFFFF) * NEXT_HOP_SLOTS >> 32


def next_hops(world: World) -> int:
    return world.tables.descriptors[NEXT_HOPS.name]


def words(world: World, packet: bytes) -> list[int]:
    """When each processor last asked about packets like this, and what it was answered; 0: it remembers nothing."""
    raw = bpf.lookup_per_cpu(next_hops(world), struct.pack("<I", index_of(packet)), SIZE)
    assert raw is not None
    return [struct.unpack_from("<Q", raw, start)[0] for start in range(0, len(raw), SIZE)]


def plant(world: World, packet: bytes) -> None:
    """Whatever is remembered where this packet's answer stands leads elsewhere from now on."""
    key = struct.pack("<I", index_of(packet))
    raw = bytearray(bpf.lookup_per_cpu(next_hops(world), key, SIZE) or b"")
    for start in range(0, len(raw), SIZE):
        raw[start + PLANTED_AT : start + PLANTED_AT + 6] = PLANTED
    bpf.update(next_hops(world), key, bytes(raw))


def hop(world: World, packet: bytes) -> bytes:
    outcome = world.from_pod(world.a, packet)
    assert str(outcome) == "redirect"
    return outcome.frame[:6]


def remembered(world: World, first: bytes) -> Iterator[None]:
    """Moments in a tick in which the answer to this packet's question is remembered, and leads elsewhere."""
    found = 0
    for _ in range(TRIES):
        assert hop(world, first) in (RIGHT, PLANTED)
        plant(world, first)
        if hop(world, first) == PLANTED:
            found += 1
            yield
        if found == 20:
            return
    raise AssertionError("it asks each time")


@FAMILIES
def test_an_answer_is_good_for_a_tick(world: World, version: int) -> None:
    sent = sends(world, AWAY[version])
    for _ in zip(range(3), remembered(world, sent), strict=False):
        routes_changed()
        assert hop(world, sent) == RIGHT


@FAMILIES
@pytest.mark.parametrize("what", ["destination", "source port", "destination port", "protocol"])
def test_another_question_is_asked(world: World, version: int, what: str) -> None:
    first = sends(world, AWAY[version])
    others = {
        "destination": (sends(world, OTHER[version], sport=port) for port in range(1024, 65536)),
        "source port": (sends(world, AWAY[version], sport=port) for port in range(4001, 65536)),
        "destination port": (sends(world, AWAY[version], dport=port) for port in range(81, 65536)),
        "protocol": (sends(world, AWAY[version], protocol=TCP) for _ in range(1)),
    }
    other = next(packet for packet in others[what] if index_of(packet) == index_of(first))
    assert hop(world, other) == RIGHT
    for _ in remembered(world, first):
        assert hop(world, other) == RIGHT


@FAMILIES
def test_another_link_is_another_question(world: World, version: int) -> None:
    sent = sends(world, AWAY[version])
    moved = at.Link(
        identity=world.a.identity, address4=world.a.address4, address6=world.a.address6, mac=world.a.mac,
        endpoint=world.a.number,
    )  # fmt: skip
    world.tables.links.put(at.LinkKey(ifindex=world.b.ifindex), moved)
    for _ in remembered(world, sent):
        outcome = world.from_pod(world.b, sent, mac=world.a.mac)
        assert (str(outcome), outcome.frame[:6]) == ("redirect", RIGHT)


@FAMILIES
def test_a_long_packet_s_answer_is_true_of_a_short_one(world: World, version: int) -> None:
    short, long = sends(world, AWAY[version]), sends(world, AWAY[version], more=1200)
    assert PLANTED in [hop(world, short) for _ in remembered(world, long)]
    for _ in range(20):
        routes_changed()
        hop(world, short)
        plant(world, short)
        assert hop(world, long) == RIGHT, "it may be too long for where that one goes"


@FAMILIES
def test_a_route_that_changes_is_followed(world: World, version: int) -> None:
    to, family = AWAY[version], f"-{version}"
    router = "172.30.0.14" if version == 4 else "fd00:172:30::14"
    sent, other = sends(world, to), "02:bb:00:00:00:14"
    try:
        assert hop(world, sent) == RIGHT
        run("ip", "-n", world.netns, family, *f"neigh add {router} lladdr {other} dev am-wire nud permanent".split())
        run("ip", "-n", world.netns, family, "route", "add", to, "via", router)
        routes_changed()
        assert hop(world, sent) == frames.mac(other)
        run("ip", "-n", world.netns, family, "route", "replace", "unreachable", to)
        routes_changed()
        assert str(world.from_pod(world.a, sent)) == "stack"
    finally:
        run("ip", "-n", world.netns, family, "route", "flush", to)
        run("ip", "-n", world.netns, family, "neigh", "flush", "to", router, "nud", "permanent")
        routes_changed()


def test_a_way_is_remembered_and_no_refusal(world: World) -> None:
    """Without a neighbour a packet is the stack's, which asks for one; where no route leads, it says so."""
    for to, is_kept in (("10.244.2.200", True), ("10.244.9.9", False)):
        world.know(f"{to}/32", 2001, at.PeerFlag.POD)
        sent = sends(world, to)
        before = words(world, sent)  # another question may have had the same place, and lost it
        for _ in range(2):
            assert str(world.from_pod(world.a, sent)) == "stack"
        kept = [now for now, old in zip(words(world, sent), before, strict=True) if now not in (0, old)]
        assert bool(kept) == is_kept


def marked(world: World, program: str, packet: bytes, ifindex: int, received_on: int, mark: int) -> tuple[int, int]:
    """What a program did with a packet that has a mark, and the mark that it has then."""
    kind = 0x0800 if packet[0] >> 4 == 4 else 0x86DD
    frame = ctypes.create_string_buffer(frames.eth(packet, source=world.a.mac, kind=kind))
    context = ctypes.create_string_buffer(struct.pack("<8xI24xII", mark, received_on, ifindex), 192)
    attr = struct.pack(
        "<IIIIQQIIIIQQIIII",
        world.datapath.programs[program], 0, len(frame) - 1, 0, ctypes.addressof(frame), 0, 1, 0,
        44, 192, ctypes.addressof(context), ctypes.addressof(context), 0, 0, 0, 0,
    )  # fmt: skip
    with inside(world.netns):
        _, result = bpf._call(bpf.Command.TEST_RUN, attr)
    return struct.unpack_from("<I", result, 4)[0], struct.unpack_from("<I", context, 8)[0]


@FAMILIES
def test_what_was_judged_is_not_judged_as_it_leaves(world: World, version: int) -> None:
    """A mark says so, and goes. A socket may set one, too: of what the node itself sends it says nothing."""
    sent = sends(world, AWAY[version])
    _, mark = marked(world, "from_pod", sent, world.a.ifindex, world.a.ifindex, 0)
    assert mark == at.SENT_MARK
    encrypt = at.ConfigFlag.ENCRYPT4 | at.ConfigFlag.ENCRYPT6
    world.tables.configure(at.Config(flags=encrypt, events_per_second=1_000_000, events_burst=1_000_000))
    assert marked(world, "to_wire", sent, world.wire, world.a.ifindex, mark) == (OK, 0)
    assert marked(world, "to_wire", sent, world.wire, 0, mark)[0] == SHOT
    assert marked(world, "to_wire", sent, world.wire, world.a.ifindex, at.REPLY_MARK)[0] == SHOT
