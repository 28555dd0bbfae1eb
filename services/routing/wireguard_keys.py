"""The private keys of a node's WireGuard devices: made here, kept in one file, told to nobody.

Owns ``wireguard/keys.json`` below the state folder: mode 0600 in a folder of 0700, replaced whole and fsynced. A public
key is told (in ``routes``) only after its private half is on disk. A file that is gone or cannot be read is no
failure: what a running device has is taken over as the key to be left, and a new one is made
(``services.routing.core.wireguard`` says how packets find both). So to delete the file is to change the key. Not
secret are ``home``, ``made`` and ``rotating``.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from nacl.public import PrivateKey

from chassis.replaced_file import replace_file
from services.routing.core.wireguard import KEY_BYTES, SLOTS, OwnKeys

FOLDER, FILE = "wireguard", "keys.json"
VERSION = 1


class KeysBroken(ValueError):
    """The file cannot be used; says why, and nothing of what is in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateKeys:
    """The keys of this node."""

    home: int
    made: int
    private: Mapping[int, bytes] = field(repr=False)
    """By slot, clamped as WireGuard keeps them."""
    rotating: bool = False

    @property
    def public(self) -> OwnKeys:
        """What decisions are made by, and others may know."""
        keys = {slot: public_of(key) for slot, key in self.private.items()}
        return OwnKeys(home=self.home, keys=keys, made=self.made, rotating=self.rotating)

    def private_of(self, slot: int) -> bytes:
        """The key that the device of a slot has."""
        return self.private.get(slot, self.private[self.home])

    def begun(self) -> PrivateKeys:
        """A new key is wanted."""
        return replace(self, rotating=True)

    def moved(self, now: float) -> PrivateKeys:
        """A new key in the other slot, which is home from now on; the present one is the one to be left."""
        other = 1 - self.home
        return PrivateKeys(home=other, made=int(now), private={self.home: self.private[self.home], other: new_key()})

    def left(self) -> PrivateKeys:
        """Without the key of the slot that is not home."""
        return replace(self, private={self.home: self.private[self.home]})


def new_key() -> bytes:
    """A private key of X25519, by libsodium's random numbers."""
    return clamped(bytes(PrivateKey.generate()))


def clamped(key: bytes) -> bytes:
    """A key as WireGuard keeps and tells it (RFC 7748, 5); it means the same."""
    return bytes([key[0] & 248, *key[1:31], key[31] & 127 | 64])


def public_of(key: bytes) -> bytes:
    """The public half of a private key."""
    return bytes(PrivateKey(key).public_key)


def first_keys(running: Mapping[int, bytes], now: float) -> PrivateKeys:
    """The keys of a node that has no file: ``running`` are those of its devices, to be left."""
    if not running:
        return PrivateKeys(home=0, made=int(now), private={0: new_key()})
    if len(running) == 1 or running[0] == running[1]:
        slot = min(running)
        return PrivateKeys(home=slot, made=0, private={slot: running[slot]}, rotating=True)
    return PrivateKeys(home=0, made=0, private=dict(running), rotating=True)


class KeyFile:
    """The file below a state folder."""

    def __init__(self, state: Path) -> None:
        self.path = state / FOLDER / FILE

    def load(self) -> PrivateKeys | None:
        """What is in it; None where there is none. Raises KeysBroken or OSError."""
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return _parse(json.loads(text))
        except (ValueError, KeyError, TypeError) as error:
            # Not the error's own words: they may quote the file.
            raise KeysBroken(f"{self.path} cannot be read ({type(error).__name__})") from None

    def save(self, keys: PrivateKeys) -> None:
        """Replaces it. Raises OSError; then the old one is still there."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path.parent.chmod(0o700)
        body = {
            "version": VERSION,
            "home": keys.home,
            "made": keys.made,
            "rotating": keys.rotating,
            "private": {str(slot): b64encode(key).decode() for slot, key in sorted(keys.private.items())},
        }
        replace_file(self.path, json.dumps(body).encode() + b"\n", 0o600)


def _parse(body: Mapping[str, object]) -> PrivateKeys:
    if body["version"] != VERSION:
        raise ValueError("another version")
    private = body["private"]
    home, made = body["home"], body["made"]
    if not isinstance(private, dict) or not isinstance(home, int) or not isinstance(made, int):
        raise TypeError("another form")
    keys = {int(slot): b64decode(text, validate=True) for slot, text in private.items()}
    if home not in keys or not keys.keys() <= set(SLOTS) or any(len(key) != KEY_BYTES for key in keys.values()):
        raise ValueError("no key of its home")
    clean = {slot: clamped(key) for slot, key in keys.items()}
    return PrivateKeys(home=home, made=made, private=clean, rotating=body.get("rotating") is True)
