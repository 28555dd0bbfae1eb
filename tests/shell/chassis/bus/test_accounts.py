"""What a stolen key can do on the bus with what no server checks: where answers go, and what JetStream delivers.

Tried with users that may publish and hear anything within their account, for accounts in the server's file and for
signed ones: what holds is the accounts alone. Permissions, which refuse most of it before, have tests of their own.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from ipaddress import ip_network
from typing import Any

import nats
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg

from chassis.bus.accounts import meet
from chassis.bus.nats_config import new_key
from proto import codec, slots, subjects
from proto.addresses import Block
from proto.events import ServiceFault
from proto.policy import Frontier, Revision
from proto.requests import BlockRequest, IpamShow, IpamState
from proto.subjects import JETSTREAM
from proto.sync import Epoch
from tests.natsd import NatsServer, bus_of

FRONTIER = f"$KV.{subjects.RULES.on_server}._frontier.0"
EPOCH = f"$KV.{subjects.RULES.on_server}._epoch"
OWN = f"$KV.{subjects.ENDPOINTS.on_server}.n1.slot.1601"  # the server makes 1601 of 1601
GONE = f"$KV.{subjects.ENDPOINTS.on_server}.n1.slot.{slots.numbered('gone')}"
STREAM = f"KV_{subjects.ENDPOINTS.on_server}"
FOREIGN = (
    FRONTIER,
    EPOCH,
    f"$KV.{subjects.ENDPOINTS.on_server}.n2.slot.1601",
    f"$KV.{subjects.OBJECTS.on_server}.core.pod.n1.shop.web",
    "airmesh.v1.ipam.block.n2",
    "airmesh.v1.ipam.show",
    "airmesh.v1.policy.explain",
    "airmesh.v1.events.ipam.fault",
    "airmesh.v1.events.dataplane.object-fault.n2",
    "airmesh.v1.flows.n2.dropped",
    "_INBOX.cli.srv.ipam.token",
    "_INBOX.cli.x",
    "_R_.x.y",
    "$SRV.STATS",
)
"""Subjects of others, each of which somebody hears or JetStream stores."""
ATTACKERS = ("cli", "dataplane-n1", "routing-n1", "policy", "dns", "ipam")


class Stage:
    """A server, the buckets with a value or two in them, and everybody's ears."""

    def __init__(self, server: NatsServer, stack: AsyncExitStack) -> None:
        self.server = server
        self._stack = stack
        self.heard: list[tuple[str, Msg]] = []

    async def client(self, user: str) -> Client:
        client = await nats.connect(self.server.url, **self.server.sign_in(user))
        self._stack.push_async_callback(client.close)
        return client

    async def hear(self, *, but: str) -> None:
        """Every account but one, by users that hear all that comes to it."""
        for user in self.server.users:
            if user != but:
                client = await self.client(user)

                async def on_message(message: Msg, user: str = user) -> None:
                    self.heard.append((user, message))

                await client.subscribe(">", cb=on_message)
                for subject in FOREIGN:  # a consumer delivers to whom asked for exactly its subject
                    await client.subscribe(subject, cb=on_message)
                await settled(client)
                await client.publish("heard", b"")
                await settled(client)
        await asyncio.sleep(0.1)
        assert {user for user, _ in self.heard} == self.server.users.keys() - {but}
        self.heard.clear()

    async def stored(self) -> dict[str, Any]:
        """The last sequence and number of messages of each stream."""
        operator = await self.client("operator")
        found = {}
        for bucket in subjects.BUCKETS:
            state = (await operator.jetstream().stream_info(f"KV_{bucket.on_server}")).state
            found[bucket.name] = (state.last_seq, state.messages)
        return found


async def settled(client: Client) -> None:
    """The server has taken in all that was said: the first PING may overtake what is still buffered."""
    for _ in range(2):
        await client.flush()


@pytest.fixture(scope="module", params=["file", "signed"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """Users that may publish and hear anything within their account."""
    server = NatsServer(tmp_path_factory.mktemp("nats"), ("n1", "n2"), signed=request.param == "signed", unlimited=True)
    server.start()
    yield server
    server.close()


@pytest_asyncio.fixture
async def stage(server: NatsServer) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        made = Stage(server, stack)
        async with bus_of(server, "cluster") as cluster:
            await cluster.make_buckets()
        policy, node = await made.client("policy"), await made.client("dataplane-n1")
        frontier = codec.seal(Frontier(shard=0, shards=1, revision=Revision("e", 1)))
        await policy.request(FRONTIER, frontier, headers={"Nats-Expected-Stream": f"KV_{subjects.RULES.on_server}"})
        await node.request(OWN, b"any bytes I like")
        await node.request(
            GONE.replace(GONE.rsplit(".", 1)[1], "gone"), b"", headers={"KV-Operation": "DEL"}
        )  # an empty body is a request to JetStream
        yield made


def foreign(server: NatsServer, attacker: str) -> list[str]:
    """Subjects that are not this user's to say anything on."""
    user = server.users[attacker]
    own = [f"$KV.{grant.bucket.on_server}.{prefix}" for grant in user.role.writes for prefix in grant.prefixes]
    own += [*user.role.requests, *user.role.publishes]
    patterns = [subject.replace("{node}", user.node) for subject in own]
    return [subject for subject in FOREIGN if not any(meet(pattern, subject) == subject for pattern in patterns)]


@pytest.mark.parametrize("attacker", ATTACKERS)
async def test_an_answer_is_stored_nowhere_and_heard_by_nobody(stage: Stage, attacker: str) -> None:
    """The first door, and the second by DIRECT.GET: whatever answers, its answer stays in the asker's account."""
    await stage.hear(but=attacker)
    client = await stage.client(attacker)
    before = await stage.stored()
    replies = foreign(stage.server, attacker)
    assert len(replies) > 9
    last = json.dumps({"last_by_subj": FRONTIER}).encode()
    asked = [(f"{JETSTREAM}.STREAM.INFO.KV_{bucket.on_server}", b"") for bucket in subjects.BUCKETS]
    asked += [("$JS.API.INFO", b""), (f"{JETSTREAM}.DIRECT.GET.{STREAM}.{OWN}", b"")]
    asked += [(f"{JETSTREAM}.STREAM.MSG.GET.KV_{subjects.RULES.on_server}", last)]
    for subject, body in asked:
        for reply in replies:
            await client.publish(subject, body, reply=reply)
    await settled(client)
    await asyncio.sleep(0.3)
    assert await stage.stored() == before
    assert not stage.heard


@pytest.mark.parametrize("attacker", ["dataplane-n1", "cli"])
async def test_a_consumer_delivers_to_nobody_else(stage: Stage, attacker: str) -> None:
    """The second door: a push consumer may name any subject, a pull any reply."""
    await stage.hear(but=attacker)
    client = await stage.client(attacker)
    before = await stage.stored()
    targets = foreign(stage.server, attacker)
    targets += [f"$JS.API.STREAM.{verb}.KV_{subjects.RULES.on_server}" for verb in ("DELETE", "PURGE")]
    for number, subject in enumerate(targets):
        for key in (OWN, GONE):
            reported = await consume(client, f"{attacker}-{number}-{key[-1]}-push", key, deliver_subject=subject)
            assert "error" not in reported or "cycle" in reported["error"]["description"]
            await pull(client, f"{attacker}-{number}-{key[-1]}", key, reply=subject)
    await asyncio.sleep(1.5)
    assert await stage.stored() == before
    assert not stage.heard


async def consume(client: Client, name: str, key: str, **more: str) -> Any:
    config = {"name": name, "filter_subject": key, "deliver_policy": "last_per_subject", "ack_policy": "none", **more}
    ask = json.dumps({"stream_name": STREAM, "config": {**config, "mem_storage": True}}).encode()
    said = await client.request(f"{JETSTREAM}.CONSUMER.CREATE.{STREAM}.{name}.{key}", ask, timeout=20)
    return json.loads(said.data)


async def pull(client: Client, name: str, key: str, *, reply: str) -> None:
    """Have the value of a key brought to a subject by a pull consumer."""
    await consume(client, name, key)
    request = json.dumps({"batch": 10, "expires": 1_000_000_000}).encode()
    await client.publish(f"{JETSTREAM}.CONSUMER.MSG.NEXT.{STREAM}.{name}", request, reply=reply)
    await settled(client)


async def test_what_a_consumer_brings_to_ones_own_subjects_is_no_request_and_no_event(stage: Stage) -> None:
    """Its subject is the key's, which ends with a number that the server chose."""
    key = OWN
    async with AsyncExitStack() as stack:
        ipam = await stack.enter_async_context(bus_of(stage.server, "ipam"))
        cli = await stack.enter_async_context(bus_of(stage.server, "cli"))
        asked: list[Any] = []

        async def answer(message: BlockRequest, node: str) -> None:
            asked.append((message, node))

        await ipam.serve_nodes(subjects.IPAM_BLOCK, BlockRequest, answer)
        await ipam.serve(subjects.IPAM_BLOCK, BlockRequest, lambda message: answer(message, ""))
        await cli.subscribe(f"{subjects.EVENTS}.>", ServiceFault, lambda *event: asked.append(event))
        await asyncio.sleep(0.2)
        node = await stage.client("dataplane-n1")
        for body, reply in (
            (codec.encode(BlockRequest(node="n2", node_uid="u", family=4, nonce="x")), own_request(stage.server)),
            (codec.encode(ServiceFault("ipam", "", "a lie", "none")), "airmesh.v1.events.dataplane.fault"),
        ):
            await node.request(key, body)
            await pull(node, f"own-{len(reply)}", key, reply=reply)
            await node.publish(f"{JETSTREAM}.DIRECT.GET.{STREAM}.{key}", b"", reply=reply)
        await settled(node)
        await asyncio.sleep(1.3)
        assert not [one for one in asked if one[0] != "airmesh.v1.events.ipam.fault"]
        assert ipam.registration.dropped >= 2


def own_request(server: NatsServer) -> str:
    """The subject on which the node n1 asks for a block."""
    found = (one for one in server.users["dataplane-n1"].role.requests if one.startswith(subjects.IPAM_BLOCK))
    return next(found).replace("{node}", "n1")


async def test_no_agent_answers_a_discovery_into_a_bucket(stage: Stage) -> None:
    """``$SRV`` is heard by all with the asker's own reply subject: an agent would answer it with its own rights."""
    before = await stage.stored()
    async with AsyncExitStack() as stack:
        policy = await stack.enter_async_context(bus_of(stage.server, "policy"))
        cli = await stage.client("cli")
        answers = await cli.subscribe("_INBOX.cli.srv.*.token")
        for verb in ("PING", "INFO", "STATS"):
            await cli.publish(f"$SRV.{verb}", b"", reply=FRONTIER)
            await cli.publish(f"$SRV.{verb}.policy", b"", reply="_INBOX.policy.x")
            await cli.publish(f"$SRV.{verb}.policy")
        await cli.publish("$SRV.PING", b"", reply="_INBOX.cli.srv.token", headers={"Nats-Subject": "x"})
        await cli.publish("$SRV.PING", b"", reply="_INBOX.cli.srv.token")
        answer = await answers.next_msg(2)
        await asyncio.sleep(0.2)
        assert answer.subject == "_INBOX.cli.srv.policy.token"
        assert answers.pending_msgs == 0
        assert policy.registration.dropped == 10
    assert await stage.stored() == before


async def test_a_service_drops_what_a_courier_brings_and_reports_it_once(stage: Stage) -> None:
    async with AsyncExitStack() as stack:
        ipam = await stack.enter_async_context(bus_of(stage.server, "ipam"))
        cli = await stack.enter_async_context(bus_of(stage.server, "cli"))
        asked: list[IpamShow] = []
        reported: list[ServiceFault] = []

        async def show(message: IpamShow) -> IpamState:
            asked.append(message)
            return IpamState((), (), (), ())

        await ipam.serve(subjects.IPAM_SHOW, IpamShow, show)
        await cli.subscribe(
            subjects.event_subject("ipam", "fault"), ServiceFault, lambda _, event: reported.append(event)
        )
        await asyncio.sleep(0.2)
        body, raw = codec.encode(IpamShow()), cli.connection.client()
        for headers in ({"Nats-Subject": OWN}, {"nats-sequence": "1"}, {"Nats-Expected-Stream": STREAM}):
            await raw.publish(subjects.IPAM_SHOW, body, raw.new_inbox(), headers)
        await raw.publish(subjects.IPAM_SHOW, body)
        await asyncio.sleep(0.3)
        assert not asked
        assert ipam.registration.dropped == 4
        assert await cli.request(subjects.IPAM_SHOW, IpamShow(), IpamState, timeout=20)
        assert len(asked) == 1
        (fault,) = reported
        assert subjects.IPAM_SHOW in fault.fault


async def test_an_agent_answers_a_discovery_in_its_own_name_alone(stage: Stage) -> None:
    cli, node = await stage.client("cli"), await stage.client("dataplane-n1")
    answers = await cli.subscribe("_INBOX.cli.srv.>")
    await settled(cli)
    for subject in ("_INBOX.cli.srv.token", "_INBOX.cli.srv.ipam.token", "_INBOX.cli.srv.dataplane-n2.token"):
        await node.publish(subject, b"lie")
    assert (await answers.next_msg(2)).subject == "_INBOX.cli.srv.dataplane-n1.token"
    await asyncio.sleep(0.2)
    assert answers.pending_msgs == 0


async def test_a_mirror_s_consumer_is_found_by_nobody(stage: Stage) -> None:
    """Who knew its name could pull from it or remove it: nobody is told, and 128 random bits are not guessed."""
    async with bus_of(stage.server, "routing", "n1") as routing:
        view = routing.bucket(subjects.BLOCKS).watch({}, markers=(), name="blocks")
        await view.wait_synced(20)
        client, stream = await stage.client("dataplane-n2"), f"KV_{subjects.BLOCKS.on_server}"
        for verb in ("NAMES", "LIST"):
            with pytest.raises(nats.errors.NoRespondersError):
                await client.request(f"{JETSTREAM}.CONSUMER.{verb}.{stream}", b"{}", timeout=20)
            assert b"10039" in (await client.request(f"$JS.API.CONSUMER.{verb}.{stream}", b"{}", timeout=20)).data
        reported = await client.request(f"{JETSTREAM}.STREAM.INFO.{stream}", b'{"subjects_filter":">"}', timeout=20)
        names = [one.name for one in await (await stage.client("operator")).jetstream().consumers_info(stream)]
        assert names
        assert all(len(name.rsplit("-", 1)[1]) == 32 for name in names)
        assert not any(name.encode() in reported.data for name in names)
    async with bus_of(stage.server, "cluster") as cluster:
        entry = await cluster.bucket(subjects.RULES).get("_epoch", Epoch)
        assert entry is not None


async def test_a_user_more_on_a_reload_disturbs_nobody(nats_server: NatsServer) -> None:
    """An operator adds a user to the server's file and has it read again: mirrors and services go on."""
    async with AsyncExitStack() as stack:
        cluster, ipam, cli, routing = [
            await stack.enter_async_context(bus_of(nats_server, role, node))
            for role, node in (("cluster", None), ("ipam", None), ("cli", None), ("routing", "n1"))
        ]
        await cluster.make_buckets()
        view = routing.bucket(subjects.BLOCKS).watch({"": Block}, markers=(), name="blocks")

        async def show(_: IpamShow) -> IpamState:
            return IpamState((), (), (), ())

        await ipam.serve(subjects.IPAM_SHOW, IpamShow, show)
        await view.wait_synced(20)
        head, _, accounts = nats_server.config.read_text().partition("accounts: ")
        written = json.loads(accounts)
        written["state"]["users"].append({"nkey": new_key()[1]})
        nats_server.config.write_text(f"{head}accounts: {json.dumps(written)}\n")
        os.kill(nats_server.pid, signal.SIGHUP)
        await asyncio.sleep(0.5)
        assert await cli.request(subjects.IPAM_SHOW, IpamShow(), IpamState, timeout=20)
        block = Block(ip_network("10.244.0.0/26"), "p", "n1", "u", 1, "n")
        await ipam.bucket(subjects.BLOCKS).put("0af40000-26", block)
        for _ in range(100):
            if view.entries:
                break
            await asyncio.sleep(0.05)
        assert view.entries["0af40000-26"].value == block
        assert ipam.connection.reconnects == routing.connection.reconnects == 0
