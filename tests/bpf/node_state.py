"""What an enforcer sees of the bus and of its node, set by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from chassis.telemetry.log import Log
from proto.codec import identity_key
from proto.identity import IdentityRecord
from proto.policy import CompiledPolicy, Frontier
from services.dataplane.datapath.tables import Tables
from services.dataplane.policy.enforce import Enforcer


class NodeState:
    """Rules, records of identities, and the identities of the pods that are up."""

    def __init__(self, up: dict[str, int]) -> None:
        self.rules: dict[int, CompiledPolicy] = {}
        self.frontiers: list[Frontier] = []
        self._entries: dict[str, Any] = {}
        self.feed: Any = SimpleNamespace(
            rules=self.rules,
            frontiers=lambda: self.frontiers,
            partitions=dict,
            rules_view=SimpleNamespace(synced=True),
            identities=SimpleNamespace(synced=True, entries=self._entries, epoch="i1", sequence=0),
        )
        self.registry: Any = SimpleNamespace(
            up={
                name: SimpleNamespace(identity=identity, first=SimpleNamespace(namespace="shop"))
                for name, identity in up.items()
            }
        )

    def enforcer(self, tables: Tables) -> Enforcer:
        """One that compares with the kernel at every full pass."""
        return Enforcer(tables, self.feed, self.registry, Log("test"), budget=1000, share=float("inf"))

    def learn(self, record: IdentityRecord) -> str:
        """A record is in the view; its key."""
        key = identity_key(record.identity)
        self._entries[key] = SimpleNamespace(value=record)
        self.feed.identities.sequence += 1
        return key

    def forget(self, record: IdentityRecord) -> str:
        key = identity_key(record.identity)
        del self._entries[key]
        return key
