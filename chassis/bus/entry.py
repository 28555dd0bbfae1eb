"""A KV entry as readers get it: a value, when it was written, and the trace it was written in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from proto.codec import Malformed, UnknownVersion

T = TypeVar("T")

FORGED = "not written by who may write this key: it came as the answer to somebody's request"
"""Why a value that is there is not believed."""


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """A key's value as it was at ``revision`` (the stream's sequence)."""

    key: str
    value: T
    revision: int
    traceparent: str = ""
    """W3C trace context of the write; empty when there was none."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A key that has a value which is none: ``why``, and the revision that a compare-and-set on it needs."""

    key: str
    why: Malformed | UnknownVersion
    revision: int
