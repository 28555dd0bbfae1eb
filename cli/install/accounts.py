"""What the bus' operator signs: itself, its users' keys, accounts. It follows from the Secrets of the moment, so that a
run that was interrupted is taken up by the next one. Pure but for the making of keys.

An account lets in the keys that it has signed from some second on (Unix time). That is when the key in its Secret was
signed, so an older key is void once the account is handed over. While a key is replaced, an annotation on the Secret
says an earlier second: both are good.
"""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from chassis.bus.accounts import Account, User, make_accounts
from chassis.bus.credentials import credentials, parse
from chassis.bus.joining import USER
from chassis.bus.nats_config import new_key, server_part
from chassis.bus.nats_jwt import SYSTEM, Issuer, claims_of, preloaded, says_the_same, trust_part, without_accounts
from chassis.secret import Secret
from cli.faults import Declined
from cli.install import bootstrap, names, secrets
from cli.install.kinds import Object
from cli.install.secrets import Host, Key
from proto.subjects import ROLES, role_of_user

OPERATOR_SEED = "operator.seed"
OPERATOR_JWT = "operator.jwt"
RESOLVER = "resolver.creds"
SIGNING = "signing.json"
"""Of the operator's Secret; what stands in it is :class:`Signing`."""
ACCOUNTS_FILE = "accounts.json.gz"
"""What the Job hands over: JWTs of accounts, a JSON array."""
EXPECTED_FILE = "expected.json"
"""What the Job waits for: names of users, by name what :func:`expected` says."""
SERVERS_FILE = "servers.json"
"""Which certificate servers are to show, and whom everybody is to trust."""
AUTHORITY_FILE = "ca.crt"
SERVERS_KEY_SECONDS = 3600
NODES_SEED = "nodes.seed"
PUBLIC_KEYS = "accounts.json"
"""Public keys of the accounts that are no node's, by name."""
TRUSTS = "\noperator: "
"""Stands in the configuration of servers that trust an operator."""
MOST = 100
"""Accounts in one Secret: 300 kB of 1 MiB."""


Left = Literal["", "servers", "nodes"]
"""`servers`: they start without the former signers, whose accounts end; `nodes`: these get keys after that, too."""


class Signing(msgspec.Struct, frozen=True, kw_only=True):
    """Who signs for nodes, and who handed over accounts before."""

    numbers: Annotated[tuple[int, ...], msgspec.Meta(min_length=1)] = (1,)
    resolvers: dict[str, int] = msgspec.field(default_factory=dict)
    """Public keys of former ones, and when each was signed (Unix time)."""
    left: Left = ""
    """What the run that ended the former signers has not done yet."""


def missing_operator(there: Mapping[str, Any]) -> Iterator[Object]:
    """The Secret of the operator, where there is none; or with what it has signed of itself and of the
    resolver signed again, where that has changed.

    Raises `Declined` when it has gone away from beneath a bus that trusts it.
    """
    if names.OPERATOR not in there:
        if TRUSTS in secrets.texts_of(there.get(names.BUS_CONFIG, {})).get("nats.conf", ""):
            raise Declined(
                f"Secret {names.OPERATOR} is gone, and the bus trusts nobody else",
                "put it back from a backup: with another the bus would know none of its users; or uninstall, and "
                "install again",
            )
        by = Issuer.new()
        texts = {OPERATOR_SEED: by.seed.reveal() + "\n", OPERATOR_JWT: by.jwt + "\n"}
        seed, public = new_key()
        yield secrets.secret(names.OPERATOR, {**texts, RESOLVER: credentials(by.sign_resolver(public), seed).reveal()})
        return
    texts, by = secrets.texts_of(there[names.OPERATOR]), issuer(there)
    try:
        found = parse(texts.get(RESOLVER, ""))
    except ValueError:
        found = parse(new_key()[0].reveal())
    signed, own, jwt = {}, by.jwt, by.sign_resolver(found.public)
    if not says_the_same(texts.get(OPERATOR_JWT, "").strip(), own):
        signed[OPERATOR_JWT] = own + "\n"
    if not says_the_same(found.jwt, jwt):
        signed[RESOLVER] = credentials(jwt, found.seed).reveal()
    if signed:
        yield secrets.secret(names.OPERATOR, {**texts, **signed})


def for_cluster(there: Mapping[str, Any], by: Issuer) -> Object:
    """The Secret by which `cluster` lets nodes in. It holds neither the operator's seed nor any account's."""
    others = {one.name: by.account(one.name) for one in _of_services(there)}
    texts = {
        NODES_SEED: by.nodes_seed.reveal() + "\n",
        PUBLIC_KEYS: json.dumps(others, sort_keys=True),
        RESOLVER: secrets.texts_of(there[names.OPERATOR])[RESOLVER],
    }
    return secrets.secret(names.ADMISSION, texts)


def issuer(there: Mapping[str, Any]) -> Issuer:
    """Who signs. Raises `Declined` when the Secret holds no operator's seed."""
    try:
        return Issuer(Secret(secrets.texts_of(there[names.OPERATOR]).get(OPERATOR_SEED, "")), signers(there))
    except ValueError as error:
        raise Declined(
            f"Secret {names.OPERATOR} holds no seed of an operator ({error})",
            "put the one back that it held: without it nobody can be let in; or uninstall, and install again",
        ) from error


def signers(there: Mapping[str, Any]) -> tuple[int, ...]:
    """Numbers of the keys that may sign for nodes, the present one last: two while one takes the other's place."""
    return _signing(there).numbers


def with_next_signer(there: Mapping[str, Any]) -> Object:
    """The operator's Secret with another signer beside the present one, and another resolver: the one before is good
    until the former ends.
    """
    texts, said = secrets.texts_of(there[names.OPERATOR]), _signing(there)
    before = parse(texts[RESOLVER])
    seed, public = new_key()
    numbers = (*said.numbers, said.numbers[-1] + 1)
    resolvers = {**said.resolvers, before.public: int(claims_of(before.jwt)["iat"])}
    texts[RESOLVER] = credentials(Issuer(Secret(texts[OPERATOR_SEED])).sign_resolver(public), seed).reveal()
    return secrets.secret(names.OPERATOR, {**texts, SIGNING: _written(Signing(numbers=numbers, resolvers=resolvers))})


def left_of_rotation(there: Mapping[str, Any]) -> Left:
    """What a rotation of the signer has still to do once the former ones have ended."""
    return _signing(there).left


def with_signer_alone(there: Mapping[str, Any], left: Left) -> Object:
    """The operator's Secret with the present signer alone; former resolvers have ended. ``left``: as
    :func:`left_of_rotation`.
    """
    texts, said = secrets.texts_of(there[names.OPERATOR]), _signing(there)
    alone = Signing(numbers=said.numbers[-1:], resolvers=said.resolvers, left=left)
    return secrets.secret(names.OPERATOR, {**texts, SIGNING: _written(alone)})


def of_former_signers(there: Mapping[str, Any], hosts: Iterable[Host]) -> list[str]:
    """JWTs of the accounts that nodes with a Secret had by all signers before the present one: they let nobody in. The
    operator had signed these; of other nodes' accounts the former signer itself had, so they end with it.
    """
    seed = Secret(secrets.texts_of(there[names.OPERATOR])[OPERATOR_SEED])
    by = Issuer(seed, range(1, signers(there)[-1] + 1))
    keys = [key for key in secrets.keys(secrets.seeded(there, hosts)) if key.node]
    return [jwt for key in keys for jwt in by.end_of_former_signers(key.user)]


def _signing(there: Mapping[str, Any]) -> Signing:
    text = secrets.texts_of(there[names.OPERATOR]).get(SIGNING, "{}")
    try:
        return msgspec.json.decode(text.encode(), type=Signing)
    except msgspec.MsgspecError as error:
        raise Declined(
            f"Secret {names.OPERATOR}: {SIGNING} does not say who signs ({error})",
            "put it back from a backup: without it nobody knows by which key nodes were let in",
        ) from error


def _written(said: Signing) -> str:
    return msgspec.json.encode(said).decode()


def signed_keys(there: Mapping[str, Any], hosts: Iterable[Host], by: Issuer) -> Iterator[Object]:
    """The Secrets of users whose keys the operator's accounts have not signed, with these keys signed."""
    for name, keys in itertools.groupby(secrets.keys(hosts), lambda key: key.secret):
        texts = {}
        for key in keys:
            one = secrets.identity(there, key)
            if not _is_signed(one.jwt, one.public, by, key):
                texts[key.entry] = _signed(by, key, one.public, one.seed)
        if texts:
            yield with_texts(there[name], texts, _since(there[name]))


def renewed_key(found: Mapping[str, Any], keys: Iterable[Key], by: Issuer) -> Object:
    """A Secret with a new key for each of its users; those before stay good, as its annotation says. One whose keys are
    being replaced already stays as it is.
    """
    if _since(found):
        return dict(found)
    there, texts, since = {str(found["metadata"]["name"]): found}, {}, {}
    for key in keys:
        since[key.entry] = issued(there, key)
        seed, public = new_key()
        # An account ends keys by the second in which they were signed.
        texts[key.entry] = _signed(by, key, public, seed, max(int(time.time()), since[key.entry] + 1))
    return with_texts(found, texts, since)


def is_replaced(found: Mapping[str, Any]) -> bool:
    """Whether a Secret's keys are being replaced: those before are good, too."""
    return bool(_since(found))


def renewed(there: Mapping[str, Any], hosts: Iterable[Host]) -> list[Host]:
    """Nodes that have, in a Secret, keys by the present signer, and no others that are good."""
    by, found = issuer(there), []
    for host in secrets.seeded(there, hosts):
        keys = [key for key in secrets.keys([host]) if key.node]
        users = [(secrets.identity(there, key), key) for key in keys]
        if not is_replaced(there[keys[0].secret]) and all(_is_signed(u.jwt, u.public, by, key) for u, key in users):
            found.append(host)
    return found


def with_texts(found: Mapping[str, Any], texts: Mapping[str, str], since: Mapping[str, int]) -> Object:
    """A Secret with other texts, and from which seconds on keys are good where that is not when they were signed."""
    made = secrets.secret(found["metadata"]["name"], {**secrets.texts_of(found), **texts}, found["type"])
    if since:
        made["metadata"]["annotations"] = {names.SINCE: json.dumps(dict(since), sort_keys=True)}
    return made


def issued(there: Mapping[str, Any], key: Key) -> int:
    """When the key in a Secret was signed. Raises `Declined` when nobody has."""
    try:
        return int(claims_of(secrets.identity(there, key).jwt)["iat"])
    except (ValueError, KeyError, TypeError) as error:
        raise Declined(
            f"Secret {key.secret} holds a key that nobody has signed ({key.entry})", "have it signed: airmesh install"
        ) from error


def of_services(there: Mapping[str, Any], by: Issuer) -> dict[str, str]:
    """JWTs of the accounts that no node is in, by their public keys: with these a server starts."""
    before = preloaded(secrets.texts_of(there.get(names.BUS_CONFIG, {})).get("nats.conf", ""))
    keys = {key.user: key for key in secrets.keys(())}
    found = [Account(name=SYSTEM), *_of_services(there)]
    made = {by.account(one.name): _account(there, by, one, keys.get(one.name)) for one in found}
    # Signed again, it would be another text that says the same.
    return {
        public: before[public] if says_the_same(before.get(public, ""), jwt) else jwt for public, jwt in made.items()
    }


def of_host(there: Mapping[str, Any], host: Host, by: Issuer) -> list[str]:
    """JWTs of a node's accounts."""
    keys = {key.user: key for key in secrets.keys([host]) if key.node}
    found = make_accounts(secrets.users(there, [host]))
    return [_account(there, by, one, keys[one.name]) for one in found if one.name in keys]


def ended(there: Mapping[str, Any], host: Host, by: Issuer) -> list[str]:
    """JWTs of the accounts that an earlier release gave a node whose keys are in a Secret: they let nobody in."""
    keys = [key for key in secrets.keys([host]) if key.node]
    return [by.end_former(key.user, issued(there, key)) for key in keys]


def gone(there: Mapping[str, Any], hosts: Iterable[Host], by: Issuer) -> tuple[list[str], list[str]]:
    """Of nodes that are there no more: names of their Secrets, and JWTs of their accounts, which let nobody in."""
    kept = {names.node_secret(host.name) for host in hosts}
    left = [name for name in there if name.startswith(names.node_secret("")) and name not in kept]
    jwts = []
    for name in left:
        for text in secrets.texts_of(there[name]).values():
            try:
                said = claims_of(parse(text).jwt)
                _, node = role_of_user(str(said["name"]))
            except (ValueError, KeyError):
                continue  # a key that nobody has signed
            jwts.append(by.sign_account(Account(name=said["name"]), {"*": int(said["iat"])}))
            assert node, "only nodes have such Secrets"
    return left, jwts


def bus_config(there: Mapping[str, Any], servers: Sequence[Host], by: Issuer) -> Object:
    """The Secret with the servers' configuration; it names no node, so a node that is new changes none of it."""
    server = secrets.server(there, servers)
    operator = secrets.texts_of(there[names.OPERATOR])[OPERATOR_JWT].strip()
    text = server_part(server) + trust_part(operator, of_services(there, by), server)
    return secrets.secret(names.BUS_CONFIG, {"nats.conf": text})


def read_at_start(config: Object) -> str:
    """What of the configuration a server has to be started again for."""
    return without_accounts(secrets.texts_of(config)["nats.conf"])


def expected(there: Mapping[str, Any], key: Key, by: Issuer) -> dict[str, object]:
    """What is to be seen on the bus once a user has taken the key in its Secret: no other one is connected."""
    public = secrets.identity(there, key).public
    return {"account": by.account(key.user), "public": public, "runs": key.role.name not in names.PERSONS}


def job_secret(there: Mapping[str, Any], name: str, accounts: Sequence[str], waits: Mapping[str, object]) -> Object:
    """What the Job is given: accounts to hand over, or whom to wait for."""
    resolver = secrets.texts_of(there[names.OPERATOR])[RESOLVER]
    made = secrets.secret(name, {RESOLVER: resolver, EXPECTED_FILE: json.dumps(waits)})
    packed = gzip.compress(json.dumps(list(accounts)).encode(), mtime=0)
    made["data"][ACCOUNTS_FILE] = base64.b64encode(packed).decode()
    return made


def servers_secret(there: Mapping[str, Any], name: str, wanted: Mapping[str, object], authorities: str) -> Object:
    """What the Job is given: what is to be seen of servers and connections, whom it trusts itself (PEM), and a key for
    that, which ends with the Job's time.
    """
    seed, public = new_key()
    jwt = issuer(there).sign_for_servers(public, int(time.time()) + SERVERS_KEY_SECONDS)
    made = job_secret(there, name, (), {})
    texts = {SERVERS_FILE: json.dumps(wanted), AUTHORITY_FILE: authorities, RESOLVER: credentials(jwt, seed).reveal()}
    return {**made, "data": {**made["data"], **secrets.secret(name, texts)["data"]}}


def _of_services(there: Mapping[str, Any]) -> tuple[Account, ...]:
    """All but nodes', in the order of the table of roles; that of the tokens has no key of its own."""
    shared = [User(name=one.name, role=one, node="", seed=Secret(""), public="") for one in ROLES if one.shared]
    return make_accounts((*secrets.users(there, ()), *shared))


def _account(there: Mapping[str, Any], by: Issuer, account: Account, key: Key | None) -> str:
    if key is None:
        ended = bootstrap.revocations(there.get(names.BOOTSTRAP)) if account.name == USER else {}
        if account.name == SYSTEM and len((said := _signing(there)).numbers) == 1:
            ended = said.resolvers
        return by.sign_account(account, ended)
    since = _since(there[key.secret]).get(key.entry) or issued(there, key)
    return by.sign_account(account, {"*": since - 1})


def _since(found: Mapping[str, Any]) -> dict[str, int]:
    said = (found["metadata"].get("annotations") or {}).get(names.SINCE, "")
    try:
        return {str(entry): int(second) for entry, second in json.loads(said or "{}").items()}
    except (ValueError, AttributeError, TypeError) as error:
        name = found["metadata"]["name"]
        raise Declined(
            f"Secret {name}: its annotation {names.SINCE} is no list of seconds", f"take it off Secret {name}"
        ) from error


def _signed(by: Issuer, key: Key, public: str, seed: Secret, when: int = 0) -> str:
    return credentials(by.sign_user(key.user, key.user, public, issued=when), seed).reveal()


def _is_signed(jwt: str, public: str, by: Issuer, key: Key) -> bool:
    try:
        return says_the_same(jwt, by.sign_user(key.user, key.user, public))
    except ValueError:
        return False
