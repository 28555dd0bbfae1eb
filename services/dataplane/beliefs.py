"""Which endpoints of other nodes count: those that ``blocks`` and ``claims`` let their writer speak of.

Promises: depends on what the three views hold now, not on the order in which it came. While ``blocks`` or ``claims`` is
not whole (a bucket that was made anew, a value that cannot be read) what was known of them stays known, and what was
believed is not taken back: ``undecided`` says of which addresses. What is refused is told once, as a fault, after it
has lasted; what an address' former holder left behind is refused in silence.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from prometheus_client import Gauge

from chassis.bus import Bus
from chassis.log import Log
from chassis.reconcile import Dirty, Done, Loop, Runner
from chassis.view import View
from kit.holdings import Doubt, Holdings
from proto.addresses import Block, Claim, Endpoint
from proto.codec import Malformed, decode_segment, encode_segment
from proto.events import ServiceFault
from proto.net import Address, Network
from proto.subjects import event_subject

FAULT = event_subject("dataplane", "fault")
LASTING = 5.0
"""Seconds for which an endpoint has to be doubtful before it is told: a block is seen a moment after its first pod."""
TOLD_OF_A_NODE = 8
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
class Believed:
    """Endpoints of all other nodes, judged."""

    endpoints: list[Endpoint] = field(default_factory=list)
    doubts: tuple[Doubt, ...] = ()
    whole: bool = False
    """``blocks`` and ``claims`` are whole: what they do not say is not so."""

    @property
    def undecided(self) -> frozenset[Address]:
        """Addresses of which nothing that is believed may be taken back for now."""
        return frozenset() if self.whole else frozenset(doubt.address for doubt in self.doubts)


class Beliefs:
    """``now`` is computed once for each state of the views."""

    def __init__(self, node: str, endpoints: View, blocks: View, claims: View) -> None:
        self._own = f"{encode_segment(node)}."
        self._endpoints = endpoints
        self._blocks = blocks
        self._claims = claims
        self._known: dict[Network, Block] = {}
        self._holdings = Holdings()
        self._judged: dict[str, tuple[Endpoint, Doubt | None]] = {}
        """Key → what stood there and what was thought of it, under these holdings: a change costs what changed."""
        self._believed = Believed()
        self._states: tuple[object, object] = (None, None)

    @property
    def now(self) -> Believed:
        """What counts at this moment."""
        holding = (_state(self._blocks), _state(self._claims), self._blocks.scope_complete())
        states = holding, _state(self._endpoints)
        if self._states != states:
            if self._states[0] != holding:
                self._holdings, self._judged = self._hold(), {}
            self._states, self._believed = states, self._judge()
        return self._believed

    def _hold(self) -> Holdings:
        blocks = [entry.value for entry in self._blocks.entries.values() if isinstance(entry.value, Block)]
        if self._blocks.scope_complete():
            self._known.clear()
        self._known |= {block.cidr: block for block in blocks}
        claims = [entry.value for entry in self._claims.entries.values() if isinstance(entry.value, Claim)]
        return Holdings(self._known.values(), claims)

    def _judge(self) -> Believed:
        before, self._judged = self._judged, {}
        for key, entry in self._endpoints.entries.items():
            endpoint = entry.value
            if key.startswith(self._own) or not isinstance(endpoint, Endpoint):
                continue
            known = before.get(key)
            if known is None or known[0] is not endpoint:
                known = endpoint, self._holdings.doubt(_decoded(key.partition(".")[0]), endpoint)
            self._judged[key] = known
        endpoints = [endpoint for endpoint, doubt in self._judged.values() if doubt is None]
        doubts = [doubt for _, doubt in self._judged.values() if doubt is not None]
        _REFUSED.set(len(doubts))
        whole = self._blocks.scope_complete() and self._claims.synced
        whole = whole and not self._blocks.unreadable and not self._claims.unreadable
        return Believed(endpoints=endpoints, doubts=tuple(doubts), whole=whole)


def _state(view: View) -> object:
    return view.sequence, view.resyncs, view.synced, len(view.entries), len(view.unreadable)


def tell_doubts(runtime: Runner, beliefs: Beliefs, bus: Bus, node: str) -> None:
    """Begins to tell of endpoints that do not count."""
    teller = Teller(node, runtime.log, lambda fault: bus.publish(FAULT, fault))

    async def apply(_dirty: Dirty) -> Done:
        teller.tell(beliefs.now, time.monotonic())
        return Done()

    Loop(runtime, "doubts", cursors=[], apply=apply, period=LASTING)


class Teller:
    """Tells each doubt once, when it has lasted."""

    def __init__(self, node: str, log: Log, publish: Callable[[ServiceFault], None]) -> None:
        self._node = node
        self._log = log
        self._publish = publish
        self._since: dict[tuple[str, Address], float] = {}
        self._told: set[tuple[str, Address]] = set()

    def tell(self, believed: Believed, now: float) -> None:
        """One look; ``now`` in monotonic seconds."""
        doubts = {(doubt.writer, doubt.address): doubt for doubt in believed.doubts if not doubt.leftover}
        if not believed.whole:
            doubts = {}
        self._since = {key: self._since.get(key, now) for key in doubts}
        self._told &= doubts.keys()
        told = Counter(writer for writer, _ in self._told)
        for key, since in self._since.items():
            if key in self._told or now - since < LASTING or told[key[0]] >= TOLD_OF_A_NODE:
                continue
            told[key[0]] += 1
            self._told.add(key)
            self._say(doubts[key])

    def _say(self, doubt: Doubt) -> None:
        self._log.error("endpoint-refused", writer=doubt.writer, address=doubt.address, why=doubt.why, remedy=REMEDY)
        fault = f"node {doubt.writer} publishes a pod at {doubt.address}, which is not believed: {doubt.why}"
        self._publish(ServiceFault(service="dataplane", node=self._node, fault=fault, remedy=REMEDY))
