"""Nodes' agents let onto a bus of real servers by `cluster`, as their pods' containers ask; and put out again."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from chassis.bus import connection as chassis_connection
from chassis.bus import joining
from chassis.bus.accounts import STATE
from chassis.bus.connection import Connection
from chassis.bus.credentials import credentials, parse
from chassis.bus.joining import Files, Joining, NotAdmitted
from chassis.bus.nats_config import new_key, write_secret
from chassis.bus.nats_jwt import RESOLVER_USER, claims_of
from chassis.faults import Refused, SettingsFault
from chassis.runtime.service import Runtime
from proto.admission import AUDIENCE, AdmissionRequest
from proto.codec import encode
from proto.subjects import ACKS, CLUSTER_ADMIT, ROLES
from services.cluster import admission
from services.cluster.core import admission as core
from tests.kubeapi import KubeApi
from tests.natsd import NatsServer, connecting
from tests.shell.cluster.apiserver import ApiServer
from tests.shell.cluster.test_mirror import cluster

ACCOUNT = "system:serviceaccount:airmesh-system:airmesh"
ROOM = "ask"
"""Namespace of the API server's own."""


async def until(what: str, holds: Callable[[], object], seconds: float = 40) -> None:
    try:
        async with asyncio.timeout(seconds):
            while not holds():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {seconds} s: {what}") from None


def word(node: str, uid: str, **more: Any) -> dict[str, Any]:
    """Of the API server on the token of a pod there."""
    extra = {"node-name": [node], "node-uid": [uid], "pod-name": [f"dataplane-of-{node}"]}
    user = {
        "username": ACCOUNT,
        "extra": {f"authentication.kubernetes.io/{name}": said for name, said in extra.items()},
    }
    return {"authenticated": True, "user": user, "audiences": [AUDIENCE], **more}


class Mesh:
    """A bus whose accounts are signed, `cluster` on it, and what nodes' containers do."""

    def __init__(self, server: NatsServer, api: ApiServer, runtime: Runtime[Any], folder: Path) -> None:
        self.server, self.api, self.runtime, self.folder = server, api, runtime, folder
        self.bootstrap = server.seeds / "bootstrap.seed"

    async def node(self, name: str) -> None:
        made = await self.api.put("Node", {}, name=name)
        self.api.reviews[f"token-of-{name}"] = word(name, made["metadata"]["uid"])

    def files(self, user: str, token: str) -> Files:
        path = self.folder / f"{user}.token"
        path.write_text(token)
        return Files(seed=self.folder / f"{user}.seed", authority=None, bootstrap=self.bootstrap, token=path)

    def joining(self, node: str, role: str = "dataplane", token: str = "") -> Joining:
        return Joining(node, role, self.server.url, self.files(f"{role}-{node}", token or f"token-of-{node}"))

    def key(self, user: str) -> str:
        return parse((self.folder / f"{user}.seed").read_text()).public

    @asynccontextmanager
    async def agent(self, user: str, file: Path | None = None) -> AsyncIterator[Connection]:
        async with connecting(self.server.url, user, file or self.folder / f"{user}.seed") as connection:
            yield connection

    async def is_let_in(self, user: str, file: Path) -> bool:
        async with self.agent(user, file) as one:
            await until(
                "it is let in or refused",
                lambda: one.connected or "authorization violation" in one.problem.lower(),
            )
            return one.connected

    def taken(self, user: str) -> Path:
        """What somebody has who took the file now."""
        path = self.folder / f"{user}.{time.monotonic_ns()}.taken"
        path.write_bytes((self.folder / f"{user}.seed").read_bytes())
        return path

    @property
    def reviews(self) -> int:
        return sum(line.startswith(f"POST {admission.REVIEWS}") for line in self.api.requests)

    def annotation(self, node: str, role: str = "dataplane") -> str:
        metadata = self.api.objects["Node"]["", node]["metadata"]
        return str(metadata.get("annotations", {}).get(f"airmesh.io/admitted-{role}", ""))


def signing(server: NatsServer, folder: Path) -> Path:
    """The Secret as the kubelet mounts it."""
    folder.mkdir()
    others = {one: server.issuer.account(one) for one in (STATE, *(r.name for r in ROLES if not r.per_node))}
    (folder / admission.SEED_FILE).write_text(server.issuer.nodes_seed.reveal())
    (folder / admission.ACCOUNTS_FILE).write_text(json.dumps(others))
    write_secret(folder / admission.RESOLVER_FILE, server.resolver)
    return folder


@pytest.fixture
def signed(tmp_path: Path) -> Iterator[NatsServer]:
    made = NatsServer(tmp_path / "nats", ("n1",), signed=True)
    made.start()
    yield made
    made.close()


@pytest_asyncio.fixture
async def mesh(
    signed: NatsServer, api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Mesh]:
    monkeypatch.setattr(chassis_connection, "RENEW_EVERY", 0.2)
    monkeypatch.setattr(joining, "PAUSE", 0.2)
    monkeypatch.setattr(admission, "PAUSE", 0.1)
    monkeypatch.setattr(admission, "KEPT_EVERY", 0.2)
    where = signing(signed, tmp_path / "secret")
    async with cluster(signed, api, tmp_path, admission_dir=where, departed_grace=1.0) as runtime:
        yield Mesh(signed, api, runtime, tmp_path)


async def test_a_new_node_makes_its_key_and_is_let_in_as_itself(mesh: Mesh) -> None:
    await mesh.node("n9")
    before = mesh.server.config.read_bytes()
    await mesh.joining("n9").join()
    file = mesh.folder / "dataplane-n9.seed"
    assert file.stat().st_mode & 0o777 == 0o600
    async with mesh.agent("dataplane-n9") as agent:
        await until("it is connected", lambda: agent.connected)
        stored = await agent.call(ACKS.subject("n9"), b"x", timeout=10, headers={"Nats-Expected-Stream": ACKS.stream})
        assert b'"seq"' in stored.data
        with pytest.raises(Refused):
            await agent.call(ACKS.subject("n1"), b"x", timeout=10)
        await until("it is told", lambda: mesh.annotation("n9") and mesh.api.events)
        assert mesh.annotation("n9").split()[0] == mesh.key("dataplane-n9")
        (event,) = mesh.api.events.values()
        assert (event["involvedObject"]["name"], event["reason"], event["type"]) == ("n9", "AirmeshAdmitted", "Normal")

        asked = mesh.reviews
        await mesh.joining("n9").join()
        assert mesh.reviews == asked, "who has a key that is let in asks nobody"
        assert agent.connected
    await mesh.node("n9.example.internal")
    await mesh.joining("n9.example.internal", "routing").join()
    assert await mesh.is_let_in("routing-n9=2Eexample=2Einternal", mesh.folder / "routing-n9.example.internal.seed")
    assert mesh.server.config.read_bytes() == before


async def test_no_key_leaves_the_node(mesh: Mesh) -> None:
    """Not even an answer that was lost made another one of it: the seed is in no message and in no object."""
    await mesh.node("n9")
    await mesh.joining("n9").join()
    seed = parse((mesh.folder / "dataplane-n9.seed").read_text()).seed.reveal()
    said = json.dumps([mesh.api.events, mesh.api.applied, mesh.runtime.lines.text])  # type: ignore[attr-defined]
    assert seed not in said
    assert mesh.key("dataplane-n9") in said


@pytest.mark.parametrize(
    "what", ["another node's token", "a token of nothing", "another account's", "a Node of before"]
)
async def test_who_is_not_of_that_node_is_refused_for_good(mesh: Mesh, what: str) -> None:
    await mesh.node("n8")
    await mesh.node("n9")
    token = {"another node's token": "token-of-n8", "a token of nothing": "x"}.get(what, "token-of-n9")
    if what == "another account's":
        user = {**mesh.api.reviews[token]["user"], "username": "system:serviceaccount:shop:default"}
        mesh.api.reviews[token] = {**mesh.api.reviews[token], "user": user}
    if what == "a Node of before":
        mesh.api.reviews[token] = word("n9", "the uid of before")
    with pytest.raises(NotAdmitted, match=r"asks for node|does not take|is system:serviceaccount|was deleted"):
        await mesh.joining("n9", token=token).join()
    assert not (mesh.folder / "dataplane-n9.seed").exists()
    assert mesh.annotation("n9") == ""


async def test_a_node_that_nobody_registered_waits_and_costs_the_api_server_nothing(
    mesh: Mesh, capsys: pytest.CaptureFixture[str]
) -> None:
    asking = asyncio.create_task(mesh.joining("n9").join())
    said = ""

    def reported() -> bool:
        nonlocal said
        said += capsys.readouterr().out
        return "there is no Node n9" in said

    await until("it is told why", reported)
    assert mesh.reviews == 0
    await mesh.node("n9")
    await asking
    assert await mesh.is_let_in("dataplane-n9", mesh.folder / "dataplane-n9.seed")


@pytest.mark.parametrize("what", ["expired", "none"])
async def test_without_a_bootstrap_token_that_is_good_nobody_asks(mesh: Mesh, what: str) -> None:
    await mesh.node("n9")
    mesh.bootstrap = mesh.folder / "token.creds"
    if what == "expired":
        seed, public = new_key()
        jwt = mesh.server.issuer.sign_user("bootstrap", "bootstrap", public, expires=int(time.time()) - 60)
        write_secret(mesh.bootstrap, credentials(jwt, seed))
    with pytest.raises(NotAdmitted, match="airmesh keys bootstrap-token"):
        await mesh.joining("n9").join()
    assert mesh.reviews == 0


async def test_a_bootstrap_token_asks_one_thing_and_hears_its_own_answers(mesh: Mesh) -> None:
    async with mesh.agent("bootstrap", mesh.bootstrap) as thief:
        await until("it is let in", lambda: thief.connected)
        for subject in ("$SRV.PING", ACKS.subject("n1"), "airmesh.v1.ipam.show", "_INBOX.cli.x", "_R_.x"):
            with pytest.raises(Refused):
                await thief.call(subject, b"", timeout=10)
        await thief.send(CLUSTER_ADMIT, b"x" * (17 << 10))
        await until("it is cut off", lambda: thief.reconnects or not thief.connected)
    assert mesh.reviews == 0


async def test_a_key_in_use_is_not_replaced_unless_it_is_asked_for(mesh: Mesh) -> None:
    """As of two machines with one name; then a rotation, old and new both good meanwhile; then one at once."""
    await mesh.node("n9")
    await mesh.joining("n9").join()
    first = mesh.taken("dataplane-n9")
    async with mesh.agent("dataplane-n9") as agent:
        await until("it is connected", lambda: agent.connected)
        twin = Joining("n9", "dataplane", mesh.server.url, mesh.files("twin", "token-of-n9"))
        with pytest.raises(NotAdmitted, match="is connected by another key"):
            await twin.join()
        assert (agent.connected, agent.reconnects) == (True, 0)

        await mesh.joining("n9").renew("beside")
        await until("it has signed in by the new one", lambda: (agent.connected, agent.reconnects) == (True, 1))
        assert not await mesh.is_let_in("dataplane-n9", first)
        second = mesh.taken("dataplane-n9")

        await mesh.joining("n9").renew("now")
        assert not await mesh.is_let_in("dataplane-n9", second)
        await until("it has taken the newest", lambda: agent.connected and agent.client().is_connected)
    assert await mesh.is_let_in("dataplane-n9", mesh.folder / "dataplane-n9.seed")


async def test_a_node_that_was_deleted_is_put_out_and_may_come_back(mesh: Mesh) -> None:
    await mesh.node("n9")
    await mesh.joining("n9").join()
    old = mesh.taken("dataplane-n9")
    async with mesh.agent("dataplane-n9") as agent:
        await until("it is connected", lambda: agent.connected)
        await agent.call(ACKS.subject("n9"), b"x", timeout=10, headers={"Nats-Expected-Stream": ACKS.stream})
        await mesh.api.delete("Node", name="n9")
        await until("it is put out", lambda: not agent.connected)
    assert not await mesh.is_let_in("dataplane-n9", old)
    await mesh.node("n9")
    await mesh.joining("n9").join()
    assert not await mesh.is_let_in("dataplane-n9", old)
    assert await mesh.is_let_in("dataplane-n9", mesh.folder / "dataplane-n9.seed")


async def test_a_flood_reaches_the_api_server_as_a_trickle(mesh: Mesh) -> None:
    """Of thousands of requests so many each turn come in; the mirror goes on, and who asks again comes through."""
    await mesh.node("n9")
    flood = 3000
    began = time.monotonic()
    async with mesh.agent("bootstrap", mesh.bootstrap) as thief:
        await until("it is let in", lambda: thief.connected)
        for number in range(flood):
            asks = AdmissionRequest("n9", "dataplane", "U" + "A" * 55, f"forged-{number}")
            await thief.client().publish(CLUSTER_ADMIT, encode(asks), reply=f"_INBOX.bootstrap.{number}")
            if number % 100 == 0:
                await thief.client().flush()
        await mesh.joining("n9").join()
    rounds = (time.monotonic() - began) / admission.PAUSE + 1
    assert mesh.reviews <= admission.AT_ONCE * rounds
    assert mesh.reviews < flood
    assert await mesh.is_let_in("dataplane-n9", mesh.folder / "dataplane-n9.seed")


async def test_an_account_of_an_earlier_release_is_signed_again(mesh: Mesh) -> None:
    """And one that lets a node in says the same as the installer's: nothing is done twice."""
    await mesh.node("n1")
    issuer = mesh.server.issuer
    user = mesh.server.users["dataplane-n1"]
    async with AsyncExitStack() as stack:
        file = mesh.folder / "resolver.creds"
        write_secret(file, mesh.server.resolver)
        hand = await stack.enter_async_context(mesh.agent(RESOLVER_USER, file))
        await until("it is connected", lambda: hand.connected)
        bus = admission.Bus(hand, admission.read(mesh.folder / "secret").issuer, 1)  # type: ignore[union-attr]
        role = user.role
        assert bus.is_current(role, "n1", await bus.claims(user.name))
        poor = next(one for one in mesh.server._accounts if one.name == user.name)
        stale = issuer.sign_account(type(poor)(name=user.name, imports=poor.imports[:1]), {"*": 5})
        await asyncio.sleep(1.1)  # an account is replaced by one of a later second
        assert not bus.is_current(role, "n1", claims_of(stale))
        await bus.let_in(role, "n1", 6)
        claims = await bus.claims(user.name)
        assert bus.is_current(role, "n1", claims)
        assert claims["nats"]["revocations"] == {"*": 5}


async def test_a_bus_that_has_lost_its_disk_is_handed_its_accounts_again(mesh: Mesh) -> None:
    """By what the Node says: agents that run have their keys, and ask for none."""
    await mesh.node("n9")
    await mesh.joining("n9").join()
    async with mesh.agent("dataplane-n9") as agent:
        await until("it is connected", lambda: agent.connected)
        await until("it is told", lambda: mesh.annotation("n9"))
        mesh.server.kill()
        shutil.rmtree(mesh.server.folder / "store")
        mesh.server.start()
        await until("it is let in again", lambda: agent.reconnects and agent.connected)


@pytest.mark.parametrize("broken", [admission.SEED_FILE, admission.ACCOUNTS_FILE, admission.RESOLVER_FILE])
def test_a_secret_that_cannot_be_used_is_said_at_the_start(signed: NatsServer, tmp_path: Path, broken: str) -> None:
    folder = signing(signed, tmp_path / "secret")
    assert admission.read(folder) is not None
    assert admission.read(tmp_path) is None
    assert admission.read(None) is None
    (folder / broken).write_text("no")
    with pytest.raises(SettingsFault, match="AIRMESH_ADMISSION_DIR"):
        admission.read(folder)


def test_the_api_server_itself_says_whose_token_it_is(kube_api: KubeApi) -> None:
    """A token of a pod as the kubelet has it made: bound to the pod, for our audience."""
    for path, body in (
        ("/api/v1/namespaces", {"kind": "Namespace", "metadata": {"name": ROOM}}),
        ("/api/v1/nodes", {"kind": "Node", "metadata": {"name": "asking.node"}}),
        (f"/api/v1/namespaces/{ROOM}/serviceaccounts", {"kind": "ServiceAccount", "metadata": {"name": "airmesh"}}),
    ):
        kube_api.call("POST", path, {"apiVersion": "v1", **body})
    spec = {
        "nodeName": "asking.node",
        "serviceAccountName": "airmesh",
        "containers": [{"name": "a", "image": "x"}],
    }
    pods = f"/api/v1/namespaces/{ROOM}/pods"
    pod = kube_api.call("POST", pods, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec})
    node = kube_api.call("GET", "/api/v1/nodes/asking.node")
    account = f"{ROOM}:airmesh"

    def token(audience: str, *, bound: bool) -> str:
        wanted: dict[str, Any] = {"audiences": [audience], "expirationSeconds": 600}
        if bound:
            reference = {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": pod["metadata"]["uid"]}
            wanted["boundObjectRef"] = reference
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": wanted}
        path = f"/api/v1/namespaces/{ROOM}/serviceaccounts/airmesh/token"
        return str(kube_api.call("POST", path, body)["status"]["token"])

    def asked(one: str) -> Any:
        answer = kube_api.call("POST", admission.REVIEWS, dict(core.review_body(one)))
        return core.asker(json.dumps(answer).encode(), account)

    try:
        good, later = token(AUDIENCE, bound=True), token(AUDIENCE, bound=True)
        assert asked(good) == core.Asker("p", "asking.node", node["metadata"]["uid"])
        assert asked(token("https://kubernetes.default.svc", bound=True)).code == "token-refused"
        assert asked(token(AUDIENCE, bound=False)).code == "not-bound"
        assert asked(good[:-4] + "AAAA").code == "token-refused"
        kube_api.call("DELETE", f"{pods}/p", {"gracePeriodSeconds": 0})
        # What the API server has once answered well it answers again for ten seconds.
        assert asked(later).code == "token-refused", "the pod is gone, and its token with it"
    finally:
        kube_api.call("DELETE", "/api/v1/nodes/asking.node")
