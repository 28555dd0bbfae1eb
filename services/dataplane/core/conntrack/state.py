"""What a packet does to its flow's state, how long a flow may be idle, and which entries have been.

Pure: the entries and the time are arguments. :func:`step` says in Python what ``am_see_after`` (bpf/flow_state.h) does
in the kernel; a test compares the two over every sequence of packets. Times are nanoseconds of CLOCK_MONOTONIC; the
programs write ``last_seen`` about once a second at most, so no timeout is below a few seconds.

What nobody can lift or shorten who does not see the flow: TCP is established by the third packet of a handshake whose
numbers fit each other, or, where the flow is older than its entry, when both directions fit each other. A peer's RST,
FIN and SYN count only where the pod would take them. What the pod itself sends is believed: it is its own flow, and its
address was checked.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import IntFlag

from proto.policy import Direction
from services.dataplane.core.datapath.layout import (
    MAX_EXPIRED,
    NODE,
    Budget,
    EndpointKey,
    Flow,
    FlowKey,
    Seen,
)
from services.dataplane.core.datapath.maps import WAYS
from services.dataplane.core.datapath.wire import MAPPED

SECOND = 1_000_000_000
REFRESH = 1 << 30
"""Nanoseconds after which a packet writes ``last_seen`` again."""

TCP = 6
UDP = 17
ICMP = (1, 58)

TCP_SYN = 60
TCP_ESTABLISHED = 21_600
TCP_HALF_CLOSED = 600
TCP_CLOSING = 10
UDP_ONCE = 30
OTHER_ONCE = 60
STREAM = 180
ANSWERED_DNS = 10
ICMP_ANY = 30
"""Seconds. As in the kernel's own conntrack where it matters; established TCP is a quarter of its day. An answered
query to port 53 waits for the second answer of a resolver that asks for A and AAAA from one port."""
DNS_PORT = 53

AHEAD = 1 << 22
BEHIND = 1 << 18
STEP = 1 << 18
"""Bytes of sequence numbers. ``expected`` is written again when the pod has acknowledged STEP more; a peer's FIN or RST
counts from BEHIND below it to AHEAD above it, a thousandth of all numbers: a window that is full may lie between."""
EARLY = 1 << 14
"""A handshake's acknowledgement may be so far off: data came with the SYN, or right after the SYN-ACK (RFC 7413)."""

PRESSURE = 8
"""Where the node's table is nearly full, an endpoint may have this part of its limits."""
PEER_SHARE = 8
"""Where others hold more than half of what they may at an endpoint, one peer may hold this part of it."""

FRAME_HEAD = bytes(12) + b"\x88\xb5" + bytes(2)
"""Begins a batch: a test run takes its input for an Ethernet frame, and this ethertype is nobody's (IEEE 802.1)."""

_BOTH_FINS = Seen.FIN_ORIGINAL | Seen.FIN_REPLY
_U32 = 0xFFFFFFFF


class TcpFlag(IntFlag):
    """Of a TCP header (RFC 9293 3.1)."""

    FIN = 1
    SYN = 2
    RST = 4
    ACK = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """What conntrack looks at of a packet. ``length`` counts payload bytes."""

    is_reply: bool
    """It goes against the direction in which the flow began."""
    is_own: bool
    """The pod sends it (of a translated flow: the backend), so nobody else can have made it."""
    flags: int = 0
    sequence: int = 0
    acknowledged: int = 0
    length: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The part of a flow's entry that decides on its time."""

    seen: int = 0
    sent: int = 0
    expected: int = 0


def idle_seconds(protocol: int, seen: int) -> int:
    """How long a flow may be idle."""
    if protocol in ICMP:
        return ICMP_ANY
    if protocol != TCP:
        if seen & Seen.ONE_SHOT and seen & Seen.REPLY:
            return ANSWERED_DNS
        if seen & Seen.ESTABLISHED:
            return STREAM
        return UDP_ONCE if protocol == UDP else OTHER_ONCE
    if seen & Seen.RESET or seen & _BOTH_FINS == _BOTH_FINS:
        return TCP_CLOSING
    if not seen & Seen.ESTABLISHED:
        return TCP_SYN
    return TCP_HALF_CLOSED if seen & _BOTH_FINS else TCP_ESTABLISHED


def is_over(seen: int) -> bool:
    """A TCP connection that has ended: a SYN on its ports begins a new flow."""
    return bool(seen & Seen.RESET) or seen & _BOTH_FINS == _BOTH_FINS


def fits(number: int, expected: int) -> bool:
    """A sequence number that may belong to a live connection."""
    return (number - expected + BEHIND) & _U32 < BEHIND + AHEAD


def begins(protocol: int, flags: int) -> bool:
    """May a packet of no known flow begin one? An answer to a SYN and a reset are answers to something."""
    answers = TcpFlag.SYN | TcpFlag.ACK
    return protocol != TCP or not (flags & TcpFlag.RST or flags & answers == answers)


def first(protocol: int, segment: Segment, *, is_dns: bool = False) -> State:
    """The state that a flow's first packet leaves."""
    if protocol != TCP:
        return State(seen=Seen.ONE_SHOT if protocol == UDP and is_dns else 0)
    if segment.flags & TcpFlag.SYN:
        return _begun(segment)
    end = (segment.sequence + segment.length) & _U32
    seen = Seen.FIN_ORIGINAL if segment.flags & TcpFlag.FIN else 0
    if segment.is_own:
        return State(seen=seen, sent=end, expected=segment.acknowledged)
    return State(seen=seen, sent=segment.acknowledged, expected=end)


def step(protocol: int, state: State, segment: Segment, *, is_due: bool) -> State:
    """The state after a packet. ``is_due``: it comes more than :data:`REFRESH` after ``last_seen``."""
    if protocol == TCP:
        return _step_tcp(state, segment, is_due)
    seen = state.seen
    if segment.is_reply:
        if seen & Seen.AGAIN:
            seen |= Seen.ESTABLISHED
    elif seen & Seen.REPLY:
        seen |= Seen.AGAIN
    if is_due and state.seen & Seen.REPLY:
        seen |= Seen.ESTABLISHED
    if segment.is_reply:
        seen |= Seen.REPLY
    if protocol in ICMP or state.seen & Seen.ONE_SHOT:
        seen &= ~(Seen.ESTABLISHED | Seen.AGAIN)
    return replace(state, seen=seen)


def _step_tcp(state: State, segment: Segment, is_due: bool) -> State:
    flags, own, seen = segment.flags, segment.is_own, state.seen
    if flags & TcpFlag.RST:
        accepted = own or not seen & Seen.ESTABLISHED or fits(segment.sequence, state.expected)
        return replace(state, seen=seen | Seen.RESET) if accepted else state
    if flags & TcpFlag.SYN:
        return _step_syn(state, segment)
    if not flags & TcpFlag.ACK:
        return state
    if seen & Seen.ESTABLISHED:
        moved = (segment.acknowledged - state.expected) & _U32
        if own and (is_due or STEP < moved < 1 << 31):
            state = replace(state, expected=segment.acknowledged)
    else:
        if own and not seen & Seen.REPLY:  # the pod has this connection already, and took the SYN for a forgery
            state = replace(state, seen=seen & ~Seen.SYN)
        if not state.seen & Seen.SYN:
            state = _step_older(state, segment)
        elif (
            not segment.is_reply
            and state.seen & Seen.REPLY
            and (segment.acknowledged - (state.expected if own else state.sent)) & _U32 < EARLY
        ):
            state = replace(state, seen=state.seen | Seen.ESTABLISHED)
    seen = state.seen
    if flags & TcpFlag.FIN and (own or fits(segment.sequence, state.expected)):
        seen |= Seen.FIN_REPLY if segment.is_reply else Seen.FIN_ORIGINAL
    if own:  # it goes on, so it did not take the reset
        seen &= ~Seen.RESET
    return replace(state, seen=seen)


def _step_syn(state: State, segment: Segment) -> State:
    own, seen = segment.is_own, state.seen
    end = (segment.sequence + segment.length + 1) & _U32
    if seen & Seen.ESTABLISHED:
        return state  # a late one, or a forged one: who lives answers it, and goes on
    if not segment.flags & TcpFlag.ACK:
        if segment.is_reply:  # both began (RFC 9293 3.5): then what both directions say must do
            return replace(state, seen=seen & ~Seen.SYN)
        if seen & Seen.SYN and (state.sent if own else state.expected) == end:
            return state
        return _begun(segment)
    if not segment.is_reply or not seen & Seen.SYN:
        return state
    if ((state.expected if own else state.sent) - segment.acknowledged) & _U32 >= EARLY:
        return state
    if own:
        return replace(state, seen=seen | Seen.REPLY, sent=end)
    return replace(state, seen=seen | Seen.REPLY, expected=end)


def _begun(segment: Segment) -> State:
    end = (segment.sequence + segment.length + 1) & _U32
    return State(seen=Seen.SYN, sent=end if segment.is_own else 0, expected=0 if segment.is_own else end)


def _step_older(state: State, segment: Segment) -> State:
    """A packet of a flow that is older than its entry."""
    own, seen = segment.is_own, state.seen
    mine, other = (state.sent, state.expected) if own else (state.expected, state.sent)
    if (segment.is_reply or seen & Seen.REPLY) and fits(segment.sequence, mine) and fits(segment.acknowledged, other):
        seen |= Seen.REPLY | Seen.ESTABLISHED
    elif own and segment.is_reply:
        seen |= Seen.REPLY
    if own:
        end = (segment.sequence + segment.length) & _U32
        return State(seen=seen, sent=end, expected=segment.acknowledged)
    return replace(state, seen=seen)


@dataclass(frozen=True, slots=True)
class Census:
    """The flows that stay, by endpoint and side."""

    counts: Counter[tuple[int, int]]
    pending: Counter[tuple[int, int]]
    """Those of them that nobody has answered, and handshakes that nobody has finished."""


def is_pending(protocol: int, seen: int) -> bool:
    """A flow that a flood is made of: it has led to nothing yet."""
    return not seen & (Seen.ESTABLISHED | Seen.RESET if protocol == TCP else Seen.ESTABLISHED | Seen.REPLY)


_KEY, _VALUE = FlowKey.wire(), Flow.wire()
_PROTOCOL, _SEEN = _KEY.offset("protocol"), _VALUE.offset("seen")
_LOOK = struct.Struct(
    f"<Q{_VALUE.offset('endpoint') - 8}xI{_VALUE.offset('side') - _VALUE.offset('endpoint') - 4}xB"
    f"{_VALUE.size - _VALUE.offset('side') - 1}x"
)


def _by_protocol(of: Callable[[int, int], int]) -> tuple[tuple[int, ...], ...]:
    """What ``of`` says by protocol, then by what has been seen. Protocols without a rule of their own share a row: one
    each takes 3 MB.
    """
    rows = {protocol: tuple(of(protocol, seen) for seen in range(256)) for protocol in (TCP, UDP, *ICMP, _OTHER)}
    return tuple(rows.get(protocol, rows[_OTHER]) for protocol in range(256))


_OTHER = 0
_PERIODS = _by_protocol(lambda protocol, seen: idle_seconds(protocol, seen) * SECOND)
_PENDING = _by_protocol(is_pending)


def look_at(keys: bytes, values: bytes, now: int, census: Census, gone: Collection[int] = ()) -> list[bytes]:
    """Entries as they lie in the map (end to end): those whose time is over, or whose endpoint is ``gone``, as
    ``struct am_expired``. The others are counted. Half a second for a million.
    """
    periods, pending = _PERIODS, _PENDING
    counts, waiting = census.counts, census.pending
    found: list[bytes] = []
    size, width = _KEY.size, _VALUE.size
    looks = _LOOK.iter_unpack(values)
    kinds = zip(keys[_PROTOCOL::size], values[_SEEN::width], looks, strict=True)
    for number, (protocol, seen, (last_seen, endpoint, side)) in enumerate(kinds):
        if endpoint in gone:
            found.append(keys[number * size : (number + 1) * size] + bytes(8))
        elif now - last_seen > periods[protocol][seen]:
            found.append(keys[number * size : (number + 1) * size] + last_seen.to_bytes(8, "little"))
        else:
            counts[endpoint, side] += 1
            if pending[protocol][seen]:
                waiting[endpoint, side] += 1
    return found


def peers_of(keys: bytes, values: bytes, endpoint: int, side: int) -> Iterator[bytes]:
    """The peers (16 bytes; of IPv6 the /64) of an endpoint's flows in a direction, among entries end to end."""
    size, remote = _KEY.size, _KEY.offset("remote")
    for number, (_, whose, begun) in enumerate(_LOOK.iter_unpack(values)):
        if whose == endpoint and begun == side:
            address = keys[number * size + remote : number * size + remote + 16]
            yield address if address.startswith(MAPPED) else address[:8] + bytes(8)


def key_of(endpoint: int) -> EndpointKey:
    """The key of an endpoint's budget."""
    return EndpointKey(endpoint=endpoint)


def batches(records: list[bytes]) -> Iterator[bytes]:
    """What ``collect`` and ``recount`` take: :data:`FRAME_HEAD`, then at most MAX_CONDEMNED records end to end."""
    for start in range(0, len(records), MAX_EXPIRED):
        yield FRAME_HEAD + b"".join(records[start : start + MAX_EXPIRED])


def _signed(count: int) -> int:
    """A count that went below zero."""
    return count - (1 << 64) if count >> 63 else count


def miscount(counted: int, before: int, after: int) -> int:
    """What to add to a count that was ``before`` and ``after`` the look that ``counted`` flows.

    Flows begin and end meanwhile, so any number between the two may be right, and nothing is added for it.
    """
    before, after = _signed(before), _signed(after)
    low, high = min(before, after), max(before, after)
    return counted - high if counted > high else min(counted - low, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mend:
    """What ``recount`` is to do with one endpoint's budget (``struct am_correction``)."""

    endpoint: int
    ingress: int = 0
    egress: int = 0
    limits: Budget | None = None
    """Limits and window to set; None: they stay."""

    def pack(self) -> bytes:
        """The record's bytes."""
        at = self.limits or Budget(ingress_limit=0, egress_limit=0)
        differences, limits = (self.ingress, self.egress), (at.ingress_limit, at.egress_limit)
        return struct.pack("<IIqqQQII", self.endpoint, 0, *differences, *limits, at.first, at.mask)


def mends(
    before: Mapping[int, Budget], after: Mapping[int, Budget], counts: Mapping[tuple[int, int], int]
) -> list[Mend]:
    """The budgets whose counts are off, given what they were before and after a look at the table."""
    found: list[Mend] = []
    for endpoint, now in after.items():
        was = before.get(endpoint)
        if was is None:
            continue
        if endpoint == NODE:
            ingress, egress = miscount(sum(counts.values()), was.ingress, now.ingress), 0
        else:
            ingress = miscount(counts.get((endpoint, Direction.INGRESS), 0), was.ingress, now.ingress)
            egress = miscount(counts.get((endpoint, Direction.EGRESS), 0), was.egress, now.egress)
        if ingress or egress:
            found.append(Mend(endpoint=endpoint, ingress=ingress, egress=egress))
    return found


def budget_of(endpoint: int, limit: int, sets: int) -> Budget:
    """What an endpoint may have of a table with so many ``sets`` of recent flows: ``limit`` flows in each direction.

    Of those, half may be flows that are not established: its window of sets has so many places, begins where the
    endpoint's number says, and is shared with whoever else has it (bpf/recent.h: who floods loses its own).
    """
    wanted = max(limit // 2 // WAYS, 1)
    width = min(1 << (wanted.bit_length() - 1), sets)
    first = endpoint * 2_654_435_769 % (1 << 32) % (sets // width) * width
    return Budget(ingress_limit=limit, egress_limit=limit, first=first, mask=width - 1)


def node_budget(entries: int) -> Budget:
    """The node's own: from three quarters of the table on, endpoints may have less."""
    return Budget(ingress_limit=entries * 3 // 4, egress_limit=entries * 3 // 4)
