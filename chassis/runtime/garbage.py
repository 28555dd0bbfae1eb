"""The cyclic garbage collector, kept from stopping a service: a collection looks at what is new, not at all there is.

CPython's oldest generation is collected each time that it has grown by a quarter, whole, and with it every thread
stands still: 0.3 s of computing on a node with 66,000 Service ports, seconds beside busy neighbours, and no CNI call,
policy or lease moves on meanwhile. What services keep for long is values without cycles, which reference counts free.
So what has survived a collection of the oldest generation is moved to the permanent one (``gc.freeze``), which no
collection visits.

A cycle that dies there stays. Few do: what ends with a connection. They are looked for (:func:`thaw`) when the process
has grown by :data:`GROWTH` since the last look, at most each :data:`LOOK_EVERY` seconds.
"""

from __future__ import annotations

import gc
from typing import Any

LOOK_EVERY = 3600.0
GROWTH = 0.25


def freeze_survivors() -> None:
    """From now on whatever survives a full collection is no longer visited. Idempotent."""
    if _freeze not in gc.callbacks:
        gc.callbacks.append(_freeze)
    gc.collect()


def thaw() -> int:
    """One collection of everything, which holds all threads up: about 0.1 s for a million objects. Returns how many
    objects could not be reached.
    """
    gc.unfreeze()
    return gc.collect()


def has_grown(resident: int, then: int) -> bool:
    """Whether a process of ``resident`` bytes has so much more than ``then`` that cycles are looked for."""
    return resident > then * (1 + GROWTH)


def _freeze(phase: str, info: dict[str, Any]) -> None:
    if phase == "stop" and info["generation"] == 2:
        gc.freeze()
