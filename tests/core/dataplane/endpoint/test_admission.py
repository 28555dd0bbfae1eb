"""May a pod start: every way in which something is still missing, and what it may not be mistaken for."""

from __future__ import annotations

import re

import msgspec
import pytest

from kit.identity import identity_of, stands_for
from proto.identity import RelevantKeys
from proto.objects import Namespace, Pod
from proto.policy import CompiledPolicy, Frontier, Revision
from services.dataplane.core.cni.request import PodRef
from services.dataplane.core.endpoint.admission import Admitted, Knowledge, NotYet, admit, least, pod_of

SHOP = Namespace(name="shop", uid="u-ns", labels=(("team", "web"),))
POD = Pod(
    namespace="shop",
    name="front-0",
    uid="u1",
    node="n1",
    labels=(("app", "front"), ("statefulset.kubernetes.io/pod-name", "front-0")),
)
RECORDS = Revision(epoch="i1", sequence=40)


def knowledge(**other: object) -> Knowledge:
    known: dict[str, object] = {
        "cluster_uid": "c1",
        "namespaces": {"shop": SHOP},
        "namespaces_at": 90,
        "records_at": RECORDS,
    }
    return Knowledge(**{**known, **other})  # type: ignore[arg-type]


KNOWLEDGE = knowledge()
IDENTITY = identity_of(stands_for(POD, SHOP), "c1")


def open_to_all(*identities: int) -> dict[int, CompiledPolicy]:
    revision = Revision(epoch="e1", sequence=10)
    return {
        identity: CompiledPolicy(identity=identity, revision=revision, ingress_isolated=False, egress_isolated=False)
        for identity in identities
    }


RULES = open_to_all(IDENTITY)
REF = PodRef(namespace="shop", name="front-0", uid="u1")
SEEN = Revision(epoch="e1", sequence=100)


def frontiers(
    sequence: int = 100, epoch: str = "e1", shards: int = 2, only: int | None = None, **more: object
) -> list[Frontier]:
    numbers = range(shards) if only is None else [only]
    found = [Frontier(shard=n, shards=shards, revision=Revision(epoch=epoch, sequence=sequence)) for n in numbers]
    return [msgspec.structs.replace(one, **more) for one in found]


def ask(**other: object) -> Admitted | NotYet:
    arguments: dict[str, object] = {
        "wanted": REF,
        "pod": POD,
        "seen": SEEN,
        "knowledge": KNOWLEDGE,
        "rules": RULES,
        "frontiers": frontiers(),
    }
    return admit(**{**arguments, **other})  # type: ignore[arg-type]


def test_with_everything_known_it_starts_as_its_identity() -> None:
    admitted = ask()
    assert isinstance(admitted, Admitted)
    assert admitted.identity == IDENTITY
    assert isinstance(ask(wanted=msgspec_ref("")), Admitted), "an old runtime names no uid"


def test_a_static_pod_starts_as_its_mirror() -> None:
    """The kubelet names the uid that it gave to the pod; the object of its mirror has another, each time a new one."""
    for uid in ("u1", "u7"):
        mirror = msgspec.structs.replace(POD, uid=uid, static_uid="5d41402abc4b2a76b9719d911017c592")
        admitted = ask(pod=mirror, wanted=msgspec_ref("5d41402abc4b2a76b9719d911017c592"))
        assert isinstance(admitted, Admitted)
        assert admitted.identity == IDENTITY
        assert isinstance(ask(pod=mirror, wanted=msgspec_ref("u2")), NotYet)
        assert isinstance(ask(pod=mirror, wanted=msgspec_ref("")), Admitted)


def test_nobody_s_pod_is_taken_by_an_annotation() -> None:
    """Where only a uid is known of a running pod: whoever calls himself the mirror of another's pod gets nothing."""
    liar = msgspec.structs.replace(POD, namespace="evil", uid="u6", static_uid="u1")
    assert pod_of([liar, POD], "u1") == POD
    mirror = msgspec.structs.replace(POD, uid="u5", static_uid="s1")
    assert pod_of([mirror, POD], "s1") == mirror
    assert pod_of([mirror, msgspec.structs.replace(liar, static_uid="s1")], "s1") is None
    assert pod_of([POD, mirror], "") is None
    assert pod_of([POD, mirror], "u9") is None


def msgspec_ref(uid: str) -> PodRef:
    return PodRef(namespace="shop", name="front-0", uid=uid)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"pod": None}, "has not reached this node's watch"),
        ({"wanted": msgspec_ref("u2")}, "uid u1"),
        ({"knowledge": knowledge(cluster_uid="")}, "namespace shop"),
        ({"knowledge": knowledge(namespaces={})}, "namespace shop"),
        ({"rules": {}}, "no rules: its namespace has spent its budget"),
        ({"frontiers": []}, "not compiled up to"),
        ({"frontiers": frontiers(99)}, "not compiled up to"),
        ({"frontiers": frontiers(500, epoch="e0")}, "not compiled up to"),
        ({"frontiers": frontiers(500, only=1 - IDENTITY % 2)}, "not compiled up to"),
        ({"frontiers": [*frontiers(100), *frontiers(90, shards=4)]}, "not compiled up to"),
        ({"knowledge": knowledge(cluster_uid="c2")}, "not compiled|no rules"),
        ({"pod": msgspec.structs.replace(POD, labels=(("app", "other"),))}, "no rules"),
        ({"frontiers": frontiers(namespaces=91)}, "change of a namespace"),
        ({"frontiers": frontiers(identities=Revision("i1", 41))}, "identities that the policy"),
        ({"frontiers": frontiers(identities=Revision("i2", 3))}, "identities that the policy"),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_permitted(other: dict[str, object], says: str) -> None:
    outcome = ask(**other)
    assert isinstance(outcome, NotYet)
    assert re.search(says, outcome.why), outcome.why


PER_POD = RelevantKeys(keys=("statefulset.kubernetes.io/pod-name",))
ISOLATED = identity_of(stands_for(POD, SHOP, PER_POD.of("shop")), "c1")


def of(shard_of: int, sequence: int, relevant: RelevantKeys) -> Frontier:
    """Frontier of an identity's shard; many shards, so that any two identities are in different ones."""
    return Frontier(shard_of % 1021, 1021, Revision("e1", sequence), relevant=relevant)


def test_the_first_policy_that_names_an_unstable_label_comes_together_with_the_pod() -> None:
    """Case A. The policy is at 99, the pod at 100: whatever has arrived of it, the pod never starts as who it was.

    Both identities have rules; those of before know nothing of the policy.
    """
    rules = open_to_all(IDENTITY, ISOLATED)
    old, new = RelevantKeys(), PER_POD

    def start(*known: Frontier) -> int | None:
        outcome = ask(rules=rules, frontiers=known)
        return outcome.identity if isinstance(outcome, Admitted) else None

    before = of(IDENTITY, 98, old), of(ISOLATED, 98, old)
    assert start(*before) is None
    assert start(of(IDENTITY, 100, new), before[1]) is None, "the shard of who it becomes has no holder: it waits"
    assert start(before[0], of(ISOLATED, 100, new)) == ISOLATED
    assert start(of(IDENTITY, 100, new), of(ISOLATED, 100, new)) == ISOLATED
    own = RelevantKeys(by_namespace=(("shop", PER_POD.keys),))
    assert start(of(IDENTITY, 100, own), of(ISOLATED, 100, own)) == ISOLATED
    assert start(of(IDENTITY, 100, old), of(ISOLATED, 100, old)) == IDENTITY, "without such a policy it is who it was"


def test_the_newest_frontier_says_what_a_pod_is_made_of() -> None:
    """A shard that stands still at 100 must not hold a pod in what the others have left at 200."""
    rules = open_to_all(IDENTITY, ISOLATED)
    outcome = ask(rules=rules, frontiers=[of(IDENTITY, 100, RelevantKeys()), of(ISOLATED, 200, PER_POD)])
    assert isinstance(outcome, Admitted)
    assert outcome.identity == ISOLATED


def test_a_pod_whose_key_overtook_its_namespaces_change_waits_for_it() -> None:
    """Case B. The namespace changed at 95 and a policy selects it by that; the pod, at 100, is here first.

    The old identity still has rules: it lingers.
    """
    changed = msgspec.structs.replace(SHOP, labels=(("team", "closed"),))
    closed = identity_of(stands_for(POD, changed), "c1")
    rules = open_to_all(IDENTITY, closed)
    known = frontiers(100, namespaces=95)
    early = ask(rules=rules, frontiers=known, knowledge=knowledge(namespaces_at=90))
    assert isinstance(early, NotYet)
    assert "change of a namespace" in early.why
    late = ask(rules=rules, frontiers=known, knowledge=knowledge(namespaces={"shop": changed}, namespaces_at=95))
    assert isinstance(late, Admitted)
    assert late.identity == closed


def test_one_shard_is_enough_for_a_pod_of_it() -> None:
    assert isinstance(ask(frontiers=frontiers(only=IDENTITY % 2)), Admitted)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ([], None),
        (frontiers(5), 5),
        (frontiers(5, only=0), None),
        ([*frontiers(9, only=0), *frontiers(5, only=1)], 5),
        ([*frontiers(9, only=0), *frontiers(5, epoch="e2", only=1)], None),
        ([*frontiers(3, shards=1), *frontiers(9, shards=2)], 9),
    ],
)
def test_the_least_frontier(known: list[Frontier], expected: int | None) -> None:
    found = least(known)
    assert (found.sequence if found else None) == expected
