"""The BGP router of a node: sessions, tables and learnt routes, joined. It decides nothing itself.

What peers say goes into the tables as it comes. :meth:`Router.work` decides what changed, a part at a time, hands it to
the kernel's routes and sends each peer what it lacks; between two parts the event loop has its turn. A peer that takes
nothing keeps what was packed for it, one batch, until it does.

After a restart routes that are in the kernel stay: nothing of a family is decided, and nothing taken away, before every
peer has sent its table or its time for that is up (RFC 4724 4.1).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from proto.net import Address, Network
from services.routing.bgp.session import PeerState
from services.routing.bgp.speaker import Speaker
from services.routing.core.bgp.batches import Batches
from services.routing.core.bgp.captures import Capture, Captures
from services.routing.core.bgp.codec.errors import Cease
from services.routing.core.bgp.codec.messages import RefreshKind, RouteRefresh, encode_route_refresh
from services.routing.core.bgp.codec.updates import Unwritable, UpdateWriter
from services.routing.core.bgp.dissector import Passed
from services.routing.core.bgp.next_hops import Ways
from services.routing.core.bgp.peers import Peer
from services.routing.core.bgp.resources import Speaker as Identity
from services.routing.core.bgp.rib.exports import OwnNextHop
from services.routing.core.bgp.rib.neighbors import Completed
from services.routing.core.bgp.rib.neighbors import Established as Known
from services.routing.core.bgp.rib.paths import OWN, Path, Reach
from services.routing.core.bgp.rib.tables import Pending, PrefixLimit, Tables
from services.routing.core.bgp.session.actions import DeferSelection, Established, Lost
from services.routing.core.bgp.session.restart import DropStale, LongLived
from services.routing.core.bgp.values import Agreed, Attributes, Family, Prefix, Reachable, Update, lies_in, prefix_of
from services.routing.core.learnt import Hop

AT_ONCE = 500
"""Prefixes that are decided, handed over or sent to a peer before others have their turn: some milliseconds."""
LONGEST = 0.5
"""Seconds of one pass, after which what was decided is written though more comes all the time."""
FIRST_TABLES = 120.0
"""Seconds after a start in which peers may send their first tables before what they did not send is taken away."""


class Routes(Protocol):
    """Who writes learnt routes (:class:`services.routing.learnt.LearntRoutes`)."""

    def replace(self, family: Family, prefixes: Iterable[Prefix], hops: Iterable[Hop]) -> None:
        """These prefixes are reached by these next hops from now on."""

    def complete(self, family: Family) -> None:
        """All that there is has been learnt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """Whom the router tells what."""

    changed: Callable[[str, PeerState], None]
    """A peer's session is in another state."""
    limited: Callable[[PrefixLimit], None]
    """A peer has sent nearly as many prefixes as it may, or more."""
    unwritable: Callable[[str, str], None]
    """A peer, and why some routes cannot be sent to it."""


@dataclass(slots=True)
class _Outgoing:
    """What a peer is sent."""

    agreed: Agreed
    writer: UpdateWriter
    next_hops: Mapping[Family, OwnNextHop]
    unfinished: set[Family]
    """Families of which all is being sent."""
    asked: set[Family] = field(default_factory=set)
    """Families that the peer wants all of again, once what is unfinished has been sent: however often it asks."""
    waiting: list[bytes] = field(default_factory=list)
    """Packed, and not taken yet."""
    unwritable: str = ""
    """Why some routes cannot be sent, as it was reported."""


@dataclass(slots=True)
class Worked:
    """What one pass did."""

    changes: int = 0
    """Prefixes that other paths are used for."""
    sent: dict[str, int] = field(default_factory=dict)
    """Messages by the peer that they were sent to."""
    sent_at: float = 0.0
    """When the first of them was, in the loop's time."""


class Router:
    """The owner of a speaker's sessions. Made in a running event loop, used from it alone."""

    def __init__(
        self,
        routes: Routes,
        reports: Reports,
        poke: Callable[[], None],
        *,
        speaker: Callable[[Router], Speaker] = Speaker,
        most_paths: int = 16,
    ) -> None:
        """``poke``: there is something for :meth:`work`. ``most_paths``: next hops of a route at most."""
        self._routes = routes
        self._reports = reports
        self._poke = poke
        self._loop = asyncio.get_running_loop()
        self._ways = Ways()
        self.rib = Tables(self._reach, most_paths=most_paths)
        self.speaker = speaker(self)
        self._captures = Captures()
        self.batches = Batches()
        """What peers have announced and taken back of late."""
        self._identity: Identity | None = None
        self._own: dict[str, dict[int, Address]] = {}
        """What each peer can be sent as next hops, by family (4, 6)."""
        self._peers: dict[str, Peer] = {}
        self._outgoing: dict[str, _Outgoing] = {}
        self._writers: dict[Agreed, UpdateWriter] = {}
        """One for all peers that agreed on the same."""
        self._runs: dict[tuple[int, int], tuple[Reachable, list[bytes] | Unwritable]] = {}
        """What was written in this round, by writer and run; it keeps the run, so that the number is no other's."""
        self._announced: dict[Network, Attributes] = {}
        self._unprogrammed: dict[Family, tuple[Prefix, ...]] = dict.fromkeys(Family, ())
        """Ranges of which learnt prefixes are for peers alone."""
        self._over: set[str] = set()
        """Peers whose session ends, as they have sent more prefixes than they may."""
        self._again: dict[Family, list[Prefix]] = {family: [] for family in Family}
        """Prefixes whose routes are to be handed over again, as they are reached, or used, in another way."""
        self._until = self._loop.time() + FIRST_TABLES
        self._deferred: dict[Family, dict[str, float]] = {family: {} for family in Family}
        """Peers whose first table is waited for after a restart of this speaker, and until when."""
        self._awaited: dict[Family, set[str]] | None = None
        """Peers that have sent no first table since the start; a family that all have sent is not in it. None: nobody
        has said which peers there are.
        """

    # What there should be.

    def follow(
        self,
        identity: Identity,
        peers: Iterable[Peer],
        addresses: Mapping[int, Address],
        *,
        next_hops: Mapping[str, Mapping[int, Address]] = MappingProxyType({}),
        unprogrammed: Iterable[Network] = (),
        suspended: Container[str] = (),
    ) -> None:
        """Be this speaker, with these peers. ``addresses``: this node's own by family (4, 6); ``next_hops``: those that
        a peer (by name) is sent as next hops, where they are others; ``unprogrammed``: learnt prefixes in these ranges
        are for peers alone; ``suspended``: peers that, if their session ends, keep the routes for a while.
        """
        wanted = {peer.name: peer for peer in peers}
        if self._awaited is None:
            self._awaited = {
                family: {name for name, peer in wanted.items() if family in peer.session.families} for family in Family
            }
        for names in self._awaited.values():
            names.intersection_update(wanted)
        self._identity = identity
        self._own = {name: dict(next_hops.get(name, addresses)) for name in wanted}
        for untils in self._deferred.values():
            for name in untils.keys() - wanted.keys():
                del untils[name]
        hidden = [prefix_of(network) for network in unprogrammed]
        ranges = {family: tuple(prefix for of, prefix in hidden if of is family) for family in Family}
        if ranges != self._unprogrammed:
            self._unprogrammed = ranges
            self._hand_over_again()
        gone = self._peers.keys() - wanted.keys()
        self._peers = wanted
        listening = identity.listen_addresses or tuple(addresses.values())
        self.speaker.listen(listening, identity.listen_port)
        self.speaker.follow(wanted, suspended)
        for name in gone:
            self.rib.peer_down(name)  # also what a restart of the peer would keep
        for name, peer in wanted.items():
            self.rib.settings_changed(name, peer.tables)
        for name, outgoing in list(self._outgoing.items()):
            if self._next_hops(wanted[name]) != outgoing.next_hops:
                self.speaker.reset(name, Cease.CONFIGURATION_CHANGE)
        self._poke()

    def announce(self, wanted: Mapping[Network, Attributes]) -> None:
        """Begin these routes, and no others."""
        for network in self._announced.keys() - wanted.keys():
            self.rib.withdraw_own(*prefix_of(network))
        for network, attributes in wanted.items():
            if self._announced.get(network) != attributes:
                family, prefix = prefix_of(network)
                self.rib.originate(family, prefix, attributes)
        self._announced = dict(wanted)
        self._poke()

    def find_ways(self, ways: Ways) -> None:
        """How next hops are reached now."""
        if ways != self._ways:
            before, self._ways = self._ways, ways
            self.rib.next_hops_changed()
            if any(before.hop(*hop) != ways.hop(*hop) for hop in self.rib.next_hops()):
                self._hand_over_again()
            self._poke()

    def hops_of(self, name: str) -> frozenset[Hop]:
        """Routers that a peer's routes lead to, other peers left out."""
        others = {peer.session.address for other, peer in self._peers.items() if other != name}
        found = {self._ways.hop(one.address, one.interface) for one in self.rib.hops_of(name)}
        return frozenset(hop for hop in found if hop is not None and hop.via not in others)

    def _reach(self, address: Address, interface: str) -> Reach | None:
        return self._ways.reach(address, interface)

    # What sessions say (services.routing.bgp.session.Owner).

    def established(self, name: str, session: Established) -> None:
        """The peer's table comes, and it is sent this one."""
        peer = self._peers[name]
        next_hops, families = self._next_hops(peer), session.agreed.families
        writer = self._writers.setdefault(session.agreed, UpdateWriter(session.agreed))
        self._outgoing[name] = _Outgoing(session.agreed, writer, next_hops, set(families))
        for family in (self._awaited or {}).keys() - families:
            self._ended(name, family)
        known = Known(
            session=peer.session,
            tables=peer.tables,
            agreed=session.agreed,
            router_id=session.theirs.router_id,
            next_hops=next_hops,
            long_lived=bool(session.theirs.capabilities.long_lived),
        )
        self.rib.peer_up(name, known)
        self._poke()

    def _next_hops(self, peer: Peer) -> dict[Family, OwnNextHop]:
        """What a peer is sent as next hops; IPv4 routes an address of IPv6 where there is no other (RFC 8950)."""
        own = self._own[peer.name]
        found = {Family.IPV4: own.get(4), Family.IPV6: own.get(6)}
        if found[Family.IPV4] is None and Family.IPV4 in peer.session.extended_next_hops:
            found[Family.IPV4] = own.get(6)
        return {family: OwnNextHop(address=address) for family, address in found.items() if address is not None}

    def lost(self, name: str, lost: Lost) -> None:
        """What the peer may send again stays, all else goes."""
        self._outgoing.pop(name, None)
        self._over.discard(name)
        self.rib.peer_down(name, lost.kept)
        self._poke()

    def received(self, name: str, message: Update | RouteRefresh) -> None:
        """Into the tables with it."""
        if isinstance(message, RouteRefresh):
            self._refresh(name, message)
        else:
            self.batches.add(self._loop.time(), name, message)
            for limit in self.rib.update(name, message):
                self._limited(limit)
            if message.end_of_rib is not None:
                self._ended(name, message.end_of_rib)
        self._poke()

    def _limited(self, limit: PrefixLimit) -> None:
        """The first excess ends the session; what was read with it says nothing new."""
        if limit.peer not in self._over:
            self._reports.limited(limit)
            if limit.exceeded:
                self._over.add(limit.peer)
                bound = bytes((0, limit.family.afi, limit.family.safi)) + limit.most.to_bytes(4)
                self.speaker.refuse_prefixes(limit.peer, bound)

    def _refresh(self, name: str, refresh: RouteRefresh) -> None:
        match refresh.kind:
            case RefreshKind.REQUEST:
                outgoing = self._outgoing.get(name)
                if outgoing is not None and refresh.family in outgoing.agreed.families:
                    outgoing.asked.add(refresh.family)
            case RefreshKind.BEGINNING:
                self.rib.refresh_begin(name, refresh.family)
            case RefreshKind.END:
                self.rib.refresh_end(name, refresh.family)

    def tables(self, name: str, step: DropStale | LongLived | DeferSelection) -> None:
        """What a restart, the peer's or this speaker's, asks of the tables."""
        for family in step.families:
            match step:
                case DropStale():
                    self.rib.stale_expired(name, family)
                case LongLived():
                    self.rib.long_lived_begun(name, family)
                case DeferSelection(until=until):
                    self._deferred[family][name] = until
                    self.rib.defer(family, deferred=True)
        self._poke()

    def writable(self, name: str) -> None:
        """The peer takes messages again."""
        self._poke()

    def changed(self, name: str) -> None:
        """The peer's session is in another state."""
        if (state := self.speaker.state(name)) is not None:
            self._reports.changed(name, state)

    def passed(self, passed: Passed) -> None:
        """A message of a peer that is captured. When nobody asks for it any more, sessions tell none."""
        self._captures.put(self._loop.time(), passed)
        if not self._captures:
            self.speaker.capture(self._captures.want)

    def capture(self, name: str, peer: str) -> Capture | None:
        """A capture of a peer's messages, or of all peers', which goes on from now on; None: there are too many."""
        found = self._captures.ask(self._loop.time(), name, peer)
        self.speaker.capture(self._captures.want)
        return found

    # To look at.

    @property
    def identity(self) -> Identity | None:
        """Who this speaker is; None before the first :meth:`follow`."""
        return self._identity

    @property
    def peers(self) -> Mapping[str, Peer]:
        """All that a session is to be held with, by name."""
        return self._peers

    # What follows from it.

    @property
    def deadline(self) -> float | None:
        """When :meth:`work` has something to do though nothing has happened, in the loop's time."""
        untils = [until for peers in self._deferred.values() for until in peers.values()]
        return min([*untils, *([self._until] if self._awaited else [])], default=None)

    async def work(self) -> Worked:
        """Decide and send what there is: where more comes all the time, a part of it, and a poke says so."""
        self._expire()
        until, worked = self._loop.time() + LONGEST, Worked()
        while await self._round(worked):
            if self._loop.time() >= until:
                self._poke()
                return worked
        for family in [family for family, names in (self._awaited or {}).items() if not names]:
            if self._awaited is not None and not self._deferred[family]:
                del self._awaited[family]
                self._routes.complete(family)
        return worked

    async def _round(self, worked: Worked) -> bool:
        """Decide a part, and send each peer one; whether there was something."""
        changes = self.rib.decide(AT_ONCE)
        worked.changes += len(changes)
        self._program((change.family, change.prefix, change.after) for change in changes)
        await asyncio.sleep(0)
        again = False
        for family, prefixes in self._again.items():
            if prefixes:
                again, chosen = True, self.rib.chosen(family)
                self._program((family, prefix, chosen.get(prefix, ())) for prefix in prefixes[-AT_ONCE:])
                del prefixes[-AT_ONCE:]
                await asyncio.sleep(0)
        sent = False
        self._runs.clear()
        for name in list(self._outgoing):
            if self._send(name, worked):
                sent = True
                await asyncio.sleep(0)
        return bool(changes or again or sent or self.rib.undecided)

    def _program(self, used: Iterable[tuple[Family, Prefix, tuple[Path, ...]]]) -> None:
        """Hand the kernel's routes by which paths prefixes are reached now, those with the same next hops together."""
        together: dict[tuple[Family, tuple[Hop, ...]], list[Prefix]] = {}
        known: dict[tuple[Path, ...], tuple[Hop, ...]] = {}
        for family, prefix, paths in used:
            hops = known.get(paths)
            if hops is None:
                hops = known[paths] = self._hops(paths)
            if hops and any(lies_in(prefix, one) for one in self._unprogrammed[family]):
                hops = ()
            together.setdefault((family, hops), []).append(prefix)
        for (family, hops), prefixes in together.items():
            self._routes.replace(family, prefixes, hops)

    def _hand_over_again(self) -> None:
        """Hand over all that is used, a part at a time: ways have changed, or what is for peers alone has."""
        self._again = {family: list(self.rib.chosen(family)) for family in Family}

    def _hops(self, paths: tuple[Path, ...]) -> tuple[Hop, ...]:
        """The routers that paths lead to; none where they are this node's own."""
        if not paths or paths[0].source is OWN:
            return ()
        named = (path.hop for path in paths if path.hop is not None)
        hops = (self._ways.hop(one.address, one.interface) for one in named)
        return tuple(dict.fromkeys(hop for hop in hops if hop is not None))

    def _send(self, name: str, worked: Worked) -> bool:
        """Send a peer the next part of what it lacks; whether there was one, and it took what that is."""
        if (outgoing := self._outgoing.get(name)) is None:
            return False
        if not outgoing.waiting:
            outgoing.waiting = self._begun(name, outgoing)
            if self.rib.owes(name):
                outgoing.waiting += self._packed(name, outgoing, self.rib.pending(name, AT_ONCE))
                if not outgoing.waiting:
                    return True  # it had all of this part already
        if outgoing.waiting and self.speaker.send(name, outgoing.waiting):
            worked.sent_at = worked.sent_at or self._loop.time()
            worked.sent[name] = worked.sent.get(name, 0) + len(outgoing.waiting)
            outgoing.waiting = []
            return True
        return False

    def _begun(self, name: str, outgoing: _Outgoing) -> list[bytes]:
        """Begin to send all again of the families that the peer asked for (RFC 2918, RFC 7313 4)."""
        messages = []
        for family in sorted(outgoing.asked - outgoing.unfinished):
            outgoing.asked.discard(family)
            outgoing.unfinished.add(family)
            self.rib.refresh_requested(name, family)
            if outgoing.agreed.enhanced_route_refresh:
                messages.append(encode_route_refresh(RouteRefresh(family, RefreshKind.BEGINNING)))
        return messages

    def _packed(self, name: str, outgoing: _Outgoing, pending: Pending) -> list[bytes]:
        messages: list[bytes] = []
        writer = outgoing.writer
        for batch in pending.batches:
            for gone in batch.unreachable:
                messages += writer.withdraw(gone.family, gone.prefixes, gone.path_ids)
            for come in batch.reachable:
                written = self._encoded(writer, come)
                if isinstance(written, Unwritable):
                    if written.reason != outgoing.unwritable:
                        outgoing.unwritable = written.reason
                        self._reports.unwritable(name, written.reason)
                    written = writer.withdraw(come.family, come.prefixes, come.path_ids)
                messages += written
        for family, completed in pending.completed:
            outgoing.unfinished.discard(family)
            if completed is Completed.INITIAL:
                messages.append(writer.end_of_rib(family))
            elif outgoing.agreed.enhanced_route_refresh:
                messages.append(encode_route_refresh(RouteRefresh(family, RefreshKind.END)))
        return messages

    def _encoded(self, writer: UpdateWriter, come: Reachable) -> list[bytes] | Unwritable:
        """The messages of a run, written once in a round for all peers that are given it."""
        key = id(writer), id(come)
        known = self._runs.get(key)
        if known is None:
            written = writer.write(come.family, come.attributes, come.prefixes, come.path_ids)
            known = self._runs[key] = come, written
        return known[1]

    # First tables after a start.

    def _ended(self, name: str, family: Family) -> None:
        """A peer has sent its whole table of a family."""
        self._deferred[family].pop(name, None)
        if self._awaited is not None and family in self._awaited:
            self._awaited[family].discard(name)
        self._undefer(family)

    def _expire(self) -> None:
        """Nobody is waited for longer than said."""
        now = self._loop.time()
        if now >= self._until:
            for names in (self._awaited or {}).values():
                names.clear()
        for family, peers in self._deferred.items():
            for name in [name for name, until in peers.items() if now >= until]:
                del peers[name]
            self._undefer(family)

    def _undefer(self, family: Family) -> None:
        if not self._deferred[family]:
            self.rib.defer(family, deferred=False)

    def leave(self) -> None:
        """End for good: peers are told, and nothing that they said counts."""
        self.speaker.follow({})
        self.speaker.close()
        for family in Family:
            self._routes.replace(family, list(self.rib.chosen(family)), ())

    def close(self) -> None:
        """End for a restart: peers keep the routes if they can, and so does the kernel."""
        self.speaker.suspend()
        self.speaker.close()
