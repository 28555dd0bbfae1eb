"""What FelixConfiguration sets of the models of routing."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from kit.model_settings import ModelSettings, model_settings
from proto.objects import FelixConfiguration


def felix(name: str, **fields: Any) -> FelixConfiguration:
    return FelixConfiguration(name=name, **fields)


def test_nothing_set_is_calico_s_defaults() -> None:
    nothing = model_settings([])
    assert nothing == ModelSettings()
    assert (nothing.vxlan_vni, nothing.vxlan_port, nothing.wireguard_port) == (4096, 4789, 51820)
    assert nothing.encrypted == frozenset()
    assert nothing.most_mtu("vxlan", 4) == 0
    assert model_settings([felix("other", vxlan_port=1)], "n1") == nothing, "nobody reads it"


def test_flannel_s_numbers_can_be_set() -> None:
    settings = model_settings([felix("default", vxlan_vni=1, vxlan_port=8472)])
    assert (settings.vxlan_vni, settings.vxlan_port) == (1, 8472)


@pytest.mark.parametrize(
    ("fields", "families"),
    [
        ({}, set()),
        ({"wireguard_enabled": True}, {4}),
        ({"wireguard_enabled_v6": True}, {6}),
        ({"wireguard_enabled": True, "wireguard_enabled_v6": True}, {4, 6}),
        ({"wireguard_enabled": False, "wireguard_enabled_v6": True}, {6}),
    ],
)
def test_which_families_are_encrypted(fields: dict[str, Any], families: set[int]) -> None:
    assert model_settings([felix("default", **fields)], "n1").encrypted == families


def test_a_node_s_own_says_what_is_of_that_node_alone() -> None:
    """Tunnel number, VXLAN's port and encryption are of both ends: a node's own object moves none of them."""
    own = felix(
        "node.n1",
        vxlan_vni=7,
        vxlan_port=7,
        wireguard_enabled=True,
        wireguard_listening_port=7,
        vxlan_mtu=1300,
        ipip_mtu=0,
    )
    shared = felix("default", vxlan_mtu=1400, ipip_mtu=1380, wireguard_listening_port=9, vxlan_mtu_v6=1350)
    expected: dict[str, tuple[Any, ...]] = {
        "n1": (4096, 4789, 7, frozenset(), 1300, 0, 1350),
        "n2": (4096, 4789, 9, frozenset(), 1400, 1380, 1350),
        "": (4096, 4789, 9, frozenset(), 1400, 1380, 1350),
    }
    for order in permutations([own, shared, felix("node.", vxlan_mtu=1290)]):
        for node, values in expected.items():
            got = model_settings(order, node)
            sizes = (got.most_mtu("vxlan", 4), got.most_mtu("ipip", 4), got.most_mtu("vxlan", 6))
            assert (got.vxlan_vni, got.vxlan_port, got.wireguard_port, got.encrypted, *sizes) == values


def test_a_node_that_takes_encryption_back_for_itself_is_not_heard() -> None:
    both = [felix("default", wireguard_enabled=True), felix("node.n1", wireguard_enabled=False)]
    assert model_settings(both, "n1").encrypted == {4}
