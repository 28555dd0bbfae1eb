"""Everything that compose/compose.yaml mounts as a secret, made once into a folder and never overwritten.

Owns ``build/compose/secrets``: an authority (its key is root's), a certificate for each NATS server, a seed for each
user, and each server's nats.conf. A file is its reader's alone (0600). The folder is whole or absent: it is made beside
and renamed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from pathlib import Path

from chassis.bus.nats_config import Cluster, Server, make_users, render, write_secret, write_seeds
from chassis.secret import Secret
from deploy.images import plan
from lab.cluster import pki
from lab.topology import LabError
from proto.subjects import ROLES

SERVERS = {"nats-1": "10.198.77.11", "nats-2": "10.198.77.12", "nats-3": "10.198.77.13"}
"""Addresses of the servers, as compose.yaml gives them."""
NODE = "n1"
SERVER_USER = 65532
_DEADLINE_SECONDS = 30.0


def make_secrets(folder: Path) -> bool:
    """Makes them unless they are there; returns whether it did. Raises LabError."""
    if folder.exists():
        return False
    draft = folder.with_name(f".{folder.name}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True, mode=0o700)
    _authority(draft)
    _seeds(draft)
    draft.rename(folder)
    return True


def _authority(folder: Path) -> None:
    own = folder / "authority"
    own.mkdir(mode=0o700)
    _openssl(pki.authority_argv(own))
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
        os.chown(folder / "seeds" / f"{user.name}.seed", owner, owner)
    routes = tuple(f"{address}:6222" for address in SERVERS.values())
    cluster = Cluster(routes=routes, secret=Secret(secrets.token_urlsafe(32)))
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
    write_secret(folder / "kubeconfig", Secret(text.removesuffix("\n")))
    owner = next(image.user for image in plan.images() if image.service == "cluster")
    os.chown(folder / "kubeconfig", owner, owner)


def _openssl(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_DEADLINE_SECONDS, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(argv[:2])}: {done.stderr.strip()}")
