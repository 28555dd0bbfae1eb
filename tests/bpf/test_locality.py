"""Where a flow's peer is, is remembered with the flow: for one generation, and never longer."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from proto.identity import Reserved
from services.dataplane.core.datapath import layout as at
from tests.bpf import frames
from tests.bpf.frames import ACK, ICMP, TCP
from tests.bpf.world import World

pytestmark = pytest.mark.privileged

REMOTE = {4: "10.244.2.7", 6: "fd00:10:244:2::7"}
OTHER_NODE = {4: "172.30.0.12/32", 6: "fd00:172:30::12/128"}
NODE = {4: "172.30.0.11", 6: "fd00:172:30::11"}
HOP = frames.mac("02:bb:00:00:00:12")
MOVED = frames.mac("02:aa:00:00:00:09")


@pytest.fixture(params=[4, 6], autouse=True)
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def segment(source: object, destination: object) -> bytes:
    """A packet in the middle of one connection, from either end."""
    ports = (80, 4000) if str(source) in REMOTE.values() else (4000, 80)
    return frames.ip(str(source), str(destination), TCP, frames.tcp(*ports, ACK))


def becomes_local(world: World, version: int) -> None:
    """The remote pod moves to this node and keeps its address."""
    number = 9
    entry = at.Endpoint(
        identity=2001, ifindex=world.b.ifindex, endpoint=number, mac=MOVED, host_mac=bytes.fromhex("020000000001")
    )
    world.isolate(2001)
    world.tables.set_budget(number, 100)
    world.tables.endpoints.put(at.AddressKey(address=ip_address(REMOTE[version])), entry)
    world.tables.bump_generation()


def goes(world: World, version: int) -> None:
    world.tables.endpoints.remove(at.AddressKey(address=ip_address(REMOTE[version])))
    world.tables.bump_generation()


def test_wire_has_no_part_in_a_flow_of_two_local_pods(world: World, version: int) -> None:
    there = segment(world.a.address(version), world.b.address(version))
    assert str(world.from_pod(world.a, there)) == "redirect"
    assert str(world.from_wire(there)) == "drop SPOOFED_ADDRESS"
    assert str(world.from_pod(world.a, there)) == "redirect"


def test_nor_in_one_of_the_node_and_its_pod(world: World, version: int) -> None:
    probe = segment(NODE[version], world.a.address(version))
    assert str(world.to_pod(world.a, probe)) == "stack"
    assert str(world.from_wire(probe)) == "drop SPOOFED_ADDRESS"


def test_source_that_has_become_local(world: World, version: int) -> None:
    there = segment(REMOTE[version], world.a.address(version))
    assert [str(world.from_wire(there)) for _ in range(2)] == ["redirect"] * 2
    becomes_local(world, version)
    assert [str(world.from_wire(there)) for _ in range(2)] == ["drop SPOOFED_ADDRESS"] * 2
    goes(world, version)
    assert str(world.from_wire(there)) == "redirect"


def test_source_that_is_the_nodes_own_since(world: World, version: int) -> None:
    there = segment(OTHER_NODE[version].split("/")[0], world.a.address(version))
    assert str(world.from_wire(there)) == "redirect"
    world.know(OTHER_NODE[version], Reserved.HOST, at.PeerFlag.NODE)
    world.tables.bump_generation()
    assert str(world.from_wire(there)) == "drop SPOOFED_ADDRESS"


def test_what_one_direction_judged_again_the_other_looks_up_too(world: World, version: int) -> None:
    there, back = (
        segment(world.a.address(version), REMOTE[version]),
        segment(REMOTE[version], world.a.address(version)),
    )
    assert str(world.from_pod(world.a, there)) == "redirect"
    assert str(world.from_wire(back)) == "redirect"
    becomes_local(world, version)
    assert world.from_pod(world.a, there).frame[:6] == MOVED
    assert str(world.from_wire(back)) == "drop SPOOFED_ADDRESS"


def test_destination_that_comes_and_goes(world: World, version: int) -> None:
    there = segment(world.a.address(version), REMOTE[version])
    seen = [world.from_pod(world.a, there).frame[:6] for _ in range(2)]
    becomes_local(world, version)
    seen += [world.from_pod(world.a, there).frame[:6] for _ in range(2)]
    goes(world, version)
    seen += [world.from_pod(world.a, there).frame[:6] for _ in range(2)]
    assert seen == [HOP, HOP, MOVED, MOVED, HOP, HOP]


def test_icmp_error_of_a_pod_goes_where_its_flow_does(world: World, version: int) -> None:
    protocol = ICMP if version == 4 else 58
    own = str(world.a.address(version))
    there = segment(REMOTE[version], own)
    error = frames.ip(own, REMOTE[version], protocol, frames.icmp_error(version, there))
    assert str(world.from_wire(there)) == "redirect"
    assert [world.from_pod(world.a, error).frame[:6] for _ in range(2)] == [HOP, HOP]
    becomes_local(world, version)
    assert world.from_pod(world.a, error).frame[:6] == MOVED


def test_icmp_error_is_as_credible_as_who_sends_it(world: World, version: int) -> None:
    """About a flow that is known, but in the name of somebody who is here."""
    about = segment(world.a.address(version), REMOTE[version])
    assert str(world.from_pod(world.a, about)) == "redirect"
    for source, expected in (
        ("192.0.2.1" if version == 4 else "2001:db8::1", "redirect"),
        (world.b.address(version), "drop SPOOFED_ADDRESS"),
        (NODE[version], "drop SPOOFED_ADDRESS"),
    ):
        protocol = ICMP if version == 4 else 58
        error = frames.ip(str(source), str(world.a.address(version)), protocol, frames.icmp_error(version, about))
        assert str(world.from_wire(error)) == expected
