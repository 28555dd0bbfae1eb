"""The file of WireGuard's private keys: whole or not at all, for root alone, and never shown."""

from __future__ import annotations

import json
import stat
from base64 import b64encode
from pathlib import Path

import pytest
from nacl.bindings import crypto_scalarmult

from services.routing.wireguard_keys import (
    KeyFile,
    KeysBroken,
    PrivateKeys,
    clamped,
    first_keys,
    new_key,
    public_of,
)

NOW = 1_700_000_000.5


def test_a_public_key_is_that_of_x25519() -> None:
    """RFC 7748, 6.1: two private keys and what they share, by public keys of ours."""
    one, two = new_key(), new_key()
    assert crypto_scalarmult(one, public_of(two)) == crypto_scalarmult(two, public_of(one))
    assert public_of(bytes([1, *one[1:]])) == public_of(clamped(bytes([1, *one[1:]]))), "clamping changes nothing"


@pytest.mark.parametrize("state", ["absent", "there"])
def test_what_is_written_is_read_by_root_alone(tmp_path: Path, state: str) -> None:
    file = KeyFile(tmp_path)
    assert file.load() is None
    if state == "there":
        file.path.parent.mkdir(mode=0o755)
        file.path.write_text("old")
        file.path.chmod(0o644)
    keys = first_keys({}, NOW).moved(NOW)
    file.save(keys)
    assert file.load() == keys
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700
    assert [one.name for one in file.path.parent.iterdir()] == ["keys.json"]
    assert not [key for key in keys.private.values() if key.hex() in repr(keys) or repr(key) in repr(keys)]


GOOD = b64encode(new_key()).decode()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("{", id="cut off"),
        pytest.param("[]", id="a list"),
        pytest.param(json.dumps({"version": 2, "home": 0, "made": 0, "private": {"0": GOOD}}), id="another version"),
        pytest.param(json.dumps({"version": 1, "home": 1, "made": 0, "private": {"0": GOOD}}), id="no key at home"),
        pytest.param(json.dumps({"version": 1, "home": 0, "made": 0, "private": {"0": GOOD[:40]}}), id="a short key"),
        pytest.param(json.dumps({"version": 1, "home": 2, "made": 0, "private": {"2": GOOD}}), id="no such slot"),
    ],
)
def test_what_cannot_be_read_is_reported_without_what_is_in_it(tmp_path: Path, text: str) -> None:
    file = KeyFile(tmp_path)
    file.path.parent.mkdir()
    file.path.write_text(text)
    with pytest.raises(KeysBroken) as broken:
        file.load()
    assert GOOD not in str(broken.value)
    assert broken.value.__cause__ is None, "nor does the error behind it show"


def test_the_keys_of_a_node_without_a_file_follow_from_its_devices() -> None:
    """A device that runs keeps its key until packets have moved to a new one."""
    assert first_keys({}, NOW).public.home == 0
    one = new_key()
    taken = first_keys({1: one}, NOW)
    assert taken == PrivateKeys(home=1, made=0, private={1: one}, rotating=True)
    assert first_keys({0: one, 1: one}, NOW) == PrivateKeys(home=0, made=0, private={0: one}, rotating=True)
    two = new_key()
    assert first_keys({0: one, 1: two}, NOW) == PrivateKeys(home=0, made=0, private={0: one, 1: two}, rotating=True)


def test_a_rotation_keeps_the_old_key_until_it_is_left() -> None:
    before = first_keys({}, NOW)
    moved = before.begun().moved(NOW)
    assert (moved.home, moved.made, moved.rotating) == (1, int(NOW), False)
    assert moved.private[0] == before.private[0]
    assert moved.private_of(1) not in before.private.values()
    assert moved.left().private == {1: moved.private[1]}
    assert moved.left().private_of(0) == moved.private[1], "a guest has the key of home"
    assert clamped(moved.private[1]) == moved.private[1]
    assert moved.public.keys == {slot: public_of(key) for slot, key in moved.private.items()}
