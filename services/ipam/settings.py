"""Settings of ``ipam``; each is read from ``AIRMESH_<NAME>``."""

from __future__ import annotations

from dataclasses import dataclass

from chassis.runtime.settings import BaseSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(BaseSettings):
    """What one copy needs to know."""

    owner_grace: float = 3600.0
    """Seconds that an owner without any pod keeps its address (a StatefulSet scaled down may come back)."""

    node_grace: float = 3600.0
    """Seconds that a Node must have been gone from Kubernetes, and silent, before its blocks are taken back."""

    node_addresses: int = 2048
    """Addresses of one family in all blocks of one node; the first block is given whatever its size."""

    acknowledged_every: float = 10.0
    """Seconds between two looks at what every node has acknowledged of ``endpoints``."""

    address_cooldown: float = 130.0
    """Seconds that an address rests once no owner keeps it, or its block's Node is gone: longer than conntrack
    remembers its last holder."""
