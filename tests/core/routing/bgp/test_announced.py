"""What a node announces: tables of what lives in the cluster, an oracle of Services, and every order of arrival."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.addresses import IPAM_HOLDER, Block, Claim
from proto.objects import (
    BGPConfiguration,
    EndpointSlice,
    IPPool,
    NamedCommunity,
    Node,
    Owner,
    PrefixAdvertisement,
    Service,
    SliceEndpoint,
)
from services.routing.core.bgp.announced import EXCLUDED, Held, announced
from services.routing.core.bgp.configuration import Configuration, configuration
from services.routing.core.bgp.values import Attributes, Origin
from tests.core.states import Driver, every_order, follow

ME = Node(name="n1", uid="u1")
HIDDEN = IPPool("hidden", ip_network("10.245.0.0/16"), 26, disable_bgp_export=True)
POOL = IPPool("pods", ip_network("10.244.0.0/16"), 26)
CLUSTER, EXTERNAL, BALANCED = "10.96.0.0/12", "192.0.2.0/24", "198.51.100.0/24"


def block(cidr: str, node: str) -> Block:
    return Block(cidr=ip_network(cidr), pool="pods", node=node, node_uid="u", epoch=1, nonce="x")


def claim(address: str, node: str) -> Claim:
    owner = Owner("prod", "StatefulSet", "db", 0)
    return Claim(ip_address(address), owner, node, pod_uid="p", container="c", interface="eth0", epoch=1, nonce="x")


def configured(**fields: Any) -> Configuration:
    ranges = ("cluster_ips", "external_ips", "load_balancer_ips")
    parsed: dict[str, Any] = {
        name: tuple(map(ip_network, value)) if name in ranges else value for name, value in fields.items()
    }
    return configuration([BGPConfiguration(name="default", **parsed)], "n1")


def prefixes(held: Held, settings: Configuration | None = None, node: Node = ME) -> str:
    return " ".join(map(str, announced(node, held, settings or configured())))


# blocks (cidr:holder) | kept addresses (address:holder) | what n1 announces
PODS = f"""
10.244.0.0/26:n1 10.244.0.64/26:n1 10.244.1.0/26:n2 |                              | 10.244.0.0/26 10.244.0.64/26
fd00:10:244::/122:n1 10.244.9.0/26:n1               |                              | 10.244.9.0/26 fd00:10:244::/122
10.244.2.0/26:{IPAM_HOLDER}                         | 10.244.2.7:n1 10.244.2.8:n2  | 10.244.2.7/32
10.244.0.0/26:n1                                    | 10.244.0.7:n1                | 10.244.0.0/26
10.244.0.0/26:n2                                    | 10.244.0.7:n1                | 10.244.0.7/32
                                                    | 10.244.0.7:n1 fd00::7:n1     | 10.244.0.7/32 fd00::7/128
10.244.0.0/26:n1 10.244.0.0/28:n2                   | 10.244.0.7:n1                | 10.244.0.0/26 10.244.0.7/32
10.245.0.0/26:n1 10.245.1.0/26:n2 10.246.0.0/26:n1  | 10.245.1.7:n1                | 10.246.0.0/26
10.244.0.0/26:                                      | 10.244.0.7:                  |
"""


@given(st.sets(st.integers(0, 7), min_size=1), st.data())
def test_a_block_that_goes_changes_nothing_of_those_beside_it(numbers: set[int], data: st.DataObject) -> None:
    """Neighbouring blocks, all of the node, with kept addresses of the node in them."""
    all_of = {number: block(f"10.244.0.{number * 32}/27", "n1") for number in numbers}
    claims = tuple(claim(f"10.244.0.{number * 32 + 3}", "n1") for number in numbers)
    gone = data.draw(st.sampled_from(sorted(numbers)))
    before = announced(ME, Held(blocks=tuple(all_of.values()), claims=claims), configured())
    left = tuple(one for number, one in all_of.items() if number != gone)
    after = announced(ME, Held(blocks=left, claims=claims), configured())
    assert set(before) == {one.cidr for one in all_of.values()}
    assert set(before) - set(after) == {all_of[gone].cidr}
    assert {str(one) for one in set(after) - set(before)} == {f"10.244.0.{gone * 32 + 3}/32"}


@pytest.mark.parametrize("row", PODS.strip("\n").splitlines())
def test_blocks_and_kept_addresses(row: str) -> None:
    blocks, claims, expected = (cell.split() for cell in row.split("|"))
    held = Held(
        blocks=tuple(block(*text.rsplit(":", 1)) for text in blocks),
        claims=tuple(claim(*text.rsplit(":", 1)) for text in claims),
        pools=(POOL, HIDDEN),
    )
    assert prefixes(held) == " ".join(expected)


def service(**fields: Any) -> Service:
    parsed: dict[str, Any] = {
        name: tuple(map(ip_address, value)) if name.endswith("ips") else value for name, value in fields.items()
    }
    return Service(namespace="prod", name="web", uid="u", **parsed)


def endpoints(*texts: str, **fields: Any) -> EndpointSlice:
    """``node address [not-ready|terminating|serving]``."""
    found = []
    for text in texts:
        node, address, *states = text.split()
        found.append(
            SliceEndpoint(
                addresses=(ip_address(address),),
                ready=not states,
                serving="not-ready" not in states,
                terminating="terminating" in states,
                node=node,
            )
        )
    return EndpointSlice(
        **{"namespace": "prod", "name": "web-1", "service": "web", "endpoints": tuple(found), **fields}
    )


RANGES: dict[str, Any] = {"cluster_ips": (CLUSTER,), "external_ips": (EXTERNAL,), "load_balancer_ips": (BALANCED,)}
WHOLE = f"{CLUSTER} {EXTERNAL} {BALANCED}"
OURS = {"cluster_ips": ("10.96.0.7",), "external_ips": ("192.0.2.7",), "load_balancer_ips": ("198.51.100.7",)}
HOSTS = f"{CLUSTER} 10.96.0.7/32 {EXTERNAL} 192.0.2.7/32 {BALANCED} 198.51.100.7/32"


@pytest.mark.parametrize(
    ("one", "slices", "expected"),
    [
        (service(**OURS), (), WHOLE),
        (service(**OURS, external_policy="Local"), (), WHOLE),
        (service(**OURS, external_policy="Local"), (endpoints("n1 10.244.0.1"),), HOSTS),
        (service(**OURS, external_policy="Local"), (endpoints("n2 10.244.0.1"),), WHOLE),
        (service(**OURS, external_policy="Local"), (endpoints("n1 10.244.0.1 not-ready"),), WHOLE),
        (service(**OURS, external_policy="Local"), (endpoints("n1 10.244.0.1 terminating"),), WHOLE),
        (
            service(**OURS, external_policy="Local"),
            (endpoints("n1 10.244.0.1 terminating"), endpoints("n1 10.244.0.2", name="web-2")),
            HOSTS,
        ),
        (service(**OURS, external_policy="Local"), (endpoints("n1 fd00::1"),), WHOLE),
        (service(**OURS, external_policy="Local"), (endpoints("n1 10.244.0.1", service="other"),), WHOLE),
        (service(**OURS, external_policy="Local"), (endpoints("n1 10.244.0.1", namespace="test"),), WHOLE),
        (service(**OURS, external_policy="Local"), (endpoints("n1 10.244.0.1", fronted=False),), WHOLE),
        (service(**OURS, external_policy="Local", fronted=False), (endpoints("n1 10.244.0.1"),), WHOLE),
        (
            service(**OURS, external_policy="Local", publish_not_ready=True),
            (endpoints("n1 10.244.0.1 not-ready"),),
            HOSTS,
        ),
        (
            service(**OURS, external_policy="Local", publish_not_ready=True),
            (endpoints("n1 10.244.0.1 terminating"),),
            WHOLE,
        ),
        (
            service(external_ips=("203.0.113.7", "10.96.0.9"), external_policy="Local"),
            (endpoints("n1 10.244.0.1"),),
            WHOLE,
        ),
    ],
)
def test_addresses_of_a_service(one: Service, slices: tuple[EndpointSlice, ...], expected: str) -> None:
    assert prefixes(Held(services=(one,), slices=slices), configured(**RANGES)) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ""),
        ({"external_ips": ("192.0.2.7/32", "192.0.2.8/32")}, "192.0.2.7/32"),
        ({"load_balancer_ips": (BALANCED,), "load_balancer_aggregation": False}, "198.51.100.7/32"),
        ({"load_balancer_ips": (BALANCED,), "load_balancer_aggregation": True}, BALANCED),
        ({"cluster_ips": (CLUSTER, "fd00:96::/112")}, f"{CLUSTER} fd00:96::/112"),
    ],
)
def test_ranges_of_services_with_policy_cluster(fields: dict[str, Any], expected: str) -> None:
    assert prefixes(Held(services=(service(**OURS),)), configured(**fields)) == expected


def test_an_excluded_node_announces_its_pods_alone() -> None:
    held = Held(
        blocks=(block("10.244.0.0/26", "n1"),),
        services=(service(**OURS, external_policy="Local"),),
        slices=(endpoints("n1 10.244.0.1"),),
    )
    excluded = Node(name="n1", uid="u1", labels=((EXCLUDED, ""),))
    assert prefixes(held, configured(**RANGES), excluded) == "10.244.0.0/26"


def test_communities_of_the_ranges_that_hold_a_prefix() -> None:
    settings = configured(
        communities=(NamedCommunity("red", (65000, 9)), NamedCommunity("large", (7, 8, 9))),
        advertisements=(
            PrefixAdvertisement(ip_network("10.244.0.0/16"), ((65000, 1),), ("red", "unknown")),
            PrefixAdvertisement(ip_network("10.244.0.0/26"), ((65000, 1), (1, 2, 3)), ("large",)),
            PrefixAdvertisement(ip_network("10.244.0.64/27"), ((65000, 5),)),
        ),
    )
    held = Held(blocks=(block("10.244.0.0/26", "n1"), block("10.244.0.64/26", "n1"), block("10.1.0.0/26", "n1")))
    red, one = 65000 << 16 | 9, 65000 << 16 | 1
    both = Attributes(origin=Origin.IGP, communities=(one, red), large_communities=((1, 2, 3), (7, 8, 9)))
    assert announced(ME, held, settings) == {
        ip_network("10.1.0.0/26"): Attributes(origin=Origin.IGP),
        ip_network("10.244.0.0/26"): both,
        ip_network("10.244.0.64/26"): Attributes(origin=Origin.IGP, communities=(one, red)),
    }


def test_communities_of_a_nodes_own_configuration_replace_those_of_all() -> None:
    shared = BGPConfiguration(
        name="default",
        communities=(NamedCommunity("red", (1, 1)), NamedCommunity("blue", (1, 2))),
        advertisements=(PrefixAdvertisement(ip_network("10.0.0.0/8"), ((9, 9),)),),
    )
    own = BGPConfiguration(
        name="node.n1",
        communities=(NamedCommunity("red", (2, 1)),),
        advertisements=(PrefixAdvertisement(ip_network("10.0.0.0/8"), (), ("red", "blue")),),
    )
    for node, communities in (("n1", (1 << 16 | 2, 2 << 16 | 1)), ("n2", (9 << 16 | 9,))):
        settings = configuration([own, shared], node)
        assert settings.faults == ()
        found = announced(Node(name=node, uid="u"), Held(blocks=(block("10.0.0.0/26", node),)), settings)
        assert found[ip_network("10.0.0.0/26")].communities == communities


READINESS = st.sampled_from(("", "not-ready", "terminating"))
ENDPOINTS = st.lists(st.tuples(st.sampled_from(("n1", "n2")), st.sampled_from(("10.244.0.1", "fd00::1")), READINESS))


@given(ENDPOINTS)
def test_a_local_address_is_announced_where_traffic_to_it_is_taken(listed: list[tuple[str, str, str]]) -> None:
    """Over all nodes: those that announce are those with a ready endpoint of the family, whatever else there is."""
    one = service(load_balancer_ips=("198.51.100.7", "fd00:51::7"), external_policy="Local")
    settings = configured(load_balancer_ips=("198.51.100.0/24", "fd00:51::/64"), load_balancer_aggregation=False)
    slices = tuple(endpoints(" ".join(part).strip(), name=f"web-{index}") for index, part in enumerate(listed))
    for node in ("n1", "n2"):
        found = announced(Node(name=node, uid="u"), Held(services=(one,), slices=slices), settings)
        ready = {ip_address(address).version for where, address, state in listed if where == node and not state}
        assert {prefix.version for prefix in found} == ready


class Announcer(Driver[Any, Any]):
    def __init__(self) -> None:
        self.known: dict[Any, Any] = {}

    def put(self, key: Any, value: Any) -> None:
        self.known.pop(key, None)
        if value is not None:
            self.known[key] = value

    def settle(self) -> object:
        found = said(self.known)
        assert list(found) == sorted(found, key=lambda one: (one.version, int(one.network_address), one.prefixlen))
        return found


def said(known: Mapping[Any, Any]) -> dict[Any, Attributes]:
    held = Held(
        blocks=tuple(one for one in known.values() if isinstance(one, Block)),
        claims=tuple(one for one in known.values() if isinstance(one, Claim)),
        pools=tuple(one for one in known.values() if isinstance(one, IPPool)),
        services=tuple(one for one in known.values() if isinstance(one, Service)),
        slices=tuple(one for one in known.values() if isinstance(one, EndpointSlice)),
    )
    return announced(ME, held, configured(**RANGES))


LOCAL = service(**OURS, external_policy="Local")
STATES: list[dict[Any, Any]] = [
    {("block", 1): block("10.244.0.0/26", "n1"), ("service", 1): LOCAL},
    {("block", 1): block("10.244.0.0/26", "n2"), ("claim", 1): claim("10.244.0.7", "n1"), ("slice", 1): endpoints()},
    {("service", 1): LOCAL, ("slice", 1): endpoints("n1 10.244.0.1"), ("claim", 1): claim("10.244.0.7", "n1")},
    {("service", 1): LOCAL, ("slice", 1): endpoints("n1 10.244.0.1 terminating"), ("pool", 1): HIDDEN},
    {("block", 2): block("10.245.0.0/26", "n1"), ("pool", 1): HIDDEN, ("claim", 1): claim("10.245.1.7", "n1")},
]


@every_order(seeds=6)
def test_the_present_state_decides_and_not_its_order(expander: str, seed: int) -> None:
    follow(Announcer, lambda present: said(dict(sorted(present.items()))), STATES, expander, seed)
