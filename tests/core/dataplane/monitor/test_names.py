"""What a flow event calls an end: the most that is known of it, and nothing that is not."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from proto.addresses import Endpoint
from proto.identity import FIRST_COMPUTED, Reserved
from proto.net import Address
from proto.objects import Node
from services.dataplane.core.monitor.names import Names, nodes_at

POD, NODE, NOBODY = ip_address("10.244.0.7"), ip_address("fd00:172:30::11"), ip_address("192.0.2.1")
WEB = Endpoint("n1", POD, "shop", "web-0", "uid", FIRST_COMPUTED + 1, b"\0" * 6, 1, 1)
NAMES = Names(
    endpoint_at={POD: WEB}.get,
    namespace_of={FIRST_COMPUTED + 1: "shop", FIRST_COMPUTED + 2: "prod"}.get,
    nodes={NODE: "n1", POD: "never, a pod is the more certain"},
)


@pytest.mark.parametrize(
    ("address", "identity", "name"),
    [
        (POD, FIRST_COMPUTED + 1, "shop/web-0"),
        (POD, 0, "shop/web-0"),
        (POD, FIRST_COMPUTED + 2, "shop/web-0"),
        (NODE, Reserved.HOST, "node/n1"),
        (NODE, FIRST_COMPUTED + 2, "node/n1"),
        (NOBODY, FIRST_COMPUTED + 2, "prod/?"),
        (NOBODY, FIRST_COMPUTED + 3, ""),
        (NOBODY, FIRST_COMPUTED, ""),
        (NOBODY, 2**64 - 1, ""),
        (NOBODY, Reserved.UNKNOWN, ""),
        (NOBODY, Reserved.WORLD, ""),
        (NOBODY, FIRST_COMPUTED - 1, ""),
    ],
)
def test_an_end_is_called_by_what_is_known_of_it(address: Address, identity: int, name: str) -> None:
    assert NAMES.of(address, identity) == name


@pytest.mark.parametrize("identity", [one for one in Reserved if one not in (Reserved.UNKNOWN, Reserved.WORLD)])
def test_a_reserved_identity_has_its_name(identity: Reserved) -> None:
    assert NAMES.of(NOBODY, identity) == identity.name.lower().replace("_", "-")


def test_who_knows_nothing_names_nobody() -> None:
    for address in (POD, NODE, NOBODY):
        for identity in (0, FIRST_COMPUTED, 2**64 - 1):
            assert Names().of(address, identity) == ""


def test_nodes_are_known_by_each_of_their_addresses() -> None:
    first, second = ip_address("172.30.0.11"), ip_address("fd00:172:30::12")
    nodes = [Node("n1", "u", addresses=(first, NODE)), Node("n2", "v", addresses=(second,)), Node("n3", "w")]
    assert nodes_at(nodes) == {first: "n1", NODE: "n1", second: "n2"}
