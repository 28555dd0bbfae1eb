"""Settings of ``policy``; every field is an environment variable ``AIRMESH_<FIELD>``."""

from __future__ import annotations

from dataclasses import dataclass

from chassis.faults import SettingsFault
from chassis.runtime.settings import BaseSettings

MAX_SHARDS = 64
MOST_IN_A_VALUE = 10_000
"""Prefixes of a partition that one value of the bus holds for certain."""
MOST_ON_A_NODE = 131_072
"""Prefixes that a node's map holds twice: what is new is set before what is old goes."""


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

    policy_max_policy_prefixes: int = 1_000
    """Most CIDRs and exceptions of one NetworkPolicy; the ipBlocks of one that has more allow nothing."""

    policy_max_namespace_prefixes: int = 4_000
    """Most CIDRs and exceptions of all NetworkPolicies of a namespace; the ipBlocks of newer ones allow nothing."""

    policy_max_prefixes: int = 100_000
    """Most CIDRs and exceptions of the cluster; the newest policies of the largest namespace are the first to give."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        if not 1 <= self.policy_shards <= MAX_SHARDS:
            raise SettingsFault("AIRMESH_POLICY_SHARDS", str(self.policy_shards), f"use 1 to {MAX_SHARDS}")
        if self.policy_lease_seconds < 1:
            raise SettingsFault("AIRMESH_POLICY_LEASE_SECONDS", str(self.policy_lease_seconds), "use at least 1")
        if self.policy_grace_seconds < 0:
            raise SettingsFault("AIRMESH_POLICY_GRACE_SECONDS", str(self.policy_grace_seconds), "use 0 or more")
        for name, value, most in (
            ("AIRMESH_POLICY_MAX_POLICY_PREFIXES", self.policy_max_policy_prefixes, MOST_IN_A_VALUE),
            ("AIRMESH_POLICY_MAX_NAMESPACE_PREFIXES", self.policy_max_namespace_prefixes, MOST_IN_A_VALUE),
            ("AIRMESH_POLICY_MAX_PREFIXES", self.policy_max_prefixes, MOST_ON_A_NODE),
        ):
            if not 1 <= value <= most:
                raise SettingsFault(name, str(value), f"use 1 to {most}")
        for variable in ("policy_namespace_identities", "policy_namespace_bytes"):
            if getattr(self, variable) < 1:
                raise SettingsFault(f"AIRMESH_{variable.upper()}", str(getattr(self, variable)), "use at least 1")
