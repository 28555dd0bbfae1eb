"""What of bpf(2) needs no kernel to be proved."""

from __future__ import annotations

import pytest

from linux.bpf import count_listed


@pytest.mark.parametrize(
    ("listed", "count"),
    [("0\n", 1), ("0-1\n", 2), ("0-127\n", 128), ("0-3,8-11\n", 8), ("0,2,4-5\n", 4)],
)
def test_processors_are_counted_not_numbered(listed: str, count: int) -> None:
    """A per-CPU map has a value for each possible processor; their numbers may have gaps."""
    assert count_listed(listed) == count
