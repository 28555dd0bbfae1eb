"""Packets that stand for a connection, and what a dry run of programs on them means."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from proto.flow import DropReason
from proto.policy import Direction
from proto.probes import ProbeStep
from services.dataplane.core.datapath import layout as at
from services.dataplane.core.datapath.tunnel_layout import Tunnel, TunnelKind
from services.dataplane.core.doctor import probes
from services.dataplane.core.doctor.probes import DryPacket, Flow, Route

TCP, UDP, SCTP = probes.PROTOCOLS
POD, HOST = b"\x02\xaa\0\0\0\x01", b"\x02\xbb\0\0\0\x01"
LOCAL, REMOTE = ip_address("172.30.0.11"), ip_address("172.30.0.12")
TUNNELS = {
    5: Tunnel(kind=TunnelKind.VXLAN, family=4, port=4789, vni=1, local=LOCAL),
    6: Tunnel(kind=TunnelKind.IPIP, family=4, local=LOCAL),
    7: Tunnel(kind=TunnelKind.WIREGUARD, family=4),
}


def flow(version: int = 4, protocol: int = TCP, **other: int) -> Flow:
    source, destination = ("10.244.1.1", "10.244.2.2") if version == 4 else ("fd00::1", "fd00::2")
    ports = {"source_port": 40_000, "port": 80, **other}
    return Flow(source=ip_address(source), destination=ip_address(destination), protocol=protocol, **ports)


def frame(version: int = 4, protocol: int = TCP, *, is_reply: bool = False) -> bytes:
    return probes.packet(flow(version, protocol), is_reply=is_reply, source_mac=POD, destination_mac=HOST)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", probes.PROTOCOLS)
@pytest.mark.parametrize("is_reply", [False, True])
def test_packets_are_whole(version: int, protocol: int, is_reply: bool) -> None:
    """Lengths, ports, and the checksums by which a receiver would take them (RFC 1071: they sum up to nothing)."""
    found = frame(version, protocol, is_reply=is_reply)
    assert found[:12] == HOST + POD
    body = found[14 + (20 if version == 4 else 40) :]
    assert struct.unpack(">HH", body[:4]) == ((80, 40_000) if is_reply else (40_000, 80))
    addresses = probes.addresses_of(found)
    assert addresses is not None
    assert addresses[is_reply] == flow(version).source
    if version == 4:
        assert probes.checksum(found[14:34]) == 0
        assert int.from_bytes(found[16:18], "big") == len(found) - 14
    else:
        assert int.from_bytes(found[18:20], "big") == len(body)
    if protocol != SCTP:
        packed = addresses[0].packed + addresses[1].packed
        assert probes.checksum(packed + struct.pack(">HBB", len(body), 0, protocol) + body) == 0
    if protocol == TCP:
        assert body[13] == (0x12 if is_reply else 0x02)


def test_an_answer_acknowledges_the_syn() -> None:
    there, back = frame()[34:], frame(is_reply=True)[34:]
    assert int.from_bytes(back[8:12], "big") == int.from_bytes(there[4:8], "big") + 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (flow(port=0), "1 to 65535"),
        (flow(port=70_000), "1 to 65535"),
        (flow(source_port=0), "1 to 65535"),
        (flow(protocol=1), "use tcp, udp or sctp"),
        (Flow(source=LOCAL, destination=ip_address("fd00::1"), source_port=1, port=1, protocol=TCP), "two families"),
    ],
)
def test_a_flow_that_no_packet_stands_for(wrong: Flow, said: str) -> None:
    assert said in probes.check_flow(wrong)


def test_flows_that_packets_stand_for() -> None:
    assert [probes.check_flow(flow(version, one)) for version in (4, 6) for one in probes.PROTOCOLS] == [""] * 6


def outer(protocol: int, port: int = 0, source: str = "172.30.0.11") -> bytes:
    head = struct.pack(">BBHHHBBH", 0x45, 0, 0, 0, 0, 64, protocol, 0) + ip_address(source).packed + REMOTE.packed
    return bytes(12) + b"\x08\0" + head + struct.pack(">HH", 50_000, port) + frame()


@pytest.mark.parametrize(
    ("sent", "route", "model"),
    [
        (outer(17, 4789), Route(link=2), "vxlan"),
        (outer(17, 4790), Route(link=2), "host-gw"),
        (outer(17, 4789, "10.244.1.1"), Route(link=2), "host-gw"),
        (outer(4), Route(link=2), "ipip"),
        (frame(), Route(link=7), "wireguard"),
        (frame(), Route(link=2), "host-gw"),
        (frame(), Route(link=2, protocol=185), "bgp"),
        (frame(6), Route(link=2), "host-gw"),
        (frame(6, UDP), Route(link=2, protocol=186), "host-gw"),
    ],
)
def test_the_model_is_that_of_the_frame(sent: bytes, route: Route, model: str) -> None:
    """A pod's own datagram to VXLAN's port is no tunnel: it does not come from an end of ours."""
    assert probes.model_of(sent, route, TUNNELS) == model


def fib(family: int, link: int, hop: str) -> bytes:
    packed = ip_address(hop).packed.ljust(16, b"\0")
    return struct.pack("<BBHHHII16s16sI6s6s", family, 6, 0, 0, 0, link, 0, bytes(16), packed, 0, POD, HOST)


def test_the_last_look_up_says_the_way() -> None:
    assert len(fib(2, 3, "172.30.0.12")) == 64
    assert probes.way_out(fib(2, 3, "172.30.0.12")) == Route(link=3, next_hop=REMOTE)
    assert probes.way_out(fib(10, 3, "fe80::1")) == Route(link=3, next_hop=ip_address("fe80::1"))
    assert probes.way_out(fib(2, 0, "172.30.0.12")) is None
    assert probes.way_out(bytes(64)) is None
    assert probes.way_out(b"") is None


def test_what_became_of_it() -> None:
    given = DryPacket(action=7, frame=POD + bytes(60))
    assert probes.outcome_of(given, (POD,)) == "delivered"
    assert probes.outcome_of(given, (HOST,)) == "sent"
    assert probes.outcome_of(DryPacket(action=0, frame=b""), ()) == "stack"
    assert probes.outcome_of(DryPacket(action=2, frame=b""), ()) == "dropped"


def event(reason: DropReason) -> at.Event:
    return at.Event(
        time=1, subject=1, peer=2, source=LOCAL, destination=REMOTE, length=60, ifindex=1, endpoint=1, rule=0, missed=0,
        policy=0, source_port=1, destination_port=2, reason=reason, protocol=6, direction=Direction.EGRESS,
    )  # fmt: skip


def test_the_reason_is_the_first_that_was_reported_or_counted() -> None:
    """A reason that has no event (a forged neighbour, say) is counted all the same."""
    passed, denied = event(DropReason.FORWARDED), event(DropReason.POLICY_DENIED)
    assert probes.reason_of(DryPacket(action=2, frame=b"", events=(passed, denied))) == "POLICY_DENIED"
    counted = frozenset({(DropReason.FORWARDED, Direction.EGRESS), (DropReason.SPOOFED_NEIGHBOUR, Direction.EGRESS)})
    assert probes.reason_of(DryPacket(action=2, frame=b"", counted=counted)) == "SPOOFED_NEIGHBOUR"
    assert probes.reason_of(DryPacket(action=2, frame=b"")) == ""


def test_answers_are_judged_by_whom_they_pass() -> None:
    counted = frozenset({(DropReason.REPLY, Direction.EGRESS), (DropReason.REPLY, Direction.INGRESS)})
    found = probes.judgements(DryPacket(action=7, frame=b"", counted=counted), (), ("shop/b", "shop/a"))
    assert [(one.direction, one.subject, one.peer) for one in found] == [
        ("egress", "shop/b", "shop/a"),
        ("ingress", "shop/a", "shop/b"),
    ]


def hop(ran: DryPacket, routed: Route | None) -> tuple[str, str, bool]:
    found = probes.hop(
        ProbeStep("leaves"),
        "from_pod",
        ran,
        judged=(),
        delivers_to=(),
        routed=routed,
        tunnels=TUNNELS,
        devices={2: "eth0", 5: "am-vxlan"},
    )
    return found.model, found.device, bool(found.frame)


def test_what_the_stack_takes_goes_by_its_own_route() -> None:
    """Into a tunnel's device nobody looks; without a route it goes nowhere."""
    given = DryPacket(action=0, frame=frame(), fib=fib(2, 9, "172.30.0.99"))
    assert hop(given, Route(link=2, next_hop=REMOTE)) == ("host-gw", "eth0", True)
    assert hop(given, Route(link=5)) == ("vxlan", "am-vxlan", False)
    assert hop(given, Route(link=0)) == ("host-gw", "one of several next hops", True)
    assert hop(given, None) == ("", "", False)


def test_the_model_of_what_goes_by_a_learnt_route() -> None:
    given = DryPacket(action=7, frame=frame(), fib=fib(2, 2, "172.30.0.12"))
    assert hop(given, Route(link=2, protocol=185)) == ("bgp", "eth0", True)
    assert hop(given, None) == ("host-gw", "eth0", True)
