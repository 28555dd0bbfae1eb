"""The tables of a BGP speaker: what its peers sent, what is used of it, and what each peer is sent (RFC 4271 3.2).

``update`` and the other events only take in and mark. ``decide`` works off what was marked, a bounded number at a
time, and gives what changed for the kernel; so it does with what concerns whole tables (a peer that is gone, another
policy, a next hop that is lost). ``pending`` gives what a peer has to be sent, packed for UPDATE messages;
there is no timer in between, so nothing waits for more to come. What the tables hold depends on what peers say now, on
settings and on next hops, never on the order in which these came; an event for a peer that is not there is nothing.

A peer that is lost without a restart is forgotten with its paths. One that restarts stays while it has some.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from proto.net import Address
from services.routing.core.bgp.peers import TableSettings
from services.routing.core.bgp.rib.adj_rib_in import AdjRibIn, Awaited, by_path
from services.routing.core.bgp.rib.decision import Standing, explain
from services.routing.core.bgp.rib.exports import ExportSettings, Withheld
from services.routing.core.bgp.rib.groups import EMPTY, Batch, Group
from services.routing.core.bgp.rib.imports import Guard, Importer
from services.routing.core.bgp.rib.loc_rib import Change, LocRib
from services.routing.core.bgp.rib.neighbors import Completed, Established, Neighbor, Outgoing
from services.routing.core.bgp.rib.paths import OWN, NextHop, NextHops, Path, Reach, Resolve, key_of, prefix_in
from services.routing.core.bgp.values import (
    Attributes,
    Family,
    PathId,
    Prefix,
    Reachable,
    Update,
)

LOOKS_PER_DECISION = 4
"""Paths that are looked at for whole tables, for each prefix that may be decided: one costs a quarter of the other."""
WARNING_PERCENT = 80
"""Share of the most prefixes at which a peer is warned of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixLimit:
    """A peer has sent as many prefixes of a family as deserve a warning, or more than it may."""

    peer: str
    family: Family
    count: int
    """Those that it has sent; what goes beyond the most is not taken."""
    most: int
    exceeded: bool
    """End the session: Cease, Maximum Number of Prefixes Reached (RFC 4486 1)."""


class Counted(NamedTuple):
    """Paths of one family in a peer's session."""

    received: int
    """Rejected ones included."""
    stale: int
    """Of those received: to be sent again by the peer."""
    sent: int
    """When nothing is pending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """What to send to a peer next."""

    batches: tuple[Batch, ...] = ()
    """In order. Peers that are sent the same are given the same ``Reachable`` and ``Unreachable`` objects: what is
    written of one of them can be sent to all whose messages agree in form.
    """
    completed: tuple[tuple[Family, Completed], ...] = ()
    """Said after the batches."""
    more: bool = False
    """Something is left: ask again."""


class Tables:
    """See the module.

    Args:
        resolve: How a next hop is reached. Asked when one comes up first, and again by ``next_hops_changed``.
        most_paths: Paths of a prefix that are used together, and sent where several are (RFC 7911); at least 1.
    """

    def __init__(self, resolve: Resolve, *, most_paths: int = 16) -> None:
        self._hops = NextHops(resolve)
        self._loc = {family: LocRib(family, most_paths) for family in Family}
        self._guards = {family: Guard(family) for family in Family}
        self._neighbors: dict[str, Neighbor] = {}
        self._regrouped: set[str] = set()
        """Peers that are to be sent by other settings than before."""
        self._left: list[AdjRibIn] = []
        """What is to be removed of families that a peer speaks no longer."""
        self._own: dict[Family, dict[Prefix, Path]] = {family: {} for family in Family}

    # Peers.

    def peer_up(self, name: str, known: Established) -> None:
        """A session is established. What was kept of the peer over a restart is stale until it is sent again."""
        if name in self._neighbors and self._neighbors[name].up:
            self.peer_down(name)
        before = self._neighbors.get(name)
        neighbor = self._neighbors[name] = Neighbor(name, known)
        if before is not None:
            neighbor.ribs = before.ribs
            for family in neighbor.ribs.keys() - known.agreed.families:
                rib = neighbor.ribs.pop(family)
                rib.lost(keep=False)
                self._left.append(rib)
        self._judge_again(neighbor)
        for family in sorted(known.agreed.families):
            table = self._loc[family]
            if family not in neighbor.ribs:
                neighbor.ribs[family] = AdjRibIn(self._importer(neighbor, family), table)
            group = table.group(neighbor.exports(family))
            group.join(name)
            neighbor.outgoing[family] = Outgoing(group, Completed.INITIAL, table.decided + table.undecided)

    def peer_down(self, name: str, keep: Collection[Family] = ()) -> None:
        """The session is gone; of the families of ``keep`` its paths stay as stale ones (RFC 4724 4.2)."""
        neighbor = self._neighbors.get(name)
        if neighbor is None:
            return
        for family, outgoing in neighbor.outgoing.items():
            self._loc[family].leave(outgoing.group, name)
        neighbor.outgoing.clear()
        self._regrouped.discard(name)
        for family, rib in neighbor.ribs.items():
            if neighbor.up or family not in keep:
                rib.lost(keep=family in keep)
        neighbor.up = False
        self._forget(neighbor)

    def _forget(self, neighbor: Neighbor) -> None:
        """A peer that is not there, when nothing is left of it."""
        if not neighbor.up and not any(rib.paths for rib in neighbor.ribs.values()):
            self._neighbors.pop(neighbor.name, None)

    def settings_changed(self, name: str, tables: TableSettings) -> None:
        """Other settings for a peer whose session stays: judge again what it sent, send it what differs."""
        neighbor = self._neighbors.get(name)
        if neighbor is None or neighbor.known.tables == tables:
            return
        neighbor.known = replace(neighbor.known, tables=tables)
        self._judge_again(neighbor)
        if neighbor.up:
            self._regrouped.add(name)

    def _regroup(self) -> None:
        """Let peers be sent by the settings that they have now; those that were of one group stay together."""
        together: dict[tuple[Group, ExportSettings], list[str]] = {}
        for name in sorted(self._regrouped):
            neighbor = self._neighbors[name]
            for family, outgoing in neighbor.outgoing.items():
                settings = neighbor.exports(family)
                if settings != outgoing.group.settings:
                    together.setdefault((outgoing.group, settings), []).append(name)
        self._regrouped.clear()
        for (group, settings), names in together.items():
            changed = self._loc[settings.family].change(group, names, settings)
            for name in names:
                self._neighbors[name].outgoing[settings.family].group = changed
        for family, table in self._loc.items():
            for name, group in table.changed():
                self._neighbors[name].outgoing[family].group = group

    def _importer(self, neighbor: Neighbor, family: Family) -> Importer:
        return Importer(neighbor.learner(), family, self._hops, self._guards[family])

    def _judge_again(self, neighbor: Neighbor) -> None:
        for family, rib in neighbor.ribs.items():
            rib.judge_again(self._importer(neighbor, family))

    # What peers say.

    def update(self, name: str, update: Update) -> tuple[PrefixLimit, ...]:
        """An UPDATE of a peer. What comes back is for whoever holds the session."""
        neighbor = self._neighbors.get(name)
        if neighbor is None or not neighbor.up:
            return ()
        limits: list[PrefixLimit] = []
        for gone in update.unreachable:
            if (rib := self._rib(neighbor, gone.family)) is not None:
                for path_id, prefixes in by_path(gone):
                    rib.withdraw(path_id, prefixes)
        for come in update.reachable:
            if (rib := self._rib(neighbor, come.family)) is not None:
                for path_id, prefixes in by_path(come):
                    limits += self._announced(neighbor, rib, come, path_id, prefixes)
        if update.end_of_rib is not None:
            self.end_of_rib(name, update.end_of_rib)
        return tuple(limits)

    def _rib(self, neighbor: Neighbor, family: Family) -> AdjRibIn | None:
        return neighbor.ribs.get(family) if family in neighbor.known.agreed.families else None

    def _announced(
        self, neighbor: Neighbor, rib: AdjRibIn, come: Reachable, path_id: PathId, prefixes: Sequence[Prefix]
    ) -> Iterator[PrefixLimit]:
        most, before = neighbor.known.tables.most_prefixes, len(rib)
        if not most:
            rib.announce(come.attributes, path_id, prefixes)
            return
        taken = rib.fitting(path_id, prefixes, most - before)
        rib.announce(come.attributes, path_id, taken)
        after, warned = len(rib), most * WARNING_PERCENT / 100
        exceeded = len(taken) < len(prefixes)
        if exceeded or before < warned <= after:
            yield PrefixLimit(peer=neighbor.name, family=come.family, count=after, most=most, exceeded=exceeded)

    def end_of_rib(self, name: str, family: Family) -> None:
        """The peer has sent its full table: what it had before its restart and did not send again goes."""
        self._end(name, family, Awaited.RESTART)

    def refresh_begin(self, name: str, family: Family) -> None:
        """The peer begins to send all again (BoRR of RFC 7313)."""
        neighbor = self._neighbors.get(name)
        if neighbor is not None and neighbor.up and (rib := self._rib(neighbor, family)) is not None:
            rib.begin_refresh()

    def refresh_end(self, name: str, family: Family) -> None:
        """The peer has sent all again (EoRR of RFC 7313)."""
        self._end(name, family, Awaited.REFRESH)

    def _end(self, name: str, family: Family, awaited: Awaited) -> None:
        neighbor = self._neighbors.get(name)
        if neighbor is not None and neighbor.up and (rib := self._rib(neighbor, family)) is not None:
            rib.end(awaited)

    def stale_expired(self, name: str, family: Family) -> None:
        """The peer's time to send its paths again is up: what is stale goes."""
        neighbor = self._neighbors.get(name)
        if neighbor is not None and family in neighbor.ribs:
            neighbor.ribs[family].sweep()
            self._forget(neighbor)

    def long_lived_begun(self, name: str, family: Family) -> None:
        """The peer's restart time is over, and its stale paths stay as long-lived ones (RFC 9494 4.2)."""
        neighbor = self._neighbors.get(name)
        if neighbor is not None and family in neighbor.ribs:
            neighbor.ribs[family].outlive()
            self._forget(neighbor)

    # What this speaker says itself, and what it knows.

    def originate(self, family: Family, prefix: Prefix, attributes: Attributes) -> None:
        """Announce a prefix of this speaker's own. Without a next hop it is this node."""
        known = self._own[family].get(prefix)
        if known is None or known.attributes != attributes:
            path = Path(source=OWN, path_id=0, received=attributes, attributes=attributes, hop=None)
            self._own[family][prefix] = path
            self._loc[family].replace(prefix, known, path)

    def withdraw_own(self, family: Family, prefix: Prefix) -> None:
        """Take a prefix of this speaker's own back."""
        known = self._own[family].pop(prefix, None)
        if known is not None:
            self._loc[family].replace(prefix, known, None)

    def next_hops_changed(self, addresses: Collection[Address] | None = None) -> None:
        """These next hops, or all, may be reached in another way than before: ask, and decide what that concerns."""
        changed = self._hops.changed(addresses)
        if not changed:
            return
        for table in self._loc.values():
            table.hops_changed(changed)
        if all(_interface(hop.reach) == _interface(before) for hop, before in changed.items()):
            return
        for neighbor in self._neighbors.values():
            if any(rule.interface for rule in neighbor.known.tables.imports):
                self._judge_again(neighbor)

    def next_hops(self) -> tuple[tuple[Address, str], ...]:
        """The next hops that some path has, with the interface of link-local ones."""
        return tuple((hop.address, hop.interface) for hop in self._hops.all())

    # What follows from it.

    def defer(self, family: Family, *, deferred: bool) -> None:
        """Decide nothing of a family, and end no first table, until the peers have sent theirs (RFC 4724 4.1)."""
        self._loc[family].deferred = deferred

    @property
    def undecided(self) -> int:
        """Prefixes, paths of whole tables, and peers with other settings, that ``decide`` has to look at now."""
        marked = sum(table.undecided for table in self._loc.values() if not table.deferred)
        searched = sum(table.unsearched for table in self._loc.values())
        return marked + searched + len(self._regrouped) + sum(rib.pending for rib in self._ribs())

    def _ribs(self) -> Iterator[AdjRibIn]:
        yield from self._left
        for neighbor in self._neighbors.values():
            yield from neighbor.ribs.values()

    def _look(self, limit: int) -> int:
        """A part of what concerns whole tables; how many paths were looked at."""
        most = limit
        for rib in self._ribs():
            limit -= rib.work(limit) if limit > 0 and rib.pending else 0
        self._left = [rib for rib in self._left if rib.pending]
        for neighbor in [one for one in self._neighbors.values() if not one.up]:
            self._forget(neighbor)
        for table in self._loc.values():
            limit -= table.search(limit) if limit > 0 and table.unsearched else 0
        return most - limit

    def decide(self, limit: int = 1000) -> list[Change]:
        """Decide at most ``limit`` prefixes of those that changed, half as many while whole tables are looked at; give
        those that other paths are used for now.
        """
        self._regroup()
        limit -= self._look(LOOKS_PER_DECISION * (limit - limit // 2)) // LOOKS_PER_DECISION
        waiting = [table for table in self._loc.values() if table.undecided and not table.deferred]
        changes: list[Change] = []
        for left, table in zip(range(len(waiting), 0, -1), waiting, strict=True):
            before = table.decided
            changes += table.decide(-(-limit // left))  # no family keeps the others waiting
            limit -= table.decided - before
        return changes

    def owes(self, name: str) -> bool:
        """``pending`` has something for the peer."""
        neighbor = self._neighbors.get(name)
        return neighbor is not None and any(
            outgoing.group.owes(name) or self._complete(name, family, outgoing)
            for family, outgoing in neighbor.outgoing.items()
        )

    def _complete(self, name: str, family: Family, outgoing: Outgoing) -> bool:
        """All that there was when the peer came, or asked again, has been sent."""
        table = self._loc[family]
        return (
            outgoing.awaited is not None
            and not table.deferred
            and table.decided >= outgoing.after
            and not outgoing.group.owes(name)
        )

    def pending(self, name: str, limit: int = 1000) -> Pending:
        """What to send to a peer next, of at most ``limit`` changes. It counts as sent."""
        neighbor = self._neighbors.get(name)
        if neighbor is None:
            return Pending()
        batches: list[Batch] = []
        completed: list[tuple[Family, Completed]] = []
        for family, outgoing in neighbor.outgoing.items():
            batch = outgoing.group.take(name, limit)
            if batch is not EMPTY:
                batches.append(batch)
            if outgoing.awaited is not None and self._complete(name, family, outgoing):
                completed.append((family, outgoing.awaited))
                outgoing.awaited = None
        return Pending(batches=tuple(batches), completed=tuple(completed), more=self.owes(name))

    def refresh_requested(self, name: str, family: Family) -> None:
        """The peer asks to be sent all again (RFC 2918); the first full table, while it goes on, is enough."""
        neighbor = self._neighbors.get(name)
        if neighbor is not None and (outgoing := neighbor.outgoing.get(family)) is not None:
            table = self._loc[family]
            outgoing.group.again(name)
            outgoing.awaited = outgoing.awaited or Completed.REFRESH
            outgoing.after = table.decided + table.undecided

    # To look at.

    def received(
        self, name: str, family: Family, prefixes: Collection[Prefix] | None = None
    ) -> Iterator[tuple[Prefix, Path]]:
        """What a peer has sent, rejected paths included; ``prefixes``: of these alone."""
        neighbor = self._neighbors.get(name)
        if neighbor is not None and family in neighbor.ribs:
            rib = neighbor.ribs[family]
            for key, path in rib.all() if prefixes is None else rib.of(prefixes):
                yield prefix_in(key), path

    def hops_of(self, name: str) -> set[NextHop]:
        """The next hops of all paths that a peer has sent."""
        neighbor = self._neighbors.get(name)
        ribs = neighbor.ribs.values() if neighbor is not None else ()
        return {hop for rib in ribs for hop in rib.hops()}

    def count(self, name: str) -> dict[Family, Counted]:
        """How much there is of each family in a peer's session, or is kept over its restart."""
        neighbor = self._neighbors.get(name)
        if neighbor is None or not (neighbor.up or any(map(len, neighbor.ribs.values()))):
            return {}
        return {
            family: Counted(len(rib), len(rib.stale), self._sent_to(neighbor, family))
            for family, rib in sorted(neighbor.ribs.items())
        }

    def _sent_to(self, neighbor: Neighbor, family: Family) -> int:
        outgoing = neighbor.outgoing.get(family)
        return outgoing.group.count(neighbor.name) if outgoing is not None else 0

    def is_stale(self, path: Path, family: Family, prefix: Prefix) -> bool:
        """A path has to be sent again by its peer, or goes."""
        neighbor = self._neighbors.get(path.source.name)
        rib = neighbor.ribs.get(family) if neighbor is not None else None
        return rib is not None and key_of(prefix, path.path_id) in rib.stale

    def chosen(self, family: Family) -> Mapping[Prefix, tuple[Path, ...]]:
        """The paths that are used of each prefix, the best one first."""
        return self._loc[family].selected

    def accepted(self, family: Family) -> Mapping[Prefix, tuple[Path, ...]]:
        """The paths of each prefix that policy accepted, in no order."""
        return self._loc[family].candidates

    def sent(
        self, name: str, family: Family, prefixes: Collection[Prefix] | None = None
    ) -> Iterator[tuple[Prefix, PathId, Attributes]]:
        """What a peer has been sent, when nothing is pending; ``prefixes``: of these alone."""
        neighbor = self._neighbors.get(name)
        if neighbor is not None and (outgoing := neighbor.outgoing.get(family)) is not None:
            yield from outgoing.group.sent(name, prefixes)

    def standings(self, family: Family, prefix: Prefix) -> tuple[Standing, ...]:
        """How each path to a prefix fared that policy accepted, the best one first."""
        return explain(self._loc[family].candidates.get(prefix, ()), self._loc[family].most)

    def why(self, family: Family, prefix: Prefix) -> tuple[Standing, ...]:
        """How each path to a prefix fared, the best one first, rejected ones last."""
        paths = list(self._loc[family].candidates.get(prefix, ()))
        for neighbor in self._neighbors.values():
            rib = neighbor.ribs.get(family)
            paths += [path for _, path in rib.of((prefix,)) if path.rejection is not None] if rib is not None else []
        return explain(paths, self._loc[family].most)

    def why_not_sent(self, name: str, family: Family, prefix: Prefix) -> Withheld | None:
        """Why the best path to a prefix is not sent to a peer; None where it is, or where there is none."""
        neighbor = self._neighbors.get(name)
        outgoing = neighbor.outgoing.get(family) if neighbor is not None else None
        chosen = self._loc[family].selected.get(prefix)
        if outgoing is None or not chosen:
            return None
        if chosen[0].source.name == name:
            return Withheld.SOURCE
        return outgoing.group.reason(prefix, chosen[0])


def _interface(reach: Reach | None) -> str:
    return reach.interface if reach is not None else ""
