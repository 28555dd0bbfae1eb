"""Unused identities: those that are published and that no pod has, which of them linger, and which are to be deleted.

Kernels learn late, so an identity that its last pod left *lingers* for a grace: it keeps its rules, and counts as a
peer. What lingers is also bounded in number: a pod that is relabelled fast must not fill its namespace's budget with
what it was. Of each namespace the latest linger, no more than its pods have, or a few; so one that is relabelled as a
whole keeps all that its pods just were.

Kept by what changes: :meth:`Unused.look` for each identity that may be another in any respect, then
:meth:`Unused.settle`, which looks at namespaces with a change alone. What comes out is a function of what was last seen
of each identity and of when it became unused. Times are seconds of a monotonic clock.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping

from proto.identity import IdentityRecord
from services.policy.core.identities import Member
from services.policy.core.limits import Limits

FEW = 64
"""Identities of a namespace that may linger in any case."""


class Unused:
    """``seconds``: the grace."""

    def __init__(self, limits: Limits, seconds: float) -> None:
        self._limits = limits
        self._seconds = seconds
        self._records: dict[int, IdentityRecord] = {}
        self._used_in: dict[int, str] = {}
        """Namespace of each identity that a pod has."""
        self._used: Counter[str] = Counter()
        self._waiting: OrderedDict[int, float] = OrderedDict()
        """Unused identities whose grace is not over, and since when: the oldest first."""
        self._over: set[int] = set()
        self._waiting_in: dict[int, str] = {}
        """Of those that wait and have a record, the namespace that it names."""
        self._by_namespace: dict[str, dict[int, float]] = {}
        self._crowded: set[int] = set()
        """Those that are too many to linger."""
        self._lingering: dict[int, Member] = {}
        self._dirty: set[str] = set()
        self._changed: set[int] = set()

    @property
    def records(self) -> Mapping[int, IdentityRecord]:
        """What is published, as it was last seen."""
        return self._records

    @property
    def lingering(self) -> Mapping[int, Member]:
        """Unused identities whose time is not over, by what their record says."""
        return self._lingering

    @property
    def expired(self) -> frozenset[int]:
        """Unused identities whose time is over, or that are too many to linger."""
        return frozenset(self._over | self._crowded)

    @property
    def known(self) -> frozenset[int]:
        """Identities that anything is remembered of."""
        return frozenset().union(self._records, self._used_in, self._waiting, self._over)

    def look(
        self, identity: int, now: float, *, record: IdentityRecord | None, has_rules: bool, user: Member | None
    ) -> None:
        """The identity as it is: what is published of it, and who has it. ``now`` never goes back."""
        before = self._records.get(identity)
        if record is None:
            self._records.pop(identity, None)
        else:
            self._records[identity] = record
        self._use(identity, "" if user is None else user.namespace)
        other = record is not None and (user is None or user.digest != record.digest)
        if not other and not (has_rules and user is None):
            self._waiting.pop(identity, None)
            self._over.discard(identity)
        elif identity not in self._over:
            self._waiting.setdefault(identity, now)
        self._file(identity, same=before == record)

    def _use(self, identity: int, namespace: str) -> None:
        before = self._used_in.get(identity, "")
        if before == namespace:
            return
        if before:
            self._used[before] -= 1
            if not self._used[before]:
                del self._used[before]
        if namespace:
            self._used_in[identity] = namespace
            self._used[namespace] += 1
        else:
            del self._used_in[identity]
        self._dirty |= {before, namespace}

    def _file(self, identity: int, *, same: bool) -> None:
        """Keep the identity under the namespace it waits in, if it does; ``same``: its record is as before."""
        record = self._records.get(identity)
        since = self._waiting.get(identity)
        namespace = "" if record is None or since is None else record.namespace
        before = self._waiting_in.get(identity, "")
        if same and before == namespace and self._by_namespace.get(namespace, {}).get(identity) == since:
            return
        if before:
            del self._waiting_in[identity], self._by_namespace[before][identity]
            if not self._by_namespace[before]:
                del self._by_namespace[before]
        if record is None or since is None:
            self._crowded.discard(identity)
            self._end(identity)
        else:
            self._waiting_in[identity] = namespace
            self._by_namespace.setdefault(namespace, {})[identity] = since
        self._dirty |= {before, namespace}

    def settle(self, now: float) -> frozenset[int]:
        """Bring everything up to ``now``; the identities of which :attr:`lingering` says something else than before."""
        while self._waiting:
            identity, since = next(iter(self._waiting.items()))
            if now - since < self._seconds:
                break
            del self._waiting[identity]
            self._over.add(identity)
            self._file(identity, same=True)
        for namespace in self._dirty:
            self._settle_namespace(namespace)
        self._dirty.clear()
        changed, self._changed = frozenset(self._changed), set()
        return changed

    def _settle_namespace(self, namespace: str) -> None:
        waiting = self._by_namespace.get(namespace, {})
        used = self._used.get(namespace, 0)
        most = max(min(used, self._limits.identities - used), FEW)
        latest = sorted((-since, identity) for identity, since in waiting.items())
        for index, (_, identity) in enumerate(latest):
            if index < most:
                self._crowded.discard(identity)
                self._linger(identity)
            else:
                self._crowded.add(identity)
                self._end(identity)

    def _linger(self, identity: int) -> None:
        """Of one that is remade although its record is as before the index would have to be told: so it is not."""
        record, known = self._records[identity], self._lingering.get(identity)
        if known is None or not known.matches_record(record):
            self._lingering[identity] = Member.from_record(record)
            self._changed.add(identity)

    def _end(self, identity: int) -> None:
        if self._lingering.pop(identity, None) is not None:
            self._changed.add(identity)

    def next_expiry(self, now: float) -> float | None:
        """Seconds until the time of one is over; None when none waits."""
        return next((max(0.0, since + self._seconds - now) for since in self._waiting.values()), None)
