"""NATS loses everything it stored: nothing that the kernel holds goes before its owner has spoken again."""

from __future__ import annotations

import time
from ipaddress import ip_address

import pytest

from chassis.bus.client import Bus
from proto.addresses import Endpoint
from proto.objects import Node
from proto.subjects import ENDPOINTS
from proto.sync import Complete, Epoch, complete_key
from services.dataplane.core.datapath.layout import PrefixKey
from services.dataplane.datapath.pins import opened_maps
from services.dataplane.datapath.tables import Tables
from tests.natsd import endpoint_at
from tests.netns.dataplane.mesh import Listener, Mesh, cluster_objects, dial, resident, wait_for

pytestmark = pytest.mark.privileged

FAR = ip_address("10.244.9.9")
ENTRY = Endpoint(
    node="n2",
    address=FAR,
    namespace="shop",
    pod="far",
    pod_uid="uid-far",
    identity=424_242,
    mac=b"\2\0\0\0\0\1",
    epoch=3,
    sequence=1,
)


def test_other_nodes_pods_stay_known_until_their_node_has_spoken(node: Mesh) -> None:
    other = Node(name="n2", uid="node-uid-2", addresses=(ip_address("172.30.0.12"),), ready=True)
    node.put(other)
    tables = Tables(opened_maps(node.pins))
    prober, target = node.pod("front"), node.pod("back")
    listener = Listener(target.netns)

    def identity() -> int:
        found = tables.ipcache.get(PrefixKey.host(FAR))
        return found.identity if found else 0

    async def speak(bus: Bus) -> None:
        await bus.bucket(ENDPOINTS).put(endpoint_at("n2", FAR), ENTRY)
        await complete(bus)

    async def complete(bus: Bus) -> None:
        epoch = await bus.bucket(ENDPOINTS).get("_epoch", Epoch)
        assert epoch is not None
        await bus.bucket(ENDPOINTS).put(complete_key("n2"), Complete(epoch=epoch.value.epoch))

    resident(node, n2=(ENTRY.identity,))
    node.hold("10.244.9.0/26", "n2")
    node.as_node("n2", speak)
    wait_for("the other node's pod", lambda: identity() == ENTRY.identity)
    node.lose_the_bus(*cluster_objects(), other, prober.pod, target.pod)
    wait_for(
        "this node's own endpoints on the new bus",
        lambda: {"front", "back"} <= {one.pod for one in node.read(ENDPOINTS, Endpoint).values()},
        30,
    )
    assert dial(prober.netns, target.four, 80, listener) == prober.four
    time.sleep(2)
    assert identity() == ENTRY.identity, "an empty bucket is not an empty cluster"
    node.as_node("n2", complete)
    wait_for("the entry to go", lambda: identity() == 0, 30)
    fresh = node.pod("fresh")
    wait_for("the fresh pod's packets", lambda: dial(fresh.netns, target.six, 80, listener) == fresh.six, 30)
    assert not set(fresh.addresses) & {*prober.addresses, *target.addresses}
    listener.close()
    tables.close()
