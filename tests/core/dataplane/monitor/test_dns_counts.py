"""What a pod's DNS record says: counters, queries that wait, samples that are whole."""

from __future__ import annotations

import struct
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dataplane.core.datapath.dns_layout import DNS_SAMPLES, DNS_TIMEOUT, DnsOutcome, DnsPod
from services.dataplane.core.monitor.dns_counts import Counts, new_samples, read_counts
from tests.core.dataplane.monitor.dns_records import SECOND, Said, record

NOW = 100 * SECOND


@pytest.mark.parametrize(
    ("asked", "timeouts"),
    [
        ((), 2),
        ((NOW - DNS_TIMEOUT + 1,), 2),
        ((NOW - DNS_TIMEOUT,), 3),
        ((NOW - 60 * SECOND, NOW - 6 * SECOND, NOW, NOW + SECOND), 4),
    ],
)
def test_who_waits_for_five_seconds_has_timed_out(asked: tuple[int, ...], timeouts: int) -> None:
    assert read_counts(record(asked=asked, timeouts=2), NOW).timeouts == timeouts


def test_counts_are_added_and_compared_field_by_field() -> None:
    some = read_counts(record([Said("a")], queries=5, tcp_queries=1, retries=2, late=3, displaced=4), NOW)
    more = read_counts(record([Said("a"), Said("b", DnsOutcome.NXDOMAIN)], queries=9, unmatched=6, unread=7), NOW)
    assert (some + more).since(some) == more
    assert (some + more).since(more) == some
    assert some + Counts() == some
    assert (some + more).queries == 14


def test_only_new_samples_are_read_and_in_their_order() -> None:
    said = [Said(f"n{number}.example") for number in range(10)]
    whole = record(said)
    assert [one.labels[0] for one in new_samples(whole, 0)] == [f"n{number}" for number in range(10)]
    assert [one.labels[0] for one in new_samples(whole, 7)] == ["n7", "n8", "n9"]
    assert new_samples(whole, 10) == []


def test_of_more_than_a_ring_holds_the_last_are_read() -> None:
    said = [Said(f"n{number}.example") for number in range(DNS_SAMPLES + 5)]
    assert [one.labels[0] for one in new_samples(record(said), 2)] == [
        f"n{number}" for number in range(5, DNS_SAMPLES + 5)
    ]


def test_a_sample_that_is_being_written_is_left_out() -> None:
    whole = record([Said("a.example"), Said("b.example")])
    torn = bytearray(whole.samples)
    torn[128:132] = bytes(4)  # the first has number 1
    assert [one.labels for one in new_samples(DnsPod(samples=bytes(torn), sampled=2), 0)] == [("b", "example")]


@pytest.mark.parametrize(
    ("name", "labels", "is_whole"),
    [
        (b"\3WwW\7eXample\0", ("www", "example"), True),
        (b"\0", (), True),
        (b"\3a.b\3\\\x01\xff\0", ("a\\.b", "\\\\\\001\\255"), True),
        (b"\3abc\x3f" + b"x" * 63 + b"\x3f" + b"x" * 44, ("abc", "x" * 63), False),
        (b"\1a\xc0\x0c\0", ("a",), False),
        (b"\5ab\0", (), False),
    ],
)
def test_a_name_is_read_as_it_is_on_the_wire(name: bytes, labels: tuple[str, ...], is_whole: bool) -> None:
    (one,) = new_samples(record([Said(name)]), 0)
    assert (one.labels, one.is_whole) == (labels, is_whole)


@given(st.integers(0, 2**32), st.integers(0, DNS_SAMPLES * 2))
def test_whatever_a_program_left_is_read(seed: int, number: int) -> None:
    """Names of all bytes, numbers that fit."""
    random = Random(seed)
    samples = b"".join(
        struct.pack("<IIIHH", first, random.randrange(1, 113), random.randrange(12), 0, 0) + random.randbytes(112)
        for first in (0, *range(max(1, number - 30), number + 1), *range(DNS_SAMPLES))
    )
    whole = DnsPod(samples=samples[: 128 * DNS_SAMPLES], cells=random.randbytes(2048), sampled=number)
    assert read_counts(whole, NOW).queries == 0
    for one in new_samples(whole, 0):
        assert all(label and label.isprintable() and label == label.lower() for label in one.labels)
