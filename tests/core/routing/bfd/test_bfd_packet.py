"""Control packets: bytes there and back, every check of RFC 5880 6.8.6 in its order, and 50,000 packets of noise."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.routing.core.bfd.packet import ControlPacket, Diagnostic, Discard, State, read_packet, write_packet

WORDS = st.integers(0, 2**32 - 1)
PACKETS = st.builds(
    ControlPacket,
    state=st.sampled_from(State),
    diagnostic=st.integers(0, 31),
    poll=st.booleans(),
    final=st.booleans(),
    independent=st.booleans(),
    demand=st.booleans(),
    multiplier=st.integers(1, 255),
    my_discriminator=st.integers(1, 2**32 - 1),
    your_discriminator=WORDS,
    transmit_us=WORDS,
    receive_us=WORDS,
    echo_us=WORDS,
)
UP = bytes.fromhex("20 c8 03 18 00000001 00000002 0000c350 0000c350 00000000")


@given(PACKETS)
def test_what_is_written_is_read(packet: ControlPacket) -> None:
    assert read_packet(write_packet(packet)) == packet


def test_the_octets_of_rfc_5880() -> None:
    """Version 1, Up, C, multiplier 3, 50 ms both ways."""
    packet = ControlPacket(
        state=State.UP,
        independent=True,
        multiplier=3,
        my_discriminator=1,
        your_discriminator=2,
        transmit_us=50_000,
        receive_us=50_000,
    )
    assert write_packet(packet) == UP
    alone = replace(packet, independent=False)
    assert write_packet(replace(alone, poll=True))[1] == 0xE0
    assert write_packet(replace(alone, final=True))[1] == 0xD0
    assert write_packet(replace(alone, demand=True))[1] == 0xC2
    expired = write_packet(replace(packet, state=State.DOWN, diagnostic=Diagnostic.TIME_EXPIRED, independent=False))
    assert expired[:2] == bytes((0x21, 0x40))


CHECKS = (
    # what is wrong         octet  value  discarded for
    ("version 0", 0, 0x00, Discard.VERSION),
    ("version 2", 0, 0x40, Discard.VERSION),
    ("length 23", 3, 23, Discard.LENGTH),
    ("length 0", 3, 0, Discard.LENGTH),
    ("length 25 with A", 1, 0xC4, Discard.LENGTH),
    ("length beyond the payload", 3, 25, Discard.TRUNCATED),
    ("multiplier 0", 2, 0, Discard.MULTIPLIER),
    ("multipoint", 1, 0xC1, Discard.MULTIPOINT),
    ("own discriminator 0", 7, 0, Discard.MY_DISCRIMINATOR),
)
ORDER = list(dict.fromkeys(reason for _, _, _, reason in CHECKS))


@pytest.mark.parametrize(("octet", "value", "reason"), [row[1:] for row in CHECKS], ids=[row[0] for row in CHECKS])
def test_each_check(octet: int, value: int, reason: Discard) -> None:
    wrong = bytearray(UP)
    wrong[octet] = value
    assert read_packet(bytes(wrong)) is reason


def test_the_first_check_that_fails_is_the_reason() -> None:
    """All mistakes at once, then one after the other put right."""
    wrong = bytearray.fromhex("00 c1 00 17 00000000 00000000 00000000 00000000 00000000")
    right = ((0, 0x20), (3, 0xFF), (3, 0x18), (2, 3), (1, 0xC0), (7, 1))
    found = [read_packet(bytes(wrong))]
    for octet, value in right:
        wrong[octet] = value
        found.append(read_packet(bytes(wrong)))
    assert found[:-1] == ORDER
    assert isinstance(found[-1], ControlPacket)


@pytest.mark.parametrize("length", range(24))
def test_a_payload_that_is_cut(length: int) -> None:
    assert read_packet(UP[:length]) is (Discard.TRUNCATED if length else Discard.VERSION)


def test_what_follows_the_packet_is_not_looked_at() -> None:
    assert read_packet(UP + b"\xff" * 40) == read_packet(UP)


def test_an_authenticated_packet_is_read_and_marked() -> None:
    said = read_packet(UP[:1] + b"\xc4" + UP[2:3] + b"\x1c" + UP[4:] + b"\x01\x04\x01x")
    assert isinstance(said, ControlPacket)
    assert said.authenticated


def test_50_000_packets_of_noise_are_read_or_discarded() -> None:
    """Whatever is read is written and read the same again; every reason comes up."""
    dice = random.Random(5880)
    reasons = set()
    read = 0
    for _ in range(50_000):
        octets = bytearray(UP + dice.randbytes(dice.choice((0, 0, 2, 60))))
        for _ in range(dice.randrange(4)):
            octets[dice.randrange(8)] = dice.choice((0, 1, 23, 24, 26, 255, dice.randrange(256)))
        octets = octets[: dice.choice((len(octets), len(octets), dice.randrange(len(octets) + 1)))]
        if dice.random() < 0.1:
            octets = bytearray(dice.randbytes(dice.randrange(64)))
        found = read_packet(bytes(octets))
        if isinstance(found, Discard):
            reasons.add(found)
        else:
            read += 1
            assert read_packet(write_packet(found)) == replace(found, authenticated=False)
    assert reasons == set(ORDER)
    assert read > 5_000
