"""Quantiles of a histogram whose buckets are powers of two, as programs in the kernel count latencies.

Bucket 0 counts what is below the unit, bucket n what is from ``2**(n - 1)`` to ``2**n`` of it. A quantile is known as
its bucket's upper bound alone, so it is at most twice what it was. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def quantile(counts: Sequence[int], share: float) -> int | None:
    """Upper bound, in units, of the bucket that holds the quantile; None when nothing was counted."""
    wanted, seen = sum(counts) * share, 0
    for bucket, count in enumerate(counts):
        seen += count
        if count and seen >= wanted:
            return 1 << bucket
    return None


def summed(histograms: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """The histogram of all together; a shorter one counts nothing in the buckets that it lacks."""
    total: list[int] = []
    for counts in histograms:
        total += [0] * (len(counts) - len(total))
        for bucket, count in enumerate(counts):
            total[bucket] += count
    return tuple(total)
