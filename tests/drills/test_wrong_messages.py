"""Messages and calls that nobody of ours would send, at a mesh that runs: each is refused, and nothing comes of it.

Every endpoint is asked with bytes that are no message, with messages of another version and with changed ones; every
bucket gets values that cannot be read, under keys that are there and under keys that are not. Meanwhile every service
lives on with the last state that it could read. The CNI socket is knocked at by another user, and the executable is
given names that lead out of our folders.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chassis.bus.client import Bus
from proto import codec
from proto.addresses import Block
from proto.net import to_wire
from proto.objects import NetworkPolicy, Owner, Pod, Selector
from proto.requests import (
    BlockReportRequest,
    BlockRequest,
    ClaimRelease,
    ClaimRequest,
    ExplainMany,
    ExplainRequest,
    IpamShow,
    Reply,
)
from proto.slots import written
from proto.subjects import (
    ACKS,
    BLOCKS,
    BUCKETS,
    CLAIMS,
    DNS,
    ENDPOINTS,
    IDENTITIES,
    IPAM_BLOCK,
    IPAM_CLAIM,
    IPAM_RELEASE,
    IPAM_REPORT,
    IPAM_SHOW,
    JETSTREAM,
    LEASES,
    OBJECTS,
    OWNERS,
    POLICY_EXPLAIN,
    POLICY_MATRIX,
    ROUTES,
    RULES,
    Bucket,
    of_node,
)
from tests.bpf.world import inside, run
from tests.drills.minicluster import HUB, MiniCluster, PodRef, minicluster, node_objects, pools
from tests.natsd import bus_of

pytestmark = pytest.mark.privileged

VERSION = "Airmesh-Version"
OWNER = Owner("shop", "StatefulSet", "db", 0)
PEER = ExplainRequest(source="shop/good", destination="shop/good:80", port=80)
ASKED: dict[str, tuple[str, msgspec.Struct]] = {
    of_node(IPAM_BLOCK, "n1"): ("dataplane", BlockRequest(node="n1", node_uid="node-uid-n1", family=4, nonce="aa")),
    of_node(IPAM_REPORT, "n1"): ("dataplane", BlockReportRequest(node="n1", node_uid="node-uid-n1", blocks=())),
    of_node(IPAM_CLAIM, "n1"): (
        "dataplane",
        ClaimRequest(owner=OWNER, family=4, node="n1", pod_uid="nobody", container="c", interface="eth0", nonce="bb"),
    ),
    of_node(IPAM_RELEASE, "n1"): (
        "dataplane",
        ClaimRelease(address=ip_address("10.244.9.9"), container="c", interface="eth0", nonce="cc"),
    ),
    IPAM_SHOW: ("cli", IpamShow()),
    POLICY_EXPLAIN: ("cli", PEER),
    POLICY_MATRIX: ("cli", ExplainMany(questions=(PEER,))),
}
"""Who may ask, and a message that is understood."""
NO_MESSAGE = (b"", b"\x00", b"garbage", b"{}", b"\xc1" * 50, b"\x81\xa1", os.urandom(4096), b"\x93" * 100_000, b"\xc0")
VERSIONS = ("2", "0", "", "x", "-1", "1.0", "9" * 300)
CHANGED = 60

WRITERS: dict[Bucket, tuple[str, str, str]] = {
    OBJECTS: ("cluster", "", "core.pod.n1.shop.=ZZ"),
    BLOCKS: ("ipam", "", "zz-99"),
    OWNERS: ("ipam", "", "nobody"),
    CLAIMS: ("ipam", "", "nothex"),
    ENDPOINTS: ("dataplane", "n1", "n1.slot.7"),
    IDENTITIES: ("policy", "", "nothex"),
    RULES: ("policy", "", "nothex"),
    ACKS: ("dataplane", "n1", "n1"),
    LEASES: ("policy", "", "policy.99"),
    ROUTES: ("routing", "n1", "n1"),
    DNS: ("dns", "", "nothing"),
}
"""Who writes a bucket, as which node, and a key there that is none of ours."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MiniCluster]:
    """One node with every service that runs without Kubernetes, and a policy in force."""
    settings = {"AIRMESH_ADDRESS_COOLDOWN": "1", "AIRMESH_ADD_DEADLINE": "5", "AIRMESH_LOG_LEVEL": "info"}
    with minicluster(tmp_path_factory.mktemp("wrong"), "wm", ("n1",), **settings) as made:

        async def begin() -> None:
            async with bus_of(made.nats, "cluster") as bus:
                await made.make_buckets(bus)
                await made.put(bus, *node_objects(made.nodes), *pools(four="10.244.0.0/16", six="fd00:10:244::/56"))
                await made.put(bus, closed())

        asyncio.run(begin())
        for name in ("ipam-1", "policy-1", "dns-1", "routing-n1", "dataplane-n1"):
            made.start(name)
        asyncio.run(made.ready())
        run("ip", "-n", made.label, "route", "add", "10.244.0.0/16", "via", "172.30.0.11")
        yield made
        assert made.troubles() == []


def closed() -> NetworkPolicy:
    selector = Selector(match_labels=(("app", "closed"),))
    return NetworkPolicy(
        namespace="shop", name="closed", uid="uid-c", pod_selector=selector, applies_ingress=True, applies_egress=True
    )


async def lives(world: MiniCluster, name: str) -> None:
    """Every service is there as before; of two pods that come now, one may send and one may not."""
    assert world.fallen() == []
    assert world.troubles() == []
    await world.ready(seconds=15)
    assert await _sends(world, f"{name}-open", "open"), (
        f"a pod without a policy does not reach the hub\n{world.tails()}"
    )
    assert not await _sends(world, f"{name}-closed", "closed"), "a pod that may not send does"


async def _sends(world: MiniCluster, name: str, app: str) -> bool:
    netns = f"{world.label}-{name}"
    run("ip", "netns", "add", netns)
    try:
        async with bus_of(world.nats, "cluster") as bus:
            pod = Pod(namespace="shop", name=name, uid=f"uid-{name}", node="n1", labels=(("app", app),))
            await world.put(bus, pod)
            answer = await world.cni("n1", "ADD", name, netns, PodRef("shop", name, pod.uid))
            assert answer.code == 0, (answer, world.tails())
            sent = reaches(netns, HUB, world.nats.port)
            assert (await world.cni("n1", "DEL", name, netns)).code == 0
            await world.take(bus, pod)
            return sent
    finally:
        run("ip", "netns", "del", netns)


def reaches(netns: str, address: str, port: int) -> bool:
    """Whether a connection from a namespace comes about."""
    with inside(netns):
        client = socket.socket()
    with client:
        client.settimeout(0.4)
        return client.connect_ex((address, port)) == 0


def changed(good: msgspec.Struct, chance: random.Random) -> bytes:
    """The message as MessagePack, with one value changed, or some bytes."""
    raw = bytearray(codec.encode(good))
    if chance.random() < 0.5:
        for _ in range(chance.randint(1, 3)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        return bytes(raw)
    values: Any = msgspec.msgpack.decode(bytes(raw))
    junk: Any = chance.choice(
        (None, -1, 1 << 40, "", "../x", "a" * 9000, [], {}, [[[]]], b"\xff", 1.5, True, "\n", "é")
    )
    keys = list(values) if isinstance(values, dict) else list(range(len(values)))
    if keys:
        values[chance.choice(keys)] = junk
    return msgspec.msgpack.encode(values, enc_hook=to_wire)


async def asked(bus: Bus, subject: str, body: bytes, headers: dict[str, str]) -> Reply:
    """The answer, whose words must be fit for a person."""
    reply = codec.decode(Reply, (await bus.connection.call(subject, body, timeout=8, headers=headers)).data)
    assert "\n" not in reply.message, reply
    assert len(reply.message) < 600, reply
    assert reply.code != "internal", reply
    assert "Traceback" not in reply.message, reply
    assert reply.ok or (reply.code and reply.message), reply
    return reply


@pytest.mark.parametrize("subject", sorted(ASKED))
async def test_an_endpoint_refuses_what_is_no_message_of_this_version(world: MiniCluster, subject: str) -> None:
    role, good = ASKED[subject]
    chance = random.Random(subject)
    async with bus_of(world.nats, role, "n1" if role == "dataplane" else None) as bus:
        before = await blocks(world)
        for body in NO_MESSAGE:
            reply = await asked(bus, subject, body, {VERSION: "1"})
            assert (reply.ok, reply.code) == (False, "malformed"), (body[:20], reply)
        for version in VERSIONS:
            reply = await asked(bus, subject, codec.encode(good), {VERSION: version})
            assert (reply.ok, reply.code) == (False, "unknown-version"), (version, reply)
        assert await blocks(world) == before
        for _ in range(CHANGED):
            await asked(bus, subject, changed(good, chance), {VERSION: "1"})
    assert world.fallen() == []
    assert world.troubles() == []


async def blocks(world: MiniCluster) -> set[str]:
    async with bus_of(world.nats, "cli") as bus:
        return set(await bus.bucket(BLOCKS).list(Block))


async def write(world: MiniCluster, bucket: Bucket, values: dict[str, bytes], *, forged: bool = False) -> None:
    """Bytes under keys, with the rights of who may write there; forged: as an answer steered there would look."""
    role, node, _ = WRITERS[bucket]
    stream = f"KV_{bucket.on_server}"
    headers = None if forged else {"Nats-Expected-Stream": stream}
    async with bus_of(world.nats, role, node or None) as bus:
        for key, value in values.items():
            reported = await bus.connection.call(
                f"$KV.{bucket.on_server}.{written(key)}", value, timeout=5, headers=headers
            )
            assert json.loads(reported.data).get("stream") == stream, reported.data


async def read(world: MiniCluster, bucket: Bucket) -> dict[str, bytes]:
    """Every value of a bucket as it stands, markers left out."""
    found = {}
    async with bus_of(world.nats, "cli") as bus:
        for key in await bus.bucket(bucket).list(Any):
            if not key.startswith("_"):
                wanted = json.dumps({"last_by_subj": f"$KV.{bucket.on_server}.{key}"}).encode()
                reported = await bus.connection.call(
                    f"{JETSTREAM}.STREAM.MSG.GET.KV_{bucket.on_server}", wanted, timeout=5
                )
                message = json.loads(reported.data).get("message", {})
                if "data" in message:  # else it was deleted since it was listed
                    found[key] = base64.b64decode(message["data"])
    return found


UNREADABLE = (
    b"",
    b"garbage",
    os.urandom(2000),
    msgspec.msgpack.encode([2, "", {}]),
    msgspec.msgpack.encode([1, "", [None] * 50]),
    msgspec.msgpack.encode([1, "x" * 5000, "y" * 5000]),
    b"\x93" * 50_000,
)


def test_every_bucket_is_tried() -> None:
    assert set(WRITERS) == set(BUCKETS)


WATCHED = (OBJECTS, BLOCKS, ENDPOINTS, IDENTITIES, RULES, ROUTES)


def reported_unreadable(world: MiniCluster) -> set[str]:
    """Keys that a service has reported as unreadable."""
    lines = [json.loads(line) for name in world.services for line in world.log(name).splitlines() if line[:1] == "{"]
    return {line["key"] for line in lines if line["event"] == "value-unreadable"}


@pytest.mark.parametrize("bucket", BUCKETS, ids=lambda bucket: str(bucket.name))
async def test_a_value_that_cannot_be_read_changes_nothing(world: MiniCluster, bucket: Bucket) -> None:
    _, node, foreign = WRITERS[bucket]
    there = await read(world, bucket) if bucket not in (OWNERS, CLAIMS, DNS) else {}
    own = {key: value for key, value in there.items() if not node or key.split(".")[0] == node}
    if bucket is LEASES:
        own = {}  # who holds it cannot renew what it cannot read, and a copy that is not active is what a lease is for
    wrong = {key: UNREADABLE[index % len(UNREADABLE)] for index, key in enumerate(sorted(own))}
    for value in UNREADABLE:
        await write(world, bucket, {foreign: value})
    await write(world, bucket, own, forged=True)
    await write(world, bucket, wrong)
    try:
        await asyncio.sleep(0.3)
        if bucket in WATCHED:
            assert {*wrong, foreign} & reported_unreadable(world), "it was never looked at"
        await lives(world, f"b{bucket.name}"[:8])
    finally:
        await write(world, bucket, own)
    await asyncio.sleep(0.2)
    await lives(world, f"a{bucket.name}"[:8])


# --- who may call ---

NOBODY = """
import os, socket, sys
os.chdir(sys.argv[1])
os.setgroups([]); os.setgid(65534); os.setuid(65534)
s = socket.socket(socket.AF_UNIX)
try:
    s.connect(sys.argv[2])
except PermissionError:
    print("refused"); raise SystemExit
try:
    s.sendall(b"CNI_COMMAND=STATUS\\0\\0" + b'{"cniVersion":"1.1.0","name":"a"}')
    s.shutdown(1)
    print("answered" if s.recv(10) else "hung up on")
except OSError:
    print("hung up on")
"""


def as_nobody(path: Path) -> str:
    """What somebody without any right hears who stands in the socket's folder, however far he could have come."""
    program = ["/usr/bin/python3", "-c", NOBODY, str(path.parent), path.name]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=20)
    return done.stdout.strip() or done.stderr


async def test_the_socket_is_roots_alone(world: MiniCluster) -> None:
    path = world.socket("n1")
    mode = path.stat()
    assert (stat.S_IMODE(mode.st_mode), mode.st_uid) == (0o600, 0)
    folder = stat.S_IMODE(path.parent.stat().st_mode)
    path.parent.chmod(folder | 0o001)  # those above are pytest's, which another run tidies
    try:
        assert as_nobody(path) == "refused", "the file's mode refuses"
        path.chmod(0o666)
        assert as_nobody(path) == "hung up on", "the peer's identity refuses"
    finally:
        path.chmod(0o600)
        path.parent.chmod(folder)
    assert (await world.cni("n1", "STATUS")).code == 0


def test_the_bus_talks_to_nobody_without_a_key(world: MiniCluster) -> None:
    for hello in (b"{}", b'{"user":"ipam","pass":""}', b'{"nkey":"UAAAA","sig":"AAAA"}', b"garbage"):
        with socket.create_connection((HUB, world.nats.port), 3) as link:
            link.settimeout(5)
            link.recv(4096)
            link.sendall(b"CONNECT " + hello + b"\r\nPING\r\n")
            said = b""
            with suppress(ConnectionError):
                while chunk := link.recv(4096):  # until the server hangs up
                    said += chunk
        assert b"PONG" not in said
        assert said in (b"", b"-ERR 'Authorization Violation'\r\n"), said


# --- names that lead elsewhere ---


def listing(world: MiniCluster) -> dict[str, int]:
    """Every file and folder that a name could lead to, with its size; logs and the bus' own store left out."""
    roots = [world.folder, world.folder.parent, Path("/run"), Path("/etc"), Path("/tmp"), Path("/opt/cni")]
    found: dict[str, int] = {}
    for root in roots:
        deep = root == world.folder
        for path in root.rglob("*") if deep else root.glob("*"):
            plain = not (path.name.endswith((".log", ".journal")) or world.folder / "nats" in path.parents)
            if plain and not path.name.startswith(("bash", "pytest", "tmp")):
                found[str(path)] = path.lstat().st_size if deep and path.is_file() else 0
    return found


FINE = {"CNI_CONTAINERID": "fine", "CNI_IFNAME": "eth0", "CNI_ARGS": "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=fine"}
HOSTILE = [
    *(
        ("CNI_CONTAINERID", value)
        for value in ("../x", "a/../../x", "/etc/passwd", "..", ".", "a\nb", "é", "a" * 129, "", "-a", "a%2fb", "~")
    ),
    *(
        ("CNI_IFNAME", value)
        for value in ("e" * 16, "../x", "a/b", "..", ".", "", "a:b", "a b", "é", "eth0\n", "a" * 4000)
    ),
    *(
        ("CNI_NETNS", value)
        for value in (
            "../x",
            "/run/netns/../../etc",
            "x",
            "",
            "/etc/passwd",
            "/dev/null",
            "/run/netns/none",
            "/" * 2000,
        )
    ),
    *(
        ("CNI_ARGS", f"K8S_POD_NAMESPACE={space};K8S_POD_NAME={name}")
        for space, name in (
            ("../x", "a"),
            ("shop", "../x"),
            ("", "a"),
            ("shop", ""),
            ("SHOP", "a"),
            ("shop", "a" * 300),
        )
    ),
    ("CNI_ARGS", "K8S_POD_UID=../x;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=a"),
    ("CNI_ARGS", ""),
    ("CNI_COMMAND", "../ADD"),
    ("CNI_COMMAND", "add"),
]


@pytest.mark.alone
async def test_no_name_leads_out_of_our_folders(world: MiniCluster) -> None:
    netns = f"{world.label}-t"
    run("ip", "netns", "add", netns)
    try:
        before = listing(world)
        for variable, value in HOSTILE:
            good = {**FINE, "CNI_NETNS": f"/run/netns/{netns}"}
            answer = await world.cni("n1", "ADD", environment={**good, variable: value})
            assert answer.code == 4, (variable, value, answer)
            assert "\n" not in answer.body["msg"], answer
            if variable in ("CNI_CONTAINERID", "CNI_IFNAME"):
                assert (await world.cni("n1", "DEL", environment={**good, variable: value})).code == 4
            elif variable == "CNI_NETNS":
                assert (await world.cni("n1", "DEL", environment={**good, variable: value})).code == 0
        for name in ("../x", "", "/", "a" * 300, 7, None, ["a"]):
            answer = await world.cni("n1", "ADD", "fine", netns, PodRef("shop", "fine", "u"), conf={"name": name})
            assert answer.code == 7, (name, answer)
        for entry in ({"containerID": "../x", "ifname": "eth0"}, {"containerID": "a", "ifname": "../x"}, {}, "x"):
            answer = await world.cni("n1", "GC", conf={"cni.dev/valid-attachments": [entry]})
            assert answer.code == 7, (entry, answer)
        after = listing(world)
        assert {path for path in after if path not in before} == set()
        assert {path: size for path, size in before.items() if after.get(path) != size} == {}
        assert "eth0" not in run("ip", "-n", netns, "-br", "link")
        assert world.pod_links("n1") == []
    finally:
        run("ip", "netns", "del", netns)
