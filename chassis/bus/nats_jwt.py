"""The users and accounts of ``chassis.bus.nats_config`` as JWTs that an operator signs: for many servers and nodes.

A server is given the operator's key and a folder for accounts; it takes in any user that an account's key has signed. A
node holds a user's key alone, never an account's: what an account imports, and what its user may publish, stands in a
JWT that only the operator can sign anew. No account names the nodes it serves, so a new node is new accounts, and
changes none that is there: they are handed to the servers that run (``chassis.bus.resolver``), and no file of theirs
changes.

All keys follow from the operator's seed by name (:class:`Issuer`): that seed is all there is to keep, and who has it
signs the same again. Nodes' accounts follow from a seed that follows from it (:class:`NodeIssuer`), so that nodes can
be admitted where the operator's own is not; servers take its signature for the operator's. The permissions stand in the
account (as its default for users), since a user's JWT travels with each connect, in a line of at most 4 KiB.

Several users of one account may be valid at a time, an old key and a new one; a user ends by its account's revocations:
what was signed for that key up to then is void, and its connection is closed.

Format: header ``{"typ":"JWT","alg":"ed25519-nkey"}``, claims of version 2 (github.com/nats-io/jwt, v2); resolver:
https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/jwt/resolver.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nkeys

from chassis.bus.accounts import STATE, Account
from chassis.bus.credentials import credentials as written
from chassis.bus.nats_config import Server, new_key, server_part
from chassis.secret import Secret
from proto.subjects import INBOX, role_of_user

SYSTEM = "system"
"""Account that servers speak to each other in."""
RESOLVER_USER = "resolver"
"""Who may hand accounts to the servers and ask who is connected; it is no user of the table of roles."""
_UNLIMITED = -1
SHARED_CONNECTIONS = 256
"""Connections to the account of a user that many sign in as, on all servers together."""
SHARED_SUBSCRIPTIONS = 64
"""Of one such connection."""
SHARED_PAYLOAD = 16 << 10
"""Bytes of a message of such a user."""
_PRELOAD = "resolver_preload: "
_RESOLVER_RIGHTS: dict[str, object] = {
    "pub": {"allow": ["$SYS.REQ.CLAIMS.UPDATE", "$SYS.REQ.ACCOUNT.*.CLAIMS.LOOKUP", "$SYS.REQ.ACCOUNT.*.CONNZ"]},
    "sub": {"allow": [f"{INBOX}.{RESOLVER_USER}.>"]},
}

_SERVERS_RIGHTS: dict[str, object] = {
    **_RESOLVER_RIGHTS,
    "pub": {"allow": ["$SYS.REQ.SERVER.PING", "$SYS.REQ.SERVER.PING.CONNZ", "$SYS.REQ.SERVER.*.RELOAD"]},
}


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


class _Signer:
    """Signs accounts by a key that servers trust, and their users by keys that follow from it."""

    def __init__(self, seed: Secret) -> None:
        """``seed``: of an operator's nkey (``SO…``); raises ValueError when it is none."""
        try:
            pair = nkeys.from_seed(bytearray(seed.reveal().strip().encode()))
            public = pair.public_key.decode()
        except (nkeys.NkeysError, ValueError) as error:
            raise ValueError(f"no seed of an nkey: {error}") from None
        if not public.startswith("O"):
            raise ValueError("the seed of an nkey that is no operator's (SO…)")
        self._key = _Key(pair, public)
        self._raw = bytes(seed.reveal().strip().encode())

    @property
    def seed(self) -> Secret:
        """What it is made of."""
        return Secret(self._key.seed)

    def account(self, name: str) -> str:
        """Public key of an account."""
        return self._of(name).public

    def account_seed(self, name: str) -> Secret:
        """Seed of an account's key."""
        return Secret(self._of(name).seed)

    def signed_at(self, account: str, jwt: str, public: str) -> int:
        """When the key of an account signed ``jwt`` for the user ``public`` (Unix time). Raises ValueError."""
        text, _, signature = jwt.rpartition(".")
        claims = claims_of(jwt)
        # A signature of Ed25519 is the same each time.
        if not hmac.compare_digest(_base64(self._of(account).pair.sign(text.encode())).encode(), signature.encode()):
            raise ValueError("no JWT of this account")
        if claims.get("sub") != public:
            raise ValueError("a JWT of another key")
        return int(claims["iat"])

    def sign_account(self, account: Account, revoked: Mapping[str, int] | None = None) -> str:
        """JWT of an account. ``revoked``: public keys (or ``*``) whose users are void when signed up to that second."""
        claims = _account(account, self.account) | ({"revocations": dict(revoked)} if revoked else {})
        return _jwt(self._key, self.account(account.name), account.name, claims)

    def sign_user(
        self,
        account: str,
        name: str,
        public: str,
        *,
        rights: Mapping[str, object] | None = None,
        expires: int = 0,
        issued: int = 0,
    ) -> str:
        """JWT of a user. ``rights``: permissions other than its account's. Unix times: ``expires``, 0 for never, and
        ``issued``, 0 for now.
        """
        limits = dict.fromkeys(("subs", "data", "payload"), _UNLIMITED)
        claims = {"type": "user", **limits, **(rights or {})}
        return _jwt(self._of(account), public, name, claims, expires, issued)

    def _of(self, name: str) -> _Key:
        return _key(nkeys.PREFIX_BYTE_ACCOUNT, self._follows(f"account {name}"))

    def _follows(self, what: str) -> bytes:
        return hmac.digest(self._raw, b"airmesh " + what.encode(), hashlib.sha256)


class Issuer(_Signer):
    """The operator: signs accounts and their users, with keys that follow from its own seed."""

    def __init__(self, seed: Secret, signers: Sequence[int] = (1,)) -> None:
        """``signers``: numbers of the keys that may sign for nodes, the present one last. As the base; raises
        ValueError.
        """
        super().__init__(seed)
        names = ["nodes" if number == 1 else f"nodes {number}" for number in signers]
        self._signers = [_Signer(Secret(_key(nkeys.PREFIX_BYTE_OPERATOR, self._follows(name)).seed)) for name in names]
        self._nodes = self._signers[-1]

    @staticmethod
    def new() -> Issuer:
        """A new operator."""
        return Issuer(Secret(_key(nkeys.PREFIX_BYTE_OPERATOR, os.urandom(32)).seed))

    @property
    def jwt(self) -> str:
        """The operator's own, which servers trust; it says that who signs for nodes signs for the operator."""
        claims: dict[str, object] = {
            "type": "operator",
            "system_account": self.account(SYSTEM),
            "signing_keys": [one._key.public for one in self._signers],
        }
        return _jwt(self._key, self._key.public, "airmesh", claims)

    @property
    def nodes_seed(self) -> Secret:
        """What a :class:`NodeIssuer` is made of. Servers take what it signs for the operator's."""
        return self._nodes.seed

    def end_former(self, node_user: str, until: int) -> str:
        """JWT of the account that an earlier release gave a node's user, by a key of the operator's own: it lets nobody
        in by what was signed up to then.
        """
        key, claims = super()._of(node_user), _account(Account(name=node_user), self.account)
        return _jwt(self._key, key.public, node_user, claims | {"revocations": {"*": until}})

    def end_of_former_signers(self, node_user: str) -> Iterator[str]:
        """JWTs of the accounts that a node's user had by the signers before the present one: nobody is let in, whatever
        they sign, and whenever they say that was.
        """
        for signer in self._signers[:-1]:
            claims = _account(Account(name=node_user), self.account)
            limits = {**dict.fromkeys(("subs", "data", "payload"), _UNLIMITED), "imports": 0, "exports": 0, "conn": 0}
            yield _jwt(self._key, signer.account(node_user), node_user, {**claims, "limits": limits})

    def sign_resolver(self, public: str) -> str:
        """JWT of the user who hands accounts to the servers."""
        return self.sign_user(SYSTEM, RESOLVER_USER, public, rights=_RESOLVER_RIGHTS)

    def sign_for_servers(self, public: str, expires: int) -> str:
        """The same of one who may have servers read their files again, and ask them for all connections, until a second
        (Unix time): while their certificates are replaced.
        """
        return self.sign_user(SYSTEM, RESOLVER_USER, public, rights=_SERVERS_RIGHTS, expires=expires)

    def _of(self, name: str) -> _Key:
        return self._nodes._of(name) if _is_of_node(name) else super()._of(name)


class NodeIssuer(_Signer):
    """Signs for nodes alone, without the operator's seed: their accounts by a key that the operator's JWT names."""

    def __init__(self, seed: Secret, others: Mapping[str, str]) -> None:
        """``others``: public keys of the accounts that are no node's, by name. Raises ValueError."""
        super().__init__(seed)
        self._others = dict(others)

    def account(self, name: str) -> str:
        """Public key of an account. Raises KeyError for one that is no node's, and not known."""
        return self._of(name).public if _is_of_node(name) else self._others[name]


def _is_of_node(account: str) -> bool:
    try:
        return role_of_user(account)[0].per_node
    except ValueError:
        return False


def sign(accounts: Iterable[Account], *, operator: str = "", issuer: Issuer | None = None) -> Signed:
    """Sign ``accounts`` and their users, by a new operator unless one is given.

    ``operator`` is the name of one more user, who may do anything to the streams; by default there is none.
    """
    accounts, by = tuple(accounts), issuer or Issuer.new()
    credentials: dict[str, Secret] = {}
    for account in accounts:
        if account.user is not None:
            one = by.sign_user(account.name, account.user.name, account.user.public)
            credentials[account.user.name] = written(one, account.user.seed)
    seed, public = new_key()
    credentials[RESOLVER_USER] = written(by.sign_resolver(public), seed)
    if operator:
        seed, public = new_key()
        credentials[operator] = written(by.sign_user(STATE, operator, public), seed)
    jwts = {by.account(one.name): by.sign_account(one) for one in (*accounts, Account(name=SYSTEM))}
    return Signed(
        operator=by.jwt,
        operator_seed=by.seed,
        system_account=by.account(SYSTEM),
        accounts=jwts,
        account_seeds={account.name: by.account_seed(account.name) for account in accounts},
        credentials=credentials,
    )


def render_signed(signed: Signed, server: Server) -> str:
    """Text of nats.conf for a server that trusts the operator and keeps accounts beside its streams."""
    return server_part(server) + signed_part(signed, server)


def signed_part(signed: Signed, server: Server) -> str:
    """Text of nats.conf that says whom a server trusts, and where it keeps the accounts that it is handed."""
    return trust_part(signed.operator, signed.accounts, server)


def trust_part(operator: str, accounts: Mapping[str, str], server: Server) -> str:
    """The same from the operator's JWT and those of ``accounts`` by their public keys, which a server knows at its
    start. Where it was handed an account that was signed later, that one counts.
    """
    resolver = {"type": "full", "dir": str(server.store_dir / "accounts"), "interval": "2m"}
    return (
        f"operator: {json.dumps(operator)}\n"
        f"system_account: {json.dumps(claims_of(operator)['nats']['system_account'])}\n"
        f"resolver: {json.dumps(resolver)}\n"
        f"{_PRELOAD}{json.dumps(accounts, indent=1)}\n"
    )


def without_accounts(config: str) -> str:
    """What a server has to be started again for: its configuration but for the accounts, which it can be handed."""
    return config.partition(_PRELOAD)[0]


def preloaded(config: str) -> dict[str, str]:
    """JWTs of accounts by their public keys, of a text of :func:`render_signed`; none where it has none."""
    try:
        return dict(json.loads(config.partition(_PRELOAD)[2] or "{}"))
    except ValueError:
        return {}


def claims_of(jwt: str) -> dict[str, Any]:
    """What a JWT says, unchecked: for one of our own, or to compare. Raises ValueError."""
    try:
        body = jwt.split(".")[1]
        said = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (IndexError, ValueError) as error:
        raise ValueError(f"no JWT: {error}") from None
    if not isinstance(said, dict):
        raise ValueError("no JWT: its body is no object")  # noqa: TRY004 - the text is wrong, not a type
    return said


def says_the_same(one: str, other: str) -> bool:
    """Whether two JWTs differ in when they were signed alone."""
    try:
        before, after = ({**claims_of(jwt), "iat": 0, "jti": ""} for jwt in (one, other))
    except ValueError:
        return False
    return before == after


def carry_over(store_dir: Path, issuer: Issuer) -> bool:
    """Move the streams of a server that listed its users to where one that trusts ``issuer`` looks for them.

    For a server that stands still, once, before it is started with :func:`render_signed`: a store names a folder for
    each account, by its key where accounts are signed. False when there is nothing to move.
    """
    before, after = (store_dir / "jetstream" / name for name in (STATE, issuer.account(STATE)))
    if not before.is_dir() or after.exists():
        return False
    before.rename(after)
    return True


def _account(account: Account, key_of: Callable[[str], str]) -> dict[str, object]:
    stored = _UNLIMITED if account.name == STATE else 0
    limits: dict[str, object] = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn"), _UNLIMITED)
    limits |= {"wildcards": True, "leaf": 0}
    if account.user is not None and account.user.role.shared:
        limits |= {"conn": SHARED_CONNECTIONS, "subs": SHARED_SUBSCRIPTIONS, "payload": SHARED_PAYLOAD}
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
                "account": key_of(one.account),
                "type": one.kind,
            }
            | ({"local_subject": one.local} if one.local != one.subject else {})
            for one in account.imports
        ],
    }


def _key(prefix: int, raw: bytes) -> _Key:
    pair = nkeys.from_seed(bytearray(nkeys.encode_seed(raw, prefix)))
    return _Key(pair, pair.public_key.decode())


def _jwt(signer: _Key, subject: str, name: str, claims: dict[str, object], expires: int = 0, issued: int = 0) -> str:
    body: dict[str, object] = {
        "iat": issued or int(time.time()),
        "iss": signer.public,
        "name": name,
        "sub": subject,
        "nats": {**claims, "version": 2},
        **({"exp": expires} if expires else {}),
    }
    digest = hashlib.sha256(json.dumps(body).encode()).digest()
    body["jti"] = base64.b32encode(digest).decode().rstrip("=")
    text = f"{_part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_part(body)}"
    return f"{text}.{_base64(signer.pair.sign(text.encode()))}"


def _part(value: object) -> str:
    return _base64(json.dumps(value, separators=(",", ":")).encode())


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
