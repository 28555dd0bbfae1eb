"""A probe of one connection: the packets that stand for it, and what a dry run of the programs on them means.

Pure. A packet there is a SYN, a UDP datagram or an SCTP INIT, as small as the stack's; the one back answers it, so that
conntrack must know it. What a program did is read from its action, the events and counters of the dry run, the frame as
it became, and the last answer of the kernel's routing table (``struct bpf_fib_lookup``, include/uapi/linux/bpf.h).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal

from kit.models import HOST_GW, IPIP, LEARNT_PROTOCOL, VXLAN, WIREGUARD
from proto.flow import DropReason, FlowEvent
from proto.net import Address
from proto.policy import Direction
from proto.probes import Judgement, ProbeHop, ProbeStep
from services.dataplane.core.datapath.layout import Event
from services.dataplane.core.datapath.tunnel_layout import Tunnel, TunnelKind

TCP, UDP, SCTP = 6, 17, 132
PROTOCOLS = (TCP, UDP, SCTP)
LEARNT = "bgp"
"""Model of a packet that leaves as it is by a route that a BGP peer sent."""
_ETH, _IP4, _IP6 = 14, 0x0800, 0x86DD
_IPIP = 4
_SYN, _ACK = 0x02, 0x10
_SEQUENCE, _ANSWERS = 1000, 5000
_OK, _SHOT, _REDIRECT = 0, 2, 7
"""TC_ACT_OK, TC_ACT_SHOT, TC_ACT_REDIRECT (include/uapi/linux/pkt_cls.h)."""
_FIB = struct.Struct("<B7xI4x16s16s4x6s6s")
"""family, ifindex, source, destination (the next hop), MAC addresses of both."""
_INET6 = 10

_MODELS = {TunnelKind.VXLAN: VXLAN, TunnelKind.IPIP: IPIP, TunnelKind.WIREGUARD: WIREGUARD}

Counted = tuple[DropReason, Direction]
Outcome = Literal["delivered", "sent", "stack", "dropped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DryPacket:
    """What a program did with a packet."""

    action: int
    """``TC_ACT_*``."""
    frame: bytes
    """As it is afterwards."""
    events: tuple[Event, ...] = ()
    """Verdicts, new flows' too, in their order."""
    counted: frozenset[Counted] = frozenset()
    """What it was counted under."""
    fib: bytes = b""
    """``struct bpf_fib_lookup`` as the last look-up left it; zeros when there was none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a packet goes: the interface by number (0: one of several), the next hop (None: the link itself), who made
    the route.
    """

    link: int
    next_hop: Address | None = None
    protocol: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A connection between two addresses of one family."""

    source: Address
    destination: Address
    source_port: int
    port: int
    protocol: int


def check_flow(flow: Flow) -> str:
    """Why no packet can stand for it, one sentence; empty when one can."""
    if flow.source.version != flow.destination.version:
        return f"{flow.source} and {flow.destination} are of two families: name two addresses of one"
    if not (0 < flow.port < 1 << 16 and 0 < flow.source_port < 1 << 16):
        return f"port {flow.port} from port {flow.source_port}: both must be 1 to 65535"
    if flow.protocol not in PROTOCOLS:
        return f"protocol {flow.protocol} has no ports here: use tcp, udp or sctp"
    return ""


def packet(flow: Flow, *, is_reply: bool, source_mac: bytes, destination_mac: bytes) -> bytes:
    """The Ethernet frame of the packet there, or back."""
    sender, receiver = (flow.destination, flow.source) if is_reply else (flow.source, flow.destination)
    ports = (flow.port, flow.source_port) if is_reply else (flow.source_port, flow.port)
    body = _transport(flow.protocol, ports, is_reply=is_reply)
    pseudo = sender.packed + receiver.packed + struct.pack(">HBB", len(body), 0, flow.protocol)
    if flow.protocol != SCTP:
        at = 16 if flow.protocol == TCP else 6
        body = body[:at] + struct.pack(">H", checksum(pseudo + body) or 0xFFFF) + body[at + 2 :]
    if sender.version == 6:
        head = struct.pack(">IHBB", 6 << 28, len(body), flow.protocol, 64) + sender.packed + receiver.packed
        return destination_mac + source_mac + struct.pack(">H", _IP6) + head + body
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0x4000, 64, flow.protocol, 0)
    head += sender.packed + receiver.packed
    head = head[:10] + struct.pack(">H", checksum(head)) + head[12:]
    return destination_mac + source_mac + struct.pack(">H", _IP4) + head + body


def _transport(protocol: int, ports: tuple[int, int], *, is_reply: bool) -> bytes:
    if protocol == TCP:
        flags, sequence = (_SYN | _ACK, _ANSWERS) if is_reply else (_SYN, _SEQUENCE)
        acknowledged = _SEQUENCE + 1 if is_reply else 0
        return struct.pack(">HHIIBBHHH", *ports, sequence, acknowledged, 5 << 4, flags, 0xFFFF, 0, 0)
    if protocol == UDP:
        return struct.pack(">HHHH", *ports, 8, 0)
    chunk = struct.pack(">BBHIIHHI", 2 if is_reply else 1, 0, 20, 1, 0xFFFF, 1, 1, 1)  # INIT, INIT ACK (RFC 9260 3.3.2)
    return struct.pack(">HHII", *ports, int(is_reply), 0) + chunk


def checksum(raw: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    raw += bytes(len(raw) % 2)
    total: int = sum(struct.unpack(f">{len(raw) // 2}H", raw))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def received(frame: bytes, mac: bytes) -> bytes:
    """The frame as the interface with this MAC address receives it: whoever sent it here knew the address."""
    return mac + frame[6:]


def addresses_of(frame: bytes) -> tuple[Address, Address] | None:
    """Source and destination of the outermost IP header; None when there is none."""
    kind = int.from_bytes(frame[12:14], "big")
    at, size = {_IP4: (_ETH + 12, 4), _IP6: (_ETH + 8, 16)}.get(kind, (0, 0))
    if not size or len(frame) < at + 2 * size:
        return None
    return ip_address(frame[at : at + size]), ip_address(frame[at + size : at + 2 * size])


def model_of(frame: bytes, route: Route, tunnels: Mapping[int, Tunnel]) -> str:
    """By which model a frame that was sent goes: of its outer header, the device and the route."""
    if (tunnel := tunnels.get(route.link)) is not None:
        return _MODELS[TunnelKind(tunnel.kind)].name
    is6 = int.from_bytes(frame[12:14], "big") == _IP6
    protocol = frame[_ETH + (6 if is6 else 9)]
    if not is6 and protocol == _IPIP:
        return IPIP.name
    at = _ETH + (40 if is6 else (frame[_ETH] & 15) * 4)
    port = int.from_bytes(frame[at + 2 : at + 4], "big")
    vxlan = {(one.family, one.port) for one in tunnels.values() if one.kind == TunnelKind.VXLAN}
    outer = addresses_of(frame)
    if protocol == UDP and (6 if is6 else 4, port) in vxlan and outer and outer[0] in _ends(tunnels):
        return VXLAN.name
    return LEARNT if route.protocol == LEARNT_PROTOCOL else HOST_GW.name


def _ends(tunnels: Mapping[int, Tunnel]) -> set[Address]:
    return {one.local for one in tunnels.values() if one.local is not None}


def way_out(fib: bytes) -> Route | None:
    """Where the last look-up of the program led; None when it made none."""
    if len(fib) < _FIB.size or not any(fib):
        return None
    family, link, _, hop, _, _ = _FIB.unpack_from(fib)
    return Route(link=link, next_hop=ip_address(hop if family == _INET6 else hop[:4])) if link else None


def outcome_of(ran: DryPacket, delivers_to: Iterable[bytes]) -> Outcome:
    """``delivers_to``: MAC addresses of this node's pods that the packet may be for."""
    if ran.action == _REDIRECT:
        return "delivered" if ran.frame[:6] in set(delivers_to) else "sent"
    return "stack" if ran.action == _OK else "dropped"


def reason_of(ran: DryPacket) -> str:
    """Why a dropped packet was dropped; empty when no program said it."""
    said = [DropReason(event.reason) for event in ran.events if event.reason > DropReason.REPLY]
    counted = [reason for reason, _ in sorted(ran.counted) if reason > DropReason.REPLY]
    return next((one.name for one in (*said, *counted)), "")


def judgements(ran: DryPacket, reported: Iterable[FlowEvent], names: tuple[str, str]) -> tuple[Judgement, ...]:
    """What each end said: ``reported`` are the events with names. Answers are counted and have no event: ``names``
    (sender and receiver) says of whom. The sender's end comes first, as it judges first.
    """
    found = [_judgement(event) for event in reported]
    for reason, direction in sorted(ran.counted, key=lambda one: -one[1]):
        if reason is DropReason.REPLY:
            subject, peer = names if direction is Direction.EGRESS else names[::-1]
            found.append(Judgement(_SIDES[direction], reason.name, subject=subject, peer=peer))
    return tuple(found)


_SIDES: Mapping[Direction, Literal["egress", "ingress"]] = {
    Direction.EGRESS: "egress",
    Direction.INGRESS: "ingress",
}


def _judgement(event: FlowEvent) -> Judgement:
    egress = event.direction == "egress"
    return Judgement(
        direction="egress" if egress else "ingress",
        reason=event.reason,
        subject=event.source_name if egress else event.destination_name,
        peer=event.destination_name if egress else event.source_name,
        peer_identity=event.destination_identity if egress else event.source_identity,
        policies=event.policies,
        rule=event.rule,
        revision=event.revision,
    )


def hop(
    step: ProbeStep,
    program: str,
    ran: DryPacket,
    *,
    judged: tuple[Judgement, ...],
    delivers_to: Iterable[bytes],
    routed: Route | None,
    tunnels: Mapping[int, Tunnel],
    devices: Mapping[int, str],
) -> ProbeHop:
    """What became of a packet. ``routed``: the route that the node's stack takes to its destination, None without
    one; ``devices``: names of interfaces.
    """
    outcome = outcome_of(ran, delivers_to)
    route = routed if outcome == "stack" else way_out(ran.fib)
    if outcome in ("delivered", "dropped") or route is None:
        reason = reason_of(ran) if outcome == "dropped" else ""
        return ProbeHop(step.way, step.is_reply, program, outcome, reason=reason, judgements=judged)
    protocol = routed.protocol if routed is not None else 0
    route = Route(link=route.link, next_hop=route.next_hop, protocol=protocol)
    model = model_of(ran.frame, route, tunnels)
    outer = addresses_of(ran.frame) if outcome == "sent" and model in (VXLAN.name, IPIP.name) else None
    goes_on = outcome == "sent" or route.link not in tunnels
    return ProbeHop(
        step.way,
        step.is_reply,
        program,
        outcome,
        judgements=judged,
        model=model,
        device=devices.get(route.link, f"#{route.link}" if route.link else "one of several next hops"),
        next_hop=route.next_hop,
        outer_source=outer[0] if outer else None,
        outer_destination=outer[1] if outer else None,
        frame=ran.frame if goes_on else b"",
    )
