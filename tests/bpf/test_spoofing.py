"""A pod speaks in its own name only; nobody outside speaks in a local name."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from services.dataplane.core.datapath import layout as at
from tests.bpf import frames
from tests.bpf.frames import ICMP, ICMP6, TCP, UDP, mac
from tests.bpf.world import World

pytestmark = pytest.mark.privileged

OTHER_MAC = mac("02:aa:00:00:00:99")
ALL_NODES = "ff02::1"
GATEWAY_GROUP = "ff02::1:ff00:1"
ARP = 0x0806

A4, A6 = "10.244.1.1", "fd00:10:244:1::1"
B4, B6 = "10.244.1.2", "fd00:10:244:1::2"
A_MAC = mac("02:aa:00:00:00:01")


def sent(source: str, destination: str) -> bytes:
    return frames.ip(source, destination, UDP, frames.udp(4000, 53))


def discovery(source: str, destination: str, body: bytes, *, hops: int = 255) -> bytes:
    return frames.ip(source, destination, ICMP6, body, hops=hops)


def redirect4() -> bytes:
    return struct.pack(">BBHI", 5, 1, 0, 0) + bytes(28)


CASES: list[tuple[str, Callable[[], bytes], dict[str, object], str]] = [
    ("its own v4", lambda: sent(A4, B4), {}, "redirect"),
    ("its own v6", lambda: sent(A6, B6), {}, "redirect"),
    ("another pod's v4", lambda: sent(B4, "192.0.2.1"), {}, "drop SPOOFED_ADDRESS"),
    ("another pod's v6", lambda: sent(B6, "2001:db8::1"), {}, "drop SPOOFED_ADDRESS"),
    ("the node's v4", lambda: sent("172.30.0.11", B4), {}, "drop SPOOFED_ADDRESS"),
    ("the node's v6", lambda: sent("fd00:172:30::11", B6), {}, "drop SPOOFED_ADDRESS"),
    ("a stranger's v4", lambda: sent("192.0.2.1", B4), {}, "drop SPOOFED_ADDRESS"),
    ("unspecified v4", lambda: sent("0.0.0.0", B4), {}, "drop SPOOFED_ADDRESS"),
    ("broadcast v4", lambda: sent("255.255.255.255", B4), {}, "drop SPOOFED_ADDRESS"),
    ("loopback v4", lambda: sent("127.0.0.1", B4), {}, "drop SPOOFED_ADDRESS"),
    ("multicast v4", lambda: sent("224.0.0.1", B4), {}, "drop SPOOFED_ADDRESS"),
    ("unspecified v6", lambda: sent("::", B6), {}, "drop SPOOFED_ADDRESS"),
    ("loopback v6", lambda: sent("::1", B6), {}, "drop SPOOFED_ADDRESS"),
    ("link-local v6", lambda: sent("fe80::1:1", B6), {}, "drop SPOOFED_ADDRESS"),
    ("the gateway's v6", lambda: sent("fe80::1", B6), {}, "drop SPOOFED_ADDRESS"),
    ("its v4 as a mapped v6", lambda: sent(f"::ffff:{A4}", B6), {}, "drop MALFORMED"),
    ("to a mapped v6", lambda: sent(A6, f"::ffff:{B4}"), {}, "drop MALFORMED"),
    ("its v4 from another MAC", lambda: sent(A4, B4), {"mac": OTHER_MAC}, "drop SPOOFED_MAC"),
    ("its v6 from another MAC", lambda: sent(A6, B6), {"mac": OTHER_MAC}, "drop SPOOFED_MAC"),
    ("ARP in its own name", lambda: frames.arp(1, A_MAC, A4, "169.254.1.1"), {"kind": ARP}, "stack"),
    ("ARP answer in its own name", lambda: frames.arp(2, A_MAC, A4, "169.254.1.1"), {"kind": ARP}, "stack"),
    ("ARP for another address", lambda: frames.arp(2, A_MAC, B4, A4), {"kind": ARP}, "drop SPOOFED_NEIGHBOUR"),
    ("ARP for the gateway", lambda: frames.arp(2, A_MAC, "169.254.1.1", B4), {"kind": ARP}, "drop SPOOFED_NEIGHBOUR"),
    ("ARP with another MAC", lambda: frames.arp(2, OTHER_MAC, A4, B4), {"kind": ARP}, "drop SPOOFED_NEIGHBOUR"),
    ("ARP probe", lambda: frames.arp(1, A_MAC, "0.0.0.0", A4), {"kind": ARP}, "drop SPOOFED_NEIGHBOUR"),
    ("ARP of other hardware", lambda: frames.arp(1, A_MAC, A4, B4, hardware=6), {"kind": ARP}, "drop MALFORMED"),
    ("ARP cut short", lambda: frames.arp(1, A_MAC, A4, B4)[:20], {"kind": ARP}, "drop MALFORMED"),
    ("VLAN tag", lambda: struct.pack(">HH", 5, 0x0800) + sent(A4, B4), {"kind": 0x8100}, "drop NOT_IP"),
    ("QinQ tag", lambda: struct.pack(">HH", 5, 0x0800) + sent(A4, B4), {"kind": 0x88A8}, "drop NOT_IP"),
    ("spanning tree", lambda: bytes(40), {"kind": 0x0026}, "drop NOT_IP"),
    ("PPPoE", lambda: bytes(40), {"kind": 0x8864}, "drop NOT_IP"),
    ("solicitation of the gateway", lambda: discovery(A6, GATEWAY_GROUP, frames.neighbour(135, "fe80::1", A_MAC)), {},
     "stack"),
    ("solicitation by link-local", lambda: discovery("fe80::a", "fe80::1", frames.neighbour(135, "fe80::1", A_MAC)), {},
     "stack"),
    ("solicitation of another pod", lambda: discovery(A6, GATEWAY_GROUP, frames.neighbour(135, B6, A_MAC)), {},
     "drop SPOOFED_NEIGHBOUR"),
    ("solicitation with another MAC", lambda: discovery(A6, "fe80::1", frames.neighbour(135, "fe80::1", OTHER_MAC)), {},
     "drop SPOOFED_NEIGHBOUR"),
    ("solicitation from another pod", lambda: discovery(B6, "fe80::1", frames.neighbour(135, "fe80::1", A_MAC)), {},
     "drop SPOOFED_ADDRESS"),
    ("solicitation from afar", lambda: discovery(A6, "fe80::1", frames.neighbour(135, "fe80::1", A_MAC), hops=64), {},
     "drop SPOOFED_NEIGHBOUR"),
    ("advertisement of itself", lambda: discovery(A6, "fe80::1", frames.neighbour(136, A6, A_MAC)), {}, "stack"),
    ("advertisement to the node", lambda: discovery(A6, "fd00:172:30::11", frames.neighbour(136, A6, A_MAC)), {},
     "stack"),
    ("advertisement of another", lambda: discovery(A6, "fe80::1", frames.neighbour(136, B6, A_MAC)), {},
     "drop SPOOFED_NEIGHBOUR"),
    ("advertisement of the gateway", lambda: discovery(A6, ALL_NODES, frames.neighbour(136, "fe80::1", A_MAC)), {},
     "drop SPOOFED_NEIGHBOUR"),
    ("advertisement as the gateway", lambda: discovery("fe80::1", "fe80::1", frames.neighbour(136, "fe80::1", A_MAC)),
     {}, "drop SPOOFED_NEIGHBOUR"),
    ("advertisement to all", lambda: discovery(A6, ALL_NODES, frames.neighbour(136, A6, A_MAC)), {},
     "drop SPOOFED_NEIGHBOUR"),
    ("advertisement to a pod", lambda: discovery(A6, B6, frames.neighbour(136, A6, A_MAC)), {},
     "drop SPOOFED_NEIGHBOUR"),
    ("router advertisement", lambda: discovery("fe80::a", ALL_NODES, frames.icmp6(134, bytes(12))), {},
     "drop SPOOFED_NEIGHBOUR"),
    ("router advertisement by its v6", lambda: discovery(A6, ALL_NODES, frames.icmp6(134, bytes(12))), {},
     "drop SPOOFED_NEIGHBOUR"),
    ("redirect v6", lambda: discovery(A6, B6, frames.icmp6(137, bytes(36))), {}, "drop SPOOFED_NEIGHBOUR"),
    ("redirect v4", lambda: frames.ip(A4, B4, ICMP, redirect4()), {}, "drop SPOOFED_NEIGHBOUR"),
    # What every stack sends when its link comes up: dropped without a word.
    ("router solicitation", lambda: discovery("fe80::a", "ff02::2", frames.icmp6(133, bytes(4))), {}, "drop"),
    ("listener report", lambda: discovery("::", "ff02::16", frames.icmp6(143, bytes(24))), {}, "drop"),
    ("address detection", lambda: discovery("::", GATEWAY_GROUP, frames.neighbour(135, "fe80::1")), {}, "drop"),
]  # fmt: skip


@pytest.mark.parametrize(("packet", "how", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_from_pod(world: World, packet: Callable[[], bytes], how: dict[str, object], expected: str) -> None:
    assert str(world.from_pod(world.a, packet(), **how)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("10.244.2.9", "redirect"),
        (B4, "drop SPOOFED_ADDRESS"),
        (A4, "drop SPOOFED_ADDRESS"),
        ("172.30.0.11", "drop SPOOFED_ADDRESS"),
        ("172.30.0.12", "redirect"),
        ("fd00:10:244:2::9", "redirect"),
        (B6, "drop SPOOFED_ADDRESS"),
        ("fd00:172:30::11", "drop SPOOFED_ADDRESS"),
        (f"::ffff:{B4}", "drop MALFORMED"),
    ],
)
def test_from_wire(world: World, source: str, expected: str) -> None:
    destination = A4 if "." in source and ":" not in source else A6
    assert str(world.from_wire(sent(source, destination))) == expected


def test_uplink_leaves_the_nodes_own_alone(world: World) -> None:
    assert str(world.from_wire(sent("172.30.0.12", "172.30.0.11"))) == "stack"
    assert str(world.from_wire(sent("192.0.2.1", "172.30.0.11"))) == "stack"
    assert str(world.from_wire(bytes(46), kind=0x88CC)) == "stack"
    assert str(world.from_wire(frames.arp(1, A_MAC, "172.30.0.12", "172.30.0.11"), kind=ARP)) == "stack"


def test_pod_of_one_family_owns_no_zero_address(world: World) -> None:
    link = at.Link(identity=1001, address4=world.a.address4, address6=None, mac=world.a.mac, endpoint=1)
    world.tables.links.put(at.LinkKey(ifindex=world.a.ifindex), link)
    assert str(world.from_pod(world.a, sent("::", B6))) == "drop SPOOFED_ADDRESS"
    assert str(world.from_pod(world.a, sent(A6, B6))) == "drop SPOOFED_ADDRESS"
    assert str(world.from_pod(world.a, sent(A4, B4))) == "redirect"


def test_the_node_asks_for_its_pod(world: World) -> None:
    asked = discovery("fe80::1", "ff02::1:ff00:1", frames.neighbour(135, A6, A_MAC))
    assert str(world.to_pod(world.a, asked)) == "stack"
    world.isolate(world.a.identity, ingress=True)
    assert str(world.to_pod(world.a, asked, received_on=world.wire)) == "drop SPOOFED_ADDRESS"
    assert str(world.to_pod(world.a, frames.arp(1, A_MAC, "169.254.1.1", A4), kind=ARP)) == "stack"


TCP_SYN = frames.tcp(4000, 80)
# Frames cut within the IP header cannot be given to BPF_PROG_TEST_RUN; test_live.py sends such.
MALFORMED: list[tuple[str, bytes, str]] = [
    ("v4 longer than the frame", frames.ip(A4, B4, TCP, TCP_SYN, total=400), "MALFORMED"),
    ("v4 shorter than its header", frames.ip(A4, B4, TCP, TCP_SYN, total=16), "MALFORMED"),
    ("v4 header of 4 words", frames.ip(A4, B4, TCP, TCP_SYN, ihl=4), "MALFORMED"),
    ("v4 header beyond the packet", frames.ip(A4, B4, TCP, b"", ihl=15), "MALFORMED"),
    ("v4 that says version 5", frames.ip(A4, B4, TCP, TCP_SYN, version=5), "MALFORMED"),
    ("v6 that says version 4", frames.ip(A6, B6, TCP, TCP_SYN, version=4), "MALFORMED"),
    ("v6 longer than the frame", frames.ip(A6, B6, TCP, TCP_SYN, length=400), "MALFORMED"),
    ("TCP cut", frames.ip(A4, B4, TCP, TCP_SYN[:12]), "MALFORMED"),
    ("TCP header of 4 words", frames.ip(A6, B6, TCP, frames.tcp(1, 2, offset=4)), "MALFORMED"),
    ("UDP cut", frames.ip(A4, B4, UDP, bytes(5)), "MALFORMED"),
    ("ICMP cut", frames.ip(A4, B4, ICMP, bytes(4)), "MALFORMED"),
    ("ICMPv6 in IPv4", frames.ip(A4, B4, ICMP6, frames.echo(6)), "MALFORMED"),
    ("ICMP in IPv6", frames.ip(A6, B6, ICMP, frames.echo(4)), "MALFORMED"),
]


@pytest.mark.parametrize(("packet", "reason"), [c[1:] for c in MALFORMED], ids=[c[0] for c in MALFORMED])
def test_malformed(world: World, packet: bytes, reason: str) -> None:
    kind = 0x0800 if b"\xfd\x00" not in packet[:30] else 0x86DD
    assert str(world.from_pod(world.a, packet, kind=kind)) == f"drop {reason}"


def test_options_and_padding_are_no_fault(world: World) -> None:
    with_options = frames.ip(A4, B4, TCP, TCP_SYN, options=bytes([1] * 8))
    assert str(world.from_pod(world.a, with_options)) == "redirect"
    assert str(world.from_pod(world.a, frames.ip(A4, B4, UDP, frames.udp(1, 2, b"")) + bytes(18))) == "redirect"
