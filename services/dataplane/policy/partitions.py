"""Keeps ``am_cidrs``: each namespace's CIDR partition comes into force when the rules that name its numbers are there.

What the map holds is known here, so that a change costs what its namespace has; it is read once, when the agent starts.
The map grows before it is full. A partition that it has no room for all the same is out whole: the ipBlocks of that
namespace, the largest, allow nothing here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping

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
        self._waiting: set[str] = set()
        """Namespaces whose partition is to be judged again: its rules are not there yet, or the view is not in sync."""
        self._foreign: frozenset[bytes] = frozenset()
        """Hashes of namespaces that were in the map when it was read, and of which nothing has come into force."""
        self._prefixes = 0
        """Prefixes of all partitions in force, those without room among them."""
        self.visits = 0
        """Partitions that were looked at since the start."""
        self.asked = 0
        """Entries that all partitions ask for."""
        self._held: dict[bytes, CidrEntries] | None = None
        """What the map holds, by hash of the namespace; None while that is unknown."""

    async def put(self, reached: Revision | None, namespaces: Collection[str] | None = None) -> int:
        """Bring into force what the rules up to ``reached`` are there for; returns how many entries changed.
        ``namespaces``: whose partitions are other than at the last call; None: any may be.
        """
        if self._held is None:
            namespaces = None
        held = await self._adopted() if self._held is None else self._held
        self._held = None  # unknown until every step has succeeded
        reported, known = self._feed.partitions(), self._feed.rules_view.synced
        looked_at = reported.keys() | self._in_force.keys() if namespaces is None else self._waiting.union(namespaces)
        wanted, gone = self._judge(looked_at, reached)
        names = {*gone, *wanted}
        self._prefixes += sum(len(one.prefixes) for one in wanted.values())
        self._prefixes -= sum(len(self._in_force[name].prefixes) for name in names if name in self._in_force)
        self.asked = COPIES * self._prefixes
        await self._make_room({CIDRS.name: self.asked})
        for name in gone:
            del self._in_force[name]
        self._in_force |= wanted
        refused = self._refuse()
        names |= refused ^ self._refused
        changed = 0
        for name in sorted(names, key=lambda name: name in self._in_force and name not in refused):
            fits = name in self._in_force and name not in refused
            changed += await self._change(held, namespace_hash(name), cidrs_of(self._in_force[name]) if fits else {})
        if known:
            changed += await self._clear_foreign(held, reported)
        self._held, self._refused = held, refused
        return changed

    def _judge(
        self, names: Collection[str], reached: Revision | None
    ) -> tuple[dict[str, CidrPartition], frozenset[str]]:
        """Of these namespaces, partitions that come into force now, and who has none any more. Who waits is noted."""
        reported, known = self._feed.partitions(), self._feed.rules_view.synced
        wanted: dict[str, CidrPartition] = {}
        gone: set[str] = set()
        for name in names:
            self.visits += 1
            own, before = reported.get(name), self._in_force.get(name)
            self._waiting.discard(name)
            if own is not None and own.namespace != name:  # whose it is, its key says
                own = None
            if own is before:
                continue
            if own is None and known:
                gone.add(name)
            elif own is not None and reached is not None and reached.covers(own.revision):
                wanted[name] = own
            else:
                self._waiting.add(name)
        return wanted, frozenset(gone)

    def _refuse(self) -> frozenset[str]:
        """Whose partitions find no room."""
        if self._prefixes <= self.room:
            return frozenset()
        return frozenset(self._in_force.keys() - fitting(self._in_force, self.room))

    async def _clear_foreign(self, held: dict[bytes, CidrEntries], reported: Mapping[str, CidrPartition]) -> int:
        """Takes out what an earlier incarnation of the agent left of namespaces that have no partition any more."""
        if not self._foreign:
            return 0
        mine = {namespace_hash(name) for name in reported}
        gone = self._foreign - mine
        self._foreign = (self._foreign & mine) - {namespace_hash(name) for name in self._in_force}
        return sum([await self._change(held, whose, {}) for whose in gone])

    async def _adopted(self) -> dict[bytes, CidrEntries]:
        held: dict[bytes, CidrEntries] = {}
        for entries in self._tables.cidrs.parts(SLICE):
            for key, number in entries.items():
                held.setdefault(key.namespace, {})[key] = number
            await asyncio.sleep(0)
        self._in_force, self._refused, self._waiting, self._prefixes = {}, frozenset(), set(), 0
        self._foreign = frozenset(held)
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
