"""Which endpoints of other nodes count: those that ``blocks`` and ``claims`` let their writer speak of, with an
identity that ``policy`` says a pod of that node has (``identities._residents.<node>``).

Promises: depends on what the four views hold now, not on the order in which it came. While ``blocks``, ``claims`` or
the residents are not whole (a bucket that was made anew, a value that cannot be read) what was known of them stays
known, and what was believed is not taken back: ``undecided`` says of which addresses. An identity that is not among a
node's residents is undecided for a moment too, since two buckets are two streams: a pod that is relabelled keeps its
former identity until the new one is believed. What is refused is told once, as a fault, after it has lasted; what an
address' former holder left behind is refused in silence.

A ``policy`` of before there were residents never says that they are complete, only that ``identities`` is: then none
are asked for.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from prometheus_client import Gauge

from chassis.bus.client import Bus
from chassis.bus.view import View
from chassis.runtime.reconcile import Dirty, Done, Loop, Runner
from chassis.telemetry.log import Log
from kit.holdings import Doubt, Holdings
from kit.once import Once
from proto.addresses import Block, Claim, Endpoint
from proto.codec import Malformed, decode_segment, encode_segment
from proto.identity import FIRST_COMPUTED
from proto.net import Address, Network
from proto.residents import RESIDENTS_SCOPE, Residents, residents_key

LASTING = 5.0
"""Seconds for which an endpoint has to be doubtful before it is told: a block is seen a moment after its first pod."""
LOOK_EVERY = 1.0
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
    """``blocks``, ``claims`` and the residents are whole: what they do not say is not so."""
    young: Mapping[Address, float] = field(default_factory=dict)
    """Addresses whose identity has not been among its node's residents for long: until when (monotonic seconds)."""

    @property
    def undecided(self) -> frozenset[Address]:
        """Addresses of which nothing that is believed may be taken back for now."""
        if not self.whole:
            return frozenset(doubt.address for doubt in self.doubts)
        now = time.monotonic()
        return frozenset(address for address, until in self.young.items() if now < until)


class Ownership:
    """``now`` is computed once for each state of the views."""

    def __init__(self, node: str, endpoints: View, blocks: View, claims: View, identities: View) -> None:
        self._own = f"{encode_segment(node)}."
        self._endpoints = endpoints
        self._blocks = blocks
        self._claims = claims
        self._identities = identities
        self._residents: dict[str, tuple[Residents, frozenset[int]]] = {}
        self._counted: dict[str, Endpoint] = {}
        """What was believed at the last look, by key."""
        self._strange_since: dict[tuple[str, int], float] = {}
        """Since when an identity (of an endpoint's key) has not been among its node's residents."""
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
        states = holding, (_state(self._endpoints), _state(self._identities), self._asked)
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
        counted: dict[str, Endpoint] = {}
        strangers: dict[tuple[str, int], Doubt] = {}
        living: dict[str, frozenset[int]] = {}
        for key, (endpoint, doubt) in self._judged.items():
            if doubt is not None:
                continue
            segment = key[: key.index(".")]
            if segment not in living:
                living[segment] = self._living_on(segment)
            if endpoint.identity in living[segment] or (stranger := self._stranger(key, segment, endpoint)) is None:
                counted[key] = endpoint
            else:
                strangers[key, endpoint.identity] = stranger
        self._counted = counted
        self._residents = {segment: known for segment, known in self._residents.items() if segment in living}
        now = time.monotonic()
        self._strange_since = {which: self._strange_since.get(which, now) for which in strangers}
        doubts = [doubt for _, doubt in self._judged.values() if doubt is not None] + list(strangers.values())
        _REFUSED.set(len(doubts))
        asked = self._asked
        whole = self._blocks.scope_complete() and self._claims.synced and asked is not None
        whole = whole and not self._blocks.unreadable and not self._claims.unreadable
        young = {
            stranger.address: self._strange_since[which] + LASTING
            for which, stranger in strangers.items()
            if which[1] >= FIRST_COMPUTED
        }
        return Believed(endpoints=list(counted.values()), doubts=tuple(doubts), whole=whole, young=young)

    @property
    def _asked(self) -> bool | None:
        """Whether residents decide; None while it is not known who lives where."""
        if self._identities.scope_complete(RESIDENTS_SCOPE):
            return True
        return False if self._identities.scope_complete() else None

    def _stranger(self, key: str, segment: str, endpoint: Endpoint) -> Doubt | None:
        """Why an identity that is not among its node's residents does not count; None when it does."""
        asked, identity, writer = self._asked, endpoint.identity, _decoded(segment)
        if identity < FIRST_COMPUTED:
            return Doubt(writer, endpoint.address, f"identity {identity} is one that no pod has", leftover=False)
        if asked is False:
            return None
        before = self._counted.get(key)
        undecided = asked is None or residents_key(segment) in self._identities.unreadable
        if undecided and before is not None and (before.identity, before.mac) == (identity, endpoint.mac):
            return None
        why = f"no pod of {writer} has identity {identity:016x}"
        return Doubt(writer, endpoint.address, why, leftover=undecided)

    def _living_on(self, segment: str) -> frozenset[int]:
        entry = self._identities.marks.get(residents_key(segment))
        value = entry.value if entry is not None else None
        if not isinstance(value, Residents):
            return frozenset()
        known = self._residents.get(segment)
        if known is None or known[0] is not value:
            pods = frozenset(identity for identity in value.identities if identity >= FIRST_COMPUTED)
            known = self._residents[segment] = value, pods
        return known[1]


def _state(view: View) -> object:
    return view.sequence, view.resyncs, view.synced, len(view.entries), len(view.unreadable)


def tell_doubts(runtime: Runner, ownership: Ownership, bus: Bus, node: str) -> None:
    """Begins to tell of endpoints that do not count."""
    teller = Teller(runtime.log, bus.tell_fault)

    async def apply(_dirty: Dirty) -> Done:
        teller.tell(ownership.now, time.monotonic())
        return Done()

    Loop(runtime, "doubts", cursors=[], apply=apply, period=LOOK_EVERY)


class Teller:
    """Tells each doubt once, when it has lasted."""

    def __init__(self, log: Log, publish: Callable[[str, str], None]) -> None:
        """``publish`` takes a fault and its remedy."""
        self._log = log
        self._publish = publish
        self._since: dict[tuple[str, Address], float] = {}
        self._once: Once[tuple[str, Address]] = Once()

    def tell(self, believed: Believed, now: float) -> None:
        """One look; ``now`` in monotonic seconds."""
        doubts = {(doubt.writer, doubt.address): doubt for doubt in believed.doubts if not doubt.leftover}
        if not believed.whole:
            doubts = {}
        self._since = {key: self._since.get(key, now) for key in doubts}
        lasting = [key for key, since in self._since.items() if now - since >= LASTING]
        due = self._once.due(lasting, now)
        told = Counter(writer for writer, address in lasting if self._once.lasts((writer, address)))
        for key in due:
            if told[key[0]] < TOLD_OF_A_NODE and self._once.told(key, now):
                told[key[0]] += 1
                self._say(doubts[key])

    def _say(self, doubt: Doubt) -> None:
        self._log.error("endpoint-refused", writer=doubt.writer, address=doubt.address, why=doubt.why, remedy=REMEDY)
        fault = f"node {doubt.writer} publishes a pod at {doubt.address}, which is not believed: {doubt.why}"
        self._publish(fault, REMEDY)
