"""Keeps ``am_cidrs``: each namespace's CIDR partition comes into force when the rules that name its numbers are there.

What the map holds is known here, so that a change costs what its namespace has; it is read once, when the agent starts.
A partition that the map has no room for is out whole: the ipBlocks of that namespace, the largest, allow nothing here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from chassis.log import Log
from proto.policy import CidrPartition, Revision
from services.dataplane.core.cidr_maps import CidrEntries, cidr_change, cidrs_of, fitting, namespace_hash
from services.dataplane.core.maps import CIDRS
from services.dataplane.core.policy_layout import (
    CidrKey,
    CidrNumber,
)
from services.dataplane.feed import Feed
from services.dataplane.kernel.tables import Tables

ROOM = CIDRS.entries // 2
"""Prefixes that are taken. What is new is set before what is old goes, so both need room."""
SLICE = 1000


class Partitions:
    """Partitions of all namespaces on one node. Blocking calls of milliseconds for each namespace that changes."""

    def __init__(self, tables: Tables, feed: Feed, log: Log, room: int = ROOM) -> None:
        self._tables = tables
        self._feed = feed
        self._log = log
        self._room = room
        self._in_force: dict[str, CidrPartition] = {}
        self._refused: frozenset[str] = frozenset()
        self._held: dict[bytes, CidrEntries] | None = None
        """What the map holds, by hash of the namespace; None while that is unknown."""

    async def put(self, reached: Revision | None) -> int:
        """Bring into force what the rules up to ``reached`` are there for; returns how many entries changed."""
        told, known = self._feed.partitions(), self._feed.rules_view.synced
        wanted = {name: own for name, own in self._in_force.items() if name in told or not known}
        if reached is not None:
            wanted |= {name: own for name, own in told.items() if reached.covers(own.revision)}
        held = await self._adopted() if self._held is None else self._held
        self._held = None  # unknown until every step has succeeded
        taken = fitting(wanted, self._room)
        refused = wanted.keys() - taken
        self._tell(wanted, refused)
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

    def _tell(self, wanted: dict[str, CidrPartition], refused: set[str]) -> None:
        """Once for each namespace that begins to go without."""
        for name in sorted(refused - self._refused):
            remedy = "lower AIRMESH_POLICY_MAX_PREFIXES, or name fewer CIDRs in this namespace's NetworkPolicies"
            self._log.error("cidrs-do-not-fit", namespace=name, prefixes=len(wanted[name].prefixes), remedy=remedy)

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
