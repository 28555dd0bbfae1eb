"""Who may do what on the bus: every role against every bucket and verb, on a real server, as the table says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats
import nats.errors
import pytest
from nats.aio.msg import Msg

from chassis.bus.accounts import meet
from proto.subjects import BUCKETS, DISCOVERY, EVENTS, FLOWS, JETSTREAM, ROLES, Bucket, Grant, Role
from tests.natsd import NatsServer, bus_of

NODE, OTHER = "n1", "n2"


@dataclass(frozen=True)
class Attempt:
    verb: str
    subject: str
    allowed: bool


def covers(grants: tuple[Grant, ...], bucket: Bucket, key: str) -> bool:
    for grant in grants:
        if grant.bucket is not bucket:
            continue
        for prefix in grant.prefixes:
            spelled = prefix.replace("{node}", NODE)
            if spelled == ">" or meet(spelled, key) == key or (not grant.exact and key.startswith(spelled + ".")):
                return True
    return False


def sample_keys(role: Role, bucket: Bucket) -> list[str]:
    """A key for each grant, and keys that belong to others or look alike."""
    keys = [
        "core.pod.n2.shop.web",
        f"{OTHER}.0af40002",
        OTHER,
        "_epoch",
        "_complete",
        f"_complete.{OTHER}",
        "n1x.a",
        "node.n2",
    ]
    for grant in (*role.writes, *role.reads):
        if grant.bucket is bucket:
            for prefix in grant.prefixes:
                spelled = "0af40000-26" if prefix == ">" else prefix.replace("{node}", NODE).replace("*", "7")
                keys += [spelled, f"{spelled}.x"]
    return list(dict.fromkeys(keys))


def attempts(role: Role) -> list[Attempt]:
    found: list[Attempt] = []
    for bucket in BUCKETS:
        stream, kv = f"KV_{bucket.on_server}", f"$KV.{bucket.on_server}"
        whole = any(grant.bucket is bucket and grant.prefixes == (">",) for grant in role.reads)
        reads = any(grant.bucket is bucket for grant in role.reads)
        for key in sample_keys(role, bucket):
            writes = covers(role.writes, bucket, key)
            sees = covers(role.reads, bucket, key)
            found += [
                Attempt("write", f"{kv}.{key}", writes),
                Attempt("read key", f"{JETSTREAM}.DIRECT.GET.{stream}.{kv}.{key}", (not whole and sees) or writes),
                Attempt("watch key", f"{JETSTREAM}.CONSUMER.CREATE.{stream}.me.{kv}.{key}", sees),
            ]
        found += [
            Attempt("read any", f"{JETSTREAM}.STREAM.MSG.GET.{stream}", whole),
            Attempt("watch all", f"{JETSTREAM}.CONSUMER.CREATE.{stream}.me", whole),
            Attempt("info", f"{JETSTREAM}.STREAM.INFO.{stream}", reads or role.makes_buckets),
            *(
                Attempt("make", f"{JETSTREAM}.STREAM.{verb}.{stream}", role.makes_buckets)
                for verb in ("CREATE", "UPDATE")
            ),
            Attempt("remove consumer", f"{JETSTREAM}.CONSUMER.DELETE.{stream}.me", reads),
            *(
                Attempt(verb.lower(), f"{spelled}.STREAM.{verb}.{stream}", allowed=False)
                for verb in ("DELETE", "PURGE", "SNAPSHOT", "RESTORE", "MSG.DELETE")
                for spelled in (JETSTREAM, "$JS.API")
            ),
            *(
                Attempt("list consumers", f"{JETSTREAM}.CONSUMER.{verb}.{stream}", allowed=False)
                for verb in ("LIST", "NAMES", "INFO", "INFO.me")
            ),
        ]
    for other in ROLES:
        user = other.name + (f"-{OTHER}" if other.per_node else "")
        found += [Attempt("inbox", f"_INBOX.{user}.x", allowed=False)]
        found += [Attempt("ask", subject, meets(role.requests, subject)) for subject in samples(other.serves)]
        for subject in samples(other.publishes):
            found += [Attempt("event", subject, meets(role.publishes, subject))]
    found += [Attempt("flow", f"{FLOWS}.{OTHER}.dropped", allowed=False)]
    return list(dict.fromkeys(found))


def samples(subjects: tuple[str, ...]) -> list[str]:
    """Subjects without wildcards, for this node and for another."""
    spelled = (s.replace("{node}", node).replace("*", node) for s in subjects for node in (NODE, OTHER))
    return list(dict.fromkeys(s.replace(">", "fault") for s in spelled))


def meets(patterns: tuple[str, ...], subject: str) -> bool:
    return any(meet(pattern.replace("{node}", NODE), subject) == subject for pattern in patterns)


def name_of(role: Role) -> str:
    return f"{role.name}-{NODE}" if role.per_node else role.name


async def refusals(server: NatsServer, role: Role, subjects: list[str], verb: str) -> set[str]:
    """Subjects that the server refused this role to publish to (or to hear)."""
    refused: set[str] = set()

    async def on_error(error: Exception) -> None:
        text = str(error)
        if "permissions violation" in text:
            refused.add(text.split('"')[1])

    client = await nats.connect(server.url, error_cb=on_error, **server.sign_in(name_of(role)))
    for subject in subjects:
        if verb == "publish":
            await client.publish(subject, b"")
        else:
            await client.subscribe(subject)
    for _ in range(2):  # the first PING may overtake what is still buffered
        await client.flush()
    await client.close()
    return refused


@pytest.fixture(scope="module", params=["file", "signed"])
def mesh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A server with every user: accounts in its file, or as signed JWTs."""
    yield from running(NatsServer(tmp_path_factory.mktemp("nats"), signed=request.param == "signed"))


@pytest.fixture(scope="module", params=["file", "signed"])
def unlimited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """The same with users that may publish and hear anything: what their accounts import is all that holds them."""
    folder = tmp_path_factory.mktemp("nats")
    yield from running(NatsServer(folder, signed=request.param == "signed", unlimited=True))


def running(server: NatsServer) -> Iterator[NatsServer]:
    server.start()
    yield server
    server.close()


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
async def test_publish_as_the_table_says(mesh: NatsServer, role: Role) -> None:
    tried = attempts(role)
    assert len(tried) > 300
    refused = await refusals(mesh, role, [attempt.subject for attempt in tried], "publish")
    wrong = [attempt for attempt in tried if (attempt.subject.lower() in refused) == attempt.allowed]
    assert not wrong


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
async def test_listen_as_the_table_says(mesh: NatsServer, role: Role) -> None:
    name = name_of(role)
    expected = {f"_INBOX.{name}.>": True, f"_INBOX.{name}.x.*": True, ">": False, "$KV.>": False, "_INBOX.>": False}
    expected["_R_.>"] = False
    discovered = DISCOVERY not in role.requests and not role.shared
    for other in ROLES:
        expected[f"_INBOX.{other.name}" + (f"-{OTHER}" if other.per_node else "-x") + ".>"] = False
        expected[f"$SRV.PING.{other.name}"] = other is role and discovered
        expected |= {subject: subject in role.serves for subject in other.serves}
        event = f"{EVENTS}.{other.name}.fault"
        expected[event] = meets(role.listens, event)
    expected[f"{FLOWS}.>"] = f"{FLOWS}.>" in role.listens
    expected["$SRV.PING"] = discovered
    refused = await refusals(mesh, role, list(expected), "subscribe")
    assert {subject: subject.lower() not in refused for subject in expected} == expected


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
async def test_what_arrives_is_what_the_table_says_without_any_permission(unlimited: NatsServer, role: Role) -> None:
    """Permissions forget reply subjects; so accounts must hold alone."""
    async with bus_of(unlimited, "cluster") as cluster:
        await cluster.make_buckets()
    async with AsyncExitStack() as stack:
        heard: set[str] = set()
        for other in ROLES:
            for node in (OTHER,) if other.per_node else ("",):
                if other is not role:
                    name = f"{other.name}-{node}" if node else other.name
                    await listen(stack, unlimited, name, heard)
        client = await nats.connect(unlimited.url, **unlimited.sign_in(name_of(role)))
        stack.push_async_callback(client.close)
        inbox, answered = client.new_inbox(), set()

        async def on_answer(message: Msg) -> None:
            if (message.headers or {}).get("Status") != "503" and b'"err_code":10039' not in message.data:
                answered.add(int(message.subject.rsplit(".", 1)[1]))

        await client.subscribe(f"{inbox}.*", cb=on_answer)
        tried = [one for one in attempts(role) if one.verb != "remove consumer"]
        for number, attempt in enumerate(tried):
            await client.publish(attempt.subject, b"x %d" % number, reply=f"{inbox}.{number}")
        await client.flush()
        await asyncio.sleep(1.5)
        arrived = {attempt for number, attempt in enumerate(tried) if number in answered or f"x {number}" in heard}
    unheard = {one for one in tried if one.verb == "event" and not any(meets(r.listens, one.subject) for r in ROLES)}
    assert arrived - {one for one in tried if one.allowed} == set()
    assert {one for one in tried if one.allowed} - arrived - unheard == set()


async def listen(stack: AsyncExitStack, server: NatsServer, user: str, heard: set[str]) -> None:
    """Be another user: answer what it serves, note everything that comes to its account."""
    client = await nats.connect(server.url, **server.sign_in(user))
    stack.push_async_callback(client.close)

    async def on_message(message: Msg) -> None:
        if not message.subject.startswith(("$SRV", "_INBOX.")) or message.data.startswith(b"x "):
            heard.add(message.data.decode())
            if message.reply.startswith("_R_."):
                await message.respond(b"answer")

    await client.subscribe(">", cb=on_message)
    await client.flush()


@pytest.mark.parametrize(
    "credentials",
    [
        {},
        {"user": "cluster", "password": "x"},
        {"token": "cluster"},
        {"nkeys_seed_str": "SUAMLK2ZNL35WSMW37E7UD4VZ7ELPKW7DHC3BWBSD2GCZ7IUQQXZIORRBU"},
    ],
    ids=["none", "password", "token", "unknown nkey"],
)
async def test_strangers_get_in_nowhere(mesh: NatsServer, credentials: dict[str, Any]) -> None:
    async def quiet(_error: Exception) -> None:
        return

    with pytest.raises((nats.errors.Error, OSError)) as refused:
        async with asyncio.timeout(5):
            await nats.connect(mesh.url, allow_reconnect=False, error_cb=quiet, **credentials)
    assert "authorization violation" in str(refused.value).lower()


def test_seeds_are_for_their_owner_alone(mesh: NatsServer) -> None:
    for name, user in mesh.users.items():
        path: Path = mesh.seeds / f"{name}.seed"
        assert path.stat().st_mode & 0o777 == 0o600
        assert repr(user.seed) == "***"
        assert user.seed.reveal() not in repr(user)
    assert "SU" not in {line.strip()[:2] for line in mesh.config.read_text().split('"')}
