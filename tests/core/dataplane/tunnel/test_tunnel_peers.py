"""The maps of the other ends, by lists of states: who is a peer, by which device, and who may send what.

The oracle asks of each address and of each prefix what the present state alone says.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from random import Random

import pytest

from kit.tunnels import Tunnel, next_hop, vtep_mac
from kit.underlay import owners_of
from proto.addresses import Block, Claim
from proto.net import Address, Network
from proto.objects import Owner
from services.dataplane.core.datapath.layout import AddressKey, PrefixKey
from services.dataplane.core.datapath.tunnel_layout import TunnelPeer
from services.dataplane.core.tunnel.devices import Device
from services.dataplane.core.tunnel.numbers import Numbers, hash_of
from services.dataplane.core.tunnel.peers import SERVER, TunnelPeers
from services.dataplane.core.tunnel.routes import RouteKey, SeenRoute
from tests.core.states import Driver, every_order, follow
from tests.hops import outer_addresses

Key = tuple[str, str]
Value = tuple[Address, ...] | Block | Claim | frozenset[Address] | SeenRoute | Device
Objects = Mapping[Key, Value]

ME = "n1"
NODES = ("n1", "n2", "n3")
UNDERLAY = tuple(map(ip_address, ("172.30.0.2", "172.30.0.3", "fd00:172::2", "172.30.0.9", "fd00:172::9")))
BLOCKS = ("10.244.0.0/30", "10.244.0.4/30", "10.244.0.0/29", "fd00:10:244::/126")
KEPT = ("10.244.0.5", "10.244.9.7", "fd00:10:244::1")
VXLAN, IPIP, WIREGUARD = 7, 8, 9
DEVICES = {
    VXLAN: Tunnel(model="vxlan", local=ip_address("172.30.0.1"), port=4789, vni=4096),
    IPIP: Tunnel(model="ipip", local=ip_address("172.30.0.1")),
    WIREGUARD: Tunnel(model="wireguard", local=ip_address("172.30.0.1"), port=51820),
}


def device(index: int) -> Device:
    return Device(index=index, name=f"am-{index}", mac=bytes(6), tunnel=DEVICES[index])


def block(cidr: str, node: str) -> Block:
    return Block(ip_network(cidr), "p", node, f"u-{node}", 1, "n")


def claim(address: str, node: str) -> Claim:
    return Claim(ip_address(address), Owner("shop", "StatefulSet", "db", 0), node, "u", "c", "eth0", 1, "n")


class Maps(Driver[Key, Value]):
    """``TunnelPeers``, fed as the reconciler feeds it."""

    def __init__(self) -> None:
        self.maps = TunnelPeers(ME)
        self.nodes: dict[str, frozenset[Address]] = {}
        self.servers: frozenset[Address] = frozenset()
        self.devices: dict[str, Device] = {}
        self.peers: dict[AddressKey, TunnelPeer] = {}
        self.sources: dict[PrefixKey, int] = {}

    def put(self, key: Key, value: Value | None) -> None:
        kind, name = key
        match kind:
            case "routes":
                self.maps.announce(name, value if isinstance(value, tuple) else ())
            case "block":
                self.maps.set_block(ip_network(name), value if isinstance(value, Block) else None)
            case "claim":
                self.maps.set_claim(ip_address(name), value if isinstance(value, Claim) else None)
            case "own":
                self.maps.set_own(value if isinstance(value, frozenset) else frozenset())
            case "route":
                self.maps.set_route(route_key(name), value if isinstance(value, SeenRoute) else None)
            case "device":
                self.devices.pop(name, None)
                if isinstance(value, Device):
                    self.devices[name] = value
                self.maps.set_devices(self.devices.values())
            case "gateway":
                self.maps.set_gateway(name, value if isinstance(value, tuple) else (), ("vxlan", "wireguard"))
            case "node":
                self.nodes.pop(name, None)
                if isinstance(value, frozenset):
                    self.nodes[name] = value
                self.maps.set_api(self.nodes, self.servers)
            case _:
                self.servers = value if isinstance(value, frozenset) else frozenset()
                self.maps.set_api(self.nodes, self.servers)

    def flush(self) -> None:
        """As the reconciler writes: only what is said to have changed."""
        changed = self.maps.settle()
        for key in changed.peers:
            self.peers.pop(key, None)
            if key in self.maps.peers:
                self.peers[key] = self.maps.peers[key]
        for prefix in changed.sources:
            self.sources.pop(prefix, None)
            if prefix in self.maps.sources:
                self.sources[prefix] = self.maps.sources[prefix].node

    def settle(self) -> object:
        self.flush()
        self.maps.forget()
        number = {0: "", **{self.maps.number_of(name): name for name in (*NODES, *map(server, UNDERLAY))}}
        peers = {
            (key.address, number[peer.node], peer.ifindex, peer.outer, peer.mac) for key, peer in self.peers.items()
        }
        return peers, {(prefix.network, number[node]) for prefix, node in self.sources.items()}


def server(address: Address) -> str:
    return f"{SERVER}{address}"


def route_key(name: str) -> RouteKey:
    return ip_network(name), 64


def whose(objects: Objects) -> dict[Address, str]:
    """Owners of addresses of the shared network, API servers among them."""
    blocks = [value for value in objects.values() if isinstance(value, Block)]
    claims = [value for value in objects.values() if isinstance(value, Claim)]
    own, servers = objects.get(("own", ""), frozenset()), objects.get(("servers", ""), frozenset())
    assert isinstance(own, frozenset)
    assert isinstance(servers, frozenset)
    said = {name: value for (kind, name), value in objects.items() if kind == "routes" and isinstance(value, tuple)}
    nodes = {name: value for (kind, name), value in objects.items() if kind == "node" and isinstance(value, frozenset)}
    owners = owners_of(said, blocks, claims, nodes, servers=servers, own=own, me=ME)
    announced = next((set(value) for value in gateways(objects).values()), set())
    announced -= {address for value in nodes.values() for address in value} - servers
    taken = {one for one in servers | announced if any(one in block.cidr for block in blocks)}
    taken |= own | owners.keys() | {one.address for one in claims}
    vouched = servers - taken
    owners |= {address: server(address) for address in vouched}
    if vouched & announced:
        named = {one.version for one in vouched & announced}
        theirs = vouched & announced | {one for one in announced - taken if one.version not in named}
        owners |= dict.fromkeys(theirs, server(min(vouched & announced, key=lambda one: one.version)))
    return owners


def gateways(objects: Objects) -> dict[str, tuple[Address, ...]]:
    """What machines announce that are no nodes."""
    holding = {value.node for value in objects.values() if isinstance(value, Block | Claim)}
    return {
        name: value
        for (kind, name), value in objects.items()
        if kind == "gateway" and isinstance(value, tuple) and name not in holding and ("node", name) not in objects
    }


def ways_to_server(
    objects: Objects, owners: Mapping[Address, str], address: Address
) -> list[tuple[int, int, int, Address]]:
    """By the device that most routes of the family lead out by, of those that the server's machine receives by; by
    WireGuard where there is one. A tunnel's outer address is its IPv4 one.
    """
    receives = any(address in value for value in gateways(objects).values())
    outer = next((one for one in owners if one.version == 4 and owners[one] == owners[address]), None)
    links = [
        value.link
        for (kind, cidr), value in objects.items()
        if isinstance(value, SeenRoute) and ip_network(cidr).version == address.version
        if value.link == WIREGUARD or (value.link == VXLAN and outer is not None)  # of what it receives by
        if ("device", str(value.link)) in objects
    ]
    if not receives or not links:
        return []
    most = max(links, key=lambda link: (link == WIREGUARD, links.count(link), link))
    return [(1, most, 1, address if most == WIREGUARD or outer is None else outer)]


def what_the_maps_say(objects: Objects) -> object:
    owners = whose(objects)
    blocks = [value for value in objects.values() if isinstance(value, Block)]
    peers = set()
    hops = outer_addresses(owners)
    for address, name in owners.items():
        ways = [
            (int(one.kind), route.link, int(outer), outer, ip_network(destination).version)
            for (_, destination), route in objects.items()
            if isinstance(route, SeenRoute) and (outer := hops.get(route.via or address)) and owners[outer] == name
            for one in objects.values()
            if isinstance(one, Device) and one.index == route.link
        ]
        of_family = [way[:4] for way in ways if way[4] == address.version]
        if name.startswith(SERVER):
            of_family = ways_to_server(objects, owners, address)
        best = max(of_family, key=lambda way: way[:3], default=(0, 0, 0, None))
        peers.add((address, name, best[1], best[3], vtep_mac(address)))
        if address.version == 6:  # its next hop does not say it
            by_hop = [
                max((way for way in ways if way[3] == address and way[4] == one), default=(0, 0))[1] for one in (4, 6)
            ]
            peers.add((next_hop(address, 6), name, max(by_hop), address, vtep_mac(address)))
    sources: dict[Network, str] = {one.cidr: one.node if one.node in NODES else "" for one in blocks}
    sources |= {ip_network(address): name for address, name in owners.items()}
    for value in objects.values():
        if isinstance(value, Claim) and value.node:
            holding = [one for one in blocks if value.address in one.cidr]
            smallest = max(holding, key=lambda one: one.cidr.prefixlen, default=None)
            if smallest is None or smallest.node != value.node:
                sources[ip_network(value.address)] = value.node
    return peers, set(sources.items())


def state(chance: Random) -> Objects:
    objects: dict[Key, Value] = {}
    for name in NODES:
        if chance.random() < 0.8:
            objects["routes", name] = tuple(one for one in UNDERLAY if chance.random() < 0.35)
        if chance.random() < 0.3:
            objects["node", name] = frozenset(one for one in UNDERLAY if chance.random() < 0.3)
    for cidr in BLOCKS:
        if chance.random() < 0.7:
            objects["block", cidr] = block(cidr, chance.choice((*NODES, "", "_ipam", "_contested")))
    for address in KEPT:
        if chance.random() < 0.4:
            objects["claim", address] = claim(address, chance.choice((*NODES, "")))
    for index in DEVICES:
        if chance.random() < 0.6:
            objects["device", str(index)] = device(index)
    for cidr in ("10.244.0.0/30", "10.244.0.4/30", "10.244.0.5/32", "fd00:10:244::/126"):
        if chance.random() < 0.7:
            family = ip_network(cidr).version
            outer = chance.choice(UNDERLAY)
            link = chance.choice((VXLAN, IPIP, WIREGUARD, 3))
            objects["route", cidr] = SeenRoute(link=link, via=next_hop(outer, family))
    if chance.random() < 0.2:
        objects["own", ""] = frozenset((UNDERLAY[1],))
    if chance.random() < 0.5:
        objects["servers", ""] = frozenset(chance.sample(UNDERLAY[3:], chance.choice((1, 1, 2))))
    if chance.random() < 0.6:
        objects["gateway", chance.choice(("cp", "n3"))] = tuple(chance.sample(UNDERLAY[3:], chance.choice((1, 2, 2))))
    return objects


@every_order(seeds=12)
def test_whatever_came_before_the_maps_are_what_the_present_state_says(expander: str, seed: int) -> None:
    chance = Random(seed)
    follow(Maps, what_the_maps_say, [state(chance) for _ in range(4)], expander, seed)


def cluster(count: int) -> TunnelPeers:
    """So many nodes with a block and a route each, settled."""
    maps = TunnelPeers(ME)
    maps.set_devices([device(VXLAN)])
    for number in range(count):
        at = ip_address(f"172.{16 + number // 250}.{number % 250}.1")
        cidr = f"10.{number // 250}.{number % 250}.0/26"
        maps.set_block(ip_network(cidr), block(cidr, f"n{number + 10}"))
        maps.announce(f"n{number + 10}", [at])
        maps.set_route(route_key(cidr), SeenRoute(link=VXLAN, via=at))
    maps.settle()
    return maps


def test_of_a_thousand_nodes_a_change_costs_what_it_changes() -> None:
    maps = cluster(1000)
    assert (len(maps.peers), len(maps.sources)) == (1000, 2000)
    maps.set_block(ip_network("10.9.0.0/26"), block("10.9.0.0/26", "n10"))
    changed = maps.settle()
    assert (len(changed.peers), len(changed.sources)) == (0, 1), "a block came"
    maps.set_route(route_key("10.0.0.0/26"), SeenRoute(link=3, via=ip_address("172.16.0.1")))
    changed = maps.settle()
    assert (len(changed.peers), len(changed.sources)) == (1, 0), "a pair took another way"
    assert maps.peers[AddressKey(address=ip_address("172.16.0.1"))].ifindex == 0
    maps.set_block(ip_network("10.0.1.0/26"), None)
    maps.announce("n11", ())
    changed = maps.settle()
    assert (len(changed.peers), len(changed.sources)) == (1, 2), "a node left"
    maps.forget()
    changed = maps.settle()
    assert not changed.peers
    assert not changed.sources


def test_both_addresses_of_a_node_go_the_way_of_its_pods() -> None:
    """IPv6 packets over an IPv4 tunnel: the outer address is the node's other one."""
    maps = TunnelPeers(ME)
    four, six = ip_address("172.30.0.2"), ip_address("fd00:172::2")
    maps.set_devices([device(VXLAN), device(IPIP)])
    maps.set_block(ip_network("fd00:10:244::/126"), block("fd00:10:244::/126", "n2"))
    maps.announce("n2", [four, six])
    maps.set_route(route_key("fd00:10:244::/126"), SeenRoute(link=VXLAN, via=next_hop(four, 6)))
    maps.set_route(route_key("10.244.0.0/30"), SeenRoute(link=IPIP, via=four))
    maps.settle()
    found = {key.address: (peer.ifindex, peer.outer) for key, peer in maps.peers.items()}
    assert found == {four: (IPIP, four), six: (VXLAN, four), next_hop(six, 6): (0, six)}


def test_a_next_hop_that_does_not_hold_the_outer_address_is_looked_up() -> None:
    maps, six = TunnelPeers(ME), ip_address("fd00:172::2")
    maps.set_devices([device(VXLAN)])
    maps.set_block(ip_network("10.244.0.0/30"), block("10.244.0.0/30", "n2"))
    maps.announce("n2", [six])
    maps.set_route(route_key("10.244.0.0/30"), SeenRoute(link=VXLAN, via=next_hop(six, 4)))
    maps.settle()
    found = {key.address: (peer.ifindex, peer.outer) for key, peer in maps.peers.items()}
    assert found == {six: (0, None), next_hop(six, 4): (VXLAN, six)}
    maps.announce("n2", ())
    assert len(maps.settle().peers) == 2
    assert maps.peers == {}


def test_a_stolen_key_gets_no_other_nodes_sources() -> None:
    maps = TunnelPeers(ME)
    for cidr, node in (("10.244.0.0/30", "n2"), ("10.244.0.4/30", "n3")):
        maps.set_block(ip_network(cidr), block(cidr, node))
    maps.announce("n2", [ip_address("172.30.0.2")])
    maps.announce("n3", [ip_address("172.30.0.3"), ip_address("10.244.0.1"), ip_address("172.30.0.2")])
    maps.set_api({"n2": frozenset((ip_address("172.30.0.2"),))}, frozenset())
    maps.settle()
    theirs = {prefix.network for prefix, source in maps.sources.items() if source.node == maps.number_of("n3")}
    assert theirs == {ip_network("10.244.0.4/30"), ip_network("172.30.0.3")}
    assert maps.peers[AddressKey(address=ip_address("172.30.0.2"))].node == maps.number_of("n2")
    assert {refusal.address for refusal in maps.refusals} == {ip_address("10.244.0.1"), ip_address("172.30.0.2")}


def test_an_api_server_sends_in_its_own_name_alone() -> None:
    maps = TunnelPeers(ME)
    maps.set_block(ip_network("10.244.0.0/30"), block("10.244.0.0/30", "n2"))
    first, second = ip_address("172.30.0.8"), ip_address("172.30.0.9")
    maps.set_api({}, frozenset((first, second)))
    maps.settle()
    number = {key.address: peer.node for key, peer in maps.peers.items()}
    assert len({*number.values(), maps.number_of("n2"), 0}) == 4
    assert {prefix.network: source.node for prefix, source in maps.sources.items()} == {
        ip_network("10.244.0.0/30"): maps.number_of("n2"),
        ip_network(first): number[first],
        ip_network(second): number[second],
    }


def test_answers_to_an_api_server_go_by_a_tunnel_that_its_machine_receives_by() -> None:
    """Most pairs take it. A node that says it were such a machine is not believed."""
    maps, at = TunnelPeers(ME), ip_address("172.30.0.9")
    maps.set_devices([device(VXLAN), device(IPIP)])
    maps.set_api({"n2": frozenset()}, frozenset((at,)))
    for number, link in enumerate((VXLAN, VXLAN, IPIP)):
        maps.set_route(route_key(f"10.244.{number}.0/26"), SeenRoute(link=link, via=ip_address("172.30.0.2")))

    def way() -> tuple[int, Address | None]:
        maps.settle()
        peer = maps.peers[AddressKey(address=at)]
        return peer.ifindex, peer.outer

    assert way() == (0, None)
    maps.set_gateway("n2", [at], ["vxlan"])
    assert way() == (0, None)
    maps.set_gateway("cp", [at], ["ipip", "vxlan"])
    assert way() == (VXLAN, at)
    maps.set_gateway("cp", [at], ["ipip"])
    assert way() == (IPIP, at)
    maps.set_devices([device(VXLAN), device(WIREGUARD)])
    maps.set_route(route_key("10.244.2.0/26"), SeenRoute(link=WIREGUARD, via=ip_address("172.30.0.2")))
    maps.set_gateway("cp", [at], ["vxlan"])
    assert way() == (VXLAN, at)
    maps.set_gateway("cp", [at], ["vxlan", "wireguard"])
    assert way() == (WIREGUARD, at), "fewer pairs take it, but it hides what it carries"
    maps.set_gateway("cp", (), ())
    assert way() == (0, None)
    assert {maps.number_of("cp"), maps.number_of("n2")}.isdisjoint({maps.peers[AddressKey(address=at)].node})


def test_an_api_server_has_the_other_addresses_that_its_machine_announces() -> None:
    """The API names those of one family alone. What somebody else has is nobody's to announce."""
    maps, at, other, pod = TunnelPeers(ME), *map(ip_address, ("172.30.0.9", "fd00:172::9", "fd00:10:244::1"))
    maps.set_block(ip_network("fd00:10:244::/126"), block("fd00:10:244::/126", "n2"))
    maps.set_devices([device(VXLAN)])
    maps.set_route(route_key("fd00:10:244::/126"), SeenRoute(link=VXLAN, via=ip_address("fe80::1")))

    def numbers() -> list[int | None]:
        maps.settle()
        found = [maps.sources.get(PrefixKey.of(ip_network(one))) for one in (at, other, pod)]
        return [one.node if one is not None else None for one in found]

    maps.set_gateway("cp", [at, ip_address("172.30.0.10"), other, pod], ["vxlan"])
    assert numbers() == [None, None, None], "the API does not say that it is one of its servers"
    maps.set_api({}, frozenset((at,)))
    number = maps.number_of(f"{SERVER}{at}")
    assert numbers() == [number, number, None]
    assert AddressKey(address=ip_address("172.30.0.10")) not in maps.peers, "of this family the API says which"
    peer = maps.peers[AddressKey(address=other)]
    assert (peer.ifindex, peer.outer) == (VXLAN, at), "answers take the tunnel, too"
    maps.announce("n2", [other])
    assert numbers() == [number, maps.number_of("n2"), None]
    maps.announce("n2", ())
    maps.set_api({"n2": frozenset((other,))}, frozenset((at,)))
    assert numbers() == [number, None, None], "the API gives it to a node"
    maps.set_api({"cp": frozenset()}, frozenset((at,)))
    assert numbers() == [number, None, None], "a node has what a node may have"


class TestNumbers:
    def test_they_are_the_same_after_a_restart(self) -> None:
        first, second = Numbers(), Numbers()
        names = [f"n{number}" for number in range(500)]
        assert [first.of(name) for name in names] == list(reversed([second.of(name) for name in reversed(names)]))

    def test_no_two_nodes_have_one_and_none_has_0(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module = "services.dataplane.core.tunnel.numbers.hash_of"
        monkeypatch.setattr(module, lambda name, salt: (len(name) + salt) % 50)
        numbers = Numbers()
        found = {name: numbers.of(name) for name in ("a" * 50, "b", "c", "d" * 49, "e")}
        assert len(set(found.values()) | {0}) == 6
        assert {name: numbers.of(name) for name in found} == found
        assert {numbers.name_of(number) for number in found.values()} == set(found)

    def test_what_nobody_names_is_forgotten(self) -> None:
        numbers = Numbers()
        kept = numbers.of("n1")
        gone = numbers.of("n2")
        numbers.keep({"n1"})
        assert len(numbers) == 1
        assert (numbers.name_of(kept), numbers.name_of(gone)) == ("n1", None)
        assert numbers.of("n2") == gone == hash_of("n2")
