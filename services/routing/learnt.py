"""Learnt routes in the kernel: written in slices, compared with what is there, kept over a restart.

The tables (``core.learnt``) say what there should be; here it is read and written by netlink, in the thread of
:class:`Kernel`, a slice at a time: between two slices the event loop and other work on the kernel have their turn, and
what is learnt meanwhile joins the next one. A change of next hops comes before the routes that name them, and an object
goes after its last route. Memory: one slice, and what of the kernel's table is not as it should be.

A route is replaced in place, so no packet finds it missing. A next hop that is said to be lost leaves its groups at
once, whatever becomes of the routes.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import islice

from linux import nexthops, rtnl
from linux.netlink import Netlink
from proto.net import Address, Network
from services.routing.core.bgp.values import Family, Prefix, prefix_of
from services.routing.core.learnt import (
    FIRST_ID,
    LAST_ID,
    METRIC,
    PROTOCOL,
    RETRIES,
    Group,
    Hop,
    Hops,
    NextHop,
    NextHops,
    Object,
    Table,
    hops_of,
    longest_match,
)
from services.routing.kernel import Kernel

SLICE = 2048
"""Routes of one send, 128 KiB at most: some 10 ms of the thread, and an answer that fits into the socket's buffer where
all of them are refused. Fewer would cost more: after each call of the kernel a thread waits for a busy event loop.
"""
AF = {Family.IPV4: int(socket.AF_INET), Family.IPV6: int(socket.AF_INET6)}
_ONCE_MORE = 4
"""Times that a listing is made again, while others change the table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What one pass did."""

    written: int = 0
    """Routes set and removed."""
    refused: int = 0
    """Routes and next hops that the kernel does not take now, of all that there are."""
    drift: int = 0
    """Of the routes written those that the kernel had lost, or had otherwise than it was told."""
    lacking: frozenset[Hop] = field(default=frozenset())
    """Next hops that the kernel refuses: their link is down, or they are on none of its networks."""
    crowded: int = 0
    """Prefixes without a route because 65,536 other sets of next hops are in use."""


class LearntRoutes:
    """The one who writes learnt routes. What is wanted is said at any time; :meth:`apply` is the body of a loop."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._next_hops = NextHops()
        self._tables = {family: Table(family) for family in Family}
        self._sources: dict[Family, bytes] = {}
        self._writers = _writers(self._sources)
        self._objects: dict[int, Object] = {}
        """Next hop objects of ours in the kernel, as of the last full pass and what was set since."""
        self._static: dict[tuple[Family, Prefix], Hop] = {}
        self._beneath: dict[tuple[Family, Prefix], tuple[Hop, ...]] = {}
        """What was learnt of prefixes that have a static route."""
        self._crowded: dict[tuple[Family, Prefix], Hops] = {}
        """Prefixes for whose next hops there was no number; some are tried again in each full pass."""
        self._lost: frozenset[Hop] = frozenset()
        self._lacking: frozenset[Hop] = frozenset()

    def prefer(self, sources: Mapping[int, Address]) -> None:
        """Packets of this node itself take these addresses, by family (4, 6), by learnt routes, else those of
        the link. Routes in the kernel follow with the next full pass.
        """
        wanted = {(Family.IPV4 if version == 4 else Family.IPV6): one.packed for version, one in sources.items()}
        if wanted != self._sources:
            self._sources, self._writers = wanted, _writers(wanted)

    def replace(self, family: Family, prefixes: Iterable[Prefix], hops: Iterable[Hop]) -> None:
        """These prefixes are reached by these next hops from now on, by none of them: not at all. Nor are they while
        65,536 other sets of next hops are in use. Static routes come before them.
        """
        if self._static:
            taken = {prefix for of, prefix in self._static if of is family}
            every, hops = list(prefixes), tuple(hops)
            self._beneath |= {(family, prefix): hops for prefix in every if prefix in taken}
            prefixes = [prefix for prefix in every if prefix not in taken]
        self._put(family, prefixes, hops)

    def set_static(self, wanted: Mapping[tuple[Family, Prefix], Hop]) -> None:
        """Exactly these prefixes are reached by a next hop that an object names, whatever is learnt of them."""
        if wanted == self._static:
            return
        for key in self._static.keys() - wanted.keys():
            self._put(key[0], (key[1],), self._beneath.pop(key, ()))
        for key, hop in wanted.items():
            if key not in self._static:
                self._beneath[key] = self.hops(*key)
            self._put(key[0], (key[1],), (hop,))
        self._static = dict(wanted)

    def _put(self, family: Family, prefixes: Iterable[Prefix], hops: Iterable[Hop]) -> None:
        found, table, crowded = hops_of(hops), self._tables[family], self._crowded
        try:
            identifier, refused = (self._next_hops.identifier(found) if found else 0), False
        except OverflowError:
            identifier, refused = 0, True
        for prefix in prefixes:
            table.replace(prefix, identifier)
            if refused:
                crowded[family, prefix] = found
            elif crowded:
                crowded.pop((family, prefix), None)

    def complete(self, family: Family) -> None:
        """All that there is has been learnt: the next full pass removes what else of ours is in the kernel."""
        self._tables[family].complete()

    def lose(self, hops: Iterable[Hop]) -> bool:
        """Packets do not take these next hops now where there are others; whether that is news. All others may."""
        before, self._lost = self._lost, frozenset(hops)
        return before != self._lost

    @property
    def any_seen(self) -> bool:
        """The kernel had objects of ours at the last full pass: somebody has learnt routes before."""
        return bool(self._objects)

    def refused(self, family: Family) -> Mapping[Prefix, int]:
        """Routes that are not in the kernel, each with the errno of its refusal."""
        return self._tables[family].refused

    def hops(self, family: Family, prefix: Prefix) -> tuple[Hop, ...]:
        """What a prefix is to be reached by; nothing if it is not."""
        return self._next_hops.hops(self._tables[family].wanted.get(prefix, 0))

    def leads_to(self, network: Network) -> bool:
        """Whether the longest route to a prefix, be it to one that covers it, is in the kernel."""
        family, prefix = prefix_of(network)
        table = self._tables[family]
        found = longest_match(table.wanted, prefix, table.unwritten)
        return found is not None and found not in table.refused

    async def leave_lost(self) -> None:
        """Take lost next hops out of their groups now, before any route is written. Raises KernelFault."""
        if self._objects:
            await self._settle_next_hops()

    async def apply(self, *, full: bool, occupied: Iterable[Network] = ()) -> Pass:
        """Write what has changed; ``full``: compare all with the kernel before, and let go of what nothing needs after.
        ``occupied``: destinations at which somebody else's route has our metric. Raises KernelFault.
        """
        full, seen, drift = full or not self._objects, self._objects, 0
        if full:
            seen = self._objects = await self._kernel.learnt(_objects)
            self._next_hops.adopt(seen)
        await self._settle_next_hops()
        taken: dict[Family, set[Prefix]] = {family: set() for family in Family}
        for family, prefix in map(prefix_of, occupied):
            taken[family].add(prefix)
        for family in Family if full else ():
            drift += await self._compare(family)
        written = sum([await self._write(family, taken[family]) for family in Family])
        if full and not any(map(len, self._tables.values())):
            await self._release()
            for (family, prefix), hops in list(islice(self._crowded.items(), RETRIES)):
                self._put(family, (prefix,), hops)
        refused = sum(len(table.refused) for table in self._tables.values()) + len(self._lacking)
        return Pass(written=written, refused=refused, drift=drift, lacking=self._lacking, crowded=len(self._crowded))

    def _used(self) -> set[int]:
        return {identifier for table in self._tables.values() for identifier in table.used}

    async def _settle_next_hops(self) -> None:
        """Objects as the routes need them, those of one router first."""
        seen = self._objects
        used = [identifier for identifier in self._used() if self._next_hops.hops(identifier)]
        singles = self._next_hops.singles(used, seen)
        refused = await self._kernel.learnt(_setting(singles)) if singles else set()
        self._lacking = frozenset(one.hop for one in singles if one.identifier in refused)
        seen.update((one.identifier, one) for one in singles if one.identifier not in refused)
        groups = self._next_hops.groups(used, seen, self._lost | self._lacking)
        refused = await self._kernel.learnt(_setting(groups)) if groups else set()
        seen.update((one.identifier, one) for one in groups if one.identifier not in refused)

    async def _compare(self, family: Family) -> int:
        """Marks what of a family is not as it should be in the kernel; how much that is."""
        table, writer = self._tables[family], self._writers[family]
        table.begin()
        pending = len(table)
        odd, missing = await self._kernel.learnt(lambda netlink: _differences(netlink, table, writer))
        left, absent = iter(odd.items()), iter(missing)
        for _ in range(0, max(len(odd), len(missing)), SLICE):
            table.mend(islice(left, SLICE), islice(absent, SLICE), self._objects)
            await asyncio.sleep(0)
        return max(len(table) - pending, 0)

    async def _write(self, family: Family, occupied: Collection[Prefix]) -> int:
        """Writes what has changed, a slice at a time."""
        table, writer, written = self._tables[family], self._writers[family], 0
        while len(table):
            await self._settle_next_hops()
            part = table.take(SLICE, self._objects, occupied)
            table.settle(part, await self._kernel.learnt(_writing(writer, part)))
            written += len(part)
            await asyncio.sleep(0)
        return written

    async def _release(self) -> None:
        """Objects go that no route names."""
        self._next_hops.forget(self._next_hops.never_written(self._used(), self._objects))
        if not (idle := self._next_hops.unused(self._used(), self._objects)):
            return
        await self._kernel.learnt(lambda netlink: _remove(netlink, idle))
        self._next_hops.forget(idle)
        for identifier in idle:
            self._objects.pop(identifier, None)


def _writers(sources: Mapping[Family, bytes]) -> dict[Family, nexthops.RouteWriter]:
    return {
        family: nexthops.RouteWriter(AF[family], protocol=PROTOCOL, metric=METRIC, source=sources.get(family, b""))
        for family in Family
    }


async def remove(kernel: Kernel) -> int:
    """Takes away all learnt routes, with the objects that they name; how many objects. Raises KernelFault."""

    def work(netlink: Netlink) -> int:
        objects = _objects(netlink)
        return _remove(netlink, NextHops().unused((), objects))

    return await kernel.learnt(work)


def _objects(netlink: Netlink) -> dict[int, Object]:
    found: dict[int, Object] = {}
    for body in netlink.dump(nexthops.GETNEXTHOP, nexthops.next_hops_query()):
        seen = nexthops.parse_next_hop(body)
        if seen.protocol != PROTOCOL or not FIRST_ID <= seen.identifier <= LAST_ID:
            continue
        if seen.gateway:
            found[seen.identifier] = NextHop(seen.identifier, Hop(ip_address(seen.gateway), seen.link))
        else:
            found[seen.identifier] = Group(seen.identifier, seen.members)
    return found


def _setting(objects: Sequence[NextHop] | Sequence[Group]) -> Callable[[Netlink], set[int]]:
    """Work that sets these; says which the kernel refused."""
    messages = [
        nexthops.set_next_hop(one.identifier, one.hop.via, one.hop.link, PROTOCOL)
        if isinstance(one, NextHop)
        else nexthops.set_group(one.identifier, one.members, PROTOCOL)
        for one in objects
    ]
    return lambda netlink: {objects[index].identifier for index, _ in netlink.attempt(messages)}


def _remove(netlink: Netlink, identifiers: Sequence[int]) -> int:
    messages = [nexthops.remove_next_hop(identifier) for identifier in identifiers]
    return len(identifiers) - len(netlink.attempt(messages))


def _writing(
    writer: nexthops.RouteWriter, part: Sequence[tuple[Prefix, int]]
) -> Callable[[Netlink], list[tuple[int, int]]]:
    """Work that writes these; says the places of those that the kernel refused, each with the errno."""
    return lambda netlink: netlink.send_packed(lambda first: writer.batch(first, part), len(part))


def _differences(
    netlink: Netlink, table: Table, writer: nexthops.RouteWriter
) -> tuple[dict[Prefix, int], list[Prefix]]:
    """What the kernel has otherwise than wanted, and what it lacks. Reads the table while it may change: what changes
    meanwhile is written anyhow.
    """
    odd, count, whole = _listed(netlink, table, writer)
    for _ in range(_ONCE_MORE):
        if whole:
            break
        odd, count, whole = _listed(netlink, table, writer)
    return odd, [] if count == len(table.wanted) else _missing(netlink, table, writer)


def _listed(netlink: Netlink, table: Table, writer: nexthops.RouteWriter) -> tuple[dict[Prefix, int], int, bool]:
    """Routes that are not as wanted, how many are, and whether that is all of them."""
    odd: dict[Prefix, int] = {}
    wanted, read, count = table.wanted.get, writer.read, 0

    def take(received: bytes, start: int, end: int) -> None:
        nonlocal count
        if (found := read(received, start, end)) is None:
            return
        if wanted(found[0]) == found[1]:
            count += 1
        else:
            odd[found[0]] = found[1]

    whole = netlink.dump_each(rtnl.GETROUTE, writer.query(), take, rtnl.NO_TABLE)
    return odd, count, whole


def _missing(netlink: Netlink, table: Table, writer: nexthops.RouteWriter) -> list[Prefix]:
    there: set[Prefix] = set()

    def take(received: bytes, start: int, end: int) -> None:
        if (found := writer.read(received, start, end)) is not None:
            there.add(found[0])

    netlink.dump_each(rtnl.GETROUTE, writer.query(), take, rtnl.NO_TABLE)
    return [prefix for prefix in list(table.wanted) if prefix not in there]
