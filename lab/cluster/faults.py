"""Faults that are injected into a lab: scripts of `tests/drills/faults`, run with the lab's names.

A script says in its first lines what it is and which code `airmesh doctor` has to find (see the folder's README). What
is broken is remembered in the lab's folder, so that `mend` without a name mends all of it. Refuses a name that is none.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

from lab.cluster import ledger
from lab.cluster.launch import kubectl
from lab.cluster.record import require
from lab.paths import MARKER, SOURCE, Paths
from lab.topology import Fabric, LabError, Topology

FOLDER = SOURCE / "tests" / "drills" / "faults"
SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class InjectedFault:
    """A script of the folder."""

    name: str
    what: str
    finds: str
    """Code of the finding that names it."""
    kept: bool
    """Checks are not tuned by it."""
    asks: str = ""
    """What `airmesh doctor` is asked, e.g. ``policy shop/web``; empty: everything."""


def read_fault(path: Path) -> InjectedFault:
    """What a script says of itself. Raises `LabError` when it does not say what it should be found as."""
    comments = [line[2:].strip() for line in path.read_text().splitlines()[1:] if line.startswith("# ")]
    fields = dict(line.partition(": ")[::2] for line in comments[1:])
    if "finds" not in fields:
        raise LabError(f"{path.name}: write a line `# finds: CODE`")
    return InjectedFault(
        name=path.stem,
        what=comments[0],
        finds=fields["finds"],
        kept="kept" in fields,
        asks=fields.get("asks", ""),
    )


def known() -> dict[str, InjectedFault]:
    """All of them by name."""
    return {path.stem: read_fault(path) for path in sorted(FOLDER.glob("*.sh"))}


def broken(where: Paths) -> list[str]:
    """Names of faults that are injected now."""
    return sorted(path.stem for path in _state(where).glob("*.broken"))


def break_(where: Paths, name: str) -> InjectedFault:
    """Inject a fault. Raises `LabError`."""
    faults = known()
    if name not in faults:
        raise LabError(f"fault {name!r} is none: write one of {', '.join(faults)}")
    (_state(where) / f"{name}.broken").touch()
    _run(where, name, "break")
    return faults[name]


def mend(where: Paths, name: str = "") -> list[str]:
    """Take a fault back, or all; their names. Raises `LabError`."""
    names = [name] if name else broken(where)
    for one in names:
        if one not in known():
            raise LabError(f"fault {one!r} is none: write one of {', '.join(known())}")
        _run(where, one, "mend")
        (_state(where) / f"{one}.broken").unlink(missing_ok=True)
    return names


def _state(where: Paths) -> Path:
    folder = where.state / "faults"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _run(where: Paths, name: str, verb: str) -> None:
    environment = {**os.environ, **names(where, require(where, Fabric.ROUTED).topology)}
    argv = ["sh", str(FOLDER / f"{name}.sh"), verb]
    # Not captured by pipes: what a script leaves behind would hold them open.
    with (_state(where) / f"{name}.log").open("w+") as log:
        try:
            done = subprocess.run(
                argv, cwd=SOURCE, env=environment, stdout=log, stderr=log, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise LabError(f"{verb} {name}: not done within {SECONDS} s") from error
        log.seek(0)
        if done.returncode:
            raise LabError(f"{verb} {name}: {log.read().strip()[-400:]}")


def names(where: Paths, topology: Topology) -> Mapping[str, str]:
    """What a script finds in its environment."""
    control, (node, peer, *_) = topology.control, topology.nodes
    block = _block(peer.namespace)
    alive = {entry.name: entry.pid for entry in ledger.alive(ledger.read(where.ledger))}
    wrapped = _state(where) / "bin"
    wrapped.mkdir(exist_ok=True)
    program = wrapped / "kubectl"
    program.write_text(f'#!/bin/sh\nexec "{kubectl()}" --kubeconfig="{where.kubeconfig}" "$@"\n')
    program.chmod(0o755)
    return {
        MARKER: where.lab,
        "LAB": where.lab,
        "STATE": str(_state(where)),
        "PYTHON": sys.executable,
        "PATH": f"{wrapped}:{os.environ.get('PATH', '')}",
        "NODE": node.namespace,
        "PEER": peer.namespace,
        "CONTROL": control.namespace,
        "ROUTER": topology.router_namespace or "",
        "OUTSIDE": topology.fabric_namespace,
        "NODE_NAME": node.name,
        "PEER_NAME": peer.name,
        "NODE_ADDRESS": str(node.fabric4),
        "PEER_ADDRESS": str(peer.fabric4),
        "CONTROL_ADDRESS": str(control.fabric4),
        "PEER_BLOCK": block,
        "PEER_PART": str(next(ip_network(block).subnets(prefixlen_diff=2))) if block else "",
        "ROUTING_PID": str(alive.get(f"routing-{node.name}", 0)),
    }


def _block(namespace: str) -> str:
    """An IPv4 block that a node holds, as its kernel has it: unreachable where nothing better is known."""
    argv = ["ip", "-n", namespace, "-4", "route", "show", "type", "unreachable", "proto", "186"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, check=False)
    blocks = [word for line in done.stdout.splitlines() for word in line.split() if "/" in word]
    return max(blocks, key=lambda text: ip_network(text).prefixlen, default="")
