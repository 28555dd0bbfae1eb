"""Passwords of BGP sessions, read from a folder as the kubelet lays a mounted Secret."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from proto.objects import BGPConfiguration, BGPPeer, SecretKey
from services.routing.bgp_passwords import MOST_OCTETS, keys_named, read_passwords

TOR = SecretKey("bgp-secrets", "tor")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One Secret, whose keys are links through ``..data``, as the kubelet replaces all of them at once."""
    secret = tmp_path / "mounted" / "bgp-secrets"
    (secret / "..2026_01").mkdir(parents=True)
    (secret / "..data").symlink_to("..2026_01")
    for key, octets in {
        "tor": b"sesame\n",
        "windows": b"sesame\r\n",
        "plain": b" two words ",
        "latin": b"s\xe9same",
        "long": b"x" * (MOST_OCTETS + 1),
        "empty": b"",
    }.items():
        (secret / "..2026_01" / key).write_bytes(octets)
        (secret / key).symlink_to(f"..data/{key}")
    (tmp_path / "other").write_bytes(b"not ours")
    return tmp_path / "mounted"


@pytest.mark.parametrize(
    ("secret", "key", "password"),
    [
        ("bgp-secrets", "tor", "sesame"),
        ("bgp-secrets", "windows", "sesame"),
        ("bgp-secrets", "plain", " two words "),
        ("bgp-secrets", "empty", ""),
        ("bgp-secrets", "latin", None),
        ("bgp-secrets", "long", None),
        ("bgp-secrets", "absent", None),
        ("absent", "tor", None),
        ("bgp-secrets", "..data", None),
        ("bgp-secrets", "../../other", None),
        ("..", "other", None),
        (".", "bgp-secrets", None),
        ("bgp-secrets", "", None),
        ("", "other", None),
    ],
)
def test_what_is_read(folder: Path, secret: str, key: str, password: str | None) -> None:
    found = read_passwords(folder, [SecretKey(secret, key)])
    assert found == ({} if password is None else {SecretKey(secret, key): password})


def test_a_secret_that_is_replaced_is_read_as_it_is_now(folder: Path) -> None:
    secret = folder / "bgp-secrets"
    (secret / "..2026_02").mkdir()
    (secret / "..2026_02" / "tor").write_bytes(b"changed")
    (secret / "..new").symlink_to("..2026_02")
    os.replace(secret / "..new", secret / "..data")
    assert read_passwords(folder, [TOR, SecretKey("bgp-secrets", "windows")]) == {TOR: "changed"}


def test_without_a_folder_there_is_none() -> None:
    assert read_passwords(None, [TOR]) == {}


def test_only_what_objects_name_is_read() -> None:
    mesh = SecretKey("bgp-secrets", "mesh")
    configurations = [BGPConfiguration(name="default", mesh_password=mesh), BGPConfiguration(name="node.n1")]
    assert keys_named(configurations, [BGPPeer(name="a", password=TOR), BGPPeer(name="b")]) == {mesh, TOR}
