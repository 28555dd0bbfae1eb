"""The policy reconciler: identity, delivery and policy of local pods in the maps, and the order of changing them.

Owns ``am_links``, ``am_endpoints``, ``am_cookies``, the policy maps (``core.policy.maps``), ``am_cidrs`` and the policy
generation. Promises: an endpoint is learnt in one go before its link is up; policy maps hold the policies of identities
that live here and no others; what a change costs is what it changes, and no part of it keeps the event loop long. What
somebody deletes by hand comes back with the next full pass, the only one that reads the maps.

Fails static: until rules and identities have both been in sync since the agent started, what the kernel holds stays as
it is (and no pod starts: ``endpoint.admission``). Later, rules and members that are missing from a view that is not in
sync stay in force. An identity matches selectors from the moment its record is here, and until then nothing: closed.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from chassis.runtime.reconcile import Dirty
from chassis.telemetry.log import Log
from kit.once import Once
from proto.codec import Malformed, identity_key, parse_identity
from proto.identity import IdentityRecord
from proto.policy import CompiledPolicy, Direction, Revision
from services.dataplane.conntrack.collector import FlowCollector
from services.dataplane.core.datapath.layout import (
    NODE,
    AddressKey,
    CookieKey,
    CookieMark,
    LinkKey,
    Peer,
    PeerFlag,
    PrefixKey,
)
from services.dataplane.core.datapath.maps import CIDRS, SCOPE_PEERS, SCOPE_PORTS, SCOPE_RULES, SELECTED
from services.dataplane.core.datapath.policy_layout import (
    IdentityKey,
    SelectorSet,
    SubjectKey,
)
from services.dataplane.core.datapath.shares import Pressure
from services.dataplane.core.endpoint import admission
from services.dataplane.core.endpoint.lifecycle import LocalEndpoint, LocalEndpoints
from services.dataplane.core.policy import steps as ps
from services.dataplane.core.policy.history import PolicyHistory
from services.dataplane.core.policy.maps import PolicyMaps
from services.dataplane.core.policy.steps import Side
from services.dataplane.datapath.maps import TableFull
from services.dataplane.datapath.tables import Tables
from services.dataplane.feed import Feed, partition_of
from services.dataplane.policy.compare import count, missing, odd, slices
from services.dataplane.policy.partitions import Partitions

SHARE = 0.05
"""Part of the time that comparing with the kernel may take: with large maps it comes less often."""
_FULL = (errno.E2BIG, errno.ENOMEM, errno.ENOSPC)
_GROWING = (SCOPE_PEERS.name, SCOPE_PORTS.name, SCOPE_RULES.name, SELECTED.name)
RULES, LOCAL, IDENTITIES = range(3)
"""Which cursor of the loop (``policy.start``) is that of ``rules``, of local endpoints, of ``identities``."""


@dataclass(frozen=True, slots=True)
class Enforced:
    """How far the maps are after a pass."""

    revision: Revision | None
    """The smallest frontier that the maps hold, with all members that it counts on; None while one is unknown."""
    changed: int


@dataclass(frozen=True, slots=True)
class Without:
    """Namespaces of which policy maps have no room for all."""

    identities: Mapping[str, int]
    """How many of its identities no selector matches here."""
    room: int
    """Identities that there is room for."""
    cidrs: Mapping[str, int]
    """How many prefixes its ipBlocks make: none of them allows anything here."""
    cidr_room: int


MOST_REPORTED = 4096
"""Refused policies that are told of."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A direction of an identity that is isolated without a rule, because its policy has no room or cannot be said."""

    identity: int
    namespace: str
    policies: tuple[tuple[str, str], ...]
    """(namespace, name) of the NetworkPolicies that it comes from."""
    why: str


class Enforcer:
    """Keeps the policy maps of one node."""

    def __init__(
        self, tables: Tables, feed: Feed, endpoints: LocalEndpoints, log: Log, *, budget: int, share: float = SHARE
    ) -> None:
        self._log = log
        self._tables = tables
        self._feed = feed
        self._local = endpoints
        self._budget = budget
        self._share = share
        self._maps = PolicyMaps(self._rooms())
        self._cidrs = Partitions(tables, feed, self._make_larger)
        self._once: Once[tuple[Side, Revision, str]] = Once(most=MOST_REPORTED)
        self._compared = 0.0
        self._comparing = 0.0
        self.history = PolicyHistory()
        """What the policies were called that events of the datapath may be about."""
        self.begun = False
        """Whether it enforces: rules and identities have been in sync."""
        self.node_cookie = 0
        self.report: Callable[[Refused], None] = lambda refused: None
        """Called once for each direction and policy that is refused."""
        self.make_room: Callable[[Mapping[str, int]], Awaitable[None]] = _no_room
        """Asked before more is written than policy maps take. Nobody else may replace these maps: they are read slice
        by slice.
        """
        self.report_without: Callable[[Without], object] = lambda without: None
        """Called after each pass with all that has no room."""

    def identities(self) -> dict[int, str]:
        """Identities that live here, and their namespaces."""
        return {endpoint.identity: endpoint.first.namespace for endpoint in self._local.up.values()}

    def learn(self, endpoint: LocalEndpoint) -> None:
        """An endpoint's link is about to come up (it is in the registry). Its policy is in the maps when this
        returns.
        """
        policy = self._feed.rules.get(endpoint.identity)
        if self.begun and policy is not None:
            self._want_one(policy, endpoint.first.namespace)
            self._settle_at_once()
        self._tables.set_budget(endpoint.index, self._budget)
        self._tables.cookies.put(CookieKey(cookie=endpoint.cookie), CookieMark())
        self._tables.endpoints.apply({AddressKey(address=a): endpoint.delivery() for a in endpoint.addresses})
        peer = Peer(identity=endpoint.identity, flags=int(PeerFlag.POD))
        self._tables.ipcache.apply({PrefixKey.host(address): peer for address in endpoint.addresses})
        self._tables.links.put(LinkKey(ifindex=endpoint.index), endpoint.link())
        self._tables.bump_generation()

    def forget(self, endpoint: LocalEndpoint) -> None:
        """The endpoint's link is down: nothing is delivered to it, and nothing it sent may pass."""
        self._tables.links.remove(LinkKey(ifindex=endpoint.index))
        for address in endpoint.addresses:
            now = self._tables.endpoints.get(AddressKey(address=address))
            if now is not None and now.ifindex == endpoint.index:
                self._tables.endpoints.remove(AddressKey(address=address))
        self._tables.cookies.remove(CookieKey(cookie=endpoint.cookie))
        self._tables.bump_generation()

    async def enforce(self, dirty: Dirty) -> Enforced:
        """The policy maps become what they should be; a full pass compares them with the kernel, too."""
        feed, full = self._feed, dirty.full
        if not self.begun:
            if not (feed.rules_view.synced and feed.identities.synced):
                return Enforced(None, 0)
            self._begin()
            full = True
        least = admission.least(feed.frontiers()) if feed.rules_view.synced else None
        members = self._members_are_known()
        before = self._maps.changed
        rules, local, records = _keys(dirty, RULES), _keys(dirty, LOCAL), _keys(dirty, IDENTITIES)
        if full or local or not (rules or records):
            await self._want_all()
        else:
            await self._want_those(rules)
        await self._learn_records(records, full=full)
        if full:
            await self._ask(self._maps.asked)
            self._maps.admit_again()
        await self._settle()
        await self._put_partitions(least, None if full else {name for key in rules if (name := partition_of(key))})
        if full:
            await self._compare()
            self._expire_history()
        self._report_refused()
        self.report_without(self.without())
        return Enforced(least if members and self._maps.settled else None, self._maps.changed - before)

    def _begin(self) -> None:
        """Takes over what the kernel holds of an earlier life."""
        self._maps = PolicyMaps(self._rooms())
        subjects = {key.identity: subject for key, subject in self._tables.subjects.items().items()}
        self._maps.adopt(subjects, self.identities())
        self._comparing = 0.0
        self.begun = True

    def _members_are_known(self) -> bool:
        """Whether the records that the rules count on are in the mirror: they come by another stream."""
        view = self._feed.identities
        if not view.synced:
            return False
        mirrored = Revision(epoch=view.epoch, sequence=view.sequence)
        wanted = [frontier.identities for frontier in self._feed.frontiers()]
        return all(not revision.sequence or mirrored.covers(revision) for revision in wanted)

    async def _want_those(self, keys: Iterable[str]) -> None:
        """Policies of local identities among keys of ``rules`` that changed."""
        local = self.identities() if keys else {}
        for key in self.fresh(keys):
            policy = self._feed.rules.get(parse_identity(key))
            if policy is not None and policy.identity in local:
                self._want_one(policy, local[policy.identity])
                await asyncio.sleep(0)

    async def _want_all(self) -> None:
        """Policies of those who live here. Rules that have gone from the view stay in force while somebody does."""
        for identity, namespace in self.identities().items():
            policy = self._feed.rules.get(identity)
            if policy is not None and not self._maps.wants(policy):
                self._want_one(policy, namespace)
                await asyncio.sleep(0)
        local = self.identities()
        for identity in [one for one in (*self._maps.wanted, *self._maps.subjects) if one not in local]:
            self._maps.unwant(identity)

    def fresh(self, keys: Iterable[str]) -> list[str]:
        """Of keys of ``rules`` those of local identities whose policy is other than what the maps have, or are to have;
        none before policy is in force.
        """
        local, found = self.identities() if self.begun else {}, []
        for key in keys:
            with suppress(Malformed):
                identity = parse_identity(key)
                policy = self._feed.rules.get(identity) if identity in local else None
                if policy is not None and not self._maps.wants(policy):
                    found.append(key)
        return found

    def _want_one(self, policy: CompiledPolicy, namespace: str) -> None:
        """Named before a packet can be judged by it."""
        subject = self._maps.subjects.get(policy.identity)
        wanted = self._maps.want(policy, namespace)
        self.history.learn(policy, wanted.number, subject.policy if subject is not None else 0)

    def _expire_history(self) -> None:
        live = {identity: {wanted.number} for identity, wanted in self._maps.wanted.items()}
        for identity, subject in self._maps.subjects.items():
            live.setdefault(identity, set()).add(subject.policy)
        self.history.expire(live, time.monotonic())

    async def _learn_records(self, keys: Iterable[str], *, full: bool) -> None:
        """What identities stand for. One that is missing counts as gone only while the view is in sync."""
        view, selection = self._feed.identities, self._maps.selection
        entries, known = view.entries, 0
        async for part in slices(entries if full else keys):
            for key in part:
                entry = entries.get(key)
                if entry is not None and isinstance(entry.value, IdentityRecord):
                    selection.learn(entry.value)
                    known += 1
                elif view.synced and not key.startswith("_"):
                    selection.forget(int(key, 16))
        if full and view.synced and len(selection.records) > known:
            for identity in [one for one in selection.records if identity_key(one) not in entries]:
                selection.forget(identity)

    # --- taking steps ---

    async def _settle(self) -> None:
        """All steps, with a turn for others where the maps allow it."""
        for step in self._steps():
            if step is None:
                await asyncio.sleep(0)
            elif isinstance(step, ps.MakeRoom):
                await self._ask(step)

    # --- room ---

    def _rooms(self) -> ps.Rooms:
        """What the maps take now."""
        tables = self._tables
        scopes = ps.Sizes(tables.scope_peers.entries, tables.scope_ports.entries, tables.scope_rules.entries)
        return ps.Rooms(scopes, tables.selected.entries)

    async def _ask(self, asked: ps.MakeRoom) -> None:
        """Larger maps, where that is possible; without, all stays as it is."""
        if asked.is_crowded(self._maps.rooms):
            await self._make_larger(dict(zip(_GROWING, (*asked.scopes, asked.selected), strict=True)))
            self._maps.rooms = self._rooms()

    async def _make_larger(self, asked: Mapping[str, int]) -> None:
        await self.make_room(asked)

    def pressure(self) -> Iterable[Pressure]:
        """How full the policy maps are."""
        asked, rooms, without = self._maps.asked, self._maps.rooms, self.without()
        for name, amount, room in zip(
            _GROWING, (*asked.scopes, asked.selected), (*rooms.scopes, rooms.selected), strict=True
        ):
            yield Pressure(name, amount, room, without.identities if name == SELECTED.name else {})
        yield Pressure(CIDRS.name, self._cidrs.asked, self._tables.cidrs.entries, dict.fromkeys(without.cidrs, 1))

    def without(self) -> Without:
        """Who matches nothing on this node, since the maps have no room."""
        return Without(self._maps.without(), self._maps.rooms.selected, self._cidrs.without(), self._cidrs.room)

    def _settle_at_once(self) -> None:
        for _ in self._steps():
            pass

    def _steps(self) -> Iterator[ps.Step]:
        """Each step when it has been taken. What fails leaves the kernel's state unknown: it is taken over anew."""
        steps, fits = self._maps.settle(), True
        try:
            step = next(steps)
            while True:
                fits = self._take(step)
                yield step
                step = steps.send(fits)
        except StopIteration:
            return
        except OSError:
            self.begun = False
            raise

    def _take(self, step: ps.Step) -> bool:
        """One step; False when a map is full."""
        tables = self._tables
        try:
            match step:
                case ps.Fill():
                    tables.scope_rules.apply(step.rules)
                    tables.scope_ports.apply(step.ports)
                    tables.scope_peers.apply(step.peers)
                case ps.Select():
                    tables.selected.apply({}, step.removes)
                    tables.selected.apply(step.upserts)
                case ps.Flip():
                    tables.subjects.apply({}, step.removes)
                    tables.subjects.apply(step.upserts)
                case ps.Bump():
                    tables.bump_generation()
                case ps.Clear():
                    tables.scope_rules.apply({}, step.rules)
                    tables.scope_ports.apply({}, step.ports)
                    tables.scope_peers.apply({}, step.peers)
                case ps.MakeRoom() | None:
                    pass
        except OSError as error:
            if isinstance(step, ps.Fill | ps.Select) and error.errno in _FULL:
                self._log.error("policy-map-full", step=type(step).__name__, error=error)
                return False
            raise
        return True

    # --- CIDRs ---

    async def _put_partitions(self, reached: Revision | None, changed_in: Collection[str] | None) -> None:
        """Puts CIDR partitions in force when every rule that names their numbers is in the maps."""
        if changed := await self._cidrs.put(reached, changed_in):
            self._maps.changed += changed
            self._tables.bump_generation()

    # --- the kernel, read ---

    async def _compare(self) -> None:
        """What the maps lack comes back, what nobody wants goes; seldom, where it takes long."""
        started = time.monotonic()
        if started - self._compared < self._comparing / self._share:
            return
        maps, tables, kept = self._maps, self._tables, self._maps.kept
        wrong = await odd(tables.scope_peers, maps.held.peer, lambda key: key.scope in kept)
        wrong += await odd(tables.scope_ports, maps.held.port, lambda key: key.scope in kept)
        wrong += await odd(tables.scope_rules, maps.held.rule, lambda key: key.scope in kept)
        wrong += await odd(tables.selected, self._selector_set)
        if self._cidrs.known:
            wrong += await odd(tables.cidrs, self._cidrs.entry)
        wrong += await self._put_back()
        subjects = tables.subjects.diff({SubjectKey(identity=one): subject for one, subject in maps.subjects.items()})
        tables.subjects.apply(subjects.upserts, subjects.deletes)
        if wrong or not subjects.empty:
            maps.changed += wrong + len(subjects.upserts) + len(subjects.deletes)
            self._log.warning("policy-maps-repaired", entries=wrong, subjects=len(subjects.upserts))
            tables.bump_generation()
        self._compared = time.monotonic()
        self._comparing = self._compared - started

    def _selector_set(self, key: IdentityKey) -> SelectorSet | None:
        number = self._maps.selected.get(key.identity)
        return SelectorSet(number=number) if number else None

    async def _put_back(self) -> int:
        """Entries that somebody has deleted."""
        tables, maps, wrong = self._tables, self._maps, 0
        there = await count(tables.scope_peers) + await count(tables.scope_ports) + await count(tables.scope_rules)
        if there < sum(maps.held.taken):
            for fill in maps.held.entries():
                wrong += missing(tables.scope_peers, fill.peers)
                wrong += missing(tables.scope_ports, fill.ports)
                wrong += missing(tables.scope_rules, fill.rules)
                await asyncio.sleep(0)
        if await count(tables.selected) < len(maps.selected):
            async for part in slices(list(maps.selected)):
                now = {IdentityKey(identity=one): maps.selected[one] for one in part if one in maps.selected}
                wrong += missing(tables.selected, {key: SelectorSet(number=number) for key, number in now.items()})
        if self._cidrs.known and await count(tables.cidrs) < len(self._cidrs):
            for cidrs in self._cidrs.entries():
                wrong += missing(tables.cidrs, cidrs)
                await asyncio.sleep(0)
        return wrong

    # --- who is told ---

    def _report_refused(self) -> None:
        """Once for each policy of each direction."""
        maps = self._maps
        refused = dict.fromkeys(maps.refused, "the policy maps of this node have no room for its rules")
        refused |= {(one.policy.identity, Direction.INGRESS): one.why for one in maps.wanted.values() if one.why}
        present = ((side, maps.wanted[side[0]].policy.revision, why) for side, why in refused.items())
        for side, _, why in self._once.take(present, time.monotonic()):
            one = maps.wanted[side[0]]
            names = tuple(dict.fromkeys((source.namespace, source.name) for source in one.policy.sources))
            self._log.error(
                "policy-refused", identity=f"{side[0]:016x}", namespace=one.namespace, side=side[1].name, why=why
            )
            self.report(Refused(side[0], one.namespace, names, why))

    # --- endpoints ---

    def restore(self, endpoints: Iterable[LocalEndpoint]) -> int:
        """Puts back what the maps lack of endpoints that are up, and takes out what no endpoint has."""
        known = list(endpoints)
        links = {LinkKey(ifindex=one.index): one.link() for one in known}
        delivery = {AddressKey(address=address): one.delivery() for one in known for address in one.addresses}
        changed = 0
        full: TableFull | None = None
        for delta, table in (
            (self._tables.links.diff(links), self._tables.links),
            (self._tables.endpoints.diff(delivery), self._tables.endpoints),
        ):
            try:
                table.apply(delta.upserts, delta.deletes)  # type: ignore[arg-type]
            except TableFull as late:  # the rest has its turn all the same
                full = late
            changed += len(delta.upserts) + len(delta.deletes)
        cookies = {CookieKey(cookie=one.cookie): CookieMark() for one in known}
        if self.node_cookie:
            cookies[CookieKey(cookie=self.node_cookie)] = CookieMark(node=True)
        namespaces = self._tables.cookies.diff(cookies)
        self._tables.cookies.apply(namespaces.upserts, namespaces.deletes)
        self._tables.watch_table()
        for one in known:
            self._tables.set_budget(one.index, self._budget)
        if changed:
            self._tables.bump_generation()
        if full is not None:
            raise full
        return changed

    def limit_flows(self, collector: FlowCollector) -> None:
        """Budgets that are there already get the present limits, which follow the settings and the table's size."""
        self._tables.watch_table()
        collector.limit((key.endpoint for key in self._tables.budgets.items()), self._budget)

    def stale_budgets(self, endpoints: Iterable[LocalEndpoint]) -> frozenset[int]:
        """Endpoint numbers that have a budget and no endpoint."""
        alive = {one.index for one in endpoints} | {NODE}
        return frozenset(key.endpoint for key in self._tables.budgets.items()) - alive


def _keys(dirty: Dirty, cursor: int) -> frozenset[str]:
    return dirty.by_cursor[cursor] if len(dirty.by_cursor) > cursor else frozenset()


async def _no_room(asked: Mapping[str, int]) -> None:
    """Maps that stay as large as they are."""
