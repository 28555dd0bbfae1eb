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
from proto.policy import CidrPartition, CompiledPolicy, Revision
from services.dataplane.core import admission
from services.dataplane.core import policy_maps as pm
from services.dataplane.core.endpoint import LocalEndpoint
from services.dataplane.core.layout import (
    AddressKey,
    CookieKey,
    CookieMark,
    LinkKey,
    Peer,
    PeerFlag,
    PrefixKey,
    Subject,
    SubjectKey,
)
from services.dataplane.core.maps import CIDRS
from services.dataplane.core.policy_maps import CidrEntries, PolicyChange, PolicyEntries, cidr_change, namespace_hash
from services.dataplane.feed import Feed
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
        self._cidrs: dict[str, tuple[CidrPartition, CidrEntries]] = {}
        """In force by namespace."""
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

    def enforce(self, *, full: bool = True) -> Enforced:
        """The policy maps as they are in the kernel become what they should be; CIDR sets are read back if ``full``."""
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
        changed += self._partitions(reached, full=full)
        if changed:
            self._tables.bump_generation()
        return Enforced(reached, changed)

    def _apply(self, steps: PolicyChange) -> None:
        self._tables.policy.apply(steps.add_lines)
        self._tables.subjects.apply({}, steps.remove_subjects)
        self._tables.subjects.apply(steps.set_subjects)
        self._tables.policy.apply({}, steps.remove_lines)

    def _partitions(self, reached: Revision | None, *, full: bool) -> int:
        """Puts each namespace's CIDR partition in force when every line that names its numbers is in the maps."""
        told, known, before = self._feed.partitions(), self._feed.rules_view.synced, self._cidrs
        partitions = {name: own for name, (own, _) in before.items() if name in told or not known}
        if reached is not None:
            partitions |= {name: own for name, own in told.items() if reached.covers(own.revision)}
        now = self._fitted(partitions)
        changed = {name for name in before.keys() | now.keys() if before.get(name) is not now.get(name)}
        if full:
            actual = self._tables.cidrs.items()
            in_force = {namespace_hash(name) for name in now}
            waiting = {namespace_hash(name) for name in told}
            wanted = {
                key: own
                for key, own in actual.items()
                if key.namespace not in in_force and (not known or key.namespace in waiting)
            }
            wanted |= {key: own for _, entries in now.values() for key, own in entries.items()}
        else:
            actual = {key: own for name in changed & before.keys() for key, own in before[name][1].items()}
            wanted = {key: own for name in changed & now.keys() for key, own in now[name][1].items()}
        steps = cidr_change(actual, wanted)
        self._tables.cidrs.apply(steps.upserts, steps.deletes)
        self._cidrs = now
        return len(steps.upserts) + len(steps.deletes)

    def _fitted(self, partitions: dict[str, CidrPartition]) -> dict[str, tuple[CidrPartition, CidrEntries]]:
        """Entries of each partition; none of one that is too much, which is told once: its ipBlocks allow nothing."""
        # Half of the map is for what is wanted: what is new is set before what is old goes, so both need room.
        fitting = pm.fitting(partitions, CIDRS.entries // 2)
        now: dict[str, tuple[CidrPartition, CidrEntries]] = {}
        for name, partition in partitions.items():
            known = self._cidrs.get(name)
            if known is not None and known[0] is partition and bool(known[1]) == (name in fitting):
                now[name] = known
            elif name in fitting:
                now[name] = partition, pm.cidrs_of(partition)
            else:
                now[name] = partition, {}
                remedy = "lower AIRMESH_POLICY_MAX_PREFIXES, or name fewer CIDRs in this namespace's NetworkPolicies"
                self._log.error("cidrs-do-not-fit", namespace=name, prefixes=len(partition.prefixes), remedy=remedy)
        return now

    def restore(self, endpoints: Iterable[LocalEndpoint]) -> int:
        """Puts back what the maps lack of endpoints that are up, and takes out what no endpoint has."""
        known = list(endpoints)
        links = {LinkKey(ifindex=one.index): one.link() for one in known}
        delivery = {AddressKey(address=address): one.delivery() for one in known for address in one.addresses}
        changed = 0
        for delta, table in (
            (self._tables.links.diff(links), self._tables.links),
            (self._tables.endpoints.diff(delivery), self._tables.endpoints),
        ):
            table.apply(delta.upserts, delta.deletes)  # type: ignore[arg-type]
            changed += len(delta.upserts) + len(delta.deletes)
        cookies = {CookieKey(cookie=one.cookie): CookieMark() for one in known}
        if self.node_cookie:
            cookies[CookieKey(cookie=self.node_cookie)] = CookieMark(node=True)
        self._tables.cookies.apply(self._tables.cookies.diff(cookies).upserts)
        budgets = {key.endpoint for key in self._tables.budgets.items()}
        for one in known:
            if one.index not in budgets:
                self._tables.set_budget(one.index, self._budget)
        if changed:
            self._tables.bump_generation()
        return changed


def _keep(actual: PolicyEntries, identity: int, wanted: PolicyEntries) -> None:
    """Rules that this node has not seen since it started: what the kernel enforces goes on until they arrive."""
    wanted.subjects.update({key: value for key, value in actual.subjects.items() if key.identity == identity})
    wanted.lines.update({key: line for key, line in actual.lines.items() if key.subject == identity})
