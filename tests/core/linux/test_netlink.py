"""Netlink messages as bytes: what is packed is read back, and no bytes break the reader."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linux.netlink import Message, attribute, first_attribute, number, pack, parse, parse_attributes, text

MESSAGES = st.builds(
    Message,
    kind=st.integers(16, 0xFFFF),
    flags=st.sampled_from([0, 0x100, 0x500, 0x600]),
    body=st.binary(max_size=40),
    what=st.just("a test"),
)


@given(st.lists(MESSAGES, min_size=1, max_size=8), st.integers(0, 2**31))
def test_what_is_packed_is_read_back(many: list[Message], first: int) -> None:
    read = list(parse(bytes(pack(many, first))))
    assert [(kind, body) for kind, _, _, body in read] == [(one.kind, one.body) for one in many]
    assert [sequence for _, _, sequence, _ in read] == [first + index for index in range(len(many))]


@given(st.lists(MESSAGES, min_size=1, max_size=8))
def test_the_last_one_alone_asks_for_an_answer(many: list[Message]) -> None:
    """A refusal is always answered, so the answer to the last one says that all are done."""
    asked = [flags & 0x4 for _, flags, _, _ in parse(bytes(pack(many, 1)))]
    assert asked == [0] * (len(many) - 1) + [0x4]


@given(st.binary(max_size=200))
def test_noise_is_no_message(noise: bytes) -> None:
    for *_, body in parse(noise):
        assert len(body) <= len(noise) - 16
    for value in parse_attributes(noise).values():
        assert len(value) <= len(noise) - 4
    first_attribute(noise, 3)


@pytest.mark.parametrize("length", [0, 4, 15, 17, 4096])
def test_a_message_of_a_length_that_cannot_be_ends_the_reading(length: int) -> None:
    assert list(parse(struct.pack("<IHHII", length, 16, 0, 1, 0))) == []


@given(st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=20), max_size=6))
def test_attributes_are_read_back(wanted: dict[int, bytes]) -> None:
    raw = b"".join(attribute(kind, value) for kind, value in wanted.items())
    assert len(raw) % 4 == 0
    assert parse_attributes(raw) == wanted
    for kind, value in wanted.items():
        assert first_attribute(raw, kind) == value


def test_the_bytes_of_attributes_are_those_of_the_kernel_headers() -> None:
    assert text(3, "eth0") == struct.pack("<HH", 9, 3) + b"eth0\0" + bytes(3)
    assert number(4, 1500) == struct.pack("<HHI", 8, 4, 1500)
