"""Which endpoints count, in whichever order it became known: kept by differences, against a judge made from nothing."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

import pytest

from proto.addresses import Block, Claim, Endpoint
from proto.net import Address, Network
from proto.objects import Owner
from services.dataplane.core.ipcache.judge import EndpointJudge
from tests.core.dataplane.notation import endpoint

NODES = ("n2", "n3")
NETWORKS = [
    ip_network("10.244.0.0/30"),
    ip_network("10.244.0.4/30"),
    ip_network("10.244.0.0/16"),
    ip_network("fd00::/126"),
]
ADDRESSES = [
    ip_address(text) for text in ("10.244.0.1", "10.244.0.2", "10.244.0.5", "10.244.9.9", "fd00::1", "192.0.2.1")
]


def block(cidr: Network, node: str) -> Block:
    return Block(cidr, "p", node, f"u-{node}", 5, "nonce")


def claim(address: Address, node: str) -> Claim:
    return Claim(address, Owner("shop", "StatefulSet", "db", 0), node, "u", "c", "eth0", 5, "nonce")


@dataclass
class Known:
    """What the bus says, and what by the rules follows from it."""

    published: dict[str, Endpoint] = field(default_factory=dict)
    blocks: dict[Network, str] = field(default_factory=dict)
    claims: dict[Address, str] = field(default_factory=dict)
    residents: dict[str, set[int]] = field(default_factory=dict)

    def counted(self) -> set[str]:
        """Keys whose writer speaks in its own name, of an address that it holds, for a pod that it has."""
        return {
            key
            for key, one in self.published.items()
            if one.node == key.partition(".")[0]
            and self.holds(one.node, one.address)
            and one.identity in self.residents.get(one.node, ())
        }

    def holds(self, node: str, address: Address) -> bool:
        covering = [cidr for cidr in self.blocks if cidr.version == address.version and address in cidr]
        smallest = max(covering, key=lambda cidr: cidr.prefixlen, default=None)
        return self.claims.get(address) == node or (smallest is not None and self.blocks[smallest] == node)


@pytest.mark.parametrize("seed", range(20))
def test_what_counts_does_not_depend_on_the_order(seed: int) -> None:
    chance, known, judge = random.Random(seed), Known(), EndpointJudge()
    judge.ask_residents(True)
    counted: set[str] = set()
    for second in range(400):
        node, address = chance.choice(NODES), chance.choice(ADDRESSES)
        match chance.randrange(6):
            case 0 | 1:
                key, name = f"{node}.{chance.randrange(4)}", chance.choice([*NODES, node, node])
                known.published[key] = endpoint(f"{name} {address}", "p", identity=chance.choice([1001, 1002]))
                judge.publish(key, node, known.published[key])
            case 2:
                key = f"{node}.{chance.randrange(4)}"
                known.published.pop(key, None)
                judge.publish(key, node, None)
            case 3:
                cidr = chance.choice(NETWORKS)
                if chance.random() < 0.6:
                    known.blocks[cidr] = node
                    judge.set_block(cidr, block(cidr, node))
                else:
                    known.blocks.pop(cidr, None)
                    judge.set_block(cidr, None)
            case 4:
                if chance.random() < 0.6:
                    known.claims[address] = node
                    judge.set_claim(address, claim(address, node))
                else:
                    known.claims.pop(address, None)
                    judge.set_claim(address, None)
            case _:
                known.residents[node] = set(chance.sample([1001, 1002, 7], chance.randrange(4))) - {7}
                judge.set_residents(node, known.residents[node])
        if chance.random() < 0.5:
            changed = judge.settle(float(second), chance.choice([None, None, 1]))
            while judge.pending:
                changed |= judge.settle(float(second), 1)
            assert set(judge.counted) == known.counted()
            assert set(judge.rejections) == known.published.keys() - judge.counted.keys()
            assert changed >= counted ^ judge.counted.keys(), "whoever follows what changed misses nothing"
            counted = set(judge.counted)


def judged(*residents: int, asked: bool | None = True) -> EndpointJudge:
    judge = EndpointJudge()
    judge.ask_residents(asked)
    judge.set_block(NETWORKS[2], block(NETWORKS[2], "n2"))
    judge.set_residents("n2", residents)
    return judge


def test_what_counted_goes_on_while_it_is_not_known_who_lives_where() -> None:
    judge = judged(1001)
    judge.publish("n2.0", "n2", endpoint("n2 10.244.0.1", "a", identity=1001))
    assert judge.settle(0) == {"n2.0"}
    judge.ask_residents(None)
    judge.set_residents("n2", ())
    assert judge.settle(1) == set()
    assert "n2.0" in judge.counted
    judge.publish("n2.1", "n2", endpoint("n2 10.244.0.2", "b", identity=1001))
    judge.settle(2)
    assert "n2.1" not in judge.counted, "what is new does not count yet"
    assert judge.rejections["n2.1"].leftover
    judge.ask_residents(True)
    assert judge.settle(3) == {"n2.0"}
    assert judge.counted == {}


def test_a_node_whose_residents_cannot_be_read_keeps_what_counted() -> None:
    judge = judged(1001)
    judge.publish("n2.0", "n2", endpoint("n2 10.244.0.1", "a", identity=1001))
    judge.settle(0)
    judge.ask_residents(True, ["n2"])
    judge.set_residents("n2", ())
    assert judge.settle(1) == set()
    judge.ask_residents(True, [])
    assert judge.settle(2) == {"n2.0"}


def test_a_policy_of_before_there_were_residents_asks_for_none() -> None:
    judge = judged(asked=False)
    judge.publish("n2.0", "n2", endpoint("n2 10.244.0.1", "a", identity=1001))
    judge.publish("n2.1", "n2", endpoint("n2 10.244.0.2", "b", identity=1))
    judge.settle(0)
    assert set(judge.counted) == {"n2.0"}, "and nobody is the host by its own word"


def test_a_stranger_is_young_from_its_first_moment_on() -> None:
    judge = judged(1001)
    judge.publish("n2.0", "n2", endpoint("n2 10.244.0.1", "a", identity=1002))
    judge.settle(10)
    judge.set_claim(ip_address("10.244.0.1"), None)
    judge.settle(12)
    assert judge.young(5) == {ip_address("10.244.0.1"): 15}
    judge.publish("n2.0", "n2", endpoint("n2 10.244.0.1", "a", identity=1003))
    judge.settle(13)
    assert judge.young(5) == {ip_address("10.244.0.1"): 18}, "another identity: from now on"
    judge.set_residents("n2", [1003])
    judge.settle(14)
    assert judge.young(5) == {}


@pytest.mark.parametrize(
    ("change", "looked_at"),
    [
        (lambda judge: judge.set_block(ip_network("10.0.5.0/24"), block(ip_network("10.0.5.0/24"), "n3")), 1),
        (lambda judge: judge.set_block(ip_network("10.1.0.0/16"), block(ip_network("10.1.0.0/16"), "n3")), 256),
        (lambda judge: judge.set_claim(ip_address("10.0.7.1"), claim(ip_address("10.0.7.1"), "n3")), 1),
        (lambda judge: judge.set_residents("n3", [1001]), 1),
        (lambda judge: judge.set_residents("n2", [1000, 1002]), 5000),
        (lambda judge: judge.publish("n2.9", "n2", None), 1),
        (lambda judge: judge.ask_residents(True), 0),
    ],
)
def test_a_change_costs_what_it_concerns(change: object, looked_at: int) -> None:
    judge = judged(1000)
    judge.publish("n3.0", "n3", endpoint("n3 10.200.0.1", "other"))
    for n in range(5000):
        judge.publish(f"n2.{n}", "n2", endpoint(f"n2 10.{n >> 8}.{n & 255}.1", f"p{n}"))
    judge.settle(0)
    assert not judge.pending
    assert callable(change)
    change(judge)
    assert judge.pending == looked_at
