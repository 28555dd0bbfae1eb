"""bpf(2) on a real kernel: what each call of it gives back is what was put in."""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Iterator

import pytest

from linux import bpf

pytestmark = pytest.mark.privileged
HASH, PER_CPU_ARRAY = 1, 6


@pytest.fixture
def table() -> Iterator[int]:
    fd = bpf.map_create(HASH, 4, 8, 64, name="am_table")
    yield fd
    os.close(fd)


def test_a_map_is_what_it_was_made_as(table: int) -> None:
    info = bpf.map_info(table)
    assert (info.kind, info.key_size, info.value_size, info.entries, info.name) == (HASH, 4, 8, 64, "am_table")


def test_entries_one_by_one(table: int) -> None:
    assert bpf.lookup(table, b"key1", 8) is None
    bpf.update(table, b"key1", b"value of")
    assert bpf.lookup(table, b"key1", 8) == b"value of"
    assert bpf.delete(table, b"key1") is True
    assert bpf.delete(table, b"key1") is False


def test_entries_in_batches(table: int) -> None:
    keys, values = struct.pack("<64I", *range(64)), struct.pack("<64Q", *range(64))
    assert bpf.update_batch(table, keys, values, 64) == ()
    found: dict[int, int] = {}
    for count, k, v in bpf.lookup_batch(table, 4, 8, chunk=16):
        found.update(zip(struct.unpack(f"<{count}I", k), struct.unpack(f"<{count}Q", v), strict=True))
    assert found == {number: number for number in range(64)}
    assert bpf.delete_batch(table, struct.pack("<4I", 1, 1000, 2, 3), 4) == 3, "one that is not there is passed over"


def test_what_finds_no_room_is_named(table: int) -> None:
    keys, values = struct.pack("<70I", *range(70)), bytes(8 * 70)
    refused = bpf.update_batch(table, keys, values, 70)
    assert len(refused) >= 1
    held = sum(count for count, _, _ in bpf.lookup_batch(table, 4, 8))
    assert held + len(refused) == 70


def test_a_per_cpu_entry_has_a_value_for_each_possible_processor() -> None:
    fd = bpf.map_create(PER_CPU_ARRAY, 4, 12, 2)
    count = bpf.processors()
    try:
        each = b"".join(struct.pack("<III4x", number, number, 7) for number in range(count))
        bpf.update(fd, bytes(4), each)
        assert bpf.lookup_per_cpu(fd, bytes(4), 12) == each
        assert bpf.lookup_per_cpu(fd, struct.pack("<I", 1), 12) == bytes(16 * count)
        assert bpf.lookup_per_cpu(fd, struct.pack("<I", 2), 12) is None
    finally:
        os.close(fd)


def test_an_object_is_known_by_its_id_as_long_as_anything_holds_it() -> None:
    fd = bpf.map_create(HASH, 4, 4, 1)
    kind, number = bpf.identify(fd)
    assert (kind, number) == ("map", bpf.map_info(fd).id)
    assert bpf.exists(kind, number)
    os.close(fd)
    deadline = time.monotonic() + 5
    while bpf.exists(kind, number) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not bpf.exists(kind, number)


def test_a_program_is_distinguished_from_a_map() -> None:
    leave = struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)  # r0 = 0; exit
    fd = bpf.program_load(bpf.ProgramKind.SCHED_CLS, leave, name="am_leave")
    try:
        assert bpf.identify(fd) == ("prog", bpf.program_info(fd).id)
        assert bpf.run_on(fd, bytes(64)).value == 0
    finally:
        os.close(fd)


def test_a_refused_program_comes_with_what_the_verifier_said() -> None:
    with pytest.raises(bpf.BpfError) as refused:
        bpf.program_load(bpf.ProgramKind.SCHED_CLS, struct.pack("<BBhi", 0x95, 0, 0, 0))  # exit without a value
    assert refused.value.errno in (errno.EACCES, errno.EINVAL)
    assert "R0" in refused.value.log
