"""How journal records lie in a file: frames, and what to make of one that is not whole.

A frame is one commit: ``magic 2 | format 2 | length 4 | number 8 | crc32 4 | payload``, little endian; the CRC covers
everything before it and the payload, which is a MessagePack array of records. The number counts frames from 0 in each
file, so that a frame lost from the middle is noticed. One commit is one frame, and the next is written only after the
one before is durable: so after a power cut at most the last frame is broken, and a broken one that a whole one follows
is not a torn tail but damage, which :func:`read_frames` refuses to guess about.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from zlib import crc32

import msgspec

from proto.net import from_wire, to_wire
from services.dataplane.core.ipam.journal_records import Record

MAGIC = b"AJ"
FORMAT = 1
MAX_FRAME = 4 << 20
"""Longest payload in bytes."""

_HEAD = struct.Struct("<2sHIQ")
_CRC = struct.Struct("<I")
OVERHEAD = _HEAD.size + _CRC.size

_encoder = msgspec.msgpack.Encoder(enc_hook=to_wire)
_decoder = msgspec.msgpack.Decoder(list[Record], dec_hook=from_wire)


class Damaged(ValueError):
    """Neither whole frames nor a torn tail: ``offset`` is where damage begins, ``records`` what stood before it."""

    def __init__(self, offset: int, records: list[Record], why: str) -> None:
        super().__init__(f"{why} at byte {offset}")
        self.offset = offset
        self.records = records


def write_frame(number: int, records: Sequence[Record]) -> bytes:
    """One commit as bytes; raises ValueError when it is larger than :data:`MAX_FRAME`."""
    payload = _encoder.encode(list(records))
    if len(payload) > MAX_FRAME:
        raise ValueError(f"a commit of {len(payload)} bytes is larger than {MAX_FRAME}")
    head = _HEAD.pack(MAGIC, FORMAT, len(payload), number)
    return head + _CRC.pack(crc32(payload, crc32(head))) + payload


def read_frames(content: bytes) -> tuple[list[Record], int, int]:
    """Records of a file, bytes that are whole frames, and the number of the next frame.

    What lies after the whole frames is a torn tail, to be cut off. Raises :class:`Damaged`.
    """
    records: list[Record] = []
    offset = number = 0
    while offset < len(content):
        frame = _frame_at(content, offset)
        if frame is None:
            if _whole_frame_after(content, offset + 1):
                raise Damaged(offset, records, "a broken frame with whole ones after it")
            break
        found, payload = frame
        if found != number:
            raise Damaged(offset, records, f"frame {found} where {number} was to come")
        try:
            records += _decoder.decode(payload)
        except (msgspec.DecodeError, ValueError) as error:
            raise Damaged(offset, records, f"a frame of another release ({error})") from error
        offset += OVERHEAD + len(payload)
        number += 1
    return records, offset, number


def _frame_at(content: bytes, offset: int) -> tuple[int, bytes] | None:
    end = offset + OVERHEAD
    if end > len(content):
        return None
    magic, form, length, number = _HEAD.unpack_from(content, offset)
    if magic != MAGIC or form != FORMAT or length > MAX_FRAME or end + length > len(content):
        return None
    payload = content[end : end + length]
    head = content[offset : offset + _HEAD.size]
    if crc32(payload, crc32(head)) != _CRC.unpack_from(content, offset + _HEAD.size)[0]:
        return None
    return number, payload


def _whole_frame_after(content: bytes, start: int) -> bool:
    offset = content.find(MAGIC, start)
    while offset >= 0:
        if _frame_at(content, offset) is not None:
            return True
        offset = content.find(MAGIC, offset + 1)
    return False
