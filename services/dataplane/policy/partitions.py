"""Keeps ``am_cidrs``: each namespace's CIDR partition comes into force when the rules that name its numbers are there.

What the map holds is known here, so that a change costs what its namespace has; it is read once, when the agent starts.
The map grows before it is full. A partition that it has no room for all the same is out whole: the ipBlocks of that
namespace, the largest, allow nothing here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping

from proto.policy import CidrPartition, Revision
from services.dataplane.core.datapath.maps import CIDRS
from services.dataplane.core.datapath.policy_layout import (
    CidrKey,
    CidrNumber,
)
from services.dataplane.core.policy.cidr_maps import CidrEntries, cidr_change, cidrs_of, fitting, namespace_hash
from services.dataplane.datapath.tables import Tables
from services.dataplane.feed import Feed

COPIES = 2
"""Entries that a prefix needs: what is new is set before what is old goes."""
SLICE = 1000


class Partitions:
    """Partitions of all namespaces on one node. Blocking calls of milliseconds for each namespace that changes."""

    def __init__(
        self, tables: Tables, feed: Feed, make_room: Callable[[Mapping[str, int]], Awaitable[None]], most: int = 1 << 30
    ) -> None:
        """``make_room`` is asked before more is written than the map takes; ``most``: prefixes taken at most."""
        self._tables = tables
        self._feed = feed
        self._make_room = make_room
        self._most = most
        self._in_force: dict[str, CidrPartition] = {}
        self._refused: frozenset[str] = frozenset()
        self.asked = 0
        """Entries that all partitions ask for."""
        self._held: dict[bytes, CidrEntries] | None = None
        """What the map holds, by hash of the namespace; None while that is unknown."""

    async def put(self, reached: Revision | None) -> int:
        """Bring into force what the rules up to ``reached`` are there for; returns how many entries changed."""
        told, known = self._feed.partitions(), self._feed.rules_view.synced
        wanted = {name: own for name, own in self._in_force.items() if name in told or not known}
        if reached is not None:
            wanted |= {name: own for name, own in told.items() if reached.covers(own.revision)}
        self.asked = COPIES * sum(len(one.prefixes) for one in wanted.values())
        await self._make_room({CIDRS.name: self.asked})
        held = await self._adopted() if self._held is None else self._held
        self._held = None  # unknown until every step has succeeded
        taken = fitting(wanted, self.room)
        refused = wanted.keys() - taken
        changed = 0
        for name in sorted(wanted, key=lambda name: name in taken):
            as_before = self._in_force.get(name) is wanted[name] and (name in refused) == (name in self._refused)
            if not as_before:
                entries = cidrs_of(wanted[name]) if name in taken else {}
                changed += await self._change(held, namespace_hash(name), entries)
        if known:
            mine = {namespace_hash(name) for name in told}
            for whose in [one for one in held if one not in mine]:
                changed += await self._change(held, whose, {})
        self._held, self._in_force, self._refused = held, wanted, frozenset(refused)
        return changed

    async def _adopted(self) -> dict[bytes, CidrEntries]:
        held: dict[bytes, CidrEntries] = {}
        for entries in self._tables.cidrs.parts(SLICE):
            for key, number in entries.items():
                held.setdefault(key.namespace, {})[key] = number
            await asyncio.sleep(0)
        self._in_force = {}
        return held

    async def _change(self, held: dict[bytes, CidrEntries], whose: bytes, entries: CidrEntries) -> int:
        steps = cidr_change(held.get(whose, {}), entries)
        self._tables.cidrs.apply(steps.upserts, steps.deletes)
        held.pop(whose, None)
        if entries:
            held[whose] = entries
        await asyncio.sleep(0)
        return len(steps)

    @property
    def room(self) -> int:
        """Prefixes that the map has room for now."""
        return min(self._tables.cidrs.entries // COPIES, self._most)

    def without(self) -> dict[str, int]:
        """Namespaces whose partitions have no room, and how many prefixes they have."""
        return {name: len(self._in_force[name].prefixes) for name in self._refused if name in self._in_force}

    def __len__(self) -> int:
        """How many entries the map should hold; 0 while that is unknown."""
        return sum(map(len, (self._held or {}).values()))

    @property
    def known(self) -> bool:
        """Whether it is known what the map should hold."""
        return self._held is not None

    def entry(self, key: CidrKey) -> CidrNumber | None:
        """What the map should say under this key."""
        return (self._held or {}).get(key.namespace, {}).get(key)

    def entries(self) -> Iterator[CidrEntries]:
        """What the map should hold, a namespace each."""
        yield from list((self._held or {}).values())
