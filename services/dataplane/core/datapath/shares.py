"""Shares of a full table among tenants: the newest of the largest tenant goes without.

Owns the rule by which tables with less room than is asked for are shared. With room for all nobody is limited. Without,
the group (a namespace, or a node) that asks for most of the scarce table gives first: its newest claim is refused
whole, in every table, until the rest fits; so what one group asks for is refused to that group, and one that asks for
less than its share keeps all. The answer depends on the claims and the room alone, never on who came when to this node:
the same on every node and after a restart. Pure; without pressure a change costs what it changes.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

RESERVE = 16
"""One of so many places stays empty, for entries that are written before those whose place they take are removed."""

Amounts = tuple[int, ...]
"""Entries of each table, in an order that is the caller's."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What one object asks for."""

    group: str
    """Whose it is: who gives first is decided among groups."""
    age: tuple[int, str]
    """Creation time and name: the greatest of a group is its newest."""
    amounts: Amounts


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a claim is refused."""

    table: int
    """Which of the tables has no room."""
    group: str
    asked: int
    """Entries of that table that the group asks for."""
    total: int
    """Entries that all ask for."""
    room: int


@dataclass(frozen=True, slots=True)
class Pressure:
    """How full a table is, for those who watch."""

    table: str
    asked: int
    """Entries that all ask for, also those that are refused."""
    room: int
    """Entries that it gives away now."""
    refused: Mapping[str, int]
    """Claims that are refused, by group."""


def usable(entries: int) -> int:
    """How many entries of a table are given away."""
    return entries - entries // RESERVE


def share(claims: Mapping[K, Claim], room: Sequence[int]) -> dict[K, Refused]:
    """The claims that are refused."""
    groups: dict[str, list[tuple[tuple[int, str], K, Claim]]] = defaultdict(list)
    for key, claim in claims.items():
        groups[claim.group].append((claim.age, key, claim))
    for members in groups.values():
        members.sort(key=lambda one: one[0])
    refused: dict[K, Refused] = {}
    for table, limit in enumerate(room):
        asked = {
            group: sum(claim.amounts[table] for _, key, claim in members if key not in refused)
            for group, members in groups.items()
        }
        left = total = sum(asked.values())
        if total <= limit:
            continue
        most = dict(asked)
        queue = [(-amount, group) for group, amount in asked.items() if amount]
        heapq.heapify(queue)
        oldest_first = {group: [one for one in groups[group] if one[2].amounts[table]] for _, group in queue}
        while left > limit:
            amount, group = heapq.heappop(queue)
            members = oldest_first[group]
            while members[-1][1] in refused:
                members.pop()
            _, key, claim = members.pop()
            refused[key] = Refused(table, group, most[group], total, limit)
            left -= claim.amounts[table]
            if -amount > claim.amounts[table]:
                heapq.heappush(queue, (amount + claim.amounts[table], group))
    return refused


def newest_of_the_largest(sizes: Mapping[str, int], newest_first: Callable[[str], Iterable[K]], short: int) -> list[K]:
    """So many members of groups of these sizes that give their places: each time the newest of who is largest then.
    For groups that are known by their sizes alone until they must give.
    """
    queue = [(-size, group) for group, size in sizes.items() if size]
    heapq.heapify(queue)
    members: dict[str, Iterator[K]] = {}
    givers: list[K] = []
    while queue and len(givers) < short:
        size, group = heapq.heappop(queue)
        giver = next(members.setdefault(group, iter(newest_first(group))), None)
        if giver is not None:
            givers.append(giver)
            heapq.heappush(queue, (size + 1, group))
    return givers


class Shares(Generic[K]):
    """Claims that change a few at a time, and their sums."""

    def __init__(self, tables: int) -> None:
        self.claims: dict[K, Claim] = {}
        self.total: list[int] = [0] * tables
        """Entries that all claims ask for."""
        self._known: tuple[Amounts, dict[K, Refused]] | None = None

    def put(self, claims: Iterable[tuple[K, Claim]]) -> None:
        """These claims are new, or others now."""
        for key, claim in claims:
            before = self.claims.get(key)
            if before == claim:
                continue
            self.claims[key] = claim
            self._known = None
            for table, amount in enumerate(claim.amounts):
                self.total[table] += amount - (before.amounts[table] if before else 0)

    def drop(self, keys: Iterable[K]) -> None:
        """These claims are gone."""
        for key in keys:
            claim = self.claims.pop(key, None)
            if claim is not None:
                self._known = None
                for table, amount in enumerate(claim.amounts):
                    self.total[table] -= amount

    def refused(self, room: Amounts) -> dict[K, Refused]:
        """The claims that are refused with this room; reckoned once while neither changes."""
        if all(total <= limit for total, limit in zip(self.total, room, strict=True)):
            return {}
        if self._known is None or self._known[0] != room:
            self._known = room, share(self.claims, room)
        return self._known[1]
