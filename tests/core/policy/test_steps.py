"""One writer after another under one key: what each writes, keeps or leaves to who knows more."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from msgspec import structs

from proto.identity import IdentityRecord, RelevantKeys
from proto.policy import CidrPartition, CompiledPolicy, Frontier, Revision
from proto.residents import Residents
from proto.sync import Complete
from services.policy.core import plan
from services.policy.core.plan import Step
from tests.golden.proto.samples import sample_of

REVISIONS = [Revision(epoch, sequence) for epoch, sequence in product(("one", "two"), (3, 5, 7))]
MINE = Revision("one", 5)
REVISED: list[tuple[Any, Any]] = [
    (plan.rule_step, structs.replace(sample_of(CompiledPolicy), revision=MINE)),
    (plan.residents_step, Residents(identities=(1, 2), revision=MINE)),
    (plan.partition_step, structs.replace(sample_of(CidrPartition), revision=MINE)),
    (plan.frontier_step, Frontier(0, 2, MINE)),
]
EACH = pytest.mark.parametrize(("step", "wanted"), REVISED, ids=lambda one: getattr(one, "__name__", ""))


def other_than(value: Any) -> Any:
    """A value that says something else, of the same revision."""
    match value:
        case CompiledPolicy():
            return structs.replace(value, namespace="another")
        case Residents():
            return structs.replace(value, identities=(1, 2, 3))
        case CidrPartition():
            return structs.replace(value, digest="another")
        case _:
            return structs.replace(value, shards=3)


@EACH
def test_what_is_not_there_is_written(step: Any, wanted: Any) -> None:
    assert step(wanted, None) is Step.WRITE


@EACH
@pytest.mark.parametrize("revision", REVISIONS, ids=str)
def test_what_differs_is_written_unless_who_wrote_it_knew_more(step: Any, wanted: Any, revision: Revision) -> None:
    """Of another epoch nobody can say who knew more: the present holder writes."""
    present = structs.replace(other_than(wanted), revision=revision)
    newer = revision.epoch == MINE.epoch and revision.sequence > MINE.sequence
    assert step(wanted, present) is (Step.YIELD if newer else Step.WRITE)


@EACH
def test_what_is_the_same_is_kept(step: Any, wanted: Any) -> None:
    assert step(wanted, wanted) is Step.KEEP


@pytest.mark.parametrize(("step", "wanted"), REVISED[:2], ids=lambda one: getattr(one, "__name__", ""))
@pytest.mark.parametrize("revision", REVISIONS, ids=str)
def test_a_revision_is_that_of_the_last_change(step: Any, wanted: Any, revision: Revision) -> None:
    """Nothing is written only because time went on."""
    assert step(wanted, structs.replace(wanted, revision=revision)) is Step.KEEP


@pytest.mark.parametrize(
    ("step", "wanted", "other"),
    [
        (plan.record_step, sample_of(IdentityRecord), structs.replace(sample_of(IdentityRecord), digest="x")),
        (plan.relevant_step, sample_of(RelevantKeys), RelevantKeys()),
        (plan.complete_step, Complete("one"), Complete("two")),
    ],
    ids=["record", "relevant", "complete"],
)
def test_what_bears_no_revision_is_written_when_it_differs(step: Any, wanted: Any, other: Any) -> None:
    assert step(wanted, None) is Step.WRITE
    assert step(wanted, other) is Step.WRITE
    assert step(wanted, wanted) is Step.KEEP


@pytest.mark.parametrize("revision", REVISIONS, ids=str)
@pytest.mark.parametrize("step", list(Step))
def test_a_new_holder_writes_once_more_what_would_be_kept(step: Step, revision: Revision) -> None:
    """So that no write of the holder before it can land any more; what knows more is left all the same."""
    found = plan.afresh(step, MINE, revision)
    if step is not Step.KEEP:
        assert found is step
    else:
        newer = revision.epoch == MINE.epoch and revision.sequence > MINE.sequence
        assert found is (Step.YIELD if newer else Step.WRITE)
    assert plan.afresh(Step.KEEP, MINE, None) is Step.WRITE


@EACH
@pytest.mark.parametrize("again", [False, True])
def test_deciding_is_the_step_or_the_step_of_a_new_holder(step: Any, wanted: Any, again: bool) -> None:
    decide = plan.deciding(step, wanted, again=again)
    assert decide(None) is Step.WRITE
    assert decide(wanted) is (Step.WRITE if again else Step.KEEP)
    later = structs.replace(other_than(wanted), revision=Revision("one", 6))
    assert decide(later) is Step.YIELD


@pytest.mark.parametrize("revision", REVISIONS, ids=str)
def test_rules_that_a_newer_state_wrote_are_not_deleted(revision: Revision) -> None:
    present = structs.replace(sample_of(CompiledPolicy), revision=revision)
    newer = revision.epoch == MINE.epoch and revision.sequence > MINE.sequence
    assert plan.may_delete(MINE, present) is not newer


def test_an_empty_partition_goes_only_as_it_was_seen() -> None:
    full = sample_of(CidrPartition)
    empty = structs.replace(full, prefixes=())
    assert plan.may_delete_empty(empty, empty)
    assert not plan.may_delete_empty(full, full), "it is not empty"
    assert not plan.may_delete_empty(empty, full), "it has been filled since"
    assert not plan.may_delete_empty(empty, structs.replace(empty, digest="another"))
