"""Typed tables over eBPF maps: read whole, compare with what is wanted, change what differs.

Owns the way in and out of a map in batches. ``apply`` adds before it removes, and removals never wait for additions:
what finds no room keeps nothing else from being written or removed, is tried once more when room was made, and is named
by the error at the end. The agent alone writes these maps (conntrack, fragments and the like are written by the
programs and only read here). Refuses a descriptor whose layout is not that of ``core.datapath.maps``; how many entries
a map takes is the map's own (:attr:`Table.entries`), since it may have been replaced by a larger one.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from kit.delta import Delta, delta
from linux import bpf
from services.dataplane.core.datapath.layout import MapKind
from services.dataplane.core.datapath.maps import MapSpec
from services.dataplane.core.datapath.wire import Record

K = TypeVar("K", bound=Record)
V = TypeVar("V", bound=Record)

BATCH = 8192
"""Entries a system call: 10 000 take about 4 ms."""


class LayoutMismatch(RuntimeError):
    """A map is not what these programs were built for."""


class TableFull(OSError):
    """Entries that found no room; everything else of the call has been done. ``keys`` are theirs."""

    def __init__(self, spec: MapSpec, keys: Iterable[Record], entries: int) -> None:
        self.spec = spec
        self.keys = frozenset(keys)
        said = f"{spec.name} takes {entries} entries and has no room for {len(self.keys)} more"
        super().__init__(errno.E2BIG, said)


def check_shape(spec: MapSpec, kind: int, key_size: int, value_size: int, entries: int) -> None:
    """Raises LayoutMismatch, naming what differs. How many entries it has is not looked at where it may grow."""
    ring = spec.kind is MapKind.RINGBUF
    entries = spec.entries if spec.may_grow else entries
    found = (kind, 0 if ring else key_size, 0 if ring else value_size, entries)
    wanted = (int(spec.kind), spec.key_size, spec.value_size, spec.entries)
    if found != wanted:
        raise LayoutMismatch(
            f"map {spec.name} is (type, key, value, entries) = {found} but should be {wanted}: "
            "remove the pins of the other version, or rebuild the bytecode"
        )


class Table(Generic[K, V]):
    """One map. Blocking, microseconds a call; safe from one thread at a time."""

    def __init__(self, fd: int, spec: MapSpec, key: type[K], value: type[V]) -> None:
        info = bpf.map_info(fd)
        check_shape(spec, info.kind, info.key_size, info.value_size, info.entries)
        if (key, value) != (spec.key, spec.value):
            raise TypeError(f"{spec.name} holds {spec.key} and {spec.value}")
        self.fd = fd
        self.spec = spec
        self.entries = info.entries
        """How many it takes."""
        self.lock = threading.RLock()
        """Held while it is written, and while it is being replaced by a larger one."""
        self._key = key
        self._value = value

    def move(self, fd: int) -> None:
        """From now on this is the map of another descriptor (a larger copy). Call it with the lock held."""
        self.entries = bpf.map_info(fd).entries
        self.fd = fd

    def get(self, key: K) -> V | None:
        """One entry, None without one. For a trie: the longest prefix that matches."""
        with self.lock:
            raw = bpf.lookup(self.fd, key.pack(), self.spec.value_size)
        return None if raw is None else self._value.unpack(raw)

    def put(self, key: K, value: V) -> None:
        """Sets one entry. Raises BpfError E2BIG when the map is full."""
        with self.lock:
            bpf.update(self.fd, key.pack(), value.pack())

    def remove(self, key: K) -> bool:
        """Removes one entry; False when there was none."""
        with self.lock:
            return bpf.delete(self.fd, key.pack())

    def items(self, count: int = 4096) -> dict[K, V]:
        """All entries, read ``count`` at a time. While the programs write, one that comes or goes may be missed."""
        found: dict[K, V] = {}
        with self.lock:
            for part in self.parts(count):
                found.update(part)
        return found

    def parts(self, count: int = 4096) -> Iterator[dict[K, V]]:
        """All entries, about ``count`` at a time: for whoever lets others have their turn in between.

        Not for a table that may be replaced by a larger one meanwhile.
        """
        key_wire, value_wire = self._key.wire().codec, self._value.wire().codec
        for _, keys, values in bpf.lookup_batch(self.fd, self.spec.key_size, self.spec.value_size, count):
            found: dict[K, V] = {}
            for k, v in zip(key_wire.iter_unpack(keys), value_wire.iter_unpack(values), strict=True):
                found[self._key.from_values(k)] = self._value.from_values(v)
            yield found

    def counts(self, count: int = 4096) -> Iterator[int]:
        """How many entries there are, in parts, unread."""
        for found, _, _ in bpf.lookup_batch(self.fd, self.spec.key_size, self.spec.value_size, count):
            yield found

    def diff(self, desired: Mapping[K, V]) -> Delta[K, V, V]:
        """What ``apply`` needs to make the map equal to ``desired``."""
        return delta(desired, self.items())

    def apply(self, upserts: Mapping[K, V], deletes: Iterable[K] = ()) -> None:
        """Sets, then removes, then tries again to set what had found no room. Raises :class:`TableFull` at the end,
        when all that can be done has been done.
        """
        with self.lock:
            left: Mapping[K, V] = upserts
            gone = 0
            try:
                left = self._set(upserts)
            finally:
                gone = self._remove(deletes)
            if left and gone:
                left = self._set(left)
            if left:
                raise TableFull(self.spec, left, self.entries)

    def _set(self, upserts: Mapping[K, V]) -> dict[K, V]:
        """Those that found no room."""
        entries = list(upserts.items())
        refused: dict[K, V] = {}
        for start in range(0, len(entries), BATCH):
            part = entries[start : start + BATCH]
            keys, values = b"".join(key.pack() for key, _ in part), b"".join(value.pack() for _, value in part)
            refused.update(part[index] for index in bpf.update_batch(self.fd, keys, values, len(part)))
        return refused

    def _remove(self, deletes: Iterable[K]) -> int:
        gone = [key.pack() for key in deletes]
        return sum(
            bpf.delete_batch(self.fd, b"".join(gone[start : start + BATCH]), self.spec.key_size)
            for start in range(0, len(gone), BATCH)
        )

    def close(self) -> None:
        """Lets go of the descriptor; a pinned map stays."""
        os.close(self.fd)
