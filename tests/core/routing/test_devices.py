"""Which tunnel devices there should be, what is done to those that are there, and what is never touched."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from msgspec import structs

from kit.model_settings import ModelSettings, model_settings
from kit.tunnels import Tunnel, vtep_mac
from proto.objects import FelixConfiguration
from services.routing.core.devices import entry_operations
from services.routing.core.fib import (
    GROUP,
    AddDevice,
    AddEntry,
    Forwarding,
    MendDevice,
    Neighbour,
    RemoveDevice,
    SeenDevice,
    Snapshot,
    Uplink,
)
from services.routing.core.mesh import Mesh
from services.routing.core.pairs import Memory
from services.routing.core.plan import Plan, plan
from tests.core.routing.test_plan import FAB0, N1, N2, mesh, node

VXLAN = Tunnel(model="vxlan", local=ip_address("172.30.0.11"), port=4789, vni=4096)
SEEN = SeenDevice(
    name="am-vxlan",
    index=11,
    kind="vxlan",
    up=True,
    mtu=1450,
    group=GROUP,
    alias="airmesh-tunnel/1 vxlan 172.30.0.11 4789 4096",
    tunnel=VXLAN,
)


def asking(*models: str, settings: ModelSettings | None = None, complete: bool = True, **more: Any) -> Mesh:
    state: dict[str, Any] = {
        "pools": {ip_network("10.244.0.0/16"): models},
        "pools_complete": True,
        "settings": settings or ModelSettings(),
        "settings_complete": complete,
        "routes_complete": True,
        **more,
    }
    peer = structs.replace(N2, models=("host-gw", "ipip", "vxlan"))
    return mesh(N1, peer, **state)


def done(made: Mesh, *devices: SeenDevice, uplink: Uplink = FAB0, memory: Memory | None = None) -> list[str]:
    """What is done to devices, in words."""
    planned = planned_of(made, *devices, uplink=uplink, memory=memory)
    words = {AddDevice: "add", MendDevice: "mend", RemoveDevice: "remove"}
    return [
        f"{words[type(one)]} {one.device.name if isinstance(one, AddDevice | MendDevice) else one.name}"
        for one in planned.operations
        if isinstance(one, AddDevice | MendDevice | RemoveDevice)
    ]


def planned_of(made: Mesh, *devices: SeenDevice, uplink: Uplink = FAB0, memory: Memory | None = None) -> Plan:
    return plan(made, Snapshot(uplinks=(uplink,), devices=devices), memory)


def test_a_device_is_there_when_a_pool_asks_for_its_model() -> None:
    assert done(asking("host-gw")) == []
    assert done(asking("vxlan")) == ["add am-vxlan"]
    assert done(asking("host-gw", "ipip")) == ["add am-ipip"]
    assert done(asking("host-gw", "ipip", "vxlan")) == ["add am-ipip", "add am-vxlan"]
    (made,) = [one for one in planned_of(asking("vxlan")).operations if isinstance(one, AddDevice)]
    assert (made.device.mtu, made.device.tunnel, made.device.alias) == (1450, VXLAN, SEEN.alias)


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (SEEN, []),
        (replace(SEEN, up=False), ["mend am-vxlan"]),
        (replace(SEEN, mtu=1500), ["mend am-vxlan"]),
        (replace(SEEN, whole=False), ["mend am-vxlan"]),
        (replace(SEEN, alias=""), ["mend am-vxlan"]),
        (replace(SEEN, group=0), []),
        (replace(SEEN, tunnel=replace(VXLAN, vni=1)), ["remove am-vxlan", "add am-vxlan"]),
        (replace(SEEN, tunnel=replace(VXLAN, port=8472)), ["remove am-vxlan", "add am-vxlan"]),
        (replace(SEEN, tunnel=replace(VXLAN, local=ip_address("172.30.0.99"))), ["remove am-vxlan", "add am-vxlan"]),
        (replace(SEEN, kind="veth", tunnel=None), ["remove am-vxlan", "add am-vxlan"]),
    ],
    ids=["whole", "down", "mtu", "address", "unmarked", "marked-alone", "vni", "port", "local", "another-kind"],
)
def test_what_is_wrong_with_a_device_is_mended(seen: SeenDevice, words: list[str]) -> None:
    assert done(asking("vxlan"), seen) == words


def test_an_interface_of_that_name_that_is_not_ours_is_never_touched() -> None:
    somebodys = replace(SEEN, group=0, alias="", tunnel=replace(VXLAN, vni=7))
    assert done(asking("vxlan"), somebodys) == []
    assert done(asking("host-gw"), somebodys, memory=Memory(now=900.0, unneeded={"am-vxlan": 0.0})) == []
    found = planned_of(asking("vxlan"), somebodys)
    assert "an interface am-vxlan that is not ours" in str(found.faults)
    assert "vxlan" not in found.received


def test_before_the_settings_are_known_a_device_stays_as_it_is() -> None:
    other = model_settings([FelixConfiguration(name="default", vxlan_vni=1, vxlan_port=8472)])
    flannels = replace(SEEN, tunnel=replace(VXLAN, vni=1, port=8472), alias="")
    assert done(asking("vxlan", complete=False), flannels) == []
    assert done(asking("vxlan", settings=other, complete=False), flannels) == ["mend am-vxlan"]
    assert done(asking("vxlan", settings=other), SEEN) == ["remove am-vxlan", "add am-vxlan"]


def test_without_an_uplink_nothing_is_taken_away() -> None:
    down = replace(FAB0, up=False)
    late = Memory(now=900.0, unneeded={"am-vxlan": 0.0})
    assert done(asking("vxlan"), SEEN, uplink=down, memory=late) == []
    assert done(asking("host-gw", pools_complete=False), SEEN, memory=late) == [], "before the pools are known"
    assert done(asking("host-gw"), SEEN, memory=late) == ["remove am-vxlan"]
    assert done(asking("host-gw"), SEEN, memory=Memory(now=30.0, unneeded={"am-vxlan": 0.0})) == [], "not yet"


def test_a_model_is_received_when_all_its_devices_take_packets() -> None:
    assert planned_of(asking("vxlan"), SEEN).received == ("host-gw", "vxlan")
    assert planned_of(asking("vxlan"), replace(SEEN, receives=False)).received == ("host-gw",)
    assert planned_of(asking("vxlan"), replace(SEEN, whole=False)).received == ("host-gw",)
    assert planned_of(asking("vxlan"), replace(SEEN, up=False)).received == ("host-gw",)
    assert planned_of(asking("vxlan")).received == ("host-gw",)
    six = asking("vxlan")
    far = structs.replace(node("n4", "fd00:99::4"), models=("host-gw", "vxlan"))
    with_six = replace(six, routes={**six.routes, "n4": far})
    assert done(with_six, SEEN) == ["add am-vxlan6"]
    assert planned_of(with_six, SEEN).received == ("host-gw",), "the one for IPv6 is not there yet"


def test_nodes_that_announce_one_address_are_named() -> None:
    made = asking("vxlan")
    twin = structs.replace(node("n3", "172.30.0.12"), models=("host-gw", "vxlan"))
    faults = planned_of(replace(made, routes={**made.routes, "n3": twin}), SEEN).faults
    assert "nodes n2 and n3 both tell that they have 172.30.0.12" in str(faults)
    assert all(fault.of_others for fault in faults)


def test_what_cannot_be_done_is_reported_on_the_pool() -> None:
    made = asking("ipip", names={ip_network("10.244.0.0/16"): "blue"})
    lacking = {**made.routes, "n2": structs.replace(made.routes["n2"], models=("host-gw",))}
    faults = planned_of(replace(made, routes=lacking)).faults
    assert [fault.about for fault in faults if "n2" in fault.fault or "am-ipip" in fault.fault] == [("IPPool", "blue")]


def test_a_small_link_has_no_ipv6_neighbours() -> None:
    """The kernel has no IPv6 on it, and refuses them."""
    outer = ip_address("172.30.0.12")
    small = entry_operations({("vxlan", 4): replace(SEEN, mtu=1250)}, {4: {"n2": outer}}, frozenset(), complete=True)
    assert small.additions == (
        AddEntry(Neighbour(11, outer, vtep_mac(outer))),
        AddEntry(Forwarding(11, vtep_mac(outer), outer)),
    )


def test_of_two_addresses_with_one_mac_address_the_first_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.routing.core.devices.vtep_mac", lambda _: b"\x02aaaaa")
    peers = {6: {"n2": ip_address("fd00::2"), "n3": ip_address("fd00::3")}}
    found = entry_operations({("vxlan", 6): SEEN}, peers, frozenset(), complete=True)
    assert "nodes n2 and n3" in found.faults[0].fault
    entries = [one.entry for one in found.additions if isinstance(one, AddEntry)]
    assert {one.outer for one in entries if isinstance(one, Forwarding)} == {ip_address("fd00::2")}
