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

    policy_max_lines: int = 4096
    """Most lines of one identity in one direction; one that needs more is denied whole, and that is reported."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        if not 1 <= self.policy_shards <= MAX_SHARDS:
            raise SettingsFault("AIRMESH_POLICY_SHARDS", str(self.policy_shards), f"use 1 to {MAX_SHARDS}")
        if self.policy_lease_seconds < 1:
            raise SettingsFault("AIRMESH_POLICY_LEASE_SECONDS", str(self.policy_lease_seconds), "use at least 1")
        if self.policy_grace_seconds < 0:
            raise SettingsFault("AIRMESH_POLICY_GRACE_SECONDS", str(self.policy_grace_seconds), "use 0 or more")
        if self.policy_max_lines < 1:
            raise SettingsFault("AIRMESH_POLICY_MAX_LINES", str(self.policy_max_lines), "use at least 1")
