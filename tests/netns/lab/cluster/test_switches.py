"""A fabric of two top-of-rack switches on a real kernel, with BIRD in place of each node's own speaker.

Each node announces a block of pods' addresses as any speaker would that has been given the two BGPPeers of
`ai-bgp-ecmp.yaml`, and takes what it is sent. So what is proved is the fabric: its wiring, its routing daemons, and
what happens when a part of it dies.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
import pytest_asyncio

from lab.cluster import down, fabric, launch, leftovers, namespaces, switches, up
from lab.cluster.capture import Capture
from lab.cluster.launch import Launcher
from lab.cluster.packets import PLAIN
from lab.cluster.record import Record, write_record
from lab.cluster.sessions import Bfd, Sessions
from lab.images import build
from lab.paths import Paths, Settings, paths, settings
from lab.topology import NODE_ASN, Fabric, Host, LabError, Switch, SwitchDaemon, Topology
from lab.tour.multipath import Stage
from lab.tour.outage import outage
from lab.tour.probes import Pod, Port
from lab.tour.shell import Hands
from linux.netns import command

pytestmark = pytest.mark.privileged
SECONDS = 60.0
ANYCAST = "203.0.113.7"
"""An address that all nodes announce, as that of a Service."""
NODE = """
log stderr all;
router id {own4};
protocol device {{ scan time 5; }}
protocol bfd {{ interface "fab*" {{ interval 200 ms; multiplier 3; }}; }}
protocol static pods4 {{ ipv4; route {block4} unreachable; route {anycast}/32 unreachable; }}
protocol static pods6 {{ ipv6; route {block6} unreachable; }}
protocol kernel kernel4 {{
  merge paths on limit 8;
  ipv4 {{ import none; export filter {{ if source != RTS_BGP then reject; krt_prefsrc = {own4}; accept; }}; }};
}}
protocol kernel kernel6 {{
  merge paths on limit 8;
  ipv6 {{ import none; export filter {{ if source != RTS_BGP then reject; krt_prefsrc = {own6}; accept; }}; }};
}}
template bgp tor {{
  local as {asn}; graceful restart on; connect delay time 1; error wait time 1, 5; {session}
  ipv4 {{ import all; export where source = RTS_STATIC; extended next hop on; }};
  ipv6 {{ import all; export where source = RTS_STATIC; }};
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The switches and nodes of one lab, without Kubernetes."""

    where: Paths
    topology: Topology
    launcher: Launcher

    @property
    def nodes(self) -> tuple[Host, ...]:
        return self.topology.nodes

    async def speak(self, node: Host, over: Sequence[int] = (4,), session: str = "bfd on;") -> None:
        """Start a node's BIRD, with sessions ``over`` IPv4, IPv6 or both."""
        text = NODE.format(
            own4=node.fabric4,
            own6=node.fabric6,
            block4=f"{pod(node, 4) - 1}/26",
            block6=f"{pod(node, 6) - 1}/122",
            anycast=ANYCAST,
            asn=NODE_ASN,
            session=session,
        )
        for switch in self.topology.switches:
            name, port = switch.name.replace("-", "_"), switch.port(node.name)
            for version in over:
                peer = f"neighbor {port.local(version)} as {switch.asn};"
                text += f"protocol bgp {name}_v{version} from tor {{ {peer} }}\n"
        of = self.where.node(node.name)
        for folder in (of.state, of.run):
            folder.mkdir(parents=True)
        (of.state / "node.conf").write_text(text)
        argv = ["bird", "-f", "-c", str(of.state / "node.conf"), "-s", str(of.run / "bird.ctl")]
        await self.launcher.start(f"speaker-{node.name}", command(node.netns, *argv))
        await asyncio.to_thread(namespaces.batch, [f"addr add {pod(node, v)} dev lo" for v in (4, 6)], node.namespace)

    def ask(self, node: Host, *words: str) -> str:
        """What a node's BIRD answers."""
        return namespaces.run(["birdc", "-r", "-s", str(self.where.node(node.name).run / "bird.ctl"), *words])

    async def until(self, what: str, holds: Callable[[], bool]) -> None:
        """Wait for what becomes true of kernel or daemons; that it never does is a failed assertion."""

        async def ready() -> bool:
            return await asyncio.to_thread(holds)

        try:
            await self.launcher.until(what, ready, seconds=SECONDS)
        except LabError as late:
            shown = [f"{node.name}:\n{self.ask(node, 'show', 'protocols')}" for node in self.nodes]
            raise AssertionError("\n".join([str(late), *shown])) from late

    async def until_links(self, source: Host, targets: Sequence[object], links: set[str]) -> None:
        """Wait until a node sends to these addresses by exactly these links."""

        def all_by_links() -> bool:
            return all(paths_to(source, one) == links for one in targets)

        await self.until(f"{source.name} to {targets} by {links}", all_by_links)


def pod(node: Host, version: int) -> IPv4Address | IPv6Address:
    """The first address of a node's block of pods."""
    number = node.name[1:]
    return IPv4Address(f"10.244.{number}.1") if version == 4 else IPv6Address(f"fd00:10:244:{number}::1")


def paths_to(host: Host, target: object) -> set[str]:
    """Links of the longest route to an address of another host, by the kernel's table; those that are down left out."""
    family = "-6" if ":" in str(target) else "-4"
    argv = ["ip", family, "-json", "-n", host.namespace, "route", "show", "match", str(target)]
    specific = [one for one in json.loads(namespaces.run(argv)) if one["dst"] != "default"]
    hops = [hop for one in specific for hop in one.get("nexthops", [one])]
    return {hop["dev"] for hop in hops if "linkdown" not in hop.get("flags", ())}


@pytest_asyncio.fixture
async def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Launcher]:
    """The supervisor of a lab that nobody else has; nothing of the lab is left at the end."""
    run = Path("/tmp") / f"am{uuid.uuid4().hex[:6]}"
    monkeypatch.setenv("AIRMESH_LABS", str(tmp_path / "labs"))
    monkeypatch.setenv("AIRMESH_RUN", str(run))
    where = paths("t" + uuid.uuid4().hex[:6], Settings(labs=tmp_path / "labs", run=run, cache=tmp_path / "cache"))
    for folder in (where.state, where.run, where.logs):
        folder.mkdir(parents=True)
    try:
        begun = await launch.begin(where)
        yield begun
        begun.close()
    finally:
        left = down.down(where, lambda _: None)
    assert left == []
    run.rmdir()


async def world(
    launcher: Launcher, nodes: int, daemon: SwitchDaemon = SwitchDaemon.BIRD, bfd: Bfd = Bfd.GRACEFUL
) -> World:
    """Switches that lead to their hosts; no node speaks yet."""
    if shutil.which(switches.VENDORS[daemon].program) is None:
        pytest.skip(f"{switches.VENDORS[daemon].package} is not installed")
    record = Record(lab=launcher.where.lab, nodes=nodes, fabric=Fabric.TOR, switch=daemon)
    write_record(launcher.where, record)
    await asyncio.to_thread(namespaces.make, record.topology)
    await switches.start_all(launcher, record.topology, daemon, Sessions(bfd=bfd))
    return World(where=launcher.where, topology=record.topology, launcher=launcher)


async def spoken(
    launcher: Launcher,
    nodes: int = 3,
    daemon: SwitchDaemon = SwitchDaemon.BIRD,
    over: Sequence[int] = (4,),
    bfd: Bfd = Bfd.GRACEFUL,
) -> World:
    """All nodes have both paths to all others' pods."""
    made = await world(launcher, nodes, daemon, bfd)
    for node in made.nodes:
        await made.speak(node, over)
    for node in made.nodes:
        others = [pod(other, v) for other in made.nodes if other != node for v in (4, 6)]
        await made.until_links(node, others, {"fab0", "fab1"})
    return made


def ping(host: Host, target: object) -> bool:
    argv = command(host.netns, "busybox", "ping", "-c", "1", "-W", "2", str(target))
    return subprocess.run(argv, capture_output=True, check=False, timeout=20).returncode == 0


ONE_HOP = """
import socket, sys
six = ":" in sys.argv[1]
made = socket.socket(socket.AF_INET6 if six else socket.AF_INET)
made.setsockopt(*((socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 1) if six else (socket.IPPROTO_IP, socket.IP_TTL, 1)))
made.settimeout(20)
print(made.connect_ex((sys.argv[1], 9)))
"""


def answered_within_one_hop(host: Host, target: object) -> int:
    """Why a connection fails that nobody may forward: refused by a neighbor, or a router is in between."""
    argv = command(host.netns, sys.executable, "-I", "-c", ONE_HOP, str(target))
    return int(subprocess.run(argv, capture_output=True, text=True, check=True, timeout=20).stdout)


@pytest.mark.parametrize("daemon", list(SwitchDaemon))
async def test_hosts_reach_each_other_before_anything_on_them_speaks_bgp(
    launcher: Launcher, daemon: SwitchDaemon
) -> None:
    made = await world(launcher, 2, daemon)
    n1, n2 = made.nodes
    outside = made.topology.outside_uplinks[0]
    for target in (n2.fabric4, n2.fabric6, made.topology.control.fabric4, made.topology.control.fabric6):
        assert ping(n1, target)
        assert answered_within_one_hop(n1, target) == errno.EHOSTUNREACH, "a switch is a hop: no layer-2 network"
    assert ping(n1, outside.own4)
    assert ping(n1, outside.own6)
    assert not ping(n1, pod(n2, 4)), "the switches know an address of a pod from nobody"


@pytest.mark.parametrize(("daemon", "over"), [("bird", (4,)), ("bird", (6,)), ("bird", (4, 6)), ("frr", (4, 6))])
async def test_every_prefix_reaches_every_node_by_both_switches(
    launcher: Launcher, daemon: str, over: tuple[int, ...]
) -> None:
    made = await spoken(launcher, daemon=SwitchDaemon(daemon), over=over)
    for node in made.nodes:
        for version in (4, 6):
            own = made.ask(node, "show", "route", "for", str(pod(node, version)), "all")
            assert "tor_" not in own, f"a switch sent {node.name} what it had from it:\n{own}"
            others = [other for other in made.nodes if other != node]
            assert all(ping(node, pod(other, version)) for other in others)
    n1, n2, _ = made.nodes
    learnt = made.ask(n1, "show", "route", "for", str(pod(n2, 4)), "all")
    assert {line.split(": ")[1] for line in learnt.splitlines() if "as_path" in line} == {"65001 65001", "65002 65002"}
    for switch in made.topology.switches:
        expected = {f"{node.name}_v{version}" for node in made.nodes for version in over}
        expected.add(made.topology.other_switch(switch).name.replace("-", "_"))

        def all_up(one: Switch = switch, wanted: Set[str] = expected) -> bool:
            return {name for name, up in switches.sessions(made.where, one.name).items() if up} == wanted

        def spread(one: Switch = switch) -> bool:
            return links_of(one.namespace, ANYCAST) == len(made.nodes)

        await made.until("all sessions", all_up)
        await made.until("what all nodes announce is spread over all of them", spread)
    await made.until("a summary", lambda: f"{1 + 3 * len(over)} of 7 sessions up" in fabric.summary(made.where))


def next_link(switch: Switch, target: object) -> str:
    """The link by which a switch sends to an address."""
    shown = json.loads(namespaces.run(["ip", "-json", "-n", switch.namespace, "route", "get", str(target)]))
    return str(shown[0]["dev"])


def links_of(namespace: str, target: str) -> int:
    """By how many links a route to exactly this address leads."""
    shown = json.loads(namespaces.run(["ip", "-json", "-n", namespace, "route", "show", target]))
    return len({hop["dev"] for one in shown for hop in one.get("nexthops", [one])})


ECHO = """
import selectors, socket, sys
poll = selectors.DefaultSelector()
for address in sys.argv[1:]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = socket.create_server((address, 7000), family=family, backlog=256)
    listening.setblocking(False)
    poll.register(listening, selectors.EVENT_READ, True)
print("ready", flush=True)
while True:
    for key, _ in poll.select():
        if key.data:
            made, _ = key.fileobj.accept()
            made.setblocking(False)
            poll.register(made, selectors.EVENT_READ, False)
            continue
        text = key.fileobj.recv(64)
        if not text:
            poll.unregister(key.fileobj)
            key.fileobj.close()
        else:
            key.fileobj.send(text)
"""
TALK = """
import socket, sys
source, target, flows = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in target else socket.AF_INET
made = []
for _ in range(flows):
    one = socket.socket(family)
    one.settimeout(25)
    one.bind((source, 0))
    one.connect((target, 7000))
    made.append(one)
print("ready", flush=True)
for line in sys.stdin:
    for one in made:
        one.send(line.encode())
    for one in made:
        assert one.recv(64) == line.encode()
    print("all", len(made), flush=True)
"""


@contextmanager
def program(host: Host, text: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A Python program on a host, which has said that it is ready."""
    argv = command(host.netns, sys.executable, "-I", "-c", text, *map(str, arguments))
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == "ready\n"
            yield running
        finally:
            running.kill()


class Flows:
    """TCP connections between the pods of two nodes, in both families, each of which must go on."""

    def __init__(self, talkers: Sequence[subprocess.Popen[str]], count: int) -> None:
        self._talkers, self._count = talkers, count

    async def go_on(self, when: str) -> None:
        """Every connection carries a line and its echo."""
        for talker in self._talkers:
            assert talker.stdin is not None
            assert talker.stdout is not None
            talker.stdin.write(when[:8] + "\n")
            talker.stdin.flush()
            said = await asyncio.to_thread(talker.stdout.readline)
            assert said == f"all {self._count}\n", f"connections were lost: {when}"


@contextmanager
def flows(source: Host, target: Host, count: int = 32) -> Iterator[Flows]:
    echo = program(target, ECHO, pod(target, 4), pod(target, 6))
    talk = [program(source, TALK, pod(source, version), pod(target, version), count) for version in (4, 6)]
    with echo, talk[0] as four, talk[1] as six:
        yield Flows((four, six), count)


@pytest.mark.parametrize("daemon", [SwitchDaemon.BIRD, pytest.param(SwitchDaemon.FRR, marks=pytest.mark.slow)])
async def test_connections_outlive_a_switch_and_come_back_to_it(launcher: Launcher, daemon: SwitchDaemon) -> None:
    made = await spoken(launcher, daemon=daemon)
    n1, n2, _ = made.nodes
    targets = [pod(n2, 4), pod(n2, 6), n2.fabric4, n2.fabric6]
    with flows(n1, n2) as connections:
        await connections.go_on("at first")
        await switches.kill(made.where, "tor-b")
        await made.until_links(n1, targets, {"fab0"})
        await connections.go_on("one switch's daemon is dead")
        assert links_of("am-" + made.where.lab + "-tor-b", str(n2.fabric4)) == 1, "its kernel forwards on"
        assert "tor-b (AS 65002): its daemon does not run" in fabric.summary(made.where)
        await switches.restart(made.where, "tor-b")
        await made.until_links(n1, targets, {"fab0", "fab1"})
        await connections.go_on("it is back")
        switches.cut(made.where, "tor-a")
        await made.until_links(n1, targets, {"fab1"})
        await connections.go_on("the other has no power")
        switches.mend(made.where, "tor-a")
        await made.until_links(n1, targets, {"fab0", "fab1"})
        await connections.go_on("both are back")


class InNodes(Hands):
    """The tour's, where the pods are nodes: `shop` runs in the namespace of a node."""

    def __init__(self, shop: Path, topology: Topology) -> None:
        self._shop, self._topology, self._environment = str(shop), topology, launch.environment()

    def inside(self, pod: str, *shop: str) -> list[str]:
        node = next(one for one in self._topology.nodes if pod.endswith(one.name))
        return command(node.netns, self._shop, *shop)


def tour_pod(node: Host, *addresses: IPv4Address | IPv6Address) -> Pod:
    """A pod of the tour that stands for a node."""
    return Pod(
        namespace="nodes", name=node.name, uid=node.name, workload=node.name, node=node.name, addresses=addresses,
        ports=(), labels=(), ready=True,
    )  # fmt: skip


@pytest.mark.timeout(300)
async def test_the_tours_connections_outlive_either_switch_and_a_lost_one_is_said(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await spoken(launcher, 2)
    n1, n2 = made.nodes
    shop = (await build.build_all((build.SHOP,), settings().cache, lambda _: None))["shop"]
    await launcher.start("echo", command(n2.netns, str(shop), "serve", "--tcp", "5432"))
    there = tour_pod(n2, pod(n2, 4), pod(n2, 6))
    ends = tour_pod(n1, n1.fabric4, n1.fabric6), there, Port(number=5432, protocol="tcp", name="postgres")
    await made.until("both lead by both", lambda: switches.joined(made.topology))

    async def walk() -> list[Stage]:
        return await outage(InNodes(shop, made.topology), made.where, made.topology, ends)

    seen = await walk()
    assert [one.disagreement for one in seen] == [""] * 5
    assert [one.seen["tor-a"] for one in seen][3] == 0
    assert seen[3].seen["tor-b"] == seen[0].flows == 64
    assert switches.joined(made.topology), "both are as they were"

    monkeypatch.setattr("lab.tour.outage._HELD_SECONDS", 0.0)  # how long a fault stands says nothing of what is lost
    monkeypatch.setattr("lab.tour.outage._LOOK_SECONDS", 0.2)

    def held() -> bool:
        listed = namespaces.run(command(n2.netns, "ss", "-Htn", "state", "established", "sport", "=", "5432"))
        return listed.count("\n") >= seen[0].flows

    async def end_the_echo() -> None:
        await made.until("the connections", held)
        os.kill((await launcher.states())["echo"].pid, signal.SIGKILL)

    lost, _ = await asyncio.gather(walk(), end_the_echo())
    assert lost[-1].disagreement.endswith("64 of 64 connections were lost (EOF)")


async def test_a_link_that_is_cut_is_gone_around_and_one_that_loses_all_is_seen_by_bfd(launcher: Launcher) -> None:
    made = await spoken(launcher, bfd=Bfd.ON)
    n1, n2, _ = made.nodes
    tor_a = made.topology.switch("tor-a")
    targets = [pod(n2, 4), pod(n2, 6)]

    with flows(n1, n2) as connections:
        switches.cut(made.where, "tor-a", ["n1"])
        await made.until_links(n1, targets, {"fab1"})
        own = (n1.fabric4, n1.fabric6, pod(n1, 4), pod(n1, 6))
        await made.until("the way round", lambda: {next_link(tor_a, one) for one in own} == {"isl0"})
        await connections.go_on("one cable is cut")
        assert all(ping(n2, one) for one in own)
        assert "p-n1 is down" in fabric.summary(made.where)
        switches.mend(made.where, "tor-a", ["n1"])
        await made.until_links(n1, targets, {"fab0", "fab1"})
        await made.until("the straight way", lambda: {next_link(tor_a, one) for one in own} == {"p-n1"})
        switches.lose(made.where, "tor-a", ["n1"])
        await made.until_links(n1, targets, {"fab1"})
        assert "BFD session down" in made.ask(n1, "show", "protocols", "all", "tor_a_v4")
        await connections.go_on("one cable loses all")
        assert "p-n1 loses all" in fabric.summary(made.where)
        switches.mend(made.where, "tor-a", ["n1"])
        await made.until_links(n1, targets, {"fab0", "fab1"})
        await connections.go_on("all cables are whole")


COUNT = """
table inet flows {{
  chain forward {{
    type filter hook forward priority filter; policy accept;
    ip daddr {four} udp dport 7001 counter comment "4"
    ip6 daddr {six} udp dport 7001 counter comment "6"
  }}
}}
"""
SPRAY = """
import socket, sys
for source, target in zip(sys.argv[1::2], sys.argv[2::2]):
    for _ in range(FLOWS):
        one = socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_DGRAM)
        one.bind((source, 0))
        one.sendto(b"x", (target, 7001))
        one.close()
print("ready", flush=True)
"""
FLOWS = 256
FAR = 5 * FLOWS**0.5 / 2
"""Five standard deviations of how many of so many flows take one of two equal paths."""


async def test_flows_are_spread_over_both_switches_by_their_ports(launcher: Launcher) -> None:
    made = await spoken(launcher, 2)
    n1, n2 = made.nodes
    for switch in made.topology.switches:
        text = COUNT.format(four=pod(n2, 4), six=pod(n2, 6))
        namespaces.run(command(f"/run/netns/{switch.namespace}", "nft", "-f", "-"), text)
    with Capture.of_lab(made.topology, [n1]) as wire:
        pairs = [str(pod(node, version)) for version in (4, 6) for node in (n1, n2)]
        with program(n1, SPRAY.replace("FLOWS", str(FLOWS)), *pairs):
            pass
        counts = [counted(switch.namespace) for switch in made.topology.switches]
    for family in ("4", "6"):
        assert sum(count[family] for count in counts) == FLOWS
        assert abs(counts[0][family] - FLOWS / 2) < FAR, f"IPv{family}: {counts}"
    seen = {packet.tunnel: count for packet, count in wire.of("n1").items() if packet.destination == pod(n2, 4)}
    assert seen == {PLAIN: FLOWS}, "a capture sees both switches' ports"


def counted(namespace: str) -> dict[str, int]:
    listed = namespaces.run(command(f"/run/netns/{namespace}", "nft", "--json", "list", "table", "inet", "flows"))
    rules = [one["rule"] for one in json.loads(listed)["nftables"] if "rule" in one]
    return {rule["comment"]: part["counter"]["packets"] for rule in rules for part in rule["expr"] if "counter" in part}


@pytest.mark.parametrize(
    ("daemon", "bfd", "kept"), [("bird", "graceful", 1), ("frr", "graceful", 1), ("bird", "on", 0)]
)
async def test_a_node_whose_speaker_is_killed_keeps_its_routes_unless_bfd_takes_them(
    launcher: Launcher, daemon: str, bfd: str, kept: int
) -> None:
    made = await spoken(launcher, 2, SwitchDaemon(daemon), bfd=Bfd(bfd))
    n1, n2 = made.nodes
    os.kill((await launcher.states())["speaker-n2"].pid, signal.SIGKILL)

    def lost() -> bool:
        return not any(switches.sessions(made.where, one.name)["n2_v4"] for one in made.topology.switches)

    await made.until("both sessions are lost", lost)
    for switch in made.topology.switches:
        await made.until("its routes", lambda one=switch: links_of(one.namespace, f"{pod(n2, 4) - 1}/26") == kept)  # type: ignore[misc]
    assert ping(n1, pod(n2, 4)) is bool(kept)
    assert ping(n1, pod(n2, 6)) is bool(kept)


@pytest.mark.parametrize("daemon", list(SwitchDaemon))
async def test_a_session_needs_the_switchs_password(launcher: Launcher, daemon: SwitchDaemon) -> None:
    made = await world(launcher, 2, daemon)
    n1, n2 = made.nodes
    for switch in made.topology.switches:
        await switches.kill(made.where, switch.name)
        assert not switches.sessions(made.where, switch.name)
        await switches.restart(made.where, switch.name, Sessions(passwords={"n1": "rack-7", "n2": "rack-7"}))
    await made.speak(n1, session='password "rack-7";')
    await made.speak(n2, session='password "rack-8";')
    await made.until_links(n1, [n2.fabric4, n2.fabric6], {"fab0", "fab1"})
    for switch in made.topology.switches:
        seen = switches.sessions(made.where, switch.name)
        assert (seen["n1_v4"], seen["n2_v4"]) == (True, False)


async def test_what_is_asked_of_no_switch_is_refused(launcher: Launcher) -> None:
    made = await world(launcher, 1)
    with pytest.raises(LabError, match="switch 'tor-c': this fabric has tor-a, tor-b"):
        switches.cut(made.where, "tor-c")
    with pytest.raises(LabError, match="host 'n2': switch tor-a has ports for out, cp, n1"):
        switches.cut(made.where, "tor-a", ["n2"])
    await switches.restart(made.where, "tor-a")
    assert all(state.restarts == 0 for state in (await made.launcher.states()).values()), "one that runs stays"
    write_record(made.where, replace_fabric(made.where, Fabric.FLAT))
    with pytest.raises(LabError, match="has a flat fabric, without switches"):
        await switches.kill(made.where, "tor-a")
    write_record(made.where, replace_fabric(made.where, Fabric.TOR))


def replace_fabric(where: Paths, wanted: Fabric) -> Record:
    return Record(lab=where.lab, nodes=1, fabric=wanted)


async def test_a_lab_on_its_way_up_has_its_switches_and_they_are_found_when_all_else_is_forgotten(
    launcher: Launcher,
) -> None:
    where = launcher.where
    launcher.close()
    assert down.down(where, lambda _: None) == []
    wanted = Record(lab=where.lab, nodes=1, fabric=Fabric.TOR)
    rise = up.Rise(where, wanted.topology, wanted, {})
    await rise.ground()
    rise.launcher.close()
    assert ping(wanted.topology.control, wanted.topology.nodes[0].fabric6)
    processes = leftovers.lab_processes(where)
    assert set(processes.values()) == {"supervisor", "bird-tor-a", "bird-tor-b"}
    (supervisor,) = (pid for pid, name in processes.items() if name == "supervisor")
    os.kill(supervisor, signal.SIGKILL)
    where.ledger.unlink()
    assert set(leftovers.lab_processes(where).values()) == {"bird"}
    assert down.down(where, lambda _: None) == []
