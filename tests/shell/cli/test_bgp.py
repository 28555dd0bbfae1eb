"""`airmesh bgp` against a real NATS server: two nodes' routers, with a session over loopback, answer for themselves."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry, generate_latest

from chassis.telemetry.traces import Telemetry
from proto import subjects
from proto.bgp import BgpRoutesRequest, BgpSessionsRequest
from proto.bgp_capture import BgpCaptureRequest
from proto.routes import NodeRoutes
from services.routing.bgp import answers
from services.routing.bgp.metrics import BgpMetrics, Totals
from services.routing.bgp.router import Reports, Router
from services.routing.bgp.traces import Traces
from services.routing.core.bgp import captures
from services.routing.core.bgp.next_hops import Way, Ways
from services.routing.core.bgp.peers import Peer, SessionSettings
from services.routing.core.bgp.resources import Speaker as Identity
from services.routing.core.bgp.session.table import State
from services.routing.core.bgp.values import Attributes, Family, Origin, Prefix, prefix_of
from services.routing.core.faults import Fault
from services.routing.core.learnt import Hop
from services.routing.learnt import Pass
from tests.conftest import BusFor
from tests.natsd import NatsServer, free_port
from tests.shell.cli.test_commands import ROOT, airmesh, environment

PATIENCE = 30.0
FAULT = Fault("BGPPeer rack names a password that is not there", "make the Secret")


class Routes:
    """Learnt routes of no kernel."""

    def __init__(self) -> None:
        self.present: dict[Prefix, tuple[Hop, ...]] = {}

    def replace(self, family: Family, prefixes: Iterable[Prefix], hops: Iterable[Hop]) -> None:
        self.present |= dict.fromkeys(prefixes, tuple(hops))

    def complete(self, family: Family) -> None:
        pass


WAYS = Ways(ways=(Way(ip_network("172.31.0.0/24"), 1, "eth0"),))
"""Next hops are on a link; addresses of sessions are on loopback, and can be none."""


@dataclass
class Node:
    """The router of 127.0.2.<number>, in AS 65000."""

    number: int
    port: int

    def __post_init__(self) -> None:
        self.woken = asyncio.Event()
        reports = Reports(changed=lambda *_: None, limited=lambda *_: None, unwritable=lambda *_: None)
        self.router = Router(Routes(), reports, self.woken.set)
        self.router.find_ways(WAYS)
        self.name = f"n{self.number}"
        self.traces = Traces(Telemetry("routing", self.name, {}))

    def peer(self, name: str, number: int, **more: Any) -> Peer:
        session: dict[str, Any] = {
            "address": ip_address(f"127.0.2.{number}"),
            "port": self.port,
            "local": ip_address(f"127.0.2.{self.number}"),
            "local_asn": 65000,
            "peer_asn": 65000,
            "router_id": ip_address(f"10.0.0.{self.number}"),
            "connect_retry_seconds": 1,
        }
        return Peer(name=name, session=SessionSettings(**(session | more)))

    def follow(self, *peers: Peer) -> None:
        own = ip_address(f"127.0.2.{self.number}")
        router_id: Any = ip_address(f"10.0.0.{self.number}")
        identity = Identity(asn=65000, router_id=router_id, listen_port=self.port)
        self.router.follow(identity, peers, {4: own})

    async def work(self) -> None:
        while True:
            await self.woken.wait()
            self.woken.clear()
            self.traces.begin(self.router)
            await self.traces.work(self.router)
            self.traces.end(self.router)


@pytest_asyncio.fixture
async def nodes() -> AsyncIterator[tuple[Node, Node]]:
    """n1 has a session with n2, and asks for one with 127.0.2.9, where nobody listens."""
    port = free_port()
    one, two = Node(1, port), Node(2, port)
    working = [asyncio.create_task(node.work()) for node in (one, two)]
    one.follow(one.peer("mesh/n2", 2), one.peer("rack/127.0.2.9", 9))
    two.follow(two.peer("mesh/n1", 1, password=None))
    for node, text in ((one, "10.1.0.0/26"), (two, "10.2.0.0/26")):
        hop = ip_address(f"172.31.0.{node.number}")
        node.router.announce({ip_network(text): Attributes(origin=Origin.IGP, next_hop=hop)})
    async with asyncio.timeout(PATIENCE):
        while not (one.router.rib.chosen(Family.IPV4).keys() == two.router.rib.chosen(Family.IPV4).keys() != set()):
            await asyncio.sleep(0.02)
        while one.router.speaker.states()["rack/127.0.2.9"].fault is None:
            await asyncio.sleep(0.02)
    yield one, two
    for task in working:
        task.cancel()
    for node in (one, two):
        node.router.close()


@pytest_asyncio.fixture
async def mesh(nodes: tuple[Node, Node], bus_for: BusFor, buckets: dict[str, str]) -> tuple[Node, Node]:
    """Their agents answer, as does that of n3, which nobody asks to speak."""
    assert buckets
    for node in (*nodes, None):
        name, router = (node.name, node.router) if node is not None else ("n3", None)
        bus = await bus_for("routing", name)
        if node is not None:
            node.traces = Traces(bus._telemetry)
        faults = (FAULT,) if name == "n2" else ()
        sessions = partial(answers.sessions, node=name, router=router, faults=faults)
        await bus.serve_everyone(subjects.BGP, BgpSessionsRequest, sessions)
        await bus.serve_everyone(
            subjects.BGP_ROUTES, BgpRoutesRequest, partial(answers.routes, node=name, router=router)
        )
        await bus.serve_everyone(
            subjects.BGP_CAPTURE, BgpCaptureRequest, partial(answers.capture, node=name, router=router)
        )
        await bus.bucket(subjects.ROUTES).put(name, NodeRoutes(name, (ip_address("172.30.0.1"),), ()))
    return nodes


@pytest.mark.usefixtures("mesh")
async def test_sessions_of_all_nodes_and_why_one_is_down(nats_server: NatsServer) -> None:
    output = await airmesh(environment(nats_server), "bgp", "-o", "json")
    assert output.code == 1, output
    report: Any = output.json
    assert [(one["node"], one["peer"], one["asn"], one["state"]) for one in report["sessions"] if not one["why"]] == [
        ("n1", "mesh/n2", 65000, "Established"),
        ("n2", "mesh/n1", 65000, "Established"),
    ]
    assert report["sessions"][0]["families"][0] == {"family": 4, "received": 1, "sent": 1, "stale": 0}
    assert report["without"] == ["n3"]
    assert report["silent"] == []
    assert report["faults"] == [{"node": "n2", "fault": FAULT.fault, "remedy": FAULT.remedy}]
    page = " ".join((await airmesh(environment(nats_server), "bgp", "--node", "n1", "--down")).out.split())
    assert "BGP sessions (1)" in page
    assert "rack/127.0.2.9" in page
    assert "refuses" in page or "refused" in page, page


async def test_well_is_who_has_all_that_is_asked_for(nats_server: NatsServer, mesh: tuple[Node, Node]) -> None:
    one, _ = mesh
    one.follow(one.peer("mesh/n2", 2))
    assert (await airmesh(environment(nats_server), "bgp", "--node", "n1")).code == 0
    assert (await airmesh(environment(nats_server), "bgp", "--node", "n2")).code == 1, "it has a fault"
    assert one.router.speaker.states()["mesh/n2"].state is State.ESTABLISHED


# What is asked; prefix, peer and standing of each path; the exit code.
ROUTES: tuple[tuple[str, list[tuple[str, str, str]], int], ...] = (
    ("--node n1", [("10.1.0.0/26", "", "best"), ("10.2.0.0/26", "mesh/n2", "best")], 0),
    ("10.2.0.7 --node n1", [("10.2.0.0/26", "mesh/n2", "best")], 0),
    ("--node n1 --peer n2", [("10.2.0.0/26", "mesh/n2", "best")], 0),
    ("--node n1 --sent", [("10.1.0.0/26", "mesh/n2", "sent")], 0),
    ("10.2.0.0/26 --node n1 --sent", [("10.2.0.0/26", "mesh/n2", "withheld")], 1),
    ("10.9.0.0/26 --node n1 --received", [], 1),
)


@pytest.mark.usefixtures("mesh")
async def test_routes_of_a_node(nats_server: NatsServer) -> None:
    for arguments, rows, code in ROUTES:
        output = await airmesh(environment(nats_server), "bgp", "routes", *arguments.split(), "-o", "json")
        assert output.code == code, output
        report: Any = output.json
        assert [(path["prefix"], path["peer"], path["standing"]) for path in report["paths"]] == rows, arguments


REFUSED = (
    ("bgp routes --node n7", 4, "no routing agent of n7 answers"),
    ("bgp routes --node n3", 4, "node n3 speaks no BGP"),
    ("bgp routes --node n1 --peer nobody", 4, "node n1 has no peer nobody"),
    ("bgp routes 10.1.2 --node n1", 2, "'10.1.2' is no prefix"),
)


@pytest.mark.usefixtures("mesh")
async def test_what_cannot_be_shown_is_one_sentence(nats_server: NatsServer) -> None:
    for arguments, code, says in REFUSED:
        output = await airmesh(environment(nats_server), *arguments.split())
        assert output.code == code, output
        assert says in output.err


@pytest.mark.usefixtures("buckets")
async def test_who_does_not_answer_is_named(nats_server: NatsServer, bus_for: BusFor) -> None:
    for name in ("n1", "n2"):
        bus = await bus_for("routing", name)
        await bus.bucket(subjects.ROUTES).put(name, NodeRoutes(name, (ip_address("172.30.0.1"),), ()))
        if name == "n1":
            await bus.serve_everyone(
                subjects.BGP, BgpSessionsRequest, partial(answers.sessions, node=name, router=None)
            )
    output = await airmesh(environment(nats_server), "bgp")
    assert output.code == 1, output
    assert "no routing agent answers for: n2" in output.out


@asynccontextmanager
async def capturing(server: NatsServer, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`airmesh bgp capture`, which has begun."""
    words = ("-m", "cli", "bgp", "capture", *arguments)
    pipe = asyncio.subprocess.PIPE
    running = await asyncio.create_subprocess_exec(
        sys.executable, *words, cwd=ROOT, env=environment(server), stdout=pipe, stderr=pipe
    )
    try:
        assert running.stderr is not None
        async with asyncio.timeout(PATIENCE):
            said = (await running.stderr.readline()).decode()
            assert said.startswith("airmesh: capturing "), said
            yield running
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()


async def test_messages_are_captured_as_they_come_both_ways(nats_server: NatsServer, mesh: tuple[Node, Node]) -> None:
    one, two = mesh
    async with capturing(nats_server, "n2", "--node", "n1", "--count", "2", "-o", "json") as running:
        one.router.announce({ip_network("10.1.0.64/26"): Attributes(origin=Origin.IGP)})
        two.router.announce({ip_network("10.2.0.64/26"): Attributes(origin=Origin.IGP)})
        out, err = await running.communicate()
        assert (running.returncode, err) == (0, b"")
    said = [json.loads(line) for line in out.decode().splitlines()]
    assert [one["node"] for one in said] == ["n1", "n1"]
    assert {one["message"]["peer"] for one in said} == {"mesh/n2"}
    found = {
        (
            one["message"]["direction"],
            one["message"]["type"],
            *(prefix for part in one["message"]["reachable"] for prefix in part["prefixes"]),
            *(prefix for part in one["message"]["withdrawn"] for prefix in part["prefixes"]),
        )
        for one in said
    }
    every = {
        ("sent", "UPDATE", "10.1.0.0/26"),
        ("sent", "UPDATE", "10.1.0.64/26"),
        ("received", "UPDATE", "10.2.0.0/26"),
        ("received", "UPDATE", "10.2.0.64/26"),
    }
    assert len(found) == 2
    assert found <= every


async def test_a_capture_ends_with_ctrl_c_and_sessions_report_nothing_more(
    nats_server: NatsServer, mesh: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, two = mesh
    monkeypatch.setattr(captures, "LEASE", 0.5)
    sessions = two.router.speaker._sessions
    assert not any(one.machine.captured for one in sessions.values())
    async with capturing(nats_server, "--node", "n2") as running:
        assert all(one.machine.captured for one in sessions.values())
        two.router.speaker.reset("mesh/n1", text="for a test")
        assert running.stdout is not None
        lines = [(await running.stdout.readline()).decode()]
        while "OPEN" not in lines[-1]:
            lines.append((await running.stdout.readline()).decode())
        assert "Cease: Administrative Reset: for a test" in " ".join(lines)
        running.send_signal(signal.SIGINT)
        out, err = await running.communicate()
    assert (running.returncode, b"Traceback" in out + err) == (130, False)
    async with asyncio.timeout(PATIENCE):
        while any(one.machine.captured for one in two.router.speaker._sessions.values()):
            two.router.speaker.reset("mesh/n1", after=0.0)  # a message that nobody asks for any more
            await asyncio.sleep(0.2)


NO_CAPTURE = (
    ("mesh/n9", "no node that answers has a peer mesh/n9"),
    ("n9 --node n1", "node n1 has no peer n9"),
    ("--node n3", "node n3 speaks no BGP"),
    ("--node n9", "no routing agent of n9 answers"),
)


@pytest.mark.usefixtures("mesh")
async def test_a_session_that_is_not_there_is_one_sentence(nats_server: NatsServer) -> None:
    for arguments, sentence in NO_CAPTURE:
        output = await airmesh(environment(nats_server), "bgp", "capture", *arguments.split())
        assert output.code == 4, output
        assert output.err.startswith(f"airmesh: {sentence}\n  remedy: "), output.err
        assert not output.out


async def test_a_route_is_traced_to_the_messages_that_named_it_last(
    nats_server: NatsServer, mesh: tuple[Node, Node]
) -> None:
    one, two = mesh
    hop = ip_address("172.31.0.2")
    two.router.announce({ip_network("10.2.0.64/26"): Attributes(origin=Origin.IGP, next_hop=hop)})
    wanted = prefix_of(ip_network("10.2.0.64/26"))[1]
    async with asyncio.timeout(PATIENCE):
        while wanted not in one.router.rib.chosen(Family.IPV4):
            await asyncio.sleep(0.02)
    for words in ("10.2.0.64/26", "10.2.0.64/26 n1", "10.2.0.65"):
        output = await airmesh(environment(nats_server), "trace", "route", *words.split())
        assert output.code == 0, output
        assert "bgp.receive  peers=mesh/n2  messages=" in output.out, output.out
        assert "bgp.decide  changes=2" in output.out, "the one that came and the one that went"
    for words, sentence in (
        ("10.2.0.64/26 n2", "node n2 remembers no UPDATE messages that named 10.2.0.64/26"),
        ("10.9.0.0/24", "no node that answers remembers UPDATE messages that named 10.9.0.0/24"),
        ("10.2.0.64/26 n3", "node n3 speaks no BGP"),
        ("10.2.0.64/26 n9", "no routing agent of n9 answers"),
    ):
        output = await airmesh(environment(nats_server), "trace", "route", *words.split())
        assert (output.code, output.err.splitlines()[0]) == (4, f"airmesh: {sentence}")


async def test_what_is_measured(nodes: tuple[Node, Node]) -> None:
    registry = CollectorRegistry()
    registry.register(BgpMetrics(lambda: nodes[0].router, Pass))
    page = generate_latest(registry).decode()
    for line in (
        'airmesh_bgp_sessions{state="Established"} 1.0',
        'airmesh_bgp_prefixes{direction="received",family="ipv4",peer="mesh"} 1.0',
        'airmesh_bgp_prefixes{direction="sent",family="ipv4",peer="mesh"} 1.0',
        'airmesh_bgp_routes{family="ipv4"} 2.0',
    ):
        assert line in page.splitlines()
    [messages] = [one for one in page.splitlines() if one.startswith("airmesh_bgp_messages_total{") and "mesh" in one][
        :1
    ]
    assert float(messages.split()[1]) > 0


def test_a_sum_of_sessions_never_falls() -> None:
    totals, labels = Totals(), ("mesh",)
    steps = [
        ({"n2": 5}, 5),
        ({"n2": 7, "n3": 1}, 8),
        ({"n2": 2, "n3": 1}, 10),
        ({"n3": 4}, 13),
        ({}, 13),
        ({"n3": 4}, 17),
    ]
    for present, total in steps:
        assert totals.add({(name, labels): count for name, count in present.items()})[labels] == total
