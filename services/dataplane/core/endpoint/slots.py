"""Slots of ``endpoints``: which of its own a node writes an address to; an address keeps its slot.

A node has a fixed number of slots, so that a stolen key fills no more of the bucket. Nothing is remembered on disk:
where an address stands on the bus, it stays; a new one takes the lowest slot that nobody stands in, or else one whose
address is no more. Pure; a slot that somebody wrote something else into is written again where it was.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import chain

from proto.net import Address
from proto.slots import SLOTS


def assign(
    wanted: Collection[Address], assigned: Mapping[Address, int], present: Mapping[int, Address]
) -> dict[Address, int]:
    """A slot for each address; ``assigned``: where this agent put them, ``present``: what stands in the slots now.

    Addresses beyond the slots go without one: more than a node's links can have.
    """
    found = {address: assigned[address] for address in wanted if address in assigned}
    taken = set(found.values())
    for number in sorted(present):
        address = present[number]
        if number not in taken and address not in found and address in wanted:
            found[address] = number
            taken.add(number)
    empty = (number for number in range(SLOTS) if number not in taken and number not in present)
    stale = (number for number in sorted(present) if number not in taken)
    rest = (address for address in wanted if address not in found)
    return found | dict(zip(rest, chain(empty, list(stale)), strict=False))
