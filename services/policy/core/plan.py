"""What to publish: decided from what was compiled, what is published, and how far each is.

A revision only grows within an epoch of ``objects``: whoever finds a higher one than its own yields, since it is behind
(a copy that slept, or one of two holders for a moment). Another epoch cannot be compared by size; there the writer
first makes sure that its own is the present one, then writes.

Kernels learn late, so what they may still hold is kept for a grace: an identity without pods (``core.unused``), and a
partition that was replaced. Records, too, go on showing label keys that policies just stopped naming, so that an edit
back and forth does not rewrite them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import TypeVar

import msgspec

from proto.identity import IdentityRecord, RelevantKeys
from proto.policy import CidrPartition, CompiledPolicy, Frontier, Revision
from proto.residents import Residents
from proto.sync import Complete
from services.policy.core.compile import UNREVISED
from services.policy.core.named import NamedKey

MOST_RETIRED = 4
"""Replaced partitions of one namespace that lines are still made for."""

R = TypeVar("R", CompiledPolicy, CidrPartition, Frontier)


class Step(Enum):
    """What to do about one key."""

    WRITE = auto()
    KEEP = auto()
    """What is there says the same."""
    YIELD = auto()
    """What is there was made from a newer state than ours."""


def _step(mine: Revision, present: Revision | None, *, same: bool) -> Step:
    if same:
        return Step.KEEP
    if present is not None and present.epoch == mine.epoch and present.sequence > mine.sequence:
        return Step.YIELD
    return Step.WRITE


def afresh(step: Step, mine: Revision, present: Revision | None) -> Step:
    """The step of one who has just become the holder: what would be kept is written once more, as it is.

    A holder that was stopped may have writes on their way that carry the number of the value they mean to replace. When
    every value has been written anew, none of them can land any more; only then does the new holder move the frontier.
    """
    return _step(mine, present, same=False) if step is Step.KEEP else step


def deciding(step: Callable[[R, R | None], Step], wanted: R, *, again: bool) -> Callable[[R | None], Step]:
    """``step`` about ``wanted``, as it is or, for a new holder, :func:`afresh`."""

    def decide(present: R | None) -> Step:
        found = step(wanted, present)
        return afresh(found, wanted.revision, None if present is None else present.revision) if again else found

    return decide


def rule_step(wanted: CompiledPolicy, present: CompiledPolicy | None) -> Step:
    """Only what differs is written: the revision of a policy is that of its last change."""
    if present is None:
        return Step.WRITE
    same = msgspec.structs.replace(present, revision=UNREVISED) == msgspec.structs.replace(wanted, revision=UNREVISED)
    return _step(wanted.revision, present.revision, same=same)


def record_step(wanted: IdentityRecord, present: IdentityRecord | None) -> Step:
    """Written when it shows something else; of two facts under one number neither has a record to be written."""
    return Step.KEEP if present == wanted else Step.WRITE


def residents_step(wanted: Residents, present: Residents | None) -> Step:
    """Only what differs is written: the revision is that of the last change."""
    if present is None:
        return Step.WRITE
    return _step(wanted.revision, present.revision, same=present.identities == wanted.identities)


def relevant_step(wanted: RelevantKeys, present: RelevantKeys | None) -> Step:
    """Written when it differs; when that is the right moment, the caller decides."""
    return Step.KEEP if present == wanted else Step.WRITE


def complete_step(wanted: Complete, present: Complete | None) -> Step:
    """Written once for each epoch of the bucket."""
    return Step.KEEP if present == wanted else Step.WRITE


def partition_step(wanted: CidrPartition, present: CidrPartition | None) -> Step:
    """A partition of another epoch is written again though it be equal, or no frontier could ever cover it."""
    if present is None:
        return Step.WRITE
    same = present.digest == wanted.digest and present.revision.epoch == wanted.revision.epoch
    return _step(wanted.revision, present.revision, same=same)


def frontier_step(wanted: Frontier, present: Frontier | None) -> Step:
    """A frontier moves with every change of ``objects``, whether or not any rule changed."""
    if present is None:
        return Step.WRITE
    return _step(wanted.revision, present.revision, same=present == wanted)


def may_delete(mine: Revision, present: CompiledPolicy) -> bool:
    """Whether rules of an identity that nobody has any more may go: not when a newer state than ours wrote them."""
    return _step(mine, present.revision, same=False) is Step.WRITE


def may_delete_empty(seen: CidrPartition, present: CidrPartition) -> bool:
    """Whether the partition of a namespace that names no address any more may go: only as it was seen."""
    return present == seen and not present.prefixes


def all_cover(frontiers: Iterable[Frontier | None], shards: int, revision: Revision) -> bool:
    """Whether the frontier of every shard has reached the revision."""
    reached = {
        frontier.shard
        for frontier in frontiers
        if frontier is not None and frontier.shards == shards and frontier.revision.covers(revision)
    }
    return reached >= set(range(shards))


def all_begun(frontiers: Iterable[Frontier | None], shards: int, epoch: str) -> bool:
    """Whether every shard has a frontier of this epoch of ``objects``: all rules were written at least once."""
    return all_cover(frontiers, shards, Revision(epoch=epoch, sequence=0))


def all_recorded(frontiers: Iterable[Frontier | None], shards: int, identities: str) -> bool:
    """Whether the frontier of every shard names this epoch of ``identities``: all its records were written there. When
    that bucket alone was made anew, a frontier of before promises nothing of it.
    """
    recorded = {one.shard for one in frontiers if one is not None and one.identities.epoch == identities}
    return recorded >= set(range(shards))


def all_compute_with(frontiers: Iterable[Frontier | None], shards: int, epoch: str, relevant: RelevantKeys) -> bool:
    """Whether every shard has a frontier of this epoch of ``objects`` that names these relevant keys."""
    return all_begun((one for one in frontiers if one is not None and one.relevant == relevant), shards, epoch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grace:
    """What is kept for a while, and since when (seconds of a monotonic clock)."""

    retired: tuple[tuple[CidrPartition, float], ...] = ()
    """Partitions that were replaced, and when."""
    named_at: Mapping[NamedKey, float] = field(default_factory=dict)
    """Label keys, and when some policy named them last."""


MOST_NAMED = 1024
"""Label keys that are remembered although no policy names them any more."""


def age(grace: Grace, now: float, seconds: float, *, named: Collection[NamedKey] = ()) -> Grace:
    """The grace as of now: old partitions end, and label keys that nobody names."""
    past = [(at, key) for key, at in grace.named_at.items() if key not in named and now - at < seconds]
    return Grace(
        retired=tuple(entry for entry in grace.retired if now - entry[1] < seconds),
        named_at={key: at for at, key in sorted(past)[-MOST_NAMED:]} | dict.fromkeys(named, now),
    )


def retire(grace: Grace, partition: CidrPartition, now: float) -> Grace:
    """A partition was replaced by another; nodes may have it in force for a while.

    Of one namespace the last few are kept: who edits without pause is not waited for by nodes that are that far behind.
    """
    others = [entry for entry in grace.retired if _area_of(entry[0]) != _area_of(partition)]
    own = [entry for entry in others if entry[0].namespace == partition.namespace]
    dropped = {_area_of(entry[0]) for entry in own[: max(0, len(own) - MOST_RETIRED + 1)]}
    kept = tuple(entry for entry in others if _area_of(entry[0]) not in dropped)
    return replace(grace, retired=(*kept, (partition, now)))


def _area_of(partition: CidrPartition) -> tuple[str, str]:
    return partition.namespace, partition.digest


def next_expiry(grace: Grace, now: float, seconds: float) -> float | None:
    """Seconds until something kept for a while has been kept long enough; None when nothing is (any longer)."""
    since = (*(at for _, at in grace.retired), *grace.named_at.values())
    return min((wait for at in since if 0 < (wait := at + seconds - now) < seconds), default=None)


def kept_partitions(
    grace: Grace, published: Mapping[str, CidrPartition], wanted: Mapping[str, str]
) -> dict[str, tuple[CidrPartition, ...]]:
    """By namespace, partitions that lines are still needed for: the published one and those just replaced.

    ``wanted`` is the digest of each namespace's partition as it is to be; that one is not among them.
    """
    kept: dict[str, dict[str, CidrPartition]] = {}
    for partition in (*(partition for partition, _ in grace.retired), *published.values()):
        if partition.prefixes and partition.digest != wanted.get(partition.namespace, ""):
            kept.setdefault(partition.namespace, {})[partition.digest] = partition
    return {namespace: tuple(found.values()) for namespace, found in kept.items()}


def partitions_due(published: Mapping[str, CidrPartition], wanted: Mapping[str, str], epoch: str) -> frozenset[str]:
    """Namespaces whose published partition is not the wanted one, or not of this epoch of ``objects``.

    ``wanted`` is the digest of each namespace's partition as it is to be. Nothing is remembered of when that began:
    a partition has the revision of the pass that writes it, whose rules name its numbers. With an earlier one it might
    pass for older than what it replaces; with one of an epoch that is over, no frontier would ever cover it.
    """
    return frozenset(
        namespace
        for namespace in published.keys() | wanted.keys()
        if (found := published.get(namespace)) is None
        or found.digest != wanted.get(namespace, "")
        or found.revision.epoch != epoch
    )
