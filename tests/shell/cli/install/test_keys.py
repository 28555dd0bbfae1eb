"""Keys of a bus that `airmesh install` made: a real server by its configuration, agents' real connections and Jobs."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
import sys
import time
import urllib.error
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from chassis.bus import connection as chassis_connection
from chassis.bus.accounts import User
from chassis.bus.client import Bus
from chassis.bus.connection import Connection
from chassis.bus.credentials import parse
from chassis.bus.nats_config import Server, render
from chassis.replaced_file import replace_file
from chassis.runtime.settings import BaseSettings
from chassis.secret import Secret
from cli.install import names, secrets
from proto.admission import AUDIENCE
from proto.subjects import ACKS
from services.cluster.app import build
from services.cluster.settings import Settings
from services.dataplane import seeds
from tests.natsd import connecting, free_port, runtime_as, runtime_of, server_program
from tests.shell.cli.install.conftest import APPS, NODES, ROOT, World
from tests.shell.cli.install.test_install import CORE, data

INSTALL = ("install", "--uplinks", "eth0", "--pool", "10.244.0.0/16", "--timeout", "30")
ANNOTATION = names.SINCE


async def until(what: str, holds: Callable[[], bool], seconds: float = 30) -> None:
    try:
        async with asyncio.timeout(seconds):
            while not holds():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {seconds} s: {what}") from None


class Kubelets:
    """What kubelets would do with the objects: run the bus and the Jobs, keep files of Secrets current."""

    def __init__(self, world: World, folder: Path, servers: int) -> None:
        self.world, self.folder = world, folder
        self.ports = [free_port() for _ in range(servers)]
        self._routes, self._monitors = ([free_port() for _ in range(servers)] for _ in range(2))
        self.url = ",".join(f"nats://127.0.0.1:{port}" for port in self.ports)
        self.ca = folder / "authority" / "ca.crt"
        self.starts = 0
        self.late: frozenset[str] = frozenset()
        """Whose files of the authority are not refreshed yet."""
        self._servers: list[subprocess.Popen[bytes]] = []
        self._uid = ""
        self._jobs: dict[str, subprocess.Popen[str]] = {}

    def seed(self, user: str) -> Path:
        """The file of an agent's user; a service's is as current as its Secret."""
        role, _, node = user.partition("-")
        if node:
            return self.folder / node / f"{role}.seed"
        path = self.folder / role / "seed"
        path.parent.mkdir(exist_ok=True)
        body = data(self.world, names.seed_secret(role))["seed"].encode()
        if not path.exists() or path.read_bytes() != body:
            replace_file(path, body, 0o600)
        return path

    def work(self, job: Any) -> bool:
        kind, name = job["metadata"]["labels"][names.JOB], job["metadata"]["name"]
        if kind == "seeds":
            node = job["spec"]["template"]["spec"]["nodeName"]
            seeds.write(self.mounted(names.node_secret(node)), self.folder / node)
            return True
        if kind == "renew":
            return self._renews(job)
        self.run_bus()
        self.refresh()
        if name not in self._jobs:
            (container,) = job["spec"]["template"]["spec"]["containers"]
            said = {one["name"]: one["value"] for one in container["env"]}
            folder = self.mounted(name)
            own = said["AIRMESH_NATS_CA_FILE"].startswith(container["command"][-1])
            ca = folder / "ca.crt" if own else self.ca
            env = {"PATH": os.environ["PATH"], "AIRMESH_NATS_URL": self.url, "AIRMESH_NATS_CA_FILE": str(ca)}
            argv = [sys.executable, "-m", "services.cluster.accounts", str(folder)]
            with (self.folder / "jobs.log").open("ab") as log:
                self._jobs[name] = subprocess.Popen(argv, cwd=ROOT, env=env, stdout=log, text=True)
        return self._jobs[name].poll() == 0

    def _renews(self, job: Any) -> bool:
        """One container after the other, as the kubelet runs them."""
        pod = job["spec"]["template"]["spec"]
        for one in (*pod["initContainers"], *pod["containers"]):
            key = f"{job['metadata']['name']} {one['name']}"
            if key not in self._jobs:
                self._jobs[key] = self._key(f"{one['name']}-{pod['nodeName']}", one["command"][4:])
            if self._jobs[key].poll() is None:
                return False
            assert self._jobs[key].returncode == 0, self._jobs[key].communicate()
        return True

    def _key(self, user: str, arguments: list[str], token: Path | None = None) -> subprocess.Popen[str]:
        """What the container beside an agent runs, as a pod on its node."""
        role, _, node = user.partition("-")
        pods, name = f"{CORE}/pods", f"dataplane--{node}"
        if (pod := self.world.get(f"{pods}/{name}")) is None:
            spec = {
                "nodeName": node,
                "serviceAccountName": "airmesh",
                "containers": [{"name": "a", "image": "x"}],
            }
            pod = self.world.kube.call(
                "POST", pods, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
            )
        bound = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": pod["metadata"]["uid"]}
        wanted = {"audiences": [AUDIENCE], "expirationSeconds": 600, "boundObjectRef": bound}
        said = self.world.kube.call(
            "POST",
            f"{CORE}/serviceaccounts/airmesh/token",
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": wanted},
        )
        own = self.folder / f"{node}.token"
        own.write_text(said["status"]["token"])
        env = {
            "PATH": os.environ["PATH"],
            "AIRMESH_NODE": node,
            "AIRMESH_NATS_URL": self.url,
            "AIRMESH_NATS_CA_FILE": str(self.ca),
            "AIRMESH_NATS_SEED_FILE": str(self.folder / node / f"{role}.seed"),
            "AIRMESH_BOOTSTRAP_FILE": str(token or self.mounted(names.BOOTSTRAP) / "token.creds"),
            "AIRMESH_TOKEN_FILE": str(own),
        }
        argv = [sys.executable, "-m", "chassis.bus.joining", *arguments]
        return subprocess.Popen(argv, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    async def joined(self, user: str, *, token: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Its container, to its end."""

        def run() -> subprocess.CompletedProcess[str]:
            with self._key(user, [user.partition("-")[0]], token) as running:
                said, _ = running.communicate(timeout=60)
                return subprocess.CompletedProcess(running.args, running.returncode, said)

        return await asyncio.to_thread(run)

    @asynccontextmanager
    async def cluster(self) -> AsyncIterator[None]:
        """The service itself, by its own Secrets."""
        folder = await asyncio.to_thread(self.mounted, names.ADMISSION)
        settings = Settings(
            nats_url=self.url,
            nats_seed_file=await asyncio.to_thread(self.seed, "cluster"),
            nats_user="cluster",
            nats_ca_file=self.ca,
            instance="cluster",
            kubeconfig=self.world.kube.kubeconfig(),
            admission_dir=folder,
            departed_grace=1.0,
        )
        async with runtime_as("cluster", settings) as runtime:
            await build(runtime)
            yield

    def run_bus(self) -> None:
        """Start the servers by their Secrets; again when their StatefulSet is another one."""
        bus = self.world.get(f"{APPS}/statefulsets/nats")
        uid = (
            f"{bus['metadata']['uid']} {bus['spec']['template']['metadata'].get('annotations', {}).get(names.CHECKSUM)}"
        )
        if uid == self._uid:
            return
        for one in self._servers:
            self._end(one)
        self._uid, self.starts = uid, self.starts + 1
        self.refresh()
        self._servers = [self._started(number) for number, _ in enumerate(self.ports)]

    def _started(self, number: int) -> subprocess.Popen[bytes]:
        config = data(self.world, names.BUS_CONFIG)["nats.conf"]
        routes = [(f"@192.0.2.{n}:6222", f"@127.0.0.1:{port}") for n, port in enumerate(self._routes, 1)]
        for old, new in (
            ("0.0.0.0:4222", f"127.0.0.1:{self.ports[number]}"),
            ("127.0.0.1:8222", f"127.0.0.1:{self._monitors[number]}"),
            ("/etc/nats-tls", str(self.folder / "tls")),
            ("/var/lib/nats", str(self.folder / f"store{number}")),
            *((*routes, ("0.0.0.0:6222", f"127.0.0.1:{self._routes[number]}")) if routes[1:] else ()),
        ):
            assert old in config, old
            config = config.replace(old, new)
        path = self.folder / f"nats{number}.conf"
        path.write_text(config)
        with (self.folder / f"nats{number}.log").open("ab") as log:
            env = {"PATH": os.environ["PATH"], "AIRMESH_NODE": f'"n{number + 1}"'}
            return subprocess.Popen([server_program(), "-c", str(path)], env=env, stdout=log, stderr=log)

    def restart(self, number: int) -> None:
        """A server ends and starts with what stands in its files."""
        self._end(self._servers[number])
        self._servers[number] = self._started(number)

    def refresh(self) -> None:
        """Files of the servers' certificate and of the authority, as the kubelet brings them: a folder at once."""
        self._replaced("tls", {key: text.encode() for key, text in data(self.world, names.BUS_TLS).items()})
        said = self.world.get(f"{CORE}/configmaps/{names.AUTHORITY}")["data"]
        for whose in ("authority", "late"):
            if whose not in self.late:
                self._replaced(whose, {key: text.encode() for key, text in said.items()})

    def _replaced(self, name: str, texts: dict[str, bytes]) -> None:
        link = self.folder / name
        if link.exists() and {path.name: path.read_bytes() for path in link.iterdir()} == texts:
            return
        fresh = self.folder / f"{name}.{time.monotonic_ns()}"
        fresh.mkdir()
        for key, text in texts.items():
            (fresh / key).write_bytes(text)
        beside = self.folder / f".{name}"
        beside.symlink_to(fresh)
        beside.replace(link)

    def mounted(self, secret: str) -> Path:
        """Folder of a Secret as it is now."""
        folder = self.folder / "mounted" / secret
        folder.mkdir(parents=True, exist_ok=True)
        for key, value in self.world.get(f"{CORE}/secrets/{secret}")["data"].items():
            (folder / key).write_bytes(base64.b64decode(value))
        return folder

    @staticmethod
    def _end(one: subprocess.Popen[Any] | None) -> None:
        if one is not None:
            one.kill()
            one.wait(10)

    def end(self) -> None:
        running: list[subprocess.Popen[Any]] = [*self._servers, *self._jobs.values()]
        for one in running:
            self._end(one)

    @asynccontextmanager
    async def agent(self, user: str, file: Path | None = None, ca: Path | None = None) -> AsyncIterator[Connection]:
        """An agent's connection, by its own files or others."""
        path = await asyncio.to_thread(self.seed, user) if file is None else file
        async with connecting(self.url, user, path, ca or self.ca) as connection:
            yield connection

    @asynccontextmanager
    async def service(self, name: str) -> AsyncIterator[Bus]:
        """A service's bus, whole."""
        settings = BaseSettings(
            nats_url=self.url,
            nats_seed_file=await asyncio.to_thread(self.seed, name),
            nats_user=name,
            nats_ca_file=self.ca,
            instance=name,
        )
        async with runtime_of(self, name, settings=settings) as runtime:  # type: ignore[arg-type]
            yield runtime.bus

    def user(self, role: str, _node: str | None = None) -> User:
        """Of a role that is not per node, as ``runtime_of`` asks a server for it."""
        found = next(key for key in secrets.keys(()) if key.role.name == role)
        return User(name=found.user, role=found.role, node="", seed=Secret(""), public="")

    async def is_let_in(self, user: str, file: Path) -> bool:
        async with self.agent(user, file) as one:
            await until(
                f"{user} is let in or refused",
                lambda: one.connected or "authorization violation" in one.problem.lower(),
            )
            return one.connected

    def copy(self, user: str) -> Path:
        """What somebody has who took the file now."""
        path = self.folder / f"{user}.{len(list(self.folder.glob('*.taken')))}.taken"
        path.write_bytes(self.seed(user).read_bytes())
        return path

    def annotated(self, secret: str) -> bool:
        return ANNOTATION in (self.world.get(f"{CORE}/secrets/{secret}")["metadata"].get("annotations") or {})


@pytest.fixture
def servers() -> int:
    """Of the bus: one, on n1."""
    return 1


@pytest.fixture
def kubelets(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, servers: int) -> Iterator[Kubelets]:
    monkeypatch.setattr(chassis_connection, "RENEW_EVERY", 0.2)
    for name in NODES[:servers]:
        world.kube.merge(f"/api/v1/nodes/{name}", {"metadata": {"labels": {names.BUS_NODE: "true"}}})
    made = Kubelets(world, tmp_path, servers)
    world.works = made.work
    yield made
    world.works = lambda _: True
    made.end()


async def airmesh(world: World, *arguments: str) -> Any:
    return await asyncio.to_thread(world.airmesh, *arguments)


async def keys_in_secrets(world: World) -> None:
    """As an earlier release made those of nodes, too."""
    assert (await airmesh(world, "keys", "accounts")).code == 0


async def test_a_node_that_comes_makes_its_own_keys_and_is_let_in(world: World, kubelets: Kubelets) -> None:
    """By what `airmesh install` made, without a Secret of the node's; then another key, and its end."""
    installed = await airmesh(world, *INSTALL)
    assert "revision 1" in installed.out, installed.err
    world.kube.call("POST", "/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n4"}})
    try:
        async with kubelets.cluster():
            for user in ("dataplane-n4", "routing-n4"):
                joined = await kubelets.joined(user)
                assert joined.returncode == 0, joined.stdout
            async with kubelets.agent("dataplane-n4") as node, kubelets.agent("routing-n4") as routing:
                await until("both are connected", lambda: node.connected and routing.connected)
                assert world.get(f"{CORE}/secrets/{names.node_secret('n4')}") is None
                first = kubelets.copy("dataplane-n4")
                turned = await airmesh(world, "keys", "rotate", "--node", "n4")
                assert (turned.code, turned.out) == (0, "new keys: node n4\n"), turned.err
                assert [(one.connected, one.reconnects) for one in (node, routing)] == [(True, 1), (True, 1)]
                assert not await kubelets.is_let_in("dataplane-n4", first)
                assert await kubelets.is_let_in("dataplane-n4", kubelets.seed("dataplane-n4"))

                world.kube.call("DELETE", "/api/v1/nodes/n4")
                own = ACKS.subject("n4")
                await node.call(own, b"x", timeout=10, headers={"Nats-Expected-Stream": ACKS.stream})
                await until("n4 is put out", lambda: not node.connected and not routing.connected)
    finally:
        with suppress(urllib.error.HTTPError):
            world.kube.call("DELETE", "/api/v1/nodes/n4")


@pytest.mark.slow
async def test_a_token_that_was_revoked_lets_nobody_ask(world: World, kubelets: Kubelets) -> None:
    """The next one does; nothing else changes, and no server starts again."""
    installed = await airmesh(world, *INSTALL)
    assert "revision 1" in installed.out, installed.err
    async with kubelets.cluster():
        joined = await kubelets.joined("routing-n2")
        assert joined.returncode == 0, joined.stdout
        async with kubelets.agent("routing-n2") as routing:
            await until("it is connected", lambda: routing.connected)
            (listed,) = (await airmesh(world, "keys", "bootstrap-token", "--list")).out.splitlines()
            before = kubelets.mounted(names.BOOTSTRAP).rename(kubelets.folder / "before")
            ended = await airmesh(world, "keys", "bootstrap-token", "--revoke", listed.split()[0])
            assert (ended.code, "nodes are given it" in ended.out) == (0, True), ended.err
            assert kubelets.starts == 1
            again = await airmesh(world, "install", "--dry-run")
            assert again.out == "no difference\n", again.out

            seed = kubelets.seed("routing-n2").rename(kubelets.folder / "kept")
            refused = await kubelets.joined("routing-n2", token=before / "token.creds")
            assert refused.returncode == 1
            assert "it has expired, or was revoked" in refused.stdout
            twin = await kubelets.joined("routing-n2")
            assert (twin.returncode, "is connected by another key" in twin.stdout) == (1, True), twin.stdout
            seed.rename(kubelets.seed("routing-n2"))


@pytest.mark.slow
async def test_keys_are_rotated_beneath_agents_that_stay(world: World, kubelets: Kubelets) -> None:
    await keys_in_secrets(world)
    installed = await airmesh(world, *INSTALL)
    assert "revision 1" in installed.out, installed.err
    users = ("dataplane-n1", "routing-n1", "ipam")
    async with AsyncExitStack() as stack:
        agents = {user: await stack.enter_async_context(kubelets.agent(user)) for user in users}
        await until("all are connected", lambda: all(one.connected for one in agents.values()))
        taken = {user: kubelets.copy(user) for user in users}
        async with kubelets.service("cluster") as bus:
            await bus.make_buckets()
            own = ACKS.subject("n1")
            stored = await agents["dataplane-n1"].call(
                own, b"x", timeout=10, headers={"Nats-Expected-Stream": ACKS.stream}
            )
            assert b'"seq"' in stored.data, "streams are in the account that all of them know"

        rotating = asyncio.create_task(airmesh(world, "keys", "rotate", "--node", "n1", "--service", "ipam"))
        while not rotating.done():
            await asyncio.to_thread(kubelets.seed, "ipam")
            await asyncio.sleep(0.1)
        done = await rotating
        assert (done.code, done.out) == (0, "new keys: node n1, service ipam\n"), done.err
        await until("all are connected", lambda: all(one.connected for one in agents.values()))
        assert {user: one.reconnects for user, one in agents.items()} == dict.fromkeys(users, 1)
        for user, file in taken.items():
            assert not await kubelets.is_let_in(user, file), user
            assert await kubelets.is_let_in(user, kubelets.seed(user)), user
        assert not kubelets.annotated(names.node_secret("n1"))
        assert {user: one.reconnects for user, one in agents.items()} == dict.fromkeys(users, 1)


@pytest.mark.slow
async def test_who_does_not_take_its_key_keeps_the_old_one(world: World, kubelets: Kubelets) -> None:
    """Until it takes it, or the old one is said to be stolen."""
    await keys_in_secrets(world)
    installed = await airmesh(world, *INSTALL)
    assert "revision 1" in installed.out, installed.err
    rotate = ("keys", "rotate", "--node", "n3")
    old = {user: kubelets.copy(user) for user in ("dataplane-n3", "routing-n3")}
    late = await airmesh(world, *rotate, "--timeout", "2")
    assert late.code == 4
    assert "node n3: keep their old keys beside new ones" in late.err
    assert kubelets.annotated(names.node_secret("n3"))
    begun = data(world, names.node_secret("n3"))
    async with AsyncExitStack() as stack:
        agents = [await stack.enter_async_context(kubelets.agent(user)) for user in old]
        await until("both are connected", lambda: all(one.connected for one in agents))
        assert await kubelets.is_let_in("dataplane-n3", old["dataplane-n3"]), "both are good"
        done = await airmesh(world, *rotate)
        assert done.code == 0, done.err
        assert "a rotation was begun, and goes on" in done.err
        assert data(world, names.node_secret("n3")) == begun, "no third key"
        assert [one.reconnects for one in agents] == [0, 0]
        for user, file in old.items():
            assert not await kubelets.is_let_in(user, file)
        stolen = kubelets.copy("routing-n3")
    assert await kubelets.is_let_in("routing-n3", stolen)
    done = await airmesh(world, *rotate, "--now")
    assert done.code == 0, done.err
    assert not await kubelets.is_let_in("routing-n3", stolen)
    assert await kubelets.is_let_in("routing-n3", kubelets.seed("routing-n3"))

    # Nothing is left to do, and no server starts again for it.
    generation = world.get(f"{APPS}/statefulsets/nats")["metadata"]["generation"]
    assert (await airmesh(world, "install", "--dry-run")).out == "no difference\n"
    again = await airmesh(world, "install", "--timeout", "30")
    assert "0 Secrets made" in again.err, again.err
    assert world.get(f"{APPS}/statefulsets/nats")["metadata"]["generation"] == generation
    assert kubelets.starts == 1
    for user, file in {**old, "routing-n3": stolen}.items():
        assert not await kubelets.is_let_in(user, file), user


@pytest.mark.slow
async def test_a_node_that_goes_is_put_out_and_no_server_starts_again(world: World, kubelets: Kubelets) -> None:
    await keys_in_secrets(world)
    installed = await airmesh(world, *INSTALL)
    assert "revision 1" in installed.out, installed.err
    async with kubelets.agent("dataplane-n2") as leaving:
        await until("n2 is connected", lambda: leaving.connected)
        world.kube.call("DELETE", "/api/v1/nodes/n2")
        again = await airmesh(world, "install", "--timeout", "30")
        assert "revision 1" in again.out, "it is the same installation"
        await until("n2 is put out", lambda: not leaving.connected)
        assert not await kubelets.is_let_in("dataplane-n2", kubelets.seed("dataplane-n2"))
    assert kubelets.starts == 1
    assert world.get(f"{CORE}/secrets/{names.node_secret('n2')}") is None


@pytest.mark.slow
async def test_a_bus_that_lists_its_users_is_carried_over_by_an_upgrade(world: World, kubelets: Kubelets) -> None:
    """As an earlier release installed it: plain seeds, users in the servers' file. Keys stay, and agents come back."""
    none = await airmesh(world, "keys", "rotate", "--all")
    assert (none.code, "airmesh is not installed" in none.err) == (4, True)
    await keys_in_secrets(world)
    installed = await airmesh(world, *INSTALL)
    assert "revision 1" in installed.out, installed.err
    there = {one["metadata"]["name"]: one for one in world.items(f"{CORE}/secrets")}
    nodes = [secrets.host_of(world.get(f"/api/v1/nodes/{name}")) for name in NODES]
    for name in {key.secret for key in secrets.keys(nodes)}:
        texts = {key: parse(text).seed.reveal() for key, text in secrets.texts_of(there[name]).items()}
        world.kube.merge(f"{CORE}/secrets/{name}", {"data": secrets.secret(name, texts)["data"]})
        there[name] = secrets.secret(name, texts)
    server = secrets.server(there, nodes[:1])
    assert isinstance(server, Server)
    listed = secrets.secret(names.BUS_CONFIG, {"nats.conf": render(secrets.users(there, nodes), server)})
    world.kube.merge(f"{CORE}/secrets/{names.BUS_CONFIG}", {"data": listed["data"]})
    world.kube.call("DELETE", f"{CORE}/secrets/{names.OPERATOR}")
    bus = world.get(f"{APPS}/statefulsets/nats")
    world.kube.call("DELETE", f"{APPS}/statefulsets/nats")
    del bus["spec"]["template"]["metadata"]["annotations"], bus["status"]
    bus["metadata"] = {key: bus["metadata"][key] for key in ("name", "namespace", "labels")}
    world.kube.call("POST", f"{APPS}/statefulsets", bus)
    for name in NODES:
        seeds.write(kubelets.mounted(names.node_secret(name)), kubelets.folder / name)
    kubelets.run_bus()

    refused = await airmesh(world, "keys", "rotate", "--all")
    assert (refused.code, "carry it over first: airmesh upgrade" in refused.err) == (4, True), refused.err
    public = parse(kubelets.seed("dataplane-n2").read_text()).public
    async with kubelets.agent("dataplane-n2") as node:
        await until("n2 is connected", lambda: node.connected)
        up = await airmesh(world, "upgrade", "--timeout", "30")
        assert "revision 2" in up.out, up.err
        assert "its buckets are refilled" in up.err
        await until("n2 is connected again", lambda: node.connected and node.reconnects >= 1)
    assert parse(kubelets.seed("dataplane-n2").read_text()).public == public
    assert "operator: " in data(world, names.BUS_CONFIG)["nats.conf"]
