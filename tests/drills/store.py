"""What NATS really holds, read and torn down without a line of the product: raw keys, sequences, decoded bodies.

The mesh grants nobody the right to delete a bucket, so a drill adds a user of its own to the running server's
configuration (and takes it out again): :func:`janitor`. Where the servers are pods they trust an operator, which
signs the user.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import nats
import nats.errors
import nats.js.api
import nats.js.errors
import nkeys
from nats.aio.client import Client

from chassis.bus.accounts import STATE
from chassis.bus.credentials import credentials
from chassis.bus.nats_config import new_key
from chassis.bus.nats_jwt import Issuer
from chassis.secret import Secret
from cli.install import accounts, names
from tests.labkit import Lab

T = TypeVar("T")
_ACCOUNTS = "accounts: "


@dataclass(frozen=True, slots=True)
class Held:
    """One key: the sequence of its last write, and what it holds."""

    sequence: int
    body: Any


Contents = dict[str, Held]
SECONDS = 30.0
"""Of one piece of work; then TimeoutError."""
HANDSHAKE_SECONDS = 3.0
WATCHED_SECONDS = 600.0
"""Longest watch of a bucket."""


async def _ignore(_error: Exception) -> None:
    return


@dataclass(frozen=True, slots=True)
class Janitor:
    """A user with every right."""

    url: str
    known: dict[str, str]
    """What it signs in with, as the library calls it."""
    trust: dict[str, Any]

    async def _connect(self) -> Client:
        """The library waits for ever where a handshake was late on a busy machine: then it is made once more."""
        known: dict[str, Any] = {**self.known, **self.trust}
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(HANDSHAKE_SECONDS):
                    return await nats.connect(self.url, error_cb=_ignore, connect_timeout=2, **known)

    def run(self, work: Callable[[Client], Awaitable[T]], seconds: float = SECONDS) -> T:
        """Do something on a connection of its own, within so many seconds."""

        async def go() -> T:
            async with asyncio.timeout(seconds):
                client = await self._connect()
                try:
                    return await work(client)
                finally:
                    await client.close()

        return asyncio.run(go())

    def streams(self) -> list[str]:
        """Names of all streams."""

        async def ask(client: Client) -> list[str]:
            said = json.loads((await client.request("$JS.API.STREAM.NAMES", b"{}", timeout=5)).data)
            return list(said.get("streams") or [])

        return self.run(ask)

    def delete_all(self) -> list[str]:
        """Delete every stream, one right after the other; their names."""
        names = self.streams()

        async def delete(client: Client) -> None:
            for name in names:
                said = json.loads((await client.request(f"$JS.API.STREAM.DELETE.{name}", b"", timeout=5)).data)
                assert said.get("success"), said

        self.run(delete)
        return names

    def read(self, *buckets: str) -> dict[str, Contents]:
        """Contents of buckets. A bucket that is not there is empty."""

        async def dump(client: Client) -> dict[str, Contents]:
            return {bucket: await _contents(client, f"KV_{bucket}_v1") for bucket in buckets}

        return self.run(dump)

    def keys(self, seconds: float = SECONDS) -> dict[str, set[str]]:
        """Keys of all buckets that hold something: neither deleted nor empty."""

        async def list_all(client: Client) -> dict[str, set[str]]:
            said = json.loads((await client.request("$JS.API.STREAM.NAMES", b"{}", timeout=5)).data)
            return {stream: await _living(client, stream) for stream in said["streams"] if stream.startswith("KV_")}

        return self.run(list_all, seconds)

    def last_sequence(self, bucket: str) -> int:
        """The sequence of the last write to a bucket."""

        async def ask(client: Client) -> int:
            return (await client.jetstream().stream_info(f"KV_{bucket}_v1")).state.last_seq

        return self.run(ask)


async def _contents(client: Client, stream: str) -> Contents:
    stored = client.jetstream()
    try:
        subjects = (await stored.stream_info(stream, subjects_filter=">")).state.subjects or {}
    except nats.js.errors.NotFoundError:
        return {}
    found = {}
    for subject in subjects:
        with suppress(nats.js.errors.NotFoundError):
            message = await stored.get_last_msg(stream, subject)
            if message.data:  # an empty one is the mark of a deletion
                key = subject.split(".", 2)[2]
                found[key] = Held(message.seq or 0, msgspec.msgpack.decode(message.data)[2])
    return found


async def _living(client: Client, stream: str) -> set[str]:
    """By the headers of each key's last message: of a deletion it is named there, of an empty value the size."""
    stored = client.jetstream()
    if not (await stored.stream_info(stream)).state.messages:
        return set()
    newest = nats.js.api.DeliverPolicy.LAST_PER_SUBJECT
    subject = f"$KV.{stream.removeprefix('KV_')}.>"
    heard = await stored.subscribe(
        subject, stream=stream, ordered_consumer=True, deliver_policy=newest, headers_only=True
    )
    found, pending = set(), 1
    while pending:
        message = await heard.next_msg(SECONDS)
        headers, pending = message.headers or {}, message.metadata.num_pending
        if "KV-Operation" not in headers and headers.get("Nats-Msg-Size") != "0":
            found.add(message.subject.split(".", 2)[2])
    await heard.unsubscribe()
    return found


@contextmanager
def janitor(lab: Lab) -> Iterator[Janitor]:
    """A user with every right on the lab's server, until the end."""
    with _signed(lab) if lab.pods else _listed(lab) as known:
        made = Janitor(lab.nats_url, known, lab.trust)
        lab.until("the janitor is let in", lambda: _let_in(made))
        yield made


@contextmanager
def _signed(lab: Lab) -> Iterator[dict[str, str]]:
    secret = lab.get("secret", "--namespace", names.NAMESPACE, names.OPERATOR)["data"]
    issuer = Issuer(Secret(base64.b64decode(secret[accounts.OPERATOR_SEED]).decode()))
    seed, public = new_key()
    file = lab.where.nats / "janitor.creds"
    file.write_text(credentials(issuer.sign_user(STATE, "janitor", public), seed).reveal())
    try:
        yield {"user_credentials": str(file)}
    finally:
        file.unlink()


@contextmanager
def _listed(lab: Lab) -> Iterator[dict[str, str]]:
    config = lab.where.nats / "nats.conf"
    seed = lab.where.nats / "janitor.seed"
    pair = nkeys.from_seed(bytearray(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)))
    seed.write_bytes(bytes(pair.seed))
    head, _, written = config.read_text().partition(_ACCOUNTS)
    accounts = json.loads(written)
    accounts[STATE]["users"] = []  # without one that a crash left here
    before = head + _ACCOUNTS + json.dumps(accounts, indent=1) + "\n"
    accounts[STATE]["users"] = [{"nkey": pair.public_key.decode()}]
    config.write_text(head + _ACCOUNTS + json.dumps(accounts, indent=1) + "\n")
    try:
        os.kill(lab.pid("nats"), signal.SIGHUP)
        yield {"nkeys_seed": str(seed)}
    finally:
        config.write_text(before)
        seed.unlink()
        if pid := lab.pid("nats"):
            os.kill(pid, signal.SIGHUP)


def _let_in(made: Janitor) -> bool:
    try:
        made.streams()
    except (nats.errors.Error, OSError):
        return False
    return True


@dataclass(slots=True)
class Watch:
    """Every write to a bucket in its order, from now until it is closed. Made by :func:`watching`."""

    writes: list[tuple[str, Held]] = field(default_factory=list)
    ready: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    ended: BaseException | None = None


@contextmanager
def watching(by: Janitor, bucket: str) -> Iterator[Watch]:
    """See :class:`Watch`."""
    watch = Watch()

    async def follow(client: Client) -> None:
        new = nats.js.api.DeliverPolicy.LAST_PER_SUBJECT
        heard = await client.jetstream().subscribe(f"$KV.{bucket}_v1.>", ordered_consumer=True, deliver_policy=new)
        watch.ready.set()
        while not watch.over.is_set():
            with suppress(nats.errors.TimeoutError):
                message = await heard.next_msg(0.2)
                body = msgspec.msgpack.decode(message.data)[2] if message.data else None
                key = message.subject.split(".", 2)[2]
                watch.writes.append((key, Held(message.metadata.sequence.stream, body)))

    def run() -> None:
        try:
            by.run(follow, WATCHED_SECONDS)
        except BaseException as error:
            watch.ended = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert watch.ready.wait(10), watch.ended
    try:
        yield watch
    finally:
        time.sleep(0.5)
        watch.over.set()
        thread.join(10)
        assert watch.ended is None, watch.ended
