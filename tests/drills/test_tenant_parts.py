"""The attackers of the drill of tenants, tried on a cable without a lab: what they send, and how fast."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from tests.bpf.world import inside, namespace, run
from tests.drills.tenants import packets, tenant
from tests.drills.tenants.stolen_key import Loot, steal, unheard
from tests.natsd import NatsServer

pytestmark = pytest.mark.privileged
NEAR, FAR = {4: "192.0.2.1", 6: "2001:db8::1"}, {4: "192.0.2.2", 6: "2001:db8::2"}
SCRIPT = Path(packets.__file__)


@pytest.fixture(scope="module")
def cable() -> Iterator[tuple[str, str]]:
    """Two network namespaces and a cable between them; their names."""
    one, other = (f"am-{uuid.uuid4().hex[:6]}-{end}" for end in "ab")
    with ExitStack() as stack:
        for name in (one, other):
            stack.enter_context(namespace(name))
        run("ip", "-n", one, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", other)
        for name, own in ((one, NEAR), (other, FAR)):
            run("ip", "-n", name, "addr", "add", f"{own[4]}/24", "dev", "eth0")
            run("ip", "-n", name, "addr", "add", f"{own[6]}/64", "dev", "eth0", "nodad")
            run("ip", "-n", name, "link", "set", "eth0", "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
        yield one, other


def attack(where: str, *arguments: str) -> dict[str, float]:
    command = ["ip", "netns", "exec", where, sys.executable, "-I", str(SCRIPT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said: dict[str, float] = json.loads(done.stdout)
    return said


@pytest.mark.parametrize("version", [4, 6])
def test_a_flood_of_syns_is_20_000_a_second(cable: tuple[str, str], version: int) -> None:
    said = attack(cable[0], "syn", "--target", FAR[version], "--port", "80", "--source", "forged", "--rate", "25000",
                  "--seconds", "2")  # fmt: skip
    assert said["sent"] / said["seconds"] > 20_000, said
    assert said["sent"] <= 50_001


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", ["syn", "udp", "forged"])
def test_packets_arrive_whole(cable: tuple[str, str], version: int, kind: str) -> None:
    """Their checksums are right: the receiver's kernel hands them on."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with inside(cable[1]):
        heard = socket.socket(family, socket.SOCK_DGRAM)
        heard.bind((FAR[version], 7777))
        raw = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP)
    heard.settimeout(5)
    raw.settimeout(5)
    with heard, raw:
        said = attack(cable[0], kind, "--target", FAR[version], "--port", "7777", "--count", "10", "--payload",
                      "616263", *(("--source", NEAR[version]) if kind == "forged" else ()))  # fmt: skip
        assert said["sent"] == 10
        if kind == "syn":
            got = raw.recv(100)
            assert b"\x1e\x61" in got[:24]
            assert packets.TCP
            return
        payload, peer = heard.recvfrom(100)
        assert (payload, peer[0]) == (b"abc", NEAR[version])


def test_errors_and_fragments_are_what_they_say() -> None:
    one, other, third = map(ip_address, ("10.0.0.1", "10.0.0.2", "10.0.0.3"))
    wanted = packets.Wanted("icmp", third, [9], one, "own", (one, other, 9444), [b""])
    made = packets.packets(wanted)
    assert len(made) == 2 * (packets.EPHEMERAL[1] - packets.EPHEMERAL[0] + 1)
    assert all(packet[20:22] == b"\x03\x03" and packets.checksum(packet[20:]) == 0 for packet in made[:50])
    assert {struct.unpack_from("!HH", packet, 48)[index] for index in (0, 1) for packet in made[:8]} >= {9444}
    parts = packets.packets(packets.Wanted("fragments", third, [9], one, str(other), None, [b""]))
    assert {struct.unpack_from("!H", packet, 6)[0] for packet in parts} == {0x2000, 0x2001, 3}
    assert all(packet[12:16] == other.packed for packet in parts)


def test_visits_are_counted(cable: tuple[str, str]) -> None:
    enter = ["ip", "netns", "exec"]
    flows, visits = str(SCRIPT.parents[1] / "flows.py"), str(SCRIPT.with_name("visits.py"))
    serve = [*enter, cable[1], sys.executable, "-I", flows, "serve", "9444", *NEAR.values()]
    visit = [*enter, cable[0], sys.executable, "-I", visits, "visit", "9444", "50", "4", *FAR.values()]
    resolve = [*enter, cable[0], sys.executable, "-I", visits, "resolve", FAR[4], "20", "known.test", "unknown.test"]
    with inside(cable[1]):
        names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        names.bind((FAR[4], 53))
    with ExitStack() as stack:
        stack.enter_context(names)
        over = threading.Event()
        answering = threading.Thread(target=_name_server, args=(names, over))
        answering.start()
        stack.callback(answering.join)  # before the socket is closed: its number is soon another's
        stack.callback(over.set)
        programs = []
        for command in (serve, visit, resolve):
            made = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(made.wait)
            stack.callback(made.kill)
            programs.append(made)
            _report(made)
        time.sleep(1.0)
        server, connections, names_asked = map(_report, programs)
    assert not server["broken"] + server["breaches"], server
    assert connections["done"] >= 30, connections
    assert len(connections["failed"]) <= 2, "those before the server listened"
    assert names_asked["done"] >= 5, names_asked
    assert {failed.split(" at ")[0] for failed in names_asked["failed"]} == {"name unknown.test"}


def _report(program: subprocess.Popen[str]) -> dict[str, Any]:
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdin.write("\n")
    program.stdin.flush()
    said: dict[str, Any] = json.loads(program.stdout.readline())
    assert not said["faults"], said
    return said


def _name_server(listening: socket.socket, over: threading.Event) -> None:
    """One answer for the known name, NXDOMAIN for others."""
    listening.settimeout(0.1)
    while not over.is_set():
        with suppress(TimeoutError):
            query, peer = listening.recvfrom(512)
            known = b"\x05known" in query
            head = query[:2] + (b"\x81\x80" if known else b"\x81\x83") + bytes((0, 1, 0, known, 0, 0, 0, 0))
            record = b"\xc0\x0c\0\1\0\1\0\0\0\5\0\4\xc0\0\2\1" if known else b""
            listening.sendto(head + query[12:] + record, peer)


def test_labels_and_policies_are_as_large_as_they_say() -> None:
    asked: list[tuple[str, Any]] = []

    class Listener:
        def merge(self, path: str, body: Any) -> None:
            asked.append((path, body))

        create = merge

    api: Any = Listener()
    for attack in ("bombs", "relabel", "policies", "services"):
        step = tenant.ATTACKS[attack][0](api, "x", "p")
        for count in range(7):
            step(count)
    bombs = [body["metadata"]["labels"] for path, body in asked[:7]]
    assert 600_000 < sum(len(key) + len(value) for key, value in bombs[0].items()) < 750_000
    assert {key for key, value in bombs[1].items() if value is None} == set(bombs[0])
    assert all(len(key.split("/")[0]) <= 253 and len(key.split("/")[1]) <= 63 for key in bombs[6])
    assert len({str(body) for path, body in asked[7:14]}) == 7
    assert sum("ipBlock" in str(body) for _, body in asked[14:21]) == 5
    assert {len(body["spec"]["ports"]) for _, body in asked[21:]} == {1000}


def test_a_stolen_key_is_tried_on_a_real_server(nats_server: NatsServer) -> None:
    seed = nats_server.seeds / "dataplane-n3.seed"
    loot = Loot(url=nats_server.url, seed=seed, trust={}, node="n3", victim="n1", address="10.244.1.7")
    answers = iter([True, False])
    outcome = asyncio.run(steal(loot, lambda: next(answers), unheard))
    assert outcome.tried > 100
    assert outcome.denied > 50, "the server refuses what the key does not grant"
    assert not outcome.answered


def test_it_refuses_the_network_of_whoever_started_it() -> None:
    command = [sys.executable, "-I", str(SCRIPT), "syn", "--target", "127.0.0.1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert "start it by nsenter" in done.stderr
