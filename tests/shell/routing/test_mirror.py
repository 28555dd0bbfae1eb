"""What the planner is given of the buckets: which models the pools ask for, known late or never."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import ip_network

from kit import models
from proto.addresses import Block
from proto.codec import block_key, encode_segment, kind_prefix, object_key
from proto.objects import KIND_OF, IPPool
from proto.routes import NodeRoutes
from proto.subjects import BLOCKS, CLAIMS, OBJECTS, ROUTES
from proto.sync import Complete, complete_key
from services.routing.mirror import Mirror
from tests.conftest import BusFor

WIDE, INNER, SIX = (ip_network(text) for text in ("10.244.0.0/16", "10.244.8.0/24", "fd00:10:244::/56"))
HOST_GW = ("host-gw",)


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not check():
            await asyncio.sleep(0.01)


async def test_pools_say_which_models_are_asked_for(bus_for: BusFor, buckets: dict[str, str]) -> None:
    """The pool that has blocks counts before one that overlaps it, and what nobody serves is reached as it was."""
    cluster, ipam = await bus_for("cluster"), await bus_for("ipam")
    mirror = Mirror(await bus_for("routing", "n1"), "n1", {models.HOST_GW.name: models.HOST_GW})
    for bucket in (BLOCKS, CLAIMS):
        await ipam.bucket(bucket).put(complete_key(), Complete(buckets[bucket.name]))
    await until(lambda: not mirror.not_synced())
    assert not mirror.pools.synced, "pools are not waited for"
    assert mirror.look().pools == {}
    first = ip_network("10.244.8.0/26")
    await ipam.bucket(BLOCKS).put(block_key(first), Block(first, "z-inner", "n2", "u", 1, "n"))
    asking = IPPool("c-tunnelled", ip_network("10.9.0.0/16"), 26, vxlan_mode="Always")
    pools = (IPPool("a-wide", WIDE, 26), IPPool("z-inner", INNER, 26), IPPool("six", SIX, 122), asking)
    for pool in pools:
        await cluster.bucket(OBJECTS).put(object_key(pool), pool)
    prefix = kind_prefix(KIND_OF[IPPool])
    await cluster.bucket(OBJECTS).put(complete_key(prefix), Complete(buckets["objects"]))
    await until(lambda: mirror.pools.synced and len(mirror.look().pools) == 4)
    found = mirror.look()
    assert set(found.pools.values()) == {HOST_GW}
    order = list(found.pools)
    assert order.index(INNER) < order.index(WIDE)
    assert found.asked_for(first) == HOST_GW
    await cluster.bucket(OBJECTS).delete(object_key(pools[2]))
    await until(lambda: SIX not in mirror.look().pools)


async def test_what_a_node_announced_counts_until_it_has_again_or_holds_nothing(
    bus_for: BusFor, buckets: dict[str, str]
) -> None:
    """As when the bucket was made anew: nobody has told anything in this epoch yet."""
    cluster, ipam = await bus_for("cluster"), await bus_for("ipam")
    mirror = Mirror(await bus_for("routing", "n1"), "n1")
    block = ip_network("10.244.8.0/26")
    await ipam.bucket(BLOCKS).put(block_key(block), Block(block, "p", "n2", "u", 1, "n"))
    for name in ("n2", "n3", "cp"):
        routing = (await bus_for("routing", name)).bucket(ROUTES)
        await routing.put(encode_segment(name), NodeRoutes(node=name, underlay=(), gateway=name == "cp"))
    await until(lambda: len(mirror.look().routes) == 3)
    for name in ("n2", "n3", "cp"):
        await cluster.bucket(ROUTES).delete(encode_segment(name))
    await until(lambda: not mirror.routes.entries)
    assert mirror.look().routes.keys() == {"n2", "n3", "cp"}, "blocks are not known whole"
    for bucket in (BLOCKS, CLAIMS):
        await ipam.bucket(bucket).put(complete_key(), Complete(buckets[bucket.name]))
    await until(lambda: mirror.look().routes.keys() == {"n2", "cp"})
    assert not mirror.look().all_reported
    n2 = (await bus_for("routing", "n2")).bucket(ROUTES)
    await n2.put(complete_key("n2"), Complete(buckets["routes"]))
    await until(lambda: mirror.look().routes.keys() == {"cp"})
