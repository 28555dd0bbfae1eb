"""`airmesh` as a person runs it, against a real NATS server with the mesh's users: answers, deadlines, exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chassis.faults import Refused
from chassis.runtime.service import Runtime
from proto import codec, subjects
from proto.addresses import Block, Claim, Endpoint, PoolVerdict
from proto.dns import CoreDNSDecision, DnsReport
from proto.events import EndpointUp
from proto.flow import FlowEvent
from proto.identity import IdentityRecord
from proto.objects import IPPool, Node, Owner
from proto.policy import Ack, Frontier, Revision
from proto.requests import ExplainMany, ExplainRequest, Explanation, Explanations, IpamShow, IpamState
from proto.routes import NodeRoutes
from tests.conftest import BusFor, RuntimeFor
from tests.natsd import NatsServer, endpoint_at, free_port

ROOT = Path(__file__).resolve().parents[3]
INFO = b'INFO {"server_id":"A","version":"2.10.0","max_payload":1048576,"nonce":"abcdefghijk"}\r\n'
REFUSED = b"-ERR 'Authorization Violation'\r\n"
DB = Owner("prod", "StatefulSet", "db", 0)
ADDRESS = ip_address("10.244.0.70")


@dataclass(frozen=True, slots=True)
class Output:
    """What a command printed, its exit code, how long it took, and how much of a processor; both in seconds."""

    code: int
    out: str
    err: str
    seconds: float
    cpu: float

    @property
    def json(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.out)
        return found


def environment(server: NatsServer, **change: str) -> dict[str, str]:
    own = {
        "AIRMESH_NATS": server.url,
        "AIRMESH_NATS_SEED_FILE": str(server.seeds / "cli.seed"),
        "PATH": os.environ["PATH"],
    }
    return {name: value for name, value in {**own, **change}.items() if value}


async def airmesh(env: Mapping[str, str], *arguments: str, stdin: str = "") -> Output:
    began, before = time.monotonic(), of_children()
    running = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "cli",
        *arguments,
        cwd=ROOT,
        env=dict(env),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await running.communicate(stdin.encode())
    seconds, cpu = time.monotonic() - began, of_children() - before
    output = Output(running.returncode or 0, out.decode(), err.decode(), seconds, cpu)
    assert "Traceback" not in output.out + output.err
    return output


def of_children() -> float:
    """Seconds of a processor that processes took which this one began and which have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


async def fill(bus_for: BusFor) -> None:
    """A small mesh in the buckets: one node, one pod with a kept address."""
    cluster, ipam = await bus_for("cluster"), await bus_for("ipam")
    policy, dns = await bus_for("policy"), await bus_for("dns")
    packets, routing = await bus_for("dataplane", "n1"), await bus_for("routing", "n1")
    node = Node(name="n1", uid="u1", ready=True, addresses=(ip_address("172.30.0.11"),))
    await cluster.bucket(subjects.OBJECTS).put(codec.object_key(node), node)
    claim = Claim(ADDRESS, DB, "n1", "uid-db", "c", "eth0", 1, "n")
    await ipam.bucket(subjects.CLAIMS).put(codec.address_segment(ADDRESS), claim)
    frontier = Frontier(0, 1, Revision("e1", 7))
    await policy.bucket(subjects.RULES).put("_frontier.0", frontier)
    record = IdentityRecord(0xABC0, "d", "prod", pod_labels=(("role", "db"),))
    await policy.bucket(subjects.IDENTITIES).put(codec.identity_key(0xABC0), record)
    endpoint = Endpoint("n1", ADDRESS, "prod", "db-0", "uid-db", 0xABC0, b"\2\0\0\0\0\1", 1, 1, True)
    await packets.bucket(subjects.ENDPOINTS).put(endpoint_at("n1", ADDRESS), endpoint)
    ack = Ack(node="n1", rules=Revision("e1", 7), endpoints=1, pods=1, ready=True)
    await packets.bucket(subjects.ACKS).put("n1", ack)
    offer = NodeRoutes("n1", (ip_address("172.30.0.11"),), (ip_network("10.244.0.64/26"),))
    await routing.bucket(subjects.ROUTES).put("n1", offer)
    await dns.bucket(subjects.DNS).put("coredns", CoreDNSDecision("kube-system", ".:53 {\n}", 2, "two at least"))
    await dns.bucket(subjects.DNS).put("report", DnsReport(10.0, 2, 5, (("NOERROR", 5),), 0.5, 4.0))


async def serve(bus_for: BusFor, *, refused: bool = False) -> None:
    """Answers of ipam and policy, by the services' own roles; ``refused``: ipam does not use one of two pools."""
    ipam, policy = await bus_for("ipam"), await bus_for("policy")
    pools = [IPPool("default", ip_network("10.244.0.0/16"), 26)]
    verdicts = [PoolVerdict("default", "OK")]
    if refused:
        pools.append(IPPool("same", ip_network("10.244.0.0/16"), 26))
        verdicts.append(PoolVerdict("same", "CIDROverlap", "spec.cidr overlaps", "delete it"))
    wrong = tuple(verdict.sentence for verdict in verdicts if verdict.refused)
    block = Block(ip_network("10.244.0.64/26"), "default", "n1", "u1", 1, "n")

    async def show(asked: IpamShow) -> IpamState:
        held = () if asked.summary else (block,)
        return IpamState(tuple(pools), held, (), (), ("n3",), wrong, tuple(verdicts))

    async def explain(asked: ExplainRequest) -> Explanation:
        if asked.source == "shop/gone":
            raise Refused("not-found", "no pod shop/gone: name one that runs")
        allowed = asked.port == 5432
        return Explanation(allowed, True, allowed, ("prod/db-from-api",), 0xABC0, 2, "e1:7")

    async def matrix(asked: ExplainMany) -> Explanations:
        return Explanations(tuple([await explain(one) for one in asked.questions]))

    await ipam.serve(subjects.IPAM_SHOW, IpamShow, show)
    await policy.serve(subjects.POLICY_EXPLAIN, ExplainRequest, explain)
    await policy.serve(subjects.POLICY_MATRIX, ExplainMany, matrix)


ANSWERS = (
    ("pods", 0, "10.244.0.70", "pods"),
    ("pods -n shop", 0, "no pod of the mesh is running", "pods"),
    ("policy status", 0, "everywhere", "enforced_everywhere"),
    ("policy explain prod/api-1 prod/db-0:5432", 0, "allowed", "allowed"),
    ("policy explain prod/api-1 prod/db-0:80/udp", 1, "denied", "allowed"),
    ("ipam show", 0, "nothing is given away until", "waiting_for"),
    ("ipam show --blocks", 0, "10.244.0.64/26", "blocks"),
    ("routes", 0, "prod/StatefulSet/db/0", "routes"),
    ("dns", 0, "two at least", "decision"),
    ("status", 0, "up to date at 7", "problems"),
)
"""Command, exit code, what a person sees, a field that a program gets."""


async def serve_one(runtime: Runtime[Any]) -> None:
    """One endpoint: such a service tells its health in two places."""

    async def show(_: IpamShow) -> IpamState:
        return IpamState((), (), (), ())

    await runtime.bus.serve(subjects.IPAM_SHOW, IpamShow, show)


@pytest.mark.usefixtures("buckets")
class TestAnswers:
    async def test_a_person_and_a_program_are_answered(self, nats_server: NatsServer, bus_for: BusFor) -> None:
        await fill(bus_for)
        await serve(bus_for)
        for asked, code, shown, field in ANSWERS:
            output = await airmesh(environment(nats_server), *asked.split())
            program = await airmesh(environment(nats_server), *asked.split(), "--output", "json")
            assert (output.code, program.code) == (code, code), (asked, output.err)
            assert shown in output.out, asked
            assert field in program.json, asked
            assert output.cpu < 2.5, asked  # below a second on a machine that does nothing else

    async def test_a_pool_that_is_not_used_is_reported_wherever_one_looks(
        self, nats_server: NatsServer, bus_for: BusFor
    ) -> None:
        await fill(bus_for)
        await serve(bus_for, refused=True)
        status = await airmesh(environment(nats_server), "status")
        shown = await airmesh(environment(nats_server), "ipam", "show")
        for output in (status, shown):
            assert output.code == 1
            assert "IPPool same: spec.cidr overlaps; delete it" in " ".join(output.out.split())
        assert "refused: CIDROverlap" in shown.out
        assert "enabled" in shown.out

    async def test_an_ipam_that_does_not_answer_holds_nobody_up(self, nats_server: NatsServer, bus_for: BusFor) -> None:
        await fill(bus_for)
        ipam = await bus_for("ipam")

        async def show(_: IpamShow) -> IpamState:
            await asyncio.sleep(60)
            raise AssertionError("nobody waits that long")

        await ipam.serve(subjects.IPAM_SHOW, IpamShow, show)
        output = await airmesh(environment(nats_server), "status")
        assert output.code == 1
        assert "ipam does not say which IPPools give addresses" in " ".join(output.out.split())
        assert output.seconds < 15

    async def test_a_node_is_reported_field_by_field(self, nats_server: NatsServer, bus_for: BusFor) -> None:
        await fill(bus_for)
        output = await airmesh(environment(nats_server), "status", "--output", "json")
        assert output.json["nodes"] == [
            {
                "node": "n1",
                "addresses": ["172.30.0.11"],
                "kubernetes_ready": True,
                "schedulable": True,
                "mesh_ready": True,
                "acknowledged": "e1:7",
                "behind": 0,
                "pods": 1,
            }
        ]

    async def test_agents_that_run_are_found(self, nats_server: NatsServer, bus_for: BusFor) -> None:
        await fill(bus_for)
        await serve(bus_for)
        output = await airmesh(environment(nats_server), "status", "--output", "json")
        agents = output.json["agents"]
        assert isinstance(agents, list)
        by_service = {agent["service"]: agent for agent in agents}
        assert {"ipam", "policy", "cluster", "dns", "routing", "dataplane"} <= by_service.keys()
        assert all(agent["ready"] is True and agent["rss_bytes"] > 1 << 20 for agent in agents)

    async def test_an_agent_that_is_not_ready_says_why(self, nats_server: NatsServer, runtime_for: RuntimeFor) -> None:
        plain, serving = await runtime_for("dns"), await runtime_for("ipam")
        await serve_one(serving)
        for runtime in (plain, serving):
            runtime.health.require("objects").set(False, "listing again")
        output = await airmesh(environment(nats_server), "status", "--output", "json")
        agents = output.json["agents"]
        assert isinstance(agents, list)
        late = [(agent["service"], agent["ready"], agent["why"]) for agent in agents if not agent["ready"]]
        assert late == [
            ("ipam", False, "objects: listing again"),
            ("dns", False, "objects: listing again"),
        ]
        assert output.code == 1

    async def test_many_questions_keep_their_order(self, nats_server: NatsServer, bus_for: BusFor) -> None:
        await serve(bus_for)
        ports = [5432 if number % 3 else 80 for number in range(2500)]
        lines = "\n".join(f"10.0.0.1 10.0.0.2:{port}" for port in ports)
        output = await airmesh(environment(nats_server), "policy", "matrix", "-o", "json", stdin=lines)
        verdicts = output.json["verdicts"]
        assert isinstance(verdicts, list)
        assert [(one["port"], one["allowed"]) for one in verdicts] == [(port, port == 5432) for port in ports]

    async def test_a_value_of_another_major_version_is_passed_over(
        self, nats_server: NatsServer, bus_for: BusFor
    ) -> None:
        await fill(bus_for)
        packets = await bus_for("dataplane", "n2")
        strange = msgspec.msgpack.encode((99, "", {}))
        client = packets.connection.client()
        await client.request(f"$KV.{subjects.ACKS.on_server}.n2", strange, timeout=20)
        output = await airmesh(environment(nats_server), "policy", "status", "-o", "json")
        assert output.code == 0
        nodes = output.json["nodes"]
        assert isinstance(nodes, list)
        assert [node["node"] for node in nodes] == ["n1"]

    async def test_what_was_not_written_by_who_may_is_not_shown(self, nats_server: NatsServer, bus_for: BusFor) -> None:
        """As somebody's answer steered into the bucket would come: well-formed, and without the writer's header."""
        await fill(bus_for)
        packets = await bus_for("dataplane", "n1")
        false = Endpoint(
            "n1", ip_address("10.244.0.71"), "prod", "false-0", "uid-f", 0xABC0, b"\2\0\0\0\0\2", 1, 2, True
        )
        subject = f"$KV.{subjects.ENDPOINTS.on_server}.{codec.endpoint_key('n1', 7)}"
        await packets.connection.client().request(subject, codec.seal(false), timeout=20)
        output = await airmesh(environment(nats_server), "pods")
        assert output.code == 0
        assert "db-0" in output.out
        assert "false-0" not in output.out

    async def test_an_acknowledgement_is_its_writers_whoever_it_names(
        self, nats_server: NatsServer, bus_for: BusFor
    ) -> None:
        await fill(bus_for)
        liar = await bus_for("dataplane", "n2")
        await liar.bucket(subjects.ACKS).put("n2", Ack(node="n1", rules=Revision("e1", 3), endpoints=1))
        output = await airmesh(environment(nats_server), "policy", "status", "-o", "json")
        nodes = output.json["nodes"]
        assert isinstance(nodes, list)
        assert [(node["node"], node["acknowledged"]) for node in nodes] == [("n1", "e1:7"), ("n2", "e1:3")]

    async def test_a_refusal_is_one_sentence(self, nats_server: NatsServer, bus_for: BusFor) -> None:
        await serve(bus_for)
        output = await airmesh(environment(nats_server), "policy", "explain", "shop/gone", "prod/db-0:5432")
        assert output.code == 4
        assert "no pod shop/gone" in output.err

    async def test_a_question_that_nobody_serves_says_so(self, nats_server: NatsServer) -> None:
        output = await airmesh(environment(nats_server), "ipam", "show")
        assert output.code == 4
        assert "nobody answers" in output.err
        assert "remedy:" in output.err


class TestNoBus:
    """One clear error within the deadline, whatever is wrong with the bus."""

    async def test_nobody_listens(self, nats_server: NatsServer) -> None:
        env = environment(nats_server, AIRMESH_NATS=f"nats://127.0.0.1:{free_port()}")
        for command in (("status",), ("pods",), ("flows", "--follow"), ("events",), ("ipam", "show")):
            output = await airmesh(env, *command)
            assert output.code == 3, output
            assert "cannot be reached" in output.err
            assert "remedy:" in output.err
            assert output.seconds < 15

    async def test_the_server_hangs(self, nats_server: NatsServer) -> None:
        nats_server.stop()
        output = await airmesh(environment(nats_server), "status")
        nats_server.cont()
        assert output.code == 3
        assert output.seconds < 15

    async def test_the_seed_is_anothers(self, nats_server: NatsServer, tmp_path: Path) -> None:
        stranger = NatsServer(tmp_path / "other")
        output = await airmesh(environment(stranger, AIRMESH_NATS=nats_server.url), "pods")
        assert output.code == 3
        assert "does not know the user" in output.err

    async def test_a_refusal_that_the_end_of_its_connection_overtook(
        self, nats_server: NatsServer, tmp_path: Path
    ) -> None:
        met = 0

        async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal met
            met += 1
            writer.write(INFO)
            await reader.readline()
            if met == 1:
                ending = struct.pack("ii", 1, 0)  # reset, not closed
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ending)
            else:
                writer.write(REFUSED)
                await writer.drain()
            writer.close()

        async with await asyncio.start_server(meet, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            output = await airmesh(environment(nats_server, AIRMESH_NATS=f"nats://127.0.0.1:{port}"), "pods")
        assert (output.code, met) == (3, 2)
        assert "does not know the user" in output.err

    @pytest.mark.parametrize(
        ("says", "reads", "resets", "shown_as"),
        [
            (INFO, True, True, "hangs up at each sign-in"),
            (INFO, True, False, "hangs up at each sign-in"),
            (INFO, False, True, "hangs up at each sign-in"),
            (INFO + REFUSED, False, True, "does not know the user"),
            (INFO + REFUSED, False, False, "does not know the user"),
            (b"", False, True, "is no NATS server"),
            (b"", False, False, "is no NATS server"),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", False, False, "is no NATS server"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", True, True, "is no NATS server"),
        ],
    )
    async def test_how_far_a_sign_in_came(
        self, nats_server: NatsServer, says: bytes, reads: bool, resets: bool, shown_as: str
    ) -> None:
        async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(says)
            if reads:
                await reader.readline()
            if resets:
                ending = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ending)
            writer.close()

        async with await asyncio.start_server(meet, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            output = await airmesh(environment(nats_server, AIRMESH_NATS=f"nats://127.0.0.1:{port}"), "pods")
        assert output.code == 3
        assert shown_as in output.err, output.err
        assert ("hangs up" in output.err) == (shown_as == "hangs up at each sign-in"), output.err
        assert "remedy:" in output.err
        assert output.seconds < 15

    async def test_the_seed_is_no_seed(self, nats_server: NatsServer, tmp_path: Path) -> None:
        (tmp_path / "seed").write_text("hello\n")
        output = await airmesh(environment(nats_server, AIRMESH_NATS_SEED_FILE=str(tmp_path / "seed")), "pods")
        assert output.code == 3
        assert "holds no nkey seed" in output.err

    async def test_a_user_with_other_rights(self, nats_server: NatsServer) -> None:
        seed = str(nats_server.seeds / "dns.seed")
        output = await airmesh(environment(nats_server, AIRMESH_NATS_SEED_FILE=seed, AIRMESH_NATS_USER="dns"), "routes")
        assert output.code in (3, 4)
        assert "may not read or ask bucket" in output.err
        assert "use the seed of the user cli" in output.err
        assert output.seconds < 15

    async def test_buckets_are_not_there_yet(self, nats_server: NatsServer) -> None:
        output = await airmesh(environment(nats_server), "pods")
        assert output.code == 4
        assert "bucket endpoints" in output.err or "bucket identities" in output.err  # both are asked at once

    @pytest.mark.parametrize(
        ("change", "names"),
        [
            ({"AIRMESH_NATS": ""}, "AIRMESH_NATS is not set"),
            ({"AIRMESH_NATS": "http://x"}, "AIRMESH_NATS='http://x'"),
            ({"AIRMESH_NATS": "nats://x:notaport"}, "AIRMESH_NATS="),
            ({"AIRMESH_NATS_SEED_FILE": ""}, "AIRMESH_NATS_SEED_FILE is not set"),
            ({"AIRMESH_NATS_SEED_FILE": "/nowhere"}, "AIRMESH_NATS_SEED_FILE=/nowhere"),
        ],
    )
    async def test_a_setting_is_wrong(self, nats_server: NatsServer, change: dict[str, str], names: str) -> None:
        output = await airmesh(environment(nats_server, **change), "status")
        assert output.code == 2
        assert names in output.err
        assert "remedy:" in output.err


FLOW = FlowEvent(
    node="n1",
    time_ns=1,
    reason="POLICY_DENIED",
    direction="ingress",
    source=ip_address("10.244.0.3"),
    destination=ADDRESS,
    protocol=6,
    source_port=40000,
    destination_port=5432,
    source_identity=0x1234,
    destination_identity=0xABC0,
    source_name="shop/web-1",
    destination_name="prod/db-0",
    policies=("prod/default-deny",),
    revision="e1:7",
)


class TestStreams:
    async def follow(self, env: Mapping[str, str], *arguments: str) -> asyncio.subprocess.Process:
        running = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "cli",
            *arguments,
            cwd=ROOT,
            env=dict(env),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert running.stderr is not None
        async with asyncio.timeout(10):
            assert (await running.stderr.readline()).startswith(b"listening")
        return running

    async def test_flows_are_followed_and_chosen(self, nats_server: NatsServer, bus_for: BusFor) -> None:
        packets = await bus_for("dataplane", "n1")
        asked = ("flows", "--follow", "--dropped", "--pod", "prod/db-0", "--output", "json")
        running = await self.follow(environment(nats_server), *asked)
        other = msgspec.structs.replace(FLOW, destination_name="prod/api-1")
        packets.publish(subjects.flow_subject("n1", "forwarded"), msgspec.structs.replace(FLOW, reason="FORWARDED"))
        packets.publish(subjects.flow_subject("n1", "dropped"), other)
        packets.publish(subjects.flow_subject("n1", "dropped"), FLOW)
        assert running.stdout is not None
        async with asyncio.timeout(10):
            line = json.loads(await running.stdout.readline())
        running.terminate()
        await running.communicate()
        assert (line["destination_name"], line["reason"]) == ("prod/db-0", "POLICY_DENIED")
        assert line["policies"] == ["prod/default-deny"]

    async def test_who_reads_slowly_sees_the_newest_and_how_many_are_left_out(
        self, nats_server: NatsServer, bus_for: BusFor
    ) -> None:
        sent = 15_000
        packets = (await bus_for("dataplane", "n1")).connection.client()
        running = await self.follow(environment(nats_server), "flows", "--follow", "--output", "json")
        for number in range(sent):
            body = codec.encode(msgspec.structs.replace(FLOW, time_ns=number))
            await packets.publish(subjects.flow_subject("n1", "dropped"), body)
            if number % 500 == 0:
                await packets.flush()  # nobody reads meanwhile: its pipe is full, then its socket
        await packets.flush()
        assert running.stdout is not None
        shown = 0
        async with asyncio.timeout(30):
            async for line in running.stdout:
                shown += 1
                if json.loads(line)["time_ns"] == sent - 1:
                    break
        running.send_signal(signal.SIGINT)
        _, err = await running.communicate()
        left_out = [int(said.split()[1]) for said in err.decode().splitlines() if "left out" in said]
        assert left_out
        assert shown + sum(left_out) == sent

    async def test_events_are_followed(self, nats_server: NatsServer, bus_for: BusFor) -> None:
        packets = await bus_for("dataplane", "n1")
        running = await self.follow(environment(nats_server), "events", "--follow")
        up = EndpointUp("n1", "prod", "db-0", "u", (ADDRESS,), 0xABC0, 12.0)
        packets.publish(subjects.event_subject("dataplane", "endpoint-up"), up)
        assert running.stdout is not None
        async with asyncio.timeout(10):
            line = (await running.stdout.readline()).decode()
        running.terminate()
        await running.communicate()
        assert "dataplane.endpoint-up" in line
        assert "pod=db-0" in line

    async def test_a_stream_ends_with_one_sentence_when_the_bus_does(self, nats_server: NatsServer) -> None:
        running = await self.follow(environment(nats_server), "flows", "--follow")
        nats_server.kill()
        async with asyncio.timeout(10):
            _, err = await running.communicate()
        assert running.returncode == 3
        assert b"ended" in err
        assert b"Traceback" not in err

    async def test_without_follow_it_ends_by_itself(self, nats_server: NatsServer) -> None:
        output = await airmesh(environment(nats_server), "flows", "--for", "0.2")
        assert output.code == 0
        assert output.out == ""


async def test_completion_and_help_need_no_bus() -> None:
    for shell in ("bash", "zsh", "fish"):
        output = await airmesh({"PATH": os.environ["PATH"]}, "completion", shell)
        assert output.code == 0
        assert "_AIRMESH_COMPLETE" in output.out
    output = await airmesh({"PATH": os.environ["PATH"]}, "status", "--help")
    assert output.code == 0
    assert (await airmesh({"PATH": os.environ["PATH"]}, "nonsense")).code == 2
