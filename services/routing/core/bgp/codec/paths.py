"""AS paths as bytes (RFC 4271 4.3, RFC 5065), with numbers of two or four octets and the joining of both (RFC 6793)."""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct

from services.routing.core.bgp.codec.errors import Malformed, UpdateError
from services.routing.core.bgp.values import AS_TRANS, Segment, SegmentKind

KINDS = {int(kind): kind for kind in SegmentKind}
CONFEDERATION = (SegmentKind.CONFED_SEQUENCE, SegmentKind.CONFED_SET)
EXTERNAL_KINDS = {int(kind): kind for kind in SegmentKind if kind not in CONFEDERATION}
"""Segments that a peer outside of the confederation may send (RFC 5065 5)."""
LONGEST_SEGMENT = 255
NUMBERS = {
    width: tuple(Struct(f">{count}{letter}").unpack_from for count in range(LONGEST_SEGMENT + 1))
    for width, letter in ((2, "H"), (4, "I"))
}
"""By octets of a number and count of numbers: what reads them."""


def _malformed(reason: str) -> Malformed:
    return Malformed(UpdateError.MALFORMED_AS_PATH, reason)


def read_path(value: bytes, width: int, kinds: Mapping[int, SegmentKind]) -> tuple[Segment, ...]:
    """Read an AS path of such segments, numbers in ``width`` octets. Raises ``Malformed`` (RFC 7606 7.2, RFC 7607)."""
    segments: list[Segment] = []
    at, stop = 0, len(value)
    while at < stop:
        if stop - at < 2:
            raise _malformed("AS_PATH ends within a segment")
        kind, count = kinds.get(value[at]), value[at + 1]
        end = at + 2 + count * width
        if kind is None:
            raise _malformed(f"AS_PATH has a segment of type {value[at]}")
        if count == 0:
            raise _malformed("AS_PATH has a segment without numbers")
        if end > stop:
            raise _malformed("a segment of AS_PATH is longer than the attribute")
        numbers: tuple[int, ...] = NUMBERS[width][count](value, at + 2)
        if 0 in numbers:
            raise _malformed("AS_PATH has the number 0")
        segments.append(Segment(kind, numbers))
        at = end
    return tuple(segments)


def write_path(segments: tuple[Segment, ...], width: int) -> bytes:
    """Write an AS path; AS_TRANS stands for what ``width`` octets do not hold, and long segments are cut in pieces."""
    most = (1 << 8 * width) - 1
    parts: list[bytes] = []
    for segment in segments:
        for begun in range(0, len(segment.numbers), LONGEST_SEGMENT):
            numbers = segment.numbers[begun : begun + LONGEST_SEGMENT]
            parts.append(bytes((segment.kind, len(numbers))))
            parts += [(one if one <= most else AS_TRANS).to_bytes(width) for one in numbers]
    return b"".join(parts)


def without_confederation(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """What goes into AS4_PATH, or counts of it (RFC 6793 3 and 6)."""
    return tuple(one for one in segments if one.kind not in CONFEDERATION)


def needs_four_octets(segments: tuple[Segment, ...]) -> bool:
    """A number of the path does not fit into two octets."""
    return any(one > 0xFFFF for segment in segments for one in segment.numbers)


def _count(segment: Segment) -> int:
    """Of a segment's numbers, how many count as hops (RFC 4271 9.1.2.2, RFC 5065 5.3)."""
    if segment.kind in CONFEDERATION:
        return 0
    return 1 if segment.kind is SegmentKind.SET else len(segment.numbers)


def joined(path: tuple[Segment, ...], path4: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """AS_PATH and AS4_PATH as one: as long as the first, with the second at its end (RFC 6793 4.2.3).

    An AS4_PATH that is longer is not of this route and does not count.
    """
    path4 = without_confederation(path4)
    leading = sum(map(_count, path)) - sum(map(_count, path4))
    if leading < 0 or not path4:
        return path
    result: list[Segment] = []
    for segment in path:
        counted = _count(segment)
        if leading == 0 and counted:
            break
        if counted > leading:
            result.append(Segment(segment.kind, segment.numbers[:leading]))
            break
        result.append(segment)
        leading -= counted
    if result and result[-1].kind is path4[0].kind is SegmentKind.SEQUENCE:
        numbers = result[-1].numbers + path4[0].numbers
        if len(numbers) <= LONGEST_SEGMENT:
            return (*result[:-1], Segment(SegmentKind.SEQUENCE, numbers), *path4[1:])
    return (*result, *path4)
