"""Who had which address and when, told by what a runtime asked and heard. It shares no code with the product.

A holder is one interface of one container. It surely has an address from the moment an ADD's success was heard until
the first moment at which the runtime gave it back: it began a DEL, destroyed the container's network namespace, or
began a GC that no longer lists the container. Both ends lie inside the true interval, so whatever is found wrong here
is wrong. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise

FOREVER = float("inf")


@dataclass(slots=True)
class Hold:
    """One holder has one address."""

    address: str
    holder: str
    owner: str
    """The workload that keeps its address; empty for one that does not."""
    since: float
    until: float = FOREVER

    def __str__(self) -> str:
        return f"{self.holder} [{self.since:.3f}, {self.until:.3f}]"


@dataclass(slots=True)
class Ledger:
    """Written while a drill runs, judged at its end."""

    holds: list[Hold] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    _now: dict[str, list[Hold]] = field(default_factory=dict)

    def given(self, at: float, holder: str, addresses: list[str], owner: str = "") -> None:
        """An ADD's success was heard. Heard once more for the same holder, it must say the same."""
        if not addresses or len({":" in address for address in addresses}) != len(addresses):
            self.odd.append(f"{holder} was given {addresses}: not one of each family")
        held = self._now.get(holder)
        if held is None:
            self._now[holder] = [Hold(address, holder, owner, at) for address in addresses]
            self.holds += self._now[holder]
        elif sorted(hold.address for hold in held) != sorted(addresses):
            before = [hold.address for hold in held]
            self.odd.append(f"{holder} had {before} and was told {addresses} by the same ADD said again")

    def given_back(self, at: float, holder: str) -> None:
        """The runtime begins to give back what the holder has, if it has anything."""
        for hold in self._now.pop(holder, []):
            hold.until = at

    @property
    def holders(self) -> set[str]:
        """Those who surely have an address now."""
        return set(self._now)

    def held_twice(self) -> list[str]:
        """Moments at which an address surely had two holders."""
        return [
            f"{address}: {earlier} and {later}"
            for address, holds in self._by_address().items()
            for index, earlier in enumerate(holds)
            for later in holds[index + 1 :]
            if later.since < earlier.until
        ]

    def too_soon(self, rest: float) -> list[str]:
        """Addresses that went to somebody else before they had rested."""
        return [
            f"{address}: {later} only {later.since - earlier.until:.3f} s after {earlier}"
            for address, holds in self._by_address().items()
            for earlier, later in pairwise(holds)
            if later.since - earlier.until < rest and not (earlier.owner and earlier.owner == later.owner)
        ]

    def moved(self) -> list[str]:
        """Owners that did not find their address again."""
        kept: dict[tuple[str, bool], set[str]] = defaultdict(set)
        for hold in self.holds:
            if hold.owner:
                kept[hold.owner, ":" in hold.address].add(hold.address)
        return [f"{owner} had {sorted(had)}" for (owner, _), had in kept.items() if len(had) > 1]

    def reused(self) -> int:
        """How often an address went on to another holder: a drill without this proves nothing."""
        return sum(len({hold.holder for hold in holds}) - 1 for holds in self._by_address().values())

    def _by_address(self) -> dict[str, list[Hold]]:
        found: dict[str, list[Hold]] = defaultdict(list)
        for hold in sorted(self.holds, key=lambda hold: hold.since):
            found[hold.address].append(hold)
        return found
