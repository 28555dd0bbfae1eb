"""Settings of ``ipam``; each is read from ``AIRMESH_<NAME>``."""

from __future__ import annotations

from dataclasses import dataclass

from chassis.settings import BaseSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(BaseSettings):
    """What one copy needs to know."""

    owner_grace: float = 3600.0
    """Seconds that an owner without any pod keeps its address (a StatefulSet scaled down may come back)."""

    address_cooldown: float = 130.0
    """Seconds that a kept address rests once no owner keeps it: longer than conntrack remembers its last holder."""
