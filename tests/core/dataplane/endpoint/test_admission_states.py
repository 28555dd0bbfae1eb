"""Admission through lists of states: what the watches bring comes in any order, and only the present decides.

The oracle asks for each condition by itself: the pod and its namespace, the identity that both have now, its rules, and
the frontier of its shard, which was compiled from no less than the pod and from no more than is known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import TypeVar

from kit.identity import Computed, identity_of, stands_for
from proto.identity import RelevantKeys
from proto.objects import Namespace, Pod
from proto.policy import CompiledPolicy, Frontier, Revision
from services.dataplane.core.cni.request import PodRef
from services.dataplane.core.endpoint.admission import Admitted, Knowledge, admit
from tests.core.states import Driver, every_order, follow

Key = tuple[str, str]
Value = Pod | Namespace | CompiledPolicy | Frontier | Revision | str | int
Objects = Mapping[Key, Value]
V = TypeVar("V")

UNSTABLE = "statefulset.kubernetes.io/pod-name"
CLUSTERS, UIDS = ("c1", "c2"), ("u1", "u2")
PODS = [
    Pod("shop", "web", uid, "n1", labels=(("app", app), (UNSTABLE, "web"))) for uid in UIDS for app in ("front", "back")
]
NAMESPACES = [Namespace("shop", "u-ns", labels=(("team", team),)) for team in ("red", "blue")]
RELEVANT = (RelevantKeys(), RelevantKeys(keys=(UNSTABLE,)))
IDENTITIES = sorted(
    {
        identity_of(stands_for(pod, namespace, frozenset(relevant.keys)), cluster)
        for pod in PODS
        for namespace in NAMESPACES
        for relevant in RELEVANT
        for cluster in CLUSTERS
    }
)


def one(objects: Objects, kind: str, of: type[V]) -> V | None:
    found = next((value for key, value in objects.items() if key[0] == kind), None)
    return found if isinstance(found, of) else None


class Waiting(Driver[Key, Value]):
    """One ADD that asks after each flush."""

    def __init__(self) -> None:
        self.objects: dict[Key, Value] = {}
        self.computed = Computed()

    def put(self, key: Key, value: Value | None) -> None:
        self.objects.pop(key, None)
        if value is not None:
            self.objects[key] = value

    def flush(self) -> None:
        self.settle()

    def settle(self) -> object:
        namespace = one(self.objects, "namespace", Namespace)
        found = admit(
            PodRef(namespace="shop", name="web", uid="u1"),
            one(self.objects, "pod", Pod),
            one(self.objects, "seen", Revision) or Revision("e1", 10),
            Knowledge(
                cluster_uid=one(self.objects, "cluster", str) or "",
                namespaces={"shop": namespace} if namespace is not None else {},
                namespaces_at=one(self.objects, "namespaces at", int) or 0,
                records_at=one(self.objects, "records at", Revision) or Revision("", 0),
                computed=self.computed,
            ),
            {value.identity: value for value in self.objects.values() if isinstance(value, CompiledPolicy)},
            [value for value in self.objects.values() if isinstance(value, Frontier)],
        )
        return found.identity if isinstance(found, Admitted) else None


def may_start(objects: dict[Key, Value]) -> int | None:
    """The identity that the pod may start as."""
    pod, namespace = one(objects, "pod", Pod), one(objects, "namespace", Namespace)
    cluster = one(objects, "cluster", str)
    seen = one(objects, "seen", Revision) or Revision("e1", 10)
    records = one(objects, "records at", Revision) or Revision("", 0)
    if pod is None or namespace is None or not cluster or pod.uid != "u1":
        return None
    present = [value for (kind, _), value in objects.items() if kind == "frontier" and isinstance(value, Frontier)]
    for frontier in present:
        labels = tuple(pair for pair in pod.labels if pair[0] != UNSTABLE or UNSTABLE in frontier.relevant.keys)
        facts = stands_for(Pod("shop", "web", "", "", labels=labels), namespace, frozenset({UNSTABLE}))
        identity = identity_of(facts, cluster)
        compiled_up_to_it = frontier.revision.epoch == seen.epoch and frontier.revision.sequence >= seen.sequence
        peers_known = not frontier.identities.sequence or (
            records.epoch == frontier.identities.epoch and records.sequence >= frontier.identities.sequence
        )
        if (
            frontier.shard == identity % frontier.shards
            and compiled_up_to_it
            and peers_known
            and frontier.namespaces <= (one(objects, "namespaces at", int) or 0)
            and ("rules", str(identity)) in objects
        ):
            return identity
    return None


def state(chance: Random) -> dict[Key, Value]:
    objects: dict[Key, Value] = {}
    if chance.random() < 0.95:
        objects["pod", ""] = chance.choice((*PODS[:2] * 4, *PODS))
    if chance.random() < 0.95:
        objects["namespace", ""] = chance.choice(NAMESPACES)
    if chance.random() < 0.95:
        objects["cluster", ""] = chance.choice(CLUSTERS)
    objects["seen", ""] = Revision(chance.choice(("e1",) * 9 + ("e2",)), chance.choice((10, 20)))
    objects["records at", ""] = Revision("i1", chance.choice((5, 9, 9)))
    objects["namespaces at", ""] = chance.choice((7, 8, 8))
    relevant = chance.choice(RELEVANT)
    for shard in (0, 1):
        if chance.random() < 0.95:
            revision = Revision(chance.choice(("e1",) * 9 + ("e2",)), chance.choice((9, 20, 30, 30)))
            identities = Revision(chance.choice(("i1",) * 9 + ("i0",)), chance.choice((0, 5, 9)))
            objects["frontier", f"{shard} of 2"] = Frontier(
                shard, 2, revision, chance.choice((7, 8)), relevant, identities
            )
    if ("frontier", "0 of 2") in objects and chance.random() < 0.3:
        objects["left over", "0 of 1"] = Frontier(0, 1, Revision("e1", 40), 7, relevant)
    for identity in IDENTITIES:
        if chance.random() < 0.85:
            revision = Revision("e1", 10)
            objects["rules", str(identity)] = CompiledPolicy(
                identity=identity, revision=revision, ingress_isolated=False, egress_isolated=False
            )
    return objects


@every_order(seeds=12)
def test_whatever_came_before_a_pod_starts_when_the_present_state_lets_it(expander: str, seed: int) -> None:
    chance = Random(seed)
    follow(Waiting, may_start, [state(chance) for _ in range(6)], expander, seed)
