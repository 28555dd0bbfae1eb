"""Which packets say that a backend refuses: what the backend alone can say, about a flow that its pod began."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from linux import bpf
from services.dataplane.core.datapath import service_layout as lb
from services.dataplane.core.datapath.maps import REFUSED
from tests.bpf import frames
from tests.bpf.frames import ACK, ICMP, ICMP6, RST, SYN, TCP, UDP
from tests.bpf.test_errors import ROUTER
from tests.bpf.world import World, next_key

pytestmark = pytest.mark.privileged

REMOTE = {4: "10.9.0.1", 6: "fd00:9::1"}
UNREACHABLE, OTHER_TYPE = {4: 3, 6: 1}, {4: 11, 6: 3}


@pytest.fixture(params=[4, 6], autouse=True)
def version(request: pytest.FixtureRequest, world: World) -> int:
    descriptor = world.tables.descriptors[REFUSED.name]
    while (key := next_key(descriptor, REFUSED.key_size)) is not None:
        bpf.delete(descriptor, key)
    return int(request.param)


def refused(world: World) -> list[tuple[str, int, int]]:
    """Backends that are noted: at most one is looked for."""
    raw = next_key(world.tables.descriptors[REFUSED.name], REFUSED.key_size)
    keys = [lb.RefusedKey.unpack(raw)] if raw else []
    return [(str(key.address), key.port, key.protocol) for key in keys]


def out(world: World, version: int, protocol: int, flags: int = SYN) -> bytes:
    """A packet of pod a to the backend, let through."""
    body = frames.tcp(4000, 80, flags) if protocol == TCP else frames.udp(4000, 80)
    packet = frames.ip(str(world.a.address(version)), REMOTE[version], protocol, body)
    assert "drop" not in str(world.from_pod(world.a, packet))
    return packet


def back(world: World, version: int, flags: int) -> None:
    """The backend's answer, let through."""
    answer = frames.ip(REMOTE[version], str(world.a.address(version)), TCP, frames.tcp(80, 4000, flags))
    assert str(world.from_wire(answer)) == "redirect"


def icmp(world: World, version: int, source: str, kind: int, about: bytes) -> None:
    """An ICMP error, let through."""
    body = bytes([kind, 3 if version == 4 else 4, 0, 0, 0, 0, 0, 0]) + about[:64]
    packet = frames.ip(source, str(world.a.address(version)), ICMP if version == 4 else ICMP6, body)
    assert str(world.from_wire(packet)) == "redirect"


def test_a_reset_in_answer_to_a_syn_is_a_refusal(world: World, version: int) -> None:
    out(world, version, TCP)
    back(world, version, RST | ACK)
    assert refused(world) == [(str(ip_address(REMOTE[version])), 80, TCP)]


def test_a_reset_of_a_connection_is_none(world: World, version: int) -> None:
    out(world, version, TCP)
    back(world, version, SYN | ACK)
    back(world, version, RST | ACK)
    assert refused(world) == []


def test_who_was_asked_by_others_notes_nothing(world: World, version: int) -> None:
    begun = frames.ip(REMOTE[version], str(world.a.address(version)), TCP, frames.tcp(80, 4000, SYN))
    assert str(world.from_wire(begun)) == "redirect"
    back(world, version, RST)
    assert refused(world) == []


def test_its_own_unreachable_is_a_refusal(world: World, version: int) -> None:
    sent = out(world, version, UDP)
    icmp(world, version, REMOTE[version], UNREACHABLE[version], sent)
    assert refused(world) == [(str(ip_address(REMOTE[version])), 80, UDP)]


def test_what_others_say_and_other_errors_are_none(world: World, version: int) -> None:
    sent = out(world, version, UDP)
    icmp(world, version, ROUTER[version], UNREACHABLE[version], sent)
    icmp(world, version, REMOTE[version], OTHER_TYPE[version], sent)
    assert refused(world) == []
