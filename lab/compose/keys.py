"""Everything that compose/compose.yaml mounts as a secret, made once into a folder, and kept.

Owns ``build/compose/secrets``: an authority (its key is root's), a certificate for each NATS server, a seed for each
user, and each server's nats.conf. A file is its reader's alone (0600). The folder is made beside and renamed, so one
that is there was whole once; what it lacks now is named, and nothing of it is made anew in silence, since servers and
agents would no longer know each other. nats.conf alone follows the code: it is written again at each start.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nkeys

from chassis.bus.nats_config import Cluster, Server, User, make_users, render, user_name, write_secret, write_seeds
from chassis.secret import Secret
from deploy.images import plan
from lab.cluster import pki
from lab.topology import LabError
from proto.subjects import ROLES

SERVERS = {"nats-1": "10.198.77.11", "nats-2": "10.198.77.12", "nats-3": "10.198.77.13"}
"""Addresses of the servers, as compose.yaml gives them."""
BGP = "bgp-secrets"
"""Folder of the passwords that BGPPeers name, a file each; it may be empty."""
NODE = "n1"
SERVER_USER = 65532
_CLUSTER_SECRET = Path("authority/cluster.secret")
"""What the servers know each other by."""
_TLS = ("tls.crt", "tls.key", "ca.crt")
_DEADLINE_SECONDS = 30.0


def make_secrets(folder: Path) -> bool:
    """Makes them unless they are there; returns whether it did. Raises LabError naming what a folder lacks."""
    made = not os.path.lexists(folder)
    if made:
        draft = folder.with_name(f".{folder.name}")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True, mode=0o700)
        _authority(draft)
        _seeds(draft)
        draft.rename(folder)
    elif lacks := missing(folder):
        raise LabError(
            f"{folder} is not whole, it lacks {', '.join(lacks)}: make compose-down, remove the folder, start again: "
            "all keys and certificates are made anew"
        )
    _configure(folder)
    return made


def missing(folder: Path) -> list[str]:
    """Files that are not there or empty, of those that are made once."""
    return [str(file) for file in _kept() if not _has_content(folder / file)]


def _kept() -> Iterator[Path]:
    yield from (Path("ca.crt"), Path("authority/ca.key"), Path("authority/ca.crt"), _CLUSTER_SECRET)
    yield from (Path(name) / file for name in SERVERS for file in _TLS)
    yield from (_seed_file(user) for user in _users())


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _users() -> list[str]:
    return [user_name(role, NODE) for role in ROLES]


def _seed_file(user: str) -> Path:
    return Path("seeds") / f"{user}.seed"


def _authority(folder: Path) -> None:
    own = folder / "authority"
    own.mkdir(mode=0o700)
    _openssl(pki.authority_argv(own))
    write_secret(folder / _CLUSTER_SECRET, Secret(secrets.token_urlsafe(32)))
    shutil.copy(own / "ca.crt", folder / "ca.crt")
    (folder / "ca.crt").chmod(0o644)
    for name, address in SERVERS.items():
        leaf = pki.Certificate(file="tls", user=name, names=(name, address, "127.0.0.1"))
        _openssl(pki.leaf_argv(leaf, own))
        server = folder / name
        server.mkdir(mode=0o700)
        for file in ("tls.crt", "tls.key"):
            (own / file).rename(server / file)
        shutil.copy(own / "ca.crt", server / "ca.crt")


def _seeds(folder: Path) -> None:
    users = make_users(ROLES, (NODE,))
    write_seeds(users, folder / "seeds")
    runs_as = {image.service: image.user for image in plan.images()}
    for user in users:
        owner = runs_as.get(user.role.name, 0)
        os.chown(folder / _seed_file(user.name), owner, owner)


def _read_user(folder: Path, number: int) -> User:
    """The user of a role, by its seed. Raises LabError."""
    role = ROLES[number]
    name = user_name(role, NODE)
    seed = (folder / _seed_file(name)).read_text().strip()
    try:
        public = nkeys.from_seed(bytearray(seed.encode())).public_key.decode()
    except (nkeys.NkeysError, ValueError) as error:
        raise LabError(f"{folder / _seed_file(name)} is no seed of an nkey: remove {folder}, start again") from error
    return User(name=name, role=role, node=NODE if role.per_node else "", seed=Secret(seed), public=public)


def _configure(folder: Path) -> None:
    """Each server's nats.conf, as the table of roles is now."""
    users = [_read_user(folder, number) for number in range(len(ROLES))]
    routes = tuple(f"{address}:6222" for address in SERVERS.values())
    cluster = Cluster(routes=routes, secret=Secret((folder / _CLUSTER_SECRET).read_text().strip()))
    for name in SERVERS:
        server = Server(
            store_dir=Path("/data/store"),
            host="0.0.0.0",
            monitor_port=8222,
            name=name,
            tls=Path("/etc/nats"),
            cluster=cluster,
        )
        write_secret(folder / name / "nats.conf", Secret(render(users, server)))
        _give(folder / name, SERVER_USER)


def _give(folder: Path, owner: int) -> None:
    """All of a folder becomes one user's alone."""
    os.chown(folder, owner, owner)
    for path in folder.iterdir():
        os.chown(path, owner, owner)
        path.chmod(0o600)


def take_kubeconfig(given: Path, folder: Path) -> None:
    """Puts a kubeconfig where `cluster` reads it; the one of an earlier start is replaced. Raises LabError."""
    try:
        text = given.read_text()
    except OSError as error:
        raise LabError(f"AIRMESH_KUBECONFIG={given}: {error.strerror}: name a kubeconfig that can be read") from error
    target = folder / "kubeconfig"
    if target.is_dir():
        target.rmdir()  # an engine makes a folder of what it is to mount and does not find
    write_secret(target, Secret(text.removesuffix("\n")))
    owner = next(image.user for image in plan.images() if image.service == "cluster")
    os.chown(target, owner, owner)


def _openssl(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_DEADLINE_SECONDS, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(argv[:2])}: {done.stderr.strip()}")
