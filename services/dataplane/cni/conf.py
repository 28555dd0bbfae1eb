"""The runtime's network configuration of this node: written when pods can start, left in place ever after.

Owns ``10-airmesh.conflist`` in the runtime's folder. A node without it is NotReady to Kubernetes, so it appears only
when the node holds a block of each enabled family and its programs are attached; it is not taken away when the agent
stops (packets go on; an ADD then gets "try again later"). Written by rename: a runtime never reads half of it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from chassis.replaced_file import replace_file

NAME = "10-airmesh.conflist"


def conflist(socket: Path) -> bytes:
    """The configuration: one plugin, which finds this node's agent by the socket's path."""
    document = {
        "cniVersion": "1.0.0",
        "name": "airmesh",
        "plugins": [{"type": "airmesh-cni", "socket": str(socket)}],
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def write_conf(folder: Path, socket: Path) -> bool:
    """Writes it where it is missing or differs; True when it was written. Raises OSError."""
    path, wanted = folder / NAME, conflist(socket)
    if path.exists() and path.read_bytes() == wanted:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(path, wanted, 0o644)
    return True
