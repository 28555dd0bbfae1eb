"""`airmesh doctor SOURCE TARGET` against a real NATS server: who is asked about a connection, and what is refused."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from cli import gather
from cli.faults import Complaint
from cli.link import Link
from cli.reports.paths import Path
from cli.settings import BusSettings
from proto import codec, subjects
from proto.addresses import Endpoint
from proto.findings import DoctorRequest
from proto.objects import Pod, Service, ServicePort
from proto.probes import Probe, ProbeAnswer, ProbeHop, ProbeRequest, ProbeResult
from tests.conftest import BusFor
from tests.natsd import NatsServer
from tests.shell.cli.test_commands import airmesh, environment

OBJECTS = (
    Pod(namespace="shop", name="host", uid="u1", node="n1", host_network=True),
    Pod(namespace="shop", name="late", uid="u2", node="n1"),
    Service(namespace="shop", name="headless", uid="u3", ports=(ServicePort("http", 6, 80),)),
    Service(
        namespace="shop",
        name="web",
        uid="u4",
        cluster_ips=(ip_address("10.96.0.9"),),
        ports=(ServicePort("http", 6, 80),),
    ),
)


def endpoint(node: str, pod: str, address: str) -> Endpoint:
    return Endpoint(
        node=node, address=ip_address(address), namespace="shop", pod=pod, pod_uid=pod, identity=1, mac=bytes(6),
        epoch=1, sequence=1,
    )  # fmt: skip


def settings(server: NatsServer) -> BusSettings:
    return BusSettings(url=server.url, seed_file=server.seeds / "cli.seed")


async def pods(bus_for: BusFor) -> None:
    """Of two nodes; that of the second says that it has the first one's pod, too."""
    for node, own in {
        "n1": [endpoint("n1", "a", "10.244.1.1"), endpoint("n1", "a", "fd00::1:1")],
        "n2": [
            endpoint("n2", "b", "10.244.2.2"),
            endpoint("n2", "b", "fd00::2:2"),
            endpoint("n1", "a", "10.244.1.66"),
        ],
    }.items():
        kv = (await bus_for("dataplane", node)).bucket(subjects.ENDPOINTS)
        for number, one in enumerate(own):
            await kv.put(f"{node}.slot.{number}", one)
    cluster = await bus_for("cluster")
    for object_ in OBJECTS:
        await cluster.bucket(subjects.OBJECTS).put(codec.object_key(object_), object_)


REFUSED = (
    ("shop/none", "shop/b", 80, "there is no pod shop/none"),
    ("shop/a", "shop/none", 80, "there is neither a pod nor a Service shop/none"),
    ("shop/host", "shop/b", 80, "is in the network of node n1"),
    ("shop/a", "shop/host", 80, "is reached by the node's address"),
    ("shop/late", "shop/b", 80, "has no address in the mesh yet"),
    ("shop/a", "shop/headless", 80, "has no cluster IP"),
    ("shop/a", "shop/web", 81, "has no port 81/tcp"),
    ("10.244.1.1", "fd00::9", 80, "have no address of one family"),
)


@pytest.mark.usefixtures("buckets")
async def test_bad_input_is_one_sentence(nats_server: NatsServer, bus_for: BusFor) -> None:
    await pods(bus_for)
    async with Link(settings(nats_server)) as link:
        for source, destination, port, said in REFUSED:
            question = DoctorRequest(kind="connection", source=source, destination=destination, port=port)
            with pytest.raises(Complaint, match=said):
                await gather.followed(link, question, 0, 20.0)
    output = await airmesh(environment(nats_server), "doctor", "shop/none", "shop/b:80")
    assert (output.code, output.out) == (4, "")
    assert len(output.err.splitlines()) == 2, "the sentence and its remedy"


def passed(probe: Probe) -> ProbeResult:
    """Every step went well; the program's name says which probe it was."""
    hops = tuple(
        ProbeHop(
            step.way,
            step.is_reply,
            str(probe.source),
            "delivered" if step.way == "arrives" else "sent",
            frame=b"frame",
        )
        for step in probe.steps
    )
    return ProbeResult(hops=hops)


@pytest.mark.usefixtures("buckets")
async def test_each_node_is_asked_for_its_own_part(nats_server: NatsServer, bus_for: BusFor) -> None:
    """By the key that it has: the other node answers in the first one's name, and is not believed."""
    await pods(bus_for)
    asked: list[tuple[str, list[str]]] = []
    for node in ("n1", "n2"):

        def answer(request: ProbeRequest, node: str = node) -> ProbeAnswer | None:
            if request.node != node:
                return ProbeAnswer(node="n1", results=(ProbeResult(refused="forged"),)) if node == "n2" else None
            asked.append((node, [step.way for step in request.probes[0].steps]))
            return ProbeAnswer(node=node, results=tuple(passed(probe) for probe in request.probes))

        await (await bus_for("dataplane", node)).serve_everyone(subjects.PROBES, ProbeRequest, answer)
    question = DoctorRequest(kind="connection", source="shop/a", destination="shop/b", port=80)
    async with Link(settings(nats_server)) as link:
        found: tuple[Path, ...] = await gather.followed(link, question, 0, 20.0)
    assert [(str(one.source.address), one.ends, one.stage) for one in found] == [
        ("10.244.1.1", "", "done"),
        ("fd00::1:1", "", "done"),
    ]
    assert all({hop.hop.program for hop in one.hops} == {str(one.source.address)} for one in found)
    assert asked == [("n1", ["leaves"]), ("n2", ["arrives", "leaves"]), ("n1", ["leaves", "arrives"])]


@pytest.mark.usefixtures("buckets")
async def test_an_agent_that_does_not_answer_ends_the_path(nats_server: NatsServer, bus_for: BusFor) -> None:
    await pods(bus_for)
    question = DoctorRequest(kind="connection", source="shop/a", destination="shop/web", port=80)
    async with Link(settings(nats_server)) as link:
        found = await gather.followed(link, question, 0, 0.2)
    assert ["the dataplane agent of node n1 does not answer" in one.ends for one in found] == [True]
