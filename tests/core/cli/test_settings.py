"""Where the bus is: what the environment may say, and one clear sentence for what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.faults import Exit, Usage
from cli.settings import BusSettings, load


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    file = tmp_path / "cli.seed"
    file.write_text("SU…")
    return file


def environment(seed: Path | str, **more: str) -> dict[str, str]:
    return {"AIRMESH_NATS": "nats://127.0.0.1:4222", "AIRMESH_NATS_SEED_FILE": str(seed), **more}


@pytest.mark.parametrize(
    "url",
    [
        "nats://127.0.0.1:4222",
        "nats://[::1]:4222",
        "nats://nats.example",
        "tls://nats.example:65535",
        "nats://u:p@host:1",
    ],
)
def test_the_servers_url(seed: Path, url: str) -> None:
    assert load(environment(seed, AIRMESH_NATS=url)) == BusSettings(url=url, seed_file=seed)


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:4222",
        "http://host:4222",
        "nats://",
        "nats://:4222",
        "nats://host:0",
        "nats://host:65536",
        "nats://host:x",
        "nats://[::1",
        "nats://[x]:1",
        "nats:host",
        " ",
    ],
)
def test_what_is_no_url_of_a_server_is_named(seed: Path, url: str) -> None:
    with pytest.raises(Usage, match="remedy: write it as nats://HOST:PORT") as refused:
        load(environment(seed, AIRMESH_NATS=url))
    assert repr(url) in str(refused.value)
    assert refused.value.code == Exit.USAGE


@pytest.mark.parametrize("missing", ["AIRMESH_NATS", "AIRMESH_NATS_SEED_FILE"])
@pytest.mark.parametrize("how", ["unset", "empty"])
def test_what_must_be_set_is_named(seed: Path, missing: str, how: str) -> None:
    given = environment(seed)
    if how == "unset":
        del given[missing]
    else:
        given[missing] = ""
    with pytest.raises(Usage, match=f"^{missing} is not set: it is the (URL|file)"):
        load(given)


@pytest.mark.parametrize("what", ["absent", "a folder", "a file behind a file"])
def test_a_seed_that_is_no_file_is_named(tmp_path: Path, seed: Path, what: str) -> None:
    path = {"absent": tmp_path / "absent", "a folder": tmp_path, "a file behind a file": seed / "x"}[what]
    with pytest.raises(Usage, match="is not a file") as refused:
        load(environment(path))
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(("said", "user"), [({}, "cli"), ({"AIRMESH_NATS_USER": ""}, "cli")])
def test_the_user_is_cli_unless_said_otherwise(seed: Path, said: dict[str, str], user: str) -> None:
    assert load(environment(seed, **said)).user == user
    assert load(environment(seed, AIRMESH_NATS_USER="watcher")).user == "watcher"
