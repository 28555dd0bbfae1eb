"""What cannot be read is written again by who may write it: every bucket, every role that writes there with a view."""

from __future__ import annotations

import asyncio
import time
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import pytest

from chassis.bus import view as view_module
from chassis.bus.client import Conflict, View
from chassis.faults import Damaged, Fault, Newer
from proto import codec, subjects
from proto.addresses import Block, Claim, Endpoint, OwnerRecord
from proto.dns import CoreDNSDecision
from proto.events import ServiceFault
from proto.identity import RelevantKeys
from proto.objects import Namespace, Owner
from proto.policy import Frontier, Revision
from proto.routes import NodeRoutes
from proto.subjects import Bucket
from proto.sync import Complete, Epoch
from tests.conftest import BusFor, RuntimeFor
from tests.natsd import NatsServer

BLOCK = Block(cidr=ip_network("10.244.0.0/26"), pool="p", node="n1", node_uid="u", epoch=1, nonce="a")
OWNER = Owner("shop", "StatefulSet", "db", 0)
CASES: tuple[tuple[str, str | None, Bucket, str, msgspec.Struct], ...] = (
    ("cluster", None, subjects.OBJECTS, "core.namespace._.shop", Namespace(name="shop", uid="u")),
    ("cluster", None, subjects.OBJECTS, "_complete.core.pod", Complete(epoch="e")),
    ("cluster", None, subjects.ACKS, "_epoch", Epoch(epoch="e")),
    ("ipam", None, subjects.BLOCKS, "0af40000-26", BLOCK),
    ("ipam", None, subjects.OWNERS, "x", OwnerRecord(OWNER, ip_address("10.244.0.1"), "p", "n")),
    ("ipam", None, subjects.CLAIMS, "_complete", Complete(epoch="e")),
    ("policy", None, subjects.RULES, "_frontier.0", Frontier(shard=0, shards=1, revision=Revision("e", 7))),
    ("policy", None, subjects.IDENTITIES, "_relevant", RelevantKeys(keys=("a",))),
    ("dns", None, subjects.DNS, "coredns", CoreDNSDecision(namespace="n", corefile=".", replicas=2, reason="r")),
    ("routing", "n1", subjects.ROUTES, "n1", NodeRoutes(node="n1", underlay=(), prefixes=())),
    ("routing", "n1", subjects.ROUTES, "_complete.n1", Complete(epoch="e")),
    (
        "dataplane", "n1", subjects.ENDPOINTS, "n1.slot.2",
        Endpoint("n1", ip_address("10.244.0.2"), "a", "b", "c", 300, b"\x02" * 6, 1, 1),
    ),
)  # fmt: skip
SPOILED = (None, b"\xc1garbage")
"""An answer of JetStream's, and bytes that nothing can read."""


async def holds(view: View, key: str, value: object, seconds: float = 3.0, *, since: int = 0) -> float:
    """Wait until the view has the value (written after ``since``), and can read it; how long that took."""
    started = time.monotonic()
    while key in view.unreadable or not is_there(view, key, value, since):
        assert time.monotonic() - started < seconds, (view.unreadable, at(view, key))
        await asyncio.sleep(0.01)
    return time.monotonic() - started


def is_there(view: View, key: str, value: object, since: int) -> bool:
    entry = at(view, key)
    return entry is not None and entry.value == value and entry.revision > since


def at(view: View, key: str) -> Any:
    return (view.marks if key.startswith("_") else view.entries).get(key)


def mirrored(bus: Any, bucket: Bucket, kind: type, name: str = "own") -> View:
    view: View = bus.bucket(bucket).watch({"": kind, "_frontier": kind, "_relevant": kind}, markers=(), name=name)
    return view


@pytest.mark.parametrize("body", SPOILED, ids=["an answer", "garbage"])
@pytest.mark.parametrize(
    ("role", "node", "bucket", "key", "value"), CASES, ids=lambda value: getattr(value, "name", None)
)
async def test_every_writer_mends_its_own(
    nats_server: NatsServer, bus_for: BusFor, buckets: dict[str, str],
    role: str, node: str | None, bucket: Bucket, key: str, value: msgspec.Struct, body: bytes | None,
) -> None:  # fmt: skip
    bus = await bus_for(role, node)
    written = await bus.bucket(bucket).put(key, value)
    view = mirrored(bus, bucket, type(value))
    await holds(view, key, value)
    await nats_server.destroy(bucket, key, body)
    await holds(view, key, value, since=written)
    assert at(view, key).revision == written + 2, "spoiled, and written again"


async def test_a_newer_release_s_value_is_left_alone(
    nats_server: NatsServer, bus_for: BusFor, buckets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_module, "MEND_AFTER", 0.3)
    kv = (await bus_for("ipam")).bucket(subjects.BLOCKS)
    await kv.put("0af40000-26", BLOCK)
    view = kv.watch({"": Block}, markers=(), name="own")
    await holds(view, "0af40000-26", BLOCK)
    await nats_server.destroy(subjects.BLOCKS, "0af40000-26", msgspec.msgpack.encode((codec.VERSION + 1, "", {})))
    await asyncio.sleep(1.5)
    assert "0af40000-26" in view.unreadable
    with pytest.raises(Newer):
        await kv.get("0af40000-26", Block)
    assert isinstance(await kv.create("0af40000-26", BLOCK, mend=True), Conflict)


async def test_nobody_mends_what_is_another_s(
    nats_server: NatsServer, bus_for: BusFor, buckets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_module, "MEND_AFTER", 0.3)
    one, two = await bus_for("routing", "n1"), await bus_for("routing", "n2")
    routes = NodeRoutes(node="n1", underlay=(), prefixes=())
    await one.bucket(subjects.ROUTES).put("n1", routes)
    view = mirrored(two, subjects.ROUTES, NodeRoutes)
    await holds(view, "n1", routes)
    await nats_server.destroy(subjects.ROUTES, "n1")
    await asyncio.sleep(1.5)
    assert view.unreadable
    assert not two.connection.denied
    with pytest.raises(Damaged):
        await one.bucket(subjects.ROUTES).get("n1", NodeRoutes)
    assert isinstance(await one.bucket(subjects.ROUTES).create("n1", routes, mend=True), int)
    await holds(view, "n1", routes)


async def test_who_may_have_missed_a_value_lets_the_others_go_first(
    nats_server: NatsServer, bus_for: BusFor, runtime_for: RuntimeFor, buckets: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One copy listed anew while the value was spoiled: what it remembers may be older than what another one saw."""
    monkeypatch.setattr(view_module, "MEND_AFTER", 2.0)
    bus = await bus_for("ipam")
    await bus.bucket(subjects.BLOCKS).put("0af40000-26", BLOCK)
    view = mirrored(bus, subjects.BLOCKS, Block)
    await holds(view, "0af40000-26", BLOCK)
    monkeypatch.setattr(view, "_mend_by", None)
    newer = msgspec.structs.replace(BLOCK, epoch=2, node="n2")
    await bus.bucket(subjects.BLOCKS).put("0af40000-26", newer)
    await holds(view, "0af40000-26", newer)
    await nats_server.destroy(subjects.BLOCKS, "0af40000-26")
    while "0af40000-26" not in view.unreadable:
        await asyncio.sleep(0.01)
    monkeypatch.undo()
    monkeypatch.setattr(view_module, "MEND_AFTER", 2.0)
    view._relist = "for the test"
    view._wake.set()
    await asyncio.sleep(1.0)
    assert "0af40000-26" in view.unreadable, "it waits for one that knows"
    assert await holds(view, "0af40000-26", newer, 5) > 0.5


async def test_the_fault_is_reported(nats_server: NatsServer, bus_for: BusFor, buckets: dict[str, str]) -> None:
    bus, cli = await bus_for("ipam"), await bus_for("cli")
    reported: list[ServiceFault] = []
    await cli.subscribe(f"{subjects.EVENTS}.>", ServiceFault, lambda _, event: reported.append(event))
    await bus.bucket(subjects.BLOCKS).put("0af40000-26", BLOCK)
    view = mirrored(bus, subjects.BLOCKS, Block)
    await holds(view, "0af40000-26", BLOCK)
    await nats_server.destroy(subjects.BLOCKS, "0af40000-26")
    await asyncio.sleep(0.5)
    await holds(view, "0af40000-26", BLOCK)
    (fault,) = reported
    assert "blocks_v1: 0af40000-26" in fault.fault


@pytest.mark.parametrize("body", SPOILED, ids=["an answer", "garbage"])
async def test_an_epoch_that_cannot_be_read_is_written_again(
    nats_server: NatsServer, bus_for: BusFor, body: bytes | None
) -> None:
    cluster = await bus_for("cluster")
    before = await cluster.make_buckets()
    for bucket in subjects.BUCKETS:
        await nats_server.destroy(bucket, "_epoch", body)
    assert await cluster.make_buckets() == before, "who knew it writes the same"
    await nats_server.destroy(subjects.RULES, "_epoch", body)
    other = await bus_for("cluster")
    made = await other.make_buckets()
    assert made["rules"] != before["rules"]
    assert {**made, "rules": ""} == {**before, "rules": ""}
    assert await cluster.make_buckets() == made
    newer = msgspec.msgpack.encode((codec.VERSION + 1, "", {}))
    await nats_server.destroy(subjects.RULES, "_epoch", newer)
    with pytest.raises(Newer, match="newer release") as refused:
        await cluster.make_buckets()
    assert isinstance(refused.value, Fault)


async def test_a_claim_is_mended_with_its_owner(
    nats_server: NatsServer, bus_for: BusFor, buckets: dict[str, str]
) -> None:
    bus = await bus_for("ipam")
    claim = Claim(
        address=ip_address("10.244.0.1"), owner=OWNER, pod_uid="u", node="n1", container="c", interface="eth0",
        epoch=1, nonce="n",
    )  # fmt: skip
    await bus.bucket(subjects.CLAIMS).put("0af40001", claim)
    view = mirrored(bus, subjects.CLAIMS, Claim)
    await holds(view, "0af40001", claim)
    written = at(view, "0af40001").revision
    await nats_server.destroy(subjects.CLAIMS, "0af40001")
    await holds(view, "0af40001", claim, since=written)
