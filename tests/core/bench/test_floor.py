"""The constant headers of the floor's programs, completed as they complete them, are what the field's standards say."""

from __future__ import annotations

import struct

import pytest

from bench.models.floor import OVERHEAD, outer


def completed(head: bytes, word_sum: int, length: int) -> bytes:
    """As ``floor.c`` does it."""
    total = struct.unpack("=H", struct.pack(">H", length))[0]
    sum_ = word_sum + total
    sum_ = (sum_ & 0xFFFF) + (sum_ >> 16)
    check = ~((sum_ & 0xFFFF) + (sum_ >> 16)) & 0xFFFF
    return head[:2] + struct.pack("=H", total) + head[4:10] + struct.pack("=H", check) + head[12:]


@pytest.mark.parametrize("model", ["vxlan", "ipip"])
@pytest.mark.parametrize("length", [60, 1500, 0xFFFF])
def test_the_checksum_is_right_for_every_length(model: str, length: int) -> None:
    head, macros = outer(model, 5, 6)
    assert len(head) == OVERHEAD[model]
    words = struct.unpack(">10H", completed(head, int(str(macros["SUM"]).rstrip("u")), length)[:20])
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF
    assert words[1] == length


def test_what_stands_behind_the_outer_header() -> None:
    head, macros = outer("vxlan", 5, 6)
    assert head[9] == 17
    assert (head[12:16], head[16:20]) == (bytes([172, 30, 0, 105]), bytes([172, 30, 0, 106]))
    assert struct.unpack(">HHHHII", head[20:36]) == (40000, 4789, 0, 0, 0x08000000, 0x100)
    assert head[48:] == bytes.fromhex("0800")
    assert "IS_VXLAN" in macros
    assert outer("ipip", 5, 6)[0][9] == 4
    assert outer("host-gw", 5, 6) == (b"", {})
