"""The NATS server's users and accounts as its configuration file, generated from ``proto.subjects.ROLES``.

What that table does not grant, nobody can do. ``chassis.bus.accounts`` says who can reach whom; here it becomes the
file of one server that knows all its accounts (the lab). ``chassis.bus.nats_jwt`` makes signed accounts of the same.

Only allow-lists (deny lists had bypasses), no ``allow_responses`` (it lets a requester steer replies), a private inbox
for each user, no user without an nkey, one user for each role or role and node, each in an account of its own. What
each verb needs was tried on nats-server 2.15 (tests/shell/chassis/bus/test_allow_lists.py repeats it for every role and
bucket).

What an allow-list cannot say: STREAM.MSG.GET names the key in its body and CONSUMER.CREATE with several filters too, so
a role confined to prefixes gets neither; it reads by DIRECT.GET and by consumers of one filter, whose keys stand in the
subject. Consumers cannot be confined by name: whoever knows the name of another reader's could take its messages or
remove it. So a name is 128 random bits that nobody else is told (``chassis.bus.tail``).

TLS is of version 1.3, by files as in a Secret of cert-manager: ``tls.crt``, ``tls.key`` and ``ca.crt`` in one folder. A
server reads them again at SIGHUP and drops nobody. Agents prove themselves by their keys, servers to each other by
certificates of the same authority and a secret of the cluster: who is in the cluster may say anything in any account.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import nkeys

from chassis.bus.accounts import STATE, Account, User, make_accounts
from chassis.secret import Secret
from proto.codec import MAX_VALUE, encode_segment
from proto.net import host_port
from proto.subjects import BUCKETS, ROLES, Role

__all__ = ["Cluster", "Server", "User", "make_users", "render", "user_name", "write_seeds"]

MAX_PAYLOAD = MAX_VALUE + 4096
"""Bytes of the largest message: a value, its envelope and its headers."""
HANDSHAKE_FIRST = "500ms"
"""How long a server waits for a TLS handshake before it sends INFO in the clear, for NATS' own tools and most others.

NATS' ``auto`` is 50 ms, which an agent on a node under load misses.
"""
MAX_BUFFERED = 128
"""Messages that wait before a stream. One more is refused at once, and its writer tries again (``chassis.bus.kv``): so
whoever floods a stream holds the others up by tenths of a second, where a long queue would be full of its messages."""
MAX_CLOSED = 100
"""Connections that are over of which a server tells (``connz?state=closed``). It keeps what each had subscribed to,
7 KB for sixty subjects; of 10,000 connections by default.
"""
MAX_FILE_STORE = sum(bucket.max_bytes for bucket in BUCKETS) * 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The servers that keep the streams together: each holds all, and one that is lost is done without."""

    port: int = 6222
    """Where this server hears the others."""
    routes: tuple[str, ...]
    """``host:port`` of every server, itself too: the same list for all."""
    secret: Secret
    """What they know each other by, beside their certificates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What one server's configuration says of itself."""

    store_dir: Path
    host: str = "127.0.0.1"
    port: int = 4222
    monitor_port: int = 0
    """Of loopback; 0: none."""
    name: str = "airmesh"
    """Its own within a cluster; ``$VARIABLE``: a variable of the server's environment says it."""
    tls: Path | None = None
    """Folder of ``tls.crt``, ``tls.key`` and ``ca.crt``; None: in the clear."""
    cluster: Cluster | None = None


def make_users(
    roles: Iterable[Role], nodes: Iterable[str], *, extra: Iterable[tuple[str, str]] = ()
) -> tuple[User, ...]:
    """A user with a new key for each role, and for each per-node role and node; ``extra`` adds (role, node) pairs."""
    by_name = {role.name: role for role in roles}
    wanted = [(name, "") for name, role in by_name.items() if not role.per_node]
    wanted += [(name, node) for name, role in by_name.items() if role.per_node for node in nodes]
    return tuple(_make_user(by_name[name], node) for name, node in dict.fromkeys([*wanted, *extra]))


def user_name(role: Role, node: str) -> str:
    """``ipam``, ``dataplane-n1``."""
    return f"{role.name}-{encode_segment(node)}" if role.per_node else role.name


def account_of_node(role: Role, node: str) -> Account:
    """The account of a node's agent, as it is among all: it names no other node, and no key."""
    others = [User(name=one.name, role=one, node="", seed=Secret(""), public="") for one in ROLES if not one.per_node]
    own = User(name=user_name(role, node), role=role, node=node, seed=Secret(""), public="")
    return next(one for one in make_accounts((*others, own)) if one.user is own)


def new_key() -> tuple[Secret, str]:
    """Seed and public key of a new nkey of a user."""
    pair = nkeys.from_seed(bytearray(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)))
    return Secret(bytes(pair.seed).decode()), pair.public_key.decode()


def _make_user(role: Role, node: str) -> User:
    seed, public = new_key()
    return User(name=user_name(role, node), role=role, node=node, seed=seed, public=public)


def write_seeds(users: Iterable[User], folder: Path) -> None:
    """One file ``<user>.seed`` each, readable by its owner alone."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for user in users:
        write_secret(folder / f"{user.name}.seed", user.seed)


def write_secret(path: Path, secret: Secret) -> None:
    """A file that its owner alone can read; one that is there is replaced."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret.reveal() + "\n")


def render(users: Iterable[User], server: Server, *, operator: str = "") -> str:
    """Text of nats.conf: nkey users only, every write on disk before it is acknowledged.

    ``operator`` is the public key of one more user, who may do anything to the streams; by default there is none.
    """
    return server_part(server) + accounts_part(make_accounts(users), operator)


def accounts_part(accounts: Iterable[Account], operator: str = "") -> str:
    """Text of nats.conf that says who there is and who can reach whom."""
    written = {account.name: _account(account, operator) for account in accounts}
    return f"accounts: {json.dumps(written, indent=1)}\n"


def server_part(server: Server) -> str:
    """Text of nats.conf without its users."""
    monitor = f'http: "127.0.0.1:{server.monitor_port}"\n' if server.monitor_port else ""
    return (
        "# Generated from proto/subjects.py; edit that table, not this file.\n"
        f"server_name: {server.name if server.name.startswith('$') else json.dumps(server.name)}\n"
        f'listen: "{host_port(server.host, server.port)}"\n'
        f"{monitor}"
        f"max_payload: {MAX_PAYLOAD}\n"
        "max_pending: 67108864\n"
        f"max_closed_clients: {MAX_CLOSED}\n"
        'write_deadline: "10s"\n'
        'ping_interval: "10s"\n'
        "ping_max: 2\n"
        "jetstream {\n"
        f"  store_dir: {json.dumps(str(server.store_dir))}\n"
        "  sync_interval: always\n"
        "  max_memory_store: 268435456\n"
        f"  max_file_store: {MAX_FILE_STORE}\n"
        f"  max_buffered_msgs: {MAX_BUFFERED}\n"
        "}\n"
        f"{_tls_part(server.tls) if server.tls else ''}"
        f"{_cluster_part(server, server.cluster) if server.cluster else ''}"
    )


def _tls_part(folder: Path) -> str:
    """Who begins with the handshake, as agents do, is answered at once; others get INFO after ``HANDSHAKE_FIRST``.

    A handshake that comes later finds INFO in place of its answer, and the connect is tried again.
    """
    return f"tls {_files(folder, handshake_first=HANDSHAKE_FIRST)}\n"


def _cluster_part(server: Server, cluster: Cluster) -> str:
    """Clients are told of no other servers: a discovered address would be held against the name of the first."""
    secret = cluster.secret.reveal()
    written: dict[str, object] = {
        "name": "airmesh",
        "listen": host_port(server.host, cluster.port),
        "no_advertise": True,
        "authorization": {"user": "route", "password": secret, "timeout": 5},
        "routes": [f"nats://route:{quote(secret, safe='')}@{route}" for route in cluster.routes],
    }
    tls = f",\n tls: {_files(server.tls, verify=True)}" if server.tls else ""
    return f"cluster: {json.dumps(written, indent=1).removesuffix(chr(10) + '}')}{tls}\n}}\n"


def _files(folder: Path, **more: object) -> str:
    files = {"cert_file": "tls.crt", "key_file": "tls.key", "ca_file": "ca.crt"}
    paths = {name: str(folder / file) for name, file in files.items()}
    return json.dumps({**paths, "min_version": "1.3", "timeout": 5, **more})


def _account(account: Account, operator: str) -> dict[str, object]:
    written: dict[str, object] = {"exports": [], "imports": []}
    written["exports"] = [
        {one.kind: one.subject, **({"response_type": "stream"} if one.many else {})} for one in account.exports
    ]
    written["imports"] = [
        {
            one.kind: {"account": one.account, "subject": one.subject},
            **({"to": one.local} if one.local != one.subject else {}),
        }
        for one in account.imports
    ]
    if account.user is not None:
        permissions = {"publish": {"allow": account.publish}, "subscribe": {"allow": account.subscribe}}
        written["users"] = [{"nkey": account.user.public, "permissions": permissions}]
    if account.name == STATE:
        written["jetstream"] = "enabled"
        written["users"] = [{"nkey": operator}] if operator else []
    return written
