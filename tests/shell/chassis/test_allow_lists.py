"""Who may do what on the bus: every role against every bucket and verb, on a real server, as the table says."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats
import nats.errors
import pytest

from proto.subjects import BUCKETS, EVENTS, FLOWS, ROLES, Bucket, Grant, Role, object_fault_subject
from tests.natsd import NatsServer

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
            if spelled == ">" or key == spelled or key.startswith(spelled + "."):
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
                spelled = "0af40000-26" if prefix == ">" else prefix.replace("{node}", NODE)
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
                Attempt("read key", f"$JS.API.DIRECT.GET.{stream}.{kv}.{key}", (not whole and sees) or writes),
                Attempt("watch key", f"$JS.API.CONSUMER.CREATE.{stream}.me.{kv}.{key}", sees),
            ]
        found += [
            Attempt("read any", f"$JS.API.STREAM.MSG.GET.{stream}", whole),
            Attempt("watch all", f"$JS.API.CONSUMER.CREATE.{stream}.me", whole),
            Attempt("info", f"$JS.API.STREAM.INFO.{stream}", reads or role.makes_buckets),
            Attempt("make", f"$JS.API.STREAM.CREATE.{stream}", role.makes_buckets),
            *(
                Attempt(verb.lower(), f"$JS.API.STREAM.{verb}.{stream}", allowed=False)
                for verb in ("DELETE", "PURGE", "UPDATE", "SNAPSHOT", "RESTORE", "MSG.DELETE")
            ),
            Attempt("list consumers", f"$JS.API.CONSUMER.LIST.{stream}", allowed=False),
        ]
    for other in ROLES:
        inbox = f"_INBOX.{other.name}" + (f"-{OTHER}" if other.per_node else "") + ".x"
        answers = "$SRV.>" in other.requests or bool(set(other.requests) & set(role.serves))
        found += [Attempt("inbox", inbox, answers)]
        found += [Attempt("ask", subject, subject in role.requests) for subject in other.serves]
        event = f"{EVENTS}.{other.name}.fault"
        found += [Attempt("event", event, other is role and bool(role.publishes))]
        # Who tells of an object is known by the subject: a node's service has one for each node, and only its own.
        for node in (NODE, OTHER) if other.per_node else ("",):
            said = Attempt("object fault", object_fault_subject(other.name, node), other is role and node != OTHER)
            found += [said] if role.publishes else []
    own_flows = f"{FLOWS}.{{node}}.>" in role.publishes
    found += [
        Attempt("flow", f"{FLOWS}.{NODE}.dropped", own_flows),
        Attempt("flow", f"{FLOWS}.{OTHER}.dropped", allowed=False),
        Attempt("flow", "$JS.API.INFO", allowed=False),
        Attempt("flow", "$SYS.REQ.SERVER.PING", allowed=False),
    ]
    return found


async def refusals(server: NatsServer, role: Role, subjects: list[str], verb: str) -> set[str]:
    """Subjects that the server refused this role to publish to (or to hear)."""
    refused: set[str] = set()

    async def on_error(error: Exception) -> None:
        text = str(error)
        if "permissions violation" in text:
            refused.add(text.split('"')[1])

    user = server.user(role.name, NODE if role.per_node else None)
    client = await nats.connect(
        server.url, nkeys_seed_str=user.seed.reveal(), error_cb=on_error, inbox_prefix=f"_INBOX.{user.name}"
    )
    for subject in subjects:
        if verb == "publish":
            await client.publish(subject, b"")
        else:
            await client.subscribe(subject)
    for _ in range(2):  # the first PING may overtake what is still buffered
        await client.flush()
    await client.close()
    return refused


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
async def test_publish_as_the_table_says(shared_nats: NatsServer, role: Role) -> None:
    tried = attempts(role)
    assert len(tried) > 300
    refused = await refusals(shared_nats, role, [attempt.subject for attempt in tried], "publish")
    wrong = [attempt for attempt in tried if (attempt.subject.lower() in refused) == attempt.allowed]
    assert not wrong


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
async def test_listen_as_the_table_says(shared_nats: NatsServer, role: Role) -> None:
    name = f"{role.name}-{NODE}" if role.per_node else role.name
    expected = {f"_INBOX.{name}.>": True, f"_INBOX.{name}.x.*": True, ">": False, "$KV.>": False, "_INBOX.>": False}
    for other in ROLES:
        expected[f"_INBOX.{other.name}" + (f"-{OTHER}" if other.per_node else "-x") + ".>"] = False
        expected[f"$SRV.PING.{other.name}"] = other is role and "$SRV.>" not in role.requests
        expected |= {subject: subject in role.serves for subject in other.serves}
        expected[f"{EVENTS}.{other.name}.>"] = role.name == "cli"
        expected[object_fault_subject(other.name)] = role.name in ("cli", "cluster")
        expected[object_fault_subject(other.name, NODE)] = role.name in ("cli", "cluster")
    expected[f"{FLOWS}.>"] = role.name == "cli"
    expected["$SRV.PING"] = "$SRV.>" not in role.requests
    refused = await refusals(shared_nats, role, list(expected), "subscribe")
    assert {subject: subject.lower() not in refused for subject in expected} == expected


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
async def test_strangers_get_in_nowhere(shared_nats: NatsServer, credentials: dict[str, Any]) -> None:
    async def quiet(_error: Exception) -> None:
        return

    with pytest.raises((nats.errors.Error, OSError)) as refused:
        async with asyncio.timeout(5):
            await nats.connect(shared_nats.url, allow_reconnect=False, error_cb=quiet, **credentials)
    assert "authorization violation" in str(refused.value).lower()


def test_seeds_are_for_their_owner_alone(shared_nats: NatsServer) -> None:
    for name, user in shared_nats.users.items():
        path: Path = shared_nats.seeds / f"{name}.seed"
        assert path.stat().st_mode & 0o777 == 0o600
        assert repr(user.seed) == "***"
        assert user.seed.reveal() not in repr(user)
    assert "SU" not in {line.strip()[:2] for line in shared_nats._config.read_text().split('"')}
