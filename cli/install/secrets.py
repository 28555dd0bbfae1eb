"""Users, keys and certificates of the bus as Secrets: what has to be made, and what follows from what is there.

A key is made once: a Secret that is there counts, whoever made it, until it is rotated. What the servers are told
follows from the Secrets of the moment (`accounts.py`, for a bus of our own). Everything but the making of keys is pure.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chassis.bus.credentials import Identity, parse
from chassis.bus.nats_config import Cluster, Server, User, new_key, user_name
from chassis.secret import Secret
from cli.faults import Declined
from cli.install import certificates, names
from cli.install.certificates import Pair
from cli.install.kinds import Object
from proto.annotations import ADMITTED
from proto.net import host_port
from proto.subjects import ROLES, Role

CLIENTS = 4222
SERVERS = 6222
MONITOR = 8222
ROUTES_KEY = "routes"
_NEXT = ("next.crt", "next.key")
"""Entries of the authority that takes the place of the other (tls.crt, tls.key), while it does."""
_TLS = Path("/etc/nats-tls")
_STORE = Path("/var/lib/nats/signed")
"""Beside what servers that listed their users kept there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A node of the cluster: what the bus has to know of it."""

    name: str
    uid: str
    addresses: tuple[str, ...]
    """Its internal addresses."""
    admitted: bool = False
    """Its agents made their keys themselves, and `cluster` let them in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """Where a user's key lies."""

    secret: str
    entry: str
    role: Role
    node: str
    """Empty for a role that is not per node."""

    @property
    def user(self) -> str:
        """The user, and the account that it is alone in."""
        return user_name(self.role, self.node)


def keys(hosts: Iterable[Host]) -> Iterator[Key]:
    """Those of all roles, then of each node; a Secret's after one another."""
    for role in ROLES:
        if not role.per_node and not role.shared:
            yield Key(secret=names.seed_secret(role.name), entry="seed", role=role, node="")
    for host in hosts:
        for role in ROLES:
            if role.per_node:
                entry = f"{role.name}.seed"
                yield Key(secret=names.node_secret(host.name), entry=entry, role=role, node=host.name)


def host_of(node: Mapping[str, Any]) -> Host:
    """Of a Node as the API serves it."""
    addresses = node.get("status", {}).get("addresses") or ()
    return Host(
        name=node["metadata"]["name"],
        uid=node["metadata"].get("uid", ""),
        addresses=tuple(one["address"] for one in addresses if one["type"] == "InternalIP"),
        admitted=any(name.startswith(ADMITTED) for name in node["metadata"].get("annotations") or ()),
    )


def seeded(there: Mapping[str, Any], hosts: Iterable[Host]) -> tuple[Host, ...]:
    """Nodes whose keys are in a Secret of ours, as an earlier release made them; the others make their own."""
    return tuple(host for host in hosts if not host.admitted and names.node_secret(host.name) in there)


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
        if not role.per_node and not role.shared and names.seed_secret(role.name) not in there:
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
    wanted = names_to_sign(servers)
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
    authorities = own_authority(there)
    if not authorities:
        authorities = (certificates.make_authority(),)
        more = {**_entries(authorities[0]), ROUTES_KEY: secrets.token_urlsafe(24)}
        yield secret(names.BUS_SECRET, {**own, **more})
    # While an authority takes another's place both are trusted, and who signed last signs on.
    before = texts_of(there.get(names.BUS_TLS, {})).get("tls.crt", "")
    by = next((one for one in authorities[1:] if certificates.is_signed_by(before, one)), authorities[0])
    leaf = certificates.sign(by, sorted(wanted))
    trusted = bundle(*(one.certificate for one in authorities))
    texts = {"tls.crt": leaf.certificate, "tls.key": leaf.key, "ca.crt": trusted}
    yield secret(names.BUS_TLS, texts, "kubernetes.io/tls")


def names_to_sign(servers: Iterable[Host]) -> set[str]:
    """What the servers' certificate is for: DNS names and addresses."""
    return {"localhost", "127.0.0.1", *(name for host in servers for name in (host.name, *host.addresses))}


def own_authority(there: Mapping[str, Any]) -> tuple[Pair, ...]:
    """The authority that we made, then the one that is to take its place; none where we made none."""
    own = texts_of(there.get(names.BUS_SECRET, {}))
    return tuple(
        Pair(certificate=own[certificate], key=own[key])
        for certificate, key in (("tls.crt", "tls.key"), _NEXT)
        if key in own
    )


def with_next_authority(there: Mapping[str, Any], new: Pair) -> Object:
    """The authority's Secret with the one that is to take its place."""
    own = texts_of(there[names.BUS_SECRET])
    return secret(names.BUS_SECRET, {**own, **dict(zip(_NEXT, (new.certificate, new.key), strict=True))})


def with_authority(there: Mapping[str, Any], new: Pair) -> Object:
    """The authority's Secret with this one alone."""
    own = {name: text for name, text in texts_of(there[names.BUS_SECRET]).items() if name not in _NEXT}
    return secret(names.BUS_SECRET, {**own, **_entries(new)})


def _entries(authority: Pair) -> dict[str, str]:
    return {"tls.crt": authority.certificate, "tls.key": authority.key}


def bundle(*certificates_: str) -> str:
    """Several certificates as one file, PEM."""
    return "".join(one.rstrip("\n") + "\n" for one in certificates_)


def started_with(found: Mapping[str, Any]) -> str:
    """Digest of the certificate with which servers were started, of its Secret: another than the present one where they
    were given that while they ran.
    """
    present = names.digest(texts_of(found).get("tls.crt", ""))
    said = (found["metadata"].get("annotations") or {}).get(names.STARTED, "")
    try:
        noted = json.loads(said or "{}")
        return str(noted["started"]) if noted["given"] == present else present
    except (ValueError, TypeError, KeyError):
        return present


def users(there: Mapping[str, Any], hosts: Iterable[Host]) -> tuple[User, ...]:
    """The users whose keys are there: of all roles, and of the nodes of the moment."""
    return tuple(_user(there, key) for key in keys(hosts))


def identity(there: Mapping[str, Any], key: Key) -> Identity:
    """The key, and what its account has signed about it. Raises `Declined`."""
    try:
        return parse(texts_of(there[key.secret]).get(key.entry, ""))
    except ValueError as error:
        raise Declined(
            f"Secret {key.secret} holds no seed of a user nkey ({key.entry}: {error})",
            "delete it and install again: it gets a new key",
        ) from error


def _user(there: Mapping[str, Any], key: Key) -> User:
    one = identity(there, key)
    return User(name=key.user, role=key.role, node=key.node, seed=one.seed, public=one.public)


def server(there: Mapping[str, Any], servers: Sequence[Host]) -> Server:
    """What the servers' configuration says of each; its node is its name."""
    routes = tuple(host_port(host.addresses[0], SERVERS) for host in servers)
    four = any("." in address for host in servers for address in host.addresses)
    shared = Secret(texts_of(there[names.BUS_SECRET])[ROUTES_KEY])
    return Server(
        name="$AIRMESH_NODE",
        store_dir=_STORE,
        host="0.0.0.0" if four else "::",  # noqa: S104 - of the node's addresses; users have keys, and TLS is demanded
        port=CLIENTS,
        monitor_port=MONITOR,
        tls=_TLS,
        cluster=Cluster(port=SERVERS, routes=routes, secret=shared) if len(servers) > 1 else None,
    )


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
    return ",".join(f"nats://{host_port(host.addresses[0], CLIENTS)}" for host in servers)
