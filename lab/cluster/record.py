"""The record of a lab: what was asked for, and whether it came to be.

Owns the file `lab.json`. A lab that is up keeps its shape (nodes, installation, fabric); the MTU between its segments
and its model of routing are changed while it runs, and the record follows.
"""

from enum import StrEnum

import msgspec

from lab.cluster import ledger
from lab.cluster.sessions import Bfd
from lab.paths import Paths
from lab.topology import Fabric, LabError, SwitchDaemon, Topology, plan


class Install(StrEnum):
    """How airmesh comes into a lab."""

    PROCESSES = "processes"
    """Agents are processes of the lab, of this tree's code."""
    PODS = "pods"
    """`airmesh install` brings images of it, as into any cluster."""
    NOTHING = "nothing"
    """Kubernetes alone: nodes stay NotReady."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """`lab.json`. `finished`: `up` came to its end."""

    lab: str
    nodes: int
    install: Install = Install.PROCESSES
    fabric: Fabric = Fabric.FLAT
    fabric_mtu: int = 0
    """Of the way between the segments; 0: as large as their links'."""
    switch: SwitchDaemon = SwitchDaemon.BIRD
    """What top-of-rack switches run, where the fabric has any."""
    bfd: Bfd = Bfd.GRACEFUL
    """What they do when BFD loses a node."""
    model: str = ""
    """Of routing, asked for last; empty: as the pools of `manifests/` say."""
    finished: bool = False

    @property
    def topology(self) -> Topology:
        """The network of it. Raises `LabError`."""
        return plan(self.lab, self.nodes, self.fabric, self.fabric_mtu)

    @property
    def shape(self) -> str:
        """What `up` is asked for it with."""
        switch = f" --switch {self.switch} --bfd {self.bfd}" if self.fabric is Fabric.TOR else ""
        return f"--nodes {self.nodes} --install {self.install} --fabric {self.fabric}{switch}"

    @property
    def mesh(self) -> bool:
        """Whether it has airmesh."""
        return self.install is not Install.NOTHING


def read_record(where: Paths) -> Record | None:
    """What a lab was asked to be; None when there is no lab (or only half a file of one)."""
    try:
        return msgspec.json.decode(where.record.read_bytes(), type=Record)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def write_record(where: Paths, record: Record) -> None:
    """Write `lab.json`."""
    ledger.write(where.record, msgspec.json.format(msgspec.json.encode(record)) + b"\n")


def require(where: Paths, fabric: Fabric) -> Record:
    """The record of a lab that has such a fabric. Raises `LabError`."""
    record = read_record(where)
    if record is None:
        raise LabError(f"lab {where.lab} is not there: python -m lab up --name {where.lab} --fabric {fabric}")
    if record.fabric is not fabric:
        lacks = "a router" if fabric is Fabric.ROUTED else "switches"
        raise LabError(
            f"lab {where.lab} has a {record.fabric} fabric, without {lacks}: python -m lab up --fabric {fabric}"
        )
    return record
