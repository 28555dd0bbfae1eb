"""Writes the status of CalicoNodeStatus objects: what agents have reported of their BGP speakers, as often as asked.

Promises: only the lease holder writes, only what a node's own key has reported since the last write, and no more than
:data:`AT_ONCE` objects in a pass. What is heard of a node that no object asks for is dropped, so that what is kept has
the number of objects as its bound. An object whose node is silent stays as it is: ``lastUpdated`` says since when.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from chassis.bus.micro import VERSION
from chassis.runtime.election import Election
from chassis.runtime.reconcile import Dirty, Done
from chassis.telemetry.log import Log
from proto.bgp import BgpStatus
from proto.codec import Malformed, decode_segment
from proto.objects import CalicoNodeStatus, Kind
from proto.subjects import node_of
from services.cluster.core import node_status
from services.cluster.core.reports import rfc3339
from services.cluster.core.spellings import Together
from services.cluster.kube import Kube, Refusal

MANAGER = "airmesh-cluster"
AT_ONCE = 32
REFUSED_SECONDS = 300.0
"""How long an object whose status the API server does not take is left alone (a CRD without status)."""
Which = tuple[Kind, str]
"""An object in the spelling that it is written in, and its name."""


@dataclass(frozen=True, slots=True)
class _Written:
    reported: BgpStatus
    due: float
    """When it may be written again, in seconds of the monotonic clock."""


class NodeStatusWriter:
    """``hear`` takes what agents tell; ``apply`` writes what is due."""

    def __init__(self, *, kube: Kube, lease: Election, objects: Together, log: Log) -> None:
        self._kube = kube
        self._lease = lease
        self._objects = objects
        self._log = log
        self._reported: dict[str, BgpStatus] = {}
        """By node."""
        self._written: dict[Which, _Written] = {}

    def hear(self, subject: str, reported: BgpStatus) -> None:
        """One agent's word; whose it is, the subject says."""
        try:
            node = decode_segment(node_of(subject) or "")
        except Malformed:
            return
        if node and any(asked.node == node for _, asked in self._asked()):
            self._reported[node] = reported

    async def apply(self, _dirty: Dirty) -> Done:
        """One pass; raises Refusal."""
        asked = dict(self._asked())
        nodes = {one.node for one in asked.values()}
        self._reported = {node: reported for node, reported in self._reported.items() if node in nodes}
        self._written = {which: one for which, one in self._written.items() if which in asked}
        if not self._lease.held:
            return Done()
        due = [
            (which, one, reported) for which, one in asked.items() if (reported := self._due(which, one)) is not None
        ]
        for which, one, reported in due[:AT_ONCE]:
            await self._write(which, one, reported)
        return Done()

    def _asked(self) -> Iterator[tuple[Which, CalicoNodeStatus]]:
        """Objects that count, in the spelling that they are written in."""
        shadowed = set(self._objects.shadowed())
        for cache in (self._objects.first, self._objects.second):
            for name, known in cache.known.items():
                hidden = cache is self._objects.second and name in shadowed
                if isinstance(known.value, CalicoNodeStatus) and known.value.period_seconds and not hidden:
                    yield (cache.kind, name[1]), known.value

    def _due(self, which: Which, asked: CalicoNodeStatus) -> BgpStatus | None:
        """What is to be written now; None: nothing, as nothing was reported since, or it was written a moment ago."""
        reported, written = self._reported.get(asked.node), self._written.get(which)
        if reported is None or (
            written is not None and (reported is written.reported or time.monotonic() < written.due)
        ):
            return None
        return reported

    async def _write(self, which: Which, asked: CalicoNodeStatus, reported: BgpStatus) -> None:
        kind, name = which
        body = node_status.status_body(kind, asked, reported, f"airmesh v{VERSION}", rfc3339(time.time()))
        wait: float = asked.period_seconds
        try:
            await self._kube.apply(node_status.status_path(kind, name), body, manager=MANAGER)
        except Refusal as refusal:
            if refusal.status != 404:
                raise
            wait = REFUSED_SECONDS
            self._log.warning("node-status-refused", object=name, why=refusal)
        self._written[which] = _Written(reported, time.monotonic() + wait * 0.9)  # what it hears comes as often
