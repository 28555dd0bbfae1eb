"""Which nodes write to the shared buckets what no agent of ours writes: too often, or what cannot be read.

How many keys a node has, and how large they are, the server bounds; how often it writes them, nothing does. A node
that remakes all it has after a lost bucket writes each of its keys once; one whose pods come and go writes a few a
second. So a level that each write raises and time lowers passes :data:`MOST` only by hands that are not ours. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

PER_SECOND = 100.0
"""Writes of a node that are forgotten each second: more than its pods can come and go."""
MOST = 10_000.0
"""All keys of a node, written at once, and what goes on meanwhile."""


def levels(before: Mapping[str, float], writes: Mapping[str, int], elapsed: float) -> dict[str, float]:
    """Level of each node that has one, ``elapsed`` seconds after ``before`` and with the ``writes`` since."""
    found = {node: before.get(node, 0.0) + writes.get(node, 0) for node in before.keys() | writes.keys()}
    lowered = {node: level - elapsed * PER_SECOND for node, level in found.items()}
    return {node: min(level, 2 * MOST) for node, level in lowered.items() if level > 0}


def accused(level: Mapping[str, float], unreadable: Mapping[str, int]) -> dict[str, str]:
    """What is said of each node that writes what it should not, by (encoded) node."""
    said = {node: f"writes {count} values that cannot be read" for node, count in unreadable.items() if count}
    often = {node: "writes its keys far more often than an agent does" for node in level if level[node] > MOST}
    return {node: " and ".join(one[node] for one in (said, often) if node in one) for node in sorted({*said, *often})}
