"""Whose an address is, in whichever order the entries arrived."""

from __future__ import annotations

import random
from collections.abc import Sequence
from ipaddress import ip_address
from itertools import permutations

import pytest

from proto.addresses import Endpoint
from proto.identity import Reserved
from proto.net import Address
from proto.objects import EndpointSlice, Node, SliceEndpoint
from services.dataplane.core.datapath.layout import (
    PeerFlag,
    PrefixKey,
)
from services.dataplane.core.ipcache.entries import PATIENCE, Entries, fixed_entries, is_filled, true_endpoint
from tests.core.dataplane.notation import endpoint, entries_of, names_of, record

Row = tuple[str, str, int, tuple[int, int]]
NODES = (
    Node(name="n1", uid="u1", addresses=(ip_address("172.30.0.11"), ip_address("fd00::11"))),
    Node(name="n2", uid="u2", addresses=(ip_address("172.30.0.12"),)),
)
API = EndpointSlice(
    namespace="default",
    name="kubernetes",
    service="kubernetes",
    endpoints=(SliceEndpoint(addresses=(ip_address("172.30.0.2"),)),),
)


def identities(
    local: Sequence[Endpoint] = (), foreign: Sequence[Endpoint] = (), own: tuple[str, ...] = ()
) -> dict[str, int]:
    entries = entries_of("n1", foreign, local, NODES, (API,), [ip_address(one) for one in own]).wanted
    return {str(key.address): peer.identity for key, peer in entries.items()}


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([("n1 10.244.0.1", "a", 1001, (1, 5)), ("n2 10.244.0.1", "b", 1002, (2, 1))], 1002),
        ([("n2 10.244.0.1", "b", 1002, (1, 9)), ("n3 10.244.0.1", "a", 1001, (1, 5))], 1002),
        ([("n2 10.244.0.1", "b", 1002, (3, 1)), ("n3 10.244.0.1", "a", 1001, (2, 900))], 1002),
        ([("n2 10.244.0.1", "a", 1001, (1, 1)), ("n3 10.244.0.1", "b", 1002, (1, 1))], 1002),
        (
            [
                ("n1 10.244.0.1", "a", 1001, (1, 1)),
                ("n2 10.244.0.1", "b", 1003, (4, 2)),
                ("n3 10.244.0.1", "c", 1004, (4, 3)),
            ],
            1004,
        ),
    ],
)
def test_the_greatest_epoch_and_sequence_is_true_in_every_order(entries: list[Row], expected: int) -> None:
    made = [endpoint(where, pod, identity=identity, at=at) for where, pod, identity, at in entries]
    for order in permutations(made):
        found = true_endpoint(order)
        assert found is not None
        assert found.identity == expected


def test_a_late_delete_of_the_former_pod_does_not_erase_the_present_one() -> None:
    former = endpoint("n2 10.244.0.1", "old", identity=1001, at=(1, 5))
    present = endpoint("n3 10.244.0.1", "new", identity=1002, at=(2, 1))
    assert identities(foreign=[former, present])["10.244.0.1"] == 1002
    assert identities(foreign=[present])["10.244.0.1"] == 1002


def test_nodes_the_api_server_and_this_node_s_other_addresses() -> None:
    found = identities(own=("172.31.0.11", "172.30.0.11"))
    assert found == {
        "172.30.0.11": Reserved.HOST,
        "fd00::11": Reserved.HOST,
        "172.31.0.11": Reserved.HOST,
        "172.30.0.12": Reserved.REMOTE_NODE,
        "172.30.0.2": Reserved.KUBE_APISERVER,
    }


def test_nobody_can_be_a_pod_at_a_node_s_address() -> None:
    assert identities(foreign=[endpoint("n2 172.30.0.11", "liar", identity=4242)])["172.30.0.11"] == Reserved.HOST


@pytest.mark.parametrize("identity", [0, 1, 2, 3, 255, -1, 1 << 64])
def test_no_node_can_call_its_pod_the_host_or_break_the_map(identity: int) -> None:
    assert "10.244.0.1" not in identities(foreign=[endpoint("n2 10.244.0.1", "liar", identity=identity)])


def test_flags_distinguish_pods_and_nodes() -> None:
    entries = entries_of("n1", [endpoint("n2 10.244.1.1", "a")], nodes=NODES).wanted
    assert entries[PrefixKey.host(ip_address("10.244.1.1"))].flags == PeerFlag.POD
    assert entries[PrefixKey.host(ip_address("172.30.0.12"))].flags == PeerFlag.NODE


def test_names_follow_the_true_endpoint() -> None:
    endpoints = [endpoint("n2 10.244.0.1", "old", at=(1, 5)), endpoint("n3 10.244.0.1", "new", at=(2, 1))]
    names = names_of(endpoints, NODES, [record(99_999, "shop")])
    assert names.of(ip_address("10.244.0.1"), 1000) == "shop/new"
    assert names.of(ip_address("172.30.0.12"), Reserved.REMOTE_NODE) == "node/n2"
    assert names.of(ip_address("8.8.8.8"), Reserved.WORLD) == ""
    assert names.of(ip_address("172.30.0.2"), Reserved.KUBE_APISERVER) == "kube-apiserver"
    assert names.of(ip_address("10.244.9.9"), 99_999) == "shop/?"
    assert names.of(ip_address("10.244.9.9"), 99_998) == ""
    assert names.of(ip_address("10.244.9.9"), 77) == ""


def test_an_upgrade_waits_for_nodes_that_are_silent_and_not_for_ever() -> None:
    assert is_filled(0, ())
    assert not is_filled(PATIENCE - 1, {"n2"})
    assert is_filled(PATIENCE, {"n2"})


ADDRESSES = [ip_address(f"10.244.0.{n}") for n in range(1, 5)] + [ip_address("fd00:10:244::1"), NODES[1].addresses[0]]


def from_scratch(
    published: dict[str, Endpoint], local: list[Endpoint], own: list[Address]
) -> dict[str, tuple[int, int]]:
    """What the map is to hold, by the rules alone: interfaces and nodes win over the API server, that over pods; of
    pods the one with the greatest (epoch, sequence, node)."""
    found: dict[str, tuple[int, int]] = {}
    able = [one for one in (*published.values(), *local) if 256 <= one.identity < 1 << 64]
    for one in sorted(able, key=lambda one: (one.epoch, one.sequence, one.node, one.identity)):
        found[str(one.address)] = (one.identity, int(PeerFlag.POD))
    found["172.30.0.2"] = (int(Reserved.KUBE_APISERVER), 0)
    for node in NODES:
        whose = Reserved.HOST if node.name == "n1" else Reserved.REMOTE_NODE
        found |= {str(address): (int(whose), int(PeerFlag.NODE)) for address in node.addresses}
    return found | {str(address): (int(Reserved.HOST), int(PeerFlag.NODE)) for address in own}


@pytest.mark.parametrize("seed", range(20))
def test_what_came_in_any_order_is_as_if_made_from_nothing(seed: int) -> None:
    """Endpoints come, change and go by any key, at addresses of others, of nodes and of the API server."""
    chance = random.Random(seed)
    entries, published, local, own = Entries(), dict[str, Endpoint](), list[Endpoint](), list[Address]()
    written: dict[PrefixKey, tuple[int, int]] = {}

    def some(node: str) -> Endpoint:
        where, at = chance.choice(ADDRESSES), (chance.randrange(1, 4), chance.randrange(1, 4))
        identity = chance.choice([1001, 1002, 1003, 7, 1 << 64])
        return endpoint(f"{node} {where}", f"p{chance.randrange(9)}", identity=identity, at=at)

    for _ in range(300):
        match chance.randrange(6):
            case 0 | 1 | 2:
                node = chance.choice(["n2", "n3"])
                key = f"{node}.{chance.randrange(6)}"
                published[key] = some(node)
                entries.publish(key, published[key])
            case 3:
                key = chance.choice(["n2.0", "n2.1", "n3.0", "n3.5"])
                published.pop(key, None)
                entries.publish(key, None)
            case 4:
                local = [some("n1") for _ in range(chance.randrange(3))]
                entries.set_local(local)
            case _:
                own = chance.sample([ip_address("172.31.0.11"), ip_address("10.244.0.1")], chance.randrange(3))
                entries.set_fixed(fixed_entries("n1", NODES, (API,), own))
        if chance.random() < 0.4:
            entries.set_fixed(fixed_entries("n1", NODES, (API,), own))
            changed = entries.settle()
            before = dict(written)
            for which in changed:
                written.pop(which, None)
                if which in entries.wanted:
                    written[which] = (entries.wanted[which].identity, entries.wanted[which].flags)
                assert before.get(which) != written.get(which), "nothing is said to change that did not"
            expected = from_scratch(published, local, own)
            assert {str(which.address): found for which, found in written.items()} == expected
            assert {entries.sources[which] for which in written if written[which][1] == PeerFlag.POD} <= {
                "n1",
                "n2",
                "n3",
            }


def test_one_change_of_five_thousand_looks_at_one_address() -> None:
    entries = Entries()
    for n in range(5000):
        entries.publish(f"n2.{n}", endpoint(f"n2 10.{n >> 8}.{n & 255}.1", f"p{n}"))
    assert len(entries.settle()) == 5000
    asked: list[Address] = []
    entries.endpoint_at = asked.append  # type: ignore[method-assign,assignment]
    entries.publish("n2.77", None)
    assert entries.settle() == {PrefixKey.host(ip_address("10.0.77.1"))}
    assert asked == [ip_address("10.0.77.1")]


def test_an_entry_keeps_whose_it_was_until_it_is_forgotten() -> None:
    """A node that is silent keeps its entries: it has to be known whose they were."""
    entries, key = Entries(), PrefixKey.host(ip_address("10.244.0.1"))
    entries.publish("n2.0", endpoint("n2 10.244.0.1", "a"))
    entries.settle()
    entries.publish("n3.0", endpoint("n3 10.244.0.1", "a", at=(2, 1)))
    assert entries.settle() == set(), "the same pod's identity, on another node"
    assert entries.sources[key] == "n3"
    entries.publish("n3.0", None)
    entries.publish("n2.0", None)
    assert entries.settle() == {key}
    assert entries.sources[key] == "n3"
    entries.forget(key)
    assert key not in entries.sources
