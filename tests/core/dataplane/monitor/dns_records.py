"""A pod's DNS record by hand: as the programs would have left it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.dataplane.core.datapath.dns_layout import DNS_BUCKETS, DNS_OUTCOMES, DNS_SAMPLES, DnsOutcome, DnsPod

SECOND = 1_000_000_000


def wire(name: str) -> bytes:
    """A name as on the wire (RFC 1035 3.1)."""
    labels = [label.encode() for label in name.split(".") if label]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


@dataclass(frozen=True, slots=True)
class Said:
    """One sample."""

    name: str | bytes
    outcome: DnsOutcome = DnsOutcome.USEFUL


def sampled(said: Sequence[Said], first: int = 1) -> bytes:
    """The ring with these samples, numbered from ``first``."""
    room = bytearray(128 * DNS_SAMPLES)
    for number, one in enumerate(said, first):
        name = wire(one.name) if isinstance(one.name, str) else one.name
        packed = struct.pack("<IIIHH112s", number, min(len(name), 112), one.outcome, 0, 0, name[:112])
        room[number % DNS_SAMPLES * 128 : number % DNS_SAMPLES * 128 + 128] = packed
    return bytes(room)


def record(said: Sequence[Said] = (), *, first: int = 1, asked: Sequence[int] = (), **counts: Any) -> DnsPod:
    """A record with these samples and cells, and counters by name; answers are counted as the samples say."""
    answers = [0] * (DNS_OUTCOMES * DNS_BUCKETS)
    for one in said:
        if one.outcome is not DnsOutcome.RETRIED:
            answers[one.outcome * DNS_BUCKETS] += 1
    cells = b"".join(struct.pack("<QQ", 1, moment) for moment in asked)
    counted = DnsPod(
        answers=tuple(answers),
        cells=cells + bytes(2048 - len(cells)),
        samples=sampled(said, first),
        sampled=first - 1 + len(said),
    )
    return replace(counted, **counts)
