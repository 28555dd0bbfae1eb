"""Settings of ``policy``; every field is an environment variable ``AIRMESH_<FIELD>``."""

from __future__ import annotations

from dataclasses import dataclass

from chassis.faults import SettingsFault
from chassis.settings import BaseSettings

MAX_SHARDS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(BaseSettings):
    """What a copy of ``policy`` is told. Copies of one cluster must agree on the number of shards."""

    policy_shards: int = 2
    """Into how many parts, each written by one copy at a time, the identities are divided."""

    policy_lease_seconds: float = 6.0
    """After so many seconds without a sign of its holder, a shard is taken over by another copy."""

    policy_grace_seconds: float = 60.0
    """How long rules of an identity without pods, and lines for a replaced CIDR partition, are kept for slow nodes."""

    policy_namespace_identities: int = 2048
    """Most identities of one namespace (different sets of labels, named ports and service accounts of its pods)."""

    policy_namespace_bytes: int = 2 << 20
    """Most bytes of what one namespace's identities are told by: their labels, ports and names."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        if not 1 <= self.policy_shards <= MAX_SHARDS:
            raise SettingsFault("AIRMESH_POLICY_SHARDS", str(self.policy_shards), f"use 1 to {MAX_SHARDS}")
        if self.policy_lease_seconds < 1:
            raise SettingsFault("AIRMESH_POLICY_LEASE_SECONDS", str(self.policy_lease_seconds), "use at least 1")
        if self.policy_grace_seconds < 0:
            raise SettingsFault("AIRMESH_POLICY_GRACE_SECONDS", str(self.policy_grace_seconds), "use 0 or more")
        for variable in ("policy_namespace_identities", "policy_namespace_bytes"):
            if getattr(self, variable) < 1:
                raise SettingsFault(f"AIRMESH_{variable.upper()}", str(getattr(self, variable)), "use at least 1")
