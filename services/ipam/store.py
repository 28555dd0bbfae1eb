"""Compare-and-set writes whose time-outs are settled: the one way this service changes a record.

A write that nobody answered may have happened. So it is read again from the leader: when the record is exactly the one
that was to be written (its nonce makes that certain) it was ours; when not, ``Unavailable`` is raised and the asker
tries again with the same nonce.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, TypeVar

import msgspec

from chassis.bus.entry import Entry
from chassis.bus.kv import Conflict
from chassis.faults import Refused, Unavailable
from proto.sync import Complete, complete_key

T = TypeVar("T", bound=msgspec.Struct)


class Store(Protocol):
    """The part of ``chassis.bus.kv.KV`` that is needed here."""

    async def get(self, key: str, kind: type[T], /) -> Entry[T] | None:
        """The record as the leader has it."""

    async def create(self, key: str, value: msgspec.Struct, /, *, mend: bool = False) -> int | Conflict:
        """Write when there is none; with ``mend``, or one that cannot be read."""

    async def update(self, key: str, value: msgspec.Struct, revision: int, /) -> int | Conflict:
        """Write over exactly this revision."""

    async def put(self, key: str, value: msgspec.Struct, /) -> int:
        """Write whatever is there."""

    async def delete(self, key: str, revision: int | None = None, /) -> Conflict | None:
        """Delete exactly this revision."""


async def fence(stores: tuple[Store, ...], epochs: tuple[str, ...]) -> None:
    """Ask the leader whether each bucket still is the one that was seen, and whole.

    A bucket that was made anew a moment ago is empty, and a view that has not noticed yet would let everything through.
    Raises Refused (``not-synced``).
    """
    markers = await asyncio.gather(*(store.get(complete_key(), Complete) for store in stores))
    for marker, epoch in zip(markers, epochs, strict=True):
        if marker is None or marker.value.epoch != epoch:
            raise Refused("not-synced", "a bucket was made anew: what it held is being gathered", retry=True)


async def compare_and_set(
    store: Store, key: str, value: T, over: Entry[T] | None, *, mend: bool = False
) -> Entry[T] | None:
    """Write ``value`` over the entry that was read (None: over nothing); None when somebody else was faster.

    ``mend``: nothing may also be a record that cannot be read.

    Raises Unavailable when it is not known and cannot be found out whether it was written.
    """
    try:
        if over is None:
            written = await store.create(key, value, mend=mend)
        else:
            written = await store.update(key, value, over.revision)
    except Unavailable:
        found = await store.get(key, type(value))
        if found is None or found.value != value:
            raise
        return found
    if isinstance(written, Conflict):
        return None
    return Entry(key, value, written)


async def delete_exactly(store: Store, key: str, value: msgspec.Struct) -> bool:
    """Delete a record if it still is this very value."""
    entry = await store.get(key, type(value))
    if entry is None or entry.value != value:
        return False
    return await store.delete(key, entry.revision) is None
