"""Tunnels through lists of states: pools, nodes, blocks and evidence in any order, over a kernel that forgets nothing.

What a pair takes depends on what it took before, so the oracle says only what the present state decides: the first of
the models asked for that is proved. Beside it, what must hold after every pass, whatever came before: packets have a
way as long as they had one, nothing is taken unproved in the place of another way, each next hop leads to the node that
holds the prefix, and nothing is taken away on hearsay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from random import Random

from msgspec import structs

from kit.model_settings import ModelSettings
from kit.tunnels import METRIC, next_hop, vtep_mac
from proto.addresses import Block
from proto.net import Address, Network
from proto.routes import NodeRoutes
from services.routing.core.devices import LINGERS
from services.routing.core.evidence import Evidence, Search, Verdict, Way
from services.routing.core.fib import (
    GROUP,
    AddDevice,
    AddEntry,
    Entry,
    Forwarding,
    MendDevice,
    Neighbour,
    Operation,
    Remove,
    RemoveDevice,
    RemoveEntry,
    Replace,
    Route,
    SeenDevice,
    Snapshot,
    Uplink,
)
from services.routing.core.mesh import Mesh
from services.routing.core.models import MODELS
from services.routing.core.models.contract import NodeContext, Pair, Path
from services.routing.core.pairs import Memory, underlay_of
from services.routing.core.plan import plan
from tests.core.states import Driver, every_order, follow
from tests.hops import outer_address

Key = tuple[str, str]
Value = NodeRoutes | Block | tuple[str, ...] | str
Objects = dict[Key, Value]

POOLS = {"four": ip_network("10.244.0.0/16"), "six": ip_network("fd00:10:244::/56")}
BLOCKS = ("10.244.0.64/26", "10.244.0.128/26", "10.244.0.192/26", "fd00:10:244::40/122", "fd00:10:244::80/122")
NODES = ("n2", "n3", "n4")
UNDERLAY = ("172.30.0.12 fd00:172::12", "198.51.100.3 fd00:99::3", "198.51.100.4", "fd00:99::4", "172.30.0.14")
UPLINK = Uplink(
    name="fab0", index=3, up=True, addresses=(ip_interface("172.30.0.11/24"), ip_interface("fd00:172::11/64"))
)
ASKED = (("host-gw",), ("vxlan",), ("ipip",), ("host-gw", "vxlan"), ("host-gw", "ipip"), ("host-gw", "ipip", "vxlan"))
RECEIVED = (("host-gw",), ("host-gw", "vxlan"), ("host-gw", "ipip"), ("host-gw", "ipip", "vxlan"))


class Kernel(Driver[Key, Value]):
    """The installer over a kernel of its own."""

    def __init__(self) -> None:
        self.objects: Objects = {}
        self.table: dict[Network, Route] = {}
        self.devices: dict[str, SeenDevice] = {}
        self.entries: set[Entry] = set()
        self.unneeded: dict[str, float] = {}
        self.indexes = 10
        self.now = 0.0
        self.chance = Random(11)

    def put(self, key: Key, value: Value | None) -> None:
        if key[0] == "person":
            self._person()
            return
        self.objects.pop(key, None)
        if value is not None:
            self.objects[key] = value

    def _person(self) -> None:
        """Somebody takes something of ours away."""
        what = self.chance.choice(("route", "device", "entry", "address"))
        if what == "route" and self.table:
            del self.table[self.chance.choice(list(self.table))]
        elif what == "device" and self.devices:
            self._take(self.chance.choice(list(self.devices)))
        elif what == "entry" and self.entries:
            self.entries.discard(self.chance.choice(sorted(self.entries, key=str)))
        elif what == "address" and self.devices:
            name = self.chance.choice(list(self.devices))
            self.devices[name] = replace(self.devices[name], whole=False, mtu=1300)

    def _take(self, name: str) -> None:
        """With a device its routes and entries go."""
        index = self.devices.pop(name).index
        self.entries = {entry for entry in self.entries if entry.link != index}
        self.table = {where: route for where, route in self.table.items() if route.link != index}

    def mesh(self, *, pools: bool, routes: bool, blocks: bool = True) -> Mesh:
        reported = {one.node: one for one in self.objects.values() if isinstance(one, NodeRoutes)}
        return Mesh(
            me="n1",
            routes=reported,
            blocks={one.cidr: one for one in self.objects.values() if isinstance(one, Block)},
            blocks_complete=blocks,
            claims_complete=blocks,
            routes_complete=routes,
            reported=frozenset(("n1", *NODES)),
            pools=self.asked(),
            pools_complete=pools,
            settings=ModelSettings(),
            settings_complete=True,
        )

    def asked(self) -> dict[Network, tuple[str, ...]]:
        return {POOLS[name]: value for (kind, name), value in self.objects.items() if kind == "pool"}  # type: ignore[misc]

    def evidence(self) -> dict[Way, Evidence]:
        """Of every way of every model to every node, as the state says."""
        found = {}
        for reported in [one for one in self.objects.values() if isinstance(one, NodeRoutes)]:
            for name in MODELS:
                for family in (4, 6):
                    path = path_of(name, reported, family, self.devices)
                    if path is not None and path.way is not None:
                        found[path.way] = known(self.objects, reported.node, name, path.mtu)
        return found

    def _pass(self, mesh: Mesh) -> bool:
        """One round, then others as long as a device was made. Whether anything was done."""
        done = False
        for _ in range(3):
            evidence = self.evidence()
            before = dict(self.table)
            snapshot = Snapshot(
                routes=tuple(self.table.values()),
                uplinks=(UPLINK,),
                devices=tuple(self.devices.values()),
                entries=frozenset(self.entries),
            )
            planned = plan(mesh, snapshot, Memory(now=self.now, evidence=evidence, unneeded=self.unneeded))
            owners = {route.destination: self._holder(mesh, route.destination) for route in before.values()}
            for operation in planned.operations:
                self._apply(operation, mesh)
            self._judge(before, owners, mesh, evidence)
            idle = set(self.devices) - planned.needed if mesh.pools_complete else set()
            self.unneeded = {name: self.unneeded.get(name, self.now) for name in idle}
            done = done or bool(planned.operations)
            if not any(isinstance(operation, AddDevice) for operation in planned.operations):
                break
        return done

    def _apply(self, operation: Operation, mesh: Mesh) -> None:
        if isinstance(operation, AddDevice):
            device = operation.device
            assert device.name not in self.devices
            self.indexes += 1
            self.devices[device.name] = SeenDevice(
                name=device.name,
                index=self.indexes,
                kind=device.kind,
                up=True,
                mtu=device.mtu,
                group=GROUP,
                alias=device.alias,
                tunnel=device.tunnel,
            )
        elif isinstance(operation, MendDevice):
            seen = self.devices[operation.device.name]
            self.devices[seen.name] = replace(seen, whole=True, mtu=operation.device.mtu)
        elif isinstance(operation, RemoveDevice):
            assert mesh.pools_complete, "on hearsay"
            assert not [one for one in self.table.values() if one.link == operation.index], "a route leads there"
            self._take(operation.name)
        elif isinstance(operation, AddEntry):
            self.entries = {one for one in self.entries if key_of(one) != key_of(operation.entry)} | {operation.entry}
        elif isinstance(operation, RemoveEntry):
            assert mesh.routes_complete, "on hearsay"
            self.entries.remove(operation.entry)
        elif isinstance(operation, Replace):
            self.table[operation.route.destination] = operation.route
        elif isinstance(operation, Remove):
            assert mesh.blocks_complete
            self.table.pop(operation.route.destination)

    def _holder(self, mesh: Mesh, destination: Network) -> str:
        block = mesh.blocks.get(destination)
        reported = mesh.routes.get(block.node) if block is not None else None
        return block.node if block is not None and reported is not None and destination in reported.prefixes else ""

    def _judge(
        self,
        before: Mapping[Network, Route],
        owners: Mapping[Network, str],
        mesh: Mesh,
        evidence: Mapping[Way, Evidence],
    ) -> None:
        links = {device.index: device for device in self.devices.values()}
        for destination, route in self.table.items():
            holder = self._holder(mesh, destination)
            if not holder or (not mesh.blocks_complete and before.get(destination) == route):
                continue  # one that is of no use any more goes when all is known
            model = self._model(route)
            path = path_of(model, mesh.routes[holder], destination.version, self.devices)
            assert path is not None
            assert (route.via, route.link) == (path.via, path.link), "to the node that holds it"
            if model == "vxlan":
                hop, outer = route.via, path.remote
                assert hop is not None
                assert outer is not None
                assert outer_address(hop) in (outer, None)
                assert Neighbour(route.link, hop, vtep_mac(outer)) in self.entries
                assert Forwarding(route.link, vtep_mac(outer), outer) in self.entries
                assert links[route.link].tunnel is not None
            old = before.get(destination)
            if old is not None and owners[destination] == holder and self._model(old) != model:
                was = path_of(self._model(old), mesh.routes[holder], destination.version, self.devices)
                if was is not None and (old.via, old.link) == (was.via, was.link) and path.way is not None:
                    assert evidence[path.way].verdict is Verdict.WORKS, "taken before it is proved"
        for destination, old in before.items():
            holder = self._holder(mesh, destination)
            if holder and destination not in self.table:
                was = path_of(self._model(old), mesh.routes[holder], destination.version, self.devices)
                assert was is None or (old.via, old.link) != (was.via, was.link), "packets had a way and lost it"

    def _model(self, route: Route) -> str:
        if route.link == UPLINK.index:
            return "host-gw"
        found = next((one for one in self.devices.values() if one.index == route.link), None)
        return found.tunnel.model if found is not None and found.tunnel is not None else "gone"

    def flush(self) -> None:
        self.now += 7.0
        pools, routes, blocks = (self.chance.random() < 0.7 for _ in range(3))
        self._pass(self.mesh(pools=pools, routes=routes, blocks=blocks))

    def settle(self) -> object:
        whole = self.mesh(pools=True, routes=True)
        for _ in range(5):
            self.now += 10_000.0
            self._pass(whole)
        assert not self._pass(whole), "nothing is left to do"
        wanted = {name for asked in whole.pools.values() for name in asked}
        wanted |= {self._model(route) for route in self.table.values()}
        assert {one.tunnel.model for one in self.devices.values() if one.tunnel} <= wanted, "what nobody needs is gone"
        decided = what_is_decided(self.objects)
        return {where: self._model(route) for where, route in self.table.items() if where in decided}


def key_of(entry: Entry) -> object:
    return (entry.link, entry.address) if isinstance(entry, Neighbour) else (entry.link, entry.mac)


def path_of(name: str, reported: NodeRoutes, family: int, devices: Mapping[str, SeenDevice]) -> Path | None:
    usable: dict[tuple[str, int], SeenDevice] = {
        (one.tunnel.model, one.tunnel.local.version): one for one in devices.values() if one.tunnel
    }
    own = NodeContext(links=(UPLINK,), underlay=underlay_of((UPLINK,)), devices=usable)
    if name not in MODELS:
        return None
    path = MODELS[name].path(Pair(peer=reported, family=family, own=own))
    return path if isinstance(path, Path) else None


def known(objects: Objects, node: str, name: str, most: int) -> Evidence:
    word = objects.get(("proof", f"{node} {name}"))
    whole = Search(most=most, good=most)
    reported = objects.get(("node", node))
    if word == "works" and isinstance(reported, NodeRoutes) and name in reported.models:
        return Evidence(verdict=Verdict.WORKS, since=-1e6, answered=9, search=whole)
    if word == "unknown":
        return Evidence()
    return Evidence(verdict=Verdict.FAILS, since=-1e6, lost=9, search=whole)


def what_is_decided(objects: Mapping[Key, Value]) -> dict[Network, str]:
    """Where one of the models asked for is proved, and none before it could be: that one is taken."""
    found: dict[Network, str] = {}
    nodes = {one.node: one for one in objects.values() if isinstance(one, NodeRoutes)}
    for block in objects.values():
        if not isinstance(block, Block) or block.node not in nodes:
            continue
        reported = nodes[block.node]
        if block.cidr not in reported.prefixes:
            continue
        pool = objects.get(("pool", {4: "four", 6: "six"}[block.cidr.version]), ("host-gw",))
        assert isinstance(pool, tuple)
        for name in pool:
            if not could_be(name, reported, block.cidr.version) or name not in reported.models:
                continue
            verdict = known(dict(objects), block.node, name, 1500).verdict
            if verdict is Verdict.UNKNOWN:
                break
            if verdict is Verdict.WORKS:
                found[block.cidr] = name
                break
    return found


def could_be(name: str, reported: NodeRoutes, family: int) -> bool:
    """By addresses alone."""
    versions = {address.version for address in reported.underlay}
    if name == "vxlan":
        return bool(versions)
    if name == "ipip":
        return family == 4 and 4 in versions
    networks = [interface.network for interface in UPLINK.addresses]
    return any(address in network for address in reported.underlay if address.version == family for network in networks)


def state(chance: Random) -> Objects:
    objects: Objects = {}
    for name in POOLS:
        if chance.random() < 0.9:
            objects["pool", name] = chance.choice(ASKED)
    underlay = chance.sample(UNDERLAY, len(NODES))
    for name, addresses in zip(NODES, underlay, strict=True):
        if chance.random() < 0.85:
            objects["node", name] = NodeRoutes(
                name,
                tuple(map(ip_address, addresses.split())),
                tuple(ip_network(text) for text in BLOCKS if chance.random() < 0.9),
                models=chance.choice(RECEIVED),
            )
        for model in MODELS:
            word = chance.choice(("works", "works", "fails", "unknown"))
            objects["proof", f"{name} {model}"] = word
    for text in BLOCKS:
        if chance.random() < 0.9:
            objects["block", text] = Block(ip_network(text), "p", chance.choice(NODES), "u", 1, "n")
    if chance.random() < 0.5:
        objects["person", str(chance.random())] = "was here"
    return objects


@every_order(3)
def test_tunnels_are_what_the_present_state_decides(expander: str, seed: int) -> None:
    chance = Random(seed)
    follow(Kernel, what_is_decided, [state(chance) for _ in range(6)], expander, seed)


def test_a_device_that_nobody_needs_stays_for_a_while() -> None:
    kernel = Kernel()
    kernel.put(("pool", "four"), ("vxlan",))
    kernel.put(
        ("node", "n2"), NodeRoutes("n2", (ip_address("172.30.0.12"),), (ip_network(BLOCKS[0]),), models=RECEIVED[3])
    )
    kernel.put(("block", BLOCKS[0]), Block(ip_network(BLOCKS[0]), "p", "n2", "u", 1, "n"))
    whole = kernel.mesh(pools=True, routes=True)
    kernel._pass(whole)
    assert [route.link for route in kernel.table.values()] == [kernel.devices["am-vxlan"].index]
    kernel.put(("pool", "four"), ("host-gw",))
    kernel.put(("proof", "n2 host-gw"), "works")
    gone = []
    for _ in range(12):
        kernel.now += 10
        kernel._pass(kernel.mesh(pools=True, routes=True))
        assert [route.link for route in kernel.table.values()] == [UPLINK.index]
        gone.append("am-vxlan" not in kernel.devices)
    assert gone.index(True) in (LINGERS // 10, LINGERS // 10 + 1)


def test_what_nobody_knows_yet_changes_nothing() -> None:
    """An agent without memory, before any bucket is complete."""
    kernel = Kernel()
    kernel.put(("pool", "four"), ("vxlan",))
    reported = NodeRoutes("n2", (ip_address("172.30.0.12"),), (ip_network(BLOCKS[0]),), models=RECEIVED[3])
    kernel.put(("node", "n2"), reported)
    kernel.put(("block", BLOCKS[0]), Block(ip_network(BLOCKS[0]), "p", "n2", "u", 1, "n"))
    kernel._pass(kernel.mesh(pools=True, routes=True))
    table, devices, entries = dict(kernel.table), dict(kernel.devices), set(kernel.entries)
    assert table[ip_network(BLOCKS[0])].metric == METRIC
    kernel.unneeded = {}
    kernel.now += 1000
    kernel.put(("pool", "four"), None)
    kernel._pass(kernel.mesh(pools=False, routes=False, blocks=False))
    assert (kernel.table, kernel.devices, kernel.entries) == (table, devices, entries)
    kernel.put(("node", "n2"), None)
    kernel._pass(kernel.mesh(pools=False, routes=False, blocks=False))
    assert (kernel.table, kernel.devices, kernel.entries) == (table, devices, entries)
    kernel.put(("node", "n2"), structs.replace(reported, models=("host-gw",)))
    kernel._pass(kernel.mesh(pools=False, routes=False, blocks=False))
    assert (kernel.table, kernel.devices, kernel.entries) == (table, devices, entries)


def outer(text: str) -> Address:
    return ip_address(text)


def test_entries_are_there_for_each_node_by_the_family_that_both_speak() -> None:
    kernel = Kernel()
    kernel.put(("pool", "four"), ("vxlan",))
    for name, text in (("n2", "172.30.0.12 fd00:172::12"), ("n4", "fd00:99::4")):
        kernel.put(("node", name), NodeRoutes(name, tuple(map(ip_address, text.split()))))
    kernel._pass(kernel.mesh(pools=True, routes=True))
    four, six = kernel.devices["am-vxlan"].index, kernel.devices["am-vxlan6"].index
    mac, other = vtep_mac(outer("172.30.0.12")), vtep_mac(outer("fd00:99::4"))
    assert kernel.entries == {
        Neighbour(four, outer("172.30.0.12"), mac),
        Neighbour(four, outer("fe80::5efe:ac1e:c"), mac),
        Forwarding(four, mac, outer("172.30.0.12")),
        Neighbour(six, next_hop(outer("fd00:99::4"), 4), other),
        Neighbour(six, outer("fd00:99::4"), other),
        Forwarding(six, other, outer("fd00:99::4")),
    }
