"""Which scopes directions of identities want and which ones subjects in the maps name, kept by what changes.

Owns the numbers of scopes. Two sets save a look at all of them: :attr:`ScopeUses.missing` and
:attr:`ScopeUses.unnamed`, which hold at least the scopes that have to be looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Container, Iterable

from services.dataplane.core.datapath.policy_layout import Subject
from services.dataplane.core.policy.scopes import Scope, digest
from services.dataplane.core.policy.steps import Side


class ScopeUses:
    """Bookkeeping of :class:`~services.dataplane.core.policy.maps.PolicyMaps`."""

    def __init__(self) -> None:
        self.scope_of: dict[Side, int] = {}
        """Number of the scope that a direction wants."""
        self.missing: dict[int, None] = {}
        """Scopes that somebody wants and the maps do not hold."""
        self.unnamed: dict[int, None] = {}
        """Scopes that may have become ones that nobody names."""
        self._contents: dict[int, bytes] = {}
        self._numbers: dict[bytes, int] = {}
        self._users: dict[int, set[Side]] = {}
        self._named: Counter[int] = Counter()

    def users(self, number: int) -> Collection[Side]:
        """Directions that want a scope, refused ones among them."""
        return self._users.get(number, ())

    def is_named(self, number: int) -> bool:
        """Whether some subject in the maps names a scope."""
        return number in self._named

    def want(self, side: Side, scope: Scope | None, held: Container[int]) -> None:
        """A direction wants this scope from now on; ``held``: numbers of scopes in the maps."""
        before = self.scope_of.pop(side, 0)
        if before:
            self._users[before].discard(side)
            self.unnamed[before] = None
        if scope is not None:
            number = self.scope_of[side] = self._number(scope)
            self._users.setdefault(number, set()).add(side)
            if number not in held:
                self.missing[number] = None

    def _number(self, scope: Scope) -> int:
        number = self._numbers.get(scope.content)
        if number is None:
            number = digest(scope.content, self._contents)
            self._contents[number] = scope.content
            self._numbers[scope.content] = number
        return number

    def adopt(self, subjects: Iterable[Subject]) -> None:
        """The maps hold these subjects and no others."""
        self._named = Counter(number for one in subjects for number in (one.ingress, one.egress) if number)

    def name(self, before: Subject | None, now: Subject | None) -> None:
        """A subject's entry says something else now."""
        if now is not None:
            self._named.update(number for number in (now.ingress, now.egress) if number)
        for number in (before.ingress, before.egress) if before is not None else ():
            if number:
                self._named[number] -= 1
                if not self._named[number]:
                    del self._named[number]
                    self.unnamed[number] = None

    def forget(self, number: int, held: Container[int]) -> None:
        """Drops what is known of a scope that the maps do not hold and nobody wants."""
        if number in held or self._users.get(number):
            return
        self._users.pop(number, None)
        self.missing.pop(number, None)
        content = self._contents.pop(number, None)
        if content is not None:
            del self._numbers[content]
