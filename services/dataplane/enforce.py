"""What the datapath's maps say of local pods: identity, delivery, policy; and the order of changing them.

Owns ``am_links``, ``am_endpoints``, ``am_cookies``, ``am_subjects``, ``am_policy``, ``am_cidrs`` and the policy
generation. Promises: an endpoint is learnt in one go before its link is up; policy maps hold the identities that live
here and no others; every change ends with a new generation, so that live flows are judged again. What somebody
deletes by hand comes back with the next full pass. Blocking calls of microseconds: run on the event loop, never
waiting.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from chassis.log import Log
from proto.policy import CompiledPolicy, Revision
from services.dataplane.core import admission
from services.dataplane.core import policy_maps as pm
from services.dataplane.core.endpoint import LocalEndpoint
from services.dataplane.core.layout import (
    NODE,
    AddressKey,
    CidrNumber,
    CookieKey,
    CookieMark,
    LinkKey,
    Peer,
    PeerFlag,
    PrefixKey,
    Subject,
    SubjectKey,
)
from services.dataplane.core.policy_maps import PolicyChange, PolicyEntries
from services.dataplane.feed import Feed
from services.dataplane.kernel.conntrack import Broom
from services.dataplane.kernel.maps import TableFull
from services.dataplane.kernel.tables import Tables
from services.dataplane.registry import Registry


@dataclass(frozen=True, slots=True)
class Enforced:
    """How far the maps are after a pass."""

    revision: Revision | None
    """The smallest frontier that the maps hold; None while a shard is unknown."""
    changed: int


class Enforcer:
    """Keeps the policy maps of one node."""

    def __init__(self, tables: Tables, feed: Feed, registry: Registry, log: Log, *, budget: int) -> None:
        self._log = log
        self._tables = tables
        self._feed = feed
        self._registry = registry
        self._budget = budget
        self._known: dict[int, tuple[CompiledPolicy, PolicyEntries]] = {}
        self._cidrs: dict[PrefixKey, CidrNumber] | None = None
        self.node_cookie = 0

    def identities(self) -> set[int]:
        """Identities that live here."""
        return {endpoint.identity for endpoint in self._registry.up.values()}

    def learn(self, endpoint: LocalEndpoint) -> None:
        """An endpoint's link is about to come up (it is in the registry). Its policy is in the maps when this
        returns.
        """
        wanted = self._entries(endpoint.identity)
        if wanted is not None:
            self._tables.policy.apply(wanted.lines)
            self._tables.subjects.apply(wanted.subjects)
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

    def _entries(self, identity: int) -> PolicyEntries | None:
        policy = self._feed.rules.get(identity)
        if policy is None:
            kept = self._known.get(identity)  # fail static: what was enforced goes on
            return kept[1] if kept else None
        known = self._known.get(identity)
        if known is None or known[0] is not policy:
            known = self._known[identity] = policy, self._expressed(identity, policy)
        return known[1]

    def _expressed(self, identity: int, policy: CompiledPolicy) -> PolicyEntries:
        """Its entries; one that the maps cannot say is isolated whole, and told once for each revision."""
        try:
            return pm.entries_of([identity], {identity: policy})
        except ValueError as error:
            self._log.error("policy-not-expressible", identity=f"{identity:016x}", error=error)
            closed = Subject(ingress_isolated=True, egress_isolated=True)
            return PolicyEntries({SubjectKey(identity=identity): closed}, {})

    def enforce(self) -> Enforced:
        """A full pass: the policy maps as they are in the kernel become what they should be."""
        reached = admission.least(self._feed.frontiers()) if self._feed.rules_view.synced else None
        wanted = PolicyEntries()
        identities = self.identities()
        actual = PolicyEntries(self._tables.subjects.items(), self._tables.policy.items())
        for identity in identities:
            entries = self._entries(identity)
            if entries is None:
                _keep(actual, identity, wanted)
                continue
            wanted.subjects.update(entries.subjects)
            wanted.lines.update(entries.lines)
        for identity in self._known.keys() - identities:
            del self._known[identity]
        steps = pm.change(actual, wanted)
        self._apply(steps)
        changed = len(steps.add_lines) + len(steps.set_subjects) + len(steps.remove_lines) + len(steps.remove_subjects)
        changed += self._partition(reached)
        if changed:
            self._tables.bump_generation()
        return Enforced(reached, changed)

    def _apply(self, steps: PolicyChange) -> None:
        self._tables.policy.apply(steps.add_lines)
        self._tables.subjects.apply({}, steps.remove_subjects)
        self._tables.subjects.apply(steps.set_subjects)
        self._tables.policy.apply({}, steps.remove_lines)

    def _partition(self, reached: Revision | None) -> int:
        """Puts the CIDR partition in force when every line that names its numbers is in the maps."""
        partition = self._feed.partition()
        if partition is not None and reached is not None and reached.covers(partition.revision):
            self._cidrs = pm.cidrs_of(partition)
        if self._cidrs is None:
            return 0
        delta = self._tables.cidrs.diff(self._cidrs)
        self._tables.cidrs.apply(delta.upserts, delta.deletes)
        return len(delta.upserts) + len(delta.deletes)

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

    def limit_flows(self, broom: Broom) -> None:
        """Budgets that are there already get the present limits, which follow the settings and the table's size."""
        self._tables.watch_table()
        broom.limit((key.endpoint for key in self._tables.budgets.items()), self._budget)

    def stale_budgets(self, endpoints: Iterable[LocalEndpoint]) -> frozenset[int]:
        """Endpoint numbers that have a budget and no endpoint."""
        alive = {one.index for one in endpoints} | {NODE}
        return frozenset(key.endpoint for key in self._tables.budgets.items()) - alive


def _keep(actual: PolicyEntries, identity: int, wanted: PolicyEntries) -> None:
    """Rules that this node has not seen since it started: what the kernel enforces goes on until they arrive."""
    wanted.subjects.update({key: value for key, value in actual.subjects.items() if key.identity == identity})
    wanted.lines.update({key: line for key, line in actual.lines.items() if key.subject == identity})
