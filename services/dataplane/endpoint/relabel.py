"""Identity changes of running pods, when their labels or their namespace's change.

Owns the moving of an endpoint from one identity to the next. Promises: the new identity is put in force only when its
rules are here and the frontier has passed the change, so a pod is never without policy in between; the journal numbers
the change, so other nodes take it for the later one. A change costs the endpoints that it may be about.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from chassis.runtime.reconcile import Dirty, Done
from chassis.runtime.service import Runtime
from proto.identity import RelevantKeys
from proto.objects import Pod
from services.dataplane.core.cni.request import PodRef
from services.dataplane.core.endpoint.admission import pod_of
from services.dataplane.core.endpoint.lifecycle import LocalEndpoint
from services.dataplane.core.endpoint.undecided import PodName, Undecided
from services.dataplane.core.ipam.journal_records import Lease
from services.dataplane.endpoint.admission import AdmissionWait, Entered
from services.dataplane.endpoint.registry import Registry
from services.dataplane.feed import Feed
from services.dataplane.ipam.journal import Journal
from services.dataplane.policy.enforce import Enforcer
from services.dataplane.settings import Settings

OBJECTS, IDENTITIES, RULES, LOCAL = range(4)
"""Which cursor of the loop (``endpoint.start``) is that of ``objects``, ``identities``, ``rules``, local endpoints."""
SYSTEM = "kube-system"


class Relabel:
    """Follows the identities of this node's pods."""

    def __init__(
        self,
        feed: Feed,
        admission: AdmissionWait,
        registry: Registry,
        journal: Journal,
        enforcer: Enforcer,
        runtime: Runtime[Settings],
    ) -> None:
        self._feed = feed
        self._admission = admission
        self._registry = registry
        self._journal = journal
        self._enforcer = enforcer
        self._log = runtime.log
        self._telemetry = runtime.telemetry
        self._undecided = Undecided({})
        self._relevants: frozenset[RelevantKeys] = frozenset()

    async def apply(self, dirty: Dirty) -> Done:
        """Asks for the identities of the endpoints that a change may be about, and of those that it could not tell of
        when it was asked last; of every endpoint on a full pass.
        """
        relevants = frozenset(frontier.relevant for frontier in self._feed.frontiers())
        if dirty.full or relevants != self._relevants or not self._follow(dirty):
            self._undecided = Undecided({at: _pod_of(one) for at, one in self._registry.up.items()})
        self._relevants = relevants
        for attachment in list(self._undecided.open):
            found = self._registry.up.get(attachment)
            if found is None:
                self._undecided.drop(attachment)
            else:
                await self._look(found)
        return Done()

    def _follow(self, dirty: Dirty) -> bool:
        """Takes in what changed. False: it may be about everybody."""
        objects, local = dirty.by_cursor[OBJECTS], dirty.by_cursor[LOCAL]
        pods, namespaces = self._feed.about(objects)
        if SYSTEM in namespaces:  # its uid keys all identities
            return False
        for container in local:
            for one in self._registry.of_container(container):
                self._undecided.put(one.attachment, _pod_of(one))
        self._undecided.changed(pods, namespaces)
        return True

    async def _look(self, found: LocalEndpoint) -> None:
        one = found if found.first.pod else self._named(found)
        wanted = PodRef(namespace=one.first.namespace, name=one.first.pod, uid=one.first.pod_uid)
        entered = self._admission.look(wanted)
        if not isinstance(entered, Entered):
            return
        if entered.admitted.identity == one.identity:
            self._undecided.decided(one.attachment)
        else:
            await self._move(one, entered)  # and asked once more, since it has changed

    def _named(self, one: LocalEndpoint) -> LocalEndpoint:
        """Of one taken over after the journal was lost only the uid is known; its object tells the rest."""
        pod = pod_of(self._feed.all_of(Pod), one.first.pod_uid)
        if pod is None:
            return one
        named = tuple(msgspec.structs.replace(lease, namespace=pod.namespace, pod=pod.name) for lease in one.leases)
        known = replace(one, leases=named)
        self._registry.put(known)
        return known

    async def _move(self, one: LocalEndpoint, entered: Entered) -> None:
        registry = self._registry
        async with registry.alone(one.attachment):
            current = registry.up.get(one.attachment)
            if current is None or current.index != one.index:
                return
            identity, first = entered.admitted.identity, one.first
            named: dict[str, Any] = {"k8s__namespace__name": first.namespace, "k8s__pod__name": first.pod}
            with self._telemetry.span(
                "identity-change", entered.traceparent, k8s__node__name=self._feed.node, **named
            ) as span:
                changed = await self._journal.change(one.attachment, identity, one.mac)
                moved = LocalEndpoint(
                    attachment=one.attachment,
                    leases=_as_before(changed.leases, one, identity),
                    index=one.index,
                    cookie=one.cookie,
                    traceparent=span.traceparent,
                )
                registry.put(moved)
                self._enforcer.learn(moved)
                self._log.info(
                    "identity-changed",
                    pod=f"{first.namespace}/{first.pod}",
                    before=f"{one.identity:016x}",
                    now=f"{identity:016x}",
                )


def _pod_of(one: LocalEndpoint) -> PodName:
    return one.first.namespace, one.first.pod


def _as_before(leases: tuple[Lease, ...], one: LocalEndpoint, identity: int) -> tuple[Lease, ...]:
    """The leases as the journal has them now, with the names that the registry knows."""
    first = one.first
    return tuple(
        msgspec.structs.replace(lease, identity=identity, namespace=first.namespace, pod=first.pod) for lease in leases
    )
