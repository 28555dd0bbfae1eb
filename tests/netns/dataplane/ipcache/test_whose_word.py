"""What a node that was taken over can say about other nodes' pods: nothing that the kernel would believe."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest

from chassis.bus.client import Bus
from proto.addresses import Endpoint
from proto.events import ServiceFault
from proto.net import Address
from proto.objects import Node
from proto.subjects import ENDPOINTS, heard_subject
from proto.sync import Complete, Epoch, complete_key
from services.dataplane.core.datapath.layout import PrefixKey
from services.dataplane.datapath.pins import opened_maps
from services.dataplane.datapath.tables import Tables
from tests.natsd import bus_of, endpoint_at
from tests.netns.dataplane.mesh import Mesh, resident, wait_for

pytestmark = pytest.mark.privileged

LIE = 666_666


def said(address: str, identity: int, *, name: str = "n2", epoch: int = 3) -> Endpoint:
    return Endpoint(name, ip_address(address), "shop", "x", "uid-x", identity, b"\2\0\0\0\0\1", epoch, 1)


def publish(node: Mesh, *endpoints: Endpoint, writer: str = "n2") -> None:
    async def speak(bus: Bus) -> None:
        kv = bus.bucket(ENDPOINTS)
        for one in endpoints:
            await kv.put(endpoint_at(writer, one.address), one)
        epoch = await kv.get("_epoch", Epoch)
        assert epoch is not None
        await kv.put(complete_key(writer), Complete(epoch=epoch.value.epoch))

    node.as_node(writer, speak)


def test_only_what_a_node_holds_is_accepted_of_it(node: Mesh) -> None:
    nodes = {name: ip_address(f"172.30.0.1{name[1]}") for name in ("n2", "n3")}
    node.put(*(Node(name=name, uid=f"node-uid-{name}", addresses=(at,), ready=False) for name, at in nodes.items()))
    resident(node, n2=(2001, LIE), n3=(3001,))
    tables = Tables(opened_maps(node.pins))
    victim = node.pod("victim")

    def identity(address: str | Address) -> int:
        found = tables.ipcache.get(PrefixKey.host(ip_address(str(address))))
        return found.identity if found else 0

    wait_for("the pod of this node", lambda: identity(victim.four) > 1000)
    true = {address: identity(address) for address in victim.addresses}
    node.hold("10.244.9.0/26", "n2")
    node.hold("10.244.9.64/26", "n3")
    publish(node, said("10.244.9.70", 3001, name="n3"), writer="n3")
    far = 1 << 40
    lies = [said(address, LIE, epoch=far) for address in (*victim.addresses, "10.244.9.70", "10.244.9.130")]
    lies += [said("10.244.9.71", LIE, name="n3", epoch=far), said(f"::ffff:{victim.four}", LIE, epoch=far)]
    heard: list[str] = []

    async def listen() -> None:
        async with bus_of(node.nats, "cli") as bus:
            await bus.subscribe(
                heard_subject("dataplane", "fault"), ServiceFault, lambda _, reported: heard.append(reported.fault)
            )
            await asyncio.to_thread(publish, node, *lies, said("10.244.9.1", 2001))
            for _ in range(300):
                if sum("not believed" in fault for fault in heard) >= len(lies):
                    return
                await asyncio.sleep(0.1)

    asyncio.run(listen())
    assert identity("10.244.9.1") == 2001, "what it holds is its own to tell"
    assert identity("10.244.9.70") == 3001
    assert {address: identity(address) for address in victim.addresses} == true
    assert [identity(address) for address in ("10.244.9.130", "10.244.9.71")] == [0, 0]
    for address in (victim.four, victim.six, "10.244.9.70", "10.244.9.71"):
        assert any(address in fault and "node n2" in fault for fault in heard), (address, heard)

    node.hold("10.244.9.128/26", "n2")
    wait_for("what is true now to be believed", lambda: identity("10.244.9.130") == LIE, 3)
    tables.close()
