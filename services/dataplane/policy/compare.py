"""What a full pass of policy reads of the kernel's maps, slice by slice, with a turn for others after each.

Owns the comparison of a map with what it should say; what that is, the caller tells key by key.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from itertools import islice
from typing import TypeVar

from services.dataplane.core.datapath.wire import Record
from services.dataplane.datapath.maps import Table

SLICE = 1000
"""Entries or keys that are seen to before others have their turn: a few milliseconds."""

K = TypeVar("K", bound=Record)
V = TypeVar("V", bound=Record)
T = TypeVar("T")


async def slices(items: Iterable[T]) -> AsyncIterator[list[T]]:
    """:data:`SLICE` of them at a time, with a turn for others in between."""
    rest = iter(list(items))
    while part := list(islice(rest, SLICE)):
        yield part
        await asyncio.sleep(0)


async def odd(
    table: Table[K, V], wanted: Callable[[K], V | None], stays: Callable[[K], bool] = lambda key: False
) -> int:
    """Puts right what a map says that it should not. What is wanted is asked when it is put right, not before."""
    wrong = 0
    for part in table.parts(SLICE):
        strange = {key: wanted(key) for key, value in part.items() if wanted(key) != value and not stays(key)}
        right = {key: value for key, value in strange.items() if value is not None}
        table.apply(right, [key for key in strange if key not in right])
        wrong += len(strange)
        await asyncio.sleep(0)
    return wrong


async def count(table: Table[K, V]) -> int:
    """How many entries a map has."""
    found = 0
    for number in table.counts(SLICE * 4):
        found += number
        await asyncio.sleep(0)
    return found


def missing(table: Table[K, V], wanted: Mapping[K, V]) -> int:
    """Puts in what is not there."""
    lacks = {key: value for key, value in wanted.items() if table.get(key) != value}
    table.apply(lacks)
    return len(lacks)
