"""The whole agent with two switches that run BIRD: what a stream of packets loses when a switch, a link or the agent's
loop fails.

The stream is many flows to an address behind both switches, over both by ECMP; what does not arrive is counted.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from linux.netns import command, inside, open_netns
from proto.codec import kind_prefix, object_key
from proto.objects import KIND_OF, BGPConfiguration, BGPFilter, BGPPeer, FelixConfiguration, IPPool, Node
from proto.subjects import OBJECTS
from proto.sync import Complete, complete_key
from services.routing.app import build
from services.routing.bfd.messages import LOCK
from services.routing.learnt import LearntRoutes, Pass
from services.routing.settings import Settings
from tests.conftest import BusFor
from tests.natsd import NatsServer, runtime_of
from tests.netns.routing.bfd.ends import FIRST, need
from tests.netns.routing.conftest import Mesh, Netns
from tests.netns.routing.test_learnt import Fabric, links

pytestmark = pytest.mark.privileged
BEHIND = {4: "192.0.2.1", 6: "2001:db8::1"}
FLOWS, PERIOD = 16, 0.01
"""Of each family; seconds between two packets of a flow."""
SECOND = int(2 * FLOWS / PERIOD)
"""Packets of a second."""
PATIENCE = 60.0
MANY = 20_000
PORT = 7


class Switch:
    """BIRD in a switch's namespace."""

    def __init__(self, netns: Netns, number: int, folder: Path) -> None:
        folder.mkdir()
        self.netns = netns
        self._number = number
        self._folder = folder
        self._program, self._client = need("bird", "bird2"), need("birdc", "bird2")
        self._running: subprocess.Popen[bytes] | None = None

    def start(self, *words: str, bfd: str = "on", more: int = 0) -> None:
        """``more``: other prefixes that it announces beside the address behind it."""
        others = "".join(f"route 11.{n >> 8}.{n & 255}.0/24 blackhole; " for n in range(more))
        (self._folder / "bird.conf").write_text(
            f"""log "{self._folder / "bird.log"}" all;
            router id 192.0.2.{10 + self._number};
            protocol device {{ scan time 1; }}
            protocol static s4 {{ ipv4; route {BEHIND[4]}/32 blackhole; {others}}}
            protocol static s6 {{ ipv6; route {BEHIND[6]}/128 blackhole; }}
            protocol bfd {{ interface "node" {{ interval 50 ms; multiplier 3; idle tx interval 100 ms; }}; }}
            protocol bgp node {{
              local 172.31.{self._number}.1 as 65001; neighbor 172.31.{self._number}.2 as 64512; direct;
              bfd {bfd}; graceful restart on; hold time 9; connect delay time 1; connect retry time 2;
              error wait time 1, 5;
              ipv4 {{ import all; export all; next hop self; }};
              ipv6 {{ import all; export all; next hop self; }};
            }}
            """
        )
        program = [self._program, "-f", "-c", "bird.conf", "-s", "bird.ctl", *words]
        self._running = subprocess.Popen(
            command(str(self.netns.path), *FIRST, *program), cwd=self._folder, stderr=subprocess.DEVNULL
        )

    def kill(self) -> None:
        if self._running is not None:
            self._running.kill()
            self._running.wait(PATIENCE)
            self._running = None

    def ask(self, words: str) -> str:
        done = subprocess.run(
            [self._client, "-s", "bird.ctl", *words.split()],
            cwd=self._folder,
            check=False,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        return done.stdout

    @property
    def bgp(self) -> str:
        """State and since when: a row of ``show protocols``."""
        return next((line for line in self.ask("show protocols").splitlines() if line.startswith("node ")), "")

    @property
    def bfd(self) -> str:
        """The same of BFD."""
        rows = (line for line in self.ask("show bfd sessions").splitlines() if " node " in line)
        return next((" ".join(line.split()[:4]) for line in rows), "")

    def drop_everything(self) -> None:
        """Every packet by the link to the node is lost, and nobody is told."""
        rules = """table inet dead {
          chain in { type filter hook prerouting priority -400; iifname "node" drop; }
          chain out { type filter hook postrouting priority 400; oifname "node" drop; }
        }"""
        words = command(str(self.netns.path), "nft", "-f", "-")
        subprocess.run(words, input=rules, text=True, check=True, timeout=PATIENCE)


def socket_in(netns: Netns, version: int, address: str, port: int) -> socket.socket:
    descriptor = open_netns(str(netns.path))
    try:
        with inside(descriptor):
            made = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    finally:
        os.close(descriptor)
    made.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
    made.bind((address, port))
    made.setblocking(False)
    return made


class Stream:
    """Flows from the node to what is behind both switches, from a thread of its own."""

    def __init__(self, fabric: Fabric) -> None:
        self._flows = [
            (version, flow, socket_in(fabric.node, version, "::" if version == 6 else "0.0.0.0", 0))
            for version in (4, 6)
            for flow in range(FLOWS)
        ]
        self._ends = [
            [socket_in(router, version, BEHIND[version], PORT) for version in (4, 6)] for router in fabric.routers
        ]
        self._going = True
        self.sent = 0
        self.refused = 0
        """Sends that the kernel of the node refused."""
        self.arrived: list[set[bytes]] = [set(), set()]
        """By switch."""
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def _send(self) -> None:
        due = time.monotonic()
        while self._going:
            for version, flow, opened in self._flows:
                try:
                    opened.sendto(struct.pack("!BBI", version, flow, self.sent), (BEHIND[version], PORT))
                except OSError:
                    self.refused += 1
                self.sent += 1
            self._take()
            due += PERIOD
            time.sleep(max(0.0, due - time.monotonic()))

    def _take(self) -> None:
        for arrived, ends in zip(self.arrived, self._ends, strict=True):
            for end in ends:
                with suppress(BlockingIOError):
                    while True:
                        arrived.add(end.recv(64))

    def taken(self) -> list[int]:
        """Packets that came to each switch so far."""
        return [len(arrived) for arrived in self.arrived]

    async def goes_on(self, packets: int) -> None:
        """Until so many more are sent."""
        until_sent = self.sent + packets
        await until(lambda: self.sent >= until_sent)

    def lost(self) -> int:
        """Ends it; packets that did not arrive anywhere."""
        self._going = False
        self._thread.join(PATIENCE)
        time.sleep(0.2)  # what is on the way between namespaces
        self._take()
        lost = self.sent - len(self.arrived[0] | self.arrived[1])
        families = Counter(one[0] for arrived in self.arrived for one in arrived)
        print(f"sent {self.sent}, arrived {self.taken()} {dict(families)}, lost {lost}, refused {self.refused}")
        return lost

    def close(self) -> None:
        self._going = False
        self._thread.join(PATIENCE)
        for opened in [one for _, _, one in self._flows] + [one for ends in self._ends for one in ends]:
            opened.close()


@contextmanager
def stream(fabric: Fabric) -> Iterator[Stream]:
    made = Stream(fabric)
    try:
        yield made
    finally:
        made.close()


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0.05)


class Town:
    """A node with its agent, and two switches."""

    def __init__(self, fabric: Fabric, switches: tuple[Switch, Switch]) -> None:
        self.fabric = fabric
        self.switches = switches

    def ways(self) -> list[set[str]]:
        """Links by which the address behind is reached, by family."""
        return [self.fabric.routes(version).get(BEHIND[version], set()) for version in (4, 6)]

    async def lead_by(self, *interfaces: str) -> None:
        """Until routes of both families have these links."""
        await until(lambda: self.ways() == [set(interfaces)] * 2)

    async def up(self) -> None:
        """Until BGP and BFD are up with both, and packets go by both."""
        await until(lambda: all("Established" in one.bgp and " Up" in one.bfd for one in self.switches))
        await self.lead_by("tor0", "tor1")
        everyone = (
            self.fabric.node,
            *self.fabric.routers,
        )  # neighbors are asked from a link-local address, after its DAD
        await until(lambda: not any("tentative" in one.ip("-6 address") for one in everyone))


async def furnish(mesh: Mesh, bus_for: BusFor) -> None:
    """What a cluster's objects say: a node, and two peers of it."""
    objects = (await bus_for("cluster")).bucket(OBJECTS)
    node = Node("n1", "uid-n1", addresses=(ip_address("10.9.9.9"), ip_address("fd00:9::9")))
    peers = [BGPPeer(f"tor-{n}", peer_ip=ip_address(f"172.31.{n}.1"), asn=65001) for n in (0, 1)]
    await objects.put(object_key(node), node)
    for one in peers:
        await objects.put(object_key(one), one)
    for kind in (BGPConfiguration, BGPFilter, BGPPeer, IPPool, Node, FelixConfiguration):
        await objects.put(complete_key(kind_prefix(KIND_OF[kind])), Complete(mesh.epochs["objects"]))
    await mesh.complete()


def settings_of(server: NatsServer, folder: Path) -> Settings:
    return Settings(
        nats_url=server.url,
        nats_seed_file=server.seeds / "routing-n1.seed",
        nats_user="routing-n1",
        instance=f"routing-n1-{uuid.uuid4().hex[:6]}",
        node="n1",
        uplinks=("tor0", "tor1"),
        loopback="lo",
        state_dir=folder,
        wireguard_sockets=folder / "sockets",
    )


def end_process(folder: Path) -> None:
    """Ends the BFD process of this test, which would go on for two minutes."""
    with suppress(OSError, ValueError):
        pid = int((folder / LOCK).read_text())
        if str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, 9)


@pytest.fixture
async def town(nats_server: NatsServer, mesh: Mesh, bus_for: BusFor, tmp_path: Path) -> AsyncIterator[Town]:
    await furnish(mesh, bus_for)
    with links(uuid.uuid4().hex[:6]) as fabric:
        switches = Switch(fabric.routers[0], 0, tmp_path / "a"), Switch(fabric.routers[1], 1, tmp_path / "b")
        try:
            settings = settings_of(nats_server, tmp_path)
            async with runtime_of(nats_server, "routing", "n1", settings=settings) as runtime:
                await build(runtime, fabric.node.path)
                yield Town(fabric, switches)
        finally:
            for one in switches:
                one.kill()
            end_process(tmp_path / "bfd")


async def test_a_switch_whose_speaker_is_killed_goes_on_forwarding(town: Town) -> None:
    """A graceful restart of the peer (RFC 4724), and BFD that shares the speaker's fate: no packet is lost."""
    for one in town.switches:
        one.start()
    await town.up()
    with stream(town.fabric) as flows:
        await flows.goes_on(SECOND)
        town.switches[0].kill()
        before = flows.taken()
        await flows.goes_on(3 * SECOND)
        assert town.ways() == [{"tor0", "tor1"}] * 2
        assert all(after > count for after, count in zip(flows.taken(), before, strict=True)), "both are used"
        town.switches[0].start("-R")
        await town.up()
        assert flows.lost() == 0


async def test_a_link_that_loses_everything_is_left_within_a_second(town: Town) -> None:
    for one in town.switches:
        one.start()
    await town.up()
    with stream(town.fabric) as flows:
        await flows.goes_on(SECOND)
        town.switches[0].drop_everything()
        await flows.goes_on(3 * SECOND)
        await town.lead_by("tor1")
        assert "Established" in town.switches[1].bgp
        assert 0 < flows.lost() <= SECOND / 2, "half of a second's packets take that link"


async def test_packets_leave_before_a_large_table_is_decided(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """The groups of both families change first; the routes follow when they have been decided on, however late."""
    decided, apply = asyncio.Event(), LearntRoutes.apply
    decided.set()

    async def late(routes: LearntRoutes, **what: Any) -> Pass:
        await decided.wait()
        return await apply(routes, **what)

    monkeypatch.setattr(LearntRoutes, "apply", late)
    for one in town.switches:
        one.start(more=MANY)
    await town.up()
    await until(lambda: len(town.fabric.routes(4)) > MANY)
    await town.lead_by("tor0", "tor1")
    with stream(town.fabric) as flows:
        await flows.goes_on(SECOND)
        decided.clear()
        town.switches[0].drop_everything()
        await flows.goes_on(2 * SECOND)
        await town.lead_by("tor1")
        decided.set()
        assert 0 < flows.lost() <= SECOND / 4, "half a second"


async def test_a_link_that_goes_down_is_left_at_once_and_taken_again(town: Town) -> None:
    for one in town.switches:
        one.start()
    await town.up()
    with stream(town.fabric) as flows:
        await flows.goes_on(SECOND)
        town.switches[0].netns.ip("link set node down")
        await flows.goes_on(2 * SECOND)
        await town.lead_by("tor1")
        town.switches[0].netns.ip("link set node up")
        town.switches[0].netns.ip("addr replace fd00:31:0::1/64 dev node nodad")
        await town.up()
        assert flows.lost() <= SECOND / 4, "the kernel is slow to say that a carrier is gone, then BFD is first"


async def test_a_loop_that_is_held_for_five_seconds_loses_no_session(town: Town) -> None:
    for one in town.switches:
        one.start()
    await town.up()
    before = [(one.bgp, one.bfd) for one in town.switches]
    with stream(town.fabric) as flows:
        await flows.goes_on(SECOND)
        time.sleep(5)  # the agent computes, or waits for a disk
        await flows.goes_on(SECOND)
        assert [(one.bgp, one.bfd) for one in town.switches] == before
        assert flows.lost() == 0


async def test_a_switch_without_bfd_keeps_its_session(town: Town) -> None:
    """BFD that was never up ends nothing (RFC 5882 4.3, not strict)."""
    town.switches[0].start(bfd="off")
    town.switches[1].start()
    await until(lambda: all("Established" in one.bgp for one in town.switches))
    await town.lead_by("tor0", "tor1")
    before = town.switches[0].bgp
    town.switches[1].drop_everything()
    await town.lead_by("tor0")
    assert town.switches[0].bgp == before
