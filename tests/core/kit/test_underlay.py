"""Whose an address of the shared network is: by lists of states, and case by case."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from random import Random

import pytest

from kit.underlay import MOST_ADDRESSES, Underlay, owners_of
from proto.addresses import Block, Claim
from proto.net import Address
from proto.objects import Owner
from tests.core.states import Driver, every_order, follow

Key = tuple[str, str]
Value = tuple[Address, ...] | Block | Claim | frozenset[Address]
Objects = Mapping[Key, Value]

ME = "n1"
NODES = ("n1", "n2", "n3", "n9")
ADDRESSES = tuple(
    map(ip_address, ("172.30.0.1", "172.30.0.2", "172.30.0.3", "10.244.0.66", "10.244.9.7", "fd00:172::2"))
)
BLOCKS = ("10.244.0.0/26", "10.244.0.64/26", "fd00:10:244::/122")


def block(cidr: str, node: str) -> Block:
    return Block(ip_network(cidr), "p", node, f"u-{node}", 1, "n")


def claim(address: str, node: str) -> Claim:
    return Claim(ip_address(address), Owner("shop", "StatefulSet", "db", 0), node, "u", "c", "eth0", 1, "n")


class Addresses(Driver[Key, Value]):
    """``Underlay``, fed as services feed it."""

    def __init__(self) -> None:
        self.underlay = Underlay(ME)
        self.nodes: dict[str, frozenset[Address]] = {}
        self.servers: frozenset[Address] = frozenset()

    def put(self, key: Key, value: Value | None) -> None:
        kind, name = key
        match kind:
            case "routes":
                self.underlay.announce(name, value if isinstance(value, tuple) else ())
            case "block":
                self.underlay.set_block(ip_network(name), value if isinstance(value, Block) else None)
            case "claim":
                self.underlay.set_claim(ip_address(name), value if isinstance(value, Claim) else None)
            case "own":
                self.underlay.set_own(value if isinstance(value, frozenset) else frozenset())
            case "node":
                self.nodes.pop(name, None)
                if isinstance(value, frozenset):
                    self.nodes[name] = value
                self.underlay.set_api(self.nodes, self.servers)
            case _:
                self.servers = value if isinstance(value, frozenset) else frozenset()
                self.underlay.set_api(self.nodes, self.servers)

    def flush(self) -> None:
        self.underlay.settle()

    def settle(self) -> object:
        self.underlay.settle()
        by_node = {(name, one) for name, some in self.underlay.addresses.items() for one in some}
        assert by_node == {(name, one) for one, name in self.underlay.owners.items()}
        refused = {(node, one.address) for one in self.underlay.refusals.values() for node in one.nodes}
        return dict(self.underlay.owners), refused


def who_has_what(objects: Objects) -> object:
    """Asks of each address that is told, from all there is."""
    blocks = [value for value in objects.values() if isinstance(value, Block)]
    claims = [value for value in objects.values() if isinstance(value, Claim)]
    holding = {one.node for one in blocks} | {one.node for one in claims}
    announced = {name: value for (kind, name), value in objects.items() if kind == "routes"}
    listed = {name: value for (kind, name), value in objects.items() if kind == "node"}
    owners: dict[Address, str] = {}
    refused: set[tuple[str, Address]] = set()
    for address in ADDRESSES:
        tellers = {name for name, some in announced.items() if isinstance(some, tuple) and address in some}
        known = {name for name in tellers if name in holding and name != ME}
        of_pods = any(address in one.cidr for one in blocks) or any(address == one.address for one in claims)
        own = objects.get(("own", ""), frozenset())
        servers = objects.get(("servers", ""), frozenset())
        assert isinstance(own, frozenset)
        assert isinstance(servers, frozenset)
        by_api = {name for name, some in listed.items() if isinstance(some, frozenset) and address in some}
        candidates = known & by_api if by_api else known
        free = not of_pods and ME not in tellers and address not in own
        alone = len(by_api) == 1 if by_api else len(known) == 1 and address not in servers
        if free and alone and len(candidates) == 1:
            owners[address] = candidates.pop()
        refused |= {(name, address) for name in known if owners.get(address) != name}
    return owners, refused


def state(chance: Random) -> Objects:
    objects: dict[Key, Value] = {}
    for name in NODES:
        if chance.random() < 0.8:
            objects["routes", name] = tuple(one for one in ADDRESSES if chance.random() < 0.35)
        if chance.random() < 0.5:
            objects["node", name] = frozenset(one for one in ADDRESSES if chance.random() < 0.2)
    for cidr in BLOCKS:
        if chance.random() < 0.6:
            objects["block", cidr] = block(cidr, chance.choice((*NODES, "", "_ipam", "_contested")))
    for address in ("10.244.9.7", "10.244.0.66"):
        if chance.random() < 0.4:
            objects["claim", address] = claim(address, chance.choice((*NODES, "")))
    if chance.random() < 0.3:
        objects["own", ""] = frozenset((ADDRESSES[0], ADDRESSES[1]))
    if chance.random() < 0.3:
        objects["servers", ""] = frozenset((ADDRESSES[2],))
    return objects


@every_order(seeds=12)
def test_whatever_came_before_each_address_is_whose_the_present_state_says(expander: str, seed: int) -> None:
    chance = Random(seed)
    follow(Addresses, who_has_what, [state(chance) for _ in range(4)], expander, seed)


def owners(announced: dict[str, str], nodes: dict[str, str] | None = None, *, servers: str = "") -> dict[str, str]:
    """Of n1, n2, n3 and n9, of which each holds a block; addresses by words."""
    found = owners_of(
        {name: map(ip_address, some.split()) for name, some in announced.items()},
        [block(f"10.244.{number}.0/26", name) for number, name in enumerate(NODES)],
        [claim("10.244.50.1", "n2")],
        {name: frozenset(map(ip_address, some.split())) for name, some in (nodes or {}).items()},
        servers=frozenset(map(ip_address, servers.split())),
        me=ME,
    )
    return {str(address): name for address, name in found.items()}


def test_two_nodes_that_announce_one_address_do_not_have_it() -> None:
    announced = {"n2": "172.30.0.2", "n3": "172.30.0.3", "n9": "172.30.0.2"}
    assert owners(announced) == {"172.30.0.3": "n3"}


def test_a_stolen_key_does_not_take_an_address_that_the_api_gives_to_another() -> None:
    nodes = {"n2": "172.30.0.2", "n9": "172.30.0.9"}
    announced = {"n2": "172.30.0.2", "n9": "172.30.0.2 172.30.0.9"}
    assert owners(announced, nodes) == {"172.30.0.2": "n2", "172.30.0.9": "n9"}
    assert owners({"n9": "172.30.0.2"}, nodes) == {}, "and the other is silent"


def test_two_that_the_api_lists_with_one_address_do_not_have_it() -> None:
    assert owners({"n2": "172.30.0.2"}, {"n2": "172.30.0.2", "n9": "172.30.0.2"}) == {}


@pytest.mark.parametrize(
    "address", ["10.244.1.5", "10.244.50.1", "127.0.0.1", "::", "224.0.0.1", "fe80::1", "172.30.0.1"]
)
def test_an_address_that_cannot_be_a_nodes(address: str) -> None:
    """A pod's, a kept one, nobody's, or the own one of who is asked."""
    assert owners({"n1": "172.30.0.1", "n9": address}) == {}


def test_an_api_servers_address_is_no_nodes_unless_the_api_says_so() -> None:
    assert owners({"n9": "172.30.0.8"}, servers="172.30.0.8") == {}
    assert owners({"n9": "172.30.0.8"}, {"n9": "172.30.0.8"}, servers="172.30.0.8") == {"172.30.0.8": "n9"}


def test_a_node_that_ipam_does_not_know_has_nothing() -> None:
    assert owners({"stranger": "172.30.0.77", "n2": "172.30.0.2"}) == {"172.30.0.2": "n2"}


def test_a_node_has_no_more_than_some_addresses() -> None:
    many = " ".join(f"172.31.0.{number}" for number in range(1, 100))
    assert len(owners({"n9": many})) == MOST_ADDRESSES


def test_who_is_refused_is_named_with_why() -> None:
    underlay = Underlay(ME)
    for number, name in enumerate(NODES):
        underlay.set_block(ip_network(f"10.244.{number}.0/26"), block(f"10.244.{number}.0/26", name))
    for name in ("n2", "n9"):
        underlay.announce(name, [ip_address("172.30.0.2")])
    underlay.settle()
    (refusal,) = underlay.refusals.values()
    assert refusal.nodes == ("n2", "n9")
    assert "n2 and n9" in refusal.why
    underlay.announce("n9", ())
    underlay.settle()
    assert underlay.refusals == {}


def test_a_change_costs_the_addresses_that_it_is_about() -> None:
    underlay = Underlay(ME)
    for number in range(1000):
        cidr = ip_network(f"10.{number // 250}.{number % 250}.0/26")
        underlay.set_block(cidr, block(str(cidr), f"n{number + 10}"))
        underlay.announce(f"n{number + 10}", [ip_address(f"172.{16 + number // 250}.{number % 250}.1")])
    assert len(underlay.settle()) == 1000
    underlay.set_block(ip_network("10.9.0.0/26"), block("10.9.0.0/26", "n10"))
    assert underlay.settle() == set()
    underlay.announce("n10", [ip_address("172.31.0.1")])
    assert underlay.settle() == {ip_address("172.16.0.1"), ip_address("172.31.0.1")}
