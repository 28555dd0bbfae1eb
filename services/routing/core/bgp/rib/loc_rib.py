"""Loc-RIB of one family: the paths of each prefix that policy accepted, and which of them are used (RFC 4271 3.2, 9.1).

A prefix whose paths, next hops or policy changed is marked, and decided once however often it was marked. What was
chosen goes to every update group at once, so the tables that are sent from never lag behind the choice. Which prefixes
a next hop concerns is looked for by ``search``, a bounded number at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

from services.routing.core.bgp.rib.decision import choose
from services.routing.core.bgp.rib.exports import ExportSettings
from services.routing.core.bgp.rib.groups import Group
from services.routing.core.bgp.rib.paths import NextHop, Path, alike
from services.routing.core.bgp.values import Family, Prefix

Paths = tuple[Path, ...]


class Change(NamedTuple):
    """Other paths of a prefix are used than before: the best one first, then those that share its traffic."""

    family: Family
    prefix: Prefix
    before: Paths
    after: Paths
    """Empty: nothing leads there any more."""


class LocRib:
    """See the module.

    Args:
        family: Of all its prefixes.
        most: Paths of a prefix that are used together.
    """

    def __init__(self, family: Family, most: int) -> None:
        self.family = family
        self.most = most
        self.deferred = False
        """Nothing is decided: a speaker that has just started waits for its peers' tables (RFC 4724 4.1)."""
        self.candidates: dict[Prefix, Paths] = {}
        """In no order."""
        self.selected: dict[Prefix, Paths] = {}
        self.groups: dict[ExportSettings, Group] = {}
        self._changing: list[Group] = []
        """Groups that had other settings: nobody joins them before all has been revised, or is a group of the same."""
        self.decided = 0
        """How many marks have been decided since the beginning."""
        self.marked: dict[Prefix, None] = {}
        self._queue: list[Prefix] = []
        self._at = 0
        self._searched: list[Prefix] = []
        """Prefixes that are still to be looked at for :attr:`_changed`."""
        self._changed: set[NextHop] = set()
        """Next hops that are reached in another way than before."""
        self._later: set[NextHop] = set()
        """Those that the next search is for."""

    @property
    def unsearched(self) -> int:
        """Prefixes that ``search`` has to look at."""
        return len(self._searched) + (len(self.candidates) if self._later else 0)

    @property
    def undecided(self) -> int:
        """Prefixes that are marked."""
        return len(self._queue) - self._at + len(self.marked)

    def replace(self, prefix: Prefix, old: Path | None, new: Path | None) -> None:
        """One path of the prefix is another, came (``old`` None) or went (``new`` None). Rejected ones do not count."""
        if old is not None and old.rejection is not None:
            old = None
        if new is not None and new.rejection is not None:
            new = None
        if old is new:
            return
        paths = self.candidates.get(prefix, ())
        if old is not None:
            at = paths.index(old)
            paths = paths[:at] + paths[at + 1 :]
        if new is not None:
            paths = (*paths, new)
        if paths:
            self.candidates[prefix] = paths
        else:
            del self.candidates[prefix]
        self.marked[prefix] = None

    def hops_changed(self, changed: Iterable[NextHop]) -> None:
        """These next hops are reached in another way: all prefixes are to be marked that some path leads to by one."""
        self._later.update(changed)

    def search(self, limit: int) -> int:
        """Look at this many prefixes at most, and mark those whose next hops changed; how many it looked at. A prefix
        that gets a path meanwhile is marked anyhow.
        """
        if not self._searched:
            self._searched, self._changed, self._later = list(self.candidates), self._later, set()
        part = self._searched[-limit:]
        del self._searched[-limit:]
        candidates, marked, changed = self.candidates, self.marked, self._changed
        known: dict[Paths, bool] = {}
        for prefix in part:
            paths = candidates.get(prefix, ())
            concerned = known.get(paths)
            if concerned is None:
                concerned = known[paths] = any(path.hop in changed for path in paths)
            if concerned:
                marked[prefix] = None
        return len(part)

    def decide(self, limit: int) -> list[Change]:
        """Decide at most ``limit`` marked prefixes, in the order in which they were marked; none while a group's log
        has to be folded first.
        """
        if self.deferred:
            return []
        changes: list[Change] = []
        groups = (*self.groups.values(), *self._changing)
        selected, family = self.selected, self.family
        if any(group.is_full for group in groups):
            limit = 0
        for paths, prefixes in self._runs(limit).items():
            after = self._chosen(paths)
            new = selected.keys().isdisjoint(prefixes)  # as nearly all where a table comes first
            if new and after:
                selected.update(dict.fromkeys(prefixes, after))
                changes += [Change(family, prefix, (), after) for prefix in prefixes]
            for prefix in prefixes if not new else ():
                before = selected.get(prefix, ())
                if after is before:
                    continue
                if after:
                    selected[prefix] = after
                else:
                    del selected[prefix]
                if not (before and after and _same(before, after)):
                    changes.append(Change(family, prefix, before, after))
            for group in groups:
                group.revise(prefixes, after)
        for group in groups:
            group.settle()
        return changes

    def _runs(self, limit: int) -> dict[Paths, list[Prefix]]:
        """The next marked prefixes, those with the same paths together: what follows from these is worked out once."""
        runs: dict[Paths, list[Prefix]] = {}
        for paths, run in groupby(self._next(limit), self.candidates.get):
            runs.setdefault(paths or (), []).extend(run)
        return runs

    def _chosen(self, paths: Paths) -> Paths:
        """What is chosen of some paths; the same tuple where it is all of them, in this order."""
        found = choose(paths, self.most)
        return paths if found == paths else found

    def _next(self, limit: int) -> list[Prefix]:
        if self._at == len(self._queue):
            self._queue, self._at, self.marked = list(self.marked), 0, {}
        found = self._queue[self._at : self._at + limit]
        self._at += len(found)
        self.decided += len(found)
        if self._at == len(self._queue):
            self._queue, self._at = [], 0
        return found

    def group(self, settings: ExportSettings) -> Group:
        """The update group of these settings; a new one is filled as what is chosen now is decided again, and so is
        what the table of a single peer lacks when another one comes.
        """
        found = self.groups.get(settings)
        lacks = found is None or found.share()
        if found is None:
            found = self.groups[settings] = Group(settings, self.most)
        if lacks:
            self._revise(found)
        return found

    def _revise(self, group: Group) -> None:
        """Let all that is chosen be decided again, for a group."""
        self.marked |= dict.fromkeys(self.selected)
        group.whole_after = self.decided + self.undecided

    def change(self, group: Group, names: Collection[str], settings: ExportSettings) -> Group:
        """The update group of these peers of ``group``, which have other settings now: that group, where they are all
        of its peers, else one of their own. They are sent what differs as what is chosen is decided again.
        """
        found = group
        if len(names) < len(group):
            found = group.split(names)
        else:
            self._drop(group)
        self._changing.append(found)
        found.change(settings)
        self._revise(found)
        return found

    def changed(self) -> Iterator[tuple[str, Group]]:
        """Peers whose group, with other settings than before, has become one with another; and that group."""
        for group in [one for one in self._changing if one.whole_after <= self.decided]:
            found = self.groups.setdefault(group.settings, group)
            if found is group:
                self._changing.remove(group)
                continue
            if found.share():
                self._revise(found)
            if found.whole_after <= self.decided:
                yield from ((name, found) for name in found.take_over(group))
                if not len(group):
                    self._changing.remove(group)

    def leave(self, group: Group, name: str) -> None:
        """A peer's session is gone, and with the last peer its update group."""
        group.leave(name)
        if not len(group):
            self._drop(group)

    def _drop(self, group: Group) -> None:
        if self.groups.get(group.settings) is group:
            del self.groups[group.settings]
        else:
            self._changing.remove(group)


def _same(one: Paths, other: Paths) -> bool:
    return len(one) == len(other) and all(map(alike, one, other))
