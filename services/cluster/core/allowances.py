"""Token buckets: how much each speaker on the bus may say, so that one key's flood takes nothing from the others.

A speaker is known by the subject that its key grants. Pure: time is an argument, in seconds of any clock that does not
go back.
"""

from __future__ import annotations

from dataclasses import dataclass

Speaker = tuple[str, str]
"""Service, and node name for a service of each node."""


@dataclass(slots=True)
class _Allowance:
    left: float
    at: float


class Allowances:
    """``burst`` messages at once, ``per_second`` for long. Over ``most``, those with all left are forgotten."""

    def __init__(self, *, burst: float, per_second: float, most: int) -> None:
        self._burst = burst
        self._per_second = per_second
        self._most = most
        self._of: dict[Speaker, _Allowance] = {}

    def take(self, speaker: Speaker, now: float) -> bool:
        """Takes one from the speaker's allowance; False when nothing is left."""
        mine = self._of.get(speaker)
        if mine is None:
            if len(self._of) >= self._most:
                self._of = {one: left for one, left in self._of.items() if self._left(left, now) < self._burst}
            mine = self._of[speaker] = _Allowance(self._burst, now)
        mine.left, mine.at = self._left(mine, now), now
        if mine.left < 1:
            return False
        mine.left -= 1
        return True

    def _left(self, one: _Allowance, now: float) -> float:
        return min(self._burst, one.left + (now - one.at) * self._per_second)
