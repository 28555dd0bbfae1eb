"""Markers that tell a reader whether what it sees of a bucket is all there is.

A watch that has caught up is not enough: an empty or remade bucket catches up at once, and "no policy" would mean
allow-all. In sync = caught up *and* the owner's completeness marker for the bucket's present epoch is there.
"""

from __future__ import annotations

import msgspec

EPOCH_KEY = "_epoch"
"""Key of :class:`Epoch` in every bucket; written by ``cluster``, which makes the buckets."""

COMPLETE_PREFIX = "_complete"
"""``_complete`` or ``_complete.<scope>``: key of :class:`Complete`, written by the owner of the bucket or scope."""


class Epoch(msgspec.Struct, frozen=True):
    """One life of a bucket. A bucket that is made again has another epoch: list again and diff, sweep nothing."""

    epoch: str


class Complete(msgspec.Struct, frozen=True):
    """All that the owner knows has been written at least once in this epoch."""

    epoch: str


def complete_key(scope: str = "") -> str:
    """Key of the completeness marker of ``scope`` (already encoded by the codec); empty = the whole bucket."""
    return f"{COMPLETE_PREFIX}.{scope}" if scope else COMPLETE_PREFIX
