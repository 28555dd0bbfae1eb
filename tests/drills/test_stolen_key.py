"""One stolen node key plays against every bucket, request and event: it changes only its own node's, and is told.

The thief has both users of node n3. The server, ``ipam`` and ``policy`` are real; n1 looks on as a dataplane and a
routing agent do, n2 is the victim.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from ipaddress import ip_address, ip_network
from itertools import islice
from typing import Any, Literal

import msgspec
import nats
import pytest
import pytest_asyncio

from chassis.bus.client import Bus
from chassis.faults import Fault, Refused, Unavailable
from chassis.telemetry.log import Log
from proto import codec
from proto.addresses import Block, Claim, Endpoint
from proto.events import EndpointDown, ObjectFault, ServiceFault
from proto.identity import Reserved
from proto.objects import KIND_OF, IPPool, Namespace, Node, Owner, Pod
from proto.policy import Ack, Revision
from proto.requests import (
    BlockGrant,
    BlockReportAnswer,
    BlockReportRequest,
    BlockRequest,
    ClaimGrant,
    ClaimRelease,
    ClaimRequest,
)
from proto.residents import residents_key
from proto.routes import NodeRoutes
from proto.slots import SLOT, SLOTS, slot_of
from proto.subjects import (
    ACKS,
    BUCKETS,
    CLAIMS,
    ENDPOINTS,
    EVENTS,
    IDENTITIES,
    IPAM_BLOCK,
    IPAM_CLAIM,
    IPAM_RELEASE,
    IPAM_REPORT,
    LEASES,
    OF_NODES,
    ROUTES,
    RULES,
    event_subject,
    flow_subject,
    object_fault_subject,
    of_node,
)
from proto.sync import Complete, complete_key
from services.dataplane.feed import Feed
from services.dataplane.ipcache.ownership import Reporter, ownership_of
from services.ipam.app import build as build_ipam
from services.ipam.settings import Settings as IpamSettings
from services.routing.mirror import Mirror
from tests.conftest import BusFor
from tests.natsd import NatsServer, bus_of, endpoint_at, runtime_of
from tests.shell.policy.town import Town, copy_of, town_of

REPORTED_WITHIN = 10.0
POOLS = (
    IPPool(name="v4", cidr=ip_network("10.244.0.0/16"), block_size=26),
    IPPool(name="v6", cidr=ip_network("fd00:10:244::/56"), block_size=122),
)
DB0 = Owner("x", "StatefulSet", "db", 0)
FAR = 1 << 62


def pod(name: str, on: str, owner: Owner | None = None) -> Pod:
    return Pod("x", name, f"uid-{name}", on, labels=(("app", name),), owner=owner, phase="Running")


PODS = (pod("web", "n1"), pod("victim", "n2"), pod("db-0", "n2", DB0), pod("mine", "n3"))


class Watched:
    """Every value of every bucket as ``cli`` reads it, and every event that it hears."""

    def __init__(self, cli: Bus) -> None:
        self.views = {
            bucket.name: cli.bucket(bucket).watch(lambda _: msgspec.Raw, markers=(), name=f"all-{bucket.name}")
            for bucket in BUCKETS
        }
        self.heard: list[tuple[str, Any]] = []

    def state(self) -> dict[str, bytes]:
        """What is not n3's own, nor changes by itself."""
        found: dict[str, bytes] = {}
        for name, view in self.views.items():
            for entries in (view.entries, view.marks):
                for key, entry in entries.items():
                    own = "n3" in key.split(".") or (name == "blocks" and b"\xa2n3" in bytes(codec_bytes(entry.value)))
                    if not own and not (name == "leases" and key.startswith(("policy", "ipam"))):
                        found[f"{name}/{key}"] = codec_bytes(entry.value)
        return found

    async def rest(self) -> dict[str, bytes]:
        """The state once it has not changed for a moment: a write is seen a little after it is answered."""
        before = self.state()
        for _ in range(100):
            await asyncio.sleep(0.3)
            if (now := self.state()) == before:
                return now
            before = now
        raise AssertionError("it never rests")

    @property
    def faults(self) -> list[str]:
        return [event.fault for _, event in self.heard if isinstance(event, ServiceFault)]


def codec_bytes(value: Any) -> bytes:
    return bytes(value) if isinstance(value, msgspec.Raw) else codec.encode(value)


class Stage:
    """The mesh, with its victim in place."""

    def __init__(self, town: Town, watched: Watched, buses: dict[str, Bus]) -> None:
        self.town, self.watched, self.buses = town, watched, buses
        self.feed = Feed(buses["dataplane-n1"], "n1")
        self.ownership = ownership_of(self.feed)
        self.routes = Mirror(buses["routing-n1"], "n1")
        self.blocks: dict[str, Block] = {}
        self.claim: Claim
        self.identities: dict[str, int] = {}

    @property
    def thief(self) -> Bus:
        return self.buses["dataplane-n3"]

    async def ask(self, subject: str, request: msgspec.Struct, answer: type[Any], node: str, by: str = "") -> Any:
        bus = self.buses[f"dataplane-{by or node}"]
        return await bus.request(of_node(subject, node), request, answer, timeout=2)

    async def patiently(self, *asked: Any) -> Any:
        deadline = time.monotonic() + 15
        while True:
            try:
                return await self.ask(*asked)
            except (Refused, Unavailable):
                assert time.monotonic() < deadline, asked
                await asyncio.sleep(0.05)

    async def settle(self) -> None:
        """Every node holds a block, n2 has the kept address of db-0, and tells of its pod; n3 tells of its own."""
        for node in ("n1", "n2", "n3"):
            report = BlockReportRequest(node=node, node_uid=f"uid-{node}", blocks=())
            await self.patiently(IPAM_REPORT, report, BlockReportAnswer, node)
        for node in ("n1", "n2", "n3"):
            request = BlockRequest(node=node, node_uid=f"uid-{node}", family=4, nonce=f"nonce-{node}")
            self.blocks[node] = (await self.patiently(IPAM_BLOCK, request, BlockGrant, node)).block
        self.claim = (await self.patiently(IPAM_CLAIM, claim_of("n2", "uid-db-0"), ClaimGrant, "n2")).claim
        marks = self.feed.identities.marks
        for name, node in (("victim", "n2"), ("mine", "n3")):
            await self.town.until(partial(marks.__contains__, residents_key(node)), f"residents of {node}")
            lives = [one for one in marks[residents_key(node)].value.identities if one not in self.identities.values()]
            self.identities[name] = lives[0]
            await self.report(node, self.blocks[node].cidr[5], self.identities[name])
        await self.report("n2", self.claim.address, self.identities["victim"])
        await self.buses["dataplane-n2"].bucket(ACKS).put("n2", ack("n2"))
        await self.buses["routing-n2"].bucket(ROUTES).put("n2", NodeRoutes("n2", (ip_address("172.30.0.12"),)))
        await self.town.until(lambda: len(self.accepted) == 3 and self.ownership.now.whole, "what is true is believed")

    async def report(self, node: str, address: Any, identity: int, *, name: str = "", epoch: int = 5) -> None:
        value = Endpoint(name or node, address, "x", "p", "u", identity, b"\2\0\0\0\0\1", epoch, 1)
        await self.buses[f"dataplane-{node}"].bucket(ENDPOINTS).put(endpoint_at(node, address), value)

    @property
    def accepted(self) -> dict[str, tuple[str, int]]:
        return {str(one.address): (one.node, one.identity) for one in self.ownership.now.endpoints}


def ack(node: str) -> Ack:
    return Ack(node=node, rules=Revision(epoch="e", sequence=1), endpoints=1)


def claim_of(node: str, uid: str, **more: Any) -> ClaimRequest:
    fields: dict[str, Any] = {"container": f"c-{node}", "interface": "eth0", "nonce": f"claim-{node}", **more}
    return ClaimRequest(owner=DB0, family=4, node=node, pod_uid=uid, **fields)


@pytest_asyncio.fixture
async def stage(nats_server: NatsServer) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        town = await stack.enter_async_context(town_of(nats_server))
        settings = IpamSettings(
            nats_url=nats_server.url,
            nats_seed_file=nats_server.seeds / "ipam.seed",
            nats_user="ipam",
            instance="ipam-1",
            node_addresses=256,
        )
        await build_ipam(await stack.enter_async_context(runtime_of(nats_server, "ipam", settings=settings)))
        await stack.enter_async_context(copy_of(nats_server))
        buses = {
            f"{role}-{node}": await stack.enter_async_context(bus_of(nats_server, role, node))
            for role in ("dataplane", "routing")
            for node in ("n1", "n2", "n3")
        }
        cli = await stack.enter_async_context(bus_of(nats_server, "cli"))
        watched = Watched(cli)
        for what, kind in (("*.fault", ServiceFault), ("*.fault.*", ServiceFault), ("*.object-fault.*", ObjectFault)):
            await cli.subscribe(f"{EVENTS}.{what}", kind, lambda subject, event: watched.heard.append((subject, event)))
        await town.put(Namespace("kube-system", "cluster-uid"), Namespace("x", "uid-x"), *PODS, *POOLS)
        await town.put(*(Node(name=name, uid=f"uid-{name}", ready=True) for name in ("n1", "n2", "n3")))
        await town.complete()
        for listed in (Node, IPPool):
            scope = codec.kind_prefix(KIND_OF[listed])
            await town.objects.put(complete_key(scope), Complete(epoch=town.epochs["objects"]))
        made = Stage(town, watched, buses)
        await made.settle()
        yield made


async def test_it_writes_no_key_of_another(stage: Stage) -> None:
    before = await stage.watched.rest()
    assert any(key.startswith("blocks/") for key in before)
    assert "identities/_residents.n2" in before
    keys = [(view, key) for view, of in stage.watched.views.items() for key in (*of.entries, *of.marks)]
    keys += [("endpoints", f"_complete.{node}") for node in ("n1", "n2")] + [("acks", "n1"), ("leases", "node.n1")]
    keys += [("endpoints", endpoint_at("n1", ip_address("10.244.0.9"))), ("identities", "_residents.n3")]
    by_name = {bucket.name: bucket for bucket in BUCKETS}
    own = {
        ("dataplane-n3", name)
        for name in ("endpoints", "acks", "leases")
    } | {("routing-n3", "routes")}  # fmt: skip

    async def attempt(user: str, bucket: str, key: str, *, delete: bool) -> None:
        if (user, bucket) in own and "n3" in key.split("."):
            return
        kv = stage.buses[user].bucket(by_name[bucket])
        with pytest.raises(Fault):
            await (kv.delete(key, timeout=1) if delete else kv.put(key, ack("n3"), timeout=1))

    await asyncio.gather(
        *(
            attempt(user, bucket, key, delete=delete)
            for user in ("dataplane-n3", "routing-n3")
            for bucket, key in keys
            for delete in (False, True)
        )
    )
    assert await stage.watched.rest() == before


async def test_it_takes_no_block_and_no_claim(stage: Stage) -> None:
    before = await stage.watched.rest()
    theirs, kept = stage.blocks["n2"], stage.claim
    uid = "uid-n3"
    for subject in OF_NODES:  # on the subject of another nobody hears it
        with pytest.raises(Refused, match="not-permitted"):
            await stage.ask(subject, BlockRequest("n2", "uid-n2", 4, "a"), BlockGrant, "n2", "n3")
    in_anothers_name: tuple[tuple[str, msgspec.Struct], ...] = (
        (IPAM_BLOCK, BlockRequest(node="n2", node_uid="uid-n2", family=4, nonce="nonce-n2")),
        (IPAM_REPORT, BlockReportRequest(node="n2", node_uid="uid-n2", blocks=())),
        (IPAM_CLAIM, claim_of("n2", "uid-db-0", container="thief")),
    )
    for subject, request in in_anothers_name:
        with pytest.raises(Refused, match="not-the-sender"):
            await stage.ask(subject, request, BlockGrant, "n3")
    stolen = msgspec.structs.replace(theirs, node="n3", node_uid=uid, epoch=FAR)
    lies = (
        stolen,
        msgspec.structs.replace(stolen, cidr=ip_network("10.244.0.0/25")),
        msgspec.structs.replace(stolen, cidr=ip_network("10.244.0.0/16")),
        msgspec.structs.replace(stolen, cidr=ip_network("192.0.2.0/26")),
    )
    claims = (
        msgspec.structs.replace(kept, node="n3", epoch=FAR),
        msgspec.structs.replace(kept, node="n3", pod_uid="uid-mine", epoch=FAR),
        Claim(theirs.cidr[5], Owner("x", "Pod", "mine"), "n3", "uid-mine", "c", "eth0", FAR, "z"),
        Claim(ip_address("192.0.2.1"), Owner("x", "Pod", "mine"), "n3", "uid-mine", "c", "eth0", FAR, "z"),
    )
    report = BlockReportRequest(node="n3", node_uid=uid, blocks=(*lies, stage.blocks["n3"]), claims=claims)
    answer: BlockReportAnswer = await stage.ask(IPAM_REPORT, report, BlockReportAnswer, "n3")
    assert [block.cidr for block in answer.blocks] == [stage.blocks["n3"].cidr]
    assert answer.blocks[0].epoch < 1 << 40
    release = ClaimRelease(kept.address, kept.container, kept.interface, kept.nonce)
    with pytest.raises(Refused, match="not-the-holder"):
        await stage.thief.send(of_node(IPAM_RELEASE, "n3"), release, timeout=2)
    for request in (
        claim_of("n3", "uid-db-0"),
        claim_of("n3", "uid-mine"),
        msgspec.structs.replace(claim_of("n3", "uid-mine"), owner=Owner("x", "Pod", "mine"), address=theirs.cidr[5]),
    ):
        with pytest.raises(Refused):
            await stage.ask(IPAM_CLAIM, request, ClaimGrant, "n3")
    refused = await take_all(stage, 4) + await take_all(stage, 6)
    assert refused == ["node-limit", "node-limit"]
    held = [entry.value for entry in stage.feed.blocks.entries.values() if entry.value.node == "n3"]
    assert sum(block.cidr.num_addresses for block in held) == 2 * 256
    assert await stage.watched.rest() == before
    assert (await stage.buses["dataplane-n1"].bucket(CLAIMS).list(Claim)).popitem()[1].value == kept
    await reported(stage, lambda: [fault for fault in stage.watched.faults if "n3" in fault and "ipam" not in fault])
    assert {event.node for subject, event in stage.watched.heard if ".ipam." in subject} == {"n3"}


async def take_all(stage: Stage, family: Literal[4, 6]) -> list[str]:
    """Asks for blocks until it is refused."""
    for number in range(100):
        request = BlockRequest(node="n3", node_uid="uid-n3", family=family, nonce=f"more-{family}-{number}")
        try:
            await stage.ask(IPAM_BLOCK, request, BlockGrant, "n3")
        except Refused as refused:
            return [refused.code]
    return []


async def reported(stage: Stage, what: Callable[[], object]) -> None:
    await stage.town.until(what, f"it is told: {stage.watched.heard}", REPORTED_WITHIN)


async def test_what_it_says_of_itself_moves_no_packet_of_anothers(stage: Stage) -> None:
    before, true, victim = await stage.watched.rest(), dict(stage.accepted), stage.identities["victim"]
    own, routing = stage.blocks["n3"].cidr, stage.buses["routing-n3"]
    lies = (
        (stage.blocks["n2"].cidr[5], stage.identities["mine"]),
        (stage.blocks["n1"].cidr[9], stage.identities["mine"]),
        (stage.claim.address, stage.identities["mine"]),
        (own[6], victim),
        (own[7], int(Reserved.HOST)),
        (own[8], int(Reserved.KUBE_APISERVER)),
        (ip_address("192.0.2.7"), stage.identities["mine"]),
    )
    for address, identity in lies:
        await stage.report("n3", address, identity, epoch=FAR)
    await stage.report("n3", own[9], stage.identities["mine"], name="n2")
    await stage.thief.bucket(ACKS).put("n3", ack("n1"))
    await routing.bucket(ROUTES).put("n3", NodeRoutes("n2", (ip_address("172.30.0.66"),)))
    n1 = stage.buses["dataplane-n1"]
    reporter = Reporter(Log("dataplane"), n1.report_fault)
    begun = time.monotonic()
    while len(stage.watched.faults) < len(lies) and time.monotonic() - begun < REPORTED_WITHIN:
        reporter.report(stage.ownership.now, time.monotonic())
        await asyncio.sleep(0.2)
    faults = "\n".join(stage.watched.faults)
    for address, _ in lies:
        assert f"node n3 publishes a pod at {address}, which is not believed" in faults
    assert stage.accepted == true
    await stage.town.until(lambda: stage.routes.look().impostors == (("n3", "n2"),), "the impostor is seen")
    assert stage.routes.look().routes["n2"].underlay == (ip_address("172.30.0.12"),)
    assert await stage.watched.rest() == before


async def test_it_reports_nothing_in_anothers_name(stage: Stage) -> None:
    fault = ServiceFault("dataplane", "n1", "all is lost", "none")
    down = EndpointDown("n1", "x", "victim", "u", ())
    about = ObjectFault("dataplane", "n1", "", "Pod", "x", "victim", "Bad", "lie", "none")
    for subject, event in (
        (event_subject("dataplane", "fault"), fault),
        (f"{event_subject('dataplane', 'fault')}.n1", fault),
        (event_subject("ipam", "fault"), fault),
        (event_subject("policy", "fault"), fault),
        (event_subject("cluster", "fault"), fault),
        (object_fault_subject("dataplane", "n1"), about),
        (object_fault_subject("dataplane", "n3"), about),
        (object_fault_subject("cluster"), about),
        (event_subject("dataplane", "endpoint-down"), down),
        (flow_subject("n1", "dropped"), fault),
    ):
        stage.thief.publish(subject, event)
    await reported(stage, lambda: len(stage.watched.heard) >= 2)
    await asyncio.sleep(0.5)
    assert {subject for subject, _ in stage.watched.heard} == {
        f"{event_subject('dataplane', 'fault')}.n3",
        object_fault_subject("dataplane", "n3"),
    }


async def test_no_answer_is_written_where_it_wants(stage: Stage) -> None:
    before = await stage.watched.rest()
    client = stage.thief.connection.client()
    subjects = [of_node(subject, "n3") for subject in OF_NODES]
    subjects += [ENDPOINTS.subject("n3.slot.1"), ACKS.subject("n3")]
    body = codec.encode(BlockReportRequest(node="n3", node_uid="uid-n3", blocks=()))
    for bucket, key in (
        (RULES, "_frontier.0"),
        (IDENTITIES, "_residents.n2"),
        (ENDPOINTS, "_epoch"),
        (LEASES, "policy.0"),
    ):
        for subject in subjects:
            with suppress(Exception):
                await client.publish(subject, body, reply=bucket.subject(key))
    await client.flush()
    assert await stage.watched.rest() == before
    assert not [key for view in stage.watched.views.values() for key in view.unreadable if "n3" not in key.split(".")]


async def test_it_fills_no_bucket(stage: Stage, nats_server: NatsServer) -> None:
    """It writes keys of every spelling, as large as they may be and as many as it can, and has what a node has."""
    names = [f"{number:x}" for number in range(12_000)]
    client = await nats.connect(nats_server.url, **nats_server.sign_in("dataplane-n3"))
    routing = await nats.connect(nats_server.url, **nats_server.sign_in("routing-n3"))
    operator = await nats.connect(nats_server.url, **nats_server.sign_in("operator"))
    try:
        for bucket, thief, fixed in (
            (ENDPOINTS, client, ("_complete.n3",)),
            (ACKS, client, ("n3", "_complete.n3")),
            (LEASES, client, ("node.n3",)),
            (ROUTES, routing, ("n3", "_complete.n3")),
        ):
            full = b"z" * (bucket.max_value - 64)
            odd = [f"{key}.{name}" for key in (*fixed, "n3.0a", "n3.x.y", "n3.slot") for name in names[:64]]
            slots = [f"n3.{SLOT}.{name}" for name in names] if bucket is ENDPOINTS else []
            strange = (*("long" * 40 + name for name in names[:64]), *(f"=~{number}" for number in range(64)))
            spelled = [f"n3.{SLOT}.{name}" for name in strange]
            for key in odd:  # nobody answers what is refused
                await thief.publish(bucket.subject(key), full)
            for size in (bucket.max_value + 1, codec.MAX_VALUE // 2):
                answer = await stored(thief, bucket.subject(fixed[0]), b"z" * size)
                assert b"exceeds maximum allowed" in answer
            keys = iter([*fixed, *slots, *(spelled if bucket is ENDPOINTS else ())])
            while some := list(islice(keys, 100)):
                await asyncio.gather(*(stored(thief, bucket.subject(key), full) for key in some))
            stood = await subjects_of(operator, bucket)
            own = [key for key in stood if "n3" in key.split(".")]
            assert len(own) <= len(fixed) + (SLOTS if bucket is ENDPOINTS else 0)
            assert {key for key in own if slot_of(key) is None} <= set(fixed)
            for node in ("n1", "n2"):  # all others write on
                role = "routing" if bucket is ROUTES else "dataplane"
                kv = stage.buses[f"{role}-{node}"].bucket(bucket)
                await kv.put(fixed[-1].replace("n3", node), Complete("e"))
        for bucket in (ENDPOINTS, ACKS, LEASES, ROUTES):
            assert await held(operator, bucket) < bucket.max_bytes / 16, bucket
        await stage.report("n2", stage.blocks["n2"].cidr[9], stage.identities["victim"])
        await stage.town.until(lambda: str(stage.blocks["n2"].cidr[9]) in stage.accepted, "another's pod is seen", 20)
    finally:
        for one in (client, routing, operator):
            await one.close()


async def stored(thief: Any, subject: str, body: bytes) -> bytes:
    """Answer to a write; tried again while the server has too many."""
    while True:
        answer = await thief.request(subject, body, timeout=20)
        if not answer.headers:
            return bytes(answer.data)


async def subjects_of(operator: Any, bucket: Any) -> list[str]:
    """Keys that stand in a bucket."""
    answer = await operator.request(
        f"$JS.API.STREAM.INFO.KV_{bucket.on_server}", b'{"subjects_filter":">"}', timeout=10
    )
    prefix = bucket.subject("")
    return [subject.removeprefix(prefix) for subject in msgspec.json.decode(answer.data)["state"].get("subjects") or {}]


async def held(operator: Any, bucket: Any) -> int:
    """Bytes that a bucket holds."""
    answer = await operator.request(f"$JS.API.STREAM.INFO.KV_{bucket.on_server}", b"", timeout=10)
    return int(msgspec.json.decode(answer.data)["state"]["bytes"])


@pytest.mark.slow
async def test_while_it_writes_as_fast_as_it_can_others_write_on(
    nats_server: NatsServer, bus_for: BusFor, buckets: dict[str, str]
) -> None:
    """A write of another node waits behind the flood, or fails in time and says so; none is lost once the flood ends.

    How many come through meanwhile is a matter of the processors: docs/threats.md, "What is open".
    """
    honest = await bus_for("dataplane", "n2")
    thief = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FLOOD, nats_server.url, str(nats_server.seeds / "dataplane-n3.seed"),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert thief.stdout is not None
    kv, held = honest.bucket(ENDPOINTS), ip_network("10.244.0.0/26")
    waiting = [Endpoint("n2", held[end], "x", "p", "u", 1001, b"\2\0\0\0\0\1", 5, 1) for end in range(20, 26)]
    try:
        assert await thief.stdout.readline() == b"flooding\n"
        for value in list(waiting):
            with suppress(Unavailable):
                async with asyncio.timeout(15):  # its own deadline is 5 s
                    await kv.put(endpoint_at("n2", value.address), value, timeout=2)
                waiting.remove(value)
        assert thief.returncode is None
    finally:
        thief.kill()
        await thief.wait()
    for value in waiting:
        await kv.put(endpoint_at("n2", value.address), value)
    stored = [await kv.get(endpoint_at("n2", held[end]), Endpoint) for end in range(20, 26)]
    assert [entry.value.address for entry in stored if entry is not None] == [held[end] for end in range(20, 26)]


FLOOD = """
import asyncio, sys
from pathlib import Path
import nats
from chassis.bus.connection import sign_in
from chassis.secret import Secret

async def flood(url, seed):
    whose = sign_in(Secret(Path(seed).read_text().strip()))
    client = await nats.connect(url, inbox_prefix=b"_INBOX.dataplane-n3", **whose)
    number = 0
    while True:
        for _ in range(200):
            number += 1
            await client.publish(f"$KV.endpoints_v1.n3.slot.{number:x}", b"z" * 1900)
        await client.flush(20)
        if number == 20_000:
            print("flooding", flush=True)

asyncio.run(flood(*sys.argv[1:]))
"""
