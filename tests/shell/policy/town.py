"""What the service lives among: a writer of ``objects`` in the place of ``cluster``, copies of it, and readers."""

from __future__ import annotations

import asyncio
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from chassis.bus.client import Bus, View
from chassis.faults import Missing, Unavailable
from chassis.runtime.service import Runtime
from kit.identity import identity_of, stands_for
from proto import codec
from proto.identity import IdentityRecord, RelevantKeys
from proto.objects import KIND_OF, KubernetesObject, Namespace, NetworkPolicy, Pod
from proto.policy import CidrPartition, CidrSet, CompiledPolicy, Frontier, Revision
from proto.subjects import IDENTITIES, OBJECTS, RULES
from proto.sync import Complete, Epoch, complete_key
from services.policy.app import build
from services.policy.settings import Settings
from tests.core.policy.notation import named, namespace, pod, policy
from tests.natsd import NatsServer, runtime_of

KINDS = (Namespace, Pod, NetworkPolicy)
API_TO_DB = {
    "podSelector": {"matchLabels": {"role": "db"}},
    "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "api"}}}], "ports": [{"port": 5432}]}],
}
DB = pod("x/db", labels={"role": "db"}, named_ports=named("pg:TCP:5432"))
API = pod("x/api", labels={"role": "api"}, node="n2")
WEB = pod("y/web", labels={"role": "web"})
PODS = (DB, API, WEB)


def np(spec: dict[str, Any], name: str = "p", space: str = "x") -> NetworkPolicy:
    return policy(spec, space, name)


class Town:
    """The mirror of Kubernetes, written by hand, and the two buckets that come out, read as a node reads them."""

    def __init__(self, server: NatsServer, bus: Bus) -> None:
        self.server = server
        self.bus = bus
        self.objects = bus.bucket(OBJECTS)
        self.epochs: dict[str, str] = {}
        self.pods: dict[str, Pod] = {}
        self.namespaces: dict[str, Namespace] = {}
        self.written: dict[str, int] = {}
        """Sequence of an object's last write, by its name."""
        self.rules: View = bus.bucket(RULES).watch(
            {"": CompiledPolicy, "_cidrs": CidrPartition, "_frontier": Frontier}, name="rules"
        )
        self.identities: View = bus.bucket(IDENTITIES).watch(
            {"": IdentityRecord, "_relevant": RelevantKeys}, name="identities"
        )

    async def make(self) -> None:
        self.epochs = await self.bus.make_buckets()

    async def settle(self, *objects: KubernetesObject) -> None:
        """Objects of a small cluster, then the markers."""
        await self.put(Namespace("kube-system", "cluster-uid"), namespace("x"), namespace("y"), *PODS, *objects)
        await self.complete()

    async def put(self, *objects: KubernetesObject) -> int:
        written = 0
        for value in objects:
            if isinstance(value, Pod):
                self.pods[codec.object_key(value)] = value
            elif isinstance(value, Namespace):
                self.namespaces[value.name] = value
            written = await self.objects.put(codec.object_key(value), value)
            self.written[value.name] = written
        return written

    async def drop(self, value: KubernetesObject) -> None:
        await self.objects.delete(codec.object_key(value))

    async def complete(self) -> None:
        for kind in KINDS:
            key = complete_key(codec.kind_prefix(KIND_OF[kind]))
            await self.objects.put(key, Complete(epoch=self.epochs["objects"]))

    def policies(self) -> dict[str, CompiledPolicy]:
        return {key: entry.value for key, entry in self.rules.entries.items()}

    def identity(self, name: str) -> int | None:
        """Number of the pods of ``namespace/role`` that were put last, under the relevant keys that all shards use."""
        space, _, role = name.partition("/")
        pods = [pod for pod in self.pods.values() if pod.namespace == space and ("role", role) in pod.labels]
        if not pods or space not in self.namespaces:
            return None
        marked = self.identities.marks.get("_relevant")
        relevant = RelevantKeys() if marked is None else marked.value
        return identity_of(stands_for(pods[-1], self.namespaces[space], relevant.of(space)), "cluster-uid")

    def of(self, name: str) -> CompiledPolicy | None:
        """Rules of the pods of ``namespace/role``."""
        identity = self.identity(name)
        entry = None if identity is None else self.rules.entries.get(codec.identity_key(identity))
        return None if entry is None else entry.value

    def record_of(self, name: str) -> IdentityRecord | None:
        """What is published of the identity of these pods."""
        identity = self.identity(name)
        entry = None if identity is None else self.identities.entries.get(codec.identity_key(identity))
        return None if entry is None else entry.value

    async def rules_of(self, name: str) -> CompiledPolicy:
        """As :meth:`of`, once it is there."""
        await self.until(lambda: self.of(name) is not None, f"{name} is known")
        found = self.of(name)
        assert found is not None
        return found

    def prefixes(self, space: str) -> tuple[CidrSet, ...]:
        """The published CIDR sets of a namespace."""
        entry = self.rules.marks.get(f"_cidrs.{space}")
        return () if entry is None else entry.value.prefixes

    def frontiers(self) -> dict[int, Revision]:
        return {
            entry.value.shard: entry.value.revision
            for key, entry in self.rules.marks.items()
            if key.startswith("_frontier.")
        }

    def reached(self, sequence: int, shards: int = 2) -> bool:
        """All frontiers cover the sequence, in the present epoch of objects."""
        wanted = Revision(epoch=self.epochs["objects"], sequence=sequence)
        return sum(revision.covers(wanted) for revision in self.frontiers().values()) >= shards

    async def until(self, condition: Callable[[], object], why: str, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"after {seconds} s still not: {why}; {self.frontiers()}")
            await asyncio.sleep(0.02)

    async def lose(self, *buckets: str) -> None:
        """The server dies and the buckets' files are gone; it comes back, and ``cluster`` makes them anew."""
        self.server.kill()
        for bucket in buckets:
            (found,) = self.server.folder.glob(f"store/**/KV_{bucket}_v1")
            shutil.rmtree(found)
        self.server.start()
        await self.connected_again()
        await self.make()

    async def connected_again(self) -> None:
        """After the server came back: the client may not have noticed yet that it was gone."""
        for _ in range(100):
            try:
                await self.bus.wait_connected(20)
                await self.objects.get("_epoch", Epoch)
            except Unavailable:
                await asyncio.sleep(0.1)
            except Missing:
                return
            else:
                return
        raise AssertionError("the bus does not come back")


@asynccontextmanager
async def town_of(server: NatsServer) -> AsyncIterator[Town]:
    async with runtime_of(server, "cluster") as runtime:
        town = Town(server, runtime.bus)
        await town.make()
        yield town


def settings_of(server: NatsServer, **more: Any) -> Settings:
    return Settings(
        nats_url=server.url,
        nats_seed_file=server.seeds / "policy.seed",
        nats_user="policy",
        instance=f"policy-{uuid.uuid4().hex[:8]}",
        **{"policy_lease_seconds": 1.5, **more},
    )


@asynccontextmanager
async def copy_of(server: NatsServer, **more: Any) -> AsyncIterator[Runtime[Settings]]:
    """One copy of the service, in this process."""
    async with runtime_of(server, "policy", settings=settings_of(server, **more)) as runtime:
        await build(runtime)
        yield runtime
