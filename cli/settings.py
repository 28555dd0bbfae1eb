"""Where the bus is and who we are on it, from the environment.

AIRMESH_NATS is the server's URL, AIRMESH_NATS_SEED_FILE the file with the seed of the user's nkey (mode 0600);
AIRMESH_NATS_CA_FILE, where the server speaks TLS, the file of the authority that signed its certificate;
AIRMESH_NATS_USER the user's name, `cli` unless said otherwise (answers come to an inbox of that name, and the server
lets nobody else read it). `eval "$(airmesh lab env)"` sets all of them for a lab.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cli.faults import Usage

_REMEDY = 'set it, or run eval "$(airmesh lab env)" when a lab is up'


@dataclass(frozen=True, slots=True, kw_only=True)
class BusSettings:
    """How to reach the bus."""

    url: str
    seed_file: Path
    ca_file: Path | None = None
    user: str = "cli"
    deadline: float = 3.0
    """Seconds a command may take in all, but for what follows a stream."""


def load(environ: Mapping[str, str]) -> BusSettings:
    """Settings of the environment; raises :class:`Usage` naming the variable and the remedy."""
    url = environ.get("AIRMESH_NATS", "")
    if not url:
        raise Usage("AIRMESH_NATS is not set: it is the URL of the mesh's NATS server", _REMEDY)
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("nats", "tls") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise Usage(
            f"AIRMESH_NATS={url!r} is not the URL of a NATS server", "write it as nats://HOST:PORT or tls://HOST:PORT"
        )
    seed = environ.get("AIRMESH_NATS_SEED_FILE", "")
    if not seed:
        raise Usage("AIRMESH_NATS_SEED_FILE is not set: it is the file with the nkey seed of the user cli", _REMEDY)
    path = Path(seed)
    if not path.is_file():
        raise Usage(f"AIRMESH_NATS_SEED_FILE={seed} is not a file", _REMEDY)
    authority = environ.get("AIRMESH_NATS_CA_FILE", "")
    if authority and not Path(authority).is_file():
        raise Usage(f"AIRMESH_NATS_CA_FILE={authority} is not a file", _REMEDY)
    ca_file = Path(authority) if authority else None
    return BusSettings(url=url, seed_file=path, ca_file=ca_file, user=environ.get("AIRMESH_NATS_USER") or "cli")
