"""Garbage collection of deleted nodes' keys: which may go, and after how long without a sign of the node.

A node's keys are its own to write, so nobody cleans up after one that is gone, until a bucket is full for everybody. A
node has *departed* when the API has no Node of its name, ``blocks`` has no block of it (``ipam`` has taken them back
when their addresses had rested, or it never had any), and nothing of what it wrote has changed for the grace. A node
that lives writes its acknowledgement every 30 s, so one that lost its Node object alone is never touched; one that came
back under its old name has a Node. Times are seconds of the observer's monotonic clock; another observer begins anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from proto.sync import COMPLETE_PREFIX

Written = tuple[str, str, int]
"""Bucket, key and revision; a value that cannot be read has revision 0."""


@dataclass(frozen=True, slots=True)
class Quiet:
    """What a node without a Node wrote, and since when that is all."""

    written: frozenset[Written]
    since: float


@dataclass(frozen=True, slots=True)
class Departed:
    """What a pass found: keys to delete by (encoded) node, and what the next pass compares with."""

    delete: Mapping[str, frozenset[Written]] = field(default_factory=dict)
    watched: Mapping[str, Quiet] = field(default_factory=dict)


def writer_of(bucket: str, key: str) -> str:
    """Encoded node that alone may write a key; empty for a key that is no node's."""
    first, _, rest = key.partition(".")
    if first == COMPLETE_PREFIX:
        return rest
    if first.startswith("_"):
        return ""
    if bucket == "leases":
        return rest if first == "node" else ""
    return first


def departed(
    written: Mapping[str, Set[Written]],
    there: Set[str],
    holders: Set[str],
    before: Mapping[str, Quiet],
    *,
    now: float,
    grace: float,
) -> Departed:
    """``written``: keys by writer; ``there``: nodes that the API has; ``holders``: of blocks. Nodes are encoded."""
    watched: dict[str, Quiet] = {}
    for node in written.keys() - there - holders:
        known, keys = before.get(node), frozenset(written[node])
        watched[node] = known if known is not None and known.written == keys else Quiet(keys, now)
    ripe = {node: quiet.written for node, quiet in watched.items() if now - quiet.since >= grace and node in before}
    return Departed(ripe, watched)
