"""Settings of ``routing``; each is read from ``AIRMESH_<NAME>``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chassis.runtime.settings import BaseSettings
from services.routing.probes import PORT
from services.routing.wireguard_device import SOCKETS


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(BaseSettings):
    """What one copy needs to know."""

    node: str = ""
    """Name of this Node object; in a gateway the name of its key, or empty: then no node can answer its tunnels."""

    uplinks: tuple[str, ...]
    """Interfaces on the network that the nodes share."""

    loopback: str = ""
    """Interface that leads nowhere and has this node's own address, as ``lo`` or ``dummy0``, where the node is reached
    by several uplinks; empty: its addresses are on those."""

    gateway: bool = False
    """Only install routes to the nodes' pods; hold nothing (a machine that is no node)."""

    probe_port: int = PORT
    """UDP port for packets of measurement between routing agents, the same on all nodes; used while a pool asks for
    another model than host-gw."""

    state_dir: Path = Path("/var/lib/airmesh")
    """Folder that outlives the agent and a start of the node: ``wireguard/keys.json`` is in it, for root alone."""

    wireguard_sockets: Path = SOCKETS
    """Folder of the UAPI sockets of wireguard-go, for kernels without WireGuard. Another one than the default is for
    nodes that share one file system: then wireguard-go runs in a mount namespace, which takes CAP_SYS_ADMIN."""

    wireguard_key_days: int = 0
    """Age in days at which this node changes its WireGuard key, a tenth more at most; 0: never by itself."""

    bgp_passwords: Path | None = None
    """Folder of passwords for BGP sessions, ``<Secret>/<key>``, for root alone; without it there are none."""

    sysctl_root: Path = Path("/proc/sys")
    """Where the kernel's sysctls are (``net/…``): another place in a container, whose own /proc/sys is read-only."""
