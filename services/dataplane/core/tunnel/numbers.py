"""Numbers by which the maps of tunnels name nodes: this agent's own, 32 bits, never 0.

A number is a hash of the node's name, so a restarted agent gives the same ones, and what is pinned goes on to agree
while it is compared. Where two names have one hash, who was first keeps it and the other gets the next.
"""

from __future__ import annotations

from collections.abc import Collection
from hashlib import blake2b
from itertools import count


class Numbers:
    """See the module."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._names: dict[int, str] = {}

    def __len__(self) -> int:
        """Nodes that have a number."""
        return len(self._numbers)

    def of(self, node: str) -> int:
        """The number of a node."""
        known = self._numbers.get(node)
        if known is not None:
            return known
        for salt in count():
            number = hash_of(node, salt)
            if number and number not in self._names:
                self._numbers[node], self._names[number] = number, node
                return number
        raise AssertionError("salts do not end")

    def name_of(self, number: int) -> str | None:
        """The node of a number; None for one that no node has."""
        return self._names.get(number)

    def keep(self, nodes: Collection[str]) -> None:
        """Forgets all but these."""
        for node in [name for name in self._numbers if name not in nodes]:
            del self._names[self._numbers.pop(node)]


def hash_of(node: str, salt: int = 0) -> int:
    """32 bits of a name."""
    return int.from_bytes(blake2b(node.encode(), digest_size=4, salt=salt.to_bytes(8, "little")).digest(), "little")
