"""Which endpoints are asked for their identity when something changes: those that it may be about."""

from __future__ import annotations

from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from chassis.runtime.reconcile import Dirty
from chassis.telemetry.log import Log
from chassis.telemetry.traces import Telemetry
from proto.codec import join, object_key
from proto.identity import RelevantKeys
from proto.objects import Namespace
from proto.policy import Frontier, Revision
from services.dataplane.core.attachment import Attachment
from services.dataplane.core.cni.request import PodRef
from services.dataplane.core.endpoint.admission import Admitted, NotYet
from services.dataplane.core.endpoint.lifecycle import LocalEndpoint
from services.dataplane.core.ipam.journal_records import Lease
from services.dataplane.endpoint.admission import Entered
from services.dataplane.endpoint.registry import Registry
from services.dataplane.endpoint.relabel import Relabel
from services.dataplane.feed import Feed

PODS = 1000
FRONTIER = Frontier(0, 1, Revision("e", 5))


def pod_key(name: str) -> str:
    return join("core", "pod", "n1", "shop", name)


def namespace_key(name: str) -> str:
    return object_key(Namespace(name, "uid"))


class Node:
    """A node with many pods, as far as relabelling sees it: what it is asked, and what it answers."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.asked: list[str] = []
        self.waits: set[str] = set()
        self.frontier = FRONTIER
        self._pod_prefix = join("core", "pod", "n1")
        for number in range(PODS):
            self.add(f"p{number}")
        stub = cast("Any", self)
        runtime: Any = SimpleNamespace(log=Log("dataplane"), telemetry=Telemetry("dataplane", "n1", {}))
        self.relabel = Relabel(stub, stub, self.registry, cast("Any", None), cast("Any", None), runtime)

    def add(self, name: str) -> None:
        attachment = Attachment(f"c-{name}", "eth0")
        lease = Lease(
            address=IPv4Address("10.244.0.1"),
            container=attachment.container,
            interface=attachment.interface,
            namespace="shop",
            pod=name,
            pod_uid="uid",
            identity=7,
            nonce="",
            epoch=1,
            sequence=1,
            boot="",
            at=0.0,
        )
        endpoint = LocalEndpoint(attachment=attachment, leases=(lease,), index=1, cookie=1)
        self.registry.put(endpoint)

    def frontiers(self) -> list[Frontier]:
        return [self.frontier]

    def about(self, keys: Any) -> Any:
        return Feed.about(self, keys)  # type: ignore[arg-type]

    def look(self, wanted: PodRef) -> Entered | NotYet:
        self.asked.append(wanted.name)
        if wanted.name in self.waits:
            return NotYet("its frontier is on its way")
        return Entered(Admitted(pod=None, identity=7, policy=None), "")  # type: ignore[arg-type]

    async def change(
        self, *objects: str, rules: tuple[str, ...] = (), local: tuple[str, ...] = (), full: bool = False
    ) -> list[str]:
        """Who is asked after these changes."""
        self.asked.clear()
        by_cursor = tuple(map(frozenset, (objects, (), rules, local)))
        await self.relabel.apply(Dirty(full=full, keys=frozenset().union(*by_cursor), by_cursor=by_cursor))
        return sorted(self.asked)


async def test_a_change_asks_for_the_endpoints_that_it_may_be_about() -> None:
    node = Node()
    assert len(await node.change(full=True)) == PODS
    assert await node.change(rules=("_frontier.0", f"{9:016x}")) == []
    assert await node.change(pod_key("p7"), pod_key("of-another-node")) == ["p7"]
    assert await node.change(namespace_key("depot")) == []
    assert len(await node.change(namespace_key("shop"))) == PODS
    node.add("late")
    assert await node.change(local=("c-late",)) == ["late"]
    assert len(await node.change(full=True)) == PODS + 1


async def test_an_endpoint_without_an_answer_is_asked_at_every_change_until_it_has_one() -> None:
    node = Node()
    await node.change(full=True)
    node.waits = {"p7"}
    assert await node.change(pod_key("p7")) == ["p7"]
    assert await node.change(rules=("_frontier.0",)) == ["p7"]
    node.waits = set()
    assert await node.change(rules=("_frontier.0",)) == ["p7"]
    assert await node.change(rules=("_frontier.0",)) == []


async def test_what_all_identities_are_made_of_asks_for_all() -> None:
    node = Node()
    await node.change(full=True)
    node.frontier = msgspec.structs.replace(FRONTIER, relevant=RelevantKeys(keys=("job-name",)))
    assert len(await node.change(rules=("_frontier.0",))) == PODS
    assert await node.change(rules=("_frontier.0",)) == []
    assert len(await node.change(namespace_key("kube-system"))) == PODS


async def test_one_that_is_gone_is_not_asked_for() -> None:
    node = Node()
    await node.change(full=True)
    node.waits = {"p7"}
    await node.change(pod_key("p7"))
    node.registry.remove(Attachment("c-p7", "eth0"))
    assert await node.change(local=("c-p7",)) == []
    assert node.registry.of_container("c-p7") == ()
