"""The memory of a service: its cyclic garbage collector, kept from stopping it, and free pages, given back.

A collection looks at what is new, not at all there is.

CPython's oldest generation is collected each time that it has grown by a quarter, whole, and with it every thread
stands still: 0.3 s of computing on a node with 66,000 Service ports, seconds beside busy neighbours, and no CNI call,
policy or lease moves on meanwhile. What services keep for long is values without cycles, which reference counts free.
So what has survived a collection of the oldest generation is moved to the permanent one (``gc.freeze``), which no
collection visits. And the oldest generation is collected before it is large (:data:`THRESHOLDS`): a collection takes
some 0.4 µs an object, and CPython's own thresholds let 100,000 new ones come together: 22 ms and more.

Survivors are moved only when they are many (:data:`WORTH_FREEZING`): how often that happens goes by what a service has
come to keep, not by how much it does, and few cycles that are still in use are moved with them.

A cycle that dies there stays. Few do: what ends with a connection. They are looked for (:func:`thaw`) when the process
has grown by :data:`GROWTH` since the last look, at most each :data:`LOOK_EVERY` seconds.

glibc keeps what is freed: it gives back the end of its heap alone, and only where more is free there than the largest
piece that was ever freed. Agents grew by 1 to 35 MiB an hour of it under four pods a second. So free pages
are given back each :data:`GIVE_BACK_EVERY` seconds. It takes 0.15 ms for each MB that has become free, mostly less
than a millisecond. And each thread that allocates gets an arena of its own, up to eight for each processor: a
dataplane's thirteen held 5 MB, nearly all of it free. Threads of an interpreter take turns anyway, so they share one.
"""

from __future__ import annotations

import ctypes
import gc
from functools import partial
from operator import call
from typing import Any

LOOK_EVERY = 3600.0
GIVE_BACK_EVERY = 60.0
GROWTH = 0.25
THRESHOLDS = (700, 5, 0)
"""Of ``gc.set_threshold``: the second generation is due each seventh time that 700 objects more were made than freed,
the oldest each second time that the second is. So it gets some 10,000 new objects at most.
"""
WORTH_FREEZING = 4096
"""Survivors of a full collection; fewer are visited again by the next one, at most 15,000 objects with the new ones."""

_LIBC = ctypes.CDLL(None)
M_ARENA_MAX = -8
"""malloc.h"""


def freeze_survivors() -> None:
    """From now on whatever survives a full collection is no longer visited. Idempotent."""
    if _freeze not in gc.callbacks:
        gc.callbacks.append(_freeze)
    gc.set_threshold(*THRESHOLDS)
    _collect_all()


def thaw() -> int:
    """One collection of everything, which holds all threads up: about 0.1 s for a million objects. Returns how many
    objects could not be reached.
    """
    gc.unfreeze()
    return _collect_all()


def _collect_all() -> int:
    """Collect everything, then what is left, which is next to nothing; how many objects could not be reached.

    CPython collects its oldest generation once it has grown by a quarter of what the last collection left there, frozen
    since or not: without the second one it would wait for as many new objects.
    """
    return gc.collect() + gc.collect()


def share_one_arena() -> None:
    """Before the first thread begins: glibc reads the limit once (malloc/arena.c, arena_get2). musl has one anyway."""
    if hasattr(_LIBC, "mallopt"):
        _LIBC.mallopt(M_ARENA_MAX, 1)


def give_back_free_pages() -> None:
    """Whole pages of the C heap in which nothing lives go back to the kernel (malloc_trim(3); musl has none)."""
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)


def has_grown(resident: int, then: int) -> bool:
    """Whether a process of ``resident`` bytes has so much more than ``then`` that cycles are looked for."""
    return resident > then * (1 + GROWTH)


def _freeze(phase: str, info: dict[str, Any]) -> None:
    if phase == "stop" and info["generation"] == 2 and _survivors() >= WORTH_FREEZING:
        gc.freeze()


def _survivors() -> int:
    """Objects of the oldest generation. In one call that no other thread interrupts: a tuple that one of them fills is
    there too, and filling it fails while somebody else refers to it (``_PyTuple_Resize``).
    """
    return next(map(len, map(call, (partial(gc.get_objects, generation=2),))))
