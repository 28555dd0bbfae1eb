"""Who we are on the bus and whom we trust: files that are read at each connect, so that a renewed one counts by itself.

Who is connected looks at these files now and then, and signs in again when the user's holds another key, or the other
one names an authority more.

A user's file holds the seed of an nkey (a server that lists its users), or a JWT and its seed (NATS credentials, where
servers trust an operator). A JWT is sent together with the public nkey: a server of either kind lets the same key in,
so that servers may change from one kind to the other while agents stay as they are.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nkeys

from chassis.bus import tls
from chassis.secret import Secret

JWT_BEGINS = "-----BEGIN NATS USER JWT-----"
_SEED_BEGINS = "-----BEGIN USER NKEY SEED-----"
_CREDENTIALS = """-----BEGIN NATS USER JWT-----
{jwt}
------END NATS USER JWT------

-----BEGIN USER NKEY SEED-----
{seed}
------END USER NKEY SEED------
"""


@dataclass(frozen=True, slots=True)
class Identity:
    """A user's key, and what an account signed about it (empty where the server lists its users)."""

    seed: Secret
    jwt: str = ""

    @property
    def public(self) -> str:
        """The public nkey, ``U…``."""
        return str(self._pair().public_key.decode())

    def sign(self, nonce: str) -> bytes:
        """What proves to a server that we hold the key."""
        return base64.b64encode(self._pair().sign(nonce.encode()))

    def _pair(self) -> nkeys.KeyPair:
        return nkeys.from_seed(bytearray(self.seed.reveal().encode()))


def parse(text: str) -> Identity:
    """Identity of a user's file; raises ValueError."""
    rows = [row.strip() for row in text.strip().splitlines()]
    if rows and rows[0] == JWT_BEGINS:
        try:
            found = Identity(Secret(rows[rows.index(_SEED_BEGINS) + 1]), rows[1])
        except (ValueError, IndexError):
            raise ValueError("NATS credentials without the seed of their key") from None
    else:
        found = Identity(Secret(text.strip()))
    try:
        public = found.public
    except (nkeys.NkeysError, ValueError) as error:
        raise ValueError(f"no seed of an nkey: {error or 'it does not begin with SU'}") from None
    if not public.startswith("U"):
        raise ValueError("the seed of an nkey that is no user's (SU…)")
    return found


def credentials(jwt: str, seed: Secret) -> Secret:
    """Text of a file that holds both (``.creds`` of NATS' own tools)."""
    return Secret(_CREDENTIALS.format(jwt=jwt, seed=seed.reveal()))


class Credentials:
    """The files of one user; what was read last counts on while a file cannot be read."""

    def __init__(self, seed_file: Path, ca_file: Path | None = None) -> None:
        self._seed_file = seed_file
        self.ca_file = ca_file
        """The authority's certificate; None: the servers are spoken to in the clear."""
        self._last: Identity | None = None
        self._seen: dict[Path, tuple[int, int, int]] = {}

    def replaced(self) -> bool:
        """Whether a file is another one than at the last call, or was written over; False at the first."""
        seen = [self._is_another(path) for path in (self._seed_file, self.ca_file) if path is not None]
        return any(seen)

    def _is_another(self, path: Path) -> bool:
        try:
            found = path.stat()
        except OSError:
            return False
        now = (found.st_ino, found.st_mtime_ns, found.st_size)
        before, self._seen[path] = self._seen.get(path, now), now
        return before != now

    def are_those_of(self, public: str, trusted: Sequence[str]) -> bool:
        """Whether the files hold the key of a sign-in, and name no authority more than it had (fingerprints). Raises as
        the two below.
        """
        named = set(tls.authorities(self.trust())) if self.ca_file else set()
        return self.identity().public == public and named <= set(trusted)

    def identity(self) -> Identity:
        """Who we are now; raises :class:`chassis.bus.tls.TlsFault`'s base when there never was a usable file."""
        try:
            self._last = parse(self._seed_file.read_text())
        except (OSError, ValueError) as error:
            if self._last is None:
                why = error.strerror if isinstance(error, OSError) else str(error)
                raise tls.TlsFault(f"AIRMESH_NATS_SEED_FILE={self._seed_file} cannot be used: {why}") from error
        return self._last

    def trust(self) -> ssl.SSLContext:
        """Whom we trust now; raises :class:`chassis.bus.tls.TlsFault`."""
        return tls.trust(self.ca_file)
