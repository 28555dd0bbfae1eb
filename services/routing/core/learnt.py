"""Routes learnt from peers as the kernel's FIB should have them: next hop objects, and the routes that name them.

A route names an object (RTA_NH_ID): one router on one link, or a group of them over which flows are spread, each with
weight 1. Which object stands for which next hops is decided by what they are, so equal ones share one, and a next hop
that is lost changes the groups that it is in and no route (:meth:`NextHops.groups`); the routes follow when the
decision process has made up its mind, one by one and without haste.

Ours are the routes of protocol 185 and metric 96, and the objects of protocol 185 with an identifier from 0x61740000
on: by these an agent without memory knows them. Metric 96 is above that of routes to other nodes (64): where both know
a way to a block, the pair's model has it. iproute2 has no name for 185. A protocol of its own, because there may be
100,000 of them: the kernel lists and notifies them apart.

Refuses: to remove what it does not know before :meth:`Table.complete` says that all there is has been learnt, and to
write over a route of somebody else.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import islice

from kit.models import LEARNT_PROTOCOL
from proto.net import Address
from services.routing.core.bgp.values import Family, Prefix, covering
from services.routing.core.faults import Fault

PROTOCOL = LEARNT_PROTOCOL
"""rtm_protocol and nh_protocol."""
METRIC = 96
FIRST_ID, LAST_ID = 0x61740000, 0x6174FFFF
"""Identifiers of next hop objects: ``at`` in ASCII, then a number."""
_WITHOUT_OBJECT = (errno.ENETDOWN, errno.EINVAL)
"""EINVAL is what the kernel says of a route whose next hop object has just gone with its link."""
RETRIES = 1024
"""Routes that the kernel refused and that are tried again in one full pass."""


@dataclass(frozen=True, slots=True)
class Hop:
    """A router on a link of this node. It may be an IPv6 one for IPv4 prefixes (RFC 8950)."""

    via: Address
    link: int
    """Index of the interface."""


Hops = tuple[Hop, ...]
"""Each once, in the order of :func:`hops_of`; never empty."""


@dataclass(frozen=True, slots=True)
class NextHop:
    """An object that is one router."""

    identifier: int
    hop: Hop


@dataclass(frozen=True, slots=True)
class Group:
    """An object that is several others."""

    identifier: int
    members: tuple[int, ...]
    """Their identifiers."""


Object = NextHop | Group


def hops_of(hops: Iterable[Hop]) -> Hops:
    """Next hops in one order whatever the order they come in: it decides which flow takes which."""
    return tuple(sorted(set(hops), key=lambda hop: (hop.via.version, int(hop.via), hop.link)))


def longest_match(routes: Container[Prefix], prefix: Prefix, without: Container[Prefix] = ()) -> Prefix | None:
    """The longest of some routes' prefixes, those of ``without`` left out, that covers ``prefix``, be it itself."""
    return next((one for one in covering(prefix) if one in routes and one not in without), None)


def without_number(prefixes: int, node: str) -> tuple[Fault, ...]:
    """That so many prefixes have no route on ``node``, as there is no number for the object of their next hops."""
    if not prefixes:
        return ()
    what = f"learnt routes are not in the kernel, as {LAST_ID - FIRST_ID + 1:,} other sets of next hops are in use"
    remedy = "let peers announce fewer next hops; airmesh_bgp_routes_absent says how many routes there are"
    return (Fault(what, remedy, about=("Node", node)),)


class NextHops:
    """Which object stands for which next hops. What it has once said stays so until :meth:`forget`."""

    def __init__(self) -> None:
        self._hops: dict[int, Hops] = {}
        self._ids: dict[Hops, int] = {}
        self._least = FIRST_ID
        """No number below it is free."""

    def adopt(self, seen: Mapping[int, Object]) -> None:
        """Take the kernel's objects for what they are, where nothing is known of them yet: so after a restart the same
        next hops have the same object, and no route needs to change.
        """
        for identifier, hops in _meanings(seen).items():
            if identifier not in self._hops and hops not in self._ids:
                self._hops[identifier], self._ids[hops] = hops, identifier

    def identifier(self, hops: Hops) -> int:
        """The object that stands for these. Raises OverflowError when 65,536 stand for others."""
        found = self._ids.get(hops)
        if found is None:
            for hop in hops if len(hops) > 1 else ():
                self.identifier((hop,))
            found = self._free()
            self._hops[found], self._ids[hops] = hops, found
        return found

    def _free(self) -> int:
        if len(self._hops) > LAST_ID - FIRST_ID:
            raise OverflowError("65,536 sets of next hops are in use")
        while self._least in self._hops:
            self._least += 1
        return self._least

    def hops(self, identifier: int) -> Hops:
        """What it stands for; nothing for an unknown one."""
        return self._hops.get(identifier, ())

    def singles(self, used: Iterable[int], seen: Mapping[int, Object]) -> tuple[NextHop, ...]:
        """Objects of one router that the kernel lacks, or has otherwise, of those that ``used`` ones are made of."""
        hops = dict.fromkeys(hop for identifier in used for hop in self.hops(identifier))
        wanted = (NextHop(self.identifier((hop,)), hop) for hop in hops)
        return tuple(one for one in wanted if seen.get(one.identifier) != one)

    def groups(self, used: Iterable[int], seen: Mapping[int, Object], lost: Set[Hop]) -> tuple[Group, ...]:
        """Groups that the kernel lacks, or has with other members. Those of ``lost`` next hops are left out where
        another is left.
        """
        found = []
        for identifier in used:
            hops = self.hops(identifier)
            if len(hops) > 1:
                left = [hop for hop in hops if hop not in lost] or hops
                group = Group(identifier, tuple(self.identifier((hop,)) for hop in left))
                if seen.get(identifier) != group:
                    found.append(group)
        return tuple(found)

    def unused(self, used: Collection[int], seen: Mapping[int, Object]) -> tuple[int, ...]:
        """The kernel's objects that no used one is or is made of: groups first, since the kernel takes an object out of
        its groups when it goes.
        """
        needed = {one for identifier in used for one in self._parts(identifier)}
        for identifier in needed & seen.keys():
            needed = needed.union(one.members if isinstance(one := seen[identifier], Group) else ())
        idle = (one for one in seen.values() if one.identifier not in needed)
        return tuple(one.identifier for one in sorted(idle, key=lambda one: isinstance(one, NextHop)))

    def forget(self, identifiers: Iterable[int]) -> None:
        """These are gone: their numbers may be given again."""
        for identifier in identifiers:
            if (hops := self._hops.pop(identifier, None)) is not None:
                del self._ids[hops]
                self._least = min(self._least, identifier)

    def never_written(self, used: Iterable[int], seen: Container[int]) -> tuple[int, ...]:
        """Objects that nothing needs and the kernel never had: what named them changed before it was written."""
        needed = {one for identifier in used for one in self._parts(identifier)}
        return tuple(one for one in self._hops if one not in needed and one not in seen)

    def _parts(self, identifier: int) -> Iterator[int]:
        yield identifier
        for hop in self.hops(identifier):
            if (single := self._ids.get((hop,))) is not None:
                yield single


def _meanings(seen: Mapping[int, Object]) -> dict[int, Hops]:
    """What the kernel's objects stand for, as far as that can be seen."""
    found: dict[int, Hops] = {one.identifier: (one.hop,) for one in seen.values() if isinstance(one, NextHop)}
    for one in seen.values():
        if isinstance(one, Group):
            hops = hops_of(hop for member in one.members for hop in found.get(member, ()))
            if len(hops) == len(one.members) > 1:
                found[one.identifier] = hops
    return found


class Table:
    """The routes of one family: what there should be, and what of it the kernel has to be told.

    A prefix and its object are all that is kept of a route.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        self.wanted: dict[Prefix, int] = {}
        """Object by prefix."""
        self.refused: dict[Prefix, int] = {}
        """What the kernel does not take, with its errno. EEXIST: somebody else's route has the place. ENETDOWN: there
        is no link to any of its next hops.
        """
        self.is_complete = False
        self.unwritten: set[Prefix] = set()
        """What there is to be since the kernel was told last: routes that it has never taken."""
        self._changed: dict[Prefix, None] = {}
        self._uses: Counter[int] = Counter()
        self._strays: set[int] = set()
        """Objects of routes that are in the kernel and not wanted."""

    def __len__(self) -> int:
        """Routes that have to be written or removed yet."""
        return len(self._changed)

    @property
    def used(self) -> Set[int]:
        """Objects that routes name, or should."""
        return self._uses.keys() | self._strays

    def replace(self, prefix: Prefix, identifier: int) -> None:
        """The prefix leads to this object from now on; 0: nowhere."""
        before = self.wanted.get(prefix, 0)
        if before == identifier:
            return
        if identifier:
            self.wanted[prefix] = identifier
            self._uses[identifier] += 1
        else:
            del self.wanted[prefix]
            self.refused.pop(prefix, None)
            self.unwritten.discard(prefix)
        if before:
            self._strays.add(before)  # until it is written
            self._release(before)
        else:
            self.unwritten.add(prefix)
        self._changed[prefix] = None

    def complete(self) -> None:
        """All that there is has been learnt: what else the kernel has goes with the next comparison."""
        self.is_complete = True

    def take(self, most: int, objects: Container[int], occupied: Container[Prefix]) -> list[tuple[Prefix, int]]:
        """Up to ``most`` changes, to be written at once and settled; 0 stands for a removal. A route whose object is
        not among the kernel's ``objects`` waits; the place of somebody else's route (``occupied``) is left to it.
        """
        taken: list[tuple[Prefix, int]] = []
        for prefix in list(islice(self._changed, most)):  # the first one by one would be looked for from the start
            del self._changed[prefix]
            identifier = self.wanted.get(prefix, 0)
            if identifier and prefix in occupied:
                self.refused[prefix] = errno.EEXIST
            elif identifier and identifier not in objects:
                self.refused[prefix] = errno.ENETDOWN
            else:
                taken.append((prefix, identifier))
        return taken

    def settle(self, taken: Sequence[tuple[Prefix, int]], refused: Iterable[tuple[int, int]]) -> None:
        """What became of changes: places in ``taken`` that the kernel refused, with the errno. What was to be removed
        and is gone is no failure.
        """
        failed = {index: code for index, code in refused if taken[index][1] or code != errno.ESRCH}
        if self.unwritten:
            self.unwritten.difference_update(prefix for index, (prefix, _) in enumerate(taken) if index not in failed)
        if self.refused:
            for prefix, _ in taken:
                self.refused.pop(prefix, None)
        for index, code in failed.items():
            if taken[index][0] in self.wanted:
                self.refused[taken[index][0]] = code

    def mend(self, odd: Iterable[tuple[Prefix, int]], missing: Iterable[Prefix], objects: Container[int]) -> None:
        """A part of what a comparison with the kernel's whole table has found: routes that are not as they should be,
        with the object that they name, and prefixes that have none. What was refused for want of an object is tried
        again when that is among ``objects``.
        """
        for prefix, identifier in odd:
            self._strays.add(identifier)
            if prefix in self.wanted or self.is_complete:
                self._changed[prefix] = None
        for prefix in missing:
            if self.refused.get(prefix, errno.ENETDOWN) in _WITHOUT_OBJECT:
                if (identifier := self.wanted.get(prefix, 0)) in objects:
                    self._changed[prefix] = None
                elif identifier:
                    self.refused[prefix] = errno.ENETDOWN

    def begin(self) -> None:
        """Before a comparison: which objects stray routes name will be seen, unless some are still to be written; and
        of what was refused, some is tried again each time.
        """
        if not self._changed:
            self._strays.clear()
        for prefix in list(islice(self.refused, RETRIES)):
            self.refused[prefix] = self.refused.pop(prefix)  # to the end of the line
            self._changed[prefix] = None

    def _release(self, identifier: int) -> None:
        self._uses[identifier] -= 1
        if not self._uses[identifier]:
            del self._uses[identifier]
