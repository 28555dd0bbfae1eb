"""The NATS server's users and allow-lists, generated from ``proto.subjects.ROLES``.

What that table does not grant, nobody can do.

Only allow-lists (deny lists had bypasses), no ``allow_responses`` (it lets a requester steer replies), a private inbox
for each user, no user without an nkey, one user for each role or role and node. What each verb needs was tried on
nats-server 2.15 (tests/shell/chassis/test_allow_lists.py repeats it for every role and bucket).

What an allow-list cannot say: STREAM.MSG.GET names the key in its body and CONSUMER.CREATE with several filters too, so
a role confined to prefixes gets neither; it reads by DIRECT.GET and by consumers of one filter, whose keys stand in the
subject. Nor can it confine consumers by name: a reader of a bucket can remove another's consumer, whose view then lists
again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import nkeys

from chassis.secret import Secret
from proto.codec import MAX_VALUE, encode_segment
from proto.subjects import BUCKETS, Bucket, Grant, Role

MAX_PAYLOAD = MAX_VALUE + 4096
"""Bytes of the largest message: a value, its envelope and its headers."""
MAX_FILE_STORE = sum(bucket.max_bytes for bucket in BUCKETS) * 2


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """One user of the bus. ``seed`` goes into its own file (0600); ``public`` into the server's configuration."""

    name: str
    role: Role
    node: str
    """Node name; empty for a role that is not per node."""
    seed: Secret
    public: str


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


def _make_user(role: Role, node: str) -> User:
    pair = nkeys.from_seed(bytearray(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)))
    return User(
        name=user_name(role, node),
        role=role,
        node=node,
        seed=Secret(bytes(pair.seed).decode()),
        public=pair.public_key.decode(),
    )


def write_seeds(users: Iterable[User], folder: Path) -> None:
    """One file ``<user>.seed`` each, readable by its owner alone."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for user in users:
        path = folder / f"{user.name}.seed"
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(user.seed.reveal() + "\n")


def render(
    users: Iterable[User],
    *,
    store_dir: Path,
    host: str = "127.0.0.1",
    port: int = 4222,
    monitor_port: int = 0,
    server_name: str = "airmesh",
) -> str:
    """Text of nats.conf: nkey users only, every write on disk before it is acknowledged."""
    users = tuple(users)
    authorization = {
        "users": [
            {"nkey": user.public, "permissions": _permissions(user, users)} for user in users
        ]
    }  # fmt: skip
    monitor = f'http: "127.0.0.1:{monitor_port}"\n' if monitor_port else ""
    return (
        "# Generated from proto/subjects.py; edit that table, not this file.\n"
        f"server_name: {json.dumps(server_name)}\n"
        f'listen: "{host}:{port}"\n'
        f"{monitor}"
        f"max_payload: {MAX_PAYLOAD}\n"
        "max_pending: 67108864\n"
        'write_deadline: "10s"\n'
        'ping_interval: "10s"\n'
        "ping_max: 2\n"
        "jetstream {\n"
        f"  store_dir: {json.dumps(str(store_dir))}\n"
        "  sync_interval: always\n"
        "  max_memory_store: 268435456\n"
        f"  max_file_store: {MAX_FILE_STORE}\n"
        "}\n"
        f"authorization: {json.dumps(authorization, indent=1)}\n"
    )


def _permissions(user: User, users: tuple[User, ...]) -> dict[str, object]:
    return {
        "publish": {"allow": sorted(set(_publishes(user, users)))},
        "subscribe": {"allow": sorted(set(_subscribes(user)))},
    }


def _prefixes(grant: Grant, user: User) -> list[str]:
    """Subjects below ``$KV.<bucket>.`` that a grant covers."""
    found: list[str] = []
    for prefix in grant.prefixes:
        key = prefix.replace("{node}", encode_segment(user.node))
        found += [key] if key == ">" else [key, f"{key}.>"]
    return found


def _publishes(user: User, users: tuple[User, ...]) -> list[str]:
    allowed: list[str] = []
    for grant in user.role.writes:
        allowed += _write(grant, user)
    for grant in user.role.reads:
        allowed += _read(grant, user)
    if user.role.makes_buckets:
        for bucket in BUCKETS:
            stream = f"KV_{bucket.on_server}"
            allowed += [f"$JS.API.STREAM.CREATE.{stream}", f"$JS.API.STREAM.INFO.{stream}"]
    node = encode_segment(user.node)
    allowed += [subject.replace("{node}", node) for subject in (*user.role.requests, *user.role.publishes)]
    allowed += [f"_INBOX.{other.name}.>" for other in users if _asks(other.role, user.role)]
    return allowed


def _asks(asker: Role, answerer: Role) -> bool:
    """True when replies go from ``answerer`` to ``asker``: what it serves, or its micro service's PING, INFO, STATS."""
    return "$SRV.>" in asker.requests or bool(
        {subject.replace("{node}", "*") for subject in asker.requests} & set(answerer.serves)
    )


def _write(grant: Grant, user: User) -> list[str]:
    """A writer may also read its own keys, for compare-and-set."""
    bucket = grant.bucket
    stream = f"KV_{bucket.on_server}"
    subjects = [f"$KV.{bucket.on_server}.{prefix}" for prefix in _prefixes(grant, user)]
    return [*subjects, *(f"$JS.API.DIRECT.GET.{stream}.{subject}" for subject in subjects)]


def _read(grant: Grant, user: User) -> list[str]:
    bucket: Bucket = grant.bucket
    stream = f"KV_{bucket.on_server}"
    allowed = [
        f"$JS.API.STREAM.INFO.{stream}",
        f"$JS.API.CONSUMER.INFO.{stream}.>",
        f"$JS.API.CONSUMER.DELETE.{stream}.>",
        f"$JS.FC.{stream}.>",
    ]
    if grant.prefixes == (">",):
        return [*allowed, f"$JS.API.STREAM.MSG.GET.{stream}", f"$JS.API.CONSUMER.CREATE.{stream}.>"]
    subjects = [f"$KV.{bucket.on_server}.{prefix}" for prefix in _prefixes(grant, user)]
    allowed += [f"$JS.API.DIRECT.GET.{stream}.{subject}" for subject in subjects]
    return [*allowed, *(f"$JS.API.CONSUMER.CREATE.{stream}.*.{subject}" for subject in subjects)]


def _subscribes(user: User) -> list[str]:
    name = user.role.name
    allowed = [f"_INBOX.{user.name}.>", *user.role.serves, *user.role.listens]
    if "$SRV.>" not in user.role.requests:
        for verb in ("PING", "INFO", "STATS"):
            allowed += [f"$SRV.{verb}", f"$SRV.{verb}.{name}", f"$SRV.{verb}.{name}.*"]
    return allowed
