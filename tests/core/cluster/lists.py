"""Whole lists of objects, put into a cache without a pause."""

from __future__ import annotations

from collections.abc import Iterable

from services.cluster.core.cache import Cache


def list_into(cache: Cache, raws: Iterable[bytes]) -> None:
    """The API server's list has come: what is not in it is gone."""
    for _ in cache.replacing(raws):
        pass
