"""Users, keys and certificates of the bus as Secrets: what has to be made, and what follows from what is there.

A key is made once and never again: a Secret that is there counts, whoever made it. What the servers are told (public
keys, accounts, routes) follows from the Secrets and the nodes of the moment, so it is written at each install: a node
that is new gets its users, and one that is gone has none any more. Everything but the making of keys is pure.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nkeys

from chassis.bus.nats_config import Cluster, Server, User, new_key, render, user_name
from chassis.secret import Secret
from cli.faults import Declined
from cli.install import certificates, names
from cli.install.certificates import Pair
from cli.install.kinds import Object
from proto.subjects import ROLES, Role

CLIENTS = 4222
SERVERS = 6222
MONITOR = 8222
ROUTES_KEY = "routes"
_TLS = Path("/etc/nats-tls")
_STORE = Path("/var/lib/nats")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A node of the cluster: what the bus has to know of it."""

    name: str
    uid: str
    addresses: tuple[str, ...]
    """Its internal addresses."""


def host_of(node: Mapping[str, Any]) -> Host:
    """Of a Node as the API serves it."""
    addresses = node.get("status", {}).get("addresses") or ()
    return Host(
        name=node["metadata"]["name"],
        uid=node["metadata"].get("uid", ""),
        addresses=tuple(one["address"] for one in addresses if one["type"] == "InternalIP"),
    )


def secret(name: str, texts: Mapping[str, str], kind: str = "Opaque") -> Object:
    """A Secret of ours."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": kind,
        "metadata": {"name": name, "namespace": names.NAMESPACE, "labels": {names.PART_OF: "airmesh"}},
        "data": {key: base64.b64encode(text.encode()).decode() for key, text in texts.items()},
    }


def texts_of(found: Mapping[str, Any]) -> dict[str, str]:
    """What a Secret holds."""
    given: Mapping[str, str] = found.get("data") or {}
    return {key: base64.b64decode(value).decode(errors="replace") for key, value in given.items()}


def missing_keys(there: Mapping[str, Any], hosts: Iterable[Host]) -> Iterator[Object]:
    """Secrets of users that are not there yet, with new keys. ``there``: the Secrets that are, by name."""
    for role in ROLES:
        if not role.per_node and names.seed_secret(role.name) not in there:
            yield secret(names.seed_secret(role.name), {"seed": new_key()[0].reveal() + "\n"})
    for host in hosts:
        if names.node_secret(host.name) not in there:
            seeds = {f"{role.name}.seed": new_key()[0].reveal() + "\n" for role in ROLES if role.per_node}
            yield secret(names.node_secret(host.name), seeds)


def missing_certificates(there: Mapping[str, Any], servers: Sequence[Host]) -> Iterator[Object]:
    """The authority, and the servers' certificate. One of ours that lacks a server's name is made again by the same
    authority; another's (without our authority's key) never is: raises `Declined`.
    """
    own = texts_of(there[names.BUS_SECRET]) if names.BUS_SECRET in there else {}
    wanted = {"localhost", "127.0.0.1", *(name for host in servers for name in (host.name, *host.addresses))}
    if names.BUS_TLS in there:
        has = certificates.names_of(texts_of(there[names.BUS_TLS]).get("tls.crt", ""))
        lacking = sorted(wanted - has)
        if not lacking:
            if ROUTES_KEY not in own:
                yield secret(names.BUS_SECRET, {**own, ROUTES_KEY: secrets.token_urlsafe(24)})
            return
        if "tls.key" not in own:
            raise Declined(
                f"Secret {names.BUS_TLS} is for none of the names {', '.join(lacking)}",
                "have its certificate made for them too (cert-manager: dnsNames, ipAddresses), or delete the Secret",
            )
    if "tls.key" in own:
        authority = Pair(certificate=own["tls.crt"], key=own["tls.key"])
    else:
        authority = certificates.make_authority()
        more = {"tls.crt": authority.certificate, "tls.key": authority.key, ROUTES_KEY: secrets.token_urlsafe(24)}
        yield secret(names.BUS_SECRET, {**own, **more})
    leaf = certificates.sign(authority, sorted(wanted))
    texts = {"tls.crt": leaf.certificate, "tls.key": leaf.key, "ca.crt": authority.certificate}
    yield secret(names.BUS_TLS, texts, "kubernetes.io/tls")


def users(there: Mapping[str, Any], hosts: Iterable[Host]) -> tuple[User, ...]:
    """The users whose keys are there: of all roles, and of the nodes of the moment."""
    per_node = [role for role in ROLES if role.per_node]
    found = [
        _user(role, "", texts_of(there[names.seed_secret(role.name)]).get("seed", ""))
        for role in ROLES
        if not role.per_node
    ]
    for host in hosts:
        seeds = texts_of(there[names.node_secret(host.name)])
        found += [_user(role, host.name, seeds.get(f"{role.name}.seed", "")) for role in per_node]
    return tuple(found)


def _user(role: Role, node: str, text: str) -> User:
    seed = text.strip()
    try:
        public = nkeys.from_seed(bytearray(seed.encode())).public_key.decode()
    except Exception as error:
        where = names.node_secret(node) if node else names.seed_secret(role.name)
        raise Declined(
            f"Secret {where} holds no seed of a user nkey", "delete it and install again: it gets a new key"
        ) from error
    return User(name=user_name(role, node), role=role, node=node, seed=Secret(seed), public=public)


def bus_config(there: Mapping[str, Any], hosts: Sequence[Host], servers: Sequence[Host]) -> Object:
    """The Secret with the servers' configuration; a server says its own name on its command line."""
    routes = tuple(_at(host.addresses[0], SERVERS) for host in servers)
    four = any("." in address for host in servers for address in host.addresses)
    shared = Secret(texts_of(there[names.BUS_SECRET])[ROUTES_KEY])
    server = Server(
        store_dir=_STORE,
        host="0.0.0.0" if four else "::",  # noqa: S104 - of the node's addresses; users have keys, and TLS is demanded
        port=CLIENTS,
        monitor_port=MONITOR,
        tls=_TLS,
        cluster=Cluster(port=SERVERS, routes=routes, secret=shared) if len(servers) > 1 else None,
    )
    return secret(names.BUS_CONFIG, {"nats.conf": render(users(there, hosts), server)})


def authority_map(there: Mapping[str, Any]) -> Object:
    """The ConfigMap by which agents trust the servers."""
    text = texts_of(there[names.BUS_TLS]).get("ca.crt", "")
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": names.AUTHORITY, "namespace": names.NAMESPACE, "labels": {names.PART_OF: "airmesh"}},
        "data": {"ca.crt": text},
    }


def url(servers: Sequence[Host]) -> str:
    """What agents dial."""
    return ",".join(f"nats://{_at(host.addresses[0], CLIENTS)}" for host in servers)


def _at(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
