"""How many entries the tables take that follow what the cluster asks for: at the start, next, and at most.

Owns the rule: a table that is asked for more than four fifths of its entries doubles until it is not, as far as the
node's memory allows (a share of it, which is a setting); one with a size of its own in the settings has that size and
keeps it. A map that has grown stays as large while it is pinned. Memory is reckoned for full tables: key, value, what
the kernel keeps beside them, and the agent's own mirror of the map, which is the larger part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.dataplane.core.datapath import maps as m

POLICY_PARTS = {
    m.SCOPE_PEERS.name: 4,
    m.SCOPE_PORTS.name: 2,
    m.SCOPE_RULES.name: 1,
    m.SELECTED.name: 1,
    m.CIDRS.name: 2,
}
PARTS = {
    m.SERVICES.name: 2, m.BACKENDS.name: 4, m.MEMBERS.name: 4, m.SOURCE_RANGES.name: 1, m.IPCACHE.name: 5,
    **POLICY_PARTS,
}  # fmt: skip
"""Tables that grow, and how many parts of their memory each may have."""
OVERHEAD = 80 + 640
"""Bytes that an entry costs beside key and value: a hash's element and bucket, or a trie's node and inner node, and the
agent's records of it."""
MOST = 1 << 19
"""What a full pass of the agent can still compare, some seconds on a thread of its own."""
MOST_OF_POLICY = 1 << 20
"""Policy maps are compared slice by slice, and the more seldom the longer it takes."""
_SPECS = {spec.name: spec for spec in m.MAPS}


@dataclass(frozen=True, slots=True)
class Limits:
    """Entries by table."""

    first: Mapping[str, int]
    most: Mapping[str, int]

    def next(self, asked: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
        """The tables that are to be larger, given what is asked of them and what they take now."""
        wanted: dict[str, int] = {}
        for name, amount in asked.items():
            size = now[name]
            while amount * 5 > size * 4 and size < self.most[name]:
                size = min(size * 2, self.most[name])
            if size > now[name]:
                wanted[name] = size
        return wanted


def limits(memory: int, share: float, fixed: Mapping[str, int]) -> Limits:
    """Limits for a node of so many bytes, of which the growing tables may have a ``share``. ``fixed``: sizes from the
    settings, by table; 0 or absent: none.
    """
    first = {name: fixed.get(name) or _SPECS[name].entries for name in PARTS}
    most = {}
    for name, parts in PARTS.items():
        spec = _SPECS[name]
        room = memory * share * parts / sum(PARTS.values()) / (spec.key_size + spec.value_size + OVERHEAD)
        power = 1 << max(int(room).bit_length() - 1, 0)
        bound = MOST_OF_POLICY if name in POLICY_PARTS else MOST
        most[name] = fixed.get(name) or max(min(power, bound), spec.entries)
    return Limits(first, most)
