"""May a pod start: every way in which something is still missing, and what it may not be mistaken for."""

from __future__ import annotations

import msgspec
import pytest

from kit.identity import identity_of, stands_for
from proto.objects import Namespace, Pod
from proto.policy import Frontier, Revision
from services.dataplane.core.admission import Admitted, Knowledge, NotYet, admit, least
from services.dataplane.core.cni import PodRef
from tests.core.dataplane.notation import policy

SHOP = Namespace(name="shop", uid="u-ns", labels=(("team", "web"),))
POD = Pod(
    namespace="shop",
    name="front-0",
    uid="u1",
    node="n1",
    labels=(("app", "front"), ("statefulset.kubernetes.io/pod-name", "front-0")),
)
KNOWLEDGE = Knowledge(cluster_uid="c1", relevant=frozenset(), namespaces={"shop": SHOP})
IDENTITY = identity_of(stands_for(POD, SHOP), "c1")
RULES = {IDENTITY: msgspec.structs.replace(policy(IDENTITY), identity=IDENTITY)}
REF = PodRef(namespace="shop", name="front-0", uid="u1")
SEEN = Revision(epoch="e1", sequence=100)


def frontiers(sequence: int = 100, epoch: str = "e1", shards: int = 2, only: int | None = None) -> list[Frontier]:
    numbers = range(shards) if only is None else [only]
    return [Frontier(shard=n, shards=shards, revision=Revision(epoch=epoch, sequence=sequence)) for n in numbers]


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


def test_with_everything_here_it_starts_as_its_identity() -> None:
    admitted = ask()
    assert isinstance(admitted, Admitted)
    assert admitted.identity == IDENTITY
    assert isinstance(ask(wanted=msgspec_ref("")), Admitted), "an old runtime names no uid"


def msgspec_ref(uid: str) -> PodRef:
    return PodRef(namespace="shop", name="front-0", uid=uid)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"pod": None}, "has not reached this node's watch"),
        ({"wanted": msgspec_ref("u2")}, "uid u1"),
        ({"knowledge": Knowledge(cluster_uid="", relevant=frozenset(), namespaces={"shop": SHOP})}, "namespace shop"),
        ({"knowledge": Knowledge(cluster_uid="c1", relevant=frozenset(), namespaces={})}, "namespace shop"),
        ({"rules": {}}, "not compiled"),
        ({"frontiers": []}, "not compiled up to"),
        ({"frontiers": frontiers(99)}, "not compiled up to"),
        ({"frontiers": frontiers(500, epoch="e0")}, "not compiled up to"),
        ({"frontiers": frontiers(500, only=1 - IDENTITY % 2)}, "not compiled up to"),
        (
            {"knowledge": Knowledge(cluster_uid="c2", relevant=frozenset(), namespaces={"shop": SHOP})},
            "not compiled",
        ),
        (
            {
                "knowledge": Knowledge(
                    cluster_uid="c1",
                    relevant=frozenset({"statefulset.kubernetes.io/pod-name"}),
                    namespaces={"shop": SHOP},
                )
            },
            "not compiled",
        ),
        ({"pod": msgspec.structs.replace(POD, labels=(("app", "other"),))}, "not compiled"),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_permitted(other: dict[str, object], says: str) -> None:
    outcome = ask(**other)
    assert isinstance(outcome, NotYet)
    assert says in outcome.why


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
