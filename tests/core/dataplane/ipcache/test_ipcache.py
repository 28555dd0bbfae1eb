"""Whose an address is, in whichever order the entries arrived."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from itertools import permutations

import pytest

from proto.addresses import Endpoint
from proto.identity import Reserved
from proto.objects import EndpointSlice, Node, SliceEndpoint
from services.dataplane.core.datapath.layout import (
    PeerFlag,
    PrefixKey,
)
from services.dataplane.core.ipcache.entries import PATIENCE, Surroundings, entries_of, is_filled, true_endpoints
from services.dataplane.core.monitor.names import names_of
from tests.core.dataplane.notation import endpoint

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
    entries = entries_of(
        Surroundings(
            node="n1",
            endpoints=foreign,
            local=local,
            nodes=NODES,
            slices=(API,),
            own_addresses=[ip_address(one) for one in own],
        )
    )
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
        assert true_endpoints(order)[ip_address("10.244.0.1")].identity == expected


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


def test_flags_tell_pods_from_nodes() -> None:
    entries = entries_of(Surroundings(node="n1", endpoints=[endpoint("n2 10.244.1.1", "a")], local=[], nodes=NODES))
    assert entries[PrefixKey.host(ip_address("10.244.1.1"))].flags == PeerFlag.POD
    assert entries[PrefixKey.host(ip_address("172.30.0.12"))].flags == PeerFlag.NODE


def test_names_follow_the_true_endpoint() -> None:
    endpoints = [endpoint("n2 10.244.0.1", "old", at=(1, 5)), endpoint("n3 10.244.0.1", "new", at=(2, 1))]
    names = names_of(endpoints, NODES, [])
    assert names.of(ip_address("10.244.0.1"), 1000) == "shop/new"
    assert names.of(ip_address("172.30.0.12"), Reserved.REMOTE_NODE) == "node/n2"
    assert names.of(ip_address("8.8.8.8"), Reserved.WORLD) == ""
    assert names.of(ip_address("172.30.0.2"), Reserved.KUBE_APISERVER) == "kube-apiserver"
    assert names.of(ip_address("10.244.9.9"), 99_999) == ""
    assert names.of(ip_address("10.244.9.9"), 77) == ""


def test_an_upgrade_waits_for_nodes_that_are_silent_and_not_for_ever() -> None:
    assert is_filled(0, ())
    assert not is_filled(PATIENCE - 1, {"n2"})
    assert is_filled(PATIENCE, {"n2"})
