"""How long to wait before trying again: exponential, capped, spread by a random number that is an argument."""

from __future__ import annotations


def delay(attempt: int, chance: float, *, first: float = 0.2, longest: float = 5.0) -> float:
    """Seconds to wait after the ``attempt``-th failure (counted from 0).

    ``chance`` is uniform in [0, 1). The wait is between half of and the whole of ``first`` × 2^attempt, and never more
    than ``longest``: many that failed together come back spread out, none at once.
    """
    if attempt < 0 or not 0.0 <= chance < 1.0 or first <= 0 or longest < first:
        raise ValueError(f"no back-off for attempt {attempt}, chance {chance}, first {first}, longest {longest}")
    whole = min(longest, first * 2.0 ** min(attempt, 64))
    return whole * (0.5 + chance / 2)
