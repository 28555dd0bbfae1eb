"""Leases of leader election: the active copy (value of ``leases.<service>[.<shard>]`` and ``leases.node.<node>``).

Fenced by ``epoch``; judged by the *observer's* monotonic clock from when the record last changed, never by wall clocks.
"""

from __future__ import annotations

import msgspec


class Lease(msgspec.Struct, frozen=True):
    """A holder renews by writing the record again with ``renewals`` + 1."""

    holder: str
    epoch: int
    """Greater at each change of holder; at least milliseconds since 1970: a lost store does not set it back."""
    renewals: int
    seconds: float
    """After this long without a change anyone may take it."""
