"""The ipcache through lists of states: endpoints, blocks, claims, residents and nodes in any order, and who is where.

The oracle asks of each address, from all that is known now: is it a node's or the API server's; else, of the endpoints
whose writers may speak of it, as a pod that lives on that node, which is the latest.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from random import Random

from proto.addresses import Block, Claim, Endpoint
from proto.identity import Reserved
from proto.net import Address
from proto.objects import EndpointSlice, Node, Owner, SliceEndpoint
from services.dataplane.core.datapath.layout import Peer, PeerFlag
from services.dataplane.core.ipcache.entries import Entries, fixed_entries
from services.dataplane.core.ipcache.judge import EndpointJudge
from tests.core.states import Driver, every_order, follow

Key = tuple[str, str]
Value = Endpoint | Block | Claim | Node | EndpointSlice | frozenset[int]
Objects = dict[Key, Value]

LOCAL_NODE, OTHERS = "n1", ("n2", "n3")
BLOCKS = ("10.244.0.0/30", "10.244.0.4/30", "10.244.0.0/29", "fd00:10:244::/126")
ADDRESSES = ("10.244.0.1", "10.244.0.2", "10.244.0.5", "fd00:10:244::1", "172.30.0.2")
FIRST, SECOND, FORGED = 1 << 20, (1 << 20) + 1, int(Reserved.HOST)


class Ipcache(Driver[Key, Value]):
    """The ownership check, and the entries of what counts: as the dataplane's loop joins them."""

    def __init__(self) -> None:
        self.judge, self.entries = EndpointJudge(), Entries()
        self.judge.ask_residents(asked=True)
        self.objects: Objects = {}

    def put(self, key: Key, value: Value | None) -> None:
        self.objects.pop(key, None)
        if value is not None:
            self.objects[key] = value
        kind, name = key
        if kind == "endpoint":
            assert value is None or isinstance(value, Endpoint)
            self.judge.publish(name, name.partition(".")[0], value)
        elif kind == "block":
            assert value is None or isinstance(value, Block)
            self.judge.set_block(ip_network(name), value)
        elif kind == "claim":
            assert value is None or isinstance(value, Claim)
            self.judge.set_claim(ip_address(name), value)
        elif kind == "residents":
            self.judge.set_residents(name, value if isinstance(value, frozenset) else ())

    def flush(self) -> None:
        for key in self.judge.settle(0.0, limit=2):
            self.entries.publish(key, self.judge.counted.get(key))
        self.entries.settle()

    def settle(self) -> object:
        while self.judge.pending:
            self.flush()
        present = self.objects.items()
        nodes = [value for _, value in present if isinstance(value, Node)]
        slices = [value for _, value in present if isinstance(value, EndpointSlice)]
        self.entries.set_local(value for (kind, _), value in present if kind == "local" and isinstance(value, Endpoint))
        self.entries.set_fixed(fixed_entries(LOCAL_NODE, nodes, slices, ()))
        self.entries.settle()
        return {key.address: peer for key, peer in self.entries.wanted.items()}


def may_speak(objects: Objects, node: str, endpoint: Endpoint) -> bool:
    """A node speaks in its own name, of an address that it has the claim on or the smallest block of."""
    claim = objects.get(("claim", str(endpoint.address)))
    holding = [one for one in objects.values() if isinstance(one, Block) and endpoint.address in one.cidr]
    smallest = max(holding, key=lambda block: block.cidr.prefixlen, default=None)
    claimed = isinstance(claim, Claim) and claim.node == node
    holds = claimed or (smallest is not None and smallest.node == node)
    residents = objects.get(("residents", node), frozenset())
    assert isinstance(residents, frozenset)
    return endpoint.node == node and holds and endpoint.identity in residents and endpoint.identity >= FIRST


def who_is_where(objects: Objects) -> object:
    found: dict[Address, Peer] = {}
    latest: dict[Address, tuple[object, ...]] = {}
    for (kind, name), value in objects.items():
        if not isinstance(value, Endpoint):
            continue
        if kind == "local" or may_speak(objects, name.partition(".")[0], value):
            order = (value.epoch, value.sequence, value.node, value.identity)
            if value.address not in latest or order > latest[value.address]:
                latest[value.address] = order
                found[value.address] = Peer(identity=value.identity, flags=int(PeerFlag.POD))
    for value in objects.values():
        if isinstance(value, EndpointSlice) and (value.namespace, value.service) == ("default", "kubernetes"):
            for one in value.endpoints:
                found |= dict.fromkeys(one.addresses, Peer(identity=int(Reserved.KUBE_APISERVER)))
    for value in objects.values():
        if isinstance(value, Node):
            identity = Reserved.HOST if value.name == LOCAL_NODE else Reserved.REMOTE_NODE
            found |= dict.fromkeys(value.addresses, Peer(identity=int(identity), flags=int(PeerFlag.NODE)))
    return found


def some_endpoint(chance: Random, node: str) -> Endpoint:
    return Endpoint(
        node=node if chance.random() < 0.9 else "n3",
        address=ip_address(chance.choice(ADDRESSES)),
        namespace="shop",
        pod="web",
        pod_uid="u",
        identity=chance.choice((FIRST, FIRST, SECOND, FORGED)),
        mac=b"\2\0\0\0\0\1",
        epoch=chance.choice((1, 2)),
        sequence=chance.choice((1, 2, 3)),
    )


def state(chance: Random) -> Objects:
    objects: Objects = {}
    for node in OTHERS:
        for slot in range(3):
            if chance.random() < 0.8:
                objects["endpoint", f"{node}.slot.{slot}"] = some_endpoint(chance, node)
        objects["residents", node] = frozenset(one for one in (FIRST, SECOND, FORGED) if chance.random() < 0.7)
        if chance.random() < 0.8:
            number = node[1:]
            both = (ip_address(f"172.30.0.{number}"), ip_address(f"fd00:172::{number}"))
            objects["node", node] = Node(node, f"uid-{node}", addresses=both)
    for text in BLOCKS:
        if chance.random() < 0.6:
            objects["block", text] = Block(ip_network(text), "p", chance.choice(("n2", "n3", "", "_ipam")), "u", 1, "n")
    for text in ADDRESSES:
        if chance.random() < 0.3:
            owner = Owner("shop", "StatefulSet", "db", 0)
            objects["claim", text] = Claim(
                ip_address(text), owner, chance.choice(("n2", "n3", "")), "u", "c", "eth0", 1, "n"
            )
    if chance.random() < 0.5:
        objects["local", "web"] = Endpoint(
            LOCAL_NODE, ip_address("10.244.0.2"), "shop", "web", "u", SECOND, b"\2\0\0\0\0\2", chance.choice((1, 2)), 2
        )
    if chance.random() < 0.5:
        service = chance.choice(("kubernetes", "other"))
        server = SliceEndpoint(addresses=(ip_address(chance.choice(ADDRESSES)),))
        objects["slice", "a"] = EndpointSlice("default", "a", service, (server,))
    return objects


@every_order(seeds=12)
def test_whatever_came_before_each_address_is_whose_the_present_state_says(expander: str, seed: int) -> None:
    chance = Random(seed)
    follow(Ipcache, who_is_where, [state(chance) for _ in range(4)], expander, seed)
