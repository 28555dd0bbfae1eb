"""The ratio of pairs and its interval: what tells whether traces cost an ADD more than they may."""

from __future__ import annotations

import random

import pytest

from bench.tracing import ratio


def noisy(cost: float, count: int, seed: int) -> list[tuple[float, float]]:
    """Pairs (without, with) that the machine's other work makes slower alike, and each by itself a little."""
    chosen = random.Random(seed)
    found = []
    for _ in range(count):
        shared = 2.0 * chosen.lognormvariate(0, 1.0)
        found.append((shared * chosen.lognormvariate(0, 0.1), shared * cost * chosen.lognormvariate(0, 0.1)))
    return found


def test_the_interval_holds_the_cost_as_often_as_it_says() -> None:
    within = 0
    for seed in range(300):
        found = ratio(noisy(1.03, 60, seed))
        within += found.least <= 1.03 <= found.most
    assert 0.92 <= within / 300 <= 0.99


def test_pairs_that_are_alike_have_their_ratio() -> None:
    found = ratio([(2.0, 2.1)] * 8)
    assert (found.least, found.median, found.most) == pytest.approx((1.05, 1.05, 1.05))
    assert str(found) == "+5.0% [+5.0%, +5.0%]"


def test_a_few_pairs_have_no_interval() -> None:
    with pytest.raises(ValueError, match="six pairs"):
        ratio([(1.0, 1.0)] * 5)
