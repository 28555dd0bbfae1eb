"""Adj-RIB-Out of an update group: what peers with equal export settings are sent, once for all of them.

The group has one table of what is to be sent, and a log of its changes: what there was, and what there is now. A peer
of the group is a position in that log. So a change costs one entry however many peers there are, and what a peer has is
known exactly: the first entry of a prefix after its position says it. A peer that joins first reads a backlog that all
share who join at the same time; one that wants all again reads that when it has all changes. A peer that is too far
behind has the changes that it lacks folded, a single one for each prefix, and reads them before the log. They are
folded as the log grows, a bounded number at a time. So the log is bounded by the table, however long a peer does not
read.

Peers that get other settings take their positions along: the group, or a part that is split from it, gets the settings,
and what a revision of all prefixes then changes is in its log. A group that was whole under the same settings takes
them over, each as soon as it has been sent all.

A peer is not sent its own paths: of each entry it sees what others said, and the table of a peer that is alone has none
of them. Peers that read the same are given the same objects for all prefixes of which they have no path themselves, so
that what is written for one can be sent to all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, repeat
from operator import attrgetter, itemgetter
from typing import TypeVar

from services.routing.core.bgp.filters import Policy, Rule, deciding, elsewhere
from services.routing.core.bgp.rib.entries import NOTHING, Again, Entry, Everything, Folded, Paths, Sent
from services.routing.core.bgp.rib.exports import ExportSettings, Withheld, exported, withheld
from services.routing.core.bgp.rib.paths import OWN, Path
from services.routing.core.bgp.values import Attributes, PathId, Prefix, Reachable, Unreachable

Changed = dict[Prefix, tuple[bool, Attributes | None]]
"""Whether a peer had something of a prefix before, and what it has now."""

_prefix_of, _paths_of = itemgetter(0), itemgetter(1, 2)

LONG_LOG = 1024
"""From here on the log is cut."""
LOG_PER_PREFIX = 2
"""Entries of the log for each prefix of the table; a peer that lacks more has them folded."""
FOLDED_AT_ONCE = 4096
"""Entries that are folded in one round, for all peers together."""
SHARED_BATCHES = 16
"""Batches that are remembered for peers that read the same next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What to send next, packed by attributes: write the withdrawals first."""

    unreachable: tuple[Unreachable, ...] = ()
    reachable: tuple[Reachable, ...] = ()


EMPTY = Batch()


@dataclass(slots=True)
class Reader:
    """How far a peer has read."""

    cursor: int
    """Number of the next entry of the log."""
    backlog: Sequence[Entry] = ()
    """To be read first."""
    at: int = 0
    """How much of the backlog was read."""
    folded: Folded | None = None
    """To be read after the backlog and before the log."""
    again: bool = False
    """All is to be sent again, after all of these."""


@dataclass(frozen=True, slots=True)
class _Shared:
    """A batch that several peers are given."""

    entries: Sequence[Entry]
    """What it was made of, so that it is not taken for another's while the batch is remembered."""
    batch: Batch
    """For a peer that no path of it was learnt from."""
    sources: dict[str, set[Prefix]]
    """The prefixes of which a peer has a path itself, by peer."""


@dataclass(slots=True)
class _Outcome:
    """What becomes of a path under the group's policy."""

    path: Path
    rules: tuple[Rule, ...] = ()
    usual: tuple[Sent, ...] = ()
    """The same for every prefix that needs no closer look."""
    closely: frozenset[bytes] | None = frozenset()
    """First octets of prefixes that need one, as they may be in a rule's range; None: all do."""
    by_rule: dict[Rule | None, tuple[Sent, ...]] = field(default_factory=dict)


class Group:
    """See the module.

    Args:
        settings: What its peers agree in.
        most: Paths of a prefix that are sent where several are (RFC 7911).
    """

    def __init__(self, settings: ExportSettings, most: int) -> None:
        self.settings = settings
        self._most = most if settings.sends_paths else 1
        self._policy = Policy(settings.rules, settings.family, default=settings.default)
        self.out: dict[Prefix, tuple[Sent, ...]] = {}
        self._common = False
        """Several peers are, or were, of the group."""
        self.whole_after = 0
        """Marks of the Loc-RIB that are decided when the group has all that was chosen before it was made, or got its
        settings.
        """
        self._log: list[Entry] = []
        self._base = 0
        self._readers: dict[str, Reader] = {}
        self._outcomes: dict[Path, _Outcome] = {}
        self._all: Sequence[Entry] | None = None
        self._counted: Counter[str] | None = None
        """Paths of the table by the peer that they were learnt from; None: not counted since it changed."""
        self._shared: dict[tuple[int, int, int], _Shared] = {}

    def __len__(self) -> int:
        """Peers of the group."""
        return len(self._readers)

    # What is to be sent.

    def revise(self, prefixes: Sequence[Prefix], paths: tuple[Path, ...]) -> None:
        """These prefixes have these paths now, best first; none: they are gone."""
        if paths and paths[0].source.name == self._only:
            paths = ()
        if not paths and self.out.keys().isdisjoint(prefixes):
            return
        outcomes = [self._outcome(path) for path in paths[: self._most]]
        if len(outcomes) == 1:
            usual, closely = outcomes[0].usual, outcomes[0].closely
        else:
            usual, closely = _joined([one.usual for one in outcomes]), _closely(outcomes)
        if closely is not None and not closely and self.out.keys().isdisjoint(prefixes):
            self._add(prefixes, usual)
            return
        out, log = self.out, self._log if self._readers else []
        logged = len(log)
        for prefix in prefixes:
            now = usual
            if closely is None or (closely and prefix[1:2] in closely):
                now = _joined([self._exported(prefix, one) for one in outcomes])
            was: tuple[Sent, ...] = out.get(prefix, ())
            if now is was or now == was:
                continue
            if now:
                out[prefix] = now
            else:
                del out[prefix]
            log.append((prefix, was, now))
        if len(log) > logged:
            self._all = self._counted = None

    def _add(self, prefixes: Sequence[Prefix], paths: tuple[Sent, ...]) -> None:
        """Prefixes come that there were none of: nearly all where a table comes first."""
        if paths:
            self.out.update(dict.fromkeys(prefixes, paths))
            self._all = self._counted = None
            if self._readers:
                self._log.extend(zip(prefixes, repeat(NOTHING), repeat(paths)))

    @property
    def _only(self) -> str | None:
        """The peer that the table is for, as long as it is for one: then it has none of that peer's own paths."""
        return next(iter(self._readers)) if len(self._readers) == self._most == 1 and not self._common else None

    def share(self) -> bool:
        """Be for several peers from now on; whether the table lacks paths for that, and all have to be revised."""
        lacks = self._only is not None
        self._common = True
        return lacks

    def _exported(self, prefix: Prefix, outcome: _Outcome) -> tuple[Sent, ...]:
        if outcome.closely is not None and prefix[1:2] not in outcome.closely:
            return outcome.usual
        rule = deciding(outcome.rules, prefix)
        sent = outcome.by_rule.get(rule)
        if sent is None:
            sent = outcome.by_rule[rule] = self._sent(outcome.path, rule)
        return sent

    def _outcome(self, path: Path) -> _Outcome:
        known = self._outcomes.get(path)
        if known is None:
            known = self._outcomes[path] = self._judged(path)
        return known

    def _judged(self, path: Path) -> _Outcome:
        if withheld(path, self.settings) is not None:
            return _Outcome(path)
        if self._policy.is_empty:
            return _Outcome(path, usual=self._sent(path, None))
        rules = self._policy.applicable(path.attributes, remote=path.source is not OWN, interface=path.interface)
        certain, rule = elsewhere(rules)
        usual = self._sent(path, rule) if certain else ()
        closely = self._policy.octets if any(one is not rule for one in rules) else frozenset[bytes]()
        return _Outcome(path, rules, usual, closely if certain else None)

    def _sent(self, path: Path, rule: Rule | None) -> tuple[Sent, ...]:
        if not self._policy.accepts(rule):
            return ()
        attributes = exported(path, self.settings, rule)
        if attributes is None:
            return ()
        return (Sent(attributes, path.source.name),)

    def reason(self, prefix: Prefix, path: Path) -> Withheld | None:
        """Why a path is not sent to peers of the group; None where it is."""
        if (why := withheld(path, self.settings)) is not None:
            return why
        rules = self._policy.applicable(path.attributes, remote=path.source is not OWN, interface=path.interface)
        rule = deciding(rules, prefix)
        if not self._policy.accepts(rule):
            return Withheld.NO_POLICY if rule is None else Withheld.FILTER
        return Withheld.NEXT_HOP if exported(path, self.settings, rule) is None else None

    def settle(self) -> None:
        """A round of revisions is over: forget what was worked out for it, and cut the log."""
        self._outcomes.clear()
        self._shared.clear()
        if len(self._log) >= LONG_LOG:
            self._fold()
            self._cut()

    @property
    def _most_logged(self) -> int:
        return LOG_PER_PREFIX * max(len(self.out), LONG_LOG)

    @property
    def is_full(self) -> bool:
        """Peers have to catch up, or what they lack has to be folded by :meth:`settle`, before anything is revised."""
        return len(self._log) > 2 * self._most_logged

    def _cut(self) -> None:
        least = min((reader.cursor for reader in self._readers.values()), default=self._base + len(self._log))
        if least - self._base >= LONG_LOG // 2:
            del self._log[: least - self._base]
            self._base = least

    def _fold(self) -> None:
        """Fold what peers lack that are too far behind: from the oldest entry on, once for peers with one position."""
        until, left = self._base + len(self._log) - self._most_logged, FOLDED_AT_ONCE
        while left > 0 and (far := [reader for reader in self._readers.values() if reader.cursor < until]):
            first = min(far, key=attrgetter("cursor"))
            start, folded = first.cursor - self._base, first.folded
            some = self._log[start : start + min(left, until - first.cursor)]
            left -= len(some)
            alike = [reader for reader in far if reader.cursor == first.cursor and reader.folded is folded]
            if folded is None or folded.is_read:
                folded = Folded(folded)
            folded.add(some)
            for reader in alike:
                reader.cursor, reader.folded = reader.cursor + len(some), folded

    # Who is sent it.

    def join(self, name: str) -> None:
        """A peer is to be sent all that there is."""
        self._readers[name] = Reader(self._base + len(self._log), self._everything())

    def leave(self, name: str) -> None:
        """A peer's session is gone."""
        del self._readers[name]

    def change(self, settings: ExportSettings) -> None:
        """All its peers have other settings now: all that is chosen is to be revised."""
        self.settings = settings
        self._policy = Policy(settings.rules, settings.family, default=settings.default)
        self._outcomes.clear()

    def split(self, names: Collection[str]) -> Group:
        """A group for some of its peers, which have read as much as before."""
        found = Group(self.settings, self._most)
        found.out, found._log, found._base = dict(self.out), list(self._log), self._base
        found._common, found.whole_after = self._common, self.whole_after
        found._readers = {name: self._readers.pop(name) for name in names}
        for reader in found._readers.values():
            if reader.folded is not None:
                reader.folded.entries()  # peers of this group, which have the same, are not to lack what those lack
        return found

    def take_over(self, other: Group) -> list[str]:
        """Be for those peers of a group with the same table that have been sent all of it; their names."""
        found = [name for name in other._readers if not other.owes(name)]
        for name in found:
            del other._readers[name]
            self._readers[name] = Reader(self._base + len(self._log))
        return found

    def again(self, name: str) -> None:
        """Send the peer all again, after what it has not been sent yet (RFC 2918)."""
        self._readers[name].again = True

    def _everything(self) -> Sequence[Entry]:
        if self._all is None:
            self._all = Everything(self.out)
        return self._all

    def owes(self, name: str) -> bool:
        """Something is to be sent to the peer."""
        reader = self._readers[name]
        behind = reader.at < len(reader.backlog) or reader.cursor < self._base + len(self._log)
        return behind or bool(reader.folded) or reader.again

    def sent(
        self, name: str, prefixes: Collection[Prefix] | None = None
    ) -> Iterator[tuple[Prefix, PathId, Attributes]]:
        """What the peer has, when all is sent; ``prefixes``: of these alone."""
        for prefix in self.out if prefixes is None else prefixes:
            for number, path in enumerate(self.out.get(prefix, ()), 1):
                if path.source != name and path.attributes is not None:
                    yield prefix, number if self.settings.sends_paths else 0, path.attributes

    def count(self, name: str) -> int:
        """Paths that the peer has, when all is sent."""
        if self._counted is None:
            self._counted = Counter(path.source for paths in self.out.values() for path in paths)
        return self._counted.total() - self._counted[name]

    def take(self, name: str, limit: int) -> Batch:
        """What to send to the peer next, of at most ``limit`` changes. It counts as sent."""
        reader = self._readers[name]
        self._advance(reader)
        if reader.at < len(reader.backlog):
            entries, start = reader.backlog, reader.at
            stop = reader.at = min(start + limit, len(entries))
            if stop == len(entries):
                reader.backlog, reader.at = (), 0
                self._release()
        else:
            entries, start = self._log, reader.cursor - self._base
            stop = min(start + limit, len(entries))
            reader.cursor = self._base + stop
        return self._batch(name, entries, start, stop) if start < stop else EMPTY

    def _advance(self, reader: Reader) -> None:
        """When a peer has read its backlog, what comes before the log is that, and all again when it has read both."""
        if reader.at < len(reader.backlog):
            return
        if reader.folded is not None:
            reader.backlog, reader.at, reader.folded = reader.folded.entries(), 0, None
        elif reader.again and reader.cursor == self._base + len(self._log):
            reader.backlog, reader.at, reader.again = Again(self.out), 0, False

    def _release(self) -> None:
        """Forget the backlog that peers shared, when nobody reads it any more."""
        if all(reader.backlog is not self._all for reader in self._readers.values()):
            self._all = None

    def _batch(self, name: str, entries: Sequence[Entry], start: int, stop: int) -> Batch:
        some = entries[start:stop]
        if len(self._readers) == 1:
            return self._packed(some, name)
        key = (id(entries), start, stop)
        shared = self._shared.get(key)
        if shared is None:
            if len(self._shared) >= SHARED_BATCHES:
                self._shared.clear()
            shared = self._shared[key] = _Shared(entries, self._packed(some, ""), _by_source(some))
        own = shared.sources.get(name)
        if own is None:
            return shared.batch
        private = self._packed([entry for entry in some if entry[0] in own], name)
        return Batch(
            unreachable=(*_apart(shared.batch.unreachable, own), *private.unreachable),
            reachable=(*_apart(shared.batch.reachable, own), *private.reachable),
        )

    def _packed(self, entries: Sequence[Entry], name: str) -> Batch:
        """What the entries change for a peer, the last word on each path; empty: for one that none is from."""
        changes = [_changed(entries, name or None)] if self._most == 1 else _all_changed(entries, name)
        gone: list[Unreachable] = []
        come: list[Reachable] = []
        for number, changed in enumerate(changes, 1):
            self._pack(number if self.settings.sends_paths else 0, changed, gone, come)
        return Batch(unreachable=tuple(gone), reachable=tuple(come))

    def _pack(
        self,
        path_id: PathId,
        changed: Changed,
        gone: list[Unreachable],
        come: list[Reachable],
    ) -> None:
        """Gather the prefixes that have the same attributes now, and those that had some and have none."""
        runs: dict[Attributes | None, list[Prefix]] = {}
        known: dict[int, list[Prefix]] = {}  # by identity, since most are the same object and a hash of all costs more
        for prefix, (had, attributes) in changed.items():
            if attributes is None and not had:
                continue  # it came and went since
            run = known.get(id(attributes))
            if run is None:
                run = known[id(attributes)] = runs.setdefault(attributes, [])
            run.append(prefix)
        family = self.settings.family
        for attributes, prefixes in runs.items():
            ids = (path_id,) * len(prefixes) if path_id else ()
            if attributes is None:
                gone.append(Unreachable(family=family, prefixes=tuple(prefixes), path_ids=ids))
            else:
                come.append(Reachable(family=family, attributes=attributes, prefixes=tuple(prefixes), path_ids=ids))


Run = TypeVar("Run", Reachable, Unreachable)


def _by_source(entries: Sequence[Entry]) -> dict[str, set[Prefix]]:
    found: dict[str, set[Prefix]] = {}
    for prefix, was, now in entries:
        for path in (*was, *now):
            if path is not None:
                found.setdefault(path.source, set()).add(prefix)
    return found


def _apart(runs: tuple[Run, ...], own: set[Prefix]) -> Iterator[Run]:
    """The runs without some prefixes; those that have none of them are the same objects."""
    for run in runs:
        if own.isdisjoint(run.prefixes):
            yield run
        elif rest := tuple(prefix for prefix in run.prefixes if prefix not in own):
            yield replace(run, prefixes=rest, path_ids=run.path_ids[: len(rest)])  # all have the same identifier


def _without(name: str, paths: Paths) -> Paths:
    """The paths as the peer sees them that some may have been learnt from."""
    if all(path is None or path.source != name for path in paths):
        return paths
    return tuple(None if path is None or path.source == name else path for path in paths)


def _joined(parts: Sequence[tuple[Sent, ...]]) -> tuple[Sent, ...]:
    """All of them in one; the same object where there is one."""
    return parts[0] if len(parts) == 1 else tuple(sent for part in parts for sent in part)


def _closely(outcomes: Sequence[_Outcome]) -> frozenset[bytes] | None:
    """First octets of prefixes that some outcome depends on; None: all."""
    found = [one.closely for one in outcomes]
    known = [one for one in found if one is not None]
    return frozenset[bytes]().union(*known) if len(known) == len(found) else None


def _changed(entries: Sequence[Entry], name: str | None) -> Changed:
    """What entries of one path at most change for a peer; None: for one that none is from."""
    changed: Changed = {}
    for (was, now), run in groupby(entries, _paths_of):
        old = was[0] if was and was[0] and was[0].source != name else None
        new = now[0] if now and now[0] and now[0].source != name else None
        if old is new or (old and new and old.attributes == new.attributes):
            continue
        prefixes = list(map(_prefix_of, run))
        attributes = new.attributes if new else None
        if changed.keys().isdisjoint(prefixes):
            changed.update(dict.fromkeys(prefixes, (old is not None, attributes)))
        else:
            for prefix in prefixes:
                had = changed[prefix][0] if prefix in changed else old is not None
                changed[prefix] = (had, attributes)
    return changed


def _all_changed(entries: Sequence[Entry], name: str) -> list[Changed]:
    """The same of entries with more paths, one for each place; empty: for a peer that none is from."""
    changes: list[Changed] = []
    for prefix, before, after in entries:
        was, now = (_without(name, before), _without(name, after)) if name else (before, after)
        for index in range(max(len(was), len(now))):
            old = was[index] if index < len(was) else None
            new = now[index] if index < len(now) else None
            if old is new or (old and new and old.attributes == new.attributes):
                continue
            while len(changes) <= index:
                changes.append({})
            changed = changes[index]
            had = changed[prefix][0] if prefix in changed else old is not None
            changed[prefix] = (had, new.attributes if new else None)
    return changes
