"""Bootstrap tokens: by one a node's agent may ask `cluster` for a signature on its key, and nothing else.

A token is a key of the bus' user `bootstrap` that ends. One is current, in the Secret that nodes' agents are given;
those before stay good until they end, or are revoked. A token alone lets nobody in: who asks is known by the token of
its pod (`services/cluster/core/admission.py`). What is there follows from the Secret; times are Unix seconds. Pure but
for the making of keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from chassis.bus.credentials import credentials, parse
from chassis.bus.joining import USER
from chassis.bus.nats_config import new_key
from chassis.bus.nats_jwt import Issuer, claims_of
from cli.faults import Usage
from cli.install import names, secrets
from cli.install.kinds import Object

CREDENTIALS = "token.creds"
LIST = "tokens.json"
DAY = 86_400
TTL = 90 * DAY
"""Of a token for which nobody says how long it is good."""
LONGEST = 3650 * DAY
_ID = 8
_UNITS = {"m": 60, "h": 3600, "d": DAY}


class Token(msgspec.Struct, frozen=True):
    """One that was made and has not ended."""

    public: str
    issued: int
    expires: int
    revoked: bool = False

    @property
    def name(self) -> str:
        """By which a person names it."""
        return self.public[-_ID:].lower()


def seconds(text: str) -> int:
    """Of `90d`, `12h`, `30m`. Raises `Usage`."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})([mhd])", text)
    if not found or (length := int(found[1]) * _UNITS[found[2]]) > LONGEST:
        raise Usage(
            f"--ttl: {text!r} is no time that a token can be good", "write it as 90d, 12h or 30m, 3650d at most"
        )
    return length


def tokens(found: Mapping[str, Any] | None) -> tuple[Token, ...]:
    """Those that the Secret lists, the current one last; none where it cannot be read, so that another is made."""
    text = secrets.texts_of(found or {}).get(LIST, "")
    try:
        return msgspec.json.decode(text.encode() or b"[]", type=tuple[Token, ...])
    except msgspec.MsgspecError:
        return ()


def current(found: Mapping[str, Any] | None) -> Token | None:
    """The one that nodes are given."""
    return next(reversed(tokens(found)), None)


def missing(there: Mapping[str, Any], by: Issuer, now: int) -> Iterator[Object]:
    """The Secret, where there is none, or half of its token's time is over, or another operator has signed it."""
    found = there.get(names.BOOTSTRAP)
    last = current(found)
    if not _is_ours(found, by):
        yield added({}, by, TTL, now)
    elif last is None or last.revoked or now >= (last.issued + last.expires) // 2:
        yield added(there, by, TTL, now)


def added(there: Mapping[str, Any], by: Issuer, length: int, now: int) -> Object:
    """The Secret with a new token, which is the current one then; those that have ended are forgotten."""
    seed, public = new_key()
    jwt = by.sign_user(USER, USER, public, issued=now, expires=now + length)
    made = Token(public, now, now + length)
    return _secret((*_alive(tokens(there.get(names.BOOTSTRAP)), now), made), credentials(jwt, seed).reveal())


def revoked(there: Mapping[str, Any], by: Issuer, name: str, now: int) -> Object:
    """The Secret without a token; another becomes the current one where it was that. Raises `Usage`."""
    found = there.get(names.BOOTSTRAP)
    known = {one.name: one for one in _alive(tokens(found), now) if not one.revoked}
    if name not in known:
        said = ", ".join(known) or "there is none"
        raise Usage(f"--revoke: there is no token {name}", f"name one of these: {said}")
    ended = known[name]
    listed = tuple(
        msgspec.structs.replace(one, revoked=True) if one == ended else one for one in _alive(tokens(found), now)
    )
    text = secrets.texts_of(found or {}).get(CREDENTIALS, "")
    kept = _secret(listed, text)
    return (
        added({names.BOOTSTRAP: kept}, by, ended.expires - ended.issued, now)
        if ended.public == listed[-1].public
        else kept
    )


def revocations(found: Mapping[str, Any] | None) -> dict[str, int]:
    """What the account says of tokens that are void before they end."""
    return {one.public: one.issued for one in tokens(found) if one.revoked}


def _is_ours(found: Mapping[str, Any] | None, by: Issuer) -> bool:
    try:
        said = claims_of(parse(secrets.texts_of(found or {}).get(CREDENTIALS, "")).jwt)
    except ValueError:
        return False
    return bool(said.get("iss") == by.account(USER))


def _alive(listed: Iterable[Token], now: int) -> tuple[Token, ...]:
    return tuple(one for one in listed if one.expires > now)


def _secret(listed: tuple[Token, ...], text: str) -> Object:
    return secrets.secret(names.BOOTSTRAP, {CREDENTIALS: text, LIST: msgspec.json.encode(listed).decode()})
