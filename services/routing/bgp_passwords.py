"""Passwords of BGP sessions: files of Secrets that the kubelet mounts on this node, and that nobody else hands out.

A password is never on the bus and never with ``cluster``: what is mirrored is the name of a Secret's key. The file
stands at ``<folder>/<Secret>/<key>`` (``AIRMESH_BGP_PASSWORDS``), where the DaemonSet mounts the Secret for root alone,
so it is the kubelet that hands it out. Only the keys that objects name are read, and no name leads out of the folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from proto.objects import BGPConfiguration, BGPPeer, SecretKey

MOST_OCTETS = 4096
"""Of a file that is read; one that is longer is no password."""
_NAME = re.compile(r"(?!\.\.|\.\Z)[-._A-Za-z0-9]{1,253}").fullmatch


def keys_named(configurations: Iterable[BGPConfiguration], peers: Iterable[BGPPeer]) -> frozenset[SecretKey]:
    """The keys of Secrets that these objects name."""
    named = {one.mesh_password for one in configurations} | {one.password for one in peers}
    return frozenset(key for key in named if key is not None)


def read_passwords(folder: Path | None, keys: Iterable[SecretKey]) -> dict[SecretKey, str]:
    """The passwords that are there. One line break at the end is not the password's. What is missing, too long or no
    UTF-8 is left out, and the session that asks for it is not held.
    """
    found: dict[SecretKey, str] = {}
    for key in keys if folder is not None else ():
        if folder is not None and _NAME(key.name) and _NAME(key.key):
            try:
                with (folder / key.name / key.key).open("rb") as file:
                    octets = file.read(MOST_OCTETS + 1)
                if len(octets) <= MOST_OCTETS:
                    found[key] = octets.decode().removesuffix("\n").removesuffix("\r")
            except (OSError, UnicodeDecodeError):
                continue
    return found
