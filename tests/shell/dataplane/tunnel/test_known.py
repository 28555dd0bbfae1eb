"""What a node knows of the other ends, on a real server: it follows the buckets; no loss of one takes an end away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from ipaddress import ip_address, ip_network

import pytest

from chassis.bus.client import Bus
from kit.tunnels import Tunnel
from proto.addresses import Block
from proto.codec import block_key, encode_segment, kind_prefix, object_key
from proto.objects import KINDS, EndpointSlice, FelixConfiguration, Node, SliceEndpoint
from proto.routes import NodeRoutes
from proto.subjects import BLOCKS, CLAIMS, OBJECTS, ROUTES
from proto.sync import Complete, complete_key
from services.dataplane.core.tunnel.devices import Device
from services.dataplane.core.tunnel.peers import SERVER, TunnelPeers
from services.dataplane.core.tunnel.routes import SeenRoute
from services.dataplane.feed import Feed
from services.dataplane.tunnel.known import Known
from tests.conftest import BusFor

SERVERS = EndpointSlice("default", "kubernetes", "kubernetes", (SliceEndpoint(addresses=(ip_address("172.30.0.1"),)),))


async def until(holds: Callable[[], object], seconds: float = 30.0) -> None:
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < seconds, f"not so after {seconds} s"
        await asyncio.sleep(0.01)


class World:
    """What others write, seen by n1."""

    def __init__(self, buses: dict[str, Bus], feed: Feed, epochs: dict[str, str]) -> None:
        self.buses, self.feed, self.epochs = buses, feed, epochs
        self.peers = TunnelPeers("n1")
        self.known = Known(feed, self.peers)

    async def put(self, who: str, bucket: object, key: str, value: object) -> None:
        await self.buses[who].bucket(bucket).put(key, value)  # type: ignore[arg-type]

    async def block(self, cidr: str, node: str) -> None:
        network = ip_network(cidr)
        await self.put("ipam", BLOCKS, block_key(network), Block(network, "p", node, f"u-{node}", 5, "n"))

    async def announce(self, node: str, *underlay: str, name: str = "", all_of_it: bool = True) -> None:
        key = encode_segment(node)
        value = NodeRoutes(node=name or node, underlay=tuple(map(ip_address, underlay)))
        await self.put(f"routing-{node}", ROUTES, key, value)
        if all_of_it:
            await self.put(f"routing-{node}", ROUTES, complete_key(key), Complete(epoch=self.epochs["routes"]))

    async def whole(self) -> None:
        for bucket in (BLOCKS, CLAIMS):
            await self.put("ipam", bucket, complete_key(), Complete(epoch=self.epochs[bucket.name]))
        for kind in KINDS:
            if kind.type is not FelixConfiguration:  # a cluster need not have it
                prefix = kind_prefix(kind)
                await self.put("cluster", OBJECTS, complete_key(prefix), Complete(epoch=self.epochs["objects"]))

    async def api(self, *objects: Node | EndpointSlice) -> None:
        for one in objects:
            await self.put("cluster", OBJECTS, object_key(one), one)

    def who(self) -> dict[str, str]:
        """Node by address."""
        self.known.follow()
        self.peers.settle()
        names = {self.peers.number_of(name): name for name in ("n1", "n2", "n3", f"{SERVER}172.30.0.1")}
        return {str(key.address): names[peer.node] for key, peer in self.peers.peers.items()}


@pytest.fixture
async def world(bus_for: BusFor, buckets: dict[str, str]) -> World:
    buses = {name: await bus_for(name) for name in ("cluster", "ipam")}
    buses |= {f"routing-{name}": await bus_for("routing", name) for name in ("n1", "n2", "n3", "cp")}
    made = World(buses, Feed(await bus_for("dataplane", "n1"), "n1"), buckets)
    for number, name in enumerate(("n1", "n2", "n3")):
        await made.block(f"10.244.0.{64 * number}/26", name)
        await made.announce(name, f"172.30.0.1{number + 1}")
    return made


async def test_nodes_and_api_servers_are_known_once_all_is_here(world: World) -> None:
    assert not world.known.begun
    await world.api(SERVERS)
    await world.whole()
    await until(lambda: world.known.begun)
    await until(lambda: world.who() == {"172.30.0.12": "n2", "172.30.0.13": "n3", "172.30.0.1": f"{SERVER}172.30.0.1"})
    await until(lambda: world.known.whole)
    await world.announce("n3", "172.30.0.33")
    await until(lambda: "172.30.0.33" in world.who())
    assert "172.30.0.13" not in world.who()


async def test_a_node_speaks_in_its_own_name_alone(world: World) -> None:
    await world.whole()
    await world.announce("n3", "172.30.0.13", name="n2")
    await world.announce("n2", "172.30.0.12")
    await until(lambda: world.known.begun and "172.30.0.12" in world.who())
    assert world.who() == {"172.30.0.12": "n2"}


async def test_the_api_says_whose_an_address_is_that_two_announce(world: World) -> None:
    await world.whole()
    await world.announce("n3", "172.30.0.12", "172.30.0.13")
    await until(lambda: world.known.begun and world.who() == {"172.30.0.13": "n3"})
    await world.api(Node(name="n2", uid="u", addresses=(ip_address("172.30.0.12"),)))
    await until(lambda: world.who() == {"172.30.0.12": "n2", "172.30.0.13": "n3"})
    (refusal,) = world.peers.refusals
    assert (refusal.nodes, str(refusal.address)) == (("n3",), "172.30.0.12")


async def test_a_node_whose_record_is_lost_stays_while_it_may_be_there(world: World) -> None:
    """As when a bucket was made anew, and its routing has not told anything in this epoch."""
    await world.whole()
    await until(lambda: world.known.begun and "172.30.0.13" in world.who())
    cluster = world.buses["cluster"].bucket(ROUTES)
    await cluster.delete(complete_key("n3"))
    await cluster.delete("n3")
    await until(lambda: "n3" not in world.feed.routes.entries)
    assert world.who().get("172.30.0.13") == "n3"
    assert not world.known.whole, "what nobody wants is not to be swept now"
    await world.announce("n2", "172.30.0.12", "172.30.0.13")
    await until(lambda: len(world.feed.routes.entries["n2"].value.underlay) == 2)
    assert world.who().get("172.30.0.13") != "n2", "and nobody takes its address meanwhile"
    await world.announce("n2", "172.30.0.12")
    await world.announce("n3", "172.30.0.13")
    await until(lambda: world.who().get("172.30.0.13") == "n3" and world.known.whole)


async def test_a_node_that_left_is_forgotten(world: World) -> None:
    await world.whole()
    await until(lambda: world.known.begun and "172.30.0.13" in world.who())
    await world.block("10.244.0.128/26", "")
    cluster = world.buses["cluster"].bucket(ROUTES)
    await cluster.delete(complete_key("n3"))
    await cluster.delete("n3")
    await until(lambda: "172.30.0.13" not in world.who() and world.known.whole)


async def test_a_block_that_is_lost_stays_until_blocks_are_whole(world: World) -> None:
    await world.whole()
    await until(lambda: world.known.begun and "172.30.0.13" in world.who())
    ipam = world.buses["ipam"].bucket(BLOCKS)
    await ipam.delete(complete_key())
    key = block_key(ip_network("10.244.0.128/26"))
    await ipam.delete(key)
    await until(lambda: key not in world.feed.blocks.entries)
    assert world.who().get("172.30.0.13") == "n3"
    await world.whole()
    await until(lambda: "172.30.0.13" not in world.who())


async def test_a_gateway_says_by_which_models_it_receives_and_nothing_else(world: World) -> None:
    await world.api(SERVERS)
    await world.whole()
    server = ip_address("172.30.0.1")
    mark = Tunnel(model="vxlan", local=ip_address("172.30.0.11"), port=4789, vni=4096)
    world.peers.set_devices([Device(index=7, name="am-vxlan", mac=b"", tunnel=mark)])
    world.peers.set_route((ip_network("10.244.0.64/26"), 64), SeenRoute(7, ip_address("172.30.0.12")))
    record = NodeRoutes(node="cp", underlay=(server, ip_address("172.30.0.99")), models=("vxlan",), gateway=True)
    await world.put("routing-cp", ROUTES, "cp", record)

    def devices() -> dict[str, int]:
        world.who()
        return {str(key.address): peer.ifindex for key, peer in world.peers.peers.items()}

    await until(lambda: world.known.begun and devices() == {"172.30.0.1": 7, "172.30.0.12": 7, "172.30.0.13": 0})
    await world.put("routing-cp", ROUTES, "cp", NodeRoutes(node="cp", underlay=(server,), gateway=True))
    await until(lambda: devices()["172.30.0.1"] == 0)


async def test_a_gateway_whose_record_is_lost_stays_until_it_speaks_again(world: World) -> None:
    await world.api(SERVERS)
    await world.whole()
    server = ip_address("172.30.0.1")
    mark = Tunnel(model="vxlan", local=ip_address("172.30.0.11"), port=4789, vni=4096)
    world.peers.set_devices([Device(index=7, name="am-vxlan", mac=b"", tunnel=mark)])
    world.peers.set_route((ip_network("10.244.0.64/26"), 64), SeenRoute(7, ip_address("172.30.0.12")))
    record = NodeRoutes(node="cp", underlay=(server,), models=("vxlan",), gateway=True)
    await world.put("routing-cp", ROUTES, "cp", record)

    def device() -> int:
        world.who()
        return {str(key.address): peer.ifindex for key, peer in world.peers.peers.items()}.get("172.30.0.1", -1)

    await until(lambda: world.known.begun and device() == 7)
    await world.buses["cluster"].bucket(ROUTES).delete("cp")
    await until(lambda: "cp" not in world.feed.routes.entries)
    assert device() == 7, "its tunnel is taken for its own meanwhile"
    assert world.known.whole, "nobody else waits for it"
    await world.put("routing-cp", ROUTES, complete_key("cp"), Complete(epoch=world.epochs["routes"]))
    await until(lambda: device() != 7)


async def test_what_asks_for_encryption_is_known_whether_or_not_the_cluster_has_the_kind(world: World) -> None:
    await world.whole()
    await until(lambda: world.feed.objects.synced)
    assert not world.feed.complete(FelixConfiguration)
    assert world.feed.model_settings().encrypted == frozenset()
    asked = FelixConfiguration(name="default", wireguard_enabled=True)
    await world.put("cluster", OBJECTS, object_key(asked), asked)
    await until(lambda: world.feed.model_settings().encrypted == {4})
    prefix = next(kind_prefix(kind) for kind in KINDS if kind.type is FelixConfiguration)
    await world.put("cluster", OBJECTS, complete_key(prefix), Complete(epoch=world.epochs["objects"]))
    await until(lambda: world.feed.complete(FelixConfiguration))
