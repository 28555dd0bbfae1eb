"""Publishes up to which point of ``endpoints`` every live node's maps follow: the shell of ``core.acknowledged``.

Owns ``blocks._acknowledged``. ``acks`` is listed at each pass and not watched: at each pod that comes or goes every
node acknowledges, which nobody here needs to hear. Every copy does it; it is written only where it differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar

import msgspec

from chassis.bus.entry import Entry
from chassis.faults import Damaged, Newer
from chassis.runtime.reconcile import Done
from proto.addresses import ACKNOWLEDGED_KEY, AcknowledgedEndpoints
from proto.codec import decode_segment
from proto.policy import Ack
from proto.sync import EPOCH_KEY, Epoch
from services.ipam.block_allocation import Look
from services.ipam.core.acknowledged import NOTHING, Departed, acknowledged_by_all
from services.ipam.store import Store

K = TypeVar("K")
T = TypeVar("T", bound=msgspec.Struct)


class Ended(Protocol):
    """The part of ``chassis.bus.kv.KV`` that tells where a bucket ends."""

    async def get(self, key: str, kind: type[T], /) -> Entry[T] | None:
        """The record as the leader has it."""

    async def last_sequence(self) -> int:
        """Of its stream."""


class Listed(Protocol):
    """The part of ``chassis.bus.kv.KV`` that lists."""

    async def list(self, kind: type[T], /) -> dict[str, Entry[T]]:
        """All records."""


class Acknowledged:
    """``stands``: what is in ``blocks`` now."""

    def __init__(self, blocks: Store, acks: Listed, look: Look, stands: Callable[[], AcknowledgedEndpoints]) -> None:
        self._blocks = blocks
        self._acks = acks
        self._look = look
        self._stands = stands

    async def publish(self) -> Done:
        """One pass. Raises Refused, Unavailable."""
        seen = self._look()
        if seen.not_synced:
            return Done()
        now = acknowledged_by_all(seen.nodes.values(), await self._listed())
        if now != self._stands():
            await self._blocks.put(ACKNOWLEDGED_KEY, now)
        return Done()

    async def _listed(self) -> Mapping[str, Ack]:
        """By node; nothing where one cannot be read, since a list is whole or not at all."""
        try:
            listed = await self._acks.list(Ack)
        except (Damaged, Newer):
            return {}
        return {decode_segment(key): entry.value for key, entry in listed.items()}


def published(mark: Entry[object] | None) -> AcknowledgedEndpoints:
    """What an entry of ``blocks`` says; :data:`NOTHING` without one."""
    return mark.value if mark is not None and isinstance(mark.value, AcknowledgedEndpoints) else NOTHING


class Departures(Generic[K]):
    """Which kept addresses, or blocks, that have rested every live node knows to be nobody's: of one copy's sweeps."""

    def __init__(self, most: int, endpoints: Ended, acknowledged: Callable[[], AcknowledgedEndpoints]) -> None:
        """At most ``most`` are withheld for a live node that is behind."""
        self._most = most
        self._endpoints = endpoints
        self._acknowledged = acknowledged
        self._departed: Departed[K] = Departed(most)

    async def known_to_all(self, rested: tuple[K, ...]) -> tuple[K, ...]:
        """Those of ``rested`` that may be freed now. Raises Unavailable, Missing."""
        if not rested:
            self._departed = Departed(self._most)
            return ()
        epoch = await self._endpoints.get(EPOCH_KEY, Epoch)
        last = AcknowledgedEndpoints("" if epoch is None else epoch.value.epoch, await self._endpoints.last_sequence())
        return self._departed.known_to_all(rested, last, self._acknowledged())
