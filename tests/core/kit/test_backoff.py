"""Back-off: grows, is capped, is spread."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.backoff import delay


@pytest.mark.parametrize(
    ("attempt", "chance", "seconds"),
    [(0, 0.0, 0.1), (0, 0.5, 0.15), (1, 0.0, 0.2), (4, 0.0, 1.6), (5, 0.0, 2.5), (1000, 0.0, 2.5)],
)
def test_table(attempt: int, chance: float, seconds: float) -> None:
    assert delay(attempt, chance) == pytest.approx(seconds)


@given(st.integers(0, 10**6), st.floats(0, 1, exclude_max=True), st.floats(0.001, 10), st.floats(0, 100))
def test_bounds(attempt: int, chance: float, first: float, more: float) -> None:
    longest = first + more
    wait = delay(attempt, chance, first=first, longest=longest)
    assert first / 2 <= wait <= longest


@pytest.mark.parametrize(("attempt", "chance"), [(-1, 0.5), (0, 1.0), (0, -0.1)])
def test_nonsense_is_refused(attempt: int, chance: float) -> None:
    with pytest.raises(ValueError, match="no back-off"):
        delay(attempt, chance)
