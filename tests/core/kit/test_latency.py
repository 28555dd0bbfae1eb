"""Quantiles of histograms whose buckets are powers of two."""

from __future__ import annotations

import pytest

from kit.latency import quantile, summed


@pytest.mark.parametrize(
    ("counts", "share", "bound"),
    [
        ((), 0.5, None),
        ((0, 0, 0), 0.99, None),
        ((1,), 0.5, 1),
        ((0, 0, 1), 0.5, 4),
        ((0, 0, 1), 0.0, 4),
        ((98, 0, 0, 1, 1), 0.5, 1),
        ((98, 0, 0, 1, 1), 0.98, 1),
        ((98, 0, 0, 1, 1), 0.99, 8),
        ((98, 0, 0, 1, 1), 1.0, 16),
    ],
)
def test_a_quantile_is_the_upper_bound_of_its_bucket(counts: tuple[int, ...], share: float, bound: int | None) -> None:
    assert quantile(counts, share) == bound


def test_histograms_are_added_bucket_by_bucket() -> None:
    assert summed([(1, 2), (), (10, 20, 30)]) == (11, 22, 30)
    assert summed([]) == ()
