"""A family that must be encrypted goes by WireGuard or not at all, whatever is missing or not known yet."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from msgspec import structs

from kit.model_settings import ModelSettings
from kit.tunnels import LAST_METRIC, Tunnel
from proto.routes import NodeRoutes, WireguardKey
from services.routing.core.choice import Choice
from services.routing.core.encryption import (
    PLAIN_GRACE,
    STAYS,
    asked_since,
    last_known,
    staying,
    wish_of,
    with_families,
    withheld,
)
from services.routing.core.faults import Fault
from services.routing.core.fib import GROUP, Kind, Remove, Replace, Route, SeenDevice, Snapshot, Uplink
from services.routing.core.mesh import Mesh
from services.routing.core.models.contract import NodeContext, Pair, Path
from services.routing.core.models.wireguard import Wireguard
from services.routing.core.pairs import Memory
from services.routing.core.plan import plan
from services.routing.core.wireguard import WireguardState, public_text
from tests.core.routing.test_plan import FAB0, N1, N2, claim, mesh

POOL, POOL6 = ip_network("10.244.0.0/16"), ip_network("fd00:10:244::/48")
BOTH = frozenset((4, 6))
KEY = WireguardKey(0, public_text(bytes([2]) * 32), 51820)
SECURE = structs.replace(N2, models=("host-gw", "wireguard"), wireguard=(KEY,))
READY = WireguardState(
    mine=(WireguardKey(0, public_text(bytes([1]) * 32), 51820),),
    links={0: 9, 1: 10},
    mtu=1440,
    slots={"n2": 0},
    outer={"n2": ip_address("172.30.0.12")},
)
PLAIN = Route(destination=ip_network("10.244.0.64/26"), via=ip_address("172.30.0.12"), link=3)


def asking(*nodes: NodeRoutes, families: frozenset[int] = BOTH, **more: Any) -> Mesh:
    """Encryption of these families is asked for."""
    given: dict[str, Any] = {
        "pools": {POOL: ("wireguard",), POOL6: ("wireguard",)},
        "pools_complete": True,
        "settings": ModelSettings(encrypted=families),
        "settings_complete": True,
        "routes_complete": True,
        **more,
    }
    return mesh(*nodes, **given)


def kernel(*routes: Route, wireguard: WireguardState | None = None) -> Snapshot:
    return Snapshot(routes=routes, uplinks=(FAB0,), wireguard=wireguard or WireguardState())


def replaced(planned: Any) -> list[str]:
    return [str(one.route) for one in planned.operations if isinstance(one, Replace)]


PROHIBITED = ["prohibit 10.244.0.0/16 metric 4096", "prohibit fd00:10:244::/48 metric 4096"]


@pytest.mark.parametrize(
    "state",
    [
        pytest.param(WireguardState(), id="no device"),
        pytest.param(replace(READY, slots={}, outer={}), id="no peer"),
        pytest.param(WireguardState(fault=Fault("no WireGuard", "get one")), id="no WireGuard at all"),
    ],
)
def test_nothing_but_refusals_where_wireguard_is_missing(state: WireguardState) -> None:
    planned = plan(asking(N1, SECURE), kernel(wireguard=state))
    assert replaced(planned)[:2] == PROHIBITED, "before all else"
    assert not [one for one in replaced(planned) if " via " in one]
    for key, choice in planned.pairs.items():
        assert (choice.state, choice.path) == ("none", None), key
        assert {fault.about for fault in choice.faults} == {("FelixConfiguration", "default")}


def test_the_pods_of_another_node_are_reached_by_the_slot_that_the_pair_takes() -> None:
    planned = plan(asking(N1, SECURE), kernel(wireguard=READY))
    assert [one for one in replaced(planned) if " via " in one] == [
        "10.244.0.64/26 via 172.30.0.12 dev 9 onlink src 172.30.0.11 metric 64",
        "fd00:10:244::40/122 via fe80::5efe:ac1e:c dev 9 onlink src fd00:172:30::11 metric 64",
    ]
    moved = plan(asking(N1, SECURE), kernel(wireguard=replace(READY, slots={"n2": 1})))
    assert all(" dev 10 " in one for one in replaced(moved) if " via " in one)
    only = plan(asking(N1, SECURE, families=frozenset((6,)), pools={POOL: ("host-gw",)}), kernel(wireguard=READY))
    assert [one.split(" dev ")[1][0] for one in replaced(only) if " via " in one] == ["3", "9"], "each family"


def test_blocks_in_no_pool_and_unknown_pools_are_encrypted_all_the_same() -> None:
    planned = plan(asking(N1, SECURE, pools={}, pools_complete=False), kernel(wireguard=READY))
    assert "prohibit 10.244.0.64/26 metric 4096" in replaced(planned)
    assert "unreachable 10.244.0.0/26 metric 4096" in replaced(planned), "own ones are refused as ever"
    assert all("dev 9" in one for one in replaced(planned) if " via " in one)


def test_a_plain_way_stays_until_wireguard_is_proved_and_no_longer_than_half_a_minute() -> None:
    def taken(seconds: float) -> list[str]:
        memory = Memory(now=100.0 + seconds, encrypted_since={4: 100.0, 6: 100.0})
        planned = plan(asking(N1, SECURE), kernel(PLAIN, wireguard=READY), memory)
        left = [one.route for one in planned.operations if isinstance(one, Remove)]
        return ["gone"] if PLAIN in left else [pair.pending for key, pair in planned.pairs.items() if key.family == 4]

    assert taken(0) == ["wireguard"]
    assert taken(PLAIN_GRACE - 1) == ["wireguard"]
    assert taken(PLAIN_GRACE) == ["gone"]


def test_only_plain_ways_are_withheld() -> None:
    path = Path(model="wireguard", via=ip_address("172.30.0.12"), link=9, mtu=1440, link_mtu=1440)
    choice = Choice(asked=("wireguard",), path=path, state="taken", why="")
    assert withheld(choice, 4, {4: 0.0}, 1000.0) == choice
    plain = replace(choice, path=replace(path, model="host-gw"))
    assert withheld(plain, 4, {4: 0.0}, 1000.0).path is None
    assert withheld(plain, 6, {4: 0.0}, 1000.0) == plain, "of the other family"
    assert asked_since(asking(), {4: 5.0}, 9.0) == {4: 5.0, 6: 9.0}


def test_what_was_asked_for_holds_until_the_objects_are_known() -> None:
    """The agent starts: FelixConfiguration is not here yet, the kernel's prohibited ranges are."""
    refusal = Route(destination=POOL, kind=Kind.PROHIBIT, metric=LAST_METRIC)
    unknown = asking(N1, SECURE, families=frozenset(), pools={}, pools_complete=False, settings_complete=False)
    assert last_known(unknown, kernel(refusal)).settings.encrypted == frozenset((4,))
    planned = plan(last_known(unknown, kernel(refusal)), kernel(refusal))
    assert Remove(refusal) not in planned.operations
    assert not [one for one in replaced(planned) if "10.244.0.64/26 via" in one], "no plain way is made meanwhile"
    off = asking(N1, N2, families=frozenset(), pools={POOL: ("host-gw",), POOL6: ("host-gw",)})
    assert Remove(refusal) in plan(last_known(off, kernel(refusal)), kernel(refusal)).operations, "nobody asks any more"
    half = asking(N1, N2, families=frozenset(), pools={}, settings_complete=False)
    assert Remove(refusal) not in plan(half, kernel(refusal)).operations


def test_who_hears_first_that_nobody_asks_stays_on_wireguard_for_a_while() -> None:
    """The other end may refuse what comes in the clear until it has heard, too."""
    none: frozenset[int] = frozenset()
    assert staying(BOTH, none, {}, 10.0) == {}, "it begins at once"
    kept = staying(none, BOTH, {}, 10.0)
    assert kept == {4: 10.0 + STAYS, 6: 10.0 + STAYS}
    assert staying(none, none, kept, 10.0 + STAYS - 0.1) == kept
    assert staying(none, none, kept, 10.0 + STAYS) == {}
    assert staying(frozenset((4,)), none, kept, 11.0) == {6: 10.0 + STAYS}, "asked for again"
    off = asking(N1, SECURE, families=none, pools={POOL: ("host-gw",), POOL6: ("host-gw",)})
    planned = plan(with_families(off, kept), kernel(wireguard=READY))
    assert [one.split(" dev ")[1][0] for one in replaced(planned) if " via " in one] == ["9", "9"]


def pair_of(family: int = 4, *, mtu: int = 1500, state: WireguardState = READY, **peer: Any) -> Pair:
    link = replace(FAB0, mtu=mtu)
    underlay = ip_address("172.30.0.11"), ip_address("fd00:172:30::11")
    own = NodeContext(links=(link,), underlay=underlay, wireguard=state)
    return Pair(peer=structs.replace(SECURE, **peer), family=family, own=own)


@pytest.mark.parametrize(
    ("pair", "mtu"),
    [
        pytest.param(pair_of(), 1440, id="60 bytes less"),
        pytest.param(pair_of(mtu=9000), 1440, id="no more than the device"),
        pytest.param(pair_of(state=replace(READY, outer={"n2": ip_address("fd00:172:30::12")})), 1420, id="80 by IPv6"),
    ],
)
def test_the_size_of_a_pair(pair: Pair, mtu: int) -> None:
    path = Wireguard().path(pair)
    assert isinstance(path, Path)
    assert path.mtu == mtu


def test_a_link_too_small_for_ipv6_is_said() -> None:
    fault = Wireguard().path(pair_of(6, mtu=1300))
    assert isinstance(fault, Fault)
    assert "IPv6 needs 1280" in fault.fault


def test_what_the_devices_are_to_be() -> None:
    """Nothing where nobody asks; the peers by what the buckets say; who is routed where by the kernel's table."""
    assert wish_of(mesh(N1, N2), kernel()) is None
    assert wish_of(asking(N1, SECURE), Snapshot()) is None, "no uplink"
    kept = claim("10.244.1.7", "n2")
    routes = (
        Route(destination=ip_network("10.244.0.64/26"), via=ip_address("172.30.0.12"), link=9),
        Route(destination=ip_network("10.244.1.7/32"), via=ip_address("172.30.0.12"), link=10),
        Route(destination=ip_network("10.244.0.0/26"), kind=Kind.UNREACHABLE, metric=LAST_METRIC),
    )
    wish = wish_of(asking(N1, SECURE, claims=(kept,)), kernel(*routes))
    assert wish is not None
    assert wish.taken == {"n2": {9, 10}}
    assert wish.known.underlay == {"n2": set(N2.underlay)}
    assert (wish.port, wish.uplink_mtu, wish.known.families) == (51820, 1500, BOTH)
    assert wish.local == (ip_address("172.30.0.11"), ip_address("fd00:172:30::11"))
    thief = structs.replace(SECURE, underlay=(ip_address("172.30.0.11"), ip_address("10.244.0.1")))
    own = wish_of(asking(N1, thief), kernel())
    assert own is not None
    assert own.known.underlay == {}, "neither this node's own address nor a pod's"


def test_a_gateway_is_a_peer_by_addresses_that_nobody_else_announces() -> None:
    control = NodeRoutes("cp", (ip_address("172.30.0.1"),), models=("wireguard",), gateway=True, wireguard=(KEY,))

    def underlay(*nodes: NodeRoutes) -> dict[str, set[Any]]:
        wish = wish_of(asking(N1, *nodes), kernel())
        assert wish is not None
        return {name: set(addresses) for name, addresses in wish.known.underlay.items()}

    assert underlay(SECURE, control) == {"n2": set(N2.underlay), "cp": {ip_address("172.30.0.1")}}
    both = structs.replace(SECURE, underlay=(*N2.underlay, ip_address("172.30.0.1")))
    assert underlay(both, control) == {"n2": set(N2.underlay)}, "one of them lies: it is neither's"
    taking = structs.replace(control, underlay=(ip_address("10.244.0.70"), ip_address("172.30.0.11"), N2.underlay[0]))
    assert underlay(SECURE, taking) == {"n2": {N2.underlay[1]}}, "no pod's, not this node's own, and no node's"
    posing = structs.replace(SECURE, gateway=True, underlay=(ip_address("172.30.0.1"),))
    assert underlay(posing, control) == {}, "who holds blocks is no gateway"


def test_a_device_keeps_its_peers_until_it_is_taken_away() -> None:
    tunnel = Tunnel(model="wireguard", local=ip_address("172.30.0.11"), port=51820)
    device = SeenDevice(
        name="am-wg", index=9, kind="tun", up=True, mtu=1440, group=GROUP, alias="", tunnel=tunnel
    )  # fmt: skip
    assert wish_of(mesh(N1, SECURE), replace(kernel(), devices=(device,))) is not None
    assert wish_of(mesh(N1, SECURE), kernel()) is None


def test_the_uplinks_that_are_down_count_for_nothing() -> None:
    down = Uplink(name="fab1", index=4, up=False, mtu=576, addresses=(ip_interface("192.0.2.1/24"),))
    wish = wish_of(asking(N1, SECURE), replace(kernel(), uplinks=(FAB0, down)))
    assert wish is not None
    assert (wish.uplink_mtu, ip_address("192.0.2.1") in wish.local) == (1500, False)
