"""Adj-RIB-In: what one peer has sent of one family, before policy, and what of it may be out of date (RFC 4271 3.2).

A path is stale when its peer has to send it again and has not yet: after a restart until its End-of-RIB (RFC 4724),
after a request to send all again until the end of that (RFC 7313). Stale paths are used as any other. What is still
stale at the end, or when time is up, goes. Which paths are stale is a set of keys, and empty nearly always.

What concerns all paths of a peer at once (they go, policy is another one, they are long-lived from now on) is noted
when it happens and done by ``work``, a bounded number of paths at a time. What goes is not counted from the moment on;
what the peer sends again meanwhile stays.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from enum import Enum

from services.routing.core.bgp.communities import NO_LLGR
from services.routing.core.bgp.rib.imports import Importer, long_lived
from services.routing.core.bgp.rib.loc_rib import LocRib
from services.routing.core.bgp.rib.paths import Key, NextHop, Path, alike, key_of, prefix_in
from services.routing.core.bgp.values import Attributes, PathId, Prefix, Reachable, Unreachable


class Awaited(Enum):
    """What a peer with stale paths has to send all of them again for."""

    RESTART = "restart"
    """Its session was lost (RFC 4724, RFC 9494)."""
    REFRESH = "refresh"
    """It was asked to, or does it of its own accord (RFC 7313)."""


class AdjRibIn:
    """See the module."""

    def __init__(self, importer: Importer, table: LocRib) -> None:
        self._importer = importer
        self._table = table
        self.paths: dict[Key, Path] = {}
        """Those that go are among them until they have gone."""
        self.stale: set[Key] = set()
        self.going: dict[Key, None] = {}
        """Paths that the peer has no longer, and which are to be removed."""
        self.awaited: Awaited | None = None
        self._identified = False
        """The peer has sent path identifiers."""
        self._outliving: list[Key] = []
        """Paths that are to become long-lived stale ones, where they are stale still."""
        self._unjudged: list[Key] = []
        """Paths that are to be judged by the present policy."""
        self._long_lived: dict[Path, Path] = {}
        """What paths are as long-lived ones: one object for all prefixes of a path."""

    def __len__(self) -> int:
        """Paths that the peer has."""
        return len(self.paths) - len(self.going)

    @property
    def pending(self) -> int:
        """Paths that ``work`` has to look at."""
        return len(self.going) + len(self._outliving) + len(self._unjudged)

    def work(self, limit: int) -> int:
        """Look at this many paths at most of those that are pending; how many that were."""
        looked = min(limit, len(self.going))
        for _ in range(looked):
            self._remove(self.going.popitem()[0])
        for keys, act in ((self._outliving, self._outlive), (self._unjudged, self._judge)):
            part = keys[max(len(keys) - (limit - looked), 0) :]
            del keys[len(keys) - len(part) :]
            for key in part:
                if key in self.paths and key not in self.going:
                    act(key)
            looked += len(part)
        if not self.pending:
            self._long_lived.clear()
        return looked

    def announce(self, attributes: Attributes, path_id: PathId, prefixes: Sequence[Prefix]) -> None:
        """The peer sent these prefixes."""
        admission = self._importer.admission(attributes, path_id)
        self._identified |= path_id != 0
        closely, usual = self._importer.closely, admission.usual
        table, paths, stale, going = self._table, self.paths, self.stale, self.going
        outdated = bool(stale or going)
        if usual is not None and not path_id and not outdated and usual[0].rejection is None:
            prefixes = self._added(prefixes, usual)
        candidates, marked = table.candidates, table.marked
        for prefix in prefixes:
            key = key_of(prefix, path_id) if path_id else prefix
            old = paths.get(key)
            alone = usual if usual is not None and prefix[1:2] not in closely else admission.alone(prefix)
            new = alone[0]
            if outdated:
                stale.discard(key)
                going.pop(key, None)
            if old is None and new.rejection is None and prefix not in candidates:  # as nearly all
                paths[key] = new
                candidates[prefix] = alone
                marked[prefix] = None
            elif old is None or not alike(old, new):
                self._put(key, old, new)

    def _added(self, prefixes: Sequence[Prefix], usual: tuple[Path]) -> Sequence[Prefix]:
        """Take in those that need no closer look, all at once where nobody has a path to any of them, as where a table
        comes first; what is left.
        """
        closely, paths, table = self._importer.closely, self.paths, self._table
        found = [prefix for prefix in prefixes if prefix[1:2] not in closely]
        if not (paths.keys().isdisjoint(found) and table.candidates.keys().isdisjoint(found)):
            return prefixes
        paths.update(dict.fromkeys(found, usual[0]))
        table.candidates.update(dict.fromkeys(found, usual))
        table.marked.update(dict.fromkeys(found))
        return [prefix for prefix in prefixes if prefix[1:2] in closely] if len(found) < len(prefixes) else ()

    def fitting(self, path_id: PathId, prefixes: Sequence[Prefix], room: int) -> Sequence[Prefix]:
        """The prefixes that may be announced when there is room for so many new ones; others are left out."""
        if len(prefixes) <= room:
            return prefixes
        found: dict[Prefix, None] = {}
        for prefix in prefixes:
            key = key_of(prefix, path_id)
            if key in self.paths and key not in self.going:
                found[prefix] = None
            elif room > 0 and prefix not in found:
                found[prefix] = None
                room -= 1
        return tuple(found)

    def of(self, prefixes: Collection[Prefix]) -> Iterator[tuple[Key, Path]]:
        """The paths of some prefixes; looks at all that there are where they have path identifiers."""
        if self._identified:
            return ((key, path) for key, path in self.all() if prefix_in(key) in prefixes)
        return ((key, self.paths[key]) for key in prefixes if key in self.paths and key not in self.going)

    def all(self) -> Iterator[tuple[Key, Path]]:
        """All paths that the peer has."""
        return ((key, path) for key, path in self.paths.items() if key not in self.going)

    def hops(self) -> set[NextHop]:
        """The next hops of all paths that the peer has."""
        paths = set(self.paths.values()) if not self.going else {path for _, path in self.all()}
        return {path.hop for path in paths if path.hop is not None}

    def withdraw(self, path_id: PathId, prefixes: Iterable[Prefix]) -> None:
        """The peer took these prefixes back; those that it never sent do not matter."""
        for prefix in prefixes:
            self._remove(key_of(prefix, path_id))

    def _remove(self, key: Key) -> None:
        self.stale.discard(key)
        self.going.pop(key, None)
        old = self.paths.pop(key, None)
        if old is not None:
            self._table.replace(prefix_in(key), old, None)

    def lost(self, *, keep: bool) -> None:
        """The session is gone; ``keep``: its paths stay until the peer has sent them again (RFC 4724 4.2).

        Those that were stale from a restart before and not yet sent again go, but for long-lived ones (RFC 9494 4.2).
        """
        if not keep:
            self.going = dict.fromkeys(self.paths)
        elif self.awaited is Awaited.RESTART:
            self.going |= dict.fromkeys(key for key in self.stale if not self.paths[key].long_lived)
        self.stale = self._present()
        self.awaited = Awaited.RESTART if self.stale else None

    def _present(self) -> set[Key]:
        return self.paths.keys() - self.going.keys() if self.going else set(self.paths)

    def begin_refresh(self) -> None:
        """The peer begins to send all again; unheeded while it still does so after a restart (RFC 7313 4)."""
        if self.awaited is not Awaited.RESTART:
            self.stale = self._present()
            self.awaited = Awaited.REFRESH

    def end(self, awaited: Awaited) -> None:
        """The peer has sent all again that it had to."""
        if self.awaited is awaited:
            self.sweep()

    def sweep(self) -> None:
        """What is stale goes."""
        self.going |= dict.fromkeys(self.stale)
        self.stale = set()
        self.awaited = None

    def outlive(self) -> None:
        """What is stale from a restart is now long-lived stale, or goes where it must not be (RFC 9494 4.2)."""
        if self.awaited is Awaited.RESTART:
            self._outliving = list(self.stale)

    def _outlive(self, key: Key) -> None:
        old = self.paths[key]
        if key not in self.stale or old.long_lived:
            return  # it was sent again since
        if NO_LLGR in old.received.communities:
            self._remove(key)
        else:
            self._put(key, old, self._as_long_lived(old))

    def _as_long_lived(self, path: Path) -> Path:
        found = self._long_lived.get(path)
        if found is None:
            found = self._long_lived[path] = long_lived(path)
        return found

    def judge_again(self, importer: Importer) -> None:
        """Policy, or what the peer is, may be another: judge all paths again, as they came."""
        self._importer = importer
        self._unjudged = list(self.paths)

    def _judge(self, key: Key) -> None:
        old = self.paths[key]
        new = self._importer.admission(old.received, old.path_id).alone(prefix_in(key))[0]
        if old.long_lived:
            new = self._as_long_lived(new)
        if not alike(old, new):
            self._put(key, old, new)

    def _put(self, key: Key, old: Path | None, new: Path) -> None:
        self.paths[key] = new
        self._table.replace(prefix_in(key), old, new)


def by_path(entry: Reachable | Unreachable) -> Iterable[tuple[PathId, Sequence[Prefix]]]:
    """The prefixes by path identifier; all of them under 0 where the family has none."""
    if not entry.path_ids:
        return ((0, entry.prefixes),)
    found: dict[PathId, list[Prefix]] = {}
    for path_id, prefix in zip(entry.path_ids, entry.prefixes, strict=True):
        found.setdefault(path_id, []).append(prefix)
    return found.items()
