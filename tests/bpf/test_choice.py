"""The choice of a backend by a flow's hash: programs take what every node takes, and policy judges all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from ipaddress import IPv6Address, ip_address

import pytest

from proto.policy import Direction
from services.dataplane.core.datapath.service_layout import ChoiceKey, ServiceFlag
from services.dataplane.core.loadbalancer.choice import choice_key, in_order
from tests.bpf.frames import ACK, SYN
from tests.bpf.frontends import PROTOCOLS, Names, packet, sent, serve, split
from tests.bpf.world import World, empty

pytestmark = pytest.mark.privileged
FAMILIES = pytest.mark.parametrize("version", [4, 6])
KINDS = pytest.mark.parametrize("kind", ["tcp", "udp"])
KEY = choice_key("0f3c1d52-7a55-4a0e-9c61-1f0f1f2a3b4c")
MASK = (1 << 64) - 1


def siphash13(first: int, second: int, message: bytes) -> int:
    """SipHash-1-3 as its paper has it (1 round a word, 3 at the end)."""
    v0, v1 = first ^ 0x736F6D6570736575, second ^ 0x646F72616E646F6D
    v2, v3 = first ^ 0x6C7967656E657261, second ^ 0x7465646279746573

    def rotated(word: int, bits: int) -> int:
        return (word << bits | word >> (64 - bits)) & MASK

    def mixed(v0: int, v1: int, v2: int, v3: int) -> tuple[int, int, int, int]:
        v0, v2 = (v0 + v1) & MASK, (v2 + v3) & MASK
        v1, v3 = rotated(v1, 13) ^ v0, rotated(v3, 16) ^ v2
        v0 = rotated(v0, 32)
        v2, v0 = (v2 + v1) & MASK, (v0 + v3) & MASK
        v1, v3 = rotated(v1, 17) ^ v2, rotated(v3, 21) ^ v0
        return v0, v1, rotated(v2, 32), v3

    whole = len(message) // 8 * 8
    words = [int.from_bytes(message[at : at + 8], "little") for at in range(0, whole, 8)]
    words.append(int.from_bytes(message[whole:], "little") | (len(message) & 0xFF) << 56)
    for word in words:
        v0, v1, v2, v3 = mixed(v0, v1, v2, v3 ^ word)
        v0 ^= word
    v2 ^= 0xFF
    for _ in range(3):
        v0, v1, v2, v3 = mixed(v0, v1, v2, v3)
    return v0 ^ v1 ^ v2 ^ v3


def choice(client: str, sport: int, dport: int, protocol: int, count: int, key: ChoiceKey = KEY) -> int:
    """Which of ``count`` backends a flow takes."""
    address = ip_address(client.strip("[]"))
    if address.version == 4:
        address = IPv6Address(f"::ffff:{address}")
    message = address.packed + sport.to_bytes(2, "big") + dport.to_bytes(2, "big") + bytes((protocol,))
    return (siphash13(key.first, key.second, message) >> 32) * count >> 32


def test_the_hash_of_these_tests_is_the_interpreters_own() -> None:
    """CPython hashes bytes by SipHash-1-3, with a key of zeros where randomization is off."""
    assert sys.hash_info.algorithm == "siphash13"
    texts = [bytes(range(length)) for length in range(8, 40)]
    code = f"print(*[hash(bytes.fromhex(text)) for text in {[text.hex() for text in texts]}])"
    said = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert [int(one) & MASK for one in said.split()] == [siphash13(0, 0, text) for text in texts]


def backends(version: int, count: int) -> list[str]:
    """Pods of another node, in the order that the agent gives them."""
    made = [ip_address(f"10.244.2.{10 + n}" if version == 4 else f"fd00:10:244:2::{10 + n:x}") for n in range(count)]
    ordered = in_order((address, 8080) for address in reversed(made))
    return [f"{address}:{port}" if version == 4 else f"[{address}]:{port}" for address, port in ordered]


def forget_flows(world: World) -> None:
    """What another node knows of a flow that comes to it in the middle: nothing."""
    empty(world.tables, ("nats", "clients", "flows"))
    world.forget_recent()


@pytest.fixture
def keyed(world: World) -> World:
    world.tables.choose_by(KEY)
    return world


@FAMILIES
@KINDS
class TestChoice:
    def test_each_flow_takes_the_backend_that_every_node_takes(self, keyed: World, version: int, kind: str) -> None:
        n, served = Names(version), backends(version, 7)
        serve(keyed, f"{n.vip}:80", *served, protocol=PROTOCOLS[kind], flags=ServiceFlag.FOREIGN)
        taken: Counter[str] = Counter()
        for sport in range(30000, 30140):
            to = sent(keyed.from_wire(packet(f"{kind} {n.client}:{sport} > {n.vip}:80"))).split(" > ")[1]
            assert split(to) == split(served[choice(n.client, sport, 80, PROTOCOLS[kind], 7)])
            taken[to] += 1
        chi_square = sum((taken[one] - 20) ** 2 / 20 for one in taken) + 20 * (7 - len(taken))
        assert chi_square < 22.46, "six degrees of freedom, p = 0.001"

    def test_another_key_is_another_choice(self, keyed: World, version: int, kind: str) -> None:
        n, served = Names(version), backends(version, 64)
        serve(keyed, f"{n.vip}:80", *served, protocol=PROTOCOLS[kind], flags=ServiceFlag.FOREIGN)

        def taken() -> list[str]:
            forget_flows(keyed)
            raws = [packet(f"{kind} {n.client}:{sport} > {n.vip}:80") for sport in range(30000, 30016)]
            return [sent(keyed.from_wire(raw)).split(" > ")[1] for raw in raws]

        before = taken()
        assert taken() == before
        keyed.tables.choose_by(choice_key("another"))
        assert taken() != before

    def test_a_client_that_keeps_its_backend_has_the_same_on_every_node(
        self, keyed: World, version: int, kind: str
    ) -> None:
        n, served = Names(version), backends(version, 16)
        serve(keyed, f"{n.vip}:80", *served, protocol=PROTOCOLS[kind], flags=ServiceFlag.FOREIGN, affinity=60)
        expected = split(served[choice(n.client, 0, 80, PROTOCOLS[kind], 16)])
        for sport in (30000, 30001, 40000):
            to = sent(keyed.from_wire(packet(f"{kind} {n.client}:{sport} > {n.vip}:80"))).split(" > ")[1]
            assert split(to) == expected
            forget_flows(keyed)


@FAMILIES
class TestInTheMiddle:
    def test_of_a_flow_that_came_by_another_node(self, keyed: World, version: int) -> None:
        """Its packets go to the backend that it has, though nobody here has seen it begin."""
        n, served = Names(version), backends(version, 16)
        serve(keyed, f"{n.vip}:80", *served, flags=ServiceFlag.FOREIGN)
        for sport in range(30000, 30006):  # one backend of 16 each: all six by chance never
            first = sent(keyed.from_wire(packet(f"tcp {n.client}:{sport} > {n.vip}:80", flags=SYN)))
            forget_flows(keyed)
            later = keyed.from_wire(packet(f"tcp {n.client}:{sport} > {n.vip}:80", flags=ACK))
            assert str(later) == "redirect"
            assert sent(later).split(" > ")[1] == first.split(" > ")[1]

    def test_in_a_name_by_which_its_backend_does_not_know_it(self, keyed: World, version: int) -> None:
        """Elsewhere a pod met the other node's address, with a port that nobody here knows; here it meets the client's
        own. So the backend has no such connection, and resets it: the choice alone carries no flow of TCP over.
        """
        n, served, ports = Names(version), backends(version, 16), set[int]()
        serve(keyed, f"{n.vip}:80", *served, flags=ServiceFlag.FOREIGN)
        middle = packet(f"tcp {n.client}:30000 > {n.vip}:80", flags=ACK)
        for _ in range(4):
            source = sent(keyed.from_wire(middle)).split()[1]
            assert split(source)[0] == n.node.strip("[]")
            ports.add(split(source)[1])
            forget_flows(keyed)
        assert len(ports) > 1, "drawn by each node"
        serve(keyed, f"{n.vip}:80", f"{n.pod}:8080", flags=ServiceFlag.FOREIGN)
        assert sent(keyed.from_wire(middle)) == f"tcp {n.client}:30000 > {n.pod}:8080"

    def test_policy_judges_it_as_a_first_packet(self, keyed: World, version: int) -> None:
        n = Names(version)
        serve(keyed, f"{n.vip}:80", f"{n.pod}:8080", flags=ServiceFlag.FOREIGN)
        keyed.isolate(keyed.b.identity, ingress=True)
        middle = packet(f"tcp {n.client}:30000 > {n.vip}:80", flags=ACK)
        assert str(keyed.from_wire(middle)) == "drop POLICY_DENIED"
        keyed.rule(keyed.b, Direction.INGRESS, protocol=6, port=8080, bits=16)
        passed = keyed.from_wire(middle)
        assert (str(passed), sent(passed)) == ("redirect", f"tcp {n.client}:30000 > {n.pod}:8080")

    def test_local_services_stay_on_the_node(self, keyed: World, version: int) -> None:
        n = Names(version)
        flags = ServiceFlag.FOREIGN | ServiceFlag.LOCAL_ONLY
        serve(keyed, f"{n.vip}:80", f"{n.pod}:8080", f"{n.second}:8080", flags=flags)
        for sport in range(30000, 30020):
            raw = packet(f"tcp {n.client}:{sport} > {n.vip}:80", flags=ACK)
            to = sent(keyed.from_wire(raw)).split(" > ")[1]
            assert split(to) == split(f"{(n.pod, n.second)[choice(n.client, sport, 80, 6, 2)]}:8080")
        serve(keyed, f"{n.vip}:80", flags=flags)
        assert str(keyed.from_wire(packet(f"tcp {n.client}:31000 > {n.vip}:80"))) == "drop SERVICE_NO_LOCAL_BACKEND"
