"""Routes of ``routing`` (protocol 186) in the kernel's main table, as far as tunnels and encryption ask for them.

They are kept by what the kernel tells, and made anew at each full look, since it does not tell everything: IPv4 routes
whose device went down or away vanish without a word (``fib_sync_down_dev``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from proto.net import Address, Network

RouteKey: TypeAlias = tuple[Network, int]
"""Destination and metric: what tells a route from others."""


@dataclass(frozen=True, slots=True)
class SeenRoute:
    """A route as the kernel has it."""

    link: int
    """Index of its device; 0 for one that refuses."""
    via: Address | None
    """Next hop."""
    prohibits: bool = False
    """It refuses because what goes there has to be encrypted (RTN_PROHIBIT)."""


class Routes:
    """See the module."""

    def __init__(self) -> None:
        self._routes: dict[RouteKey, SeenRoute] = {}
        self._by_link: dict[int, set[RouteKey]] = {}
        self._changed: set[RouteKey] = set()

    def __iter__(self) -> Iterator[tuple[RouteKey, SeenRoute]]:
        """All of them."""
        return iter(self._routes.items())

    def get(self, key: RouteKey) -> SeenRoute | None:
        """The route of a key."""
        return self._routes.get(key)

    def put(self, key: RouteKey, route: SeenRoute) -> None:
        """There is this route now, in the place of one of the same key."""
        if self._routes.get(key) != route:
            self._drop(key)
            self._routes[key] = route
            self._by_link.setdefault(route.link, set()).add(key)
            self._changed.add(key)

    def remove(self, key: RouteKey, route: SeenRoute) -> None:
        """The route is gone. One that took its place before that was told stays."""
        if self._routes.get(key) == route:
            self._drop(key)
            self._changed.add(key)

    def keep_links(self, links: Collection[int]) -> None:
        """Of devices, these alone are there: what led out by others is gone."""
        for link in [one for one in self._by_link if one and one not in links]:
            for key in list(self._by_link.get(link, ())):
                self._drop(key)
                self._changed.add(key)

    def replace(self, routes: Mapping[RouteKey, SeenRoute]) -> None:
        """These are all there are."""
        for key, route in list(self._routes.items()):
            if key not in routes:
                self.remove(key, route)
        for key, route in routes.items():
            self.put(key, route)

    def take_changed(self) -> set[RouteKey]:
        """Keys whose route is another than when this was asked last."""
        changed, self._changed = self._changed, set()
        return changed

    def has_plain(self, family: int, encrypting: Collection[int]) -> bool:
        """Whether packets of a family go to another node by a device that is none of those that encrypt."""
        return any(
            key[0].version == family
            for link, keys in self._by_link.items()
            if link and link not in encrypting
            for key in keys
        )

    def prohibited(self) -> frozenset[int]:
        """Families of which something must be encrypted, as the table says."""
        refusing = self._by_link.get(0, ())
        return frozenset(key[0].version for key in refusing if self._routes[key].prohibits)

    def _drop(self, key: RouteKey) -> None:
        before = self._routes.pop(key, None)
        if before is not None:
            keys = self._by_link[before.link]
            keys.discard(key)
            if not keys:
                del self._by_link[before.link]
