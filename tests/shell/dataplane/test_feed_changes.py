"""A loop is woken by objects of the kinds that it reads, and by no other, as a real server tells of them."""

from __future__ import annotations

import asyncio
import time
from ipaddress import ip_address

import pytest

from chassis.bus.cursor import Cursor
from proto.codec import kind_prefix, object_key
from proto.objects import KINDS, EndpointSlice, KubernetesObject, Namespace, Node, Pod, Service, SliceEndpoint
from proto.subjects import OBJECTS
from proto.sync import Complete, complete_key
from services.dataplane.feed import OPTIONAL, Feed
from tests.conftest import BusFor

ADDRESSES = (SliceEndpoint(addresses=(ip_address("172.30.0.1"),)),)
THERE: dict[str, KubernetesObject] = {
    "node": Node(name="n2", uid="u"),
    "pod": Pod(namespace="x", name="a", uid="u", node="n1"),
    "namespace": Namespace(name="x", uid="u"),
    "service": Service(namespace="x", name="s", uid="u"),
    "slice": EndpointSlice("x", "s-1", "s", ADDRESSES),
    "servers": EndpointSlice("default", "kubernetes", "kubernetes", ADDRESSES),
}


async def until(cursor: Cursor, last: str) -> set[str]:
    """All keys but markers up to one."""
    seen: set[str] = set()
    ends = time.monotonic() + 30
    while last not in seen:
        assert time.monotonic() < ends, seen
        await asyncio.sleep(0.01)
        seen |= {key for key in cursor.take() if not key.startswith("_")}
    return seen


@pytest.mark.parametrize(
    ("kinds", "servers", "seen"),
    [
        ((Node,), False, {"node"}),
        ((Node,), True, {"node", "servers"}),
        ((Service, EndpointSlice), False, {"service", "slice", "servers"}),
        ((Pod, Namespace), False, {"pod", "namespace"}),
    ],
)
async def test_only_what_is_read_wakes(
    bus_for: BusFor, buckets: dict[str, str], kinds: tuple[type[KubernetesObject], ...], servers: bool, seen: set[str]
) -> None:
    feed = Feed(await bus_for("dataplane", "n1"), "n1")
    cluster = (await bus_for("cluster")).bucket(OBJECTS)
    early, everything = feed.changes(*kinds, servers=servers), feed.objects.cursor()
    for one in THERE.values():
        await cluster.put(object_key(one), one)
    end = object_key(Node(name="n3", uid="u"))
    await cluster.put(end, Node(name="n3", uid="u"))
    keys = {name: object_key(one) for name, one in THERE.items()}
    found = set[str]()
    while not found >= {end, *keys.values()}:
        found |= await until(everything, min({end, *keys.values()} - found))
    wanted = {keys[name] for name in seen} | ({end} if Node in kinds else set())
    for cursor in (early, feed.changes(*kinds, servers=servers)):  # one that was there, and one that comes later
        assert {key for key in cursor.take() if not key.startswith("_")} == wanted
    assert not early.pending
    for kind in KINDS:
        if kind.type is not OPTIONAL:
            prefix = kind_prefix(kind)
            await cluster.put(complete_key(prefix), Complete(epoch=buckets["objects"]))
    async with asyncio.timeout(30):
        await feed.objects.wait_synced()
        await early.changed()
