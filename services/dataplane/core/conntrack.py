"""How long a flow may be idle before its conntrack entry goes, and which entries have been.

Pure: the entries and the time are arguments. Times are nanoseconds of CLOCK_MONOTONIC; the programs write ``last_seen``
about once a second at most, so no timeout is below a few seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

from services.dataplane.core.layout import MAX_CONDEMNED, Flow, FlowKey, Seen

SECOND = 1_000_000_000

TCP = 6
UDP = 17
ICMP = (1, 58)

TCP_SYN = 60
TCP_ESTABLISHED = 21_600
TCP_HALF_CLOSED = 600
TCP_CLOSING = 10
UDP_SINGLE = 60
UDP_ANSWERED = 180
ICMP_ANY = 30
"""Seconds. As in the kernel's own conntrack where it matters; established TCP is a quarter of its day."""

FRAME_HEAD = bytes(12) + b"\x88\xb5" + bytes(2)
"""Begins a batch: a test run takes its input for an Ethernet frame, and this ethertype is nobody's (IEEE 802.1)."""

_BOTH_FINS = Seen.FIN_ORIGINAL | Seen.FIN_REPLY


def idle_seconds(protocol: int, seen: int) -> int:
    """How long a flow may be idle."""
    if protocol in ICMP:
        return ICMP_ANY
    if protocol != TCP:
        return UDP_ANSWERED if seen & Seen.REPLY else UDP_SINGLE
    if seen & Seen.RESET or seen & _BOTH_FINS == _BOTH_FINS:
        return TCP_CLOSING
    if seen & _BOTH_FINS:
        return TCP_HALF_CLOSED
    return TCP_ESTABLISHED if seen & Seen.REPLY else TCP_SYN


def idle_flows(flows: Mapping[FlowKey, Flow], now: int) -> Iterator[tuple[FlowKey, int]]:
    """The flows whose time is over, with the ``last_seen`` that says so."""
    for key, flow in flows.items():
        if now - flow.last_seen > idle_seconds(key.protocol, flow.seen) * SECOND:
            yield key, flow.last_seen


def flows_of(flows: Mapping[FlowKey, Flow], endpoints: Collection[int]) -> Iterator[tuple[FlowKey, int]]:
    """All flows of endpoints that are gone, to be removed whatever they are (``last_seen`` 0)."""
    for key, flow in flows.items():
        if flow.endpoint in endpoints:
            yield key, 0


def count_by_endpoint(flows: Mapping[FlowKey, Flow]) -> Counter[int]:
    """How many flows each endpoint has."""
    return Counter(flow.endpoint for flow in flows.values())


def condemned_batches(condemned: Iterable[tuple[FlowKey, int]]) -> Iterator[bytes]:
    """What the collecting program takes: :data:`FRAME_HEAD`, then ``struct am_condemned`` end to end.

    Each of those is 40 bytes of key and 8 of ``last_seen``.
    """
    batch: list[bytes] = []
    for key, last_seen in condemned:
        batch.append(key.pack() + last_seen.to_bytes(8, "little"))
        if len(batch) == MAX_CONDEMNED:
            yield FRAME_HEAD + b"".join(batch)
            batch.clear()
    if batch:
        yield FRAME_HEAD + b"".join(batch)
