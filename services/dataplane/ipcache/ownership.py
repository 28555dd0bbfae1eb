"""The ownership check of other nodes' endpoints: accepted are those that ``blocks`` and ``claims`` let their writer
speak of, with an identity that ``policy`` says a pod of that node has (``identities._residents.<node>``).

Promises: a change costs what it concerns (:mod:`core.ipcache.judge` decides). Depends on what the four views hold now,
not on the order in which it came. While ``blocks``, ``claims`` or the residents are not whole (a bucket that was made
anew, a value that cannot be read) what was known of them stays known, and what was believed is not taken back:
``undecided`` says of which addresses. An identity that is not among a
node's residents is undecided for a moment too, since two buckets are two streams: a pod that is relabelled keeps its
former identity until the new one is believed. What is refused is told once, as a fault, after it has lasted; what an
address' former holder left behind is refused in silence.

A ``policy`` of before there were residents never says that they are complete, only that ``identities`` is: then none
are asked for.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from prometheus_client import Gauge

from chassis.bus.client import Bus
from chassis.bus.cursor import Cursor
from chassis.bus.view import View
from chassis.runtime.reconcile import Dirty, Done, Loop, Runner
from chassis.telemetry.log import Log
from kit.holdings import Rejection
from kit.once import Once
from proto.addresses import Endpoint
from proto.codec import Malformed, decode_segment, encode_segment
from proto.net import Address
from proto.residents import RESIDENTS_PREFIX, RESIDENTS_SCOPE, Residents
from services.dataplane.core.ipcache.judge import EndpointJudge
from services.dataplane.feed import Feed, HeldBlocks, HeldClaims

LASTING = 5.0
"""Seconds for which an endpoint has to be doubtful before it is told: a block is seen a moment after its first pod."""
LOOK_EVERY = 1.0
AT_ONCE = 1000
"""Endpoints that are judged before others have their turn: some milliseconds."""
REPORTED_OF_A_NODE = 8
"""Addresses of one node that are told one by one; a node that lies lies a lot."""
REMEDY = "look at that node: its agent says what no agent of ours does; if it was taken over, take its key from it"

_REFUSED = Gauge("airmesh_endpoints_refused", "Endpoints of other nodes that do not count")


@lru_cache(maxsize=1 << 14)
def _decoded(segment: str) -> str:
    """Node that a key's first segment names: the one that the bus lets write there, whatever the value says."""
    try:
        return decode_segment(segment)
    except Malformed:
        return segment


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """Endpoints of all other nodes, judged."""

    endpoints: Collection[Endpoint] = ()
    """Those that count, as they are now: not a copy."""
    rejections: tuple[Rejection, ...] = ()
    whole: bool = False
    """``blocks``, ``claims`` and the residents are whole: what they do not say is not so."""
    young: Mapping[Address, float] = field(default_factory=dict)
    """Addresses whose identity has not been among its node's residents for long: until when (monotonic seconds)."""

    @property
    def undecided(self) -> frozenset[Address]:
        """Addresses of which nothing that is believed may be taken back for now."""
        if not self.whole:
            return frozenset(rejection.address for rejection in self.rejections)
        now = time.monotonic()
        return frozenset(address for address, until in self.young.items() if now < until)


class Ownership:
    """Feeds the judge (:mod:`core.ipcache.judge`) with what changed in the four views."""

    def __init__(self, node: str, endpoints: View, blocks: View, claims: View, identities: View) -> None:
        self._own = f"{encode_segment(node)}."
        self._endpoints = endpoints
        self._blocks = blocks
        self._claims = claims
        self._identities = identities
        self._keys = tuple(view.cursor() for view in (endpoints, identities))
        self._held = HeldBlocks(blocks)
        self._kept = HeldClaims(claims)
        self._judge = EndpointJudge()
        self._changed = Cursor()
        self._accepted = Accepted(endpoints=self._judge.counted.values())

    @property
    def now(self) -> Accepted:
        """What counts at this moment."""
        self._follow()
        self._settle(None)
        return self._accepted

    @property
    def changed(self) -> Cursor:
        """Keys of ``endpoints`` of which something else is believed since its one reader looked last."""
        return self._changed

    async def settled(self) -> Accepted:
        """As :attr:`now`, but others have their turn while much is judged."""
        self._follow()
        while self._judge.pending > AT_ONCE:
            self._settle(AT_ONCE)
            await asyncio.sleep(0)
        return self.now

    def endpoint(self, key: str) -> Endpoint | None:
        """The endpoint of a key, when it counts."""
        return self._judge.counted.get(key)

    def _settle(self, limit: int | None) -> None:
        changed = self._judge.settle(time.monotonic(), limit)
        if changed:
            self._changed.mark(*changed)
        whole = self._is_whole()
        rejections = tuple(self._judge.rejections.values())
        if changed or (whole, rejections) != (self._accepted.whole, self._accepted.rejections):
            _REFUSED.set(len(rejections))
        young = self._judge.young(LASTING)
        self._accepted = Accepted(
            endpoints=self._judge.counted.values(), rejections=rejections, whole=whole, young=young
        )

    def _is_whole(self) -> bool:
        whole = self._blocks.scope_complete() and self._claims.synced and self._asked is not None
        return whole and not self._blocks.unreadable and not self._claims.unreadable

    def _follow(self) -> None:
        """Hands on what changed in the views."""
        endpoints, identities = (cursor.take() for cursor in self._keys)
        for cidr, block in self._held.changes():
            self._judge.set_block(cidr, block)
        for address, claim in self._kept.changes():
            self._judge.set_claim(address, claim)
        for key in identities:
            if key.startswith(f"{RESIDENTS_PREFIX}."):
                mark = self._identities.marks.get(key)
                value = mark.value if mark is not None else None
                self._judge.set_residents(_node_of(key), value.identities if isinstance(value, Residents) else ())
        unreadable = (_node_of(key) for key in self._identities.unreadable if key.startswith(f"{RESIDENTS_PREFIX}."))
        self._judge.ask_residents(self._asked, unreadable)
        for key in endpoints:
            if not key.startswith(("_", self._own)):
                entry = self._endpoints.entries.get(key)
                value = entry.value if entry is not None and isinstance(entry.value, Endpoint) else None
                self._judge.publish(key, _decoded(key.partition(".")[0]), value)

    @property
    def _asked(self) -> bool | None:
        """Whether residents decide; None while it is not known who lives where."""
        if self._identities.scope_complete(RESIDENTS_SCOPE):
            return True
        return False if self._identities.scope_complete() else None


def ownership_of(feed: Feed) -> Ownership:
    """The ownership check over a node's views."""
    return Ownership(feed.node, feed.endpoints, feed.blocks, feed.claims, feed.identities)


def _node_of(residents: str) -> str:
    """Encoded node of a key of :class:`Residents`."""
    return residents.removeprefix(f"{RESIDENTS_PREFIX}.")


def report_rejections(runtime: Runner, ownership: Ownership, bus: Bus, node: str) -> None:
    """Begins to tell of endpoints that do not count."""
    reporter = Reporter(runtime.log, bus.report_fault)

    async def apply(_dirty: Dirty) -> Done:
        reporter.report(ownership.now, time.monotonic())
        return Done()

    Loop(runtime, "rejections", cursors=[], apply=apply, period=LOOK_EVERY)


class Reporter:
    """Tells each doubt once, when it has lasted."""

    def __init__(self, log: Log, publish: Callable[[str, str], None]) -> None:
        """``publish`` takes a fault and its remedy."""
        self._log = log
        self._publish = publish
        self._since: dict[tuple[str, Address], float] = {}
        self._once: Once[tuple[str, Address]] = Once()

    def report(self, accepted: Accepted, now: float) -> None:
        """One look; ``now`` in monotonic seconds."""
        rejections = {
            (rejection.writer, rejection.address): rejection
            for rejection in accepted.rejections
            if not rejection.leftover
        }
        if not accepted.whole:
            rejections = {}
        self._since = {key: self._since.get(key, now) for key in rejections}
        lasting = [key for key, since in self._since.items() if now - since >= LASTING]
        due = self._once.due(lasting, now)
        reported = Counter(writer for writer, address in lasting if self._once.lasts((writer, address)))
        for key in due:
            if reported[key[0]] < REPORTED_OF_A_NODE and self._once.reported(key, now):
                reported[key[0]] += 1
                self._say(rejections[key])

    def _say(self, rejection: Rejection) -> None:
        self._log.error(
            "endpoint-refused", writer=rejection.writer, address=rejection.address, why=rejection.why, remedy=REMEDY
        )
        fault = (
            f"node {rejection.writer} publishes a pod at {rejection.address}, which is not believed: {rejection.why}"
        )
        self._publish(fault, REMEDY)
