"""The routes through lists of states: nodes, blocks, claims and uplinks in any order, and what the kernel ends with.

The planner has no memory, the kernel's table is: each flush plans from what is known by then, with the buckets whole or
not, and writes it. The oracle says which routes there should be from the present state alone, by a rule for each kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface, ip_network
from random import Random

from kit.tunnels import LAST_METRIC, METRIC
from proto.addresses import IPAM_HOLDER, Block, Claim
from proto.net import Address, Network
from proto.objects import Owner
from proto.routes import NodeRoutes
from services.routing.core.fib import OTHER_MTU, PODS, Kind, Remove, Route, Snapshot, Uplink
from services.routing.core.mesh import Mesh
from services.routing.core.plan import plan
from tests.core.states import Driver, every_order, follow

Key = tuple[str, str]
Value = NodeRoutes | Block | Claim | Uplink | Route
Objects = dict[Key, Value]
Table = dict[tuple[Network, int], Route]

ME, OTHERS = "n1", ("n2", "n3")
BLOCKS = ("10.244.0.0/30", "10.244.0.4/30", "10.244.0.8/30", "fd00:10:244::/126", "fd00:10:244::4/126")
ADDRESSES = ("10.244.0.5", "10.244.0.9", "10.244.1.1", "fd00:10:244::5", "fd00:10:244:1::1")
UNDERLAY = ("172.30.0.11", "172.30.0.12", "172.30.0.13", "172.31.0.12", "192.0.2.9", "fd00:172::12", "fd00:173::12")
LINKS = {
    "fab0": Uplink(
        name="fab0", index=3, up=True, addresses=(ip_interface("172.30.0.11/24"), ip_interface("fd00:172::11/64"))
    ),
    "fab1": Uplink(
        name="fab1", index=4, up=True, addresses=(ip_interface("172.31.0.11/24"), ip_interface("fd00:173::11/64"))
    ),
}


def mesh_of(
    objects: Objects, *, blocks: bool = True, claims: bool = True, silent: frozenset[str] = frozenset()
) -> Mesh:
    """As the mirror makes it. ``silent``: nodes that have not told everything in this epoch."""
    reported = [value for value in objects.values() if isinstance(value, NodeRoutes)]
    return Mesh(
        me=ME,
        routes={one.node: one for one in reported},
        claims=tuple(value for value in objects.values() if isinstance(value, Claim)),
        blocks={value.cidr: value for value in objects.values() if isinstance(value, Block)},
        blocks_complete=blocks,
        claims_complete=claims,
        reported=frozenset((ME, *OTHERS, "n9")) - silent,
    )


def uplinks_of(objects: Mapping[Key, Value]) -> tuple[Uplink, ...]:
    found = {value.name: value for value in objects.values() if isinstance(value, Uplink)}
    return tuple(found[name] for name in sorted(found))


class Kernel(Driver[Key, Value]):
    """The installer over a table: reads, plans, writes. What others do to the table comes between."""

    def __init__(self) -> None:
        self.objects: Objects = {}
        self.table: Table = {}
        self.chance = Random(7)

    def put(self, key: Key, value: Value | None) -> None:
        kind, name = key
        if kind == "foreign":
            self._foreign(ip_network(name), value)
            return
        self.objects.pop(key, None)
        if value is not None:
            self.objects[key] = value

    def _foreign(self, destination: Network, route: Value | None) -> None:
        """A person's route; without it, what this person does to ours: a flush, or another MTU."""
        had = self.table.get((destination, METRIC))
        if isinstance(route, Route):
            self.table[destination, METRIC] = route
        elif had is not None and (not had.is_ours or self.chance.random() < 0.5):
            del self.table[destination, METRIC]
        elif had is not None:
            self.table[destination, METRIC] = replace(had, mtu=OTHER_MTU)

    def _pass(self, mesh: Mesh) -> None:
        links = uplinks_of(self.objects)
        planned = plan(mesh, Snapshot(routes=tuple(self.table.values()), uplinks=links))
        for operation in planned.changes:
            key = operation.route.key
            if isinstance(operation, Remove):
                assert mesh.blocks_complete
                assert mesh.claims_complete
                silent = set(OTHERS) - mesh.reported
                assert operation.route.kind is not Kind.UNICAST or self._holder(key[0]) not in silent
                assert self.table.pop(key).is_ours
            else:
                assert key not in self.table or self.table[key].is_ours
                self.table[key] = operation.route

    def _holder(self, destination: Network) -> str:
        """Who has the block, or the kept address."""
        for value in self.objects.values():
            if isinstance(value, Block) and value.cidr == destination:
                return value.node
            if isinstance(value, Claim) and ip_network(value.address) == destination:
                return value.node
        return ""

    def flush(self) -> None:
        blocks, claims = (self.chance.random() < 0.7 for _ in range(2))
        silent = frozenset(name for name in OTHERS if self.chance.random() < 0.3)
        self._pass(mesh_of(self.objects, blocks=blocks, claims=claims, silent=silent))

    def check(self, present: Mapping[Key, Value]) -> None:
        """What is added never waits for what is not known yet; only removals do."""
        missing = {key: route for key, route in what_should_be(present).items() if self.table.get(key) != route}
        assert missing == {}

    def settle(self) -> object:
        self._pass(mesh_of(self.objects))
        before = dict(self.table)
        self._pass(mesh_of(self.objects))
        assert self.table == before, "nothing is left to do"
        return before


@dataclass(frozen=True)
class Hop:
    via: Address
    link: Uplink


def hop_to(reported: NodeRoutes, links: tuple[Uplink, ...], version: int) -> Hop | None:
    """The first of its addresses of the family that is on a link of ours; none when that is our own."""
    for address in reported.underlay:
        for link in links:
            for own in link.addresses:
                if address.version == own.version == version and link.up and address in own.network:
                    return None if address == own.ip else Hop(address, link)
    return None


def what_should_be(objects: Mapping[Key, Value]) -> Table:
    links = uplinks_of(objects)
    wanted: dict[Network, Route] = {}
    table: Table = {}
    tellers = {value.node: value for value in objects.values() if isinstance(value, NodeRoutes) and value.node != ME}
    for value in objects.values():
        if isinstance(value, Block) and value.node in (ME, IPAM_HOLDER):
            route = Route(destination=value.cidr, kind=Kind.UNREACHABLE, metric=LAST_METRIC)
            table[route.key] = route
        behind: list[tuple[str, Network]] = []
        if isinstance(value, Block) and value.node in tellers and value.cidr in tellers[value.node].prefixes:
            behind = [(value.node, value.cidr)]
        if isinstance(value, Claim) and value.node in tellers:
            host = ip_network(value.address)
            if not any(host.version == one.version and value.address in one for one in tellers[value.node].prefixes):
                behind = [(value.node, host)]
        for name, destination in behind:
            hop = hop_to(tellers[name], links, destination.version)
            if hop is not None:
                said = tellers[name].mtu
                fits = min(hop.link.mtu, max(said, 1280)) if said else hop.link.mtu
                mtu = fits if fits < hop.link.mtu else 0
                wanted[destination] = Route(destination=destination, via=hop.via, link=hop.link.index, mtu=mtu)
    table |= {route.key: route for route in wanted.values()}
    return table | {value.key: value for value in objects.values() if isinstance(value, Route)}


def some_node(chance: Random, name: str) -> NodeRoutes:
    return NodeRoutes(
        name,
        tuple(ip_address(text) for text in chance.sample(UNDERLAY, chance.choice((0, 1, 2, 4)))),
        tuple(ip_network(text) for text in BLOCKS if chance.random() < 0.6),
        mtu=chance.choice((0, 100, 1400, 1500, 9000)),
    )


def state(chance: Random) -> Objects:
    objects: Objects = {}
    for name, link in LINKS.items():
        if chance.random() < 0.9:
            objects["uplink", name] = replace(
                link, up=chance.random() < 0.9, mtu=chance.choice((1400, 1500, 1500, 9000))
            )
    for name in (ME, *OTHERS):
        if chance.random() < 0.8:
            objects["node", name] = some_node(chance, name)
    for text in BLOCKS:
        if chance.random() < 0.8:
            holder = chance.choice((*OTHERS, *OTHERS, ME, IPAM_HOLDER, "n9", ""))
            objects["block", text] = Block(ip_network(text), "p", holder, "u", 1, "n")
    for text in ADDRESSES:
        if chance.random() < 0.5:
            owner = Owner("shop", "StatefulSet", "db", 0)
            holder = chance.choice((*OTHERS, *OTHERS, ME, "n9", ""))
            objects["claim", text] = Claim(ip_address(text), owner, holder, "u", "c", "eth0", 1, "n")
    for text in (BLOCKS[1], BLOCKS[4]):
        if chance.random() < 0.2:
            protocol = chance.choice((4, PODS))
            route = Route(destination=ip_network(text), link=9, protocol=protocol)
            objects["foreign", text] = route
    return objects


@every_order(6)
def test_the_table_is_what_the_present_state_asks_for(expander: str, seed: int) -> None:
    chance = Random(seed)
    follow(Kernel, what_should_be, [state(chance) for _ in range(6)], expander, seed)
