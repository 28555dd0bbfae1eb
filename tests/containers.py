"""Agents and NATS servers that run as containers of a lab's nodes, found on this machine by /proc.

All are on their node's network, and a container's first process is a child of its shim. An agent has the name that it
tells the bus (AIRMESH_INSTANCE: the pod's of a service, `routing-n1` and `dataplane-n1` of a node), a server `nats-n1`.
A name outlives the container: the kubelet starts another one in the same pod.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
_SHIM = "containerd-shim"
_AGENT, _SERVER = b"/opt/airmesh", b"/usr/bin/nats-server"
"""The last word of an agent's entry point (deploy/images/Dockerfile), the first one of a server's."""


def running(namespaces: Mapping[str, str]) -> dict[str, int]:
    """Pids by name; ``namespaces``: of each node, the path of its network namespace."""
    nodes = {Path(path).stat().st_ino: node for node, path in namespaces.items()}
    found = {}
    for entry in PROC.glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            words = (entry / "cmdline").read_bytes().split(b"\0")
            agent, server = words[2:3] == [_AGENT], words[:1] == [_SERVER]
            if not (agent or server) or not _is_first(entry):
                continue
            node = nodes.get((entry / "ns/net").stat().st_ino)
            if node is not None:
                found[f"nats-{node}" if server else _instance(entry)] = int(entry.name)
    return found


def _is_first(entry: Path) -> bool:
    parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
    return (PROC / parent / "comm").read_text().startswith(_SHIM)


def _instance(entry: Path) -> str:
    said = dict(part.partition(b"=")[::2] for part in (entry / "environ").read_bytes().split(b"\0"))
    return said[b"AIRMESH_INSTANCE"].decode()
