"""Models of routing: what pools ask for, and a pod's MTU."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.model_settings import model_settings
from kit.models import HOST_GW, IPIP, LEAST_MTU, SERVED, VXLAN, Model, asked, models_of, pod_mtu, wishes
from kit.pools import judge_pools
from proto.objects import FelixConfiguration, IPPool
from services.routing.core.models import MODELS

WIREGUARD = Model(name="wireguard", overhead={4: 60, 6: 80})
ALL = {model.name: model for model in (HOST_GW, VXLAN, IPIP, WIREGUARD)}


def pool(**fields: Any) -> IPPool:
    return IPPool(**{"name": "p", "cidr": ip_network("10.244.0.0/16"), "block_size": 26, **fields})


def test_routing_does_each_model_that_is_served() -> None:
    assert {name: MODELS[name].traits for name in SERVED} == SERVED


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({}, ("host-gw",)),
        ({"ipip_mode": "Always"}, ("ipip",)),
        ({"ipip_mode": "CrossSubnet"}, ("host-gw", "ipip")),
        ({"vxlan_mode": "Always"}, ("vxlan",)),
        ({"vxlan_mode": "CrossSubnet"}, ("host-gw", "vxlan")),
    ],
)
def test_what_a_pool_asks_for(fields: dict[str, Any], names: tuple[str, ...]) -> None:
    assert asked(pool(**fields), ALL) == names
    assert models_of([pool(**fields)], ALL) == tuple(model for name, model in ALL.items() if name in names)


@pytest.mark.parametrize("field", ["ipip_mode", "vxlan_mode"])
@pytest.mark.parametrize("mode", ["Always", "CrossSubnet"])
def test_a_pool_gives_blocks_only_if_its_model_is_served(field: str, mode: str) -> None:
    """Addresses that it gave before are reached as before."""
    one = pool(**{field: mode})
    (wish,) = wishes(one)
    assert judge_pools([one]).verdicts[0].allocatable is (wish.model in SERVED)
    assert asked(one, {"host-gw": HOST_GW}) == ("host-gw",)


@pytest.mark.parametrize(
    ("uplinks", "models", "mtu"),
    [
        ([1500], [HOST_GW], 1500),
        ([9000], [HOST_GW], 9000),
        ([9000, 1500], [HOST_GW], 1500),
        ([1500], [HOST_GW, VXLAN, IPIP], 1430),
        ([1500], [IPIP], 1480),
        ([], [HOST_GW], 1500),
        ([], [], 1500),
        ([1300], [VXLAN], LEAST_MTU),
        ([576], [HOST_GW], LEAST_MTU),
        ([65536], [HOST_GW], 65535),
    ],
)
def test_a_pod_s_mtu(uplinks: list[int], models: list[Model], mtu: int) -> None:
    assert pod_mtu(uplinks, models) == mtu


@pytest.mark.parametrize(
    ("uplink", "model", "fields", "mtu"),
    [
        (1500, VXLAN, {"vxlan_mtu": 1400}, 1400),
        (1500, VXLAN, {"vxlan_mtu": 9000, "vxlan_mtu_v6": 9000}, 1430),
        (9000, VXLAN, {"vxlan_mtu_v6": 8000}, 8000),
        (1500, IPIP, {"vxlan_mtu": 1300}, 1480),
        (1500, IPIP, {"ipip_mtu": 1280}, 1280),
        (1500, HOST_GW, {"ipip_mtu": 1280}, 1500),
        (1500, WIREGUARD, {"wireguard_mtu": 1400, "wireguard_mtu_v6": 0}, 1400),
    ],
)
def test_a_person_may_make_a_pod_s_mtu_smaller_and_never_larger(
    uplink: int, model: Model, fields: dict[str, Any], mtu: int
) -> None:
    settings = model_settings([FelixConfiguration(name="default", **fields)])
    assert pod_mtu([uplink], [model], settings) == mtu


@pytest.mark.parametrize(
    ("cidr", "names"),
    [("10.0.0.0/16", ("host-gw", "ipip", "vxlan", "wireguard")), ("fd00::/56", ("host-gw", "vxlan", "wireguard"))],
    ids=["IPv4", "IPv6"],
)
def test_auto_takes_the_cheapest_that_there_is(cidr: str, names: tuple[str, ...]) -> None:
    one = pool(cidr=ip_network(cidr), model="auto", block_size=122 if ":" in cidr else 26)
    assert asked(one, ALL) == names
    assert asked(one, {"host-gw": HOST_GW}) == ("host-gw",)
    assert judge_pools([one]).problems == (), "what there is serves it"


@pytest.mark.parametrize(
    "fields", [{}, {"vxlan_mode": "Always"}, {"ipip_mode": "CrossSubnet"}, {"model": "auto"}], ids=str
)
def test_what_must_be_encrypted_has_one_model_whatever_the_pool_says(fields: dict[str, Any]) -> None:
    assert asked(pool(**fields), ALL, {4}) == ("wireguard",)
    assert models_of([pool(**fields)], ALL, {4, 6}) == (WIREGUARD,)
    assert asked(pool(**fields), ALL, {6}) == asked(pool(**fields), ALL), "the other family alone"


@pytest.mark.parametrize("field", ["ipip_mode", "vxlan_mode"])
def test_a_pool_whose_model_is_served_gives_addresses(field: str) -> None:
    one = pool(**{field: "Always"})
    assert judge_pools([one], served=ALL).verdicts[0].allocatable
    assert not judge_pools([one], served={"host-gw": HOST_GW}).verdicts[0].allocatable


@given(st.lists(st.integers(1400, 65535), min_size=1), st.sets(st.sampled_from(list(ALL))))
def test_a_pod_s_packet_fits_every_uplink_by_every_model(uplinks: list[int], names: set[str]) -> None:
    models = [ALL[name] for name in names]
    mtu = pod_mtu(uplinks, models)
    assert all(mtu + added <= uplink for uplink in uplinks for model in models for added in model.overhead.values())
