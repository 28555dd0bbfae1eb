"""The mirror through lists of states: objects that come, break, go and come again, whole lists and new incarnations.

The oracle reads the API's present objects alone: what can be read stands in the bucket as it is; of what cannot, the
last version of the same object that could; of a policy that never could, one that isolates what it selects.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

import msgspec

from proto.codec import kind_prefix, object_key
from proto.objects import KIND_OF, KubernetesObject, NetworkPolicy, Pod, Selector
from services.cluster.core.cache import Cache
from services.cluster.core.desired import Desired
from services.cluster.core.diff import diff
from tests.core.cluster.lists import list_into
from tests.core.states import Driver, every_order, follow

TYPES: dict[str, type[KubernetesObject]] = {"policy": NetworkPolicy, "pod": Pod}
NODES = {"u1": "n1", "u2": "n2", "u3": "", "u4": "n1", "u5": "n2"}
"""By uid: a pod that has a node keeps it."""
MISSPELT = {"airmesh.io/wish": "x"}


@dataclass(frozen=True)
class Version:
    """An object as the API serves it. ``readable``: a version of it that can be read has been; ``broken``: not now."""

    uid: str
    role: str
    node: str
    misspelt: bool
    readable: bool
    broken: bool


Key = tuple[str, str]
Objects = dict[Key, Version]


def raw(key: Key, version: Version, *, broken: bool) -> bytes:
    kind, name = key
    labels = {"role": version.role}
    metadata = {"name": name, "namespace": "shop", "uid": version.uid}
    if version.misspelt and not broken:
        metadata |= {"annotations": MISSPELT}  # type: ignore[dict-item]
    if kind == "policy":
        spec: object = {"podSelector": {"matchLabels": labels}, "policyTypes": ["Ingress"]}
        if broken:
            spec = {"podSelector": {"matchLabels": labels}, "policyTypes": ["Ingress"], "ingress": [{"from": [{}]}]}
        return msgspec.json.encode({"metadata": metadata, "spec": spec})
    metadata |= {"labels": 3 if broken else labels}  # type: ignore[dict-item]
    return msgspec.json.encode({"metadata": metadata, "spec": {"nodeName": version.node}})


class Mirrored(Driver[Key, Version]):
    """The caches of two kinds and one bucket. Now and then the watch breaks off, or another incarnation takes over."""

    def __init__(self) -> None:
        self.api: Objects = {}
        self.bucket: dict[str, KubernetesObject] = {}
        self.steps = 0
        self.watching = True
        self.incarnation()

    def incarnation(self) -> None:
        """Nothing is known but what the API lists and the bucket holds."""
        self.caches = {kind: Cache(KIND_OF[of]) for kind, of in TYPES.items()}
        self.desired = Desired(object_key)
        self.relist()
        self.write(whole=True)

    def relist(self) -> None:
        for kind, cache in self.caches.items():
            mine = [(key, one) for key, one in self.api.items() if key[0] == kind]
            list_into(cache, [raw(key, one, broken=one.broken) for key, one in mine])
        self.watching = True

    def put(self, key: Key, value: Version | None) -> None:
        self.steps += 1
        before = self.api.pop(key, None)
        if value is not None:
            self.api[key] = value
        if value is not None and value.readable and value.broken:
            self.flush()
            self.caches[key[0]].upsert(raw(key, value, broken=False))
            self.write()
        if not self.watching:
            return
        if value is not None:
            self.caches[key[0]].upsert(raw(key, value, broken=value.broken))
        elif before is not None:
            self.caches[key[0]].remove(raw(key, before, broken=before.broken))
        self.watching = self.steps % 7 > 0

    def flush(self) -> None:
        self.steps += 1
        if not self.watching:
            self.relist()
        self.write()
        if self.steps % 5 == 0:
            self.incarnation()

    def write(self, *, whole: bool = False) -> None:
        for cache in self.caches.values():
            kind = cache.kind.type
            taken = [self.desired.take_one(kind, name, cache.known.get(name)) for name in cache.take_dirty()]
            keys, every = set[str]().union(*(one.keys for one in taken)), any(one.whole for one in taken)
            everything = self.bucket.keys() | self.desired.values.keys() if whole or every else set()
            ours = {key for key in everything if key.startswith(kind_prefix(cache.kind))}
            found = diff(self.desired.values, self.bucket, self.desired.unread(kind), keys | ours)
            self.bucket.update(found.upserts)
            for key in found.deletes:
                del self.bucket[key]

    def settle(self) -> object:
        self.flush()
        named = {(kind, name) for kind, cache in self.caches.items() for _, name in cache.unserved}
        kept = {key for key, one in self.api.items() if one.broken and one.readable}
        return Counter(self.bucket.values()), named - kept


def mirrored(objects: Objects) -> object:
    bucket: Counter[KubernetesObject] = Counter()
    for (kind, name), one in objects.items():
        labels = (("role", one.role),)
        annotations = (("airmesh.io/wish", "x"),) if one.misspelt else ()
        if kind == "policy":
            stands = NetworkPolicy("shop", name, one.uid, Selector(labels), applies_ingress=True, applies_egress=False)
            bucket[msgspec.structs.replace(stands, stand_in=not one.readable)] += 1
        elif one.node and (one.readable or not one.broken):
            bucket[Pod("shop", name, one.uid, one.node, labels, annotations)] += 1
    return bucket, {key for key, one in objects.items() if one.misspelt and not one.broken}


def some_version(chance: Random) -> Version:
    broken = chance.random() < 0.4
    readable = not broken or chance.random() < 0.5
    uid = chance.choice(("u1", "u2", "u3") if readable else ("u4", "u5"))
    return Version(
        uid=uid,
        role=chance.choice(("db", "web")),
        node=NODES[uid],
        misspelt=chance.random() < 0.3,
        readable=readable,
        broken=broken,
    )


def state(chance: Random) -> Objects:
    names = [(kind, name) for kind in TYPES for name in ("a", "b", "c")]
    return {key: some_version(chance) for key in names if chance.random() < 0.7}


@every_order(seeds=12)
def test_whatever_came_before_the_bucket_holds_what_the_api_serves(expander: str, seed: int) -> None:
    chance = Random(seed)
    follow(Mirrored, mirrored, [state(chance) for _ in range(4)], expander, seed)
