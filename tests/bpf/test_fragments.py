"""Fragments and IPv6 extension headers: judged by the ports of the first, or not at all."""

from __future__ import annotations

import pytest

from proto.policy import Direction
from services.dataplane.core.datapath.layout import FRAGMENTS_EACH
from services.dataplane.core.datapath.maps import FRAGMENT_ENTRIES
from tests.bpf import frames
from tests.bpf.frames import AUTH, DESTINATION, FRAGMENT, HOP_BY_HOP, NO_NEXT, ROUTING, TCP, UDP
from tests.bpf.world import REDIRECT, World

pytestmark = pytest.mark.privileged

MORE = 0x2000
INGRESS = Direction.INGRESS


def piece(
    world: World, version: int, body: bytes, *, offset: int, more: bool, ident: int = 77, protocol: int = UDP
) -> bytes:
    one, other = world.a.address(version), world.b.address(version)
    if version == 4:
        return frames.ip(one, other, protocol, body, frag=offset // 8 | MORE * more, ident=ident)
    head = frames.fragment6(protocol, offset=offset, more=more, ident=ident)
    return frames.ip(one, other, FRAGMENT, head + body)


FIRST = frames.udp(4000, 53, bytes(56))
REST = bytes(64)


@pytest.mark.parametrize("version", [4, 6])
class TestFragments:
    def send(self, world: World, version: int, body: bytes, *, offset: int, more: bool, **how: int) -> str:
        return str(world.from_pod(world.a, piece(world, version, body, offset=offset, more=more, **how)))

    def test_in_order(self, world: World, version: int) -> None:
        world.isolate(world.b.identity, ingress=True)
        world.rule(world.b, INGRESS, protocol=UDP, port=53, bits=16)
        assert self.send(world, version, FIRST, offset=0, more=True) == "redirect"
        assert self.send(world, version, REST, offset=64, more=True) == "redirect"
        assert self.send(world, version, REST, offset=128, more=False) == "redirect"

    def test_later_one_alone(self, world: World, version: int) -> None:
        assert self.send(world, version, REST, offset=64, more=False) == "drop FRAGMENT"

    def test_of_another_packet(self, world: World, version: int) -> None:
        assert self.send(world, version, FIRST, offset=0, more=True) == "redirect"
        assert self.send(world, version, REST, offset=64, more=False, ident=78) == "drop FRAGMENT"

    def test_share_the_first_ones_fate(self, world: World, version: int) -> None:
        world.isolate(world.b.identity, ingress=True)
        world.rule(world.b, INGRESS, protocol=UDP, port=54, bits=16)
        assert self.send(world, version, FIRST, offset=0, more=True) == "drop POLICY_DENIED"
        assert self.send(world, version, REST, offset=64, more=False) == "drop POLICY_DENIED"

    def test_first_too_small_for_its_ports(self, world: World, version: int) -> None:
        tiny = frames.tcp(4000, 80)[:8]
        assert self.send(world, version, tiny, offset=0, more=True, protocol=TCP) == "drop FRAGMENT"

    def test_first_too_small_but_padded(self, world: World, version: int) -> None:
        packet = piece(world, version, frames.tcp(4000, 80)[:8], offset=0, more=True, protocol=TCP)
        assert str(world.from_pod(world.a, packet + bytes(40))) == "drop FRAGMENT"

    def test_second_that_lies_over_the_header(self, world: World, version: int) -> None:
        head = frames.tcp(4000, 80, payload=bytes(44))
        assert self.send(world, version, head, offset=0, more=True, protocol=TCP) == "redirect"
        assert self.send(world, version, REST, offset=8, more=False, protocol=TCP) == "drop FRAGMENT"

    def test_whole_packet_with_a_fragment_header(self, world: World, version: int) -> None:
        assert self.send(world, version, FIRST, offset=0, more=False) == "redirect"

    def test_from_the_wire(self, world: World, version: int) -> None:
        source = "10.244.2.9" if version == 4 else "fd00:10:244:2::9"
        target = world.a.address(version)

        def out(body: bytes, offset: int, more: bool) -> str:
            if version == 4:
                return str(world.from_wire(frames.ip(source, target, UDP, body, frag=offset // 8 | MORE * more)))
            head = frames.fragment6(UDP, offset=offset, more=more, ident=5)
            return str(world.from_wire(frames.ip(source, target, FRAGMENT, head + body)))

        assert out(REST, 64, False) == "drop FRAGMENT"
        assert out(FIRST, 0, True) == "redirect"
        assert out(REST, 64, False) == "redirect"


def of(version: int, source: object, to: object, body: bytes, offset: int, more: bool, ident: int) -> bytes:
    if version == 4:
        return frames.ip(str(source), str(to), UDP, body, frag=offset // 8 | MORE * more, ident=ident)
    head = frames.fragment6(UDP, offset=offset, more=more, ident=ident)
    return frames.ip(str(source), str(to), FRAGMENT, head + body)


@pytest.mark.parametrize("version", [4, 6])
class TestOfOthers:
    """What one sender's first fragments can do to another's later ones: nothing."""

    def test_forged_first_one_changes_nobodys_ports(self, world: World, version: int) -> None:
        world.isolate(world.b.identity, ingress=True)
        world.rule(world.b, INGRESS, protocol=UDP, port=53, bits=16)
        assert str(world.from_pod(world.a, piece(world, version, FIRST, offset=0, more=True))) == "redirect"
        before = world.tables.fragments.items()
        forged = piece(world, version, frames.udp(4000, 99, bytes(56)), offset=0, more=True)
        assert str(world.from_pod(world.b, forged)) == "drop SPOOFED_ADDRESS"
        assert world.tables.fragments.items() == before
        assert str(world.from_pod(world.a, piece(world, version, REST, offset=64, more=False))) == "redirect"

    def test_nor_do_what_comes_by_another_link(self, world: World, version: int) -> None:
        """The same packet, as the uplink or another card brings it."""
        world.isolate(world.b.identity, ingress=True)
        world.rule(world.b, INGRESS, protocol=UDP, port=53, bits=16)
        assert str(world.from_pod(world.a, piece(world, version, FIRST, offset=0, more=True))) == "redirect"
        forged = piece(world, version, frames.udp(4000, 99, bytes(56)), offset=0, more=True)
        assert str(world.from_wire(forged)) == "drop SPOOFED_ADDRESS"
        assert str(world.to_pod(world.b, forged, received_on=4242)) == "drop SPOOFED_ADDRESS"
        assert str(world.from_pod(world.a, piece(world, version, REST, offset=64, more=False))) == "redirect"

    def test_later_ones_alone_do_not_ride_on_anothers_first(self, world: World, version: int) -> None:
        remote = "10.244.2.9" if version == 4 else "fd00:10:244:2::9"
        to = world.b.address(version)
        assert str(world.from_wire(of(version, remote, to, FIRST, 0, True, 5))) == "redirect"
        later = of(version, remote, to, REST, 64, False, 5)
        assert str(world.to_pod(world.b, later)) == "drop FRAGMENT"
        assert str(world.from_wire(later)) == "redirect"

    def test_flood_of_a_pod_is_its_own_loss(self, world: World, version: int) -> None:
        """Twice as many as the map could hold: the others' are all there, and the flood has its bounded places."""
        remotes = [f"10.244.2.{i}" if version == 4 else f"fd00:10:244:2::{i:x}" for i in range(2, 40)]
        victim = world.b.address(version)
        first = of(version, victim, remotes[0], FIRST, 0, True, 9)
        assert str(world.from_pod(world.b, first)) == "redirect"
        for ident, remote in enumerate(remotes):
            assert str(world.from_wire(of(version, remote, victim, FIRST, 0, True, ident))) == "redirect"
        send = world.sender("from_pod", world.a)
        for ident in range(2 * FRAGMENT_ENTRIES):
            to = remotes[ident % len(remotes)]
            assert send(of(version, world.a.address(version), to, FIRST, 0, True, ident % 65536)) == REDIRECT
        own = [key for key in world.tables.fragments.items() if key.link == world.a.ifindex]
        assert 0 < len(own) <= FRAGMENTS_EACH
        later = of(version, victim, remotes[0], REST, 64, False, 9)
        assert str(world.from_pod(world.b, later)) == "redirect"
        for ident, remote in enumerate(remotes):
            assert str(world.from_wire(of(version, remote, victim, REST, 64, False, ident))) == "redirect"

    def test_flood_of_a_pod_elsewhere_leaves_nearly_all(self, world: World, version: int) -> None:
        """On an uplink senders share places when their hashes do: one of 64."""
        victims = [f"10.244.2.{i}" if version == 4 else f"fd00:10:244:2::{i:x}" for i in range(2, 102)]
        to = world.b.address(version)
        for ident, one in enumerate(victims):
            assert str(world.from_wire(of(version, one, to, FIRST, 0, True, ident))) == "redirect"
        send = world.sender("from_wire", None)
        flooder = "10.244.2.200" if version == 4 else "fd00:10:244:2::c8"
        for ident in range(2 * FRAGMENT_ENTRIES):
            assert send(of(version, flooder, to, FIRST, 0, True, ident % 65536)) == REDIRECT
        kept = [str(world.from_wire(of(version, one, to, REST, 64, False, i))) for i, one in enumerate(victims)]
        assert kept.count("redirect") >= 94

    def test_as_many_at_a_time_as_there_are_slots(self, world: World, version: int) -> None:
        """Packets of one sender in a row, their fragments mixed: half of the places full, nearly all are joined."""
        a, to = world.a.address(version), world.b.address(version)
        count = FRAGMENTS_EACH // 8
        for ident in range(count):
            assert str(world.from_pod(world.a, of(version, a, to, FIRST, 0, True, ident))) == "redirect"
        said = [str(world.from_pod(world.a, of(version, a, to, REST, 64, False, ident))) for ident in range(count)]
        assert said == ["redirect"] * count


def chain(world: World, *headers: tuple[int, bytes], last: int, body: bytes) -> bytes:
    """An IPv6 packet with extension headers; each is given as (its number, a maker's tail after next-header)."""
    numbers = [number for number, _ in headers] + [last]
    payload = b"".join(bytes([numbers[i + 1]]) + tail for i, (_, tail) in enumerate(headers)) + body
    return frames.ip(world.a.address6, world.b.address6, numbers[0], payload)


OPTIONS = frames.extension(0)[1:]
BIG_OPTIONS = frames.extension(0, words=3)[1:]
AUTHENTICATION = bytes([4]) + bytes(22)
TO_80, TO_81 = frames.tcp(4000, 80), frames.tcp(4000, 81)

CHAINS = [
    ("none", (), TCP, TO_80, "redirect"),
    ("hop by hop", ((HOP_BY_HOP, OPTIONS),), TCP, TO_80, "redirect"),
    ("hop by hop, then destination", ((HOP_BY_HOP, OPTIONS), (DESTINATION, BIG_OPTIONS)), TCP, TO_80, "redirect"),
    ("ports are found behind", ((HOP_BY_HOP, OPTIONS), (DESTINATION, BIG_OPTIONS)), TCP, TO_81, "drop POLICY_DENIED"),
    ("authentication", ((AUTH, AUTHENTICATION),), TCP, TO_80, "redirect"),
    ("eight", ((DESTINATION, OPTIONS),) * 8, TCP, TO_80, "redirect"),
    ("nine", ((DESTINATION, OPTIONS),) * 9, TCP, TO_80, "drop EXTENSION_HEADERS"),
    ("hop by hop not first", ((DESTINATION, OPTIONS), (HOP_BY_HOP, OPTIONS)), TCP, TO_80, "drop EXTENSION_HEADERS"),
    ("routing header", ((ROUTING, OPTIONS),), TCP, TO_80, "drop EXTENSION_HEADERS"),
    ("longer than the packet", ((DESTINATION, bytes([200]) + bytes(6)),), TCP, TO_80, "drop MALFORMED"),
    ("cut short", ((DESTINATION, OPTIONS),), DESTINATION, b"", "drop MALFORMED"),
    ("two fragment headers", ((FRAGMENT, bytes([0, 0, 1, 0, 0, 0, 1])),) * 2, UDP, FIRST, "drop FRAGMENT"),
    ("no next header", ((DESTINATION, OPTIONS),), NO_NEXT, b"", "drop POLICY_DENIED"),
]  # fmt: skip


@pytest.mark.parametrize(("headers", "last", "body", "expected"), [c[1:] for c in CHAINS], ids=[c[0] for c in CHAINS])
def test_extension_headers(
    world: World, headers: tuple[tuple[int, bytes], ...], last: int, body: bytes, expected: str
) -> None:
    world.isolate(world.b.identity, ingress=True)
    world.rule(world.b, INGRESS, protocol=TCP, port=80, bits=16)
    assert str(world.from_pod(world.a, chain(world, *headers, last=last, body=body))) == expected
