"""The users and accounts of ``chassis.bus.nats_config`` as JWTs that an operator signs: for many servers and nodes.

A server is given the operator's key and the accounts; it takes in any user that an account's key has signed. A node
holds a user's key alone, never an account's: what an account imports, and what its user may publish, stands in a JWT
that only the operator can sign anew. No account names the nodes it serves, so a new node is new accounts, and changes
none that is there.

The permissions stand in the account (as its default for users), since a user's JWT travels with each connect, in a line
of at most 4 KiB.

The resolver here is MEMORY: the accounts stand in the configuration file. A NATS resolver takes the same JWTs
(https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/jwt/resolver).
Format: header ``{"typ":"JWT","alg":"ed25519-nkey"}``, claims of version 2 (github.com/nats-io/jwt, v2).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass

import nkeys

from chassis.bus.accounts import STATE, Account
from chassis.bus.credentials import credentials as written
from chassis.bus.nats_config import Server, server_part
from chassis.secret import Secret

_UNLIMITED = -1
_SYSTEM = "system"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """Everything that was signed. ``operator_seed`` and ``account_seeds`` are for the installer's safe alone."""

    operator: str
    """JWT of the operator."""
    operator_seed: Secret
    system_account: str
    """Public key of the account that servers speak to each other in."""
    accounts: dict[str, str]
    """JWTs of accounts by their public key."""
    account_seeds: dict[str, Secret]
    """By name of the account."""
    credentials: dict[str, Secret]
    """By name of the user: what ``AIRMESH_NATS_SEED_FILE`` holds (JWT and seed)."""


@dataclass(frozen=True, slots=True)
class _Key:
    pair: nkeys.KeyPair
    public: str

    @property
    def seed(self) -> str:
        return bytes(self.pair.seed).decode()


def sign(accounts: Iterable[Account], *, operator: str = "") -> Signed:
    """Sign ``accounts`` and their users with new keys.

    ``operator`` is the name of one more user, who may do anything to the streams; by default there is none.
    """
    accounts = tuple(accounts)
    signer, system = _new(nkeys.PREFIX_BYTE_OPERATOR), _new(nkeys.PREFIX_BYTE_ACCOUNT)
    keys = {account.name: _new(nkeys.PREFIX_BYTE_ACCOUNT) for account in accounts}
    credentials: dict[str, Secret] = {}
    for account in accounts:
        if account.user is not None:
            one = _user(keys[account.name], account.user.name, account.user.public)
            credentials[account.user.name] = written(one, account.user.seed)
    if operator:
        key = _new(nkeys.PREFIX_BYTE_USER)
        one = _user(keys[STATE], operator, key.public)
        credentials[operator] = written(one, Secret(key.seed))
    claims = {account.name: _account(account, keys) for account in accounts}
    jwts = {keys[name].public: _jwt(signer, keys[name].public, name, claim) for name, claim in claims.items()}
    jwts[system.public] = _jwt(signer, system.public, _SYSTEM, _account(Account(name=_SYSTEM), keys))
    return Signed(
        operator=_jwt(signer, signer.public, "airmesh", {"type": "operator", "system_account": system.public}),
        operator_seed=Secret(signer.seed),
        system_account=system.public,
        accounts=jwts,
        account_seeds={name: Secret(key.seed) for name, key in keys.items()},
        credentials=credentials,
    )


def render_signed(signed: Signed, server: Server) -> str:
    """Text of nats.conf for a server that trusts the operator and has the accounts in memory."""
    return server_part(server) + signed_part(signed)


def signed_part(signed: Signed) -> str:
    """Text of nats.conf that says whom a server trusts."""
    return (
        f"operator: {json.dumps(signed.operator)}\n"
        f"system_account: {json.dumps(signed.system_account)}\n"
        "resolver: MEMORY\n"
        f"resolver_preload: {json.dumps(signed.accounts, indent=1)}\n"
    )


def _account(account: Account, keys: dict[str, _Key]) -> dict[str, object]:
    stored = _UNLIMITED if account.name == STATE else 0
    limits: dict[str, object] = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn"), _UNLIMITED)
    limits |= {"wildcards": True, "leaf": 0}
    limits |= dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), stored)
    return {
        "type": "account",
        "limits": limits,
        "default_permissions": {
            "pub": {"allow": list(account.publish)} if account.publish else {},
            "sub": {"allow": list(account.subscribe)} if account.subscribe else {},
        },
        "exports": [
            {"name": one.subject, "subject": one.subject, "type": one.kind}
            | ({"response_type": "Stream" if one.many else "Singleton"} if one.kind == "service" else {})
            for one in account.exports
        ],
        "imports": [
            {
                "name": f"{one.account} {one.subject}",
                "subject": one.subject,
                "account": keys[one.account].public,
                "type": one.kind,
            }
            | ({"local_subject": one.local} if one.local != one.subject else {})
            for one in account.imports
        ],
    }


def _user(account: _Key, name: str, public: str) -> str:
    """A user without permissions of its own has its account's."""
    return _jwt(account, public, name, {"type": "user", **dict.fromkeys(("subs", "data", "payload"), _UNLIMITED)})


def _new(prefix: int) -> _Key:
    pair = nkeys.from_seed(bytearray(nkeys.encode_seed(os.urandom(32), prefix)))
    return _Key(pair, pair.public_key.decode())


def _jwt(signer: _Key, subject: str, name: str, claims: dict[str, object]) -> str:
    body: dict[str, object] = {
        "iat": int(time.time()),
        "iss": signer.public,
        "name": name,
        "sub": subject,
        "nats": {**claims, "version": 2},
    }
    digest = hashlib.sha256(json.dumps(body).encode()).digest()
    body["jti"] = base64.b32encode(digest).decode().rstrip("=")
    text = f"{_part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_part(body)}"
    return f"{text}.{_base64(signer.pair.sign(text.encode()))}"


def _part(value: object) -> str:
    return _base64(json.dumps(value, separators=(",", ":")).encode())


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
